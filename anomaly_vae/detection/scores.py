"""Anomaly scores: minus a reduction of the log weights, with its Monte-Carlo error.

A score depends on the row, the model and the noise alone. All rows share one bank of noise (common random numbers), and
rows are computed in blocks of one fixed shape, the last one padded: the same arithmetic for every row, whatever
batch it came in. Few rows are padded to less, where that was found to give each the same bits (`models.tried`).

Shapes: n rows, m columns, k posterior samples, l latent width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models import bounds, kernels
from ..models.conv import ImageVAE
from ..models.family import Model
from ..models.fused import FusedVAE, Rows, Scorer
from ..models.threads import side_by_side, worth_threads
from ..models.tried import made_up
from ..models.vae import VAE
from .kept import Kept

BLOCK_SAMPLES = 1024
"""Rows times samples computed at once, at least,"""
BLOCK_ROWS = 128
"""or so many rows, with all samples, so that what is around the products shows less,"""
MOST_BLOCKS = 4
"""but at most so many times as many; and always that of numbers of 16 bits, whose products take the least time."""
BLOCK_CELLS = 1 << 20
"""Rows times samples times columns computed at once, at most (but never less than a block of 16 rows)."""
SMALLEST_BLOCK = 16
ENCODED_SAMPLES = 1 << 16
"""Rows are encoded, and log weights reduced, for so many samples at once,"""
ENCODED_ROWS = (256, 1024)
"""or so many rows at least and at most, for what is around the products costs the same for few rows as for many."""
IMAGE_ROWS = 32
"""Images computed at once on a processor: more of them gain nothing, and one alone takes as long as so many."""
FEW_ROWS = 64
"""So many rows at most are computed in a group of so many."""
LARGEST_CHUNK = BLOCK_SAMPLES // SMALLEST_BLOCK
"""Samples computed at once."""
LANES = 64
REDUCED_ROWS = 64 * LANES
"""Rows whose errors are stated at once, in full vectors of `LANES`, so that a row has the same bits anywhere."""
ONE_OF = 8
"""Samples from which on a likelihood has that of largest weight in float32 where the rest is not: it decides most."""
RELIABLE_SAMPLES = 5.0
"""A likelihood with a smaller effective sample size is marked unreliable."""


@dataclass(frozen=True)
class ScoreKind:
    """How log densities become a score.

    Attributes:
        bound: What it estimates: "elbo", a mean, or "likelihood", the log of a mean (`bounds`).
        latent: Whether of the log weights; else of log p(x|z).
        accompanied: Whether the model's companions have their share in the score.
    """

    bound: str
    latent: bool = True
    accompanied: bool = False

    @property
    def weighted(self) -> bool:
        """Whether samples have unequal weights, so that an effective sample size means something."""
        return self.bound == "likelihood"

    def weights(self, log_w: Tensor) -> Tensor:
        """Return the log of each sample's weight in the estimate, normalised over k, (k, n)."""
        return torch.log_softmax(log_w, 0) if self.weighted else torch.full_like(log_w, -math.log(len(log_w)))

    def numbers(self, k: int) -> int:
        """Return how many numbers `reduced` makes of a row's samples."""
        return 1 if k == 1 else 1 + len(bounds.WeightMoments._fields) if self.weighted else 2

    def reduced(self, log_px: Tensor, log_w: Tensor) -> Tensor:
        """Return what `scores` makes a score of, (r, n), float64, from log densities (k, n): the score comes first."""
        terms = log_w if self.latent else log_px
        compiled = kernels.reduced(terms, weighted=self.weighted)
        return bounds.reduced(terms, weighted=self.weighted) if compiled is None else compiled

    def scores(self, reduced: Tensor, k: int) -> Tensor:
        """Return score, standard error and effective sample size (3, n), see `Scores`, of what is `reduced`, (r, n)."""
        value, *rest = reduced
        out = torch.full((3, len(value)), torch.nan, dtype=torch.float64)
        out[0] = value
        if self.weighted and rest:
            moments = bounds.WeightMoments(*rest)
            out[1], out[2] = moments.error(k), moments.effective
        elif rest:
            out[1] = rest[0]
        return out


