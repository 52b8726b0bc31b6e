"""Log density of latent codes: a registry of estimators, each measured within each stratum of the labels.

A point is a code's coordinates in a `Space`. What is inverted by `resampling` is the density of the training rows; a
row never counts towards its own (leave-one-out), where the estimator is local enough for it to matter.

Shapes: n rows, l coordinates, r references, s strata.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.mixture import GaussianMixture as SklearnMixture

from ..models.priors import NARROWEST, GaussianMixture
from ..options import ResampleConfig
from .neighbours import CHUNK, SAME, Floats, NeighbourDensity, Points, drawn, reference_rows
from .strata import Strata

COMPONENTS = 4096
"""Components of a kernel density or an aggregated posterior, at most."""
FEWEST = 2
"""Rows of the smallest stratum that has a density."""


class Density(Protocol):
    """A density that was fitted to the rows of one stratum."""

    def log_density(self, points: Points) -> Floats:
        """Return the log density of points (n, l), (n,), nats; a row that it was fitted to has the same as then."""
        ...


class Estimator(Protocol):
    """A kind of density."""

    def __call__(
        self, points: Points, log_scales: Points | None, config: ResampleConfig, references: int, seed: int
    ) -> tuple[Density, Floats]:
        """Fit to points.

        Args:
            points: Shape (n, l), n >= 2, not all the same.
            log_scales: Log standard deviations of the codes' posteriors, (n, l), where there are any.
            config: Settings.
            references: Points to keep, at most.
            seed: Of all draws.

        Returns:
            The density, and the points' own log densities, each without itself, (n,), nats.
        """
        ...


def _neighbours(
    points: Points, log_scales: Points | None, config: ResampleConfig, references: int, seed: int
) -> tuple[NeighbourDensity, Floats]:
    rng = np.random.default_rng(seed)
    k, smoothing = config.neighbours, config.smoothing
    return NeighbourDensity.fit(points, k=k, smoothing=smoothing, references=references, rng=rng)


@dataclass(frozen=True)
class MixtureDensity:
    """A mixture of diagonal Gaussians: of posteriors, or of kernels around codes.

    Attributes:
        means: Shape (r, l).
        log_scales: Shape (r, l).
    """

    means: Points
    log_scales: Points

    def log_density(self, points: Points) -> Floats:
        """Return the log density of points (n, l), each without the component around itself, (n,), nats."""
        means, log_scales = (torch.from_numpy(np.asarray(a, dtype=np.float64)) for a in (self.means, self.log_scales))
        same = SAME * math.sqrt(float(self.means.var(0, dtype=np.float64).sum()))
        out = np.empty(len(points))
        rows = max(1, (1 << 22) // len(means))
        for start in range(0, len(points), rows):
            z = torch.from_numpy(points[start : start + rows].astype(np.float64))
            distance, closest = torch.cdist(z, means).min(1, keepdim=True)
            itself = (closest == torch.arange(len(means))) & (distance <= same)
            counts = (len(means) - itself.sum(1, keepdim=True)).double()
            log_weights = (-counts.log()).masked_fill(itself, -torch.inf)
            out[start : start + rows] = GaussianMixture(means, log_scales, log_weights).log_prob(z).numpy()
        return out

    @classmethod
    def around(cls, points: Points, log_scales: Points, rng: np.random.Generator) -> tuple[Self, Floats]:
        """Put a component around up to 4096 of the points; also return the points' own log densities, (n,)."""
        chosen = drawn(len(points), COMPONENTS, rng)
        fitted = cls(np.ascontiguousarray(points[chosen]), np.ascontiguousarray(log_scales[chosen]))
        return fitted, fitted.log_density(points)


def _aggregated_posterior(
    points: Points, log_scales: Points | None, config: ResampleConfig, references: int, seed: int
) -> tuple[MixtureDensity, Floats]:
    """The mean of the rows' posteriors; a kernel density in spaces without posteriors."""
    scales = _scott(points) if log_scales is None else log_scales
    return MixtureDensity.around(points, scales, np.random.default_rng(seed))


def _kernels(
    points: Points, log_scales: Points | None, config: ResampleConfig, references: int, seed: int
) -> tuple[MixtureDensity, Floats]:
    return MixtureDensity.around(points, _scott(points), np.random.default_rng(seed))


def _scott(points: Points) -> Points:
    """Return the log bandwidths of Scott's rule for the components that will be kept, (n, l)."""
    n, width = min(len(points), COMPONENTS), points.shape[1]
    bandwidth = points.std(0, dtype=np.float64) * n ** (-1 / (width + 4))
    log_bandwidth = np.log(np.maximum(bandwidth, math.exp(NARROWEST)))
    return np.broadcast_to(log_bandwidth.astype(np.float32), points.shape)


