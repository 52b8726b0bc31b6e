"""Several latent class mixtures of the same columns, evaluated as one: their mean log density.

A block of few rows costs little arithmetic and many calls; made once for all classes of all mixtures, instead of for
each mixture, they are a fraction. `ClassMixture.log_prob` is the plain form, and the tests' oracle.

Mixtures on one scale share what they see of a row. Whitening matrices of all classes of a scale lie one below another,
so that one product serves them all, with rows side by side: what follows adds up along whole vectors. What a category
or a small count costs in each class is looked up in a table.

Shapes: n rows of a block, C mixtures, K their classes together, c continuous columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .bounds import HALF_LOG_2PI
from .likelihoods import TableLikelihood
from .mixture import COUNTS, WIDE, ClassMixture
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
        mixtures: The mixtures, C of them, of the same columns.

    Attributes:
        mixtures: The same, those of one scale and one number of classes side by side.
        scales: The first mixture of each scale, which shows its rows to the others.
        block: Rows computed at once; the last block is padded, so that a row's density does not depend on its company.
    """

    def __init__(self, mixtures: Sequence[ClassMixture]) -> None:
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
        widest = max((len(matrix) for matrix in self.whitening), default=1)
        self.block = max(min(LARGEST_BLOCK, 1 << (BLOCK_CELLS // widest).bit_length() - 1), SMALLEST_BLOCK)
        self.few: bool | None = None
        self.asked = 0

    @torch.inference_mode()
    def mean_log_prob(self, x: Tensor) -> Tensor:
        """Return the mean of the mixtures' log p(x) of encoded rows (n, m), nats, (n,), float64."""
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
        """Return the mean log density of rows, computed in a block of a height."""
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
        """Return the mean log density of a block, (n,)."""
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
        return total / len(self.mixtures)

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


class Singles:
    """log p of the columns that are independent given the class, in each class of all mixtures.

    Args:
        mixtures: The mixtures.
    """

    def __init__(self, mixtures: Sequence[ClassMixture]) -> None:
        first = mixtures[0]
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
        values = torch.minimum(torch.arange(max(sizes), dtype=WIDE)[:, None], self.size - 1) + self.first
        with torch.no_grad():
            costs = self.likelihood.log_prob(self.heads, values)  # (K, values, s)
        rows = [costs[:, :size, i].T for i, size in enumerate(sizes)]
        self.nothing = sum(sizes)
        self.table = torch.cat([*rows, costs.new_zeros(1, len(costs))])  # (all values and none, K)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the columns' log p of rows (n, m), added up, in each class, (n, K); 0 where missing."""
        cells = x.index_select(1, self.place)
        code = cells - self.first
        listed = (code >= 0) & (code < self.size)  # not so for what is missing
        index = torch.where(listed, cells + self.offset, float(self.nothing)).long()
        out = F.embedding_bag(index, self.table, mode="sum")
        if not self.counts or bool((listed | cells.isnan()).all()):
            return out
        larger = torch.where(listed, torch.nan, cells)  # counts beyond the table: as if they alone were there
        return out + self.likelihood.log_prob(self.heads, larger).sum(-1).T


def _same_scale(one: ClassMixture, other: ClassMixture) -> bool:
    if one.bend is None or other.bend is None:
        return one.bend is other.bend
    return torch.equal(one.bend.constants, other.bend.constants)
