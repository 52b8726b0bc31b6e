r"""A mixture of Gaussians in the leading principal components of images, beside the autoencoder.

Three of them accompany a model of images: one of the pixels themselves, one of `edge_energies`, how much of an edge of
each orientation there is in each part of an image, and one of `tones`, how bright it is wherever that is. What they say
of an image, the log density within the subspace and the energy that the subspace leaves, are statistics that the
default score is a density of; of tones both together are one.

Shapes: n images, m levels each, D features, d dimensions of the subspace, K classes.

References:
    Tipping & Bishop (1999), Mixtures of probabilistic principal component analysers. DIFF: one subspace for all.
    Bruna & Mallat (2013), Invariant scattering convolution networks, arXiv:1203.1513 (the first layer, with the
    cheapest filters).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

DIMENSIONS = 64
CLASSES = 8
ROWS_A_CLASS = 600
"""Training images that a class wants at least."""
MOST_ROWS = 20_000
BORROWED = 100.0
"""Rows' worth of the classes' common covariance in that of each: a class of few rows is no needle."""
STEPS = 20
ENOUGH = 1e-2
"""Gain in mean log density, nats, under which the fit stops."""
BLOCK = 32
"""Images looked at together: always so many, so that an image's bits do not depend on its company."""
ORIENTATIONS, GRID, SIDE = 8, 7, 5
TONES = 32
LEAST_ENERGY = 1e-3


