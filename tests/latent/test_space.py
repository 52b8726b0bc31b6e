"""From rows to codes and back: truths planted in tables, digits for images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from anomaly_vae import Detector, TrainConfig, fit_detector
from anomaly_vae.data.images import frame_of
from anomaly_vae.errors import ConfigError, SchemaError, ShapeError
from anomaly_vae.latent.space import LatentSpace
from tests.conftest import digit_images, mixed_frame


def line_rows(n: int, seed: int = 0) -> pd.DataFrame:
    """Rows on a line in three columns, with a little noise, and a class that goes along."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=n)
    frame = pd.DataFrame({"a": 3 * t, "b": 10 - 2 * t, "c": 5 * t + 1}) + 0.05 * rng.normal(size=(n, 3))
    return frame.assign(side=np.where(t > 0, "right", "left"))


@pytest.fixture(scope="module")
def line() -> LatentSpace:
    config = TrainConfig(steps=600, hidden=(32,), latent=2, learning_rate=0.01, companions=())
    return LatentSpace(fit_detector(line_rows(600), config).detector)


def test_decoded_codes_are_near_their_rows(line: LatentSpace) -> None:
    rows = line_rows(100, 1)
    back = line.reconstruct(rows)
    for name in "abc":
        assert np.abs(back[name] - rows[name]).mean() < 0.25 * rows[name].std()
    assert (back["side"] == rows["side"]).mean() > 0.9
    assert back.index.equals(rows.index)


def test_denoising_brings_rows_nearer_to_the_truth(line: LatentSpace) -> None:
    clean = line_rows(200, 2)
    noisy = clean.copy()
    noisy[["a", "b", "c"]] += np.random.default_rng(0).normal(size=(200, 3)) * [0.6, 0.4, 1.0]
    restored = line.denoise(noisy)
    scale = clean[["a", "b", "c"]].std()
    before, after = (
        np.square((f[["a", "b", "c"]] - clean[["a", "b", "c"]]) / scale).to_numpy().mean() for f in (noisy, restored)
    )
    assert after < 0.75 * before


def test_imputation_finds_what_the_others_say_and_leaves_the_rest(line: LatentSpace) -> None:
    truth = line_rows(200, 3)
    gaps = truth.copy()
    rng = np.random.default_rng(0)
    hidden = {name: rng.random(200) < 0.25 for name in ("b", "side")}
    for name, rows in hidden.items():
        gaps.loc[rows, name] = np.nan if name == "b" else None
    gaps.index = gaps.index + 1000
    filled = line.impute(gaps.assign(note="kept"))
    assert filled["note"].eq("kept").all()
    assert not filled.isna().any(axis=None)
    assert filled.index.equals(gaps.index)
    np.testing.assert_array_equal(filled["b"].to_numpy()[~hidden["b"]], truth["b"].to_numpy()[~hidden["b"]])
    error = np.abs(filled["b"].to_numpy() - truth["b"])[hidden["b"]].mean()
    by_mean = np.abs(truth["b"].mean() - truth["b"])[hidden["b"]].mean()
    assert error < 0.4 * by_mean
    assert (filled["side"].to_numpy() == truth["side"])[hidden["side"]].mean() > 0.9
    assert line.impute(truth).equals(truth)


def test_counts_and_flags_are_filled_in_as_such(detector: Detector) -> None:
    frame = mixed_frame(60, seed=5)
    frame = frame.astype({"visits": "Int64", "member": "boolean"})
    frame.loc[:9, ["visits", "member", "city"]] = None
    frame["height"] = frame["height"].fillna(170.0)
    filled = LatentSpace(detector).impute(frame)
    assert not filled.isna().any(axis=None)
    assert set(filled["city"]) <= {"Oslo", "Rome", "Lima"}
    visits = filled["visits"].astype(float)
    assert (visits == visits.round()).all()
    assert set(filled["member"].astype(bool)) <= {True, False}


