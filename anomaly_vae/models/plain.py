"""Scoring by the plain form of the bounds, for models that nobody has laid out for speed."""

from __future__ import annotations

import torch
from torch import Tensor

from .bounds import HALF_LOG_2PI, LatentVariableModel
from .fused import Rows


class PlainScorer:
    """What `fused.FusedVAE` does, by `posterior` and `log_px_given_z` alone.

    Args:
        model: Trained model with one layer of Gaussian codes, in eval mode.
    """

    precision = "float32"

    def __init__(self, model: LatentVariableModel) -> None:
        self.model = model

    def rows(self, x: Tensor) -> Rows:
        """Return rows (n, m) with their posteriors."""
        mean, log_scale = self.model.posterior(x)
        return Rows(x, mean, log_scale, log_scale.exp(), log_scale.sum(-1))

    def codes(self, rows: Rows, noise: Tensor) -> Tensor:
        """Return the samples (k, n, l) that the noise (k, l) picks."""
        return torch.addcmul(rows.mean, rows.scale, noise[:, None, :])

    def log_px(self, rows: Rows, noise: Tensor) -> Tensor:
        """Return log p(x_c|z) of each column, (k, n, m), at these samples."""
        return self.model.log_px_given_z(rows.x, self.codes(rows, noise))

    def log_densities(self, rows: Rows, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and the log weights, each (k, n), at these samples."""
        z = self.codes(rows, noise)
        log_px = self.model.log_px_given_z(rows.x, z).sum(-1)
        log_qz = -(0.5 * noise.square().sum(-1, keepdim=True) + rows.spread + HALF_LOG_2PI * noise.shape[-1])
        return log_px, log_px + self.model.prior.log_prob(z) - log_qz
