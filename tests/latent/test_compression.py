"""Rows packed into codes and back; clusters and maps of codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomaly_vae import Detector, TrainConfig, fit_detector
from anomaly_vae.data.images import frame_of
from anomaly_vae.errors import ArtifactError, ConfigError, ShapeError
from anomaly_vae.latent.compression import compress, decompress
from anomaly_vae.latent.maps import cluster, latent_map
from anomaly_vae.latent.space import LatentSpace
from tests.conftest import digit_images, mixed_frame


@pytest.fixture(scope="module")
def clouds() -> tuple[LatentSpace, pd.DataFrame, np.ndarray]:
    """Three clouds of rows."""
    rng = np.random.default_rng(0)
    which = rng.choice(3, 500, p=[0.5, 0.3, 0.2])
    frame = pd.DataFrame(rng.normal(size=(500, 4)) + 6 * np.eye(4)[which], columns=list("abcd"))
    config = TrainConfig(steps=300, hidden=(32,), latent=3, learning_rate=0.01, companions=())
    return LatentSpace(fit_detector(frame, config).detector), frame, which


def test_packed_rows_come_back_as_the_model_says_them(clouds: tuple) -> None:
    space, frame, _ = clouds
    packed, rate = compress(space, frame)
    assert rate.bytes == len(packed)
    assert rate.bits_per_row == 8 * len(packed) / 500
    assert rate.ratio > 2
    assert 0 < rate.entropy < rate.bits_per_row
    back, want = decompress(space, packed), space.reconstruct(frame)
    error = np.square(back - want).to_numpy().mean() / np.square(frame - want).to_numpy().mean()
    assert error < 0.5  # rounding costs less than the code leaves out
    coarse, cheap = compress(space, frame, step=4.0)
    assert cheap.bytes < rate.bytes
    worse = np.square(decompress(space, coarse) - frame).to_numpy().mean()
    assert worse > np.square(back - frame).to_numpy().mean()


def test_finer_steps_come_nearer(clouds: tuple) -> None:
    space, frame, _ = clouds
    want = space.reconstruct(frame)
    errors = [
        np.abs(decompress(space, compress(space, frame, step=s)[0]) - want).to_numpy().mean() for s in (2.0, 0.5, 0.01)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_images_and_single_rows_are_packed(image_detector: Detector, detector: Detector) -> None:
    images, digit = digit_images()
    space = LatentSpace(image_detector)
    packed, rate = compress(space, frame_of(images[digit != 3][:400]))
    assert rate.ratio > 1.5
    assert rate.bits_per_dimension < 8
    assert image_detector.pixels(decompress(space, packed)).shape == (400, 8, 8, 1)
    one, _ = compress(LatentSpace(detector), mixed_frame(1))
    assert len(decompress(LatentSpace(detector), one)) == 1


def test_another_model_or_another_file_is_refused(clouds: tuple, detector: Detector, tmp_path: Path) -> None:
    space, frame, _ = clouds
    packed, _ = compress(space, frame)
    with pytest.raises(ArtifactError, match="read by the model that wrote it"):
        decompress(LatentSpace(detector), packed)
    frame.to_parquet(tmp_path / "rows.parquet")
    for source in (b"nothing", packed[:50], tmp_path / "rows.parquet", tmp_path / "absent"):
        with pytest.raises(ArtifactError, match="one that compressing wrote"):
            decompress(space, source)
    with pytest.raises(ConfigError, match="step above 0"):
        compress(space, frame, step=0)
    with pytest.raises(ConfigError, match="at least 1"):
        compress(space, frame.head(0))


def test_clusters_are_the_clouds(clouds: tuple) -> None:
    space, frame, which = clouds
    found = cluster(space, frame, clusters=3)
    agree = sum(np.bincount(found.labels[which == c]).max() for c in range(3)) / 500
    assert agree > 0.95
    assert list(found.sizes) == sorted(found.sizes, reverse=True)
    assert found.descriptions[0].startswith("a ")
    assert found.silhouette > 0.3
    json.dumps(found.to_dict(), allow_nan=False)
    assert cluster(space, frame.head(2), clusters=10).sizes == (1, 1)
    with pytest.raises(ConfigError, match="clusters"):
        cluster(space, frame, clusters=0)


def test_a_map_has_a_place_and_a_score_for_each_row(clouds: tuple) -> None:
    space, frame, which = clouds
    places = latent_map(space, frame.set_index(np.arange(500) + 7))
    assert places.index[0] == 7
    assert 0.5 < places.attrs["explained"] <= 1.0
    centres = places.groupby(which)[["x", "y"]].mean().to_numpy()
    spread = places.groupby(which)[["x", "y"]].std().to_numpy().mean()
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread
    np.testing.assert_allclose(places["anomaly_score"], space.detector.score_frame(frame, alpha=0.5)["anomaly_score"])
    with pytest.raises(ShapeError, match="at least 2 rows"):
        latent_map(space, frame.head(1))
