r"""Expectation-maximisation of a latent class mixture, as products with sufficient statistics.

Each class is an exponential family in the cells' statistics: 1, the continuous columns, their products in pairs,
indicators of categories, moments of log counts. So the log density of the continuous columns in all classes is one
matrix product with the statistics, and what the maximisation needs is another,

.. math:: \log \pi_j + \log p(x \mid j) = \theta_j \cdot T(x), \qquad S_j = \sum_n r_{nj} T(x_n),

block by block, so that nothing of size rows times pairs is ever held. A cell of another kind has a density that only
depends on its value, and is computed once for each distinct value of the column.

Missing continuous cells are filled in with their expectation in each class, given the row's other cells, and what is
left of their covariance is added: exact expectation-maximisation. With P the class's precision, d the row less the
class's mean, 0 where missing, and M the missing columns, the expectation is :math:`\mu_M - P_{MM}^{-1} (P d)_M`, the
covariance that is left :math:`P_{MM}^{-1}`, so that only matrices of the missing columns' size are factored.

Shapes: n rows, c continuous columns, s single columns, K classes, t statistics.

References:
    Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm.
    Little & Rubin (2019), Statistical Analysis with Missing Data, section 14 (the general location model).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..data.schema import Column
from .bounds import HALF_LOG_2PI
from .likelihoods import NOISE_FLOOR
from .networks import INPUT_BOUND, TableInput

if TYPE_CHECKING:
    from .mixture import ClassMixture

RIDGE = 3e-3
"""Added to the variances, in units of each column's variance: no class may collapse onto a few rows."""
LEAST_VARIANCE = 1e-3
"""Of the logarithms of counts above 0 in a class, in the same units."""
MOST_STEPS = 50
ENOUGH = 1e-3
"""The fit stops when a step raises the mean log density by less, nats."""
SMOOTHING = 1.0
"""Rows' worth of the whole table's frequencies that each class is given on top of its own."""
START_ROWS = 4096
"""Rows, drawn from more, among which the starting centres are found."""
START_STEPS = 10
STATISTICS_AT_ONCE = 1 << 16
"""Rows times statistics computed at once, within the processor's caches."""
FEWEST_AT_ONCE = 256
"""Rows computed at once, at least: fewer would make the products too narrow to be fast."""
FEW_VALUES = 64
"""Distinct values up to which the columns that are independent given the class are looked up together."""
VALUES_AT_ONCE = 512
GAP_CELLS = 1 << 18
"""Cells of the matrices of rows with gaps held at once, at most."""


@dataclass(frozen=True)
class _Gaps:
    """Rows with missing continuous cells, b of them, in all K classes.

    Attributes:
        log_density: Of the observed cells, (K, b).
        filled: The cells with expectations where they are missing, (K, b, c).
        columns: The missing columns of each row, (b, g), padded with others.
        left: Their covariance given the observed ones, 0 at the padding, (K, b, g, g).
    """

    log_density: Tensor
    filled: Tensor
    columns: Tensor
    left: Tensor


