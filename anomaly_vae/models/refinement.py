r"""Posteriors fitted to single rows, for importance sampling: normal, with full covariance, from the encoder's on.

An encoder serves all rows at once and gives independent codes. What it misses of a row's true posterior costs samples
exponentially (Cremer et al. 2018; Chatterjee & Diaconis 2018), so rows for which many samples do not suffice get a
posterior of their own: the same bound is maximised, over

.. math:: z = \mu + \sigma \odot (u + T \varepsilon), \qquad T \text{ lower triangular with positive diagonal}

from u = 0, T = I, with the decoder as it is (Hoffman 2017; Kim et al. 2018, Semi-Amortized Variational Autoencoders).

A row's fit depends on the row, the model and the seed alone: groups have one shape, products widths that are multiples
of 16 (see `networks`), the noise is the same for all.

Shapes: k samples, n rows, m columns, l latent width, p the latent width padded to a multiple of 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .family import Model
from .fused import Rows
from .networks import MLP, padded
from .threads import side_by_side
from .vae import VAE

STEPS = 100
SAMPLES = 32
"""Samples of a step, in pairs of opposite sign."""
LEARNING_RATE = 0.06
"""In units of the encoder's standard deviations, at first; it falls to nothing as a cosine."""
FARTHER = 4.0
"""A mean moves so much farther in a step than the logs of scales: an encoder can be off by many of its deviations."""
BETAS = (0.9, 0.95)
GROUP = 64
"""Rows that are fitted together."""
APART = 0x9E3779B9
"""From a seed to that of the fits: a posterior fitted to the noise that it is then sampled with looks too good."""


def refines(model: Model) -> TypeGuard[VAE]:
    """Return whether rows of such a model can get posteriors of their own: those of tables can."""
    return type(model) is VAE


def refined(model: VAE, rows: Rows, *, seed: int) -> Rows:
    """Return the rows with posteriors of their own; a row keeps the encoder's if its bound is not raised by that.

    Args:
        model: Trained model in eval mode.
        rows: The rows, with the encoder's posteriors.
        seed: Seed of the noise, which all rows share.
    """
    groups = torch.arange(len(rows.x)).split(GROUP)

    def fitted(i: int) -> Rows:
        chosen = groups[i]
        whole = rows.part(torch.cat([chosen, chosen[:1].expand(GROUP - len(chosen))]))
        return _fitted(model, whole, seed).part(slice(0, len(chosen)))

    return Rows.joined(side_by_side(fitted, len(groups)))


def _fitted(model: VAE, rows: Rows, seed: int) -> Rows:
    with torch.inference_mode(False), torch.enable_grad():
        # tensors of inference mode take no part in differentiation, their copies do
        x, mean, scale = rows.x.clone(), rows.mean.clone(), rows.scale.clone()
        log_joint = _log_joint(model, x)
        generator = torch.Generator().manual_seed((seed + APART) % 2**32)
        n, latent = mean.shape
        below = torch.ones(latent, padded(latent), dtype=x.dtype, device=x.device).tril(-1)
        shift, log_diagonal = (torch.zeros_like(mean, requires_grad=True) for _ in range(2))
        slopes = mean.new_zeros(n, *below.shape).requires_grad_()
        optimizer = torch.optim.Adam(
            [{"params": [shift]}, {"params": [log_diagonal, slopes]}], betas=BETAS, foreach=False
        )

        def codes(noise: Tensor) -> Tensor:
            return mean + scale * (shift + _moved(_root(slopes * below, log_diagonal), noise))

        for step in range(STEPS):
            rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            for group, factor in zip(optimizer.param_groups, (FARTHER, 1.0), strict=True):
                group["lr"] = factor * rate
            noise = _pairs(SAMPLES, latent, generator).to(x)
            bound = log_joint(codes(noise)).mean(0) + log_diagonal.sum(-1)
            optimizer.zero_grad()
            (-bound.sum()).backward()
            optimizer.step()
    with torch.inference_mode():
        noise = _pairs(2 * SAMPLES, latent, generator).to(x)
        identity = _root(torch.zeros_like(slopes), torch.zeros_like(log_diagonal))
        before = log_joint(mean + scale * _moved(identity, noise)).mean(0)
        after = log_joint(codes(noise)).mean(0) + log_diagonal.sum(-1)
        better = after > before  # not if it is NaN
        root = torch.where(better[:, None, None], _root(slopes * below, log_diagonal), identity)[..., :latent]
        return replace(
            rows,
            mean=torch.where(better[:, None], mean + scale * shift, mean),
            spread=torch.where(better, rows.spread + log_diagonal.sum(-1), rows.spread),
            root=scale[..., None] * root,
        )


def _pairs(k: int, latent: int, generator: torch.Generator) -> Tensor:
    """Return standard normal noise, (k, l), the second half of which is minus the first."""
    half = torch.randn(k // 2, latent, generator=generator)
    return torch.cat([half, -half])


def _root(slopes: Tensor, log_diagonal: Tensor) -> Tensor:
    """Return lower triangular matrices, (n, l, p), of what is below the diagonal, (n, l, p), and its log, (n, l)."""
    diagonal = F.pad(torch.diag_embed(log_diagonal.exp()), (0, slopes.shape[-1] - log_diagonal.shape[-1]))
    return slopes + diagonal


def _moved(root: Tensor, noise: Tensor) -> Tensor:
    """Return the roots (n, l, p) applied to noise (k, l), as (k, n, l)."""
    n, latent, width = root.shape
    moved = root.reshape(-1, width) @ F.pad(noise, (0, width - latent)).T
    return moved.view(n, latent, -1).permute(2, 0, 1)


def _log_joint(model: VAE, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return log p(x, z) as a function of codes (k, n, l), of shape (k, n), for rows (n, m)."""
    decode = _padded_input(model.decoder)

    def log_joint(z: Tensor) -> Tensor:
        return model.likelihood.log_prob(decode(z), x).sum(-1) + model.prior.log_prob(z)

    return log_joint


def _padded_input(network: MLP) -> Callable[[Tensor], Tensor]:
    """Return an MLP's function, with constant weights, whose derivative by the input has a padded width."""
    width = network.linear.in_features
    extra = padded(width) - width
    linear, bias = F.pad(network.linear.weight.detach(), (0, extra)), network.linear.bias.detach()
    layers = [
        (F.pad(layer.weight.detach(), (0, extra if i == 0 else 0)), layer.bias.detach())
        for i, layer in enumerate(layer for layer in network.layers if isinstance(layer, nn.Linear))
    ]
    out = None if network.out is None else network.out.weight.detach()

    def function(z: Tensor) -> Tensor:
        h = F.pad(z, (0, extra))
        y = F.linear(h, linear, bias)
        if out is not None:
            for weight, shift in layers:
                h = F.silu(F.linear(h, weight, shift))
            y = y + F.linear(h, out)
        return y[..., : network.width_out]

    return function
