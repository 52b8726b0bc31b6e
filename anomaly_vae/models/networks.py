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

    numbers_at: Tensor
    counts_at: Tensor
    indicators_at: Tensor
    codes: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        numeric = [j for j, c in enumerate(columns) if c.kind in ("continuous", "count")]
        counts = [i for i, j in enumerate(numeric) if columns[j].kind == "count"]
        indicators = [
            (j, code)
            for j, c in enumerate(columns)
            if c.kind in ("binary", "categorical")
            for code in range(len(c.categories))
        ]
        self.numeric, self.counts, self.indicators = len(numeric), len(counts), len(indicators)
        count_columns = [columns[numeric[i]] for i in counts]
        places = {"numbers_at": numeric, "counts_at": counts, "indicators_at": [j for j, _ in indicators]}
        for name, place in places.items():
            self.register_buffer(name, torch.tensor(place, dtype=torch.long), persistent=False)
        self.register_buffer("codes", torch.tensor([float(code) for _, code in indicators]), persistent=False)
        self.register_buffer("center", torch.tensor([c.center for c in count_columns]), persistent=False)
        self.register_buffer("scale", torch.tensor([c.scale for c in count_columns]), persistent=False)
        self.width = len(numeric) + len(indicators) + len(columns)
        self.plain = len(numeric) == len(columns) and not counts

    def forward(self, x: Tensor) -> Tensor:
        """Return the encoder's input, (n, d)."""
        missing = x.isnan()
        parts = []
        if self.numeric:
            cells = x.index_select(1, self.numbers_at)
            values = cells.nan_to_num(0.0)
            if self.counts:
                logs = (values.index_select(1, self.counts_at).clamp(min=0).log1p() - self.center) / self.scale
                values = values.index_copy(1, self.counts_at, logs)
            values = values.clamp(-INPUT_BOUND, INPUT_BOUND)
            parts.append(values.masked_fill(cells.isnan(), 0.0))
        if self.indicators:  # an unseen category has no indicator, and what is missing equals no code
            parts.append((x.index_select(1, self.indicators_at) == self.codes).to(x.dtype))
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


def gradient_of(parameter: Tensor) -> Tensor:
    """Return a parameter's gradient, which is there."""
    assert parameter.grad is not None
    return parameter.grad