class Expectation:
    """The rows as expectation-maximisation sees them.

    Args:
        model: The mixture that is fitted, in place.
        x: Encoded rows, (n, m), float64, NaN = missing.
        weight: Weight of each row, (n,), mean 1.
    """

    def __init__(self, model: ClassMixture, x: Tensor, weight: Tensor) -> None:
        self.model = model
        cells = model.seen(x)[0]
        gaps = cells.isnan().any(1)
        self.complete = int((~gaps).sum())
        order = torch.cat([(~gaps).nonzero()[:, 0], gaps.nonzero()[:, 0]])  # rows with gaps come last
        x, self.cells, self.weight = x[order], cells[order], weight[order]
        self.filled = self.cells.nan_to_num(0.0).T.contiguous()
        self.pairs = torch.triu_indices(self.width, self.width)
        self.columns = [model.columns[j] for j in model.single]
        self.singles = x[:, model.single]
        parts = [_statistics(cell, column) for cell, column in zip(self.singles.T, self.columns, strict=True)]
        self.sizes = [len(part) for part in parts]
        self.others = torch.cat([x.new_ones(1, len(x)), *parts])
        self.overall = [part.sum(1) for part in parts]
        self.codes, self.distinct, self.values = _distinct(self.singles)
        others = (n for n, column in zip(self.values, self.columns, strict=True) if column.kind != "count")
        self.few = max(FEW_VALUES, *others, 0)
        self._buffers: dict[int, Tensor] = {}

    @property
    def width(self) -> int:
        """Number of continuous columns, c."""
        return self.cells.shape[1]

    def run(self, seed: int) -> None:
        """Fit the model from a start of centres that lie apart."""
        start = self._start(seed)
        moments = start.new_zeros(len(start), self.width + self.pairs.shape[1] + len(self.others))
        for rows in self._blocks(len(self.cells)):
            moments.addmm_(start[:, rows], self._of(rows).T)
        self._maximise(moments)
        before = -math.inf
        for _ in range(MOST_STEPS):
            mean, moments = self._expected()
            if mean - before < ENOUGH:
                break
            before = mean
            self._maximise(moments)

    # -- expectation ------------------------------------------------------------------------------------------------

    def _blocks(self, stop: int) -> Iterator[slice]:
        statistics = self.width + self.pairs.shape[1] + len(self.others)
        step = max(FEWEST_AT_ONCE, STATISTICS_AT_ONCE // statistics)
        return (slice(i, min(i + step, stop)) for i in range(0, stop, step))

    def _of(self, rows: slice) -> Tensor:
        """Return the statistics of rows, (t, b), missing cells as 0, in a buffer that the next call overwrites."""
        cells = self.filled[:, rows]
        c, size = cells.shape
        if size not in self._buffers:
            self._buffers[size] = cells.new_empty(c + self.pairs.shape[1] + len(self.others), size)
        out = self._buffers[size]
        out[:c] = cells
        end = c
        for i in range(c):
            start, end = end, end + c - i
            torch.mul(cells[i:], cells[i], out=out[start:end])
        out[end:] = self.others[:, rows]
        return out

    def _expected(self) -> tuple[float, Tensor]:
        """Return the mean log density, but for what no class changes, and the expected statistics (K, t)."""
        natural, table = self._natural(), self._single_log_density()
        size = natural.shape[1]
        total, moments = 0.0, natural.new_zeros(len(natural), size + len(self.others) - 1)
        for rows in self._blocks(self.complete):
            statistics = self._of(rows)
            share, log_density = self._shares(natural @ statistics[:size], rows, table)
            moments.addmm_(share, statistics.T)
            total += log_density
        for rows in self._gap_blocks():
            gaps = self._gaps(rows)
            joint = gaps.log_density + self.model.log_weights[:, None]
            share, log_density = self._shares(joint, rows, table)
            moments += self._moments_of_gaps(rows, gaps, share)
            total += log_density
        return total / len(self.cells), moments

    def _shares(self, joint: Tensor, rows: slice, table: Tensor | None) -> tuple[Tensor, float]:
        """Return responsibilities times weights, (K, b), and the weighted sum of the rows' log densities."""
        if table is not None:
            joint = joint + F.embedding_bag(self.codes[rows], table, mode="sum").T
        top = joint.amax(0)
        share = (joint - top).exp_()
        sums = share.sum(0)
        weight = self.weight[rows]
        return share.mul_(weight / sums), float((top + sums.log()) @ weight)

    def _natural(self) -> Tensor:
        """Return what the continuous columns' statistics count in the log densities, (K, c + pairs + 1)."""
        model = self.model
        precision, log_determinant = self._precision()
        pulled = (precision @ model.means[..., None])[..., 0]
        i, j = self.pairs
        products = precision[:, i, j] * torch.where(i == j, -0.5, -1.0)
        constant = model.log_weights + 0.5 * log_determinant - 0.5 * (pulled * model.means).sum(1)
        return torch.cat([pulled, products, constant[:, None] - HALF_LOG_2PI * self.width], 1)

    def _precision(self) -> tuple[Tensor, Tensor]:
        """Return the classes' inverse covariances, (K, c, c), and the logarithms of their determinants, (K,)."""
        factor = torch.linalg.cholesky(self.model.covariances)
        return torch.cholesky_inverse(factor), -2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _single_log_density(self) -> Tensor | None:
        """Return log p of each distinct value of each single column in each class, (s * values, K)."""
        if self.model.likelihood is None:
            return None
        likelihood, heads = self.model.likelihood, self.model.heads
        few = likelihood.log_prob(heads, self.distinct[: self.few])
        found = [[few[:, :count, i].T] for i, count in enumerate(self.values)]
        many = [i for i, count in enumerate(self.values) if count > self.few]
        for start in range(self.few, max(self.values), VALUES_AT_ONCE) if many else ():
            rest = self.distinct[start : start + VALUES_AT_ONCE, many]
            for i, log_p in zip(many, likelihood.log_prob_of_counts(heads, rest, many).unbind(-1), strict=True):
                found[i].append(log_p[:, : max(0, self.values[i] - start)].T)
        return torch.cat([part for parts in found for part in parts])

    def _gap_blocks(self) -> Iterator[slice]:
        first, n = self.complete, len(self.cells)
        most = int(self.cells.isnan().sum(1).max()) if first < n else 1
        step = max(1, GAP_CELLS // (self.model.classes * most * max(most, self.width)))
        return (slice(i, min(i + step, n)) for i in range(first, n, step))

    def _gaps(self, rows: slice) -> _Gaps:
        cells, model = self.cells[rows], self.model
        missing = cells.isnan()
        precision, log_determinant = self._precision()
        columns = missing.double().argsort(dim=1, descending=True, stable=True)[:, : int(missing.sum(1).max())]
        gap = missing.gather(1, columns).double()
        off = (cells - model.means[:, None]).masked_fill(missing, 0.0)
        pulled = off @ precision
        index = columns.expand(len(precision), -1, -1)
        wanted = pulled.gather(2, index) * gap
        inner = precision[:, columns[:, :, None], columns[:, None, :]] * (gap[:, :, None] * gap[:, None, :])
        factor = torch.linalg.cholesky(inner + torch.diag_embed(1.0 - gap))
        step = torch.cholesky_solve(wanted[..., None], factor)[..., 0]
        squared = (off * pulled).sum(-1) - (wanted * step).sum(-1)
        log_density = 0.5 * (log_determinant[:, None] - squared) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        filled = torch.where(missing, model.means[:, None], cells)
        return _Gaps(
            log_density=log_density - HALF_LOG_2PI * (~missing).double().sum(1),
            filled=filled.scatter_add(2, index, -step * gap),
            columns=columns,
            left=torch.cholesky_inverse(factor) * (gap[:, :, None] * gap[:, None, :]),
        )

    def _moments_of_gaps(self, rows: slice, gaps: _Gaps, share: Tensor) -> Tensor:
        """Return the expected statistics of rows with gaps, (K, t)."""
        classes, c = self.model.classes, self.width
        weighted = share[..., None] * gaps.filled
        squares = weighted.mT @ gaps.filled
        place = (gaps.columns[:, :, None] * c + gaps.columns[:, None, :]).reshape(1, -1)
        left = (share[:, :, None, None] * gaps.left).reshape(classes, -1)
        squares = squares.reshape(classes, -1).scatter_add(1, place.expand(classes, -1), left).view(classes, c, c)
        i, j = self.pairs
        return torch.cat([weighted.sum(1), squares[:, i, j], share @ self.others[:, rows].T], 1)

    # -- maximisation -----------------------------------------------------------------------------------------------

    def _maximise(self, moments: Tensor) -> None:
        model, (i, j) = self.model, self.pairs
        sums, products, totals, *singles = moments.split([self.width, len(i), 1, *self.sizes], 1)
        counts = totals[:, 0].clamp(min=1e-9)
        model.log_weights = (counts / counts.sum()).log()
        if self.width:
            model.means = sums / counts[:, None]
            spread = products / counts[:, None] - model.means[:, i] * model.means[:, j]
            spread[:, i == j] += RIDGE
            covariances = spread.new_empty(model.classes, self.width, self.width)
            covariances[:, i, j] = spread
            covariances[:, j, i] = spread
            model.covariances = covariances
        if model.likelihood is not None:
            self._maximise_singles(singles)

    def _maximise_singles(self, moments: list[Tensor]) -> None:
        likelihood = self.model.likelihood
        assert likelihood is not None
        parts = []
        for head, group in zip(likelihood.heads.values(), likelihood.groups, strict=True):
            if self.columns[group[0]].kind == "count":
                fits = [_fitted_count(moments[i], self.columns[i]) for i in group]
                location, noise, gate = (torch.stack(part, 1) for part in zip(*fits, strict=True))
                parts.append(torch.cat([location, gate], 1))
                head.noise_log.copy_(noise[:, None, :])  # type: ignore[operator]
            else:
                parts += [_fitted_category(moments[i], self.overall[i], self.columns[i]) for i in group]
        self.model.heads = torch.cat(parts, 1)[:, None, :]

    # -- start ------------------------------------------------------------------------------------------------------

    def _start(self, seed: int) -> Tensor:
        """Return the start of the responsibilities, (K, n), times weights: by k-means, each row in one class."""
        from sklearn.cluster import kmeans_plusplus

        classes = self.model.classes
        entered = self.filled.T.clamp(-INPUT_BOUND, INPUT_BOUND)
        if self.columns:
            entered = torch.cat([entered, TableInput(self.columns)(self.singles.float()).double()], 1)
        few = entered
        if len(entered) > START_ROWS:
            generator = torch.Generator().manual_seed(seed)
            few = entered[torch.randperm(len(entered), generator=generator)[:START_ROWS]]
        centres = torch.from_numpy(kmeans_plusplus(few.numpy(), classes, random_state=seed % 2**32)[0])
        for _ in range(START_STEPS):
            label = _nearest(few, centres)
            sums = torch.zeros_like(centres).index_add_(0, label, few)
            rows = torch.bincount(label, minlength=classes)[:, None]
            centres = torch.where(rows > 0, sums / rows.clamp(min=1), centres)
        return F.one_hot(_nearest(entered, centres), classes).T * self.weight


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Return the index of each row's nearest centre, (n,)."""
    return (0.5 * centres.square().sum(1) - x @ centres.T).argmin(1)


def _distinct(singles: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Return where each cell's value stands in the list of all columns' values, (n, s), the values, and how many.

    The values are (v, s): columns of fewer distinct ones than others are padded with missing ones. A missing cell is
    one of a column's values, the last.
    """
    found = [np.unique(cell.numpy(), return_inverse=True) for cell in singles.T]
    counts = [len(values) for values, _ in found]
    distinct = singles.new_full((max(counts, default=0), len(found)), torch.nan)
    codes, first = torch.empty(singles.shape, dtype=torch.long), 0
    for i, (values, places) in enumerate(found):
        distinct[: len(values), i] = torch.from_numpy(values)
        codes[:, i] = torch.from_numpy(places) + first
        first += len(values)
    return codes, distinct, counts


def _statistics(cells: Tensor, column: Column) -> Tensor:
    """Return what the maximisation needs of a single column's cells: (categories, n), or (4, n) of a count."""
    if column.kind != "count":
        return (torch.arange(len(column.categories), dtype=cells.dtype)[:, None] == cells).to(cells.dtype)
    above = (cells > 0).to(cells.dtype)
    logs = (cells.nan_to_num(0.0).clamp(min=0).log1p() - column.center) / column.scale
    return torch.stack([(cells >= 0).to(cells.dtype), above, above * logs, above * logs.square()])


def _fitted_category(known: Tensor, overall: Tensor, column: Column) -> Tensor:
    """Return each class's logits of the column's categories, (K, categories), or of the second of two, (K, 1).

    Args:
        known: Expected rows of each category in each class, (K, categories).
        overall: Rows of each category, (categories,).
        column: The column.
    """
    overall = (overall + 1.0) / (overall.sum() + len(overall))
    log_p = (known + SMOOTHING * overall).log()
    return log_p[:, 1:] - log_p[:, :1] if column.kind == "binary" else log_p


def _fitted_count(moments: Tensor, column: Column) -> tuple[Tensor, Tensor, Tensor]:
    """Return each class's location, log noise and logit of extra zeros, (K,) each.

    By moments: location and noise of the counts above 0, and the zeros beyond those that they explain.
    """
    counted, above, logs, squares = moments.T
    total = above + SMOOTHING
    location = logs / total
    noise = ((squares + SMOOTHING) / total - location.square()).clamp(min=LEAST_VARIANCE).sqrt()
    explained = torch.special.ndtr(((math.log(1.5) - column.center) / column.scale - location) / noise)
    zeros = 1.0 - (above + 0.5 * SMOOTHING) / (counted + SMOOTHING)
    extra = ((zeros - explained) / (1.0 - explained).clamp(min=1e-6)).clamp(1e-4, 1.0 - 1e-4)
    return location, (noise - NOISE_FLOOR).log(), extra.logit()
