r"""How good samples are, and how much of the data they cover. Arrays in, dataclasses out.

Rows of the data and samples of the model are points in a feature space of the caller's choice, (n, d). Two questions
are kept apart, for a model may answer one well by failing the other:

- **quality**: is a sample like the data? precision, density, inception score
- **coverage**: is the data like the samples? recall, coverage, modes

The Fréchet distance and the two-sample classifier answer both at once.

References:
    Heusel et al. (2017), arXiv:1706.08500 (Fréchet inception distance).
    Chong & Forsyth (2020), Effectively unbiased FID and inception score, arXiv:1911.07023.
    Kynkäänniemi et al. (2019), Improved precision and recall metric, arXiv:1904.06991.
    Naeem et al. (2020), Reliable fidelity and diversity metrics for generative models, arXiv:2002.09797.
    Lopez-Paz & Oquab (2017), Revisiting classifier two-sample tests, arXiv:1610.06545.
    Richardson & Weiss (2018), On GANs and GMMs, arXiv:1805.12462 (bins whose shares differ).
    Salimans et al. (2016), arXiv:1606.03498 (inception score).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from sklearn.neighbors import NearestNeighbors

from ..errors import ConfigError, ShapeError
from .metrics import auroc_ap

Floats = NDArray[np.float64]

SHARES = (0.4, 0.55, 0.7, 0.85, 1.0)
"""Sizes of the subsamples from which the Fréchet distance is extrapolated."""
REPEATS = 6
FEWEST = 20
"""Rows that any of these figures wants at least."""
LEVEL = 0.05
"""Level at which a mode's share is called different, over all modes together (Bonferroni)."""
LOST = 0.1
"""A mode with less than this part of the share it should have is lost."""


class Result:
    """What all results share."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON has a word for: None where a number is not finite."""
        facts = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}


@dataclass(frozen=True, kw_only=True)
class Frechet(Result):
    """The Fréchet distance between Gaussians fitted to two sets of points.

    Attributes:
        value: Extrapolated to infinitely many rows; near 0, and as often below it, for sets from one distribution.
        se: Spread of the extrapolation over draws of the subsamples. It is not the error over the choice of rows.
        raw: Of the rows at hand, which is biased upwards, the more the fewer they are.
        rows: Rows of each set that were used.
        dimensions: d.
    """

    value: float
    se: float
    raw: float
    rows: int
    dimensions: int


