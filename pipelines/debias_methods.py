"""Ways to weigh training rows, a classifier trained on what they give, and how it does by group.

The classifier is a small network that takes a fixed number of steps. What a method weighs reaches it in two ways: as
fresh draws, each batch anew with chances proportional to the weights; or as one fixed set, an oversample of twice the
rows that keeps every row, through which it goes in random order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from planted import Part, Planted
from scipy.stats import t as student
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from anomaly_vae.debiasing.selection import select
from anomaly_vae.debiasing.weigher import CodedRows, Weigher
from anomaly_vae.detection.detector import Detector
from anomaly_vae.options import ResampleConfig
from anomaly_vae.row_weigher import coded

Floats = NDArray[np.float64]

NONE, ORACLE = "no weights", "oracle"
UNGUARDED: Mapping[str, Any] = {"guard": 0.0, "fence": None, "isolation_guard": None, "label_guard": None}
AS_PUBLISHED: Mapping[str, Any] = {
    **UNGUARDED, "density": "dbvae", "within_class": False, "class_mass": "kept",
    "ess": None, "cap": None, "floor": None,
}  # fmt: skip
CONFIGS: dict[str, ResampleConfig] = {
    "DB-VAE, product": ResampleConfig(**AS_PUBLISHED),
    "DB-VAE, maximum": ResampleConfig(**AS_PUBLISHED, combine="max"),
    "neighbours, tempered": ResampleConfig(space="latent", smoothing=0, within_class=False, class_mass="kept"),
    "neighbours, in class": ResampleConfig(space="latent", smoothing=0),
    "default": ResampleConfig(),
    "default, no guards": ResampleConfig(**UNGUARDED),
    "default in latent space": ResampleConfig(space="latent"),
    "default in joint space": ResampleConfig(space="joint"),
    "default in raw space": ResampleConfig(space="raw"),
    "default in PCA space": ResampleConfig(space="pca"),
    "clusters, in class": ResampleConfig(density="clusters"),
}
"""Methods that know rows and labels, with their settings; "default" is `ResampleConfig()`."""
DELIVERIES = ("draws", "fixed")
BATCH = 64
ENOUGH = 3.0
"""Standard errors that the oracle's gain must have for shares of it to be quoted."""


def reweighing(train: Part) -> Floats:
    """Return P(group) P(class) / P(group, class) by the true groups (Kamiran & Calders 2012; AIF360's Reweighing)."""
    cell = 2 * train.y + train.rare
    joint, classes, rare = np.bincount(cell), np.bincount(train.y), train.rare.mean()
    of_group = np.where(train.rare, rare, 1 - rare)
    return np.asarray(of_group * classes[train.y] / joint[cell])


def equal_cells(train: Part) -> Floats:
    """Return weights by the true groups that give each pair of group and class the same mass; spoilt rows have 1."""
    cell = np.where(train.spoilt, -1, 2 * train.y + train.rare) + 1
    counts = np.bincount(cell)
    weights = 1.0 / counts[cell]
    good = ~train.spoilt
    weights[good] *= good.sum() / weights[good].sum()
    return np.where(good, weights, 1.0)


def equal_classes(train: Part) -> Floats:
    """Return weights that give each class the same mass."""
    return np.asarray(1.0 / np.bincount(train.y)[train.y])


KNOWN: dict[str, Callable[[Part], Floats]] = {
    NONE: lambda train: np.ones(len(train.y)),
    "class balancing": equal_classes,
    "reweighing": reweighing,
    ORACLE: equal_cells,
}
"""Methods that need no model. The last two are told the true groups."""
METHODS = (NONE, "class balancing", *CONFIGS, "reweighing", ORACLE)


def weights_of(method: str, rows: CodedRows | None, train: Part, *, seed: int) -> Floats:
    """Return a method's weights, mean 1, (n,).

    Args:
        method: One of `METHODS`.
        rows: The coded training rows with their labels; None for methods that need no model.
        train: The training rows.
        seed: Of all draws.
    """
    if method in KNOWN:
        weights = KNOWN[method](train)
        return weights / weights.mean()
    assert rows is not None
    config = ResampleConfig.from_mapping({**CONFIGS[method].to_dict(), "seed": seed})
    weights = Weigher.fit(rows, config).weighing.weights
    return weights / weights.mean()


def coded_rows(detector: Detector, train: Part) -> CodedRows:
    """Return the training rows, coded once for all methods."""
    return coded(detector, train.frame, ResampleConfig(), train.y)


@dataclass(frozen=True)
class Features:
    """What the classifier sees of a data set, standardised: (n, d) for training and for testing."""

    train: torch.Tensor
    test: torch.Tensor


