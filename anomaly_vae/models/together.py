r"""Several latent class mixtures of the same columns, evaluated as one: their term of a score.

.. math:: \frac1F \sum_f \log p_f(x) - \lambda \sum_c \log p_g(x_c)

The second part takes a share off what columns say by themselves, as one of the mixtures, g, has it: what they say of
each other counts for more. It is a likelihood ratio to a background, the columns as if they were independent.

A block of few rows costs little arithmetic and many calls; made once for all classes of all mixtures, instead of for
each mixture, they are a fraction. `ClassMixture.log_prob` and `marginals` are the plain form, and the tests' oracle.

Mixtures on one scale share what they see of a row. Whitening matrices of all classes of a scale lie one below another,
so that one product serves them all, with rows side by side: what follows adds up along whole vectors. What a category
or a small count costs in each class is looked up in a table.

Shapes: n rows of a block, F mixtures, K their classes together, c continuous columns.

References:
    Ren et al. (2019), Likelihood Ratios for Out-of-Distribution Detection, arXiv:1906.02845.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .bounds import HALF_LOG_2PI
from .likelihoods import TableLikelihood
from .mixture import COUNTS, LEAST, WIDE, ClassMixture
from .threads import side_by_side, threads_worth
from .tried import WORTH_TRYING, made_up

LARGEST_BLOCK, SMALLEST_BLOCK = 256, 64
"""Rows computed at once, between these,"""
BLOCK_CELLS = 1 << 18
"""so that the whitened cells of all classes of a scale are about so many, within the processor's cache."""
FEW_ROWS, MANY_ROWS = 16, 64
"""Fewer rows are padded to so many, where they were found to have the same bits so."""
MOST_COUNTED = 256
"""Counts below this are looked up,"""
TABLE_CELLS = 1 << 20
"""or fewer, so that the table has at most so many cells for all columns of counts together."""
CHUNK = 1024
"""Rows that one thread takes at a time."""