@dataclass(frozen=True, kw_only=True)
class Neighbourhoods(Result):
    """Quality and coverage by nearest neighbours; each is 1, or near it, for samples that are like the data.

    Attributes:
        precision: Share of the samples that lie within some data row's distance to its k-th neighbour.
        recall: Share of the data rows that lie within some sample's distance to its k-th neighbour.
        density: Mean number of such data neighbourhoods that a sample lies in, over k: unlike precision it does not
            count one outlying row's wide neighbourhood as much as many; it can exceed 1.
        coverage: Share of the data rows whose neighbourhood holds a sample.
        expected_coverage: What coverage would be on average, were both sets from one distribution.
        neighbours: k.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    expected_coverage: float
    neighbours: int


@dataclass(frozen=True, kw_only=True)
class TwoSample(Result):
    """Whether a classifier can tell samples from data: 0.5 = it cannot, 1 = always.

    Attributes:
        auroc: Of its out-of-fold probabilities.
        low: Lower end of the 95 % bootstrap interval.
        high: Upper end.
        rows: Rows of both sets together.
    """

    auroc: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class InceptionScore(Result):
    """How sure a classifier is of each sample, and how varied its verdicts are: from 1 to the number of classes.

    Attributes:
        value: exp of the mean KL(p(y|x) || p(y)).
        se: Standard error over ten parts of the samples.
        classes: Number of classes.
    """

    value: float
    se: float
    classes: int


@dataclass(frozen=True, kw_only=True)
class Modes(Result):
    """How the shares of modes (classes, or clusters of the data) among samples differ from those in the data.

    Attributes:
        count: Modes in the data.
        found: Modes that samples have at least a tenth of the right share of.
        different: Modes whose share differs, by a test of proportions at 5 % over all modes together.
        lost: Names of those that are not found.
        names: All names, the most frequent first.
        data: Their shares in the data.
        samples: Their shares among samples.
    """

    count: int
    found: int
    different: int
    lost: tuple[str, ...]
    names: tuple[str, ...]
    data: tuple[float, ...]
    samples: tuple[float, ...]


def frechet_distance(data: ArrayLike, samples: ArrayLike, *, seed: int = 0) -> Frechet:
    r"""Return the Fréchet distance, extrapolated to infinitely many rows.

    .. math:: |\mu_1 - \mu_2|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})

    Of finitely many rows it is too large by about c/n, so it is computed for subsamples of several sizes and the line
    in 1/n is followed to 0.

    DIFF: the paper fits 15 sizes of low-discrepancy samples; here 5 sizes are drawn at random, several times.

    Args:
        data: Features of data rows, (n, d).
        samples: Features of samples, (m, d).
        seed: Of the subsamples.

    Raises:
        ShapeError: Fewer than 20 rows of either, or other widths.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(2000, 3)), rng.normal(size=(2000, 3)) + [1.0, 0.0, 0.0]
        >>> abs(frechet_distance(a, b).value - 1.0) < 0.2
        True
    """
    x, y = _points(data, samples)
    n = min(len(x), len(y))
    rng = np.random.default_rng(seed)
    sizes = np.array([max(2, round(share * n)) for share in SHARES])
    starts = []
    for _ in range(REPEATS):
        a, b = x[rng.permutation(len(x))], y[rng.permutation(len(y))]
        values = [_frechet(a[:size], b[:size]) for size in sizes]
        starts.append(np.polyfit(1.0 / sizes, values, 1)[1])
    se = float(np.std(starts, ddof=1) / math.sqrt(REPEATS))
    return Frechet(value=float(np.mean(starts)), se=se, raw=_frechet(x, y), rows=n, dimensions=x.shape[1])


def neighbourhoods(data: ArrayLike, samples: ArrayLike, *, neighbours: int = 5) -> Neighbourhoods:
    """Return precision, recall, density and coverage.

    Args:
        data: Features of data rows, (n, d).
        samples: Features of samples, (m, d).
        neighbours: k, less than either number of rows.

    Raises:
        ShapeError: Fewer than 20 rows of either, or other widths.
        ConfigError: k is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = neighbourhoods(rng.normal(size=(500, 2)), rng.normal(size=(500, 2)))
        >>> found.coverage > 0.9
        True
    """
    x, y = _points(data, samples)
    if not 1 <= neighbours < min(len(x), len(y)):
        raise ConfigError(f"neighbours must be from 1 to below the number of rows, got {neighbours}. Use 5.")
    radius_x, radius_y = (_radii(points, neighbours) for points in (x, y))
    inside_x = np.zeros(len(y), dtype=np.int64)  # of how many data rows a sample is a neighbour
    covered = np.zeros(len(x), dtype=bool)
    recalled = np.zeros(len(x), dtype=bool)
    for start in range(0, len(y), _BLOCK):
        part = slice(start, start + _BLOCK)
        apart = _distances(x, y[part])
        within = apart <= radius_x[:, None]
        inside_x[part] = within.sum(0)
        covered |= within.any(1)
        recalled |= (apart <= radius_y[part]).any(1)
    n, m, k = len(x), len(y), neighbours
    # a row is not covered if its k nearest among n - 1 + m others are all of its own set
    missed = math.prod((n - 1 - i) / (n + m - 1 - i) for i in range(k))
    return Neighbourhoods(
        precision=float((inside_x > 0).mean()), recall=float(recalled.mean()), density=float(inside_x.mean() / k),
        coverage=float(covered.mean()), expected_coverage=1.0 - missed, neighbours=k,
    )  # fmt: skip


def two_sample_classifier(data: ArrayLike, samples: ArrayLike, *, seed: int = 0) -> TwoSample:
    """Return how well gradient-boosted trees tell samples from data, on rows that they were not trained on.

    Args:
        data: Features of data rows, (n, d); NaN = missing.
        samples: Features of samples, (m, d).
        seed: Of the folds.

    Raises:
        ShapeError: Fewer than 20 rows of either, or other widths.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    x, y = _points(data, samples, missing=True)
    rows, generated = np.vstack([x, y]), np.arange(len(x) + len(y)) >= len(x)
    model = HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=seed % 2**32)
    folds = StratifiedKFold(4, shuffle=True, random_state=seed % 2**32)
    probability = cross_val_predict(model, rows, generated, cv=folds, method="predict_proba")[:, 1]
    found = auroc_ap(generated, probability, n_boot=300, seed=seed)
    return TwoSample(auroc=found.auroc, low=found.auroc_low, high=found.auroc_high, rows=len(rows))


