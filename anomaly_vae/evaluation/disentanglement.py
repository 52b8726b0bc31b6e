r"""Whether single latent dimensions stand for single known factors. Arrays in, dataclasses out.

Factors are what a person says of a row: its class, its angle, its colour. Real data seldom come with more than one.

References:
    Chen et al. (2018), Isolating sources of disentanglement, arXiv:1802.04942 (MIG).
    Kim & Mnih (2018), Disentangling by factorising, arXiv:1802.05983, section 4 (the FactorVAE score).
    Eastwood & Williams (2018), A framework for the quantitative evaluation of disentangled representations (DCI).
    Locatello et al. (2019), arXiv:1811.12359, appendix (how both are computed on finite data).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.metrics import mutual_info_score

from ..errors import ShapeError
from .generation import FEWEST, Result

Floats = NDArray[np.float64]

BINS = 20
"""Equal-count intervals into which a dimension, or a factor of many values, is cut."""
MOST_VALUES = 20
"""A factor of more different values is a quantity, not a class."""
FEWEST_ALIKE = 5
"""Rows of one value of a factor without which their variance says nothing."""
VOTES, BATCH = 1600, 64
COLLAPSED = 0.01
"""A dimension whose codes have a smaller variance is not in use: the decoder cannot tell it from the prior's noise."""


@dataclass(frozen=True, kw_only=True)
class FactorVote(Result):
    """How often the dimension that varies least says which factor was held fixed.

    Attributes:
        value: The FactorVAE score: share of the test votes that are right, from 0 to 1.
        se: Its standard error over these votes; rows and factors are taken as they are.
        chance: What codes of nothing come to: 1 / factors. With one factor it is 1, and the score says nothing.
        dimension: The dimension, from 0, that varies least most often where a factor is fixed; of no factor whose
            values have too few rows each.
        votes: Votes that were counted.
    """

    value: float
    se: float
    chance: float
    dimension: dict[str, int]
    votes: int


@dataclass(frozen=True, kw_only=True)
class Disentanglement(Result):
    """How single dimensions and single factors belong together; all from 0 to 1.

    Attributes:
        mig: Mutual information gap, mean over factors: by how much the most informative dimension is ahead of the
            second, in shares of the factor's entropy.
        mig_of: The same of each factor.
        disentanglement: DCI's: each dimension matters to one factor only. With one factor it is 1, and says nothing.
        completeness: DCI's: each factor is held by one dimension only.
        informativeness: DCI's: how well factors are predicted from codes: accuracy beyond the most frequent class's, in
            shares of what is left; of quantities R^2; on rows that were not trained on.
        correlation: Largest absolute rank correlation of each factor with any dimension.
        dimension: The dimension it is with, from 0.
        rows: Rows.
        factor_vae: The FactorVAE score; None where no factor has values of enough rows.
    """

    mig: float
    mig_of: dict[str, float]
    disentanglement: float
    completeness: float
    informativeness: float
    correlation: dict[str, float]
    dimension: dict[str, int]
    rows: int
    factor_vae: FactorVote | None = None


def disentanglement(codes: ArrayLike, factors: Mapping[str, ArrayLike], *, seed: int = 0) -> Disentanglement:
    """Return MIG, DCI, the FactorVAE score and rank correlations of codes with known factors.

    Args:
        codes: Posterior means, (n, l).
        factors: Values of each factor, (n,): classes, or quantities. Those of one value are left out.
        seed: Of the trees, of the rows held out, and of the votes.

    Raises:
        ShapeError: Fewer than 20 rows, other lengths, or no factor of at least two values.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(600, 2))
        >>> found = disentanglement(z, {"side": z[:, 0] > 0, "height": z[:, 1]})
        >>> found.mig > 0.8, found.dimension
        (True, {'side': 0, 'height': 1})
    """
    z, known = _checked(codes, factors)
    cut = np.stack([_binned(column) for column in z.T])
    gaps = {name: _gap(cut, values) for name, values in known.items()}
    importance, informed = zip(*(_importances(z, values, seed) for values in known.values()), strict=True)
    apart, complete = _dci(np.stack(importance, 1))
    correlations = {name: _correlations(z, values) for name, values in known.items()}
    return Disentanglement(
        mig=float(np.mean(list(gaps.values()))), mig_of=gaps, disentanglement=apart, completeness=complete,
        informativeness=float(np.mean(informed)), rows=len(z),
        correlation={name: float(values.max()) for name, values in correlations.items()},
        dimension={name: int(values.argmax()) for name, values in correlations.items()},
        factor_vae=_voted(z, known, VOTES, BATCH, seed),
    )  # fmt: skip


