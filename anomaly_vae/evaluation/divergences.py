r"""How far one distribution is from another, and how surprised a model is: divergences, log-likelihood, perplexity.

.. math::
    \mathrm{KL}(p \| q) = E_p[\log p - \log q], \qquad
    \mathrm{JS}(p, q) = \tfrac12 \mathrm{KL}(p \| m) + \tfrac12 \mathrm{KL}(q \| m), \quad m = \tfrac12 (p + q)

Distributions are those of `torch.distributions`, whose closed forms are used where there is one; where there is none
the expectation is a mean over draws, and comes with its standard error. Give parameters in float64 where digits matter.
KL is not symmetric and has no upper bound; JS is symmetric and at most log 2 nats.

References:
    Kullback & Leibler (1951), On information and sufficiency.
    Lin (1991), Divergence measures based on the Shannon entropy, eq. 3.2 with equal weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, kl_divergence

from ..errors import ConfigError, ShapeError

CLOSED, SAMPLED = "closed form", "Monte Carlo"
LARGEST_JS = math.log(2.0)
"""JS of distributions that never overlap, nats."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A divergence and what is known of its error.

    Attributes:
        value: Nats; infinite where p has mass that q has not (KL alone).
        se: Standard error of a mean over draws; 0 where the value is exact.
        method: "closed form" or "Monte Carlo".
        draws: Draws of each distribution behind it; 0 where the value is exact.
    """

    value: float
    se: float
    method: str
    draws: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON has a word for: None where a number is not finite."""
        facts = dataclasses.asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}


@dataclass(frozen=True, kw_only=True)
class MeanLogLikelihood:
    """The mean log-likelihood of test rows.

    Attributes:
        value: Mean log p(x), nats a row.
        se: Its standard error over the choice of rows; NaN for one row.
        bits_per_dimension: -value / (m log 2).
        rows: Rows n.
    """

    value: float
    se: float
    bits_per_dimension: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON has a word for."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How many equally likely values a categorical column is as uncertain as, to a model.

    Attributes:
        name: The column.
        value: exp of minus the mean log probability of its cells: 1 = certain and right.
        se: Its standard error, by the delta method; NaN for one cell.
        alone: The same for the best guess that looks at no other column: the exponential of the column's entropy. A
            model with more than this has learned less than a count.
        cells: Cells that are there.
    """

    name: str
    value: float
    se: float
    alone: float
    cells: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON has a word for."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(self).items()}


def kl(p: Distribution, q: Distribution, *, draws: int = 100_000, seed: int = 0) -> Divergence:
    r"""Return KL(p || q), in closed form where there is one.

    Of Gaussians in d dimensions it is
    :math:`\tfrac12 [\mathrm{tr}(\Sigma_q^{-1} \Sigma_p) + |\mu_q - \mu_p|^2_{\Sigma_q^{-1}} - d +
    \log \det \Sigma_q - \log \det \Sigma_p]`.

    Args:
        p: The distribution that draws come from; a batch of independent ones counts as one of all.
        q: The one it is measured by, over the same values.
        draws: Draws where there is no closed form, at least 2.
        seed: Of the draws.

    Raises:
        ConfigError: Fewer than 2 draws.
        ShapeError: They are distributions over values of different shapes.

    Example:
        >>> from torch.distributions import Normal
        >>> round(kl(Normal(0.0, 1.0), Normal(1.0, 1.0)).value, 6)
        0.5
    """
    _check(p, q, draws)
    try:
        return Divergence(value=float(kl_divergence(p, q).sum()), se=0.0, method=CLOSED, draws=0)
    except NotImplementedError:
        x = _drawn(p, draws, seed)
        return _sampled(draws, _total(p, x) - _total(q, x))


def js(p: Distribution, q: Distribution, *, draws: int = 100_000, seed: int = 0) -> Divergence:
    """Return the Jensen-Shannon divergence: exact for Bernoulli and categorical, else by draws (Gaussians have none).

    Args:
        p: A distribution; a batch of independent ones counts as one of all, which has no closed form.
        q: Another over the same values.
        draws: Draws of each where there is no closed form, at least 2.
        seed: Of the draws.

    Raises:
        ConfigError: Fewer than 2 draws.
        ShapeError: They are distributions over values of different shapes.

    Example:
        >>> from torch.distributions import Categorical
        >>> halves, other = Categorical(torch.tensor([1.0, 0.0])), Categorical(torch.tensor([0.0, 1.0]))
        >>> round(js(halves, other).value, 6)
        0.693147
    """
    _check(p, q, draws)
    for kind in (Bernoulli, Categorical):
        if isinstance(p, kind) and isinstance(q, kind) and p.batch_shape == torch.Size([]) == q.batch_shape:
            return Divergence(value=_js_of_masses(_masses(p), _masses(q)), se=0.0, method=CLOSED, draws=0)
    parts = []
    for i, (one, other) in enumerate(((p, q), (q, p))):
        x = _drawn(one, draws, seed + i)
        own, others = _total(one, x), _total(other, x)
        parts.append(0.5 * (own - torch.logaddexp(own, others) + LARGEST_JS))
    return _sampled(draws, *parts)


def mean_log_likelihood(log_likelihood: ArrayLike, *, dimensions: int) -> MeanLogLikelihood:
    """Return the mean log-likelihood of test rows with its error, and in bits per dimension.

    Args:
        log_likelihood: log p(x) of each row, (n,), nats.
        dimensions: Columns or pixels m of a row.

    Raises:
        ShapeError: There is no row, or the array is not one-dimensional.

    Example:
        >>> mean_log_likelihood([-2.0, -4.0], dimensions=2).value
        -3.0
    """
    values = np.asarray(log_likelihood, dtype=np.float64)
    if values.ndim != 1 or not len(values) or dimensions < 1:
        raise ShapeError(
            f"log-likelihoods must have shape (n,) with n >= 1, of rows of at least 1 dimension, got {values.shape} "
            f"and {dimensions}. Pass one for each row."
        )
    mean = float(values.mean())
    se = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    bits = -mean / (dimensions * math.log(2.0))
    return MeanLogLikelihood(value=mean, se=se, bits_per_dimension=bits, rows=len(values))


def perplexities(log_probabilities: ArrayLike, cells: ArrayLike, names: Sequence[str]) -> tuple[Perplexity, ...]:
    """Return the perplexity of each categorical column.

    Args:
        log_probabilities: log p(x_c | what the model knew) of each cell, (n, c), nats.
        cells: Codes of the cells' values, (n, c), NaN where a cell is missing: such cells do not count.
        names: The columns' names, c.

    Raises:
        ShapeError: The arrays differ in shape.

    Example:
        >>> found = perplexities(np.log([[0.5], [0.5]]), [[0.0], [1.0]], ["side"])[0]
        >>> round(found.value, 3), round(found.alone, 3)
        (2.0, 2.0)
    """
    log_p, codes = np.asarray(log_probabilities, dtype=np.float64), np.asarray(cells, dtype=np.float64)
    if log_p.ndim != 2 or log_p.shape != codes.shape or log_p.shape[1] != len(names):
        raise ShapeError(
            f"log probabilities, cells and names must be of the same columns, got {log_p.shape}, {codes.shape} and "
            f"{len(names)}. Pass (n, c), (n, c) and c."
        )
    found = []
    for name, values, column in zip(names, log_p.T, codes.T, strict=True):
        there = ~np.isnan(column)
        n = int(there.sum())
        if not n:
            found.append(Perplexity(name=name, value=math.nan, se=math.nan, alone=math.nan, cells=0))
            continue
        with np.errstate(over="ignore"):  # a cell that the model calls impossible: infinitely perplexed
            value = float(np.exp(-values[there].mean()))
        spread = float(values[there].std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        shares = np.unique(column[there], return_counts=True)[1] / n
        alone = float(np.exp(-(shares * np.log(shares)).sum()))
        found.append(Perplexity(name=name, value=value, se=value * spread, alone=alone, cells=n))
    return tuple(found)


def _check(p: Distribution, q: Distribution, draws: int) -> None:
    if draws < 2:
        raise ConfigError(f"draws must be at least 2, got {draws}. An error is known from 100000.", draws=draws)
    shapes = [tuple(d.batch_shape + d.event_shape) for d in (p, q)]
    if shapes[0] != shapes[1]:
        raise ShapeError(f"distributions must be over values of one shape, got {shapes[0]} and {shapes[1]}.")


def _drawn(p: Distribution, draws: int, seed: int) -> Tensor:
    """Return draws; `torch.distributions` draw from the global generator, which is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return p.sample((draws,))


