r"""log p(x) to a stated error: as many posterior samples for each row as its error needs.

Samples are added in chunks, and a row leaves when the standard error of its estimate is within the bound. Of its
weights :math:`v_i = e^{w_i}` only the largest and five sums are kept, so that memory does not grow with the samples.
How many a row gets depends on the row alone: all rows see the same noise, rows that go on are packed into blocks of the
same fixed shape, and so the same row has the same bits whatever batch it came in.

Three of every four samples are drawn wider than the posterior (`models.proposals`). Where the encoder's fits a row
badly, if few of the samples count, or a quarter of those allowed does not suffice, the row gets a posterior of its own
(`models.refinement`), and is estimated by samples of that; of a ladder its samples are annealed (`models.annealing`).
What a bad posterior leaves out, no error of its samples tells.

Stopping by an estimate of the error favours estimates that look good early. Few looks (after every quarter more
samples) keep that small, and an effective sample size too low to know the error by is never taken for an answer.

Shapes: n rows, k posterior samples, l latent width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError
from ..models.annealing import annealed
from ..models.family import Model
from ..models.fused import Rows, Scorer
from ..models.ladder import LadderVAE
from ..models.proposals import widened
from ..models.rare_weights import stated_error
from ..models.refinement import APART, PIXELS, refined, refines
from ..models.threads import side_by_side, threads_worth
from .scores import RELIABLE_SAMPLES, SMALLEST_BLOCK

CHUNK = 64
"""Samples computed at once; the number of samples is a multiple."""
GROUP = 256
"""Rows whose sums are updated at once."""
SPAN = 32 * GROUP
"""Rows that are held at once."""
GROWTH = 4
"""A look at the errors follows every k / GROWTH samples."""
BY_ENCODER = 4
"""The encoder's posteriors are sampled max_k / BY_ENCODER times before rows get their own."""
FITTING = 0.4
"""The share of samples that must count for the encoder's posterior to do. Of an exact one .8 do, as some are wider."""
WALKS = 32
"""Annealed samples of an image between two looks at its error."""
WALK_STEPS = (128, 512)
"""Steps of an annealed sample; an image goes on to more of them if less than `NEAR` of the first `WALKS` count."""
NEAR = 0.3
WALKED = 6
"""Steps that an image may take with walks of one length, in units of max_k."""
ROOTS = 1 << 26
"""Numbers of the roots of covariances that are held at once."""
MAX_K = 4096


@dataclass(frozen=True)
class LogLikelihoods:
    """log p(x) of n rows, with what is known of its error.

    Attributes:
        value: log p(x), nats, high = probable, (n,). It is a lower bound in expectation, tight within its error.
        mc_se: Its standard error, (n,), see `bounds.monte_carlo_error`.
        ess: Effective sample size of the importance weights, (n,).
        k: Posterior samples of the estimate, (n,), integer; of a row with a posterior of its own, those of it alone; of
            one whose samples are annealed, annealed ones.
        reached: Whether the error is within the bound, with an effective sample size to know it by, (n,).
    """

    value: NDArray[np.float64]
    mc_se: NDArray[np.float64]
    ess: NDArray[np.float64]
    k: NDArray[np.int64]
    reached: NDArray[np.bool_]


