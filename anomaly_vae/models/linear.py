"""Probabilistic PCA: the VAE whose likelihood is exact, so the oracle of every bound and an honest baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..errors import ShapeError
from .bounds import HALF_LOG_2PI
from .priors import StandardNormal


@dataclass(frozen=True)
class ProbabilisticPCA:
    r"""x = W z + mean + noise, z ~ N(0, I), noise ~ N(0, s^2 I), fitted in closed form.

    W is the one with orthogonal columns, so the posterior over z is diagonal and this is also a `LatentVariableModel`
    with its exact posterior: all its bounds are equal to log p(x).

    Attributes:
        mean: Shape (m,).
        loadings: W, shape (m, l), columns orthogonal.
        variance: s^2.

    Example:
        >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> ProbabilisticPCA.fit(x, latent=1).log_likelihood(x).shape
        torch.Size([500])

    References:
        Tipping & Bishop (1999), Probabilistic Principal Component Analysis, eqs. 3-8.
    """

    mean: Tensor
    loadings: Tensor
    variance: Tensor

    @classmethod
    def fit(cls, x: Tensor, *, latent: int) -> Self:
        """Fit by maximum likelihood.

        Args:
            x: Rows (n, m) without missing cells, float64 for exactness; n >= 2.
            latent: Number of components, from 1 to m - 1.

        Raises:
            ShapeError: Too few rows or columns.
        """
        if x.dim() != 2 or x.shape[0] < 2 or not 1 <= latent < x.shape[1]:
            raise ShapeError(
                f"rows must have shape (n >= 2, m > {latent}), got {tuple(x.shape)}. Choose latent from 1 to m - 1."
            )
        mean = x.mean(0)
        # DIFF: the covariance divides by n - 1, as scikit-learn's PCA does, where the paper divides by n
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / (x.shape[0] - 1))
        values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
        variance = values[latent:].mean().clamp(min=1e-12 * float(values[0]) + 1e-300)
        return cls(mean, vectors[:, :latent] * (values[:latent] - variance).clamp(min=0.0).sqrt(), variance)

    @property
    def prior(self) -> StandardNormal:
        """p(z)."""
        return StandardNormal(self.loadings.shape[1])

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and log standard deviation, each (n, l), of the exact p(z|x) (eq. 6 of the paper)."""
        precision = self.loadings.square().sum(0) + self.variance
        mean = (x - self.mean) @ self.loadings / precision
        return mean, (0.5 * (self.variance / precision).log()).expand_as(mean)

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x_c|z), (k, n, m), for rows (n, m) and codes (k, n, l)."""
        residual = x - (z @ self.loadings.T + self.mean)
        return -0.5 * residual.square() / self.variance - 0.5 * self.variance.log() - HALF_LOG_2PI

    def log_likelihood(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Return the exact log p(x) of each row, (n,), nats.

        Args:
            x: Rows, shape (n, m).
            observed: Columns to look at, shape (m,), bool: the others are marginalised exactly.
        """
        keep = torch.ones(len(self.mean), dtype=torch.bool) if observed is None else observed
        w, centered = self.loadings[keep], (x - self.mean)[:, keep]
        covariance = w @ w.T + self.variance * torch.eye(len(w), dtype=w.dtype)
        factor = torch.linalg.cholesky(covariance)
        whitened = torch.linalg.solve_triangular(factor, centered.T, upper=False)
        log_determinant = 2.0 * factor.diagonal().log().sum()
        return -0.5 * (whitened.square().sum(0) + log_determinant + len(w) * math.log(2 * math.pi))
