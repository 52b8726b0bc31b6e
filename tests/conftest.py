"""Small data and one small trained detector, shared by all tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_vae import Detector, ImageConfig, TrainConfig, fit_detector
from anomaly_vae.data.schema import Column
from anomaly_vae.models import compiled
from anomaly_vae.models.likelihoods import NOISE_FLOOR
from anomaly_vae.models.linear import ProbabilisticPCA
from anomaly_vae.models.vae import VAE


@pytest.fixture(params=["compiled", "torch"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes scores and steps of training: compiled code, where there is some, and torch or numpy."""
    if request.param == "torch":
        monkeypatch.setenv(compiled.SWITCH, "off")
    elif not compiled.precisions():
        pytest.skip("no compiled code here")
    else:
        monkeypatch.delenv(compiled.SWITCH, raising=False)
    return request.param


def columns_of_every_kind() -> list[Column]:
    """Columns without data, several of a kind, in no order."""
    return [
        Column(name="a", kind="categorical", dtype="str", categories=tuple("pqrstuv"), unseen=0.01),
        Column(name="b", kind="continuous", dtype="float64", scale=3.0),
        Column(name="c", kind="count", dtype="int64", center=2.0, scale=1.5, unseen=0.001),
        Column(name="d", kind="binary", dtype="str", categories=("n", "y"), unseen=0.02),
        Column(name="e", kind="count", dtype="int64", center=9.0, scale=0.1, unseen=0.002),
        Column(name="f", kind="categorical", dtype="str", categories=tuple("xy"), unseen=0.03),
        Column(name="g", kind="continuous", dtype="float64"),
        Column(name="h", kind="count", dtype="int64", center=0.1, scale=0.3, unseen=0.004),
    ]


def rows_of_every_kind(b: int) -> torch.Tensor:
    """Encoded rows of `columns_of_every_kind`, with unseen values, zeros, counts in either tail, and gaps, (b, 8)."""
    generator = torch.Generator().manual_seed(b)

    def whole(top: int) -> torch.Tensor:
        return torch.randint(0, top, (b,), generator=generator).float()

    counts = (torch.randn(b, generator=generator) * 3 + 2).exp().round(), whole(20_000), whole(3)
    real = 2 * torch.randn(2, b, generator=generator)
    x = torch.stack([whole(8), real[0], counts[0], whole(3), counts[1], whole(3), real[1], counts[2]], 1)
    x[:, [2, 4, 7]] = torch.where(torch.rand(b, 3, generator=generator) < 0.1, -1.0, x[:, [2, 4, 7]])
    return x.masked_fill(torch.rand(x.shape, generator=generator) < 0.15, torch.nan)


def mixed_frame(n: int, seed: int = 0) -> pd.DataFrame:
    """A table with every kind of column, dependent columns, and missing cells."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    city = rng.choice(["Oslo", "Rome", "Lima"], size=n, p=[0.5, 0.3, 0.2])
    frame = pd.DataFrame(
        {
            "height": 170 + 10 * a,
            "weight": 70 + 8 * a + 2 * rng.normal(size=n),
            "member": a + rng.normal(size=n) > 0,
            "city": city,
            "visits": rng.poisson(np.exp(0.5 * a + (city == "Oslo"))),
        }
    )
    frame.loc[rng.random(n) < 0.1, "weight"] = np.nan
    frame.loc[rng.random(n) < 0.1, "city"] = None
    return frame


def low_rank_rows(n: int, columns: int, *, rank: int, noise: float) -> torch.Tensor:
    """Gaussian rows near a subspace, (n, columns), float64: what probabilistic PCA describes exactly."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    z = torch.randn(n, rank, generator=generator, dtype=torch.float64)
    return z @ mix + noise * torch.randn(n, columns, generator=generator, dtype=torch.float64)


def linear_vae(exact: ProbabilisticPCA, *, slope: float = 1.0, wider: float = 0.0) -> VAE:
    """Probabilistic PCA (with orthogonal loadings) as a VAE with the exact posterior, float64, in eval mode.

    Args:
        exact: What it describes.
        slope: What the posterior means' slopes are multiplied by, to put them off.
        wider: What is added to the posterior's log standard deviations.
    """
    m, latent = exact.loadings.shape
    columns = [Column(name=f"x{j}", kind="continuous", dtype="float64") for j in range(m)]
    model = VAE(columns, TrainConfig(hidden=(), latent=latent, continuous="gaussian")).double().eval()
    precision = exact.loadings.square().sum(0) + exact.variance
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.decoder.linear.weight[:m] = exact.loadings
        model.decoder.linear.bias[:m] = exact.mean
        model.encoder.linear.weight[:latent, :m] = slope * (exact.loadings / precision).T
        model.encoder.linear.bias[:latent] = -exact.mean @ exact.loadings / precision
        model.encoder.linear.bias[latent : 2 * latent] = 0.5 * (exact.variance / precision).log() + wider
        model.likelihood.heads["gaussian"].noise_log.fill_(float((exact.variance.sqrt() - NOISE_FLOOR).log()))
    return model


@pytest.fixture(scope="session", autouse=True)
def tables_made_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """New tracking databases of this process are copies of one that MLflow made, whose migrations take seconds."""
    if "mlflow" not in sys.modules:  # no test here has to do with it
        return
    from mlflow.store.db import utils
    from mlflow.store.model_registry import sqlalchemy_store

    made, first = utils._initialize_tables, tmp_path_factory.mktemp("tables") / "mlflow.db"

    def copied(engine: Any) -> None:
        place = engine.url.database
        if engine.dialect.name != "sqlite" or not place or (Path(place).exists() and Path(place).stat().st_size):
            made(engine)
            return
        engine.dispose()
        if first.exists():
            shutil.copyfile(first, place)
            return
        made(engine)
        shutil.copyfile(place, first)

    for module in (utils, sqlalchemy_store):
        module._initialize_tables = copied


@pytest.fixture(scope="session")
def training_rows() -> pd.DataFrame:
    return mixed_frame(600)


@pytest.fixture(scope="session")
def fresh_rows() -> pd.DataFrame:
    return mixed_frame(300, seed=1)


@pytest.fixture(scope="session")
def detector(training_rows: pd.DataFrame) -> Detector:
    config = TrainConfig(score_kind="likelihood", steps=600, hidden=(32,), learning_rate=0.01)
    return fit_detector(training_rows, config).detector


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, (1797, 8, 8) levels, and which digit each is."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images * 255 / 16).astype(np.uint8), digits.target


IMAGE_CONFIG = ImageConfig(steps=150, latent=8, channels=16, calibration_k=(1, 4))


@pytest.fixture(scope="session")
def image_detector() -> Detector:
    """A detector of digits that has never seen a 3."""
    images, digit = digit_images()
    return fit_detector(images[digit != 3], IMAGE_CONFIG).detector