def _total(p: Distribution, x: Tensor) -> Tensor:
    """Return the log density of draws (d, ...) in float64, (d,): of all distributions of a batch together."""
    try:
        log_prob = p.log_prob(x)
    except ValueError:  # outside the support of the one although inside that of the other
        inside = p.support.check(x)  # type: ignore[union-attr]
        nearest = x[inside.nonzero()[0, 0]] if inside.any() else p.sample()
        event = inside.reshape(*x.shape[: x.dim() - len(p.event_shape)], *([1] * len(p.event_shape)))
        log_prob = p.log_prob(torch.where(event, x, nearest)).masked_fill(~inside, -torch.inf)
    return log_prob.double().flatten(1).sum(1) if log_prob.dim() > 1 else log_prob.double()


def _sampled(draws: int, *parts: Tensor) -> Divergence:
    """Return the sum of means of independent parts, (draws,) each."""
    value = sum(float(part.mean()) for part in parts)
    se = math.sqrt(sum(float(part.var()) for part in parts) / draws)
    return Divergence(value=value, se=se, method=SAMPLED, draws=draws)


def _masses(p: Distribution) -> Tensor:
    """Return the probabilities of all values of a Bernoulli or categorical distribution, float64."""
    probabilities = p.probs.double()  # type: ignore[attr-defined]
    return torch.stack([1 - probabilities, probabilities]) if isinstance(p, Bernoulli) else probabilities


def _js_of_masses(p: Tensor, q: Tensor) -> float:
    m = 0.5 * (p + q)
    return float(0.5 * sum((torch.xlogy(r, r) - torch.xlogy(r, m)).sum() for r in (p, q)))
