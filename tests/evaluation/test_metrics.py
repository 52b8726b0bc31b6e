"""Rankings and rates against scikit-learn, SciPy and closed forms."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, t
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_vae.errors import ConfigError, ShapeError
from anomaly_vae.evaluation.metrics import _bootstrap, _bootstrap_of_groups, _ranking_of_counts, auroc_ap, flag_rate


def scored_rows(n_normal: int, n_anomalous: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores whose true AUROC is Phi(1) = 0.841."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([False, True], [n_normal, n_anomalous])
    return labels, rng.normal(size=labels.size) + labels * np.sqrt(2)


def test_figures_are_those_of_scikit_learn() -> None:
    labels, scores = scored_rows(200, 30)
    ranking = auroc_ap(labels, scores, n_boot=50)
    assert ranking.auroc == roc_auc_score(labels, scores)
    assert ranking.average_precision == average_precision_score(labels, scores)
    assert (ranking.n_normal, ranking.n_anomalous) == (200, 30)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40))
def test_counts_per_level_give_the_figures_of_scikit_learn(rows: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    if labels.all() or not labels.any():
        labels = np.append(labels, ~labels[0])
        scores = np.append(scores, 3)
    counts = [np.bincount(scores[keep], minlength=7)[None] for keep in (~labels, labels)]
    auroc, precision = _ranking_of_counts(*counts)
    assert auroc[0] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert precision[0] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


def test_the_bootstrap_agrees_with_drawing_rows() -> None:
    """Draws over levels have the distribution that resampling rows and calling scikit-learn has."""
    labels, scores = scored_rows(60, 12, seed=1)
    scores = np.round(scores, 1)  # ties
    normal, anomalous = scores[~labels], scores[labels]
    ours = _bootstrap(normal, anomalous, 4000, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(1500):
        again = np.concatenate([rng.choice(normal, normal.size), rng.choice(anomalous, anomalous.size)])
        drawn.append((roc_auc_score(labels, again), average_precision_score(labels, again)))
    for mine, theirs in zip(ours, np.array(drawn).T, strict=True):
        assert mine.mean() == pytest.approx(theirs.mean(), abs=4 * theirs.std() / np.sqrt(1500))
        assert mine.std() == pytest.approx(theirs.std(), rel=0.12)


def test_the_interval_covers_the_true_figure_and_narrows_with_rows() -> None:
    covered, widths = 0, {}
    for n in (40, 400):
        rankings = [auroc_ap(*scored_rows(n, n, seed), n_boot=200) for seed in range(60)]
        covered += sum(r.auroc_low <= 0.8413 <= r.auroc_high for r in rankings)
        widths[n] = np.mean([r.auroc_high - r.auroc_low for r in rankings])
    assert 106 <= covered <= 120  # 95 % of 120 is 114, standard deviation 2.4
    assert widths[40] / widths[400] == pytest.approx(np.sqrt(10), rel=0.15)


def test_same_seed_same_interval_and_memory_chunks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores = scored_rows(50, 20)
    whole = auroc_ap(labels, scores, n_boot=100, seed=3)
    assert whole == auroc_ap(labels, scores, n_boot=100, seed=3)
    assert whole != auroc_ap(labels, scores, n_boot=100, seed=4)
    monkeypatch.setattr("anomaly_vae.evaluation.metrics._CELLS", 41 * 7)
    assert auroc_ap(labels, scores, n_boot=100, seed=3) == whole


def test_a_million_normal_rows_take_seconds_at_most() -> None:
    labels, scores = scored_rows(1_000_000, 100)
    ranking = auroc_ap(labels, scores)
    assert ranking.auroc_low < 0.8413 < ranking.auroc_high
    assert ranking.ap_low <= ranking.average_precision <= ranking.ap_high


def test_a_perfect_ranking_has_a_perfect_interval() -> None:
    ranking = auroc_ap([0, 0, 1], [1.0, 2.0, 3.0], n_boot=20)
    assert (ranking.auroc, ranking.auroc_low, ranking.ap_high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "scores", "options", "error", "words"),
    [
        ([0, 1], [1.0], {}, ShapeError, r"same shape \(n,\), got \(2,\) and \(1,\)"),
        ([0, 0], [1.0, 2.0], {}, ShapeError, "normal and anomalous rows, got 0 anomalous of 2"),
        ([0, 2], [1.0, 2.0], {}, ConfigError, "labels must be 0 or 1, got"),
        ([0, 1], [1.0, np.nan], {}, ConfigError, "scores must be finite, got nan in row 1"),
        ([0, 1], [1.0, 2.0], {"n_boot": 0}, ConfigError, "n_boot must be at least 1, got 0"),
        ([0, 1], [1.0, 2.0], {"level": 95}, ConfigError, "level must be between 0 and 1, got 95"),
    ],
)
def test_bad_input_is_named(labels: list, scores: list, options: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        auroc_ap(labels, scores, **options)


def rows_of_machines(machines: int, seed: int, *, alike: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Flags of rows, of which 5 % are flagged, but more of one machine's than of another's; and their machines."""
    rng = np.random.default_rng(seed)
    rates = rng.beta(0.05 * alike, 0.95 * alike, size=machines)
    machine = np.repeat(np.arange(machines), rng.integers(10, 40, size=machines))
    return rng.random(machine.size) < rates[machine], machine


