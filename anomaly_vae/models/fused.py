"""The log densities of many posterior samples, for scoring alone: the arithmetic of `bounds.terms`, laid out for speed.

Weights are laid out once, and where all columns are continuous log p(x|z) is summed over them without a log density of
each. Where there is compiled code for the network (`kernels`) it takes samples from the code to the density at once;
else products go into buffers that are kept from call to call, and activations are computed in place. `bounds.terms` is
the plain form, and the tests' oracle.

With `precision="bf16"` the decoder's hidden layers are computed in bfloat16, which processors with instructions for it
do several times faster. The linear path around them, residuals, log densities and sums stay float32: what distinguishes
a row from its reconstruction does not pass through numbers of eight bits. So does the encoder, which is computed once a
row, not once a sample, and would pass its error on to all of them.

Shapes: k posterior samples, n rows, m columns, l latent width, w decoder output padded to a multiple of 16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .bounds import HALF_LOG_2PI
from .heads import Heads
from .kernels import AnyColumns, Columns, Drawn, kernel
from .likelihoods import DEGREES, LOG_T, Gaussian, Heavy, Normals
from .networks import INPUT_BOUND, MLP
from .priors import StandardNormal
from .vae import LOG_SCALE_BOUND, VAE


class FusedMLP:
    """An `MLP` laid out for speed: as compiled code (`kernels`), else for torch, in buffers that are kept.

    Args:
        network: The network, whose weights are copied.
        precision: "float32" or "bf16", of the hidden layers.
    """

    def __init__(self, network: MLP, precision: str = "float32") -> None:
        self.width_in = network.linear.in_features
        self.width = network.linear.out_features
        self.wide = network.linear.weight.dtype
        self.bias: Tensor = network.linear.bias.detach().clone()
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self.kernel = kernel(network, precision)
        if self.kernel is not None:
            return
        self.dtype = torch.bfloat16 if precision == "bf16" else self.wide
        self.linear = _turned(network.linear.weight)
        layers = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
        self.layers = [
            (_turned(layer.weight).to(self.dtype), layer.bias.detach().clone().to(self.dtype)) for layer in layers
        ]
        self.out = None if network.out is None else _turned(network.out.weight).to(self.dtype)

    def copy(self) -> FusedMLP:
        """Return the same for another thread, with the same weights."""
        other = copy(self)
        other._buffers = {}
        other.kernel = None if self.kernel is None else self.kernel.copy()
        return other

    def buffer(self, name: str, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a buffer (height, width), the same one for the same name and height."""
        key = (name, height)
        if key not in self._buffers:
            self._buffers[key] = torch.zeros(height, width, dtype=dtype or self.wide, device=self.bias.device)
        return self._buffers[key]

    def without_bias(self, x: Tensor) -> Tensor:
        """Map (h, width_in) to (h, w) but for the last bias, in a buffer that the next call overwrites.

        Args:
            x: Inputs; h must be a multiple of 16.
        """
        height = len(x)
        if self.kernel is not None:
            return self.kernel.decode(x)
        y = torch.mm(x, self.linear, out=self.buffer("y", height, self.width))
        if self.out is None:
            return y
        h = x
        if self.dtype != self.wide:
            h = self.buffer("x", height, self.width_in, self.dtype).copy_(x)
        for i, (weight, bias) in enumerate(self.layers):
            into = self.buffer(f"h{i}", height, len(bias), self.dtype)
            h = F.silu(torch.addmm(bias, h, weight, out=into), inplace=True)
        if self.dtype == self.wide:
            return torch.addmm(y, h, self.out, out=y)
        return y.add_(torch.mm(h, self.out, out=self.buffer("part", height, self.width, self.dtype)))


def _turned(weight: Tensor) -> Tensor:
    return weight.detach().T.clone(memory_format=torch.contiguous_format)


