r"""The root: three log densities, and everything else as a reduction of them.

.. math::
    w_i = \log p(x \mid z_i) + \log p(z_i) - \log q(z_i \mid x), \qquad z_i \sim q(z \mid x)

===============  ===================================================  ==========================
reduction        formula                                              function
===============  ===================================================  ==========================
ELBO             mean_i w_i                                           `elbo`
IWAE_k           log (1/k) sum_i exp(w_i)                             `importance_weighted_bound`
beta-ELBO        mean_i log p(x|z_i) - beta * KL                      `beta_elbo`
KL               mean_i [log q(z_i|x) - log p(z_i)]                   `kl`
reconstruction   mean_i log p(x|z_i)                                  `reconstruction`
===============  ===================================================  ==========================

Shapes: k posterior samples, n rows, m columns, l latent width. All values are in nats.

References:
    Kingma & Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.
    Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519, eq. 8.
    Higgins et al. (2017), beta-VAE.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import ShapeError
from .rare_weights import stated_error

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Prior(Protocol):
    """A density of latent codes."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) of codes (..., l), shape (...)."""


class LatentVariableModel(Protocol):
    """What a model must offer for its bounds to be computed."""

    @property
    def prior(self) -> Prior:
        """p(z)."""

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log standard deviation of q(z|x), each (n, l), for rows (n, m)."""

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x_c|z) of each column, (k, n, m), for rows (n, m) and codes (k, n, l); 0 where missing."""


class Terms(NamedTuple):
    """The three log densities at k posterior samples of n rows.

    Attributes:
        log_px: log p(x_c|z_i) of each column, shape (k, n, m); missing cells contribute 0.
        log_pz: log p(z_i), shape (k, n).
        log_qz: log q(z_i|x), shape (k, n).
        z: The samples, shape (k, n, l).
        mean: Posterior means, shape (n, l); of a `LayeredModel` those that the first sample met.
    """

    log_px: Tensor
    log_pz: Tensor
    log_qz: Tensor
    z: Tensor
    mean: Tensor

    @property
    def log_weights(self) -> Tensor:
        """w, shape (k, n)."""
        return self.log_px.sum(-1) + self.log_pz - self.log_qz


@runtime_checkable
class LayeredModel(Protocol):
    """A model whose posterior of some codes depends on other codes, so that it draws them itself.

    Its prior and posterior have no form but the log densities at the samples; what is made of these stays here.
    """

    def terms(
        self,
        x: Tensor,
        noise: Tensor,
        *,
        posterior: tuple[Tensor, Tensor] | None = None,
        prior: Prior | None = None,
    ) -> Terms:
        """Return the three log densities of rows (n, m) at the samples that the noise (k, n, l) picks."""


def terms(
    model: LatentVariableModel,
    x: Tensor,
    noise: Tensor,
    *,
    posterior: tuple[Tensor, Tensor] | None = None,
    prior: Prior | None = None,
) -> Terms:
    """Return the three log densities of each row at the posterior samples that the noise picks.

    Args:
        model: The model.
        x: Encoded rows, shape (n, m), NaN = missing.
        noise: Standard normal draws, (k, n, l), or (k, l) shared by all rows (common random numbers).
        posterior: Mean and log standard deviation, if not the model's for `x`: that of noisy rows in training. Of a
            `LayeredModel`, what its `encoded` returned.
        prior: The prior, if not the model's: one that leaves each row out, in training.

    Raises:
        ShapeError: The noise has neither shape.
    """
    if noise.dim() == 2:
        noise = noise[:, None, :].expand(-1, x.shape[0], -1)
    if isinstance(model, LayeredModel):
        return model.terms(x, noise, posterior=posterior, prior=prior)
    mean, log_scale = posterior or model.posterior(x)
    if noise.dim() != 3 or noise.shape[1:] != mean.shape:
        raise ShapeError(f"noise must have shape (k, {x.shape[0]}, {mean.shape[1]}), got {tuple(noise.shape)}.")
    z = mean + log_scale.exp() * noise
    log_qz = -(0.5 * noise.square() + log_scale + HALF_LOG_2PI).sum(-1)
    return Terms(model.log_px_given_z(x, z), (prior or model.prior).log_prob(z), log_qz, z, mean)


def elbo(log_weights: Tensor) -> Tensor:
    """Return the evidence lower bound of each row, (n,), from log weights (k, n)."""
    return log_weights.mean(0)


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """Return the IWAE bound of each row, (n,), from log weights (k, n): log of the mean weight."""
    return torch.logsumexp(log_weights, 0) - math.log(log_weights.shape[0])