def features(data: Planted) -> Features:
    """Return pixels from -1 to 1, or a table's numbers standardised and its categories as indicators."""
    parts = []
    if data.images:
        for part in (data.train, data.test):
            pixels = np.stack(part.frame["image"].tolist()).reshape(len(part.y), -1)
            parts.append(torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1))
        return Features(*parts)
    encoder = make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include="number")),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), make_column_selector(dtype_exclude="number")),
    )
    fitted = encoder.fit(data.train.frame)
    for part in (data.train, data.test):
        parts.append(torch.from_numpy(fitted.transform(part.frame).astype(np.float32)))
    return Features(*parts)


def predictions(
    seen: Features, y: NDArray[np.int64], weights: Floats, delivery: str, *, seed: int, steps: int, hidden: int
) -> NDArray[np.int64]:
    """Train a classifier on what weights give and return the classes it finds in the test rows, (t,)."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    rows = _fixed(weights, steps, rng, seed) if delivery == "fixed" else _drawn(weights, steps, rng)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        classes = int(y.max()) + 1
        model = nn.Sequential(nn.Linear(seen.train.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, classes))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    targets = torch.from_numpy(y)
    for batch in torch.from_numpy(rows):
        loss = nn.functional.cross_entropy(model(seen.train[batch]), targets[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        return model(seen.test).argmax(1).numpy()


def _drawn(weights: Floats, steps: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of each batch, (steps, b), drawn by weight."""
    reached = np.cumsum(weights / weights.sum())
    return np.searchsorted(reached, rng.random((steps, BATCH)) * reached[-1], side="right").astype(np.int64)


def _fixed(weights: Floats, steps: int, rng: np.random.Generator, seed: int) -> NDArray[np.int64]:
    """Return the rows of each batch, (steps, b), going through one oversample again and again."""
    kept = select(weights, mode="oversample", seed=seed)
    rounds = math.ceil(steps * BATCH / len(kept))
    return np.concatenate([rng.permutation(kept) for _ in range(rounds)])[: steps * BATCH].reshape(steps, BATCH)


def judged(found: NDArray[np.int64], test: Part) -> dict[str, float]:
    """Return how a classifier does: accuracy by group, the worst, their variance (points squared), precision."""
    right = found == test.y
    by_group = np.array([right[test.group == g].mean() for g in range(int(test.group.max()) + 1)])
    precision = [(test.y[found == c] == c).mean() for c in np.unique(test.y) if (found == c).any()]
    return {
        "worst": float(by_group.min()),
        "usual": float(right[~test.rare].mean()),
        "accuracy": float(right.mean()),
        "precision": float(np.mean(precision)),
        "variance": float(np.var(100 * by_group)),
        **{f"group {g}": float(value) for g, value in enumerate(by_group)},
    }


def described(weights: Floats, train: Part) -> dict[str, float]:
    """Return what weights are: effective sample size, mass of the rare group, that of spoilt ones by their share."""
    total = weights.sum()
    natural = train.spoilt.mean()
    return {
        "ess": float(total**2 / np.square(weights).sum() / len(weights)),
        "rare_mass": float(weights[train.group == train.group.max()].sum() / total),
        "spoilt_times": float(weights[train.spoilt].sum() / total / natural) if natural else math.nan,
    }


@dataclass(frozen=True)
class Share:
    """A share of the oracle's gain.

    Attributes:
        value: Ratio of mean gains over paired seeds.
        low: Lower end of its 95 % interval (Fieller); -inf where there is none.
        high: Upper end.
        oracle_gain: Mean gain of the oracle.
        oracle_error: Its standard error over seeds.
        oracle_spread: Its standard deviation over seeds.
    """

    value: float
    low: float
    high: float
    oracle_gain: float
    oracle_error: float
    oracle_spread: float

    @property
    def quotable(self) -> bool:
        """Whether the oracle gains enough for shares of it to mean something."""
        return self.oracle_error > 0 and self.oracle_gain >= ENOUGH * self.oracle_error


def recovered(gain: Floats, oracle: Floats) -> Share:
    """Return the share of the oracle's gain that a method has.

    Args:
        gain: Of the method over no weights, by seed, (s,).
        oracle: Of the oracle, by the same seeds, (s,).

    References:
        Fieller (1954), Some problems in interval estimation.
    """
    n, m, o = len(gain), float(gain.mean()), float(oracle.mean())
    if n < 2:
        return Share(m / o if o else math.nan, -math.inf, math.inf, o, math.inf, math.inf)
    covariance = np.cov(gain, oracle)
    c = float(student.ppf(0.975, n - 1)) ** 2 / n
    # the interval is where (m - r o)^2 <= c (v_m - 2 r v_mo + r^2 v_o)
    a, b, d = o * o - c * covariance[1, 1], m * o - c * covariance[0, 1], m * m - c * covariance[0, 0]
    root = b * b - a * d
    low, high = (-math.inf, math.inf) if a <= 0 or root < 0 else ((b - root**0.5) / a, (b + root**0.5) / a)
    spread = float(oracle.std(ddof=1))
    return Share(m / o if o else math.nan, low, high, o, spread / math.sqrt(n), spread)
