"""Figures: the lines hold the numbers given, the words are there, and rendering touches no global state."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.stats import betabinom, binom

from anomaly_vae.errors import ConfigError, ShapeError
from anomaly_vae.evaluation.comparison import compare
from anomaly_vae.reporting import figures
from anomaly_vae.reporting.figures import calibration_curve, mean_ranks, score_histogram, training_curves


def pixels(figure: Figure) -> np.ndarray:
    """The figure as PNG, read back as an image (height, width, 4)."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=60)
    assert stream.getvalue().startswith(b"\x89PNG\r\n\x1a\n")
    stream.seek(0)
    return imread(stream)


def lines(figure: Figure) -> dict[str, np.ndarray]:
    """The y values of every labelled line."""
    return {str(line.get_label()): np.asarray(line.get_ydata()) for ax in figure.axes for line in ax.get_lines()}


def history(n: int = 20) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(
            step=10 * (i + 1),
            kl=2.0 + 0.1 * i,
            reconstruction=-5.0 + i,
            elbo=3.0 + i,
            validation_elbo=2.0 + i - 0.05 * i**2,
            active_units=min(i, 6),
            beta=min(1.0, i / 5),
        )
        for i in range(n)
    ]


def test_training_curves_draw_the_history() -> None:
    epochs = history()
    figure = training_curves(epochs)
    drawn = lines(figure)
    assert drawn["training batches"].tolist() == [e.elbo for e in epochs]
    assert drawn["validation rows"].tolist() == [e.validation_elbo for e in epochs]
    assert drawn["misfit, −log p(x|z)"].tolist() == [-e.reconstruction for e in epochs]
    assert drawn["active units (left)"].tolist() == [e.active_units for e in epochs]
    assert drawn["KL weight β (right)"].tolist() == [e.beta for e in epochs]
    # 2 + i - i^2 / 20 is highest at i = 10: step 110
    assert any("step 110" in label for label in drawn)
    assert [ax.get_xlabel() for ax in figure.axes[:3]] == ["optimiser step"] * 3
    assert "nats" in figure.axes[0].get_ylabel()
    image = pixels(figure)
    assert image[..., :3].std() > 0.05
    assert image[..., 3].min() == 1, "the background must be opaque, for dark pages"


def test_training_without_validation_rows_still_has_curves() -> None:
    epochs = [SimpleNamespace(**{**vars(e), "validation_elbo": float("nan")}) for e in history(3)]
    assert "validation rows" not in lines(training_curves(epochs))


def test_a_terrible_start_does_not_flatten_the_rest() -> None:
    epochs = history()
    epochs[0].elbo = -1e6
    low, high = training_curves(epochs).axes[0].get_ylim()
    assert low > -200
    assert high >= max(e.elbo for e in epochs)


def test_the_histogram_counts_every_row_once_and_says_what_is_flagged() -> None:
    scores = np.concatenate([np.random.default_rng(0).normal(size=500), [1e5, 2e5, 3e5]])
    figure = score_histogram(scores, 1.5)
    axes = figure.axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 503
    assert axes.get_xlim()[1] < 100, "three extreme rows must not squeeze the bulk"
    assert "holds 3 rows with higher scores" in axes.texts[0].get_text()
    legend = " ".join(t.get_text() for t in axes.get_legend().get_texts())
    assert f"{(scores > 1.5).mean():.1%} of the rows" in legend
    assert axes.get_xlabel() == "anomaly score, nats"
    (line,) = (x for x in axes.get_lines() if "threshold" in str(x.get_label()))
    assert set(line.get_xdata()) == {1.5}


def test_labelled_rows_are_drawn_as_shares_of_their_kind() -> None:
    rng = np.random.default_rng(0)
    scores, labels = np.concatenate([rng.normal(size=300), rng.normal(6, 1, size=9)]), np.arange(309) >= 300
    axes = score_histogram(scores, 3.0, labels).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(2)
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert any("normal, 300 rows" in t for t in legend)
    assert any("anomalous, 9 rows" in t for t in legend)
    assert "shares" not in axes.get_ylabel()
    assert axes.get_ylabel().startswith("share")


@pytest.mark.parametrize("scores", [[4.0], [4.0] * 7, [0.0, 1e300], [-3.0, 5.0]])
def test_degenerate_scores_still_have_a_picture(scores: list[float]) -> None:
    axes = score_histogram(scores, 4.0).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == len(scores)
    low, high = axes.get_xlim()
    assert low < 4.0 < high


def test_one_kind_of_label_is_drawn_too() -> None:
    legend = score_histogram([1.0, 2.0], 1.5, [False, False]).axes[0].get_legend().get_texts()
    assert any("no anomalous rows" in t.get_text() for t in legend)


