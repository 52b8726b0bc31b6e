"""Weights found anew before each epoch of training, as in DB-VAE, with what keeps them from running away.

The published recipe feeds on itself: rows of large weight move the latent, where they then lie alone and get a larger
weight still. Three things hold it: each update goes only part of the way (in logarithms), the effective sample size has
a floor, and rows that the model finds least probable are never weighted up.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError
from ..models import bounds
from ..models.family import Model
from ..options import ResampleConfig
from .density import fit_density
from .resampling import Floats, weigh
from .spaces import fit_space
from .strata import Strata

ROWS = 4096
"""Rows encoded at once."""
SAMPLES = 1
"""Posterior samples behind the ELBO that guards."""


@dataclass(frozen=True, eq=False)
class InTrainingWeights:
    """Weights of training rows by the model as it is: for `training.fit(..., weights=...)`.

    Args:
        config: Density, floor, caps. Its `guard` is here the share of rows of the lowest ELBO that are not weighted up;
            its space is the latent.
        labels: Label of each training row, (n,), if there are any.
        damping: Share of the way, in logarithms, that an update goes; 1 = all of it, as published.
        start: Epoch before which all weights are 1, so that there is a latent to speak of.

    Example:
        >>> InTrainingWeights(ResampleConfig(density="dbvae"), damping=0.5).config.density
        'dbvae'

    References:
        Amini et al. (2019), Uncovering and mitigating algorithmic bias through learned latent structure, algorithm 1.
    """

    config: ResampleConfig = dataclasses.field(default_factory=lambda: ResampleConfig(density="dbvae"))
    labels: NDArray[np.generic] | None = None
    damping: float = 0.5
    start: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise ConfigError(f"damping must be a share above 0 and at most 1, got {self.damping!r}. Use 0.5.")
        if self.config.space not in (None, "latent"):
            raise ConfigError(
                f"space must be latent where the model is still learning, got {self.config.space!r}. Change it."
            )

    def __repr__(self) -> str:
        labels = (
            None if self.labels is None else hashlib.sha256(np.asarray(self.labels).astype(str).tobytes()).hexdigest()
        )
        return f"InTrainingWeights({self.config!r}, labels={labels}, damping={self.damping}, start={self.start})"

    @torch.no_grad()
    def __call__(self, model: Model, x: Tensor, epoch: int, previous: Tensor | None) -> Tensor:
        """Return the weights of the next epoch, (n,), mean 1.

        Args:
            model: The model in training.
            x: Training rows, (n, m).
            epoch: Number of the next epoch, from 1.
            previous: Weights of the last one, (n,).
        """
        if epoch < self.start:
            return torch.ones(len(x), device=x.device)
        means, log_scales, elbo = _posteriors(model, x, seed=self.config.seed)
        space = fit_space("latent", means)
        strata = Strata.fit(self.labels if self.config.within_class else None)
        of = strata.of(self.labels if self.config.within_class else None, rows=len(x))
        points = space.coordinates(means)
        density = fit_density(points, self.config, strata=strata, of=of, log_scales=space.log_scales(log_scales))
        guards = {}
        if share := self.config.guard_of(images=False):
            guards["lowest ELBO"] = elbo < np.quantile(elbo, share)
        wanted = weigh(density.own, self.config, strata=strata, of=of, guards=guards).weights
        if previous is None or self.damping == 1:
            return torch.from_numpy(wanted).to(x.device)
        tiny = np.finfo(np.float64).tiny
        before = previous.cpu().numpy().astype(np.float64)
        log_mixed = (1 - self.damping) * np.log(before + tiny) + self.damping * np.log(wanted + tiny)
        # a mixture is weighed again, as if it were a density: floor, caps and guards hold for it as well
        again = weigh(-log_mixed, _bounded(self.config), guards=guards).weights
        return torch.from_numpy(again).to(x.device)


def _bounded(config: ResampleConfig) -> ResampleConfig:
    return dataclasses.replace(config, class_mass="kept", ess=None, cap=config.cap, floor=config.floor)


def _posteriors(model: Model, x: Tensor, *, seed: int) -> tuple[Floats, Floats, Floats]:
    """Return posterior means and log scales (n, l), and the ELBO (n,), of training rows."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(SAMPLES, model.latent, generator=generator).to(x.device)
    parts = []
    for rows in x.split(ROWS):
        terms = bounds.terms(model, rows, noise)
        parts.append((*model.posterior(rows), bounds.elbo(terms.log_weights)))
    means, log_scales, elbo = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
    return means, log_scales, elbo
