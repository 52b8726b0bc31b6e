"""Densities of latent codes: the prior p(z), a registry of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .bounds import HALF_LOG_2PI

EXEMPLARS = 512
"""Training rows whose posteriors make up the aggregated posterior."""
NARROWEST = -3.5
"""Components have a log standard deviation of at least this: in float32 narrower ones lose digits, and a density that
spikes at single training rows is no prior."""
NARROWEST_EXEMPLAR = -2.0
"""The same for the widths that exemplars share."""


class StandardNormal(nn.Module):
    """N(0, I).

    Example:
        >>> round(StandardNormal(2).log_prob(torch.zeros(1, 2)).item(), 4)
        -1.8379
    """

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) of codes (..., l), shape (...)."""
        return -(0.5 * z.square() + HALF_LOG_2PI).sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n codes, shape (n, l)."""
        return torch.randn(n, self.latent, generator=generator)


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of J diagonal Gaussians over codes.

    Attributes:
        means: Shape (J, l).
        log_scales: Shape (J, l), or (1, l) where components are equally wide.
        log_weights: Shape (J,), or (n, J) for weights of each row's own: -inf leaves a component out.
    """

    means: Tensor
    log_scales: Tensor
    log_weights: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) of codes (..., n, l), shape (..., n), by two matrix products."""
        log_scales = self.log_scales.clamp(min=NARROWEST)
        precision = (-2.0 * log_scales).exp()
        weighted = self.means * precision
        constant = -(0.5 * self.means * weighted + log_scales + HALF_LOG_2PI).sum(-1)
        exponent = z @ weighted.T - 0.5 * z.square() @ precision.T + constant
        return torch.logsumexp(exponent + self.log_weights, -1)


class AggregatedPosterior(nn.Module):
    r"""The aggregated posterior of exemplars, :math:`p(z) = \tfrac1J \sum_j q(z \mid x_j)`.

    The likelihood becomes local: a code is probable if it lies where training rows lie. In training each step draws its
    own exemplars and leaves a row itself out (`around`); afterwards a fixed set is kept (`keep`).

    DIFF: each component has its posterior's own variances; the exemplar VAE shares one.

    References:
        Norouzi, Fleet & Norouzi (2020), Exemplar VAE, arXiv:2004.04795.
        Tomczak & Welling (2018), VAE with a VampPrior, arXiv:1705.07120.
    """

    means: Tensor
    log_scales: Tensor
    log_weights: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.register_buffer("means", torch.zeros(EXEMPLARS, latent))
        self.register_buffer("log_scales", torch.zeros(EXEMPLARS, latent))
        log_weights = torch.full((EXEMPLARS,), -torch.inf)
        log_weights[0] = 0.0  # before training: one component, the standard normal
        self.register_buffer("log_weights", log_weights)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) of codes (..., l), shape (...)."""
        return GaussianMixture(self.means, self.log_scales, self.log_weights).log_prob(z)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n codes, shape (n, l)."""
        chosen = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.latent, generator=generator)
        return self.means[chosen] + self.log_scales[chosen].clamp(min=NARROWEST).exp() * noise

    @staticmethod
    def around(posterior: tuple[Tensor, Tensor], own: Tensor) -> GaussianMixture:
        """Return the mixture of these exemplars for one step of training.

        Args:
            posterior: Means and log standard deviations of the exemplars, each (J, l), with their gradients.
            own: Which exemplar is which row of the batch, bool, (n, J): a row is no reason for itself.
        """
        counts = (~own).sum(1, keepdim=True).clamp(min=1)
        return GaussianMixture(*posterior, (-counts.to(posterior[0].dtype).log()).masked_fill(own, -torch.inf))

    @torch.no_grad()
    def keep(self, posterior: tuple[Tensor, Tensor]) -> None:
        """Make up to `EXEMPLARS` posteriors, each (J, l), the prior from now on."""
        count = min(len(posterior[0]), EXEMPLARS)
        self.log_weights.fill_(-torch.inf)[:count] = -math.log(count)
        self.means[:count], self.log_scales[:count] = (part[:count] for part in posterior)


@dataclass(frozen=True)
class Centered:
    """A mixture of codes measured from a middle, (l,)."""

    middle: Tensor
    mixture: GaussianMixture

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) of codes (..., n, l), shape (..., n)."""
        return self.mixture.log_prob(z - self.middle)


class Exemplars(nn.Module):
    r"""A mixture of equal Gaussians around the posterior means of exemplars, of one learned width in each dimension.

    .. math:: p(z) = \tfrac1J \sum_j N(z; \mu_j, \mathrm{diag}(\sigma^2))

    Posteriors' own widths, as `AggregatedPosterior` has them, leave gaps between the exemplars where codes have many
    dimensions; a width of the prior's own is learned with the rest and closes them. Codes are measured from the middle
    of the exemplars, and widths kept above `NARROWEST_EXEMPLAR`: nothing else holds codes near 0, and far from it
    float32 has no digits left for their distances.

    Args:
        latent: Latent width l.
        count: Exemplars J that are kept.

    References:
        Norouzi, Fleet & Norouzi (2020), Exemplar VAE, arXiv:2004.04795, section 3.
    """

    means: Tensor

    def __init__(self, latent: int, count: int = EXEMPLARS) -> None:
        super().__init__()
        self.latent = latent
        self.log_scale = nn.Parameter(torch.zeros(1, latent))
        self.register_buffer("means", torch.zeros(count, latent))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) of codes (..., l), shape (...)."""
        return self.around(self.means).log_prob(z)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n codes, shape (n, l)."""
        chosen = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn(n, self.latent, generator=generator)
        return self.means[chosen] + self.log_scale.clamp(min=NARROWEST_EXEMPLAR).exp() * noise

    def around(self, means: Tensor, own: Tensor | None = None) -> Centered:
        """Return the mixture around these means (J, l); `own` as in `AggregatedPosterior`, for one step of training."""
        if own is None:
            own = torch.zeros(1, len(means), dtype=torch.bool, device=means.device)
        counts = (~own).sum(1, keepdim=True).clamp(min=1)
        log_weights = (-counts.to(means.dtype).log()).masked_fill(own, -torch.inf)
        middle = means.mean(0).detach()
        log_scale = self.log_scale.clamp(min=NARROWEST_EXEMPLAR)
        return Centered(middle, GaussianMixture(means - middle, log_scale, log_weights))

    @torch.no_grad()
    def keep(self, means: Tensor) -> None:
        """Make these means, (J, l), the exemplars from now on."""
        self.means = means.clone()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Take as many exemplars as a file holds: of few training rows there are fewer than at first."""
        held = state_dict.get(f"{prefix}means")
        if isinstance(held, Tensor) and held.dim() == 2 and len(held) and held.shape[1] == self.latent:
            self.means = torch.empty_like(self.means[:1]).expand(len(held), -1).clone()
        super()._load_from_state_dict(state_dict, prefix, *rest)


Prior = StandardNormal | AggregatedPosterior | Exemplars

PRIORS: dict[str, Callable[[int], Prior]] = {
    "standard_normal": StandardNormal,
    "aggregated_posterior": AggregatedPosterior,
    "exemplars": Exemplars,
}
"""Constructors by name; each takes the latent width."""
