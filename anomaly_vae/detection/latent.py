"""Where rows lie: the posterior's parameters, and the encoder's input, block by block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.conv import ImageVAE
from ..models.family import Model
from ..models.threads import threads_worth

BLOCK_ROWS = 1024
BLOCK_IMAGES = 128


def posteriors(model: Model, x: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the means and log standard deviations of q(z|x), each (n, l), for encoded rows (n, m)."""
    both = _blockwise(model, x, lambda block: torch.cat(model.posterior(block), 1), 2 * model.latent)
    return both[:, : model.latent], both[:, model.latent :]


def entered(model: Model, x: Tensor) -> NDArray[np.float32]:
    """Return what the encoder sees of encoded rows (n, m): standardised cells and indicators, or pixels, (n, d).

    Not the class that a model is told of an image: it is a number without a scale.
    """
    seen = model.seen if isinstance(model, ImageVAE) else model.input
    width = seen(x[:1]).shape[1] if len(x) else 0
    return _blockwise(model, x, seen, width)


@torch.inference_mode()
def _blockwise(model: Model, x: Tensor, function: Callable[[Tensor], Tensor], width: int) -> NDArray[np.float32]:
    """Return a function of rows (n, m), (n, width), in blocks of one shape: a row's value is that in any company."""
    rows = BLOCK_IMAGES if isinstance(model, ImageVAE) else BLOCK_ROWS
    out = torch.empty(len(x), width)
    with threads_worth(rows * model.largest_product):
        for start in range(0, len(x), rows):
            block = x[start : start + rows]
            count = len(block)
            if count < rows:
                block = torch.cat([block, block.new_zeros(rows - count, x.shape[1])])
            out[start : start + count] = function(block)[:count]
    return out.numpy()