SCORES: dict[str, ScoreKind] = {
    "ensemble": ScoreKind("elbo", accompanied=True),
    "likelihood": ScoreKind("likelihood"),
    "elbo": ScoreKind("elbo"),
    "reconstruction": ScoreKind("elbo", latent=False),
}
"""Scores by name: minus the mean of the ensemble, minus the ELBO and minus log p(x) of the autoencoder (the latter by
importance sampling), minus the expected log p(x|z).

The mean is of the terms of the ensemble's autoencoders (`FusedEnsemble`), with weight a, and of its companions' term
(`models.together`). With whole KL terms, and marginals not taken off, it is the bound on the log density of a mixture:
with probability a a row is one of the autoencoders', else one of the companions', which is one more latent variable,
with its prior for its posterior.

The last is a reconstruction error in nats. It is not a likelihood: it leaves out how probable the code is.
"""


@dataclass(frozen=True)
class Scores:
    """Scores of n rows, float64.

    Attributes:
        value: Anomaly score, nats, high = anomalous, (n,).
        mc_se: Monte-Carlo standard error, NaN at k = 1, (n,).
        ess: Effective sample size, NaN at k = 1 and where samples are weighted equally, (n,).
    """

    value: NDArray[np.float64]
    mc_se: NDArray[np.float64]
    ess: NDArray[np.float64]


@dataclass(frozen=True)
class Parts:
    """A score split exactly: `columns.sum(1) + latent + dependence` is the score.

    Attributes:
        columns: Nats that each column's cell costs, (n, m); 0 where missing.
        latent: What the code costs: its improbability under the prior, less what the posterior knew, (n,).
        dependence: The companions' remainder, see `ClassMixture.split`; 0 for scores of the autoencoder alone, (n,).
    """

    columns: NDArray[np.float64]
    latent: NDArray[np.float64]
    dependence: NDArray[np.float64]


