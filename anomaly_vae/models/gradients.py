r"""The gradient of the negative beta-ELBO, written out, for the common model: all columns continuous, normal prior.

With batches of a few dozen rows a step costs what its operations cost to call. Automatic differentiation calls several
times as many; and those of numpy cost half as much as those of torch, small matrix products among them. So numpy takes
the small steps on a processor, in the memory of the tensors themselves, and torch all others: the formulas below are
written in what both understand. `bounds.beta_elbo` under autograd is the plain form, the tests' oracle, and what all
other models and objectives are trained by.

Shapes: k posterior samples, b rows of a batch, m columns, d encoder input, l latent width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .bounds import HALF_LOG_2PI
from .likelihoods import DEGREES, LOG_T, NOISE_FLOOR, FixedGaussian, Gaussian, StudentT
from .networks import MLP, gradient_of
from .priors import StandardNormal
from .steps import CompiledGradient, Gradient
from .vae import LOG_SCALE_BOUND, VAE

SMALL_STEP = 1 << 18
"""Multiply-adds of the largest product of the steps that numpy takes: for so few, OpenBLAS starts no threads."""
Array = Any
"""A `Tensor`, or the `ndarray` in the same memory where numpy computes."""
silu_backward = torch.ops.aten.silu_backward.default


def _plain(xp: ModuleType) -> Callable[[Tensor], Array]:
    """Return what makes arrays of tensors, for numpy or torch."""
    return Tensor.numpy if xp is np else lambda tensor: tensor


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


class _Network:
    """Forward and backward pass of an `MLP`; gradients go into the parameters' `grad`, which must be there.

    Weights and gradients are looked up once: they must stay where they are in memory.

    Args:
        network: The network.
        xp: What computes, numpy or torch.
    """

    def __init__(self, network: MLP, xp: ModuleType) -> None:
        self.plain = _plain(xp)
        self.linear = _Layer(network.linear, xp)
        self.layers = [_Layer(layer, xp) for layer in network.layers if isinstance(layer, nn.Linear)]
        self.out = None if network.out is None else _Layer(network.out, xp)
        self.entered: list[Array] = []  # the input of each layer, then that of the last
        self.sums: list[Tensor] = []  # what each layer's activation was given
        self.ones: Array = self.plain(network.linear.weight.new_ones(0))  # (h,)

    def forward(self, x: Array) -> Array:
        """Map (h, width_in) to (h, w)."""
        self.entered, self.sums = [x], []
        x = _tensor(x)
        if len(self.ones) != len(x):
            self.ones = self.plain(x.new_ones(len(x)))
        y = torch.addmm(self.linear.bias, x, self.linear.transposed)
        for layer in self.layers:
            x = torch.addmm(layer.bias, x, layer.transposed)
            self.sums.append(x)
            x = nn.functional.silu(x)
            self.entered.append(self.plain(x))
        return self.plain(y if self.out is None else y.addmm_(x, self.out.transposed))

    def backward(self, dy: Array, *, wanted: bool) -> Array:
        """Set the parameters' gradients from that of the output; return that of the input if it is wanted, or None."""
        self.linear.set_gradients(dy, self.entered[0], self.ones)
        dx = dy @ self.linear.weight if wanted else None
        if self.out is None:
            return dx
        self.out.set_gradients(dy, self.entered[-1], self.ones)
        dh = dy @ self.out.weight
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            da = self.plain(silu_backward(_tensor(dh), self.sums[i]))
            layer.set_gradients(da, self.entered[i], self.ones)
            if i or wanted:
                dh = da @ layer.weight
        if dx is not None:
            dx += dh
        return dx


class _Layer:
    """One layer's parameters and gradients: tensors for what torch computes in any case, arrays for the rest."""

    def __init__(self, layer: nn.Linear, xp: ModuleType) -> None:
        plain, weight = _plain(xp), layer.weight.detach()
        self.product, self.transposed, self.weight = xp.matmul, weight.t(), plain(weight)
        self.weight_gradient = plain(gradient_of(layer.weight))
        self.biased = layer.bias is not None
        if self.biased:
            self.bias, self.bias_gradient = layer.bias.detach(), plain(gradient_of(layer.bias))

    def set_gradients(self, dy: Array, x: Array, ones: Array) -> None:
        """Set the gradients from that of the output (h, w), the input (h, v) and ones (h,)."""
        self.product(dy.T, x, out=self.weight_gradient)
        if not self.biased:
            return
        if isinstance(dy, np.ndarray):
            np.dot(ones, dy, out=self.bias_gradient)
        else:
            torch.sum(dy, 0, out=self.bias_gradient)


