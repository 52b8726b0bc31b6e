"""One data set, split once for all models: encoded rows, and the numbers that linear models and flows see of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..data.image_column import is_image_column
from ..data.images import ImageSchema
from ..data.rows import split_rows
from ..data.schema import Column, Schema, named
from ..errors import DataWarning, SchemaError, ShapeError
from ..options import Config, ImageConfig, TrainConfig
from ..options.understanding import CompareConfig

FEWEST_ROWS = 20
LARGEST_LATENT = 16
BRIGHTEST = 255.0
NAMED = 3


@dataclass(frozen=True, eq=False)
class Prepared:
    """A data set as all models see it.

    Attributes:
        schema: Fitted to the training rows.
        base: Settings of every network but for what tells it apart.
        parts: Encoded rows, (n, m), of "train", "validation", "test" and "anomalous"; the last may be none.
        classes: Number of each row's class, (n,), of the same parts; None where no classes were given.
        shares: Share of each class among the training rows, (classes,).
    """

    schema: Schema | ImageSchema
    base: Config
    parts: dict[str, Tensor]
    classes: dict[str, Tensor] | None
    shares: NDArray[np.float64]

    @property
    def images(self) -> bool:
        """Whether the rows are images."""
        return isinstance(self.schema, ImageSchema)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The table's modelled columns; none for images."""
        return self.schema.modelled if isinstance(self.schema, Schema) else ()

    @property
    def dimensions(self) -> int:
        """Columns or pixels m."""
        return int(self.parts["train"].shape[1])

    @property
    def latent(self) -> int:
        """Latent width of all models."""
        assert self.base.latent is not None
        return self.base.latent

    def numbers(self, part: str, *, spread: bool = False, seed: int = 0) -> Tensor:
        """Return rows as numbers, (n, m), float64: standardised cells, log counts, or pixels in [0, 1].

        Args:
            part: Name of the part.
            spread: Of images, add uniform noise to the levels, so that they have a density: its log is on average at
                most the log of the levels' probability (Theis et al. 2016, arXiv:1511.01844).
            seed: Of that noise.
        """
        x = self.parts[part].double()
        if self.images:
            noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype) if spread else 0.0
            return (x + noise) / (BRIGHTEST + 1) if spread else x / BRIGHTEST
        return standardised(x, self.columns)

    @property
    def log_scale(self) -> float:
        """What to take from log densities of `numbers` to have those of the user's own units, or of levels."""
        if self.images:
            return self.dimensions * float(np.log(BRIGHTEST + 1))
        return float(sum(np.log(column.scale) for column in self.columns))

    def no_numbers(self, *, density: bool) -> str:
        """Return why a model of numbers does not apply, in a sentence; empty if it does.

        Args:
            density: Whether it is to be a density, for which whole numbers will not do.
        """
        if self.images:
            return ""
        kinds = ("binary", "categorical", *(("count",) if density else ()))
        others = [column.name for column in self.columns if column.kind in kinds]
        if others:
            shown = ", ".join(map(repr, others[:NAMED])) + (", ..." if len(others) > NAMED else "")
            needs = "a density of real numbers" if density else "a model of numbers"
            return f"Does not apply: it is {needs}, and {shown} {'is not' if len(others) == 1 else 'are not'}."
        if any(bool(part.isnan().any()) for part in self.parts.values()):
            return "Does not apply: it has no answer to missing cells."
        return ""


def standardised(x: Tensor, columns: Sequence[Column]) -> Tensor:
    """Return encoded rows (n, m) with counts as standardised log(1 + n)."""
    x = x.clone()
    for j, column in enumerate(columns):
        if column.kind == "count":
            x[:, j] = (x[:, j].clamp(min=0).log1p() - column.center) / column.scale
    return x


def cell_errors(x: Tensor, expected: Tensor, columns: Sequence[Column]) -> Tensor:
    """Return the error of each cell, (n, m), NaN where it is missing; see `results.Figures.reconstruction_error`.

    Args:
        x: Encoded rows.
        expected: Their reconstructions, encoded.
        columns: The table's columns; none for images, whose levels are compared in [0, 1].
    """
    if not columns:
        return ((x.double() - expected.double()) / BRIGHTEST).square()
    errors = (standardised(x.double(), columns) - standardised(expected.double(), columns)).square()
    for j, column in enumerate(columns):
        if column.kind in ("binary", "categorical"):
            errors[:, j] = torch.where(x[:, j].isnan(), torch.nan, (x[:, j] != expected[:, j]).double())
    return errors