def kl(t: Terms) -> Tensor:
    """Return the Monte-Carlo KL(q(z|x) || p(z)) of each row, (n,)."""
    return (t.log_qz - t.log_pz).mean(0)


def reconstruction(t: Terms) -> Tensor:
    """Return the expected log p(x|z) under the posterior of each row, (n,)."""
    return t.log_px.sum(-1).mean(0)


def beta_elbo(t: Terms, beta: float) -> Tensor:
    """Return the beta-ELBO of each row, (n,); beta = 1 is the ELBO."""
    return reconstruction(t) - beta * kl(t)


def monte_carlo_error(log_weights: Tensor, bound: str) -> Tensor:
    r"""Return the standard error of a bound's estimate, (n,), NaN at k = 1.

    For the ELBO the standard error of a mean. For the importance-weighted bound, as an estimate of log p(x), the delta
    method, :math:`\mathrm{se}(\log \bar v) \approx \mathrm{sd}(v) / (\sqrt{k}\, \bar v)` with :math:`v = e^w`;
    or, where few weights count and it is clearly larger, what log weights so spread leave unseen, bias included
    (`rare_weights`).

    Args:
        log_weights: Shape (k, n).
        bound: "elbo" or "likelihood".
    """
    k = log_weights.shape[0]
    if k == 1:
        return torch.full_like(log_weights[0], torch.nan)
    if bound == "elbo":
        return _deviation(log_weights) / math.sqrt(k)
    return weight_moments(log_weights).error(k)


class WeightMoments(NamedTuple):
    """What the stated error of a likelihood is made of, see `rare_weights.stated_error`; each (n,).

    Attributes:
        delta: The delta method's standard error of the log of the mean weight, nats.
        effective: Effective sample size.
        spread: Standard deviation of the log weights, nats.
        skewness: Their skewness; NaN where they do not vary.
    """

    delta: Tensor
    effective: Tensor
    spread: Tensor
    skewness: Tensor

    def error(self, k: int) -> Tensor:
        """Return the standard error of the log of the mean of k weights, (n,)."""
        return stated_error(*self, k)


def weight_moments(log_weights: Tensor, weights: Tensor | None = None) -> WeightMoments:
    """Return the moments of each row's log weights (k, n), k > 1.

    Args:
        log_weights: Shape (k, n).
        weights: Their exponentials but for a factor of each row's, if known, (k, n).
    """
    k = len(log_weights)
    v = (log_weights - log_weights.amax(0)).exp() if weights is None else weights
    delta = _deviation(v) / (v.mean(0) * math.sqrt(k))
    apart = log_weights - log_weights.mean(0)
    squared = apart.square()
    spread = squared.mean(0).sqrt()
    return WeightMoments(delta, _effective(v), spread, squared.mul_(apart).mean(0) / spread.pow(3))


def reduced(log_weights: Tensor, *, weighted: bool) -> Tensor:
    """Return what a score and its error are made of, (r, n), float64.

    Minus the mean and its standard error; of what is weighted minus the log of the mean weight, and the moments of
    `WeightMoments`. At k = 1 the first alone.

    Args:
        log_weights: Shape (k, n).
        weighted: Whether samples have unequal weights, by their logarithms.
    """
    top, rest = log_weights.amax(0), []
    if weighted:
        # without a row's level, on which nothing else depends, float32 has digits to spare
        apart = log_weights - torch.where(top.isfinite(), top, 0.0)
        weights = apart.exp()
        value = -(top.double() + weights.mean(0, dtype=torch.float64).log())
        if len(apart) > 1:
            rest = [*weight_moments(apart, weights)]
    else:
        value = -log_weights.mean(0, dtype=torch.float64)
        if len(log_weights) > 1:
            rest = [monte_carlo_error(log_weights - top, "elbo")]
    return torch.stack([value, *(part.double() for part in rest)])


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Return Kish's effective sample size :math:`(\sum v)^2 / \sum v^2` of each row's weights, (n,), from 1 to k."""
    return _effective((log_weights - log_weights.amax(0)).exp())


def _effective(weights: Tensor) -> Tensor:
    return weights.sum(0).square() / weights.square().sum(0)


def _deviation(x: Tensor) -> Tensor:
    """Return the standard deviations of columns (k, n), (n,): `x.std(0)`, which takes ten times as long."""
    return ((x - x.mean(0)).square().sum(0) / (len(x) - 1)).sqrt()
