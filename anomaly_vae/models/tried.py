"""Rows to try on whether few rows may be computed in a smaller block than many.

A block of one row costs nearly what a full one does. In a smaller block a row has the same bits only if matrix products
of another height add up in the same order, which is the machine's affair: it is tried once, not assumed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.schema import NO_COUNT, Column

WORTH_TRYING = 3
"""The call of few rows at which it is tried: a trial costs more than a command that scores one file gains."""


def made_up(columns: Sequence[Column], n: int) -> Tensor:
    """Return encoded rows (n, m) of all sorts: usual cells, far ones, unseen categories, no counts, gaps.

    Args:
        columns: The m modelled columns.
        n: Rows.
    """
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(n, len(columns), generator=generator)
    wide = torch.randn(n, len(columns), generator=generator).exp()
    share = torch.rand(n, len(columns), generator=generator)
    x = normal * wide
    for j, column in enumerate(columns):
        if column.kind in ("binary", "categorical"):
            x[:, j] = (share[:, j] * (max(1, len(column.categories)) + 1)).floor()
        elif column.kind == "count":
            counts = (column.center + column.scale * normal[:, j]).clamp(max=20.0).expm1().round().clamp(min=0.0)
            x[:, j] = torch.where(share[:, j] < 0.9, counts, NO_COUNT)
    gaps = (torch.rand(n, len(columns), generator=generator) < 0.1) & (torch.arange(n) % 8 == 0)[:, None]
    return x.masked_fill(gaps, torch.nan)