class SubspaceMixture(nn.Module):
    """A Gaussian mixture in a linear subspace.

    Args:
        features: D.
        dimensions: d.
        classes: K.
    """

    mean: Tensor
    directions: Tensor
    log_weights: Tensor
    centers: Tensor
    roots: Tensor

    def __init__(self, features: int, dimensions: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("directions", torch.zeros(features, dimensions))
        self.register_buffer("log_weights", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("centers", torch.zeros(classes, dimensions, dtype=torch.float64))
        self.register_buffer("roots", torch.zeros(classes, dimensions, dimensions, dtype=torch.float64))

    @classmethod
    def fitted(cls, x: Tensor, *, seed: int) -> Self:
        """Fit to features of training images, (n, D), by expectation maximisation.

        Args:
            x: Features, float32; `MOST_ROWS` of them are drawn if there are more.
            seed: Of the draw and of the start.
        """
        generator = torch.Generator().manual_seed(seed)
        if len(x) > MOST_ROWS:
            x = x[torch.randperm(len(x), generator=generator)[:MOST_ROWS]]
        d = max(1, min(DIMENSIONS, len(x) // 4, x.shape[1] // 2))
        k = max(1, min(CLASSES, len(x) // ROWS_A_CLASS))
        model = cls(x.shape[1], d, k)
        model.mean = x.mean(0)
        centred = x - model.mean
        model.directions, leading = _principal(centred, d, seed)
        total = float(centred.square().sum(dtype=torch.float64)) / len(x)
        left = max((total - float(leading.sum())) / max(1, x.shape[1] - d), 1e-5)
        model._maximise((centred @ model.directions).double(), left, seed)
        return model

    def statistics(self, x: Tensor) -> Tensor:
        """Return the log density within the subspace and the log of the energy left, (n, 2), float64.

        Args:
            x: Features, (n, D), of a whole block.
        """
        centred = x - self.mean
        y = centred @ self.directions
        left = (centred.square().sum(1) - y.square().sum(1)).clamp(min=0).double()
        return torch.stack([torch.logsumexp(self._joint(y.double()), 1), (left + LEAST_ENERGY).log()], 1)

    def density(self, x: Tensor) -> Tensor:
        r"""Return the log density of features (n, D) of a whole block, (n, 1), float64, up to a constant.

        Of what the subspace leaves, r of D - d dimensions, it is that of a direction and a scale of which nothing is
        known, :math:`|r|^{-(D - d)}`.
        """
        within, left = self.statistics(x).split(1, 1)
        features, dimensions = self.directions.shape
        return within - 0.5 * (features - dimensions) * left

    def _maximise(self, y: Tensor, left: float, seed: int) -> None:
        """Set weights, centers and covariances to those of codes (n, d)."""
        from sklearn.cluster import KMeans

        k, d = self.centers.shape
        start = KMeans(k, n_init=1, max_iter=20, random_state=seed).fit(y.float().numpy())
        shares = F.one_hot(torch.from_numpy(start.labels_).long(), k).double()
        before = -math.inf
        for _ in range(STEPS):
            rows = shares.sum(0)
            weights = (rows + 1) / (rows + 1).sum()
            centers = (shares.T @ y) / rows.clamp(min=1e-6)[:, None]
            scatter = torch.stack([((y - c) * s[:, None]).T @ (y - c) for c, s in zip(centers, shares.T, strict=True)])
            common = scatter.sum(0) / len(y)
            covariance = (scatter + BORROWED * common) / (rows + BORROWED)[:, None, None] + left * torch.eye(d).double()
            lower = torch.linalg.cholesky(covariance)
            roots = torch.linalg.solve_triangular(lower, torch.eye(d).double().expand(k, d, d), upper=False)
            # laid out as a file lays them out: products of other layouts round otherwise
            self.log_weights, self.centers, self.roots = weights.log(), centers.contiguous(), roots.contiguous()
            joint = self._joint(y)
            density = torch.logsumexp(joint, 1)
            shares = (joint - density[:, None]).exp()
            if float(density.mean()) - before < ENOUGH:
                return
            before = float(density.mean())

    def _joint(self, y: Tensor) -> Tensor:
        """Return the log of each class's weight times its density at codes (n, d), (n, K), float64."""
        parts = []
        for weight, center, root in zip(self.log_weights, self.centers, self.roots, strict=True):
            constant = weight + root.diagonal().log().sum() - 0.5 * len(center) * math.log(2 * math.pi)
            parts.append(constant - 0.5 * ((y - center) @ root.T).square().sum(1))
        return torch.stack(parts, 1)


def _principal(centred: Tensor, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the leading directions (D, d) of centred rows (n, D), and the variances along them, (d,)."""
    from sklearn.decomposition import PCA

    solver = "covariance_eigh" if centred.shape[1] <= 2048 else "randomized"
    pca = PCA(d, svd_solver=solver, random_state=seed).fit(centred.numpy())
    directions = torch.from_numpy(pca.components_.T.copy()).float()
    return directions, (centred @ directions).square().mean(0)


def pixel_features(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return levels (n, m) as features in [0, 1], (n, m)."""
    return x.float() / 255


def edge_energies(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return how much of an edge of each orientation, and how much light, each part of an image has.

    Absolute responses to `ORIENTATIONS` odd filters of `SIDE` pixels, and the levels themselves, are averaged over a
    grid of overlapping cells; of the averages the square root is taken, which makes their noise alike.

    Args:
        x: Levels, (n, m).
        shape: (c, h, w); of a colour image the edges are those of its mean channel.

    Returns:
        Features, (n, (ORIENTATIONS + c) * GRID * GRID).
    """
    h = x.float().view(-1, *shape) / 255
    grey = F.pad(h.mean(1, keepdim=True), (SIDE // 2,) * 4, mode="replicate")
    maps = torch.cat([F.conv2d(grey, _filters().to(x.device)).abs(), h], 1)
    smooth = F.avg_pool2d(F.pad(maps, (1,) * 4), 3, 1)
    return F.adaptive_avg_pool2d(smooth, GRID).flatten(1).clamp(min=0).sqrt()


def _filters() -> Tensor:
    """Return the odd filters, (ORIENTATIONS, 1, SIDE, SIDE): slopes under a Gaussian."""
    reach = torch.arange(SIDE).float() - SIDE // 2
    down, across = torch.meshgrid(reach, reach, indexing="ij")
    envelope = torch.exp(-(across**2 + down**2) / (2 * (SIDE / 4) ** 2))
    made = []
    for i in range(ORIENTATIONS):
        angle = math.pi * i / ORIENTATIONS
        slope = (math.cos(angle) * across + math.sin(angle) * down) * envelope
        made.append(slope / slope.abs().sum() * 2)
    return torch.stack(made)[:, None]


def tones(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return how bright an image is, from its darkest to its brightest part, wherever these lie.

    Args:
        x: Levels, (n, m).
        shape: (c, h, w).

    Returns:
        Features, (n, c * (TONES + 2)): of each channel the means of so many quantiles, the least and the largest level.
    """
    h = x.view(len(x), shape[0], -1).sort(2).values.float() / 255
    return torch.cat([F.adaptive_avg_pool1d(h, TONES), h[:, :, :1], h[:, :, -1:]], 2).flatten(1)


FEATURES = {"pixels": pixel_features, "edges": edge_energies, "tones": tones}
"""What the companions of a model of images look at; models made before 0.17.0 have none of tones."""
NAMES = {
    "pixels": ("pixel_density", "pixel_residual"),
    "edges": ("edge_density", "edge_residual"),
    "tones": ("tone_density",),
}
"""What each companion says of an image: the log density within its subspace and the log of the energy left, or both."""


def statistic_names(companions: Iterable[str]) -> tuple[str, ...]:
    """Return the names of what companions say of an image, as `companion_statistics` has it."""
    there = set(companions)
    return tuple(said for name in FEATURES if name in there for said in NAMES[name])


def _blocks(x: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Yield blocks of one size, the last one padded, and how many of their rows are rows."""
    for block in x.split(BLOCK):
        missing = BLOCK - len(block)
        yield (torch.cat([block, block.new_zeros(missing, block.shape[1])]) if missing else block), len(block)


def features_of(name: str, x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the features of images (n, m), computed block by block, the last one padded."""
    return torch.cat([FEATURES[name](block, shape)[:kept] for block, kept in _blocks(x)])


@torch.inference_mode()
def companion_statistics(companions: nn.ModuleDict, x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return what companions say of images (n, m), (n, s), float64, one column for each of `statistic_names`."""
    parts = []
    for block, kept in _blocks(x):
        found = []
        for name, made in FEATURES.items():
            if name in companions:
                mixture, features = cast(SubspaceMixture, companions[name]), made(block, shape)
                found.append((mixture.density if len(NAMES[name]) == 1 else mixture.statistics)(features))
        parts.append(torch.cat(found, 1)[:kept])
    return torch.cat(parts) if parts else torch.empty(0, len(statistic_names(companions)), dtype=torch.float64)