def test_paths_begin_and_end_where_they_should(line: LatentSpace) -> None:
    rows = line_rows(6, 4)
    between = line.interpolate(rows.iloc[:3], rows.iloc[3:], steps=5)
    assert between.index.names == ["pair", "step"]
    assert len(between) == 18
    ends = between.xs(0, level="step")
    np.testing.assert_allclose(ends["a"], line.reconstruct(rows.iloc[:3])["a"], rtol=1e-4, atol=1e-4)
    one = between.loc[0, "a"].to_numpy()
    assert np.all(np.diff(one) * np.sign(one[-1] - one[0]) > -0.2)
    a, b = np.array([[3.0, 0.0]]), np.array([[0.0, 3.0]])
    circle = LatentSpace.path(a, b, steps=4, path="spherical")
    np.testing.assert_allclose(np.linalg.norm(circle, axis=2), 3.0, rtol=1e-5)
    np.testing.assert_allclose(circle[0, 2], 3 / np.sqrt(2), rtol=1e-5)
    same = LatentSpace.path(a, a, steps=2, path="spherical")
    np.testing.assert_allclose(same, np.broadcast_to(a, same.shape), rtol=1e-5)


def test_the_manifold_steps_evenly_in_probability(line: LatentSpace) -> None:
    grid = line.manifold(size=5)
    across = np.unique(grid.index.get_level_values(1))
    np.testing.assert_allclose(norm.cdf(across), np.linspace(0.05, 0.95, 5), atol=1e-9)
    assert len(grid) == 25
    first = int(line.active()[0])
    column = grid["a"].to_numpy().reshape(5, 5)
    want = line.decode(np.array([[v if d == first else 0.0 for d in range(2)] for v in across]))["a"]
    np.testing.assert_allclose(column[2], want, rtol=1e-4, atol=1e-4)


def test_traversals_change_one_dimension_alone(line: LatentSpace) -> None:
    used = line.active().tolist()
    moved = line.traversals(steps=5)
    assert moved.index.get_level_values("dimension").unique().tolist() == used
    leading = moved.loc[used[0], "a"]
    assert abs(leading.iloc[-1] - leading.iloc[0]) > 3  # the line's direction is in it
    start = line_rows(1, 8)
    at = line.traversals(start, dimensions=[0, 1], steps=3)
    assert len(at) == 6


def test_samples_are_like_the_data_and_come_again(line: LatentSpace) -> None:
    drawn = line.sample(400, seed=3)
    pd.testing.assert_frame_equal(drawn, line.sample(400, seed=3))
    rows = line_rows(400, 9)
    assert abs(drawn["a"].std() / rows["a"].std() - 1) < 0.3
    assert np.corrcoef(drawn["a"], drawn["b"])[0, 1] < -0.8
    assert len(line.sample(7, expected=True)) == 7


def test_images_go_through_all_of_it(image_detector: Detector) -> None:
    images, digit = digit_images()
    space = LatentSpace(image_detector)
    some = frame_of(images[digit != 3][:12])
    for made in (space.reconstruct(some), space.denoise(some), space.sample(12), space.sample(12, expected=True)):
        assert image_detector.pixels(made).shape == (12, 8, 8, 1)
    error = np.abs(image_detector.pixels(space.denoise(some))[..., 0].astype(float) - images[digit != 3][:12]).mean()
    assert error < 60
    assert len(space.manifold(size=3)) == 9
    with pytest.raises(ConfigError, match="images"):
        space.impute(some)


def test_what_is_refused(line: LatentSpace) -> None:
    rows = line_rows(4)
    with pytest.raises(SchemaError, match="'side' absent"):
        line.encode(rows.drop(columns="side"))
    with pytest.raises(ShapeError, match=r"codes must have shape \(n, 2\)"):
        line.decode(np.zeros((3, 5)))
    with pytest.raises(ShapeError, match="as many ends"):
        line.interpolate(rows, rows.head(2))
    with pytest.raises(ShapeError, match="one row"):
        line.traversals(rows)
    with pytest.raises(ConfigError, match="dimensions"):
        line.traversals(dimensions=[7])
    with pytest.raises(ConfigError, match="must differ"):
        line.manifold(dimensions=(1, 1))
    with pytest.raises(ConfigError, match="rows to draw"):
        line.sample(0)
    with pytest.raises(ConfigError, match="path must be"):
        line.interpolate(rows, rows, path="straight")
    assert torch.is_grad_enabled()
