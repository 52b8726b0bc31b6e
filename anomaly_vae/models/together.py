"""Several latent class mixtures of the same columns, evaluated as one: their mean log density.

A block of few rows costs little arithmetic and many calls; made once for all classes of all mixtures, instead of for
each mixture, they are a fraction. `ClassMixture.log_prob` is the plain form, and the tests' oracle.

Mixtures on one scale share what they see of a row. Whitening matrices of all classes of a scale lie side by side, so
that one product serves them all; `logsumexp` is taken over the classes of each mixture, padded to equal numbers. What a
category or a small count costs in each class is looked up in a table.

Shapes: n rows of a block, C mixtures, K their classes together, c continuous columns, padded to c'.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .bounds import HALF_LOG_2PI
from .likelihoods import TableLikelihood
from .mixture import COUNTS, WIDE, ClassMixture
from .threads import side_by_side, threads_worth
from .tried import WORTH_TRYING, made_up

BLOCK = 64
"""Rows computed at once; the last block is padded, so that a row's density does not depend on its company."""
FEW_ROWS = 16
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
    """

    def __init__(self, mixtures: Sequence[ClassMixture]) -> None:
        self.mixtures = list(mixtures)
        first = self.mixtures[0]
        self.joint, self.single = first.joint, first.single
        self.joint_index = torch.tensor(self.joint, dtype=torch.long)
        self.few: bool | None = None
        self.asked = 0
        self.log_weights = torch.cat([m.log_weights for m in self.mixtures])[:, None]
        sizes = [m.classes for m in self.mixtures]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.classes = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        nothing = sum(sizes)
        padded = [[s + j if j < k else nothing for s, k in zip(starts, sizes, strict=True)] for j in range(max(sizes))]
        self.of_class = torch.tensor(padded)  # (largest number of classes, C): row of each class among all; K = none
        self.scale_of: list[int] = []
        if self.joint:
            self._see()
        self.singles: Singles | None = Singles(self.mixtures) if self.single else None

    def _see(self) -> None:
        """Lay out the continuous columns: distinct scales, and the whitening of all classes on each."""
        scales: list[Tensor | None] = []
        for m in self.mixtures:
            own = None if m.bend is None else m.bend.constants
            same = (i for i, s in enumerate(scales) if (s is None) == (own is None) and (s is own or _equal(s, own)))
            self.scale_of.append(next(same, len(scales)))
            if self.scale_of[-1] == len(scales):
                scales.append(own)
        self.representatives = [self.mixtures[self.scale_of.index(i)] for i in range(len(scales))]
        factors = [m._whitening() for m in self.mixtures]
        members = [[i for i, own in enumerate(self.scale_of) if own == scale] for scale in range(len(scales))]
        self.whitening = [torch.cat([factors[i][0] for i in some], 1) for some in members]
        self.white_means = [torch.cat([factors[i][1] for i in some]) for some in members]
        # a scale's classes come one after another in its product: where each of them goes among all classes
        order = [row for some in members for i in some for row in range(self.classes[i].start, self.classes[i].stop)]
        self.order = torch.tensor(order).argsort()
        self.log_determinants = torch.cat([f[2] for f in factors])[:, None]
        rows = [self.scale_of[i] for i, m in enumerate(self.mixtures) for _ in range(m.classes)]
        self.scale_of_class = torch.tensor(rows)

    @torch.inference_mode()
    def mean_log_prob(self, x: Tensor) -> Tensor:
        """Return the mean of the mixtures' log p(x) of encoded rows (n, m), nats, (n,), float64."""
        out = torch.empty(len(x), dtype=WIDE)
        block = FEW_ROWS if len(x) <= FEW_ROWS and self._few_are_as_many() else BLOCK

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
            x = made_up(self.mixtures[0].columns, 2 * BLOCK).double()
            with threads_worth(0):
                few, many = (torch.cat([self._block(part) for part in x.split(height)]) for height in (FEW_ROWS, BLOCK))
            self.few = torch.equal(few, many)
        return self.few

    def _block(self, x: Tensor) -> Tensor:
        """Return the mean log density of a block, (n,)."""
        joint = self.log_weights.expand(-1, len(x))
        if self.joint:
            joint = joint + self._normals(x)
        if self.singles is not None:
            joint = joint + self.singles.log_prob(x).T
        padded = torch.cat([joint, joint.new_full((1, len(x)), -torch.inf)])[self.of_class]
        total = torch.zeros(len(x), dtype=WIDE)
        for value in torch.logsumexp(padded, 0).unbind():  # added in one order: see `vae`
            total += value
        return total / len(self.mixtures)

    def _normals(self, x: Tensor) -> Tensor:
        """Return log p of the continuous cells given each class, in the user's units, (K, n)."""
        missing = x.index_select(1, self.joint_index).isnan()
        gaps = bool(missing.any())
        seen = [m.seen(x) for m in self.representatives]
        parts = []
        for (cells, _), whitening, means in zip(seen, self.whitening, self.white_means, strict=True):
            wide = F.pad(cells.nan_to_num(0.0) if gaps else cells, (0, len(whitening) - cells.shape[1]))
            white = torch.mm(wide, whitening).sub_(means).square_()
            parts.append(white.view(len(x), -1, len(whitening)).sum(-1).T)
        squares = torch.cat(parts)[self.order] if len(parts) > 1 else parts[0]
        out = self.log_determinants - 0.5 * squares
        if gaps:
            first = self.mixtures[0]
            for rows in first._incomplete(missing):
                for m, classes, scale in zip(self.mixtures, self.classes, self.scale_of, strict=True):
                    out[classes, rows] = m._observed_log_density(seen[scale][0][rows], missing[rows])
        slopes = torch.stack([log_slope.sum(-1) for _, log_slope in seen])
        constant = HALF_LOG_2PI * (~missing).to(x.dtype).sum(-1)
        return out + (slopes - constant)[self.scale_of_class]


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


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)