def factor_vae_score(
    codes: ArrayLike, factors: Mapping[str, ArrayLike], *, votes: int = VOTES, batch: int = BATCH, seed: int = 0
) -> FactorVote:
    r"""Return the FactorVAE score: can the factor that was held fixed be told by the dimension that varies least?

    .. math:: d^* = \arg\min_j \mathrm{Var}(z_j \mid \text{factor } f \text{ fixed}) / \mathrm{Var}(z_j)

    Each vote draws a factor, a value of it, and rows of this value, and names the dimension whose normalised variance
    among them is the least. Half of the votes make a table (dimension, factor); each dimension then stands for the
    factor that it was named for most often, and the score is how often that is right in the other half.

    Args:
        codes: Posterior means, (n, l), in units of the prior: dimensions of a variance below `COLLAPSED` have no vote.
        factors: Values of each factor, (n,): classes, or quantities. Those of one value are left out.
        votes: Votes in all.
        batch: Rows of a vote at most.
        seed: Of the votes.

    Raises:
        ShapeError: Fewer than 20 rows, other lengths, no factor of at least two values, none whose values have at least
            10 rows each, or too few votes or rows of one.

    Note:
        DIFF: rows are those of the data that share the value (a quantity's: one of 20 intervals of equal counts), not
        drawn from a simulator, so a batch has as many rows as there are at most. The two halves of the votes are cast
        by different halves of the rows: the few rows of a value would otherwise vote twice for what is chance.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(600, 2))
        >>> factor_vae_score(z, {"east": z[:, 0] > 0, "height": z[:, 1]}).value > 0.95
        True
    """
    z, known = _checked(codes, factors)
    if votes < 2 or batch < 2:
        raise ShapeError(f"votes and their rows must be at least 2, got {votes} of {batch}. Give more.")
    found = _voted(z, known, votes, batch, seed)
    if found is None:
        raise ShapeError(
            f"factors must have values of at least {2 * FEWEST_ALIKE} rows each, got none such of {sorted(known)}. "
            "Give more rows."
        )
    return found


def _checked(codes: ArrayLike, factors: Mapping[str, ArrayLike]) -> tuple[Floats, dict[str, Floats]]:
    """Return codes, (n, l), and the factors of at least two values as numbers, (n,) each."""
    z = np.asarray(codes, dtype=np.float64)
    columns = {name: np.asarray(values) for name, values in factors.items()}
    if z.ndim != 2 or len(z) < FEWEST or any(values.shape != (len(z),) for values in columns.values()):
        shapes = [values.shape for values in columns.values()]
        raise ShapeError(
            f"codes must have shape (n >= {FEWEST}, l) and factors (n,), got {z.shape} and {shapes}. Give as many."
        )
    known = {name: numbered for name, values in columns.items() if len(np.unique(numbered := _numbered(values))) > 1}
    if not known:
        raise ShapeError(
            f"factors must have at least one of two values or more, got {sorted(columns) or 'none'}. "
            "An attribute that is the same for all rows has nothing to be told apart by."
        )
    return z, known


def _voted(z: Floats, known: Mapping[str, Floats], votes: int, batch: int, seed: int) -> FactorVote | None:
    """Return the score of the factors whose values have enough rows in both halves; None if there are none."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(z))
    halves = order[::2], order[1::2]
    alike = {name: [_alike(_binned(values), half) for half in halves] for name, values in known.items()}
    alike = {name: groups for name, groups in alike.items() if all(groups)}
    if not alike:
        return None
    names, chance = list(alike), 1 / len(alike)
    spread = z.var(0, ddof=1)
    used = np.flatnonzero(spread >= COLLAPSED)
    tested = votes // 2
    if not len(used):
        return FactorVote(value=chance, se=0.0, chance=chance, dimension={}, votes=tested)
    tables = np.zeros((2, z.shape[1], len(names)), dtype=np.intp)
    for half, count in enumerate((votes - tested, tested)):
        for factor in rng.integers(len(names), size=count):
            groups = alike[names[factor]][half]
            rows = groups[rng.integers(len(groups))]
            rows = rng.choice(rows, min(batch, len(rows)), replace=False)
            least = used[(z[np.ix_(rows, used)].var(0, ddof=1) / spread[used]).argmin()]
            tables[half, least, factor] += 1
    says = tables[0].argmax(1)
    value = float(tables[1][np.arange(len(says)), says].sum() / tested)
    return FactorVote(
        value=value, se=math.sqrt(value * (1 - value) / tested), chance=chance, votes=tested,
        dimension={name: int(column.argmax()) for name, column in zip(names, tables.sum(0).T, strict=True)},
    )  # fmt: skip


def _alike(values: NDArray[np.intp], rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Return those of the rows that share a value, for each value of enough of them."""
    groups = (rows[values[rows] == value] for value in np.unique(values[rows]))
    return [group for group in groups if len(group) >= FEWEST_ALIKE]


