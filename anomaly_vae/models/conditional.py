r"""Conditional VAEs: log p(x | class), for tables and for images.

.. math:: \log p(x \mid y) \ge E_{q(z \mid x, y)}[\log p(x \mid z, y)] - \mathrm{KL}(q(z \mid x, y) \| p(z))

A row carries its class as one more column at its end, so that splits, batches and scores need to know nothing of it:
what is encoded is (x, y), and the likelihood of that last column is left out. Where the class of a table's row is
missing (NaN), the model answers for an unknown one.

Shapes: n rows, m columns of x, l latent width; rows are (n, m + 1).

References:
    Sohn, Lee & Yan (2015), Learning structured output representation using deep conditional generative models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..data.schema import Column
from ..options import ImageConfig, TrainConfig
from .bounds import Prior, Terms
from .conv import ImageVAE
from .ladder import Found, LadderVAE
from .networks import MLP, TableInput
from .plain import PlainScorer
from .vae import VAE


def with_classes(x: Tensor, classes: Tensor) -> Tensor:
    """Return rows (n, m) with their classes' numbers (n,) as a last column, (n, m + 1)."""
    return torch.cat([x, classes.to(x.dtype)[:, None]], 1)


def _indicators(classes: Tensor, count: int) -> Tensor:
    """Return indicators (n, count) of classes (n,); zeros where the class is NaN."""
    known = F.one_hot(classes.nan_to_num(0.0).long(), count).to(classes.dtype)
    return known.masked_fill(classes.isnan()[:, None], 0.0)


class _Input(nn.Module):
    """The encoder's input (n, d + count) of rows with classes."""

    def __init__(self, columns: Sequence[Column], count: int) -> None:
        super().__init__()
        self.cells = TableInput(columns)
        self.count = count
        self.width = self.cells.width + count

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.cells(x[:, :-1]), _indicators(x[:, -1], self.count)], 1)


class ConditionalVAE(VAE):
    """A VAE of the columns of a table given the class of the row.

    Args:
        columns: The m modelled columns, the class not among them.
        config: As of `VAE`.
        classes: Number of classes, at least 1.
    """

    def __init__(self, columns: Sequence[Column], config: TrainConfig, classes: int) -> None:
        super().__init__(columns, config)
        self.columns, self.classes = len(columns) + 1, classes
        self.input = _Input(columns, classes)  # type: ignore[assignment]
        self.encoder = MLP(self.input.width, config.hidden, 2 * self.latent)
        self.decoder = MLP(self.latent + classes, config.hidden[::-1], self.likelihood.width)
        self.largest_product = max(p.numel() for p in self.parameters())

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x_c|z, y), (k, n, m + 1), for rows (n, m + 1) and codes (k, n, l); 0 for the class itself."""
        given = _indicators(x[:, -1], self.classes).expand(*z.shape[:-1], -1)
        log_px = self.likelihood.log_prob(self.decoder(torch.cat([z, given], -1)), x[:, :-1])
        return F.pad(log_px, (0, 1))

    def reconstruct_given(self, z: Tensor, x: Tensor) -> Tensor:
        """Return expected cells, encoded, (n, m), for codes (n, l) and the classes of rows (n, m + 1)."""
        return self.likelihood.mean(self.decoder(torch.cat([z, _indicators(x[:, -1], self.classes)], -1)))

    def scorer(self, precision: str | None = None) -> PlainScorer:  # type: ignore[override]
        """Return what scores with this model; `precision` has no meaning here."""
        return PlainScorer(self)

    def accompany(self, x: Tensor, **_: Any) -> None:
        """Do nothing: mixtures know nothing of classes."""


class ConditionalImageVAE(ImageVAE):
    """A VAE of images given the class of the image; rows are levels, and the class's number.

    Its companions are those of `ImageVAE`: they look at all images together.

    Args:
        shape: As of `ImageVAE`.
        config: As of `ImageVAE`.
        classes: Number of classes, from 1 to 256.
    """

    def __init__(self, shape: Sequence[int], config: ImageConfig, classes: int) -> None:
        super().__init__(shape, config, classes)
        self.columns += 1

    def levels(self, x: Tensor) -> Tensor:
        """Return the levels of rows (n, m + 1), (n, m)."""
        return x[:, :-1].contiguous()

    def input(self, x: Tensor) -> Tensor:
        """Return the encoder's input and the class, (n, m + 1), for rows (n, m + 1)."""
        return with_classes(self.seen(x), x[:, -1])

    def encoded(self, entered: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean and log standard deviation of q(z|x, y), each (n, l), for what `input` returned."""
        return super().encoded(entered[:, :-1].contiguous(), entered[:, -1].long())

    def log_px_given_z(self, x: Tensor, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return log p(x_c|z, y), (k, n, m + 1), for rows (n, m + 1) and codes (k, n, l); 0 for the class itself."""
        return F.pad(super().log_px_given_z(self.levels(x), z, x[:, -1].long()), (0, 1))

    def reconstruct_given(self, z: Tensor, x: Tensor) -> Tensor:
        """Return expected levels, (n, m), for codes (n, l) and the classes of rows (n, m + 1)."""
        return self.reconstruct(z, x[:, -1].long())

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, classes: Tensor | None = None) -> Tensor:
        """Return n images drawn from the model with their classes, (n, m + 1); by default of all classes alike."""
        given = torch.randint(self.classes, (n,), generator=generator) if classes is None else classes
        return with_classes(super().sample(n, generator, given), given)


class ConditionalLadderVAE(ConditionalImageVAE, LadderVAE):
    """A ladder of images given the class of the image; rows are levels, and the class's number.

    Args:
        shape: As of `LadderVAE`.
        config: As of `LadderVAE`.
        classes: Number of classes, from 1 to 256.
    """

    def encoded(self, entered: Tensor, classes: Tensor | None = None) -> Found:
        """Return what the pass upwards finds, for what `input` returned; see `LadderVAE.encoded`."""
        return LadderVAE.encoded(self, entered[:, :-1].contiguous(), entered[:, -1].long())

    def told(self, x: Tensor, classes: Tensor | None) -> Tensor | None:
        """Return the classes of rows (n, m + 1), (n,)."""
        return x[:, -1].long()

    def terms(
        self,
        x: Tensor,
        noise: Tensor,
        *,
        posterior: tuple[Tensor, Tensor] | None = None,
        prior: Prior | None = None,
        classes: Tensor | None = None,
    ) -> Terms:
        """Return the three log densities of rows (n, m + 1), 0 for the class itself; see `LadderVAE.terms`."""
        found = self.encoded(self.input(x)) if posterior is None else posterior
        t = super().terms(self.levels(x), noise, posterior=found, prior=prior, classes=self.told(x, None))
        return t._replace(log_px=F.pad(t.log_px, (0, 1)))
