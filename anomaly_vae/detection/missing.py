r"""What a missing cell is charged, so that rows with different missing cells can be compared.

Minus log p of the observed cells has fewer terms the more cells are missing, so a row would pass for normal by what it
leaves out. Each missing cell is therefore charged the nats that its column costs on average, and the score estimates
what the completed row would be expected to score:

.. math:: s(x) = -\log p(x_{obs}) + \sum_{c \text{ missing}} \bar s_c

The charge depends on the column alone and not on the row's other cells: one number a column is easy to explain.

Shapes: n rows, m columns, k posterior samples, l latent width.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.vae import VAE
from .scores import split_scores

COST_ROWS = 4096
"""Rows that the means are taken over, at most."""


def expected_costs(model: VAE, x: Tensor, *, noise: Tensor, kind: str) -> Tensor:
    """Return the mean nats of each column's cells, where they are not missing.

    Args:
        model: Trained model in eval mode.
        x: Rows that are not calibration rows, encoded, (n, m): calibration rows must meet the charge as new rows do.
        noise: The noise of the score, (k, l).
        kind: The score's kind.

    Returns:
        Costs, (m,), float64; 0 for a column without a cell in the first `COST_ROWS` rows.
    """
    x = x[:COST_ROWS]
    present = (~x.isnan()).numpy()
    sums = split_scores(model, x, noise=noise, kind=kind).columns.sum(0, where=present)
    return torch.from_numpy(sums / np.maximum(1, present.sum(0)))


def charged(x: Tensor, costs: Tensor | None) -> NDArray[np.float64]:
    """Return what each cell is charged, (n, m), nats: its column's cost where it is missing, else 0.

    Args:
        x: Encoded rows, (n, m), NaN = missing.
        costs: Costs of the columns, (m,); None to charge nothing.
    """
    if costs is None:
        return np.zeros(x.shape)
    return np.where(np.isnan(x.numpy()), costs.numpy(), 0.0)


def total(charges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of each row's charges, (n,), in one order whatever the number of rows."""
    out = np.zeros(len(charges))
    for j in np.flatnonzero(charges.any(0)):
        out += charges[:, j]
    return out
