"""Steps of training as compiled code (`steps.c`): the gradient of the negative beta-ELBO of a table, and AdamW.

Through numpy or torch a step of some dozen rows costs what its two hundred operations cost to call, with columns of
several kinds under automatic differentiation some two thousand; one of some hundred rows costs what they move through
memory. Compiled code takes 32 rows forward and back through both networks and all densities at once. It takes the steps
of tables with a standard normal prior whose networks stay in a core's own caches and are worth one thread; any others
`gradients` and automatic differentiation take, with the same result to rounding.

Shapes: k posterior samples, b rows of a batch, m columns, d encoder input, l latent width.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, Array, Structure, byref, c_float, c_int64, c_void_p
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .compiled import Scratch, check, here, used
from .heads import Head, Heads
from .networks import MLP, gradient_of
from .priors import StandardNormal
from .threads import worth_threads
from .vae import LOG_SCALE_BOUND, VAE

LARGEST = 1 << 18
"""Weights of a model at most: with their gradients and what AdamW keeps of them they take 4 MiB."""


class _Trained(Structure):
    _fields_ = (
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("layers", c_int64),
        ("widths", POINTER(c_int64)),
        *((name, POINTER(c_void_p)) for name in ("weights", "biases", "weight_gradients", "bias_gradients")),
    )


class _Batch(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("rows", "columns", "latent", "samples", "heads", "width")),
        ("head", POINTER(Head)),
        *((name, c_float) for name in ("beta", "bound")),
        *((name, c_void_p) for name in ("filled", "observed", "entered", "noise", "weights")),
        *((name, c_void_p) for name in ("loss", "kl", "reconstruction")),
    )


class _Adam(Structure):
    _fields_ = (
        ("size", c_int64),
        *((name, c_void_p) for name in ("weights", "first", "second", "gradient")),
        *((name, c_float) for name in ("norm", "epsilon", "keep", "step", "inverse_root", "share1", "beta2", "share2")),
    )


class Gradient(Protocol):
    """What computes the loss of a batch, and the gradients of all parameters of a model into their `grad`.

    These must be there, and stay where they are in memory, as the parameters must (`FlatParameters`).
    """

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
        """Set the gradients of the mean over rows of -weight * beta-ELBO.

        Args:
            filled: Encoded rows, (b, m), 0 where missing.
            observed: 1 where they are not missing, 0 where they are, (b, m).
            entered: The encoder's input, (b, d).
            noise: Standard normal draws, (k, b, l).
            beta: Weight of the KL term.
            weights: Weight of each row, (b,).

        Returns:
            The loss, the KL and the reconstruction of each row, (b,).
        """


class CompiledGradient:
    """The `Gradient` by compiled code.

    Args:
        model: The model.
    """

    def __init__(self, model: VAE) -> None:
        self._encoder, self._decoder = _trained(model.encoder), _trained(model.decoder)
        self._shapes = (model.columns, model.encoder.linear.in_features, model.latent)
        self._heads = Heads(model.likelihood, trained=True)
        self._batch = _Batch(
            columns=model.columns, latent=model.latent, bound=LOG_SCALE_BOUND,
            heads=len(self._heads.array), width=model.likelihood.width, head=self._heads.array,
        )  # fmt: skip
        self._scratch = Scratch()

    @staticmethod
    def serves(model: VAE, rows: int) -> bool:
        """Return whether there is compiled code here for the beta-ELBO of a model.

        Args:
            model: The model.
            rows: Rows of a batch times posterior samples.
        """
        parameters = list(model.parameters())
        ours = all(p.dtype == torch.float32 and p.device.type == "cpu" and p.is_contiguous() for p in parameters)
        fits = sum(p.numel() for p in parameters) <= LARGEST and not worth_threads(rows * model.largest_product)
        return ours and fits and Heads.serve(model.likelihood) and isinstance(model.prior, StandardNormal) and used()

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
        (columns, width, latent), (samples, rows) = self._shapes, noise.shape[:2]
        batch, found, kept = self._batch, noise.new_empty(3, rows), []  # until the call is over
        given: tuple[tuple[str, Tensor | None, tuple[int, ...]], ...] = (
            ("filled", filled, (rows, columns)),
            ("observed", observed, (rows, columns)),
            ("entered", entered, (rows, width)),
            ("noise", noise, (samples, rows, latent)),
            ("weights", weights, (rows,)),
        )
        for name, part, shape in given:
            if part is None:
                setattr(batch, name, None)
                continue
            check(name, part, shape)
            kept.append(part.contiguous())
            setattr(batch, name, kept[-1].data_ptr())
        batch.rows, batch.samples, batch.beta = rows, samples, beta
        loss, kl, reconstruction = found
        batch.loss, batch.kl, batch.reconstruction = loss.data_ptr(), kl.data_ptr(), reconstruction.data_ptr()
        library, all_given = here(), (byref(self._encoder), byref(self._decoder), byref(batch))
        library.gradient(*all_given, self._scratch.address(library.step_scratch(*all_given)))
        return loss, kl, reconstruction


def descend(weights: Tensor, gradient: Tensor, slots: dict[str, Tensor], group: dict[str, Any], *, norm: float) -> None:
    """Take a step of AdamW by a gradient, scaled down to a norm if its own is larger.

    Args:
        weights: Changed in place, (n,).
        gradient: Shape (n,).
        slots: State of `torch.optim.AdamW` after a step.
        group: Its settings.
        norm: Largest norm of the gradient.
    """
    steps = slots["step"].add_(1).item()
    (beta1, beta2), rate = group["betas"], group["lr"]
    adam = _Adam(
        len(weights), weights.data_ptr(), slots["exp_avg"].data_ptr(), slots["exp_avg_sq"].data_ptr(),
        gradient.data_ptr(), norm, group["eps"], 1 - rate * group["weight_decay"], rate / (1 - beta1**steps),
        (1 - beta2**steps) ** -0.5, 1 - beta1, beta2, 1 - beta2,
    )  # fmt: skip
    here().descend(byref(adam))


def _trained(network: MLP) -> _Trained:
    hidden = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    weights = [network.linear.weight, *(layer.weight for layer in hidden)]
    if network.out is not None:
        weights.append(network.out.weight)
    biases = [network.linear.bias, *(layer.bias for layer in hidden)]
    return _Trained(
        network.linear.in_features, network.linear.out_features, len(hidden),
        (c_int64 * len(hidden))(*(layer.out_features for layer in hidden)),
        _places(weights), _places(biases),
        _places([gradient_of(p) for p in weights]), _places([gradient_of(p) for p in biases]),
    )  # fmt: skip


def _places(tensors: Sequence[Tensor]) -> Array[c_void_p]:
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