def inception_score(probabilities: ArrayLike) -> InceptionScore:
    """Return the inception score of samples.

    Args:
        probabilities: A classifier's p(y|x) of each sample, (n, classes), rows sum to 1.

    Raises:
        ShapeError: Not of two dimensions, or fewer than 20 samples.
        ConfigError: Rows that are no distribution.

    Example:
        >>> round(inception_score(np.eye(4)[np.arange(400) % 4]).value, 6)
        4.0
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or len(p) < FEWEST:
        raise ShapeError(f"probabilities must have shape (n >= {FEWEST}, classes), got {p.shape}. Draw more samples.")
    if (p < 0).any() or not np.allclose(p.sum(1), 1.0, atol=1e-4):
        raise ConfigError("probabilities must be shares that sum to 1 in each row, got others. Give p(y|x).")

    def score(part: Floats) -> float:
        marginal = part.mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(part > 0, part * (np.log(part) - np.log(marginal)), 0.0)
        return float(np.exp(gain.sum(1).mean()))

    parts = [score(part) for part in np.array_split(p, 10)]
    return InceptionScore(value=score(p), se=float(np.std(parts, ddof=1) / math.sqrt(10)), classes=p.shape[1])


def modes(data: Sequence[Any] | NDArray[Any], samples: Sequence[Any] | NDArray[Any]) -> Modes:
    """Return how many of the data's modes the samples have.

    Args:
        data: The mode of each data row, (n,): its class, or its cluster.
        samples: The mode of each sample, (m,), by a classifier or the nearest cluster.

    Raises:
        ShapeError: There is no row in either.

    Example:
        >>> modes(["a", "b"] * 50, ["a"] * 100).lost
        ('b',)
    """
    x, y = (np.asarray(part).astype(str) for part in (data, samples))
    if not len(x) or not len(y):
        raise ShapeError(f"modes must be of rows and of samples, got {len(x)} and {len(y)}. Give both.")
    names, counts = np.unique(x, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    names, counts = names[order], counts[order]
    drawn = np.array([(y == name).sum() for name in names])
    p, q = counts / len(x), drawn / len(y)
    pooled = (counts + drawn) / (len(x) + len(y))
    spread = np.sqrt(np.maximum(pooled * (1 - pooled), 1e-12) * (1 / len(x) + 1 / len(y)))
    different = np.abs(p - q) / spread > norm.isf(LEVEL / (2 * len(names)))
    lost = q < LOST * p
    return Modes(
        count=len(names), found=int((~lost).sum()), different=int(different.sum()), lost=tuple(names[lost].tolist()),
        names=tuple(names.tolist()), data=tuple(p.tolist()), samples=tuple(q.tolist()),
    )  # fmt: skip


_BLOCK = 1024


def _points(data: ArrayLike, samples: ArrayLike, *, missing: bool = False) -> tuple[Floats, Floats]:
    x, y = (np.asarray(part, dtype=np.float64) for part in (data, samples))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < FEWEST:
        raise ShapeError(
            f"data and samples must have shapes (n, d) and (m, d) with at least {FEWEST} rows each, got {x.shape} and "
            f"{y.shape}. Give more rows, of the same features.",
            data=x.shape,
            samples=y.shape,
        )
    for name, part in (("data", x), ("samples", y)):
        if not (np.isfinite(part) | (np.isnan(part) if missing else False)).all():
            raise ConfigError(f"features of {name} must be finite, got others. Fill in or leave out such rows.")
    return x, y


def _frechet(x: Floats, y: Floats) -> float:
    shift = x.mean(0) - y.mean(0)
    a, b = (np.atleast_2d(np.cov(part, rowvar=False)) for part in (x, y))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ b @ root)
    return float(shift @ shift + np.trace(a) + np.trace(b) - 2.0 * np.sqrt(np.clip(middle, 0.0, None)).sum())


def _radii(points: Floats, k: int) -> Floats:
    """Return each point's distance to its k-th neighbour, itself not counted, (n,)."""
    found: Floats = NearestNeighbors(n_neighbors=k).fit(points).kneighbors()[0][:, -1]
    return found


def _distances(x: Floats, y: Floats) -> Floats:
    """Return the distances between points, (n, m)."""
    squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2.0 * x @ y.T
    return np.sqrt(np.clip(squares, 0.0, None))
