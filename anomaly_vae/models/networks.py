"""The networks between rows and codes.

Three choices, and why:

- **A linear path beside the hidden layers.** What a linear map explains (principal components) need not be squeezed
  through nonlinear units; the hidden layers learn what is left. Their last layer starts at zero, so that training
  starts from a linear autoencoder.
- **No normalisation layers.** Inputs are standardised already. Batch normalisation would make a row's score depend on
  other rows; layer normalisation divides by the row's size, which is what tells an outlier from a normal row.
- **Widths are multiples of 16.** Matrix products of other widths round differently from one row of a batch to the next
  (small-matrix kernels treat the rows at the edge apart), and the same row must score the same bits anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..data.schema import Column

INPUT_BOUND = 10.0
"""The encoder sees standardised values within this bound, so that one absurd cell does not throw the posterior out of
the region it was trained on; the likelihood sees the cell itself, and charges it to its column."""


class TableInput(nn.Module):
    """Encoded rows (n, m) with missing cells to the encoder's input (n, d).

    Continuous cells and standardised log counts enter as they are, categories as indicators, and a missing cell as
    zeros with an indicator of its own. An unseen category has no indicator set.

    Args:
        columns: The m modelled columns.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.numeric = [j for j, c in enumerate(columns) if c.kind in ("continuous", "count")]
        self.counts = [i for i, j in enumerate(self.numeric) if columns[j].kind == "count"]
        self.discrete = [(j, len(c.categories)) for j, c in enumerate(columns) if c.kind in ("binary", "categorical")]
        count_columns = [columns[self.numeric[i]] for i in self.counts]
        self.register_buffer("center", torch.tensor([c.center for c in count_columns]), persistent=False)
        self.register_buffer("scale", torch.tensor([c.scale for c in count_columns]), persistent=False)
        self.width = len(self.numeric) + sum(size for _, size in self.discrete) + len(columns)

    def forward(self, x: Tensor) -> Tensor:
        """Return the encoder's input, (n, d)."""
        missing = x.isnan()
        filled = x.nan_to_num(0.0)
        parts = []
        if self.numeric:
            values = filled[:, self.numeric]
            if self.counts:
                logs = (filled[:, self.numeric][:, self.counts].clamp(min=0).log1p() - self.center) / self.scale
                values = values.index_copy(1, torch.tensor(self.counts, device=x.device), logs)
            values = values.clamp(-INPUT_BOUND, INPUT_BOUND)
            parts.append(values.masked_fill(missing[:, self.numeric], 0.0))
        for j, size in self.discrete:
            # the indicator of `size`, an unseen category, is cut off
            indicators = F.one_hot(filled[:, j].long().clamp(0, size), size + 1)[:, :size]
            parts.append(indicators.to(x.dtype).masked_fill(missing[:, j : j + 1], 0.0))
        parts.append(missing.to(x.dtype))
        return torch.cat(parts, 1)


LANES = 16


def padded(width: int) -> int:
    """Return the width rounded up to a multiple of `LANES`."""
    return -(-width // LANES) * LANES


class MLP(nn.Module):
    """Hidden layers with a linear path around them.

    Args:
        width_in: Input width.
        hidden: Widths of the hidden layers, rounded up to multiples of 16; empty for a linear map.
        width_out: Output width.
    """

    def __init__(self, width_in: int, hidden: Sequence[int], width_out: int) -> None:
        super().__init__()
        self.width_out = width_out
        self.linear = nn.Linear(width_in, padded(width_out))
        widths = [width_in, *map(padded, hidden)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.out = nn.Linear(widths[-1], padded(width_out), bias=False) if hidden else None
        if self.out is not None:
            nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width_in) to (..., width_out)."""
        y = self.linear(x)
        if self.out is not None:
            for layer in self.layers:
                x = F.silu(layer(x))
            y = y + self.out(x)
        return y[..., : self.width_out]
