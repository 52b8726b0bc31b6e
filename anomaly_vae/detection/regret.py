r"""Likelihood regret: how much better the ELBO of one image becomes if the posterior is fitted to that image alone.

.. math:: \mathrm{LR}(x) = \max_{\mu, \sigma} \mathrm{ELBO}(x; \mu, \sigma) - \mathrm{ELBO}(x; \mu(x), \sigma(x))

The encoder has seen normal images and does well for them; for others there is much to regret. It costs as many passes
forward and back through the decoder as there are steps, and is kept as a reference for scores that cost one.

References:
    Xiao, Yan & Amit (2020), Likelihood Regret, arXiv:2003.02977, eq. 7. DIFF: the posterior's parameters are optimised
    themselves, and not the encoder's weights.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models import bounds
from ..models.conv import ImageVAE

STEPS = 100
LEARNING_RATE = 0.05


def likelihood_regret(
    model: ImageVAE, x: Tensor, *, noise: Tensor, steps: int = STEPS, learning_rate: float = LEARNING_RATE
) -> NDArray[np.float64]:
    """Return the likelihood regret of images, nats, (n,), at least 0.

    Args:
        model: Trained model in eval mode.
        x: Encoded images, (n, m), levels.
        noise: Standard normal draws, (k, l), shared by all images and steps.
        steps: Of Adam.
        learning_rate: Adam's.
    """
    with torch.no_grad():
        start = model.posterior(x)
    free = [part.detach().clone().requires_grad_(True) for part in start]
    optimizer = torch.optim.Adam(free, lr=learning_rate)
    best = first = _elbo(model, x, noise, (start[0], start[1]))
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            value = bounds.elbo(bounds.terms(model, x, noise, posterior=(free[0], free[1])).log_weights)
            best = torch.maximum(best, value.detach().double())
            (-value.sum()).backward()
            optimizer.step()
    best = torch.maximum(best, _elbo(model, x, noise, (free[0].detach(), free[1].detach())))
    return (best - first).numpy()


@torch.no_grad()
def _elbo(model: ImageVAE, x: Tensor, noise: Tensor, posterior: tuple[Tensor, Tensor]) -> Tensor:
    return bounds.elbo(bounds.terms(model, x, noise, posterior=posterior).log_weights).double()