@dataclass(frozen=True)
class FewGaussians:
    """A mixture of a few Gaussians with full covariances.

    Attributes:
        weights: Shape (c,).
        means: Shape (c, l).
        covariances: Shape (c, l, l).
    """

    weights: Floats
    means: Floats
    covariances: Floats

    def log_density(self, points: Points) -> Floats:
        """Return the log density of points (n, l), (n,), nats."""
        width = points.shape[1]
        parts = np.empty((len(self.weights), len(points)))
        for i, (weight, mean, covariance) in enumerate(zip(self.weights, self.means, self.covariances, strict=True)):
            factor = np.linalg.cholesky(covariance)
            residual = np.linalg.solve(factor, (points - mean).T)
            constant = math.log(weight) - np.log(np.diag(factor)).sum() - 0.5 * width * math.log(2 * math.pi)
            parts[i] = constant - 0.5 * np.square(residual).sum(0)
        return np.asarray(np.logaddexp.reduce(parts, axis=0))


def _few_gaussians(
    points: Points, log_scales: Points | None, config: ResampleConfig, references: int, seed: int
) -> tuple[FewGaussians, Floats]:
    """As many components as Bayes' information criterion finds, up to `config.clusters`."""
    some = points[drawn(len(points), references, np.random.default_rng(seed))].astype(np.float64)
    scale = 1e-3 * float(some.var(0).mean()) + 1e-12
    best: SklearnMixture | None = None
    for count in sorted({1, 2, 4, 8, config.clusters}):
        if count > config.clusters or count * (some.shape[1] + 1) > len(some):
            continue
        found = SklearnMixture(count, reg_covar=scale, random_state=seed % 2**32).fit(some)
        if best is None or found.bic(some) < best.bic(some):
            best = found
    if best is None:  # fewer rows than dimensions: one component, its covariance shrunk to the diagonal
        covariance = np.diag(some.var(0) + scale)[None]
        fitted = FewGaussians(np.ones(1), some.mean(0)[None], covariance)
    else:
        fitted = FewGaussians(best.weights_, best.means_, best.covariances_)
    return fitted, fitted.log_density(points)


@dataclass(frozen=True)
class ClusterMasses:
    """The share of rows in the row's cluster, so that inverse weights give all clusters the same mass.

    Attributes:
        centres: Shape (c, l).
        log_masses: Shape (c,).
    """

    centres: Floats
    log_masses: Floats

    def nearest(self, points: Points) -> NDArray[np.intp]:
        """Return each point's cluster, (n,)."""
        out = np.empty(len(points), dtype=np.intp)
        for start in range(0, len(points), CHUNK):
            z = points[start : start + CHUNK].astype(np.float64)
            out[start : start + CHUNK] = (np.square(self.centres).sum(1) - 2 * z @ self.centres.T).argmin(1)
        return out

    def log_density(self, points: Points) -> Floats:
        """Return the log mass of the clusters of points (n, l), (n,)."""
        return self.log_masses[self.nearest(points)]

    @classmethod
    def fit(cls, points: Points, clusters: int, *, rows: int, seed: int) -> Self:
        """Cluster points (n, l), with centres learned from `rows` of them."""
        some = points[drawn(len(points), rows, np.random.default_rng(seed))].astype(np.float64)
        distinct = len(np.unique(some, axis=0))
        count = min(clusters, distinct)
        kmeans = MiniBatchKMeans(count, n_init=3, batch_size=4096, random_state=seed % 2**32).fit(some)
        bare = cls(kmeans.cluster_centers_, np.zeros(count))
        masses = np.bincount(bare.nearest(points), minlength=count) / len(points)
        kept = masses > 0
        return cls(bare.centres[kept], np.log(masses[kept]))


def _clusters(
    points: Points, log_scales: Points | None, config: ResampleConfig, references: int, seed: int
) -> tuple[ClusterMasses, Floats]:
    fitted = ClusterMasses.fit(points, config.clusters, rows=references, seed=seed)
    return fitted, fitted.log_density(points)