def block_rows(k: int, columns: int, precision: str = "float32") -> int:
    """Return the rows of a block: a function of the model and k alone, never of the batch.

    Rows times samples is a multiple of 64, so that no cell is computed by the scalar remainder of a vectorised loop,
    whose exponentials differ in the last bit.
    """
    step, chunk = _step(k), min(k, LARGEST_CHUNK)
    most = MOST_BLOCKS * BLOCK_SAMPLES
    samples = most if precision == "bf16" else min(max(BLOCK_SAMPLES, BLOCK_ROWS * chunk), most)
    rows = min(samples // chunk, BLOCK_SAMPLES, BLOCK_CELLS // (chunk * columns))
    return max(step, rows // step * step)


def _step(k: int) -> int:
    return SMALLEST_BLOCK if k % 4 == 0 else 64


def group_rows(k: int, columns: int, precision: str = "float32") -> int:
    """Return the rows of a group of blocks, which are encoded together."""
    rows = block_rows(k, columns, precision)
    least, most = ENCODED_ROWS
    return rows * max(1, min(max(ENCODED_SAMPLES // k, least), most) // rows)


def _each_group(
    model: Model,
    x: Tensor,
    k: int,
    job: Callable[[slice, Scorer, Rows], None],
    *,
    scorer: Callable[[], Scorer] | None = None,
    few: Callable[[FusedVAE], bool] | None = None,
) -> None:
    """Do a job for each group of rows, side by side where there are many: which they are, and these as the model sees.

    Groups are padded to whole blocks, or to `FEW_ROWS` where `few` allows it of a scorer. Each thread takes the next
    group that none has taken.
    """
    group = group_rows(k, x.shape[1], model.precision)
    if isinstance(model, ImageVAE) and x.device.type == "cpu":
        group = IMAGE_ROWS
    starts = iter(range(0, len(x), group))
    samples = min(BLOCK_SAMPLES, block_rows(k, x.shape[1]) * min(k, LARGEST_CHUNK))
    make = scorer or model.scorer
    first = make()
    several = worth_threads(samples * model.largest_product) or x.device.type != "cpu"

    @torch.inference_mode()
    def work(i: int) -> None:
        fused = first if i == 0 else first.copy() if isinstance(first, FusedVAE) else make()
        for start in starts:
            block = x[start : start + group]
            height = group
            if few is not None and len(block) <= FEW_ROWS and not several and isinstance(fused, FusedVAE):
                height = FEW_ROWS if few(fused) else group
            job(slice(start, min(start + group, len(x))), fused, fused.rows(_filled_up(block, height)))

    if several:
        work(0)
    else:
        side_by_side(work, max(1, min(torch.get_num_threads(), len(x) // group)))


def accompanies(model: Model, reduction: ScoreKind) -> TypeGuard[VAE]:
    """Return whether a score is that of the model with its companions."""
    return reduction.accompanied and isinstance(model, VAE) and len(model.companions) > 0


def _scorer_of(model: Model, reduction: ScoreKind) -> Callable[[], Scorer]:
    """Return what makes a scorer for a kind of score."""
    return model.ensemble_scorer if accompanies(model, reduction) else model.scorer


def _filled_up(x: Tensor, height: int) -> Tensor:
    """Return rows (n, m) with rows of zeros after them, (height, m)."""
    return x if len(x) == height else torch.cat([x, x.new_zeros(height - len(x), x.shape[1])])


def _few_are_as_many(fused: FusedVAE, noise: Tensor, reduction: ScoreKind) -> bool:
    """Try whether rows score the same bits in a group of `FEW_ROWS` as in a full one."""
    columns = fused.model.described
    x = made_up(columns, group_rows(len(noise), len(columns), fused.precision))

    def scored(rows: Tensor, height: int) -> Tensor:
        log_px, log_w, _ = _weighed(fused, fused.rows(_filled_up(rows, height)), len(rows), noise, reduction)
        return reduction.reduced(log_px, log_w)[:, : len(rows)].nan_to_num()

    few = torch.cat([scored(part, FEW_ROWS) for part in x.split(FEW_ROWS)], 1)
    return torch.equal(few, scored(x, len(x)))


def _steady(fused: Scorer, group: Rows) -> bool:
    """Return whether a row's log densities have the same bits in blocks of any height."""
    return isinstance(fused, FusedVAE) and fused.steady(group)


def _height(fused: Scorer, group: Rows, kept: int, k: int) -> int:
    """Return the rows of a group's blocks: where their bits do not depend on it, as many as are wanted and fit."""
    step, columns = _step(k), group.x.shape[1]
    if _steady(fused, group):
        most = max(step, BLOCK_CELLS // (min(k, LARGEST_CHUNK) * columns) // step * step)
        return min(most, -(-kept // step) * step)
    return step if len(group.x) <= FEW_ROWS else block_rows(k, columns, fused.precision)


def _blocks(fused: Scorer, group: Rows, kept: int, noise: Tensor) -> Iterator[tuple[slice, slice, Rows, Tensor]]:
    """Yield which rows and samples to compute at once, and these, so that memory does not grow with k.

    All samples of some rows come before the next rows; only padding is left out.
    """
    height, chunks = _height(fused, group, kept, len(noise)), noise.split(LARGEST_CHUNK)
    for i, part in enumerate(group.split(height)[: -(-kept // height)]):
        for j, chunk in enumerate(chunks):
            first = j * LARGEST_CHUNK
            yield slice(i * height, i * height + len(part.x)), slice(first, first + len(chunk)), part, chunk


def _log_densities(fused: Scorer, group: Rows, kept: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(x|z) and the log weights of a group, each (k, rows); zeros for blocks of padding."""
    if kept == len(group.x) and len(noise) <= LARGEST_CHUNK and _steady(fused, group):
        return fused.log_densities(group, noise)
    log_px, log_w = torch.zeros((2, len(noise), len(group.x)), device=group.x.device, dtype=group.mean.dtype)
    for rows, samples, part, drawn in _blocks(fused, group, kept, noise):
        log_px[samples, rows], log_w[samples, rows] = fused.log_densities(part, drawn)
    return log_px, log_w


Decisive = tuple[FusedVAE, Tensor]
"""What computes the sample of largest weight in float32, and which of each row's samples it is, (1, rows)."""


def _weighed(
    fused: Scorer, group: Rows, kept: int, noise: Tensor, reduction: ScoreKind
) -> tuple[Tensor, Tensor, Decisive | None]:
    """Return `_log_densities`, and the sample of each row that was computed in float32 though the rest was not."""
    log_px, log_w = _log_densities(fused, group, kept, noise)
    wanted = reduction.weighted and len(noise) >= ONE_OF and fused.precision != "float32"
    if not wanted or not isinstance(fused, FusedVAE):
        return log_px, log_w, None
    index = log_w.max(0, keepdim=True).indices  # a third of the time of argmax
    for part, exact in zip((log_px, log_w), fused.exact.of_one(group, noise, index), strict=True):
        part.scatter_(0, index, exact)
    return log_px, log_w, (fused.exact, index)


@torch.inference_mode()
def densities_of(model: Model, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(x|z) and the log weights of each row's samples, each (k, n), float64.

    Args:
        model: Trained model in eval mode.
        x: Encoded rows, (n, m).
        noise: Standard normal draws, (k, l), shared by all rows.
    """
    log_px, log_w = (torch.empty(len(noise), len(x), dtype=torch.float64) for _ in range(2))

    def densities(rows: slice, fused: Scorer, group: Rows) -> None:
        kept = rows.stop - rows.start
        found = _log_densities(fused, group, kept, noise)
        log_px[:, rows], log_w[:, rows] = (part[:, :kept].cpu().double() for part in found)

    _each_group(model, x, len(noise), densities)
    return log_px, log_w


@torch.inference_mode()
def score_rows(model: Model, x: Tensor, *, noise: Tensor, kind: str = "likelihood", kept: Kept | None = None) -> Scores:
    r"""Score rows.

    .. math:: s(x) = -\log \tfrac1k \sum_i p(x, z_i) / q(z_i \mid x), \quad z_i \sim q(z \mid x)

    for `kind="likelihood"`; see `SCORES` for the others.

    Args:
        model: Trained model in eval mode.
        x: Encoded rows, (n, m), float32, NaN = missing.
        noise: Standard normal draws, (k, l), shared by all rows.
        kind: A name in `SCORES`.
        kept: What earlier calls with this model have left; see `Kept`.

    Returns:
        Scores of the n rows.

    References:
        Burda et al. (2016), Importance Weighted Autoencoders, arXiv:1509.00519, eq. 8.
    """
    reduction, k = SCORES[kind], len(noise)
    make = _scorer_of(model, reduction)
    reduced = torch.zeros(reduction.numbers(k), -(-len(x) // LANES) * LANES, dtype=torch.float64)

    def score(rows: slice, fused: Scorer, group: Rows) -> None:
        n = rows.stop - rows.start
        log_px, log_w, _ = _weighed(fused, group, n, noise, reduction)
        reduced[:, rows] = reduction.reduced(log_px, log_w)[:, :n].cpu()

    if kept is None:
        _each_group(model, x, k, score, scorer=make)
    else:
        asked = partial(_few_are_as_many, noise=noise, reduction=reduction)
        few: Callable[[FusedVAE], bool] = lambda fused: kept.known((k, kind), partial(asked, fused))  # noqa: E731
        _each_group(model, x, k, score, scorer=partial(kept.scorer, kind, make), few=few)
    parts = reduced.split(REDUCED_ROWS, 1)
    scores = side_by_side(torch.inference_mode()(lambda i: reduction.scores(parts[i], k)), len(parts))
    value, error, ess = torch.cat(scores, 1)[:, : len(x)]
    if accompanies(model, reduction):
        value = model.share * value - (1.0 - model.share) * model.companions_term(x)
        error = model.share * error
    return Scores(value.numpy(), error.numpy(), ess.numpy())


@torch.inference_mode()
def split_scores(model: Model, x: Tensor, *, noise: Tensor, kind: str = "likelihood") -> Parts:
    r"""Split each row's score into its columns' parts and one latent part.

    With the self-normalised weights :math:`a_i \propto e^{w_i}`, the identity
    :math:`\log \tfrac1k \sum_i e^{w_i} = \sum_i a_i w_i - \sum_i a_i \log a_i - \log k` is exact, so column c costs
    :math:`-\sum_i a_i \log p(x_c \mid z_i)` and the rest is latent. For the ELBO all weights are 1/k.

    Args:
        model: Trained model in eval mode.
        x: Encoded rows, (n, m).
        noise: The noise of the score, (k, l).
        kind: A name in `SCORES`.
    """
    reduction = SCORES[kind]
    k = len(noise)
    columns = torch.zeros(x.shape, dtype=torch.float64)
    latent = torch.zeros(len(x), dtype=torch.float64)

    def split(rows: slice, fused: Scorer, group: Rows) -> None:
        kept = slice(0, rows.stop - rows.start)
        log_px, log_w, decisive = _weighed(fused, group, kept.stop, noise, reduction)
        log_px, log_w = log_px.double(), log_w.double()
        a = rest = reduction.weights(log_w).exp()
        parts = torch.zeros(group.x.shape, dtype=torch.float64, device=group.x.device)
        if decisive is not None:
            exact, index = decisive
            parts -= (a.gather(0, index)[..., None] * exact.log_px(group, noise[index]).double()).sum(0)
            rest = a.scatter(0, index, 0.0)
        for some, samples, part, drawn in _blocks(fused, group, kept.stop, noise):
            parts[some] -= (rest[samples, some, None] * fused.log_px(part, drawn).double()).sum(0)
        columns[rows] = parts[kept].cpu()
        if kind != "reconstruction":
            of_code = -(a * (log_w - log_px)).sum(0) + torch.xlogy(a, a).sum(0) + math.log(k)
            latent[rows] = of_code[kept].cpu()

    _each_group(model, x, k, split, scorer=_scorer_of(model, reduction))
    dependence = torch.zeros_like(latent)
    if accompanies(model, reduction):
        parts, dependence = model.companions_split(x)
        columns = model.share * columns + (1.0 - model.share) * parts
        latent, dependence = model.share * latent, (1.0 - model.share) * dependence
    return Parts(columns.numpy(), latent.numpy(), dependence.numpy())


@torch.inference_mode()
def expected_cells(model: Model, x: Tensor, column: Tensor, *, noise: Tensor) -> NDArray[np.float32]:
    """Return what the model expects in one cell of each row, given the row's other cells.

    The cell is hidden, the posterior is taken from the rest, and the decoder's expectation is averaged under the
    importance weights; a category is the one with most of the weight.

    Args:
        model: Trained model in eval mode.
        x: Encoded rows, (n, m).
        column: The column in question of each row, (n,), integer.
        noise: Noise, (k, l).

    Returns:
        Expected cells, encoded, (n,).
    """
    hidden = x.clone()
    hidden[torch.arange(len(x)), column] = torch.nan
    out = torch.empty(len(x))
    discrete = torch.tensor(model.discrete, device=x.device)

    def expect(rows: slice, fused: Scorer, group: Rows) -> None:
        kept = rows.stop - rows.start
        a = torch.log_softmax(_log_densities(fused, group, kept, noise)[1].double(), 0).exp()
        cells = torch.zeros(a.shape, device=a.device)
        for some, samples, part, drawn in _blocks(fused, group, kept, noise):
            wanted = column[rows][some]
            decoded = model.reconstruct(fused.codes(part, drawn))[:, : len(wanted)]
            index = wanted[None, :, None].expand(len(decoded), -1, 1)
            cells[samples, some.start : some.start + len(wanted)] = decoded.gather(-1, index)[..., 0]
        a, cells = a[:, :kept], cells[:, :kept]
        mean = (a * cells).sum(0)
        votes = (a[:, :, None] * (cells[:, :, None] == cells.T[None])).sum(0)  # weight behind each sample's category
        mode = cells.gather(0, votes.argmax(1)[None])[0]
        out[rows] = torch.where(discrete[column[rows]], mode.to(mean.dtype), mean).float().cpu()

    _each_group(model, hidden, len(noise), expect)
    return out.numpy()