class RunningWeights:
    """The largest log weight so far, and sums: of weights and their squares relative to it, and of log weights.

    Of the latter the mean, and the sums of squares and of cubes around it. All are (n,).
    """

    def __init__(self, n: int) -> None:
        self.largest = torch.full((n,), -torch.inf, dtype=torch.float64)
        self.first, self.second = torch.zeros(2, n, dtype=torch.float64)
        self.count = torch.zeros(n, dtype=torch.int64)
        self.mean, self.squares, self.cubes = torch.zeros(3, n, dtype=torch.float64)

    def add(self, rows: Tensor, log_weights: Tensor) -> None:
        """Add log weights (k, r), of which the first belong to these rows, each named once, and the rest to none."""
        before = torch.zeros(log_weights.shape[1], dtype=torch.float64)
        before[: len(rows)] = self.largest[rows]
        largest = torch.maximum(before, log_weights.amax(0))
        # sums and exponentials over a shape that does not depend on how many rows there are
        shrunk, v = (before - largest).exp(), (log_weights - largest).exp()
        added = (largest, shrunk, v.sum(0), v.square().sum(0))
        largest, shrunk, first, second = (part[: len(rows)] for part in added)
        self.first[rows] = self.first[rows] * shrunk + first
        self.second[rows] = self.second[rows] * shrunk.square() + second
        self.largest[rows] = largest
        self._add_moments(rows, log_weights)

    def _add_moments(self, rows: Tensor, log_weights: Tensor) -> None:
        """Join the moments of more log weights (k, r) to those of these rows (Pebay 2008, eq. 2.1 and 2.2)."""
        k, seen = len(log_weights), self.count[rows]
        mean = log_weights.mean(0)
        around = log_weights - mean
        mean, squares, cubes = (part[: len(rows)] for part in (mean, around.square().sum(0), around.pow(3).sum(0)))
        apart, all_ = mean - self.mean[rows], seen + k
        self.cubes[rows] += (
            cubes
            + apart.pow(3) * seen * k * (seen - k) / all_.square()
            + 3 * apart * (seen * squares - k * self.squares[rows]) / all_
        )
        self.squares[rows] += squares + apart.square() * seen * k / all_
        self.mean[rows] += apart * k / all_
        self.count[rows] = all_

    def log_mean(self) -> Tensor:
        """Return the log of the mean weight, (n,)."""
        return self.largest + (self.first / self.count).log()

    def effective(self) -> Tensor:
        """Return the effective sample size, (n,)."""
        return self.first.square() / self.second

    def error(self) -> Tensor:
        """Return the standard error of the log of the mean weight, (n,), as `bounds.monte_carlo_error` has it."""
        mean = self.first / self.count
        variance = (self.second - self.count * mean.square()).clamp(min=0.0) / (self.count - 1)
        spread = (self.squares / self.count).sqrt()
        skewness = self.cubes / self.count / spread.pow(3)
        delta = (variance / self.count).sqrt() / mean
        return stated_error(delta, self.effective(), spread, skewness, self.count)


