"""Batches of training rows with all that is drawn at random for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..options import FitConfig, TrainConfig
from .bounds import Prior
from .family import Model
from .priors import EXEMPLARS, AggregatedPosterior, Exemplars
from .vae import VAE

DRAWN_NUMBERS = 1 << 22
"""Random numbers and cells that are prepared at once, for as many steps as they suffice."""


@dataclass(frozen=True)
class Batch:
    """What a step trains on: which rows (b,), the rows (b, m), the same as the gradient wants them, its noise."""

    chosen: Tensor
    rows: Tensor
    filled: Tensor
    observed: Tensor
    entered: Tensor
    noise: Tensor

    @property
    def seen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows without gaps (b, m), which cells are no gaps (b, m), encoder's input (b, d), noise (k, b, l)."""
        return self.filled, self.observed, self.entered, self.noise

    def part(self, of: slice) -> Batch:
        """Return some of the rows."""
        noise = self.noise[:, of].contiguous()
        return Batch(self.chosen[of], self.rows[of], self.filled[of], self.observed[of], self.entered[of], noise)


def drawn(
    model: Model, x: Tensor, batches: Sequence[Tensor], config: FitConfig, generator: torch.Generator
) -> Iterator[Batch]:
    """Yield the batches with their random parts, drawn for many steps at once, which costs far less than each alone."""
    size, k = len(batches[0]), config.train_k
    width = model.input.width if isinstance(model, VAE) else model.columns
    at_once = max(1, DRAWN_NUMBERS // (size * (x.shape[1] + width + k * model.latent)))
    for first in range(0, len(batches), at_once):
        some = batches[first : first + at_once]
        chosen = torch.cat(list(some))
        noise = torch.randn(len(some), k, size, model.latent, generator=generator, device=x.device)
        rows = x[chosen]
        if isinstance(config, TrainConfig):
            rows = _with_hidden_cells(rows, config.hide, generator)
        entered = model.input(rows)
        if config.input_noise:
            entered = entered + config.input_noise * torch.randn(entered.shape, generator=generator, device=x.device)
        parts = (rows, rows.nan_to_num(0.0), (~rows.isnan()).to(x.dtype), entered)
        for part in zip(some, *(p.split(size) for p in parts), noise, strict=True):
            yield Batch(*part)


def prior_without_themselves(model: Model, x: Tensor, chosen: Tensor, generator: torch.Generator) -> Prior | None:
    """Return the mixture around exemplars drawn for this step, without the row itself; None if the prior is fixed."""
    if not isinstance(model.prior, AggregatedPosterior | Exemplars):
        return None
    drawn = torch.randint(len(x), (EXEMPLARS,), generator=generator, device=x.device)
    exemplars = drawn if len(x) > EXEMPLARS else torch.arange(len(x), device=x.device)
    posterior, own = model.posterior(x[exemplars]), chosen[:, None] == exemplars
    if isinstance(model.prior, Exemplars):
        return model.prior.around(posterior[0], own)
    return model.prior.around(posterior, own)


def _with_hidden_cells(batch: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return the rows (n, m) with cells made missing in half of them, so that the encoder knows both kinds of row."""
    if share == 0:
        return batch
    chance = 2 * share * (torch.rand(len(batch), 1, generator=generator, device=batch.device) < 0.5)
    hidden = torch.rand(batch.shape, generator=generator, device=batch.device) < chance
    return batch.masked_fill(hidden, torch.nan)
