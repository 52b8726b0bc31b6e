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

from .conditional import ConditionalImageVAE
from .conv import ImageVAE
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
"""Rows that are fitted together, at most."""
PIXELS = 1 << 18
"""Pixels of all samples of the images that are fitted together, unless a single image has more."""
APART = 0x9E3779B9
"""From a seed to that of the fits: a posterior fitted to the noise that it is then sampled with looks too good."""


def refines(model: Model) -> TypeGuard[VAE | ImageVAE]:
    """Return whether rows of such a model can get posteriors of their own.

    Those with one layer of codes can, but for conditional ones of tables, which are made for comparisons alone.
    """
    return type(model) in (VAE, ImageVAE, ConditionalImageVAE)


def refined(model: VAE | ImageVAE, rows: Rows, *, seed: int) -> Rows:
    """Return the rows with posteriors of their own; a row keeps the encoder's if its bound is not raised by that.

    Args:
        model: Trained model in eval mode.
        rows: The rows, with the encoder's posteriors.
        seed: Seed of the noise, which all rows share.
    """
    size = GROUP if isinstance(model, VAE) else min(GROUP, max(1, PIXELS // (SAMPLES * model.columns)))
    groups = torch.arange(len(rows.x)).split(size)

    def fitted(i: int) -> Rows:
        chosen = groups[i]
        whole = rows.part(torch.cat([chosen, chosen[:1].expand(size - len(chosen))]))
        return _fitted(model, whole, seed).part(slice(0, len(chosen)))

    return Rows.joined(side_by_side(fitted, len(groups)))


class _Posteriors:
    """The posteriors of n rows, in units of the encoder's: their shifts u and roots T.

    Args:
        mean: The encoder's means, (n, l).
        scale: Its standard deviations, (n, l).
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.mean, self.scale = mean, scale
        (n, latent), width = mean.shape, padded(mean.shape[1])
        self.shift, self.log_diagonal = (torch.zeros_like(mean, requires_grad=True) for _ in range(2))
        self.slopes = mean.new_zeros(n, latent, width).requires_grad_()
        self.below = mean.new_ones(latent, width).tril(-1)

    def root(self) -> Tensor:
        """Return T, (n, l, p), lower triangular."""
        diagonal = torch.diag_embed(self.log_diagonal.exp())
        return self.slopes * self.below + F.pad(diagonal, (0, self.slopes.shape[-1] - diagonal.shape[-1]))

    def codes(self, noise: Tensor) -> Tensor:
        """Return the samples (k, n, l) that noise (k, l) picks."""
        n, latent, width = self.slopes.shape
        moved = self.root().reshape(-1, width) @ F.pad(noise, (0, width - latent)).T
        return self.mean + self.scale * (self.shift + moved.view(n, latent, -1).permute(2, 0, 1))

    def bound(self, log_joint: Callable[[Tensor], Tensor], noise: Tensor) -> Tensor:
        """Return the ELBO of each row, (n,), but for what does not change, at these samples."""
        return log_joint(self.codes(noise)).mean(0) + self.log_diagonal.sum(-1)


def _fitted(model: VAE | ImageVAE, rows: Rows, seed: int) -> Rows:
    generator = torch.Generator().manual_seed((seed + APART) % 2**32)
    with torch.inference_mode(False), torch.enable_grad():
        # tensors of inference mode take no part in differentiation, their copies do
        x, mean, scale = rows.x.clone(), rows.mean.clone(), rows.scale.clone()
        log_joint, own = _log_joint(model, x), _Posteriors(mean, scale)
        parameters = [own.shift, own.log_diagonal, own.slopes]
        groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
        optimizer = torch.optim.Adam(groups, betas=BETAS, foreach=False)
        for step in range(STEPS):
            rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            for group, factor in zip(optimizer.param_groups, (FARTHER, 1.0), strict=True):
                group["lr"] = factor * rate
            bound = own.bound(log_joint, _pairs(SAMPLES, model.latent, generator).to(mean))
            for parameter, gradient in zip(parameters, torch.autograd.grad(-bound.sum(), parameters), strict=True):
                parameter.grad = gradient  # the model's own stay as they are
            optimizer.step()
    with torch.inference_mode():
        encoders, noise = _Posteriors(mean, scale), _pairs(2 * SAMPLES, model.latent, generator).to(mean)
        better = own.bound(log_joint, noise) > encoders.bound(log_joint, noise)  # not if it is NaN
        for mine, before in ((own.shift, encoders.shift), (own.log_diagonal, encoders.log_diagonal)):
            mine.copy_(torch.where(better[:, None], mine, before))
        own.slopes.mul_(better[:, None, None]).nan_to_num_(0.0)
        return replace(
            rows,
            mean=mean + scale * own.shift,
            spread=rows.spread + own.log_diagonal.sum(-1),
            root=scale[..., None] * own.root()[..., : model.latent],
        )


def _pairs(k: int, latent: int, generator: torch.Generator) -> Tensor:
    """Return standard normal noise, (k, l), the second half of which is minus the first."""
    half = torch.randn(k // 2, latent, generator=generator)
    return torch.cat([half, -half])


def _log_joint(model: VAE | ImageVAE, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return log p(x, z) as a function of codes (k, n, l), of shape (k, n), for rows (n, m)."""
    if isinstance(model, ImageVAE):
        return lambda z: model.log_px_given_z(x, z).sum(-1) + model.prior.log_prob(z)
    decode, likelihood = _padded_input(model.decoder), model.likelihood
    return lambda z: likelihood.log_prob(decode(z), x).sum(-1) + model.prior.log_prob(z)


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
