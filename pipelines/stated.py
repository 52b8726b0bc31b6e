"""Whether log p(x) to a stated error keeps what it states: against a finer run, beside samples of the encoder's."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anomaly_vae.detection.adaptive import MAX_K, log_likelihoods
from anomaly_vae.models import bounds
from anomaly_vae.models.family import Model

FINER = 3
"""The reference has an error so many times smaller, and other noise."""


@dataclass(frozen=True)
class Kept:
    """What became of estimates of log p(x), and of the encoder's samples, both against the reference.

    Attributes:
        rows: Estimates whose reference is known well enough, and all.
        reached: Share of all that reached the bound.
        samples: Mean number of them.
        within, error, stated: Share within twice the stated errors, their own and the reference's; root mean square
            of the real and of the stated errors, nats.
        many: The same three of the encoder's samples, and their mean distance from the reference.
        seconds: Of the clock, for an estimate.
    """

    rows: tuple[int, int]
    reached: float
    samples: float
    within: float
    error: float
    stated: float
    many: tuple[float, float, float, float]
    seconds: float

    def lines(self, mc_se: float, k: int) -> list[str]:
        """Return a Markdown table."""
        within, error, stated, apart = self.many
        return [
            "| log p(x) | reached | samples | within two errors | real error (stated) | seconds an image |",
            "|---|---|---|---|---|---|",
            f"| to ± {mc_se:g} | {self.reached:.0%} of {self.rows[1]} | {self.samples:.0f} | {self.within:.0%} of "
            f"{self.rows[0]} | {self.error:.3f} ({self.stated:.3f}) | {self.seconds:.1f} |",
            f"| {k} samples of the encoder's | | {k} | {within:.0%} | "
            f"{error:.3f} ({stated:.3f}), mean {apart:+.3f} | |",
        ]


def judged(
    value: NDArray[np.float64], error: NDArray[np.float64], *, true: NDArray[np.float64], known: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """Return the share within two errors, the root mean squares of real and stated errors, and the mean distance."""
    apart, both = value - true, np.hypot(error, known)
    return (
        float((np.abs(apart) <= 2 * both).mean()),
        math.sqrt(np.mean(apart**2)),
        math.sqrt(np.mean(error**2)),
        float(apart.mean()),
    )


def kept(model: Model, x: Tensor, many: Tensor, *, mc_se: float) -> Kept:
    """Estimate log p(x) of rows (n, m) to an error, and judge this and many log weights (k, n) of the encoder's."""
    begin = time.perf_counter()
    found = log_likelihoods(model, x, mc_se=mc_se)
    seconds = (time.perf_counter() - begin) / len(x)
    fine = log_likelihoods(model, x, mc_se=mc_se / FINER, max_k=FINER * MAX_K, seed=1)
    known = fine.mc_se <= mc_se
    reference = {"true": fine.value[known], "known": fine.mc_se[known]}
    value = bounds.importance_weighted_bound(many).cpu().double().numpy()
    error = bounds.monte_carlo_error(many, "likelihood").cpu().double().numpy()
    within, real, stated, _ = judged(found.value[known], found.mc_se[known], **reference)
    return Kept(
        rows=(int(known.sum()), len(x)),
        reached=float(found.reached.mean()),
        samples=float(found.k.mean()),
        within=within,
        error=real,
        stated=stated,
        many=judged(value[known], error[known], **reference),
        seconds=seconds,
    )
