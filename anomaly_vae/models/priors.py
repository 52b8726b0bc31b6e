"""Densities of latent codes: the prior p(z), a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .bounds import HALF_LOG_2PI


class StandardNormal(nn.Module):
    """N(0, I).

    Example:
        >>> round(StandardNormal(2).log_prob(torch.zeros(1, 2)).item(), 4)
        -1.8379
    """

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) of codes (..., l), shape (...)."""
        return -(0.5 * z.square() + HALF_LOG_2PI).sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n codes, shape (n, l)."""
        return torch.randn(n, self.latent, generator=generator)


PRIORS: dict[str, Callable[[int], StandardNormal]] = {"standard_normal": StandardNormal}
"""Constructors by name; each takes the latent width."""
