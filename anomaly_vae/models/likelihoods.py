"""Likelihoods p(x_c | z) of table columns, and their combination by column.

A head is a module whose `forward(h)` turns the decoder's output (..., width) into a distribution over its group of
columns: an object with `log_prob(x)` (..., g) for cells (n, g), `mean` (..., g) and `sample(generator)` (..., g), in
encoded units. Missing cells (NaN) are the combination's business: they contribute 0, which marginalises them, since
columns are independent given z (Mattei & Frellsen 2019, MIWAE, arXiv:1812.02633).

Densities of continuous columns are in the user's own units: the Jacobian of the standardisation is part of `log_prob`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..data.schema import Column
from .bounds import HALF_LOG_2PI
from .compiled import here, used

NOISE_FLOOR = 0.01
"""Least standard deviation of a continuous column given z, in standard deviations of the column: without a floor a
column of few distinct values has unbounded density."""
DEGREES = 5.0
"""Degrees of freedom of Student t columns, a whole number: few enough for tails that hardly feel an outlier."""
LOG_T = math.lgamma((DEGREES + 1) / 2) - math.lgamma(DEGREES / 2) - 0.5 * math.log(DEGREES * math.pi)
"""Logarithm of the standard t density's constant."""
FAR_BELOW = -1e6
"""Stands for minus infinity, which has no gradient to give, as the lower edge of count 0."""
LARGEST_LOG_COUNT = 21.0
"""Counts drawn or expected are at most exp(21), about 1e9."""


class ColumnsDistribution(Protocol):
    """Independent distributions over a group of g columns."""

    @property
    def mean(self) -> Tensor:
        """Expected cell (most probable one for categories), encoded, (..., g)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log densities, (..., g), in nats."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one cell each, encoded, (..., g)."""


@dataclass(frozen=True)
class Normals:
    """Gaussian columns; `log_scale` takes the density to the user's units."""

    mean: Tensor
    noise: Tensor
    log_scale: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log densities, (..., g)."""
        return -0.5 * ((x - self.mean) / self.noise).square() - (self.noise.log() + self.log_scale + HALF_LOG_2PI)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one cell each, (..., g)."""
        return self.mean + self.noise * torch.randn(self.mean.shape, generator=generator)


class Gaussian(nn.Module):
    """Gaussian columns with one learned noise level each, at least `NOISE_FLOOR`."""

    noise_log: Tensor
    log_scale: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.width = len(columns)
        self.noise_log = nn.Parameter(torch.full((self.width,), -0.5))
        scale = torch.tensor([c.scale for c in columns], dtype=torch.float64)
        self.register_buffer("log_scale", scale.log().to(torch.get_default_dtype()))

    def forward(self, h: Tensor) -> ColumnsDistribution:
        """Return the columns' distribution for decoder outputs (..., g)."""
        return Normals(h, NOISE_FLOOR + self.noise_log.exp(), self.log_scale)


@dataclass(frozen=True)
class Heavy(Normals):
    """Student t columns with `DEGREES` degrees of freedom; `noise` is their scale."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log densities, (..., g)."""
        squared = ((x - self.mean) / self.noise).square()
        return (squared / DEGREES).log1p() * (-0.5 * (DEGREES + 1)) + (LOG_T - self.noise.log() - self.log_scale)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one cell each, (..., g): a normal over the root of a scaled chi-squared."""
        squares = torch.randn((int(DEGREES), *self.mean.shape), generator=generator).square().mean(0)
        return self.mean + self.noise * torch.randn(self.mean.shape, generator=generator) / squares.sqrt()


class StudentT(Gaussian):
    r"""Student t columns, one learned scale s each: :math:`p(x) \propto (1 + (x - f(z))^2 / (\nu s^2))^{-(\nu + 1)/2}`.

    Tails that fall like a power let a few corrupt or anomalous training rows be what they are, unlikely, instead of
    bending the fit towards them (Lange, Little & Taylor 1989, Robust statistical modeling using the t distribution).
    """

    def forward(self, h: Tensor) -> ColumnsDistribution:
        """Return the columns' distribution for decoder outputs (..., g)."""
        return Heavy(h, NOISE_FLOOR + self.noise_log.exp(), self.log_scale)