def looks(max_k: int, chunk: int = CHUNK) -> list[int]:
    """Return the numbers of samples, multiples of a chunk, after which the errors are looked at.

    Example:
        >>> looks(500)
        [64, 128, 192, 256, 320, 384, 448]
    """
    last, found = max_k // chunk * chunk, [chunk]
    while found[-1] < last:
        found.append(min(last, found[-1] + max(chunk, found[-1] // GROWTH // chunk * chunk)))
    return found


@torch.inference_mode()
def log_likelihoods(
    model: Model, x: Tensor, *, mc_se: float, max_k: int = MAX_K, seed: int = 0, own_posteriors: bool = True
) -> LogLikelihoods:
    """Estimate log p(x) of each row by importance sampling, until its standard error is within a bound.

    Args:
        model: Trained model in eval mode.
        x: Encoded rows, (n, m), NaN = missing.
        mc_se: Bound on the standard error, nats.
        max_k: Samples after which a row that has not reached the bound is left as it is; rounded down to a multiple
            of 64.
        seed: Seed of the noise, which all rows share.
        own_posteriors: Whether rows may get posteriors of their own, which costs as much as some 10,000 samples, or
            annealed ones, of which each costs as much as some 250 at least; these take 6 max_k steps at most.

    Raises:
        ConfigError: The bound is not positive, or max_k is under 64.

    References:
        Burda et al. (2016), Importance Weighted Autoencoders, arXiv:1509.00519.
    """
    if not (math.isfinite(mc_se) and mc_se > 0):
        raise ConfigError(f"mc_se must be a number above 0, got {mc_se!r}. Choose for example 0.05.")
    if max_k < CHUNK:
        raise ConfigError(f"max_k must be at least {CHUNK}, got {max_k!r}. Choose for example {MAX_K}.")
    return _joined([_of_span(model, part, mc_se, max_k, seed, own_posteriors) for part in x.split(SPAN) if len(part)])


def _of_span(model: Model, x: Tensor, bound: float, max_k: int, seed: int, own: bool) -> LogLikelihoods:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> tuple[Tensor, Tensor]:
        noise, correction = widened(torch.randn(CHUNK, model.latent, generator=generator))
        return noise.to(x.device), correction

    with threads_worth(SMALLEST_BLOCK * CHUNK * model.largest_product):
        fused = model.scorer()
        rows = _encoded(fused, x)
        seen = RunningWeights(len(x))
        if own and isinstance(model, LadderVAE):
            left = _sampled(fused, rows, seen, bound, CHUNK, draw, least=FITTING)
            found = _found(seen, bound)
            _put(found, left, _by_annealing(model, x[left.to(x.device)], bound, max_k, seed))
            return found
        if not (own and refines(model)):
            _sampled(fused, rows, seen, bound, max_k, draw)
            return _found(seen, bound)
        left = _sampled(fused, rows, seen, bound, max(CHUNK, max_k // BY_ENCODER), draw, least=FITTING)
        found = _found(seen, bound)
        state = generator.get_state()
        for part in left.split(max(1, ROOTS // model.latent**2)) if len(left) else ():
            generator.set_state(state)
            seen = RunningWeights(len(part))
            _sampled(fused, refined(model, rows.part(part), seed=seed), seen, bound, max_k, draw)
            _put(found, part, _found(seen, bound))
    return found


def _joined(parts: Sequence[LogLikelihoods]) -> LogLikelihoods:
    """Return what was found of all rows, in order."""
    if not parts:
        return _found(RunningWeights(0), 0.0)
    return LogLikelihoods(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(LogLikelihoods)))


def _put(found: LogLikelihoods, rows: Tensor, theirs: LogLikelihoods) -> None:
    """Write what was found of these rows in place of what was found before."""
    for field in fields(LogLikelihoods):
        getattr(found, field.name)[rows.numpy()] = getattr(theirs, field.name)


def _by_annealing(model: LadderVAE, x: Tensor, bound: float, max_k: int, seed: int) -> LogLikelihoods:
    """Estimate log p(x) of images (n, m) by annealed samples, each image by itself."""

    def of(i: int) -> LogLikelihoods:
        for steps in WALK_STEPS:
            seen = RunningWeights(1)
            if _walked(model, x[i : i + 1], steps, seen, bound, WALKED * max_k // steps, seed):
                break
        return _found(seen, bound)

    return _joined(side_by_side(of, len(x)))


def _walked(
    model: LadderVAE, x: Tensor, steps: int, seen: RunningWeights, bound: float, samples: int, seed: int
) -> bool:
    """Add annealed samples of one image, (1, m), until its error is within the bound.

    Returns:
        Whether the first of them say that walks of this length come near enough for more to be of use.
    """
    generator, at_once = torch.Generator().manual_seed((seed + APART) % 2**32), max(1, PIXELS // model.columns)
    row, before = torch.arange(1), 0
    for k in looks(samples, WALKS):
        for _ in range(before, k, WALKS):
            parts = (
                annealed(model, x, samples=len(part), steps=steps, generator=generator)
                for part in torch.arange(WALKS).split(at_once)
            )
            seen.add(row, torch.cat(list(parts)).cpu())
        last, effective = steps == WALK_STEPS[-1], float(seen.effective())
        if before == 0 and effective < (RELIABLE_SAMPLES if last else NEAR * k):
            return False
        if bool(_within(seen, bound)):
            break
        before = k
    return True


def _sampled(
    fused: Scorer,
    rows: Rows,
    seen: RunningWeights,
    bound: float,
    max_k: int,
    draw: Callable[[], tuple[Tensor, Tensor]],
    least: float = 0.0,
) -> Tensor:
    """Add samples of rows until their errors are within the bound and at least a share of the samples counts.

    Returns:
        The numbers of the rows that are left.
    """
    active, before = torch.arange(len(rows.x)), 0
    for k in looks(max_k):
        packed = [(part, rows.part(_padded(part, GROUP))) for part in active.split(GROUP)]
        for _ in range(before, k, CHUNK):
            noise, correction = draw()
            for part, group in packed:
                log_w = _log_weights(fused, group, len(part), noise)
                seen.add(part, log_w + correction[:, None])
        done = _within(seen, bound) & (seen.effective() >= least * seen.count)
        active = active[~done[active]]
        before = k
        if not len(active):
            break
    return active


def _found(seen: RunningWeights, bound: float) -> LogLikelihoods:
    return LogLikelihoods(
        seen.log_mean().numpy(), seen.error().numpy(), seen.effective().numpy(), seen.count.numpy(),
        _within(seen, bound).numpy(),
    )  # fmt: skip


def _within(seen: RunningWeights, bound: float) -> Tensor:
    return (seen.error() <= bound) & (seen.effective() >= RELIABLE_SAMPLES)


def _encoded(fused: Scorer, x: Tensor) -> Rows:
    """Return rows with their posteriors, encoded in groups of one shape."""
    parts = []
    for part in x.split(GROUP):
        whole = torch.cat([part, part.new_zeros(GROUP - len(part), x.shape[1])])
        parts.append(fused.rows(whole).part(slice(0, len(part))))
    return Rows.joined(parts)


def _padded(chosen: Tensor, size: int) -> Tensor:
    return torch.cat([chosen, chosen[:1].expand(size - len(chosen))])


def _log_weights(fused: Scorer, group: Rows, kept: int, noise: Tensor) -> Tensor:
    """Return log weights (k, GROUP), float64, in blocks of one shape; zeros for blocks of padding."""
    out = torch.zeros(len(noise), len(group.x), dtype=torch.float64)
    for start in range(0, kept, SMALLEST_BLOCK):
        rows = slice(start, start + SMALLEST_BLOCK)
        out[:, rows] = fused.log_densities(group.part(rows), noise)[1]
    return out