def _numbered(values: NDArray[np.generic]) -> Floats:
    """Return a factor as numbers: quantities as they are, classes numbered."""
    if np.issubdtype(values.dtype, np.number):
        numbers = values.astype(np.float64)
        return np.where(np.isfinite(numbers), numbers, np.nanmin(numbers) - 1 if np.isfinite(numbers).any() else 0.0)
    return np.unique(values.astype(str), return_inverse=True)[1].astype(np.float64)


def _binned(values: Floats) -> NDArray[np.intp]:
    """Return numbers cut into intervals of equal counts, (n,); few different values stay apart."""
    distinct, codes = np.unique(values, return_inverse=True)
    if len(distinct) <= MOST_VALUES:
        return codes
    return np.minimum((rankdata(values, "ordinal") - 1) * BINS // len(values), BINS - 1).astype(np.intp)


def _gap(cut: NDArray[np.intp], factor: Floats) -> float:
    target = _binned(factor)
    entropy = mutual_info_score(target, target)
    found = np.sort([mutual_info_score(column, target) for column in cut])[::-1]
    second = found[1] if len(found) > 1 else 0.0
    return float((found[0] - second) / entropy)


def _importances(z: Floats, factor: Floats, seed: int) -> tuple[Floats, float]:
    """Return how much each dimension matters to a factor, (l,), and how well it is predicted on held-out rows."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    order = np.random.default_rng(seed).permutation(len(z))
    train, test = order[: len(z) * 3 // 4], order[len(z) * 3 // 4 :]
    classes = len(np.unique(factor)) <= MOST_VALUES
    kind = RandomForestClassifier if classes else RandomForestRegressor
    # all dimensions at each split: else those of nothing are split by where the right one was not drawn
    model = kind(60, min_samples_leaf=5, max_features=None, random_state=seed % 2**32).fit(z[train], factor[train])
    score = float(model.score(z[test], factor[test]))
    if classes:
        values, counts = np.unique(factor[train], return_counts=True)
        chance = float((factor[test] == values[counts.argmax()]).mean())
        score = (score - chance) / (1 - chance) if chance < 1 else 0.0
    return model.feature_importances_, max(0.0, score)


def _dci(importance: Floats) -> tuple[float, float]:
    """Return disentanglement and completeness of importances (l, f): 1 less the entropy of rows, and of columns."""
    total = importance.sum()
    if total <= 0:
        return 0.0, 0.0
    apart = _concentration(importance) @ (importance.sum(1) / total)
    complete = _concentration(importance.T) @ (importance.sum(0) / total)
    return float(apart), float(complete)


def _concentration(rows: Floats) -> Floats:
    if rows.shape[1] == 1:
        return np.ones(len(rows))
    sums = rows.sum(1, keepdims=True)
    shares = np.divide(rows, sums, out=np.full_like(rows, 1.0 / rows.shape[1]), where=sums > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(shares > 0, shares * np.log(shares), 0.0).sum(1)
    return 1.0 - entropy / math.log(rows.shape[1])


def _correlations(z: Floats, factor: Floats) -> Floats:
    """Return the absolute rank correlation of each dimension with a factor, (l,); of classes, the correlation ratio."""
    ranks = np.stack([rankdata(column) for column in z.T])
    values = np.unique(factor)
    if 2 < len(values) <= MOST_VALUES:  # classes have no order: how much of the ranks' variance lies between them
        means = np.stack([ranks[:, factor == value].mean(1) for value in values], 1)
        weights = np.array([(factor == value).mean() for value in values])
        between = (weights * np.square(means - ranks.mean(1, keepdims=True))).sum(1)
        return np.sqrt(between / np.maximum(ranks.var(1), 1e-300))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.abs(np.corrcoef(np.vstack([ranks, rankdata(factor)]))[-1, :-1])
    return np.nan_to_num(found)