class WrittenOutGradient:
    """The `Gradient` by numpy or torch.

    Args:
        model: The model, every parameter of which has a `grad` to be written into (`FlatParameters`).
        rows: Rows of a batch times posterior samples, which decides what computes.
    """

    def __init__(self, model: VAE, rows: int) -> None:
        (head,) = model.likelihood.heads.values()
        assert isinstance(head, Gaussian)
        small = rows * model.largest_product <= SMALL_STEP and head.log_scale.device.type == "cpu"
        self.xp: ModuleType = np if small else torch
        self.plain = _plain(self.xp)
        self.encoder, self.decoder = _Network(model.encoder, self.xp), _Network(model.decoder, self.xp)
        self.latent, self.columns = model.latent, model.columns
        self.student = isinstance(head, StudentT)
        self.constant = self.plain((LOG_T if self.student else -HALF_LOG_2PI) - head.log_scale)
        self.fixed: Array = None
        if isinstance(head, FixedGaussian):
            self.fixed = self.plain(dict(head.named_buffers())["noise"])
        else:
            self.noise_log, self.noise_gradient = map(
                self.plain, (head.noise_log.detach(), gradient_of(head.noise_log))
            )

    @staticmethod
    def serves(model: VAE) -> bool:
        """Return whether the model is of the kind that this gradient is written for."""
        heads = list(model.likelihood.heads.values())
        return isinstance(model.prior, StandardNormal) and len(heads) == 1 and isinstance(heads[0], Gaussian)

    @torch.no_grad()
    def __call__(
        self,
        filled: Tensor,
        observed: Tensor,
        entered: Tensor,
        noise: Tensor,
        *,
        beta: float,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Gradient`."""
        plain = self.plain
        wide = (plain(filled), plain(observed), plain(entered), plain(noise))
        with np.errstate(all="ignore"):  # as in torch; what is not finite stops the training by its loss
            found = self._step(*wide, beta, None if weights is None else plain(weights))
        loss, kl, reconstruction = map(_tensor, found)
        return loss, kl, reconstruction

    def _step(
        self, filled: Array, observed: Array, entered: Array, noise: Array, beta: float, weights: Array | None
    ) -> tuple[Array, Array, Array]:
        xp = self.xp
        k, b, latent = noise.shape
        encoded = self.encoder.forward(entered)
        free = encoded[:, latent : 2 * latent]
        log_scale = free.clip(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)
        spread = xp.exp(log_scale) * noise
        z = spread + encoded[:, :latent]
        y = self.decoder.forward(z.reshape(-1, latent)).reshape(k, b, -1)
        # what each sample's log weight counts in the loss
        share = -1.0 / (k * b) if weights is None else weights[:, None] * (-1.0 / (k * b))
        log_px, dy = self._likelihood(filled, observed, y, share)
        kl = (z * z - noise * noise).sum((0, 2)) * (0.5 / k) - log_scale.sum(-1)
        dz = self.decoder.backward(dy.reshape(k * b, -1), wanted=True).reshape(z.shape)
        dz -= z * (beta * share)
        dencoded = xp.zeros_like(encoded)
        dencoded[:, :latent] = dz.sum(0)
        spread *= dz
        dencoded[:, latent : 2 * latent] = (spread.sum(0) + beta * k * share) * (free == log_scale)
        self.encoder.backward(dencoded, wanted=False)
        reconstruction = log_px.sum(0) * (1.0 / k)
        loss = kl * beta - reconstruction
        return loss if weights is None else loss * weights, kl, reconstruction

    def _likelihood(self, filled: Array, observed: Array, y: Array, share: float | Array) -> tuple[Array, Array]:
        """Return log p(x|z), (k, b), and the loss's gradient in the decoder's output, (k, b, w); set the noise's."""
        xp, m = self.xp, self.columns
        scale = None if self.fixed is not None else xp.exp(self.noise_log)
        noise = self.fixed if scale is None else scale + NOISE_FLOOR
        inverse = 1.0 / noise
        r = filled - y[..., :m]
        r *= observed * inverse
        square = r * r
        constant = observed @ (self.constant - xp.log(noise))
        if self.student:
            square += DEGREES
            log_px = xp.log(square * (1.0 / DEGREES)).sum(-1) * (-0.5 * (DEGREES + 1)) + constant
            pull = r * (DEGREES + 1)
            pull /= square
        else:
            log_px, pull = square.sum(-1) * -0.5 + constant, r
        dy = xp.zeros_like(y)
        dy[..., :m] = pull * (share * inverse)
        if scale is not None:
            each = pull * r
            each -= observed
            if not isinstance(share, float):
                each *= share
            total = each.sum((0, 1)) * (scale * inverse)
            self.noise_gradient[:] = total * share if isinstance(share, float) else total
        return log_px, dy


class FlatParameters:
    """All parameters of a model as one vector, so that an optimiser's step is one operation, and their gradients.

    Args:
        parameters: The parameters, which become views of the vector until `release`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.vector = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in self.parameters]))
        self.vector.grad = torch.zeros_like(self.vector)
        sizes = [p.numel() for p in self.parameters]
        values, gradients = self.vector.detach().split(sizes), self.vector.grad.split(sizes)
        for p, value, gradient in zip(self.parameters, values, gradients, strict=True):
            p.data = value.view(p.shape)
            p.grad = gradient.view(p.shape)

    def set_gradients(self, loss: Tensor) -> None:
        """Set the gradients to those of a loss."""
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        torch.cat([g.reshape(-1) for g in gradients], out=self.gradient)

    @property
    def gradient(self) -> Tensor:
        """The gradients, as one vector."""
        assert self.vector.grad is not None
        return self.vector.grad

    def clip(self, norm: float) -> None:
        """Scale the gradients down to a norm if theirs is larger."""
        gradient = self.gradient
        length = torch.linalg.vector_norm(gradient)
        if gradient.device.type != "cpu":  # is not waited for
            gradient.mul_((norm / (length + 1e-6)).clamp_(max=1.0))
        elif float(length) > norm:
            gradient.mul_(norm / (float(length) + 1e-6))

    def release(self) -> None:
        """Give each parameter memory of its own again, without gradient."""
        for p in self.parameters:
            p.data = p.data.clone()
            p.grad = None


def written_out(model: nn.Module, objective: str, rows: int) -> Gradient | None:
    """Return the gradient of a model and an objective for so many rows a step, if it is written out, best compiled."""
    if type(model) is not VAE or objective != "elbo":
        return None
    if CompiledGradient.serves(model, rows):
        return CompiledGradient(model)
    return WrittenOutGradient(model, rows) if WrittenOutGradient.serves(model) else None
