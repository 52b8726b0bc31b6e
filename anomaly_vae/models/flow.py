r"""A normalizing flow: an invertible network, so that log p(x) is exact. The reference that bounds are held against.

.. math:: \log p(x) = \log N(f(x); 0, I) + \log |\det \partial f / \partial x|

The network is zuko's neural spline flow; zuko is an optional dependency (`anomaly-vae[flows]`).

References:
    Durkan, Bekasov, Murray & Papamakarios (2019), Neural spline flows, arXiv:1906.04032.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError

BLOCK = 1024
PATIENCE = 10


def flows_available() -> bool:
    """Return whether zuko is installed."""
    return importlib.util.find_spec("zuko") is not None


@dataclass(frozen=True, eq=False)
class Flow:
    """A flow over rows of numbers.

    Attributes:
        network: zuko's flow over standardised rows.
        mean: Of the training rows, (m,).
        scale: Their standard deviations, (m,).
    """

    network: Any
    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(
        cls,
        x: Tensor,
        *,
        validation: Tensor,
        steps: int,
        hidden: tuple[int, ...] = (64, 64),
        layers: int = 3,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        seed: int = 0,
    ) -> Flow:
        """Fit by maximum likelihood; the weights of the best validation likelihood are kept.

        Args:
            x: Training rows, (n, m), without missing cells.
            validation: Rows that decide when to stop, (v, m), at least 1.
            steps: Optimiser steps, at most.
            hidden: Widths of each layer's network.
            layers: Invertible layers.
            batch_size: Rows of a step.
            learning_rate: Of Adam, cosine-annealed.
            seed: Of weights and batches.

        Raises:
            ConfigError: zuko is not installed.
        """
        if not flows_available():
            raise ConfigError(
                "a flow must have zuko installed, got none. Install it: pip install 'anomaly-vae[flows]'."
            )
        import zuko

        mean, scale = x.mean(0), x.std(0)
        scale = torch.where(scale > 1e-6 * (1 + mean.abs()), scale, torch.ones_like(scale))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = zuko.flows.NSF(x.shape[1], transforms=layers, hidden_features=list(hidden))
        made = cls(network, mean, scale)
        rows, held = made._standardised(x), made._standardised(validation)
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(seed)
        best, kept, waited = -math.inf, network.state_dict(), 0
        look = max(25, math.ceil(len(x) / batch_size))
        for step in range(steps):
            batch = torch.randint(len(x), (min(batch_size, len(x)),), generator=generator)
            loss = -network().log_prob(rows[batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            decay.step()
            if (step + 1) % look == 0 or step + 1 == steps:
                with torch.no_grad():
                    value = float(network().log_prob(held).mean())
                if value > best:
                    best, waited = value, 0
                    kept = {name: part.detach().clone() for name, part in network.state_dict().items()}
                else:
                    waited += 1
                    if waited >= PATIENCE:
                        break
        network.load_state_dict(kept)
        network.requires_grad_(False).eval()
        return made

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.network.parameters())

    @torch.no_grad()
    def log_likelihood(self, x: Tensor) -> Tensor:
        """Return the exact log p(x) of each row, (n,), nats, in the rows' own units."""
        constant = self.scale.log().sum()
        return torch.cat([self.network().log_prob(self._standardised(part)) - constant for part in x.split(BLOCK)])

    @torch.no_grad()
    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Return n rows, (n, m); zuko draws from the global generator, which is put back."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.network().sample((n,)) * self.scale + self.mean

    def _standardised(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.scale).float()