class Together:
    """Mixtures laid out for evaluation; a copy, which later changes of theirs do not reach.

    Args:
        mixtures: The mixtures, F of them, of the same columns.
        marginal_weight: Lambda.

    Attributes:
        mixtures: The same, those of one scale and one number of classes side by side.
        scales: The first mixture of each scale, which shows its rows to the others.
        block: Rows computed at once; the last block is padded, so that a row's density does not depend on its company.
    """

    def __init__(self, mixtures: Sequence[ClassMixture], marginal_weight: float = 0.0) -> None:
        self.scales: list[ClassMixture] = []
        scale_of: dict[ClassMixture, int] = {}
        for m in mixtures:
            scale_of[m] = next((i for i, s in enumerate(self.scales) if _same_scale(m, s)), len(self.scales))
            if scale_of[m] == len(self.scales):
                self.scales.append(m)
        self.mixtures = sorted(mixtures, key=lambda m: (scale_of[m], m.classes))
        self.of_scale = [[m for m in self.mixtures if scale_of[m] == i] for i in range(len(self.scales))]
        self.sizes = [(size, len(list(some))) for size, some in groupby(self.mixtures, lambda m: m.classes)]
        first = self.mixtures[0]
        self.joint, self.single = torch.tensor(first.joint, dtype=torch.long), first.single
        self.constant = torch.cat([m.log_weights for m in self.mixtures])[:, None]
        self.whitening: list[Tensor] = []
        if first.joint:
            self.whitening = [_whitening(some) for some in self.of_scale]
            self.constant = self.constant + torch.cat([m.whitening()[2] for m in self.mixtures])[:, None]
        self.singles: Singles | None = Singles(self.mixtures) if self.single else None
        self.marginals = Marginals(background(mixtures), self.singles) if marginal_weight else None
        self.marginal_weight = marginal_weight
        widest = max((len(matrix) for matrix in self.whitening), default=1)
        self.block = max(min(LARGEST_BLOCK, 1 << (BLOCK_CELLS // widest).bit_length() - 1), SMALLEST_BLOCK)
        self.few: bool | None = None
        self.asked = 0

    @torch.inference_mode()
    def term(self, x: Tensor) -> Tensor:
        """Return the mixtures' term of encoded rows (n, m), nats, (n,), float64."""
        out = torch.empty(len(x), dtype=WIDE)
        block = self.block
        if len(x) <= MANY_ROWS and self._few_are_as_many():
            block = FEW_ROWS if len(x) <= FEW_ROWS else MANY_ROWS

        @torch.inference_mode()  # each thread has a mode of its own
        def some(i: int) -> None:
            for start in range(i * CHUNK, min(len(x), (i + 1) * CHUNK), block):
                rows = x[start : start + block].double()
                out[start : start + len(rows)] = self._filled_up(rows, block)

        if len(x) <= CHUNK:
            with threads_worth(0):
                some(0)
        else:
            side_by_side(some, -(-len(x) // CHUNK))
        return out

    def _filled_up(self, x: Tensor, height: int) -> Tensor:
        """Return the term of rows, computed in a block of a height."""
        if len(x) == height:
            return self._block(x)
        return self._block(torch.cat([x, x.new_zeros(height - len(x), x.shape[1])]))[: len(x)]

    def _few_are_as_many(self) -> bool:
        """Return whether rows have the same bits in blocks of `FEW_ROWS`; tried once, after some calls."""
        if self.few is None:
            self.asked += 1
            if self.asked < WORTH_TRYING:
                return False
            x = made_up(self.mixtures[0].columns, 2 * self.block).double()
            heights = (self.block, MANY_ROWS, FEW_ROWS)
            with threads_worth(0):
                found = [torch.cat([self._block(part) for part in x.split(height)]) for height in heights]
            self.few = all(torch.equal(found[0], other) for other in found[1:])
        return self.few

    def _block(self, x: Tensor) -> Tensor:
        """Return the term of a block, (n,)."""
        joint, total = self.constant.expand(-1, len(x)), x.new_zeros(len(x))
        if self.whitening:
            squares, constant = self._normals(x)
            joint = joint.sub(squares, alpha=0.5)
            total += constant
        if self.singles is not None:
            joint = joint + self.singles.log_prob(x).T
        first = 0
        for size, count in self.sizes:
            classes = joint[first : first + size * count].view(count, size, -1)
            first += size * count
            for value in torch.logsumexp(classes, 1).unbind():  # added in one order: see `vae`
                total += value
        mean = total / len(self.mixtures)
        if self.marginals is None:
            return mean
        return mean.sub_(self.marginals.log_prob(x), alpha=self.marginal_weight)

    def _normals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the continuous cells cost.

        Returns:
            Their squared distance to each class, (K, n), and what all classes of all mixtures have in common, added up
            over the mixtures, in the user's units, (n,).
        """
        missing = x.index_select(1, self.joint).isnan()
        gaps, one = bool(missing.any()), x.new_ones(1, len(x))
        squares, total = [], -HALF_LOG_2PI * len(self.mixtures) * (~missing).to(x.dtype).sum(1)
        for scale, some, whitening in zip(self.scales, self.of_scale, self.whitening, strict=True):
            cells, log_slope = scale.seen(x)
            total = total + len(some) * log_slope.sum(-1)
            filled = cells.nan_to_num(0.0) if gaps else cells
            white = torch.mm(whitening, torch.cat([filled.T, one])).square_()
            squares.append(white.view(cells.shape[1], -1, len(x)).sum(0))
            for rows in scale.incomplete(missing) if gaps else ():
                seen, absent = cells[rows], missing[rows]
                # their own determinants, not those of whole rows
                own = [m.observed_log_density(seen, absent) - m.whitening()[2][:, None] for m in some]
                squares[-1][:, rows] = -2.0 * torch.cat(own)
        return torch.cat(squares), total


def _whitening(mixtures: Sequence[ClassMixture]) -> Tensor:
    """Return what makes the cells of each class of mixtures white, for cells (c, n) with ones below, (c K, c + 1)."""
    inverse, means, _ = (torch.cat(parts) for parts in zip(*(m.whitening() for m in mixtures), strict=True))
    return torch.cat([inverse, -means[..., None]], 2).transpose(0, 1).reshape(-1, inverse.shape[1] + 1)


def background(mixtures: Sequence[ClassMixture]) -> ClassMixture:
    """Return the mixture whose marginals are taken for the columns' own densities: the finest, on the plain scale."""
    return max(mixtures, key=lambda m: (not m.bent, m.classes))


class Marginals:
    """What the columns say by themselves, in one mixture, added up.

    Args:
        mixture: The mixture.
        singles: What all mixtures have of the columns outside C.
    """

    def __init__(self, mixture: ClassMixture, singles: Singles | None) -> None:
        variances = mixture.covariances.diagonal(dim1=-2, dim2=-1)
        self.mixture, self.singles = mixture, singles
        self.means, self.precisions = mixture.means[..., None], -0.5 / variances[..., None]
        constant = mixture.log_weights[:, None] - 0.5 * variances.log() - HALF_LOG_2PI
        self.constant = constant[..., None]  # (K, c, 1)
        self.reach = mixture.reach()
        if singles is not None:
            of_class = singles.table[:, singles.classes_of(mixture)]
            self.table = torch.logsumexp(mixture.log_weights + of_class, 1, keepdim=True).clamp_(min=LEAST)
            self.table[singles.nothing] = 0.0

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the sum of log p(x_c) over the columns of rows (n, m), (n,); see `ClassMixture.marginals`."""
        total = x.new_zeros(len(x))
        if self.mixture.joint:
            cells = self.mixture.seen(x)[0].clamp(*self.reach).T.contiguous()
            off = (cells - self.means).square_().mul_(self.precisions).add_(self.constant)
            total += torch.logsumexp(off, 0).masked_fill(cells.isnan(), 0.0).sum(0)
        if self.singles is None:
            return total
        index, larger = self.singles.looked_up(x)
        total += F.embedding_bag(index, self.table, mode="sum")[:, 0]
        if larger is not None:
            assert self.mixture.likelihood is not None
            for i, of_class in self.singles.beyond(self.mixture.likelihood, self.mixture.heads, larger):
                of_column = torch.logsumexp(self.mixture.log_weights[:, None] + of_class, 0).clamp_(min=LEAST)
                total += of_column.masked_fill_(larger[:, i].isnan(), 0.0)
        return total


class Singles:
    """log p of the columns that are independent given the class, in each class of all mixtures.

    Args:
        mixtures: The mixtures.
    """

    def __init__(self, mixtures: Sequence[ClassMixture]) -> None:
        first, self.mixtures = mixtures[0], mixtures
        columns = [first.columns[j] for j in first.single]
        self.place = torch.tensor(first.single)
        self.likelihood = TableLikelihood(columns, counts=COUNTS).double()
        self.heads = torch.cat([m.heads for m in mixtures])
        if COUNTS in self.likelihood.heads:
            noise = [m.likelihood.heads[COUNTS].noise_log for m in mixtures if m.likelihood is not None]
            self.likelihood.heads[COUNTS].noise_log = nn.Parameter(torch.cat(noise), requires_grad=False)  # type: ignore[arg-type]
        self.counts = [i for i, column in enumerate(columns) if column.kind == "count"]
        room = TABLE_CELLS // (len(self.heads) * max(1, len(self.counts)))
        counted = max(1, min(MOST_COUNTED, room))
        # a count's codes begin at -1, no count; a category's at 0 and end with the unseen one
        sizes = [counted + 1 if c.kind == "count" else max(2, len(c.categories)) + 1 for c in columns]
        self.first = torch.tensor([-1.0 if c.kind == "count" else 0.0 for c in columns], dtype=WIDE)
        self.size = torch.tensor(sizes, dtype=WIDE)
        self.offset = self.size.cumsum(0) - self.size - self.first
        # any category from the unseen one on is unseen
        self.most = torch.where(self.first < 0, torch.inf, self.first + self.size - 1)
        values = torch.minimum(torch.arange(max(sizes), dtype=WIDE)[:, None], self.size - 1) + self.first
        with torch.no_grad():
            costs = self.likelihood.log_prob(self.heads, values)  # (K, values, s)
        rows = [costs[:, :size, i].T for i, size in enumerate(sizes)]
        self.nothing = sum(sizes)
        self.table = torch.cat([*rows, costs.new_zeros(1, len(costs))])  # (all values and none, K)

    def classes_of(self, mixture: ClassMixture) -> slice:
        """Return the table's columns that are a mixture's classes."""
        first = sum(m.classes for m in self.mixtures[: self.mixtures.index(mixture)])
        return slice(first, first + mixture.classes)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the columns' log p of rows (n, m), added up, in each class, (n, K); 0 where missing."""
        index, larger = self.looked_up(x)
        out = F.embedding_bag(index, self.table, mode="sum")
        if larger is not None:
            for _, log_p in self.beyond(self.likelihood, self.heads, larger):
                out += log_p.T
        return out

    def beyond(self, likelihood: TableLikelihood, heads: Tensor, larger: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield each column that has counts beyond the table, with their log p in each class, (K, n), 0 elsewhere.

        They are to be added one by one: a row's sum is then the same in any company.

        Args:
            likelihood: Of all columns.
            heads: Its outputs in each class, (K, 1, w).
            larger: The counts; see `looked_up`.
        """
        some = [i for i in self.counts if not bool(larger[:, i].isnan().all())]
        log_p = likelihood.log_prob_of_counts(heads, larger[:, some], some)
        yield from zip(some, log_p.unbind(-1), strict=True)

    def looked_up(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return where cells of rows (n, m) are in the table, (n, s), and counts beyond it.

        The latter are (n, s), NaN = not one of these, as if they alone were there; None where there are none.
        """
        cells = torch.minimum(x.index_select(1, self.place), self.most)
        code = cells - self.first
        listed = (code >= 0) & (code < self.size)  # not so for what is missing
        index = torch.where(listed, cells + self.offset, float(self.nothing)).long()
        if not self.counts or bool((listed | cells.isnan()).all()):
            return index, None
        return index, torch.where(listed, torch.nan, cells)


def _same_scale(one: ClassMixture, other: ClassMixture) -> bool:
    if one.bend is None or other.bend is None:
        return one.bend is other.bend
    return torch.equal(one.bend.constants, other.bend.constants)