def test_intervals_by_groups_cover_the_rate_of_all_groups_where_those_by_rows_do_not() -> None:
    covered = {"groups": 0, "rows": 0}
    for seed in range(400):
        flags, machine = rows_of_machines(60, seed)
        for name, groups in (("groups", machine), ("rows", None)):
            rate = flag_rate(flags, groups=groups)
            covered[name] += rate.low <= 0.05 <= rate.high
    assert covered["groups"] >= 368  # 95 % of 400 is 380, standard deviation 4.4; few positive groups cost a little
    assert covered["rows"] < 300


def test_rows_that_are_each_their_own_group_count_as_independent() -> None:
    flags = np.random.default_rng(0).random(2000) < 0.05
    apart, rows = flag_rate(flags, groups=np.arange(2000)), flag_rate(flags)
    assert (apart.low, apart.high) == (pytest.approx(rows.low, rel=1e-3), pytest.approx(rows.high, rel=1e-3))
    assert (apart.n_groups, rows.n_groups) == (2000, None)


def test_groups_flagged_whole_count_as_a_row_each() -> None:
    """Ten of forty machines are flagged, rows and all: as forty rows would, by Student's t for forty."""
    machine = np.arange(40).repeat(25)
    rate = flag_rate(machine < 10, groups=machine)
    worth = 39 * (t.ppf(0.975, 999) / t.ppf(0.975, 39)) ** 2
    assert rate.low == pytest.approx(beta.ppf(0.025, worth / 4, 0.75 * worth + 1))
    assert rate.high == pytest.approx(beta.ppf(0.975, worth / 4 + 1, 0.75 * worth))


@pytest.mark.parametrize("flagged", [0, 30])
def test_rows_flagged_all_alike_tell_nothing_of_groups(flagged: int) -> None:
    flags = np.arange(30) < flagged
    apart, rows = flag_rate(flags, groups=np.arange(30) % 3), flag_rate(flags)
    assert (apart.low, apart.high) == (rows.low, rows.high)


def test_the_bootstrap_of_groups_agrees_with_drawing_them() -> None:
    labels, scores = scored_rows(90, 30, seed=2)
    machine = np.random.default_rng(3).integers(0, 12, size=120)
    scores = np.round(scores + np.random.default_rng(4).normal(size=12)[machine], 1)  # ties, and machines that differ
    ours = _bootstrap_of_groups(scores, labels, machine, 4000, np.random.default_rng(0))
    rng, drawn = np.random.default_rng(1), []
    for _ in range(1500):
        rows = np.concatenate([np.flatnonzero(machine == m) for m in rng.integers(0, 12, size=11)])
        drawn.append([f(labels[rows], scores[rows]) for f in (roc_auc_score, average_precision_score)])
    for mine, theirs in zip(ours, np.array(drawn).T, strict=True):
        assert mine.mean() == pytest.approx(theirs.mean(), abs=5 * theirs.std() / np.sqrt(1500))
        assert mine.std() == pytest.approx(theirs.std(), rel=0.1)
    by_groups, by_rows = auroc_ap(labels, scores, groups=machine), auroc_ap(labels, scores)
    assert (by_groups.auroc, by_groups.average_precision) == (by_rows.auroc, by_rows.average_precision)
    assert by_groups.auroc_high - by_groups.auroc_low > 1.2 * (by_rows.auroc_high - by_rows.auroc_low)
    assert (by_groups.n_groups, by_rows.n_groups) == (12, None)


def test_memory_chunks_do_not_change_the_bootstrap_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores = scored_rows(50, 20)
    whole = auroc_ap(labels, scores, groups=np.arange(70) % 9, n_boot=100)
    monkeypatch.setattr("anomaly_vae.evaluation.metrics._CELLS", 41 * 7)
    assert auroc_ap(labels, scores, groups=np.arange(70) % 9, n_boot=100) == whole


def test_groups_that_tell_nothing_are_refused() -> None:
    labels, scores = scored_rows(10, 4)
    with pytest.raises(ShapeError, match=r"one for each of the 14 rows, got shape \(3,\)"):
        auroc_ap(labels, scores, groups=[1, 2, 3])
    with pytest.raises(ShapeError, match="anomalous rows of at least 2 groups, got 1"):
        auroc_ap(labels, scores, groups=np.where(labels, 0, np.arange(14)))
    with pytest.raises(ShapeError, match="at least 2 groups, got 1"):
        flag_rate(labels, groups=np.zeros(14))


@pytest.mark.parametrize(("count", "n"), [(0, 20), (3, 20), (20, 20), (57, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_rates_have_the_clopper_pearson_interval(count: int, n: int, level: float) -> None:
    flags = np.arange(n) < count
    rate = flag_rate(flags, level=level)
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else beta.ppf(tail, count, n - count + 1)
    high = 1.0 if count == n else beta.ppf(1 - tail, count + 1, n - count)
    assert (rate.count, rate.n, rate.rate) == (count, n, count / n)
    assert (rate.low, rate.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_no_row_has_no_rate() -> None:
    with pytest.raises(ShapeError, match=r"n >= 1, got \(0,\)"):
        flag_rate([])


def test_results_are_json() -> None:
    labels, scores = scored_rows(20, 5)
    kept = json.loads(json.dumps(auroc_ap(labels, scores, n_boot=10).to_dict()))
    assert kept["n_anomalous"] == 5
    assert json.loads(json.dumps(flag_rate([False, True]).to_dict()))["rate"] == 0.5