def test_the_calibration_curve_is_the_share_of_p_values_below() -> None:
    p = np.random.default_rng(0).uniform(size=400)
    figure = calibration_curve(p)
    for axes, end in zip(figure.axes, (1.0, 0.1), strict=True):
        (line,) = (x for x in axes.get_lines() if x.get_label() == "observed")
        at = np.asarray(line.get_xdata())
        np.testing.assert_allclose(line.get_ydata(), [(p <= a + 1e-12).mean() for a in at])
        assert at[-1] == pytest.approx(end)
        assert axes.get_xlabel() == "promised rate α"
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    at_half = band[np.isclose(band[:, 0], 0.5)][:, 1]
    assert {at_half.min(), at_half.max()} == {binom(400, 0.5).ppf(q) / 400 for q in (0.025, 0.975)}


def test_the_band_holds_the_curves_of_an_exact_calibration() -> None:
    """Fresh p-values against their own calibration rows stay inside about 95 % of the time."""
    rng, inside = np.random.default_rng(0), []
    for _ in range(30):
        calibration, fresh = rng.normal(size=99), rng.normal(size=200)
        p = (1 + (calibration >= fresh[:, None]).sum(1)) / 100
        axes = calibration_curve(p, n_calibration=99).axes[0]
        (line,) = (x for x in axes.get_lines() if x.get_label() == "observed")
        vertices = axes.collections[0].get_paths()[0].vertices
        for at in (0.1, 0.3, 0.5):
            ends = vertices[np.isclose(vertices[:, 0], at)][:, 1]
            observed = np.interp(at, np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
            inside.append(ends.min() <= observed <= ends.max())
    assert 0.9 <= np.mean(inside) <= 1.0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: training_curves([]), ShapeError, "at least one epoch, got 0"),
        (lambda: score_histogram([], 1.0), ShapeError, r"n >= 1, got \(0,\)"),
        (lambda: score_histogram([1.0, np.inf], 1.0), ConfigError, "finite, got inf in row 1"),
        (lambda: score_histogram([1.0, 2.0], 1.0, [True]), ShapeError, r"shape \(2,\), got \(1,\)"),
        (lambda: calibration_curve([0.5, 1.5]), ConfigError, "between 0 and 1, got 1.5"),
        (lambda: calibration_curve([0.5], n_calibration=0), ConfigError, "at least 1, got 0"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Figure], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_figures_are_the_same_from_any_thread() -> None:
    def draw(_: int) -> bytes:
        return pixels(score_histogram(np.arange(50.0), 40.0)).tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(draw, range(8)))) == 1


def test_no_pyplot_and_no_changed_settings() -> None:
    program = """
import io
import sys
import matplotlib

def settings():  # all but the backend, whose look-up would itself import pyplot
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if not name.startswith("backend")}

before = settings()
from anomaly_vae.reporting import figures
figures.score_histogram([1.0, 2.0], 1.5).savefig(io.BytesIO(), format="png")
assert "matplotlib.pyplot" not in sys.modules, "pyplot was imported"
assert settings() == before, "settings were changed"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_mean_ranks_are_drawn_best_on_top_and_without_the_incomplete() -> None:
    figures = np.random.default_rng(0).random((4, 6, 2)) + np.array([0.0, 2.0, 1.0, 3.0])[:, None, None]
    figures[3, 0, 0] = np.nan
    found = compare(figures)
    figure = mean_ranks(["a", "b", "c", "d"], found, metric="AUROC")
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "c", "b"]
    assert lines(figure)["mean rank"].tolist() == [0, 1, 2]
    (drawn,) = (line.get_xdata() for line in axes.get_lines() if line.get_label() == "mean rank")
    assert list(drawn) == found.rank[[0, 2, 1]].tolist()
    assert "95% intervals over the choice of tables (6)" in axes.get_title(loc="left")
    assert pixels(figure).std() > 0
    with pytest.raises(ShapeError, match="one for each of 4 detectors, of which 3 have a rank, got 2"):
        mean_ranks(["a", "b"], found, metric="AUROC")


@pytest.mark.parametrize("n_calibration", [19, 200, 5000])
def test_the_band_of_many_rows_is_that_of_the_exact_law(n_calibration: int) -> None:
    """Just above the bound up to which it is exact; of ten million rows it takes no time."""
    alpha, n = np.linspace(0, 1, 41), figures.EXACT_ROWS + 1
    low, high = figures.calibration_band(alpha, n, n_calibration)
    rank = np.floor(alpha * (n_calibration + 1) + 1e-9)
    inside = (rank >= 1) & (rank <= n_calibration)
    law = betabinom(n, rank[inside], n_calibration + 1 - rank[inside])
    np.testing.assert_allclose(low[inside], law.ppf(0.025) / n, atol=0.002)
    np.testing.assert_allclose(high[inside], law.ppf(0.975) / n, atol=0.002)
    few, many = (figures.calibration_band(alpha, rows, n_calibration) for rows in (n, 10_000_000))
    assert (many[1] - many[0] <= few[1] - few[0] + 1e-9).all()
