r"""The latent space of a detector: from rows to codes and back, and what lies between.

Codes z are float32, (n, l). A row's code is its posterior mean; what a code decodes to is the expected row E[x|z], cell
by cell (of categories the most probable). Rows are what the detector was trained on: a table, or images.

The codes of a model that is told classes hold the rest: what one decodes to is E[x|z, class], so a class has to be
named, unless it is that of the row that the code is of.

Shapes: n rows, m columns, l latent width, k posterior samples.

References:
    Kingma & Welling (2014), arXiv:1312.6114, section 5 and figure 4 (sampling, the manifold).
    Mattei & Frellsen (2019), MIWAE, arXiv:1812.02633, section 3 (imputation).
    White (2016), Sampling generative networks, arXiv:1609.04468 (interpolation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from ..data.images import ImageSchema
from ..data.schema import Schema, decode_cells, named
from ..detection.detector import Detector
from ..detection.draws import numbers_of, told_classes
from ..detection.latent import posteriors
from ..detection.scores import densities_of
from ..errors import ConfigError, ShapeError
from ..models.conv import ImageVAE
from ..models.ladder import LadderVAE
from ..options.understanding import PATHS

Codes = NDArray[np.float32]

SAMPLES = 64
"""Posterior samples behind a filled-in or restored row."""
BLOCK = 256
ROWS_AT_ONCE = 512
ACTIVE = 0.01
"""Variance of posterior means above which a dimension is in use (Burda et al. 2016, section 5.2)."""
MOST_EDGE = 0.95
"""The manifold reaches to this quantile of the prior, and to its mirror image."""


class LatentSpace:
    """What the codes of a detector's model are good for.

    Args:
        detector: Of a table or of images.
        given: Class that codes are decoded for, of a model that is told classes.

    Raises:
        ConfigError: The model does not know the class, or knows none.

    Example:
        >>> from anomaly_vae import fit_detector, TrainConfig
        >>> rng = np.random.default_rng(0)
        >>> rows = pd.DataFrame({"a": rng.normal(size=300)}).assign(b=lambda t: 2 * t.a + 0.1 * rng.normal(size=300))
        >>> space = LatentSpace(fit_detector(rows, TrainConfig(steps=300)).detector)
        >>> space.decode(space.encode(rows)).shape
        (300, 2)
    """

    def __init__(self, detector: Detector, *, given: Any = None) -> None:
        if given is not None:
            numbers_of(detector.schema, 1, torch.Generator(), given=given)
        self.detector, self.given = detector, given
        self.model = detector.model
        self.schema = detector.schema
        self.width = detector.model.latent

    @property
    def images(self) -> bool:
        """Whether rows are images."""
        return isinstance(self.schema, ImageSchema)

    def encode(self, frame: pd.DataFrame) -> Codes:
        """Return the codes of rows, (n, l): their posterior means.

        Raises:
            SchemaError: The rows are not of the model.
        """
        return self.detector.latent(frame)[0]

    def posterior(self, frame: pd.DataFrame) -> tuple[Codes, Codes]:
        """Return means and log standard deviations of rows' codes, each (n, l)."""
        return self.detector.latent(frame)

    def decode(self, z: NDArray[Any], *, like: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return the expected rows of codes (n, l), in the user's columns.

        Args:
            z: Codes.
            like: Rows whose classes the codes are decoded for, of a model that is told classes; by default `given`.

        Raises:
            ShapeError: The codes have another width.
            ConfigError: The model is told classes, and there is none.
        """
        return self.schema.decode(self.decode_encoded(z, like=like))

    @torch.inference_mode()
    def decode_encoded(self, z: NDArray[Any], *, like: pd.DataFrame | None = None) -> NDArray[Any]:
        """Return the expected rows of codes (n, l) as the model's array, (n, m): whole levels of images."""
        codes = torch.from_numpy(np.asarray(z, dtype=np.float32))
        if codes.dim() != 2 or codes.shape[1] != self.width:
            raise ShapeError(f"codes must have shape (n, {self.width}), got {tuple(codes.shape)}. Use `encode`.")
        numbers = self._numbers(len(codes), like)
        if isinstance(self.model, ImageVAE):
            told = codes.new_zeros(len(codes), 0) if numbers is None else numbers[:, None].float()
            pairs = zip(codes.split(BLOCK), told.split(BLOCK), strict=True)
            parts = [torch.cat([self.model.reconstruct_given(z, y), y], 1) for z, y in pairs]
            joined = torch.cat(parts) if parts else torch.empty(0, self.model.columns)
            return joined.round().clamp(0, 255).to(torch.uint8).numpy()
        decoded = [self.model.reconstruct(part) for part in codes.split(BLOCK)]
        return (torch.cat(decoded) if decoded else torch.empty(0, self.model.columns)).numpy()

    def _numbers(self, n: int, like: pd.DataFrame | None = None) -> Tensor | None:
        """Return the numbers of the classes that n codes are decoded for, (n,); None of a model of p(x)."""
        classes = told_classes(self.schema)
        if classes is not None and like is not None:
            return torch.from_numpy(classes.numbers(like)[0])
        if classes is not None and self.given is None:
            raise ConfigError(
                f"codes of a model that is told {classes.column!r} must be decoded for a class, got none. Name one of "
                f"{', '.join(map(repr, classes.names[:8]))}: --class.",
                column=classes.column,
            )
        return numbers_of(self.schema, n, torch.Generator(), given=self.given)

    def active(self, frame: pd.DataFrame | None = None) -> NDArray[np.intp]:
        """Return the latent dimensions in use, the most used first.

        Args:
            frame: Rows to judge by; by default 1,000 rows drawn from the model.
        """
        means = self.encode(self.sample(1000, expected=False) if frame is None else frame)
        spread = means.var(axis=0)
        order = np.argsort(-spread, kind="stable")
        return order[spread[order] > ACTIVE]

    def sample(self, n: int, *, seed: int = 0, expected: bool = False) -> pd.DataFrame:
        """Return n rows drawn from the model.

        Args:
            n: Rows, at least 1.
            seed: Of the draws.
            expected: Decode each code to its expected row, without the noise of p(x|z): smoother than data are.

        Raises:
            ConfigError: n is under 1; or expected rows are asked of a ladder, whose lower codes have no draw of their
                own.
        """
        if n < 1:
            raise ConfigError(f"rows to draw must be at least 1, got {n}. Draw for example 100.", n=n)
        if not expected:
            return self.detector.sample(n, seed=seed, given=self.given)
        if isinstance(self.model, LadderVAE):
            raise ConfigError(
                "expected rows must be asked of a model with one layer of codes, got a ladder. Draw rows."
            )
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            codes = self.model.prior.sample(n, generator).numpy()
            classes = told_classes(self.schema)
            if classes is None or self.given is not None:
                return self.decode(codes)
            numbers = numbers_of(self.schema, n, generator)
            assert numbers is not None
            return self.decode(codes, like=pd.DataFrame({classes.column: classes.texts(numbers.numpy())}))

    def reconstruct(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return each row as its code says it: what the model expects in its place, same index."""
        return self.decode(self.encode(frame), like=frame).set_axis(frame.index)

    def denoise(self, frame: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
        r"""Return rows without what the model takes for noise: :math:`E[x^* | x]` over codes that are likely given x.

        The mean over posterior samples, weighted by importance; of categories the value with the most weight. Missing
        cells are filled in too.

        Args:
            frame: Rows, n.
            seed: Of the posterior samples.
        """
        return self.schema.decode(self._expected(self.detector.encode(frame), seed)).set_axis(frame.index)

    def impute(self, frame: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
        r"""Return rows with missing cells filled in: :math:`\sum_i a_i E[x_c | z_i]`, observed cells as they were.

        Args:
            frame: Rows of a table, n; its other columns are kept.
            seed: Of the posterior samples.

        Raises:
            ConfigError: The model is of images, which have no missing cells.
        """
        if not isinstance(self.schema, Schema):
            raise ConfigError("missing cells must be those of a table, got a model of images. Use denoise.")
        frame = named(frame)
        x = self.detector.encode(frame[[name for name in frame.columns if name in self.schema.names]])
        gaps = x.isnan().numpy()
        filled, some = frame.copy(), gaps.any(1)
        if not some.any():
            return filled
        expected = self._expected(x[torch.from_numpy(some)], seed)
        rows = np.flatnonzero(some)
        for j, column in enumerate(self.schema.modelled):
            at = gaps[some, j]
            if at.any():
                cells = decode_cells(expected[:, j], column)
                old = filled[column.name].astype(object)
                old.iloc[rows[at]] = cells[at].to_numpy(dtype=object)
                filled[column.name] = old.infer_objects()
        return filled

    def interpolate(
        self, first: pd.DataFrame, second: pd.DataFrame, *, steps: int = 8, path: str = "linear"
    ) -> pd.DataFrame:
        """Return what lies between rows: each pair's first, `steps` - 1 rows between, and the second, decoded.

        Args:
            first: Where paths begin, n rows.
            second: Where they end, n rows.
            steps: Steps of each path, at least 1.
            path: "linear", or "spherical": along great circles, on which codes keep the length that the prior's have.

        Returns:
            Rows of all paths, (n (steps + 1)), indexed by (pair, step).

        Raises:
            ShapeError: There are not as many firsts as seconds.
            ConfigError: Steps or path are not among those possible.
        """
        points = self.path(self.encode(first), self.encode(second), steps=steps, path=path)
        index = pd.MultiIndex.from_product([range(len(points)), range(steps + 1)], names=["pair", "step"])
        return self.decode(points.reshape(-1, self.width)).set_axis(index)

    @staticmethod
    def path(a: NDArray[Any], b: NDArray[Any], *, steps: int, path: str = "linear") -> Codes:
        """Return the codes along paths from a to b, each (n, l), (n, steps + 1, l)."""
        if a.shape != b.shape:
            raise ShapeError(f"paths must have as many ends as beginnings, got {a.shape} and {b.shape}. Give as many.")
        if steps < 1:
            raise ConfigError(f"steps must be at least 1, got {steps}. Take for example 8.", steps=steps)
        if path not in PATHS:
            raise ConfigError(f"path must be one of {', '.join(PATHS)}, got {path!r}. Choose one.", path=path)
        t = np.linspace(0, 1, steps + 1, dtype=np.float64)[None, :, None]
        a, b = a[:, None].astype(np.float64), b[:, None].astype(np.float64)
        if path == "linear":
            return ((1 - t) * a + t * b).astype(np.float32)
        sizes = [np.maximum(np.linalg.norm(end, axis=2, keepdims=True), 1e-12) for end in (a, b)]
        angle = np.arccos(np.clip((a / sizes[0] * b / sizes[1]).sum(2, keepdims=True), -1, 1))
        sine = np.sin(angle)
        near = sine < 1e-6
        safe = np.where(near, 1.0, sine)
        weights = [np.where(near, w, np.sin(w * angle) / safe) for w in (1 - t, t)]
        return (weights[0] * a + weights[1] * b).astype(np.float32)

    def traversals(
        self, frame: pd.DataFrame | None = None, *, dimensions: Sequence[int] = (), steps: int = 9, reach: float = 3.0
    ) -> pd.DataFrame:
        """Return what each latent dimension does: decoded codes that differ in it alone.

        Args:
            frame: One row to start from; by default the middle of the prior.
            dimensions: Which; by default those in use, the most used first, at most 10.
            steps: Values of each, from -reach to reach.
            reach: In standard deviations of the standard normal prior.

        Returns:
            Decoded rows, (dimensions * steps), indexed by (dimension, value).

        Raises:
            ShapeError: More than one row to start from.
            ConfigError: A dimension that the model has not, or fewer than 2 steps.
        """
        chosen = [int(d) for d in (dimensions if len(dimensions) else self.active()[:10])] or [0]
        if not all(0 <= d < self.width for d in chosen) or steps < 2:
            raise ConfigError(
                f"dimensions must be from 0 to {self.width - 1}, in 2 steps or more, got {chosen}, {steps}."
            )
        start = np.zeros((1, self.width), dtype=np.float32) if frame is None else self.encode(frame)
        if len(start) != 1:
            raise ShapeError(f"a traversal must start from one row, got {len(start)}. Give one.")
        values = np.linspace(-reach, reach, steps)
        codes = np.repeat(start, len(chosen) * steps, 0)
        for i, d in enumerate(chosen):
            codes[i * steps : (i + 1) * steps, d] = values
        index = pd.MultiIndex.from_product([chosen, values], names=["dimension", "value"])
        return self.decode(codes).set_axis(index)

    def manifold(self, *, size: int = 15, dimensions: tuple[int, int] | None = None) -> pd.DataFrame:
        r"""Return the two-dimensional manifold: a grid of equally probable steps, decoded.

        Grid points are :math:`\Phi^{-1}(u)` of evenly spaced u, so that equal areas of the picture have equal
        probability under the standard normal prior. Of wider codes two dimensions vary and the others are 0.

        Args:
            size: Points along each side, at least 2.
            dimensions: The two; by default the two that are most in use.

        Returns:
            Decoded rows, (size^2), indexed by the two coordinates, first the vertical one, from high to low.

        References:
            Kingma & Welling (2014), figure 4.
        """
        if self.width < 2 or size < 2:
            raise ConfigError(f"a manifold must have 2 dimensions and a side of 2, got {self.width} and {size}.")
        if dimensions is None:
            used = [*self.active().tolist(), *range(self.width)]
            first, second = list(dict.fromkeys(used))[:2]
        else:
            first, second = dimensions
        if first == second or not all(0 <= d < self.width for d in (first, second)):
            raise ConfigError(f"two dimensions from 0 to {self.width - 1} must differ, got {first} and {second}.")
        line = norm.ppf(np.linspace(1 - MOST_EDGE, MOST_EDGE, size))
        down, across = np.meshgrid(line[::-1], line, indexing="ij")
        codes = np.zeros((size * size, self.width), dtype=np.float32)
        codes[:, first], codes[:, second] = across.ravel(), down.ravel()
        index = pd.MultiIndex.from_arrays([down.ravel(), across.ravel()], names=[f"z{second}", f"z{first}"])
        return self.decode(codes).set_axis(index)

    @torch.inference_mode()
    def _expected(self, x: Tensor, seed: int) -> NDArray[Any]:
        """Return the expected rows under the importance-weighted posterior of rows (n, m), encoded, (n, m)."""
        noise = torch.randn(SAMPLES, self.width, generator=torch.Generator().manual_seed(seed))
        parts = [self._expected_of(part, noise) for part in x.split(ROWS_AT_ONCE)]
        joined = torch.cat(parts) if parts else torch.empty(0, x.shape[1])
        return joined.round().clamp(0, 255).to(torch.uint8).numpy() if self.images else joined.float().numpy()

    def _expected_of(self, x: Tensor, noise: Tensor) -> Tensor:
        if isinstance(self.model, LadderVAE):  # its samples have no form but its own; the mean's path stands for them
            return self._decoded_of(torch.from_numpy(posteriors(self.model, x)[0]), x).double()
        mean, log_scale = (torch.from_numpy(part) for part in posteriors(self.model, x))
        shares = torch.softmax(densities_of(self.model, x, noise)[1], 0)
        discrete = [
            (j, len(c.categories)) for j, c in enumerate(self._columns()) if c.kind in ("binary", "categorical")
        ]
        votes = {j: torch.zeros(len(x), max(2, size), dtype=torch.float64) for j, size in discrete}
        total = torch.zeros(len(x), self.model.columns, dtype=torch.float64)
        for epsilon, share in zip(noise, shares, strict=True):
            expected = self._decoded_of(mean + log_scale.exp() * epsilon, x).double()
            total += share[:, None] * expected
            for j, counts in votes.items():
                counts.scatter_add_(1, expected[:, j : j + 1].long(), share[:, None])
        for j, counts in votes.items():
            total[:, j] = counts.argmax(1).double()
        return total

    def _decoded_of(self, z: Tensor, x: Tensor) -> Tensor:
        """Return what codes (n, l) of rows (n, m) decode to, (n, m); the class that a model is told is the row's."""
        if not isinstance(self.model, ImageVAE):
            return self.model.reconstruct(z)
        levels = self.model.reconstruct_given(z, x)
        return torch.cat([levels, x[:, levels.shape[1] :].to(levels.dtype)], 1)

    def _columns(self) -> Sequence[Any]:
        return self.schema.modelled if isinstance(self.schema, Schema) else ()
