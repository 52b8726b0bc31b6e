"""Reasons: which cells cost a row its nats, and what was expected in their place."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data.schema import Schema, decode_cells
from ..models.vae import VAE
from .missing import charged
from .scores import expected_cells, split_scores

LATENT = "(latent)"
DEPENDENCE = "(dependence)"
OTHERS = "(other columns)"


def attributions(
    model: VAE,
    schema: Schema,
    frame: pd.DataFrame,
    x: Tensor,
    *,
    noise: Tensor,
    kind: str,
    top: int,
    missing_cost: Tensor | None = None,
) -> list[str]:
    """Return each row's reasons as JSON text.

    Args:
        model: Trained model.
        schema: Its columns.
        frame: The rows as the user gave them, n rows; an absent column is one of missing cells.
        x: The same encoded, (n, m).
        noise: The noise of the score, (k, l).
        kind: The score's kind.
        top: Columns to name, the costliest first.
        missing_cost: What a missing cell of each column is charged, (m,), if anything.

    Returns:
        n JSON lists of {"column", "nats", "value", "expected"}: the `top` columns; then, without value and expectation,
        the sum of the other columns, the latent part and, of an ensemble score, what the columns tell of each other.
        The nats sum to the score.
    """
    parts = split_scores(model, x, noise=noise, kind=kind)
    nats = parts.columns + charged(x, missing_cost)
    top = min(top, x.shape[1])
    order = np.argsort(-nats, axis=1, kind="stable")[:, :top]
    expected = np.empty(order.shape, dtype=object)
    for rank in range(top):
        columns = order[:, rank]
        encoded = expected_cells(model, x, torch.from_numpy(columns.copy()), noise=noise)
        for j in np.unique(columns):
            rows = np.flatnonzero(columns == j)
            cells = decode_cells(encoded[rows], schema.modelled[j])
            expected[rows, rank] = [plain(cell) for cell in cells]
    shown = [name for j, name in enumerate(schema.names) if (order == j).any()]
    given = {n: [plain(c) for c in frame[n]] if n in frame.columns else [None] * len(frame) for n in shown}
    texts = []
    for i in range(len(x)):
        named = [
            {
                "column": schema.names[j],
                "nats": float(nats[i, j]),
                "value": given[schema.names[j]][i],
                "expected": expected[i, rank],
            }
            for rank, j in enumerate(order[i])
        ]
        others = float(np.delete(nats[i], order[i]).sum())
        rest = [{"column": OTHERS, "nats": others}] if top < x.shape[1] else []
        rest.append({"column": LATENT, "nats": float(parts.latent[i])})
        if kind == "ensemble":
            rest.append({"column": DEPENDENCE, "nats": float(parts.dependence[i])})
        texts.append(json.dumps([*named, *rest], allow_nan=False))
    return texts


def plain(cell: Any) -> Any:
    """Return a cell as JSON can hold it: missing and infinite become null, times become ISO text."""
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return None
    if isinstance(cell, (np.bool_, bool)):
        return bool(cell)
    if isinstance(cell, (np.integer, int)):
        return int(cell)
    if isinstance(cell, (np.floating, float)):
        return float(cell) if math.isfinite(cell) else None
    return cell.isoformat() if hasattr(cell, "isoformat") else str(cell)
