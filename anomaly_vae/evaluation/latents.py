r"""Whether a latent space is well behaved: its agreement with the prior, smoothness, and how tight the bounds are.

The KL term of the ELBO, averaged over rows, is two things at once (Hoffman & Johnson 2016):

.. math:: \tfrac1N \sum_n \mathrm{KL}(q(z \mid x_n) \| p(z)) = I(x; z) + \mathrm{KL}(q(z) \| p(z)), \qquad
    q(z) = \tfrac1N \sum_n q(z \mid x_n)

what codes tell of rows, which is wanted, and how far the aggregated posterior is from the prior, which is what samples
of the prior suffer from.

References:
    Hoffman & Johnson (2016), ELBO surgery: yet another way to carve up the variational evidence lower bound.
    Burda et al. (2016), arXiv:1509.00519. Karras et al. (2019), arXiv:1812.04948, section 4.1 (path lengths).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from ..errors import ShapeError
from .generation import Result

Floats = NDArray[np.float64]

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class PriorAgreement(Result):
    """The mean KL term, carved up; nats. The three are estimated from the same draws, so they add up exactly.

    Attributes:
        kl: Mean KL(q(z|x) || p(z)).
        mutual_information: I(x; z), at most log N.
        marginal_kl: KL(q(z) || p(z)), of the aggregated posterior of the N rows: 0 = samples of the prior are codes of
            rows. With few rows it is too large, for N components cannot fill a space of many dimensions.
        marginal_se: Its standard error over the draws.
        log_rows: log N, the most that the mutual information can be: where it is reached, every row has a place of its
            own, and the other figure is a lower bound on what more rows would leave.
    """

    kl: float
    mutual_information: float
    marginal_kl: float
    marginal_se: float
    log_rows: float


@dataclass(frozen=True, kw_only=True)
class Smoothness(Result):
    """How evenly what is decoded changes along straight lines between codes.

    Attributes:
        detour: Mean length of the path over the distance of its ends: 1 = straight, large = wandering.
        largest_step: Mean of the longest of a path's steps over its mean step: 1 = even; the number of steps = a jump.
        largest_step_low: Lower end of a 95 % interval of the mean over paths.
        largest_step_high: Upper end.
        paths: Paths.
        steps: Steps of each.
    """

    detour: float
    largest_step: float
    largest_step_low: float
    largest_step_high: float
    paths: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class BoundAtK(Result):
    """The importance-weighted bound of k samples, mean over rows.

    Attributes:
        k: Posterior samples.
        value: Mean IWAE_k, nats; at k = 1 the ELBO.
        se: Standard error over rows.
        gap: How much lower it is than the bound of all samples.
        ess: Median effective sample size, from 1 to k.
        unreliable: Share of the rows whose effective sample size is under 5; all of them where k is.
    """

    k: int
    value: float
    se: float
    gap: float
    ess: float
    unreliable: float


def prior_agreement(codes: ArrayLike, means: ArrayLike, log_scales: ArrayLike, log_prior: ArrayLike) -> PriorAgreement:
    """Return how far the aggregated posterior of rows is from the prior.

    Args:
        codes: One draw z_n of each row's posterior, (n, l).
        means: Posterior means, (n, l).
        log_scales: Posterior log standard deviations, (n, l).
        log_prior: log p(z_n), (n,).

    Raises:
        ShapeError: The arrays do not fit together, or there is no row.
    """
    z, mean, log_scale = (np.asarray(part, dtype=np.float64) for part in (codes, means, log_scales))
    prior = np.asarray(log_prior, dtype=np.float64)
    if z.ndim != 2 or not len(z) or not z.shape == mean.shape == log_scale.shape or prior.shape != (len(z),):
        raise ShapeError(
            f"codes, means and log scales must have one shape (n, l), and log prior (n,), got {z.shape}, {mean.shape}, "
            f"{log_scale.shape} and {prior.shape}. Give those of the same rows."
        )
    precision = np.exp(-2.0 * log_scale)
    constant = -(0.5 * np.square(mean) * precision + log_scale + HALF_LOG_2PI).sum(1)
    n = len(z)
    own, mixed = np.empty(n), np.empty(n)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        part = z[rows]
        joint = constant + part @ (mean * precision).T - 0.5 * np.square(part) @ precision.T
        own[rows] = joint[np.arange(len(part)), np.arange(start, start + len(part))]
        mixed[rows] = logsumexp(joint, axis=1) - math.log(n)
    gap = mixed - prior
    return PriorAgreement(
        kl=float((own - prior).mean()), mutual_information=float((own - mixed).mean()), marginal_kl=float(gap.mean()),
        marginal_se=float(gap.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan, log_rows=math.log(n),
    )  # fmt: skip


def smoothness(paths: ArrayLike) -> Smoothness:
    """Return how evenly decoded rows change along interpolations.

    Args:
        paths: Decoded points along each path, as features, (p, t + 1, d); paths whose ends coincide do not count.

    Raises:
        ShapeError: Not of three dimensions, fewer than 2 steps, or no path that goes anywhere.

    Example:
        >>> straight = np.linspace(0.0, 1.0, 11)[None, :, None] * np.ones(3)
        >>> found = smoothness(straight)
        >>> round(found.detour, 6), round(found.largest_step, 6)
        (1.0, 1.0)
    """
    points = np.asarray(paths, dtype=np.float64)
    if points.ndim != 3 or points.shape[1] < 3:
        raise ShapeError(f"paths must have shape (p, t + 1 >= 3, d), got {points.shape}. Take more steps.")
    steps = np.linalg.norm(np.diff(points, axis=1), axis=2)
    apart = np.linalg.norm(points[:, -1] - points[:, 0], axis=1)
    moving = (apart > 0) & (steps.sum(1) > 0)
    if not moving.any():
        raise ShapeError("paths must lead somewhere, got only ones whose ends are the same. Give other codes.")
    steps, apart = steps[moving], apart[moving]
    largest = steps.max(1) / steps.mean(1)
    error = 1.96 * float(largest.std(ddof=1) / math.sqrt(len(largest))) if len(largest) > 1 else math.nan
    mean = float(largest.mean())
    return Smoothness(
        detour=float((steps.sum(1) / apart).mean()), largest_step=mean, largest_step_low=mean - error,
        largest_step_high=mean + error, paths=int(moving.sum()), steps=points.shape[1] - 1,
    )  # fmt: skip


def bounds_by_k(log_weights: ArrayLike, ks: tuple[int, ...] = (1, 4, 16, 64, 256)) -> tuple[BoundAtK, ...]:
    """Return the importance-weighted bound for growing numbers of samples.

    Each uses all samples at hand, in as many groups of k as there are, so that small k have small errors too.

    Args:
        log_weights: w, (k, n), nats.
        ks: Numbers of samples; those above the number at hand are left out.

    Raises:
        ShapeError: Not of two dimensions, or empty.
    """
    w = np.asarray(log_weights, dtype=np.float64)
    if w.ndim != 2 or not w.size:
        raise ShapeError(f"log weights must have shape (k, n), got {w.shape}. Give k samples of n rows.")
    total, n = w.shape
    best = float((logsumexp(w, axis=0) - math.log(total)).mean())
    found = []
    for k in ks:
        if k > total:
            break
        groups = w[: total // k * k].reshape(-1, k, n)
        bound = (logsumexp(groups, axis=1) - math.log(k)).mean(0)
        v = np.exp(groups - groups.max(1, keepdims=True))
        ess = (np.square(v.sum(1)) / np.square(v).sum(1)).mean(0)
        value = float(bound.mean())
        se = float(bound.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        found.append(
            BoundAtK(
                k=k, value=value, se=se, gap=best - value, ess=float(np.median(ess)), unreliable=float((ess < 5).mean())
            )
        )
    return tuple(found)