def prepared(
    frame: pd.DataFrame, config: CompareConfig, base: Config | None, labels: ArrayLike | None, classes: Any
) -> Prepared:
    """Return a data set, split and encoded.

    Args:
        frame: Rows of a table, or one column of images.
        config: Sizes of the parts, and the seed.
        base: Settings of every network; by default `TrainConfig` or `ImageConfig`.
        labels: True for anomalous rows, (n,): none of them is trained on.
        classes: Class of each row, (n,).

    Raises:
        SchemaError: Too few rows, or columns that cannot be used.
        ShapeError: There are not as many labels or classes as rows.
    """
    images = is_image_column(frame)
    frame = frame.reset_index(drop=True) if images else _varying(named(frame).reset_index(drop=True))
    anomalous, coded = _beside(frame, labels, classes)
    normal = np.flatnonzero(~anomalous)
    if len(normal) < FEWEST_ROWS:
        raise SchemaError(
            f"data to compare models on must have at least {FEWEST_ROWS} normal rows, got {len(normal)}. "
            "Give more: fewer have no distribution to learn, and none are left to measure with.",
            rows=len(normal),
        )
    rng = np.random.default_rng(config.seed)
    if len(normal) > config.rows:
        normal = np.sort(rng.choice(normal, config.rows, replace=False))
    split = split_rows(len(normal), fractions={"test": config.test, "validation": 0.1}, seed=config.seed)
    at = {name: normal[split[name]] for name in ("train", "validation", "test")}
    at["test"], at["anomalous"] = (
        _some(rows, config.test_rows, rng) for rows in (at["test"], np.flatnonzero(anomalous))
    )
    base = base or (ImageConfig(pixels="discretized_logistic") if images else TrainConfig())
    schema: Schema | ImageSchema
    if isinstance(base, ImageConfig):
        schema = ImageSchema.fit(frame, size=base.height_width, rows=at["train"])
    else:
        kinds = {name: kind for name, kind in base.columns.items() if name in frame.columns}
        schema = Schema.fit(frame, kinds=kinds, rows=at["train"])
    width = schema.width_flat if isinstance(schema, ImageSchema) else len(schema.modelled)
    latent = config.latent or max(1, min(LARGEST_LATENT, width // 2))
    settings: dict[str, Any] = {"latent": latent, "seed": config.seed, "steps": config.steps}
    if isinstance(base, TrainConfig):
        settings["companions"] = []  # mixtures are another model
    base = type(base).from_mapping({**base.to_dict(), **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # of anomalous cells: these are asked for
        parts = {name: torch.from_numpy(schema.encode(frame.iloc[rows])) for name, rows in at.items()}
    if coded is None:
        return Prepared(schema, base, parts, None, np.empty(0))
    numbers = {name: torch.from_numpy(coded[rows]) for name, rows in at.items()}
    counts = np.bincount(coded[at["train"]].astype(np.int64), minlength=int(coded.max()) + 1)
    return Prepared(schema, base, parts, numbers, counts / counts.sum())


def _some(rows: NDArray[np.intp], most: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return np.sort(rng.choice(rows, most, replace=False)) if len(rows) > most else rows


def _varying(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table without columns of one value, which say nothing of any model."""
    constant = [
        name for name in frame.columns if frame[name].map(str).nunique(dropna=True) <= 1 and frame[name].notna().all()
    ]
    if not constant or len(constant) == frame.shape[1]:
        return frame
    shown = ", ".join(map(repr, constant[:NAMED])) + (", ..." if len(constant) > NAMED else "")
    warnings.warn(f"columns of one value are left out of the comparison: {shown}", DataWarning, stacklevel=4)
    return frame.drop(columns=constant)


def _beside(
    frame: pd.DataFrame, labels: ArrayLike | None, classes: Any
) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
    """Return which rows are anomalous, (n,), and the numbers of their classes, (n,), most frequent first."""
    anomalous = np.zeros(len(frame), dtype=bool) if labels is None else np.asarray(labels, dtype=bool)
    texts = None if classes is None else pd.Series(np.asarray(classes, dtype=object))
    for name, beside in (("labels", anomalous), ("classes", texts)):
        if beside is not None and len(beside) != len(frame):
            raise ShapeError(f"{name} must be as many as the {len(frame)} rows, got {len(beside)}. Give one a row.")
    if texts is None:
        return anomalous, None
    texts = texts.where(texts.notna(), "missing").map(str)
    order = {value: i for i, value in enumerate(texts[~anomalous].value_counts().index)}
    return anomalous, texts.map(lambda value: order.get(value, len(order) - 1)).to_numpy(dtype=np.float32)
