"""The figures of one model: the same ones, found the same way, for every kind of model that has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..detection.adaptive import log_likelihoods
from ..detection.scores import densities_of
from ..evaluation.divergences import mean_log_likelihood
from ..evaluation.metrics import auroc_ap
from ..models import bounds
from ..models.conditional import with_classes
from ..models.family import Model
from ..models.vae import VAE, active_units
from ..options.understanding import CompareConfig
from .prepared import Prepared, cell_errors
from .results import Figures

ELBO_SAMPLES = 16
BOOTSTRAPS = 200
BLOCK = 256
LIKELIHOOD, ERROR = "log-likelihood", "reconstruction error"


@dataclass(frozen=True, eq=False)
class Density:
    """What a model with a density says of the rows of a part.

    Attributes:
        log_likelihood: log p(x), nats, (n,).
        mc_se: Its Monte-Carlo standard error, (n,).
        elbo: (n,).
    """

    log_likelihood: NDArray[np.float64]
    mc_se: NDArray[np.float64]
    elbo: NDArray[np.float64]

    @classmethod
    def exact(cls, log_likelihood: Tensor) -> Density:
        """Return that of a model whose likelihood is known."""
        values = log_likelihood.double().numpy()
        return cls(values, np.zeros(len(values)), values)


def figures(
    data: Prepared,
    *,
    seconds: float,
    parameters: int,
    latent: int | None,
    reconstruct: Callable[[str], Tensor] | None = None,
    density: Callable[[str], Density] | None = None,
    means: NDArray[np.float32] | None = None,
    exact: bool = False,
    principal_angle: float | None = None,
) -> Figures:
    """Return a model's figures.

    Args:
        data: The data set.
        seconds: Training.
        parameters: Numbers that training has set.
        latent: Latent width.
        reconstruct: Errors of the cells of a part, (n, m), NaN where missing.
        density: What the model says of a part; None where it is no density.
        means: Posterior means of the test rows, (n, l).
        exact: Whether the likelihood is exact.
        principal_angle: Degrees.
    """
    facts: dict[str, object] = {}
    ranked: dict[str, NDArray[np.float64]] = {}
    parts = ("test", "anomalous") if len(data.parts["anomalous"]) else ("test",)
    if reconstruct is not None:
        errors = {part: reconstruct(part) for part in parts}
        facts |= {"reconstruction_error": float(errors["test"].nanmean()), "score": ERROR}
        ranked = {part: np.nan_to_num(value.nanmean(1).numpy()) for part, value in errors.items()}
    if density is not None:
        known = {part: density(part) for part in parts}
        test = known["test"]
        mean = mean_log_likelihood(test.log_likelihood, dimensions=data.dimensions)
        facts |= {
            "log_likelihood": mean.value, "log_likelihood_se": mean.se, "bits_per_dimension": mean.bits_per_dimension,
            "mc_se": float(np.sqrt(np.square(test.mc_se).sum()) / len(test.mc_se)), "elbo": float(test.elbo.mean()),
            "score": LIKELIHOOD,
        }  # fmt: skip
        ranked = {part: -value.log_likelihood for part, value in known.items()}
    if len(ranked) > 1:
        scores = np.concatenate([ranked["test"], ranked["anomalous"]])
        anomalous = np.arange(len(scores)) >= len(ranked["test"])
        found = auroc_ap(anomalous, np.clip(scores, -1e300, 1e300), n_boot=BOOTSTRAPS)
        facts |= {"auroc": found.auroc, "auroc_low": found.auroc_low, "auroc_high": found.auroc_high}
    if means is not None:
        facts["active_units"] = active_units(torch.from_numpy(means))
    return Figures(
        seconds=seconds, parameters=parameters, latent=latent, exact=exact, principal_angle=principal_angle,
        **facts,  # type: ignore[arg-type]
    )  # fmt: skip


@torch.inference_mode()
def network_errors(model: Model, x: Tensor, data: Prepared) -> Tensor:
    """Return the errors of cells reconstructed from the posterior means of rows, (n, m).

    Args:
        model: Trained.
        x: Rows; of a conditional model with their classes.
        data: For the columns.
    """
    parts = []
    for block in x.split(BLOCK):
        z = model.posterior(block)[0]
        given = getattr(model, "reconstruct_given", None)
        expected = model.reconstruct(z) if given is None else given(z, block)
        parts.append(cell_errors(block[:, : expected.shape[1]], expected, data.columns))  # without a class
    return torch.cat(parts)


def network_density(model: Model, x: Tensor, config: CompareConfig) -> Density:
    """Return what a network says of rows: its ELBO, and log p(x) by importance sampling to the settings' error.

    Images keep the encoder's posteriors: some thousand passes through a decoder for each are no part of a comparison.
    """
    found = log_likelihoods(
        model, x, mc_se=config.mc_se, max_k=config.max_k, seed=config.seed, own_posteriors=isinstance(model, VAE)
    )
    noise = torch.randn(ELBO_SAMPLES, model.latent, generator=torch.Generator().manual_seed(config.seed))
    elbo = bounds.elbo(densities_of(model, x, noise)[1])
    return Density(found.value, found.mc_se, elbo.numpy())


def marginal_density(model: Model, x: Tensor, shares: NDArray[np.float64], config: CompareConfig) -> Density:
    r"""Return what a conditional model says of rows without classes.

    .. math:: \log p(x) = \log \sum_y p(y)\, p(x \mid y)

    Args:
        model: Of log p(x | class).
        x: Rows, (n, m).
        shares: p(y), (classes,); classes of none are left out.
        config: Of the estimates.
    """
    each = [
        (math.log(share), network_density(model, with_classes(x, torch.full((len(x),), float(y))), config))
        for y, share in enumerate(shares)
        if share > 0
    ]
    joint = np.stack([log_share + d.log_likelihood for log_share, d in each])
    value = np.logaddexp.reduce(joint)
    responsibility = np.exp(joint - value)
    mc_se = np.sqrt((np.square(responsibility) * np.stack([np.square(d.mc_se) for _, d in each])).sum(0))
    elbo = np.logaddexp.reduce(np.stack([log_share + d.elbo for log_share, d in each]))
    return Density(value, mc_se, elbo)
