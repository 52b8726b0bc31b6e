"""The variational autoencoder of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from ..data.schema import Column
from ..errors import ShapeError
from ..options import TrainConfig
from .likelihoods import TableLikelihood
from .mixture import BLOCK, ClassMixture
from .networks import MLP, TableInput
from .priors import PRIORS, Prior
from .threads import side_by_side
from .together import Together, background

if TYPE_CHECKING:
    from .fused import FusedEnsemble, FusedVAE

LOG_SCALE_BOUND = 7.0
"""Posterior standard deviations lie between exp(-7) and exp(7)."""
LARGEST_LATENT = 32
T = TypeVar("T")


class VAE(nn.Module):
    """A VAE of the columns of a table, with missing cells marginalised in the likelihood.

    Args:
        columns: The m modelled columns.
        config: Architecture: `latent`, `hidden`, `prior`, `continuous`, `variance`, `counts`, `precision`.

    Attributes:
        companions: Latent class mixtures of the same columns, which `ensemble` scores average with the autoencoder;
            none before training.
        second: Another autoencoder for these scores alone, trained with another weight of the KL term.
        share: The autoencoders' weight in the ensemble.
        score_beta: Weight of their KL terms in its scores.
        marginal_weight: Weight of what the columns say by themselves, which the companions' term goes without.

    References:
        Kingma & Welling (2014), arXiv:1312.6114; Rezende, Mohamed & Wierstra (2014), arXiv:1401.4082.
    """

    def __init__(self, columns: Sequence[Column], config: TrainConfig) -> None:
        super().__init__()
        self.columns = len(columns)
        self.described = tuple(columns)
        self.companions = nn.ModuleList()
        self._together: tuple[nn.ModuleList, Together] | None = None
        self.second: VAE | None = None
        self.share, self.score_beta = config.autoencoder_share, config.score_beta
        self.marginal_weight = config.marginal_weight
        self.latent = config.latent or min(LARGEST_LATENT, self.columns)
        self.discrete = [c.kind in ("binary", "categorical") for c in columns]
        self.input = TableInput(columns)
        self.encoder = MLP(self.input.width, config.hidden, 2 * self.latent)
        self.likelihood = TableLikelihood(
            columns, continuous=config.continuous, variance=config.variance, counts=config.counts
        )
        self.decoder = MLP(self.latent, config.hidden[::-1], self.likelihood.width)
        self.precision = config.precision
        self.largest_product = max(p.numel() for p in self.parameters())
        self.prior: Prior = PRIORS[config.prior](self.latent)

    def posterior(self, x: Tensor, jitter: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean and log standard deviation of q(z|x), each (n, l).

        Args:
            x: Rows (n, m), NaN = missing.
            jitter: Added to the network's input (n, d): the noise of a denoising VAE (Im et al. 2017,
                arXiv:1511.06406).

        Raises:
            ShapeError: The rows have another number of columns than the model.
        """
        if x.dim() != 2 or x.shape[1] != self.columns:
            raise ShapeError(
                f"rows must have shape (n, {self.columns}), got {tuple(x.shape)}. Encode them by the schema."
            )
        entered = self.input(x) if jitter is None else self.input(x) + jitter
        return self.encoded(entered)

    def encoded(self, entered: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and log standard deviation of q(z|x), each (n, l), for the network's input (n, d)."""
        mean, log_scale = self.encoder(entered).chunk(2, -1)
        return mean, log_scale.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x_c|z), (k, n, m), for rows (n, m) and codes (k, n, l); 0 where missing."""
        return self.likelihood.log_prob(self.decoder(z), x)

    def reconstruct(self, z: Tensor) -> Tensor:
        """Return expected cells, encoded, (..., m), for codes (..., l)."""
        return self.likelihood.mean(self.decoder(z))

    def scorer(self, precision: str | None = None) -> FusedVAE:
        """Return the model as scoring computes it; see `FusedVAE`."""
        from .fused import FusedVAE  # it is made of this class

        return FusedVAE(self, precision)

    def untrained_second(self, config: TrainConfig) -> tuple[VAE, TrainConfig] | None:
        """Forget the second autoencoder, and return a new one with its settings; None where there is to be none.

        It belongs to the companions, and to the objective that has a weight of the KL term.
        """
        self.second = None
        if not config.second_beta or not config.companions or config.objective != "elbo":
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return VAE(self.described, config), replace(config, beta=config.second_beta)

    def ensemble_scorer(self) -> FusedEnsemble:
        """Return the autoencoders as ensemble scores see them; see `FusedEnsemble`."""
        from .fused import FusedEnsemble

        return FusedEnsemble(self)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n rows drawn from the model, encoded, (n, m), computed on the CPU.

        Args:
            n: Rows to draw.
            generator: Source of randomness.
        """
        z = self.prior.sample(n, generator)
        return self.likelihood.sample(self.decoder(z), generator)

    def companions_term(self, x: Tensor) -> Tensor:
        """Return the companions' term of rows (n, m), see `together`, nats, (n,), float64."""
        if self._together is None or self._together[0] is not self.companions:
            mixtures: list[ClassMixture] = list(self.companions)  # type: ignore[arg-type]
            self._together = self.companions, Together(mixtures, self.marginal_weight)
        return self._together[1].term(x)

    def companions_split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the columns' parts of minus the companions' term, (n, m), and the rest, (n,), as `ClassMixture`."""
        parts, remainders = zip(*self._of_companions(lambda companion: companion.split(x), len(x)), strict=True)
        columns = _mean(parts)
        if self.marginal_weight:
            columns += self.marginal_weight * background(list(self.companions)).marginals(x)  # type: ignore[arg-type]
        return columns, _mean(remainders)

    def _of_companions(self, job: Callable[[ClassMixture], T], rows: int) -> list[T]:
        mixtures: list[ClassMixture] = list(self.companions)  # type: ignore[arg-type]
        if rows <= BLOCK:  # not worth a thread
            return [job(mixture) for mixture in mixtures]
        return side_by_side(lambda i: job(mixtures[i]), len(mixtures))

    def accompany(self, x: Tensor, *, held: Tensor, config: TrainConfig, weights: Tensor | None = None) -> None:
        """Fit the companions: for each number of classes one mixture on the plain scale and one on bent scales.

        Where there are no continuous columns there is nothing to bend, and one mixture for each.

        Args:
            x: Training rows, encoded, (n, m).
            held: Rows that only decided when to stop, (v, m): without weights they are as good as training rows.
            config: Numbers of classes, and the seed of the starts.
            weights: Weight of each training row, (n,).
        """
        x = x if weights is not None else torch.cat([x, held])
        bends = (False, True) if any(column.kind == "continuous" for column in self.described) else (False,)
        fits = [(k, bent) for k in config.companions for bent in bends]
        x, weights = x.cpu(), None if weights is None else weights.cpu()

        def fitted(i: int) -> ClassMixture:
            k, bent = fits[i]
            return ClassMixture.fitted(
                self.described, x,
                classes=k, seed=config.seed + i, bent=bent, weights=weights, power=config.class_power,
            )  # fmt: skip

        self.companions = nn.ModuleList(side_by_side(fitted, len(fits)))


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Return the mean of tensors, added in one order: a reduction's order may depend on where an element lies."""
    total = torch.zeros_like(values[0])
    for value in values:
        total += value
    return total / len(values)


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """Return the number of latent dimensions whose posterior mean varies over rows (n, l) by more than the threshold.

    References:
        Burda et al. (2016), arXiv:1509.00519, section 5.2.
    """
    return int((means.var(0, correction=0) > threshold).sum())
