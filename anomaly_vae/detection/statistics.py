"""The density of an image's statistics: a Gaussian mixture over a handful of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StatisticsDensity:
    r"""A Gaussian mixture of standardised statistics.

    Attributes:
        center: Means of the statistics, (s,).
        scale: Their standard deviations, (s,).
        log_weights: Of the components, (J,).
        means: Of the components, standardised, (J, s).
        roots: Cholesky factors of their precision matrices, (J, s, s).
    """

    center: Array
    scale: Array
    log_weights: Array
    means: Array
    roots: Array

    @classmethod
    def fitted(cls, values: Array, *, components: int, seed: int) -> Self:
        """Fit to the statistics of normal images, (n, s).

        Args:
            values: Statistics, (n, s).
            components: Of the mixture.
            seed: Of the start.
        """
        from sklearn.mixture import GaussianMixture

        center, scale = values.mean(0), values.std(0)
        scale = np.where(scale > 1e-9 * np.maximum(1.0, np.abs(center)), scale, 1.0)
        mixture = GaussianMixture(components, reg_covar=1e-3, random_state=seed).fit((values - center) / scale)
        return cls(center, scale, np.log(mixture.weights_), mixture.means_, mixture.precisions_cholesky_)

    def log_prob(self, values: Array) -> Array:
        """Return the log density of statistics (n, s), (n,)."""
        return logsumexp(self._components(values)[0], axis=0)

    def gradient(self, values: Array) -> Array:
        """Return the derivative of the log density by the statistics (n, s), the same shape."""
        logs, whitened = self._components(values)
        shares = np.exp(logs - logsumexp(logs, axis=0))
        back = np.einsum("jns,jrs->jnr", whitened, self.roots)
        return -np.einsum("jn,jnr->nr", shares, back) / self.scale

    def split(self, values: Array) -> tuple[Array, Array, Array]:
        r"""Split minus the log density exactly: what each statistic costs, and a remainder.

        With the components' responsibilities r and precisions P, statistic i costs
        :math:`\sum_j r_j \tfrac12 d_{ji} (P_j d_j)_i + \log \mathrm{scale}_i + \tfrac12 \log 2\pi`, its share of the
        Mahalanobis distance; the remainder is what the mixture's weights and the statistics' dependence add.

        Args:
            values: Statistics, (n, s).

        Returns:
            Costs, (n, s); remainders, (n,); and what was expected in each place, (n, s): the nearest components' means.
        """
        logs, whitened = self._components(values)
        total = logsumexp(logs, axis=0)
        shares = np.exp(logs - total)
        z = (values - self.center) / self.scale
        parts = np.zeros_like(values)
        expected = np.zeros_like(values)
        for share, mean, root, white in zip(shares, self.means, self.roots, whitened, strict=True):
            parts += 0.5 * share[:, None] * (z - mean) * _product(white, root.T)
            expected += share[:, None] * mean
        parts += np.log(self.scale) + 0.5 * np.log(2 * np.pi)
        rest = np.zeros(len(values))
        for i in range(values.shape[1]):
            rest += parts[:, i]
        return parts, -total - rest, self.center + self.scale * expected

    def _components(self, values: Array) -> tuple[Array, Array]:
        """Return each component's log density times its weight, (J, n), and its whitened distance, (J, n, s)."""
        z = (values - self.center) / self.scale
        whitened = np.stack([_product(z - mean, root) for mean, root in zip(self.means, self.roots, strict=True)])
        constants = self.log_weights + np.log(np.diagonal(self.roots, axis1=1, axis2=2)).sum(1)
        constants = constants - np.log(self.scale).sum() - 0.5 * len(self.scale) * np.log(2 * np.pi)
        distance = np.zeros(whitened.shape[:2])
        for r in range(whitened.shape[2]):
            distance += np.square(whitened[:, :, r])
        return constants[:, None] - 0.5 * distance, whitened


def _product(z: Array, root: Array) -> Array:
    """Return z @ root, (n, s), added up in one order: a matrix product rounds by how many rows there are."""
    out = np.zeros_like(z)
    for i in range(z.shape[1]):
        out += z[:, i, None] * root[i]
    return out