class FixedGaussian(Gaussian):
    r"""Gaussian columns with one fixed variance c: the textbook loss :math:`C \|x - f(z)\|^2 + KL` with C = 1/(2c)."""

    def __init__(self, columns: Sequence[Column], variance: float = 1.0) -> None:
        super().__init__(columns)
        del self.noise_log
        self.register_buffer("noise", torch.full((self.width,), variance**0.5))

    def forward(self, h: Tensor) -> ColumnsDistribution:
        """Return the columns' distribution for decoder outputs (..., g)."""
        return Normals(h, self.noise, self.log_scale)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Categories:
    """Categorical columns with `sizes` known categories each; `logits` (..., sum of sizes); `unseen` (g,)."""

    logits: Tensor
    sizes: tuple[int, ...]
    unseen: Tensor

    def _log_probs(self) -> list[Tensor]:
        return [F.log_softmax(part, -1) for part in self.logits.split(self.sizes, -1)]

    @property
    def mean(self) -> Tensor:
        """The most probable category, (..., g)."""
        return torch.stack([part.argmax(-1) for part in self.logits.split(self.sizes, -1)], -1).to(self.logits.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log probabilities of category indices x (n, g), (..., g); index `size` = unseen."""
        columns = []
        for j, (log_p, size) in enumerate(zip(self._log_probs(), self.sizes, strict=True)):
            index = x[..., j].nan_to_num(0.0).long()
            shape = np.broadcast_shapes(index.shape, log_p.shape[:-1])  # torch's imports sympy, 1 s
            index, log_p = index.expand(shape), log_p.expand(*shape, size)
            known = log_p.gather(-1, index.clamp(max=size - 1)[..., None])[..., 0] + torch.log1p(-self.unseen[j])
            columns.append(torch.where(index < size, known, self.unseen[j].log()))
        return torch.stack(columns, -1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one known category each, (..., g)."""
        drawn = []
        for log_p in self._log_probs():
            flat = log_p.exp().reshape(-1, log_p.shape[-1])
            drawn.append(torch.multinomial(flat, 1, generator=generator).reshape(log_p.shape[:-1]))
        return torch.stack(drawn, -1).to(self.logits.dtype)


class Categorical(nn.Module):
    """Categorical columns: a softmax over the known categories, and a fixed mass for an unseen one."""

    unseen: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.sizes = tuple(len(c.categories) for c in columns)
        self.width = sum(self.sizes)
        self.register_buffer("unseen", torch.tensor([c.unseen for c in columns]))

    def forward(self, h: Tensor) -> ColumnsDistribution:
        """Return the columns' distribution for decoder outputs (..., sum of sizes)."""
        return Categories(h, self.sizes, self.unseen)


@dataclass(frozen=True)
class Binaries:
    """Two-valued columns by the logit of the second value; `unseen` (g,)."""

    logits: Tensor
    unseen: Tensor

    @property
    def mean(self) -> Tensor:
        """The more probable value, 0 or 1, (..., g)."""
        return (self.logits > 0).to(self.logits.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log probabilities of x in {0, 1, 2 = unseen}, (..., g)."""
        sign = 2.0 * x.nan_to_num(0.0).clamp(max=1.0) - 1.0
        known = F.logsigmoid(sign * self.logits) + torch.log1p(-self.unseen)
        return torch.where(x > 1.5, self.unseen.log(), known)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw 0 or 1 each, (..., g)."""
        return torch.bernoulli(self.logits.sigmoid(), generator=generator)


class Bernoulli(nn.Module):
    """Two-valued columns, and a fixed mass for a third, unseen value."""

    unseen: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.width = len(columns)
        self.register_buffer("unseen", torch.tensor([c.unseen for c in columns]))

    def forward(self, h: Tensor) -> ColumnsDistribution:
        """Return the columns' distribution for decoder outputs (..., g)."""
        return Binaries(h, self.unseen)


@dataclass(frozen=True)
class Counts:
    """Counts n whose log(1 + n) is Gaussian before rounding; `center` and `scale` (g,) standardise log(1 + n).

    P(n) is the Gaussian mass of the numbers that round to n, 0 taking all below: a distribution over 0, 1, 2, ... that
    sums to 1 whatever the noise, narrower than Poisson's or far wider.
    """

    location: Tensor
    noise: Tensor
    center: Tensor
    scale: Tensor
    unseen: Tensor

    @property
    def mean(self) -> Tensor:
        """The median count, (..., g); the mean of so skewed a distribution describes no cell."""
        return self._rounded(self.location)

    def _rounded(self, standardised: Tensor) -> Tensor:
        log1p = (self.center + self.scale * standardised).clamp(max=LARGEST_LOG_COUNT)
        return log1p.expm1().round().clamp(min=0.0)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log probabilities, (..., g), of counts, or of -1 = no count.

        Computed in float64, where the mass of a narrow cell survives (Apple's GPUs have none and lose digits).
        """
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        count = x.nan_to_num(0.0).clamp(min=0.0).to(wide)
        edges = [(edge.log() - self.center.to(wide)) / self.scale.to(wide) for edge in (count + 0.5, count + 1.5)]
        edges[0] = torch.where(count > 0, edges[0], FAR_BELOW)
        a, b = ((edge - self.location.to(wide)) / self.noise.to(wide) for edge in edges)
        value = _log_normal_mass(a, b).to(self.location.dtype)
        return torch.where(x < 0, self.unseen.log(), value + torch.log1p(-self.unseen))

    def of(self, columns: Sequence[int]) -> Counts:
        """Return the distribution of some of the columns."""
        return replace(self, **{field.name: getattr(self, field.name)[..., columns] for field in fields(self)})

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one count each, (..., g)."""
        return self._rounded(self.location + self.noise * torch.randn(self.location.shape, generator=generator))


def _log_normal_mass(a: Tensor, b: Tensor) -> Tensor:
    """Return log of the standard normal mass between a < b, exactly in either tail.

    A cell under 1e-3 wide is density times width, whose relative error is under 1e-6 within five standard deviations
    and harmless beyond; the difference of two almost equal masses would lose all digits there.
    """
    if a.dtype == torch.float64 and a.device.type == "cpu" and not a.requires_grad and used():
        a, b = a.contiguous(), b.contiguous()
        assert a.shape == b.shape
        found = torch.empty_like(a)
        here().normal_masses(a.data_ptr(), b.data_ptr(), a.numel(), found.data_ptr())
        return found
    width = b - a
    narrow = width < 1e-3
    middle = torch.where(narrow, 0.5 * (a + b), 0.0)
    density = -0.5 * middle.square() - HALF_LOG_2PI + torch.where(narrow, width, 1.0).log()
    # in the upper tail both masses are close to 1: the mirrored interval has the same mass and keeps its digits
    mirrored = a > 0
    low, high = torch.where(mirrored, -b, a), torch.where(mirrored, -a, b)
    low, high = torch.where(narrow, -1.0, low), torch.where(narrow, 1.0, high)
    upper = torch.special.log_ndtr(high)
    difference = torch.special.log_ndtr(low) - upper
    return torch.where(narrow, density, upper + torch.log1p(-difference.clamp(max=-1e-12).exp()))


class RoundedLogNormal(nn.Module):
    """Counts: log(1 + n) is Gaussian before rounding, with one learned noise level a column, mean from the decoder.

    Unlike a Poisson or negative binomial it can be narrower than its mean: a whole number that the other columns
    determine is then known to the unit. A fixed mass is kept for cells that are no counts.
    """

    center: Tensor
    scale: Tensor
    unseen: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.width = len(columns)
        self.noise_log = nn.Parameter(torch.full((self.width,), -0.5))
        self.register_buffer("center", torch.tensor([c.center for c in columns]))
        self.register_buffer("scale", torch.tensor([c.scale for c in columns]))
        self.register_buffer("unseen", torch.tensor([c.unseen for c in columns]))

    def forward(self, h: Tensor) -> ColumnsDistribution:
        """Return the columns' distribution for decoder outputs (..., g), which are standardised log counts."""
        return Counts(h, NOISE_FLOOR + self.noise_log.exp(), self.center, self.scale, self.unseen)


@dataclass(frozen=True)
class ManyZeros(Counts):
    """Counts that are 0 with an extra probability, given as a logit: P(n) = p [n = 0] + (1 - p) P'(n)."""

    gate: Tensor

    @property
    def mean(self) -> Tensor:
        """The median count, (..., g)."""
        zero = self.gate.sigmoid()
        rest = ((0.5 - zero) / (1.0 - zero)).clamp(1e-6, 1.0)
        return torch.where(zero >= 0.5, 0.0, self._rounded(self.location + self.noise * torch.special.ndtri(rest)))

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log probabilities, (..., g), of counts, or of -1 = no count."""
        inner = super().log_prob(x)
        counted = F.logsigmoid(-self.gate) + inner
        zero = torch.logaddexp(F.logsigmoid(self.gate) + torch.log1p(-self.unseen), counted)
        return torch.where(x < 0, inner, torch.where(x.nan_to_num(0.0) > 0, counted, zero))

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one count each, (..., g)."""
        zero = torch.bernoulli(self.gate.sigmoid(), generator=generator) > 0
        return torch.where(zero, 0.0, super().sample(generator))


class ZeroInflated(RoundedLogNormal):
    """Rounded log-normal counts with an extra probability of 0, from the decoder.

    Amounts are 0 for most rows and large for the others, where they are not: one log-normal must be wide enough for
    both (Lambert 1992, Zero-inflated Poisson regression, has the same remedy for another distribution).
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self.width = 2 * len(columns)

    def forward(self, h: Tensor) -> ColumnsDistribution:
        """Return the columns' distribution for decoder outputs (..., 2 g): standardised log counts, then logits."""
        location, gate = h.chunk(2, -1)
        return ManyZeros(location, NOISE_FLOOR + self.noise_log.exp(), self.center, self.scale, self.unseen, gate)


LIKELIHOODS: dict[str, Callable[..., nn.Module]] = {
    "gaussian": Gaussian,
    "student_t": StudentT,
    "fixed_gaussian": FixedGaussian,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "rounded_log_normal": RoundedLogNormal,
    "zero_inflated": ZeroInflated,
}
"""Heads by name; each takes its columns."""

HEAD_OF_KIND = {"binary": "bernoulli", "categorical": "categorical"}


class TableLikelihood(nn.Module):
    """p(x|z) of a table: one head for each kind of column, side by side.

    Args:
        columns: The m modelled columns.
        continuous: Head of continuous columns: "student_t", "gaussian" or "fixed_gaussian".
        variance: Noise variance of "fixed_gaussian".
        counts: Head of count columns: "zero_inflated" or "rounded_log_normal".
    """

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        continuous: str = "gaussian",
        variance: float = 1.0,
        counts: str = "rounded_log_normal",
    ) -> None:
        super().__init__()
        head_of = {**HEAD_OF_KIND, "continuous": continuous, "count": counts}
        groups: dict[str, list[int]] = {}
        for j, column in enumerate(columns):
            groups.setdefault(head_of[column.kind], []).append(j)
        extra = {"fixed_gaussian": {"variance": variance}}
        self.heads = nn.ModuleDict(
            {name: LIKELIHOODS[name]([columns[j] for j in js], **extra.get(name, {})) for name, js in groups.items()}
        )
        self.widths = [int(head.width) for head in self.heads.values()]  # type: ignore[arg-type]
        self.width = sum(self.widths)
        self.positions = [j for js in groups.values() for j in js]
        self.groups = list(groups.values())
        order = sorted(range(len(self.positions)), key=self.positions.__getitem__)
        self._back = None if order == list(range(len(order))) else order

    def _distributions(self, h: Tensor) -> list[ColumnsDistribution]:
        return [head(part) for head, part in zip(self.heads.values(), h.split(self.widths, -1), strict=True)]

    def _in_order(self, parts: list[Tensor]) -> Tensor:
        joined = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        return joined if self._back is None else joined[..., self._back]

    def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
        """Return log p(x_c|z), (..., n, m), for decoder outputs (..., n, width) and rows (n, m); 0 where missing."""
        filled, missing = x.nan_to_num(0.0), x.isnan()
        alone = len(self.groups) == 1
        parts = [
            d.log_prob(filled if alone else filled[..., js])
            for d, js in zip(self._distributions(h), self.groups, strict=True)
        ]
        return self._in_order(parts).masked_fill(missing, 0.0)

    def log_prob_of_counts(self, h: Tensor, x: Tensor, columns: Sequence[int]) -> Tensor:
        """Return `log_prob` of some count columns alone, (..., n, c), for their cells (n, c)."""
        pairs = zip(self._distributions(h), self.groups, strict=True)
        ((counts, group),) = ((d, js) for d, js in pairs if isinstance(d, Counts))
        alone = counts.of([group.index(column) for column in columns])
        return alone.log_prob(x.nan_to_num(0.0)).masked_fill(x.isnan(), 0.0)

    def mean(self, h: Tensor) -> Tensor:
        """Return expected cells, encoded, (..., m)."""
        return self._in_order([d.mean for d in self._distributions(h)])

    def sample(self, h: Tensor, generator: torch.Generator) -> Tensor:
        """Return one draw of each cell, encoded, (..., m)."""
        return self._in_order([d.sample(generator) for d in self._distributions(h)])