@dataclass(frozen=True)
class MarginalHistograms:
    r"""Histograms of each latent dimension by itself, smoothed by alpha, as DB-VAE has them.

    The weight of a row is :math:`\prod_i 1 / (\hat Q_i(z_i) + \alpha)` ("product", the paper), or
    :math:`\max_i p_i(z)` with :math:`p_i \propto 1 / (\hat Q_i(z_i) + \alpha)` normalised over the rows ("max", what
    the authors' lab code computes); the log density is minus its logarithm.

    Attributes:
        edges: Bin edges of each dimension, (l, b + 1).
        log_densities: Log of each bin's smoothed density, (l, b).
        log_totals: Log of the sum of each dimension's inverse densities over the rows, (l,).
        combine: "product" or "max".

    References:
        Amini et al. (2019), Uncovering and mitigating algorithmic bias through learned latent structure, algorithm 1.
        MIT 6.S191, lab 2, `get_training_sample_probabilities`.
    """

    edges: Floats
    log_densities: Floats
    log_totals: Floats
    combine: str

    def log_density(self, points: Points) -> Floats:
        """Return minus the log weight of points (n, l), (n,)."""
        out = np.zeros(len(points)) if self.combine == "product" else np.full(len(points), np.inf)
        for i, (edges, logs) in enumerate(zip(self.edges, self.log_densities, strict=True)):
            part = logs[np.searchsorted(edges[1:-1], points[:, i], side="right")]
            out = out + part if self.combine == "product" else np.minimum(out, part + self.log_totals[i])
        return out

    @classmethod
    def fit(cls, points: Points, *, bins: int, alpha: float, combine: str) -> Self:
        """Count points (n, l)."""
        edges, logs, totals = [], [], []
        for column in points.T.astype(np.float64):
            density, edge = np.histogram(column, bins=bins, density=True)
            smoothed = density + alpha
            with np.errstate(divide="ignore"):
                log = np.log(smoothed / smoothed.sum())
            bin_of = np.searchsorted(edge[1:-1], column, side="right")
            edges.append(edge)
            logs.append(log)
            totals.append(np.logaddexp.reduce(-log[bin_of]))
        return cls(np.array(edges), np.array(logs), np.array(totals), combine)


def _marginals(
    points: Points, log_scales: Points | None, config: ResampleConfig, references: int, seed: int
) -> tuple[MarginalHistograms, Floats]:
    fitted = MarginalHistograms.fit(points, bins=config.bins, alpha=config.smoothing_alpha, combine=config.combine)
    return fitted, fitted.log_density(points)


DENSITIES: dict[str, Estimator] = {
    "knn": _neighbours,
    "aggregated_posterior": _aggregated_posterior,
    "kde": _kernels,
    "gmm": _few_gaussians,
    "clusters": _clusters,
    "dbvae": _marginals,
}
"""Estimators by name."""


@dataclass(frozen=True)
class CodeDensity:
    """The density of codes within each stratum of the labels.

    Attributes:
        strata: The strata.
        parts: Density of each, or None for one that has no density: a single row, or all rows alike.
        own: Log density of each row that it was fitted to, (n,), nats; 0 in strata without a density.
        of: Stratum of each of these rows, (n,).
        notes: What was done otherwise than asked, and why.
    """

    strata: Strata
    parts: tuple[Density | None, ...]
    own: Floats
    of: NDArray[np.intp]
    notes: tuple[str, ...]

    def log_density(self, points: Points, of: NDArray[np.intp]) -> Floats:
        """Return the log density of points (n, l) of known strata (n,), nats, (n,)."""
        out = np.zeros(len(points))
        for i, part in enumerate(self.parts):
            rows = np.flatnonzero(of == i)
            if part is not None and len(rows):
                out[rows] = part.log_density(points[rows])
        return out


def codes_held(density: CodeDensity) -> int:
    """Return how many of the fitted points a density keeps as they are; those of other kinds keep summaries."""
    held = 0
    for part in density.parts:
        if isinstance(part, (NeighbourDensity, MixtureDensity)):
            held += len(part.references if isinstance(part, NeighbourDensity) else part.means)
    return held


def fit_density(
    points: Points,
    config: ResampleConfig,
    *,
    strata: Strata | None = None,
    of: NDArray[np.intp] | None = None,
    log_scales: Points | None = None,
) -> CodeDensity:
    """Fit a density to the rows of each stratum.

    Args:
        points: Coordinates, (n, l).
        config: Names the density and its settings.
        strata: Strata of the labels; by default one for all rows.
        of: Stratum of each row, (n,).
        log_scales: Log standard deviations of the posteriors, (n, l).

    Example:
        >>> points = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
        >>> points[:20] += 9
        >>> own = fit_density(points, ResampleConfig()).own
        >>> bool(own[:20].mean() < own[20:].mean())
        True
    """
    strata = strata or Strata("none", ("all",))
    of = np.zeros(len(points), dtype=np.intp) if of is None else of
    own = np.zeros(len(points))
    parts: list[Density | None] = []
    notes: list[str] = []
    for i, name in enumerate(strata.names):
        rows = np.flatnonzero(of == i)
        reason = _without_density(points[rows])
        if reason:
            parts.append(None)
            if len(rows):
                notes.append(f"{_named(strata, name)}: {reason}; its rows have equal weights.")
            continue
        scales = None if log_scales is None else log_scales[rows]
        references = reference_rows(len(rows), len(points))
        part, own[rows] = DENSITIES[config.density](points[rows], scales, config, references, config.seed + i)
        parts.append(part)
    return CodeDensity(strata, tuple(parts), own, of, tuple(notes))


def _without_density(points: Points) -> str | None:
    if points.shape[1] == 0:
        return "no coordinate varies"
    if len(points) < FEWEST:
        return f"{len(points)} row has no neighbours"
    return None if (points != points[0]).any() else f"all {len(points)} rows are alike"


def _named(strata: Strata, name: str) -> str:
    return "the data" if strata.kind == "none" else f"class {name}"