class SummedNormals:
    """log p(x|z) summed over continuous columns: normal or Student t, by what the head says of its columns.

    Args:
        columns: The head's distribution at a decoder output of zeros.
        bias: Of the decoder's output, (w,).
    """

    def __init__(self, columns: Normals, bias: Tensor) -> None:
        student = isinstance(columns, Heavy)
        m = columns.noise.shape[-1]
        constant = (LOG_T if student else -HALF_LOG_2PI) - columns.noise.log() - columns.log_scale
        unit = columns.noise.expand(m) * (math.sqrt(DEGREES) if student else math.sqrt(2.0))
        weight = 0.5 * (DEGREES + 1) if student else 1.0
        self.columns = Columns(bias[:m].clone(), unit.reciprocal(), constant.expand(m).contiguous(), weight, student)
        self.pad = len(bias) - m
        self.one = bias.new_ones(())

    def prepared(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return targets (n, w), factors (n, w) and constants (n,) of rows (n, m): residual = target + factor * y."""
        observed, columns = ~x.isnan(), self.columns
        target = torch.where(observed, (x - columns.bias) * columns.inverse, 0.0)
        factor = torch.where(observed, -columns.inverse, 0.0)
        constant = torch.where(observed, columns.constant, 0.0).sum(-1)
        return F.pad(target, (0, self.pad)), F.pad(factor, (0, self.pad)), constant

    def log_prob(self, y: Tensor, target: Tensor, factor: Tensor, constant: Tensor) -> Tensor:
        """Return log p(x|z), (k, n), of decoder outputs (k, n, w), which are overwritten."""
        torch.addcmul(target, y, factor, out=y)
        if not self.columns.student:
            return constant - y.square_().sum(-1)
        torch.addcmul(self.one, y, y, out=y)
        return constant - self.columns.weight * y.log_().sum(-1)


@dataclass(frozen=True)
class Rows:
    """What the samples of some rows need of them.

    Attributes:
        x: Encoded rows, (n, m).
        mean: Posterior means, (n, l).
        log_scale: Posterior log standard deviations, (n, l).
        scale: Their exponentials, (n, l).
        spread: Sum of the log standard deviations, (n,).
        target, factor, constant: See `SummedNormals.prepared`; None where torch does not sum over continuous columns.
        context: Classes of the rows, (n,), of a conditional model.
        features: What a ladder's posteriors need of the rows, (n, f).
        root: Lower triangular roots of the posteriors' covariances, (n, l, l), of which `spread` is the log
            determinant, in place of `scale`; see `models.refinement`.
        second: The same rows as an ensemble's second autoencoder sees them.
    """

    x: Tensor
    mean: Tensor
    log_scale: Tensor
    scale: Tensor
    spread: Tensor
    target: Tensor | None = None
    factor: Tensor | None = None
    constant: Tensor | None = None
    context: Tensor | None = None
    features: Tensor | None = None
    root: Tensor | None = None
    second: Rows | None = None

    def moved(self, noise: Tensor) -> Tensor:
        """Return the roots applied to noise (k, l), as (k, n, l)."""
        assert self.root is not None
        n, latent, _ = self.root.shape
        moved = self.root.reshape(-1, latent) @ noise.T.to(self.root.dtype)
        return moved.view(n, latent, -1).permute(2, 0, 1)

    def part(self, rows: slice | Tensor) -> Rows:
        """Return some of the rows."""
        values = (getattr(self, f.name) for f in fields(self))
        return Rows(*(v if v is None else v.part(rows) if isinstance(v, Rows) else v[rows] for v in values))  # type: ignore[arg-type]

    def split(self, height: int) -> list[Rows]:
        """Return all rows in parts of a height, the last of what is left."""
        n = -(-len(self.x) // height)
        if n == 1:
            return [self]
        values = (getattr(self, f.name) for f in fields(self))
        parts = ([None] * n if v is None else v.split(height) for v in values)
        return [Rows(*part) for part in zip(*parts, strict=True)]

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Return the rows of all parts, in order."""
        columns = ([getattr(part, f.name) for part in parts] for f in fields(cls))
        return cls(*(None if values[0] is None else torch.cat(values) for values in columns))  # type: ignore[arg-type]


class Scorer(Protocol):
    """A model laid out for scoring. It may keep buffers, so each thread needs its own.

    Attributes:
        precision: "float32" or "bf16", of the hidden layers.
    """

    precision: str

    def rows(self, x: Tensor) -> Rows:
        """Return rows (n, m) with their posteriors."""

    def log_densities(self, rows: Rows, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and the log weights, each (k, n) and new, at the samples that the noise (k, l) picks."""

    def log_px(self, rows: Rows, noise: Tensor) -> Tensor:
        """Return log p(x_c|z) of each column, (k, n, m)."""

    def codes(self, rows: Rows, noise: Tensor) -> Tensor:
        """Return the samples, (k, n, l)."""


class FusedVAE:
    """A VAE for scoring alone. It keeps buffers, so each thread needs its own.

    Args:
        model: Trained model; its weights are copied, as they are now.
        precision: Of the decoder's hidden layers; by default the model's own.

    """

    def __init__(self, model: VAE, precision: str | None = None) -> None:
        self.model = model
        self.encoder = FusedMLP(model.encoder)
        self.precision = precision or model.precision
        self.decoder = FusedMLP(model.decoder, self.precision)
        self.standard = isinstance(model.prior, StandardNormal)
        heads: list[nn.Module] = list(model.likelihood.heads.values())
        self.summed = None
        if len(heads) == 1 and isinstance(heads[0], Gaussian):
            zeros = self.decoder.bias.new_zeros(1, heads[0].width)
            self.summed = SummedNormals(heads[0](zeros), self.decoder.bias)
        self.columns: Columns | AnyColumns | None = None if self.summed is None else self.summed.columns
        if self.columns is None and self.decoder.kernel is not None and Heads.serve(model.likelihood):
            self.columns = AnyColumns(self.decoder.bias, Heads(model.likelihood, trained=False))

    @cached_property
    def exact(self) -> FusedVAE:
        """The same in float32, for the same thread."""
        return self._in_float32()

    def _in_float32(self) -> Self:
        other = copy(self)
        other.precision, other.decoder = "float32", FusedMLP(self.model.decoder)
        return other

    def copy(self) -> Self:
        """Return the same for another thread, with the same weights, in a fraction of the time."""
        other = copy(self)
        other.encoder, other.decoder = self.encoder.copy(), self.decoder.copy()
        if self.precision != "float32":
            other.exact = self.exact.copy()
        return other

    def steady(self, rows: Rows) -> bool:
        """Return whether log densities of these rows have the same bits in blocks of any height."""
        return self.columns is not None and self.decoder.kernel is not None and self.standard and rows.root is None

    def rows(self, x: Tensor) -> Rows:
        """Return rows (n, m), n a multiple of 16, with their posteriors."""
        latent, compiled = self.model.latent, self.encoder.kernel
        prepared = self.summed.prepared(x) if self.summed and self.decoder.kernel is None else ()
        if compiled is not None and self.model.input.plain:
            found = compiled.posteriors(x, self.encoder.bias, latent, bound=INPUT_BOUND, limit=LOG_SCALE_BOUND)
            return Rows(x, *found, *prepared)
        y = self.encoder.without_bias(self.model.input(x)) + self.encoder.bias
        mean, log_scale = y[:, :latent], y[:, latent : 2 * latent].clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)
        return Rows(x, mean.contiguous(), log_scale, log_scale.exp(), log_scale.sum(-1), *prepared)

    def log_densities(self, rows: Rows, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and the log weights, each (k, n), at the samples that the noise picks.

        Args:
            rows: The rows; n must be a multiple of 16.
            noise: Standard normal draws, (k, l), shared by all rows, or (k, n, l).
        """
        compiled = self.decoder.kernel
        if self.columns is not None and compiled is not None:
            if self.steady(rows) and noise.dim() == 2:
                drawn = Drawn(rows.mean, rows.scale, rows.spread, noise)
                return compiled.log_densities(drawn, rows.x, self.columns)
            z = self.codes(rows, noise)
            log_px = compiled.log_px(z, rows.x, self.columns)
        else:
            z, y = self._decoded(rows, noise)
            if self.summed is not None:
                assert rows.target is not None
                assert rows.factor is not None
                assert rows.constant is not None
                log_px = self.summed.log_prob(y, rows.target, rows.factor, rows.constant)
            else:
                log_px = self.model.likelihood.log_prob(self._biased(y), rows.x).sum(-1)
        known = 0.5 * noise.square().sum(-1, keepdim=noise.dim() == 2) + rows.spread  # -log q(z|x) but for its constant
        if self.standard:
            log_ratio = known - 0.5 * z.square().sum(-1)
        else:
            log_ratio = self.model.prior.log_prob(z) + known + HALF_LOG_2PI * self.model.latent
        return log_px, log_px + log_ratio

    def of_one(self, rows: Rows, noise: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return `log_densities`, each (1, n), of one sample of each row, the one of its index, (1, n)."""
        compiled = self.decoder.kernel
        if self.columns is None or compiled is None or not self.steady(rows):
            return self.log_densities(rows, noise[index])
        drawn = Drawn(rows.mean, rows.scale, rows.spread, noise)
        log_px, log_w = compiled.chosen(drawn, rows.x, self.columns, index[0].int())
        return log_px[None], log_w[None]

    def log_px(self, rows: Rows, noise: Tensor) -> Tensor:
        """Return log p(x_c|z) of each column, (k, n, m); their sums are the first of `log_densities`."""
        return self.model.likelihood.log_prob(self._biased(self._decoded(rows, noise)[1]), rows.x)

    def codes(self, rows: Rows, noise: Tensor) -> Tensor:
        """Return the samples (k, n, l) that the noise picks, in a buffer that the next call overwrites."""
        k, (n, latent) = len(noise), rows.mean.shape
        z = self.decoder.buffer("z", k * n, latent).view(k, n, latent)
        if rows.root is not None:
            return torch.add(rows.mean, rows.moved(noise), out=z)
        return torch.addcmul(rows.mean, rows.scale, noise[:, None, :] if noise.dim() == 2 else noise, out=z)

    def _decoded(self, rows: Rows, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (k, n, l) and decoder outputs (k, n, w) without bias, both in buffers."""
        z = self.codes(rows, noise)
        return z, self.decoder.without_bias(z.view(-1, z.shape[-1])).view(*z.shape[:2], -1)

    def _biased(self, y: Tensor) -> Tensor:
        return (y + self.decoder.bias)[..., : self.model.likelihood.width]


class FusedEnsemble(FusedVAE):
    r"""The autoencoders of an ensemble for scoring alone: the mean of their log densities at samples of the same noise.

    .. math:: w = \log p(x \mid z) + \beta\, (\log p(z) - \log q(z \mid x))

    With :math:`\beta < 1` their mean is no bound on log p(x). Where the columns' noise does not depend on the code,
    :math:`\tfrac1\beta E[w]` is, but for a constant, the ELBO of a model whose likelihood is
    :math:`p(x \mid z)^{1 / \beta}`, which is sharper.

    Args:
        model: Trained model.
        precision: See `FusedVAE`.
    """

    def __init__(self, model: VAE, precision: str | None = None) -> None:
        super().__init__(model, precision)
        self.beta = model.score_beta
        self.second = None if model.second is None else FusedVAE(model.second, precision)

    def copy(self) -> Self:
        """Return the same for another thread, with the same weights, in a fraction of the time."""
        other = super().copy()
        other.second = None if self.second is None else self.second.copy()
        return other

    def _in_float32(self) -> Self:
        other = super()._in_float32()
        other.second = None if self.second is None else self.second.exact
        return other

    def rows(self, x: Tensor) -> Rows:
        """Return rows (n, m) with their posteriors under each autoencoder."""
        rows = super().rows(x)
        return rows if self.second is None else replace(rows, second=self.second.rows(x))

    def steady(self, rows: Rows) -> bool:
        """Return whether log densities of these rows have the same bits in blocks of any height."""
        return super().steady(rows) and (
            self.second is None or (rows.second is not None and self.second.steady(rows.second))
        )

    def log_densities(self, rows: Rows, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and w, each (k, n), both means over the autoencoders."""
        log_px, log_w = super().log_densities(rows, noise)
        if self.second is not None:
            assert rows.second is not None
            others = self.second.log_densities(rows.second, noise)
            log_px, log_w = (0.5 * (one + other) for one, other in zip((log_px, log_w), others, strict=True))
        return log_px, log_w if self.beta == 1.0 else torch.lerp(log_px, log_w, self.beta)

    def of_one(self, rows: Rows, noise: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return `log_densities`, each (1, n), of one sample of each row, the one of its index, (1, n)."""
        return self.log_densities(rows, noise[index])

    def log_px(self, rows: Rows, noise: Tensor) -> Tensor:
        """Return log p(x_c|z) of each column, (k, n, m), the mean over the autoencoders."""
        one = super().log_px(rows, noise)
        if self.second is None:
            return one
        assert rows.second is not None
        return 0.5 * (one + self.second.log_px(rows.second, noise))
