r"""Importance sampling from wider distributions than the posterior, beside it.

A variational posterior is narrower than the true one, for that is what the ELBO rewards. Weights are then largest where
few samples come. So of every four samples three are drawn with a wider scale, and all are weighed as samples of the
mixture of the four, which is never much smaller than the posterior itself (a defensive mixture):

.. math:: z = \mu + t\,\sigma \varepsilon, \qquad
    \log w = \log p(x, z) - \log q(z|x) + \log \mathcal N(t \varepsilon; 0, I)
    - \log \tfrac14 \sum_s \mathcal N(t \varepsilon; 0, s^2 I)

Since :math:`q(z|x)` at such a code is a standard normal density of :math:`t \varepsilon` times what depends on the row
alone, the correction is the same for every row and model, with one layer of codes or several.

References:
    Hesterberg (1995), Weighted average importance sampling and defensive mixture distributions.
    Owen & Zhou (2000), Safe and effective importance sampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ShapeError

EXTRA_VARIANCES = (0.0, 0.21, 0.5625, 1.25)
"""t² - 1 of the samples, in turn, in up to `WIDTH` dimensions: scales of 1, 1.1, 1.25 and 1.5."""
WIDTH = 8
"""In more dimensions l, t² - 1 is smaller, 8 / l times: norms vary less there, and a wide sample would be far away."""


def scales(latent: int) -> tuple[float, ...]:
    """Return the scales t of samples in so many dimensions, in turn.

    Example:
        >>> scales(8)
        (1.0, 1.1, 1.25, 1.5)
    """
    shrunk = WIDTH / max(latent, WIDTH)
    return tuple(math.sqrt(1 + shrunk * extra) for extra in EXTRA_VARIANCES)


def widened(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return standard normal noise with wider samples among it, (k, l), and what is added to their log weights, (k,).

    Args:
        noise: Standard normal draws, (k, l), k a multiple of four.

    Raises:
        ShapeError: It is not.
    """
    k, latent = noise.shape
    t = torch.tensor(scales(latent), dtype=noise.dtype, device=noise.device)
    if k % len(t):
        raise ShapeError(f"samples must be a multiple of {len(t)}, got {k}. Draw more.", samples=k)
    wide = noise * t.repeat(k // len(t))[:, None]
    squares = wide.double().square().sum(-1, keepdim=True)
    each = -0.5 * squares / t.double().square() - latent * t.double().log()
    return wide, -0.5 * squares[:, 0] - torch.logsumexp(each, 1) + math.log(len(t))
