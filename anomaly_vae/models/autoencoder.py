r"""Autoencoders without a density: the linear one, and the VAE's networks without its noise and its KL term.

They are what a VAE is compared with: what a code alone can reconstruct, where nothing asks codes to have a density.

Shapes: n rows, m columns, l latent width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..data.schema import Column
from ..errors import ShapeError
from ..options import ImageConfig, TrainConfig
from .conv import ImageVAE
from .plain import PlainScorer
from .vae import LOG_SCALE_BOUND, VAE

STEPS = 1000
"""Steps of the linear autoencoder's optimiser, at most; it stops where the gradient vanishes."""


@dataclass(frozen=True)
class LinearAutoencoder:
    r"""Codes :math:`z = (x - \mu) E`, reconstructions :math:`z D + \mu`, fitted by gradients to the least squares.

    .. math:: \tfrac1n \sum_n |(x_n - \mu)(I - E D)|^2 = \mathrm{tr}\, (I - E D)^T S\, (I - E D)

    with S the covariance, so that a step costs the same for any number of rows. Every minimum spans the subspace of the
    l leading principal components (Baldi & Hornik); codes are determined up to an invertible map, which `principal`
    fixes as PCA does.

    Attributes:
        mean: mu, (m,).
        encoder: E, (m, l).
        decoder: D, (l, m).

    Example:
        >>> x = torch.tensor([[-0.5, -0.4], [-0.4, -0.1], [0.1, 0.0], [0.3, 0.3], [0.5, 0.2]], dtype=torch.float64)
        >>> model = LinearAutoencoder.fit(x, latent=1).principal(x)
        >>> [round(v, 2) for v in model.encode(x)[:, 0].tolist()]
        [-0.63, -0.39, 0.09, 0.41, 0.53]

    References:
        Baldi & Hornik (1989), Neural networks and principal component analysis: learning from examples without local
        minima.
    """

    mean: Tensor
    encoder: Tensor
    decoder: Tensor

    @classmethod
    def fit(cls, x: Tensor, *, latent: int, seed: int = 0) -> Self:
        """Fit by gradient descent (L-BFGS with a line search) from random weights.

        Args:
            x: Rows (n, m) without missing cells, float64 for exactness; n >= 2.
            latent: Width of the code, from 1 to m.
            seed: Of the first weights.

        Raises:
            ShapeError: Too few rows or columns.
        """
        if x.dim() != 2 or x.shape[0] < 2 or not 1 <= latent <= x.shape[1]:
            raise ShapeError(
                f"rows must have shape (n >= 2, m >= {latent}), got {tuple(x.shape)}. Choose latent from 1 to m."
            )
        mean, m = x.mean(0), x.shape[1]
        centred = x - mean
        covariance = centred.T @ centred / len(x)
        covariance = covariance / covariance.diagonal().sum().clamp(min=1e-300)  # gradients of one size for any units
        generator = torch.Generator().manual_seed(seed)
        encoder, decoder = (
            (torch.randn(shape, generator=generator, dtype=x.dtype) / m**0.5).requires_grad_()
            for shape in ((m, latent), (latent, m))
        )
        optimizer = torch.optim.LBFGS(
            [encoder, decoder], max_iter=STEPS, max_eval=2 * STEPS, history_size=30, tolerance_grad=1e-10,
            tolerance_change=1e-15, line_search_fn="strong_wolfe",
        )  # fmt: skip
        eye = torch.eye(m, dtype=x.dtype)

        def loss() -> Tensor:
            optimizer.zero_grad()
            left = eye - encoder @ decoder
            value = (left * (covariance @ left)).sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        return cls(mean, encoder.detach(), decoder.detach())

    def encode(self, x: Tensor) -> Tensor:
        """Return codes (n, l) of rows (n, m)."""
        return (x - self.mean) @ self.encoder

    def decode(self, z: Tensor) -> Tensor:
        """Return rows (n, m) of codes (n, l)."""
        return z @ self.decoder + self.mean

    def principal(self, x: Tensor) -> Self:
        """Return the same map with orthonormal decoder rows and uncorrelated codes, the widest first, as PCA has them.

        Args:
            x: The rows whose codes are to be uncorrelated, (n, m).
        """
        rows = torch.linalg.qr(self.decoder.T).Q.T  # (l, m): the decoder's subspace
        codes = (x - self.mean) @ self.encoder @ self.decoder @ rows.T
        turn = torch.linalg.eigh(codes.T @ codes).eigenvectors.flip(1)
        rows = turn.T @ rows
        signs = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
        rows = rows * signs
        return type(self)(self.mean, self.encoder @ self.decoder @ rows.T, rows)


class Flat(nn.Module):
    """No prior: every code costs nothing. It is no density, and cannot be drawn from."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def log_prob(self, z: Tensor) -> Tensor:
        """Return zeros, (...), for codes (..., l)."""
        return torch.zeros(z.shape[:-1], dtype=z.dtype, device=z.device)


def _certain(posterior: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return a posterior with the least width that there is."""
    mean, log_scale = posterior
    return mean, torch.full_like(log_scale, -LOG_SCALE_BOUND)


class Autoencoder(VAE):
    """The networks and the likelihood of a `VAE`, with codes that are certain and have no prior.

    Trained with `beta=0` the loss is minus log p(x|z): an autoencoder with each column's own error. The ELBO that
    `training.fit` reports is log p(x|z) plus a constant.

    Args:
        columns: The m modelled columns.
        config: As of `VAE`.
    """

    def __init__(self, columns: Sequence[Column], config: TrainConfig) -> None:
        super().__init__(columns, config)
        self.prior = Flat(self.latent)  # type: ignore[assignment]

    def encoded(self, entered: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes and the log of next to no width, each (n, l), for the network's input (n, d)."""
        return _certain(super().encoded(entered))

    def scorer(self, precision: str | None = None) -> PlainScorer:  # type: ignore[override]
        """Return what scores with this model; `precision` has no meaning here."""
        return PlainScorer(self)


class ImageAutoencoder(ImageVAE):
    """The same of images.

    Args:
        shape: As of `ImageVAE`.
        config: As of `ImageVAE`.
    """

    def __init__(self, shape: Sequence[int], config: ImageConfig) -> None:
        super().__init__(shape, config)
        self.prior = Flat(self.latent)  # type: ignore[assignment]

    def code(self, h: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return codes and the log of next to no width, each (n, l), for features (n, core)."""
        return _certain(super().code(h, classes))

    def accompany(self, x: Tensor, **_: Any) -> None:
        """Do nothing: an autoencoder is no detector."""
