"""One call from a data set to the table of models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..data.images import ImageSchema, frame_of
from ..errors import ShapeError, TrainingError, TrainingWarning
from ..options import Config
from ..options.understanding import CompareConfig
from .prepared import Prepared, prepared
from .results import ModelComparison, Rung
from .rungs import KINDS


def compare_models(
    frame: pd.DataFrame | NDArray[Any],
    config: CompareConfig | None = None,
    *,
    base: Config | None = None,
    labels: ArrayLike | None = None,
    classes: Any = None,
    on_rung: Callable[[str], None] | None = None,
) -> ModelComparison:
    """Train every model of the family on one data set and measure all of them on the same held-out rows.

    A model that does not apply to the data has a sentence that says why in the place of its figures.

    Args:
        frame: Rows of a table; or images: an array (n, h, w) or (n, h, w, c), or a frame with one column of images.
        config: Which models, how wide their codes, how long they train.
        base: Settings of every network, `TrainConfig` or `ImageConfig`; latent width, steps and seed are overridden.
        labels: True (or 1) for anomalous rows, (n,): none of them is trained on, and detection is measured.
        classes: Class of each row, (n,), for the conditional model.
        on_rung: Called with the title of each model before it is trained.

    Raises:
        SchemaError: Under 20 normal rows, or columns that cannot be used.
        ShapeError: There are not as many labels or classes as rows.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rows = pd.DataFrame(rng.normal(size=(200, 1)) * [1.0, 2.0, 3.0] + 0.1 * rng.normal(size=(200, 3)))
        >>> found = compare_models(rows, CompareConfig(models="pca,linear_autoencoder", latent=1))
        >>> found.of("linear_autoencoder").figures.principal_angle < 1
        True

    References:
        Baldi & Hornik (1989); Tipping & Bishop (1999); Kingma & Welling (2014), arXiv:1312.6114; Burda et al. (2016),
        arXiv:1509.00519; Higgins et al. (2017); Sohn et al. (2015); Norouzi et al. (2020), arXiv:2004.04795; Sønderby
        et al. (2016), arXiv:1602.02282; Durkan et al. (2019), arXiv:1906.04032.
    """
    config = config or CompareConfig()
    if isinstance(frame, np.ndarray):
        if frame.ndim not in (2, 3, 4):
            raise ShapeError(f"rows must have shape (n, m), or be images, got {frame.shape}. Give one row for each.")
        frame = (
            frame_of(frame) if frame.ndim > 2 else pd.DataFrame(frame, columns=[f"x{j}" for j in range(frame.shape[1])])
        )
    data = prepared(frame, config, base, labels, classes)
    rungs = []
    for name in config.chosen:
        if on_rung is not None:
            on_rung(KINDS[name].title)
        rungs.append(_climbed(name, data, config))
    return ModelComparison(
        data=_words(data), dimensions=data.dimensions, latent=data.latent, config=config.to_dict(), rungs=tuple(rungs),
        rows={name: len(part) for name, part in data.parts.items()},
    )  # fmt: skip


def _climbed(name: str, data: Prepared, config: CompareConfig) -> Rung:
    kind = KINDS[name]
    sentence = kind.refuses(data)
    if sentence:
        return Rung(name=name, title=kind.title, what=kind.what, figures=None, sentence=sentence)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrainingWarning)
        try:
            found, sentence = kind.measure(data, config)
        except TrainingError as error:  # one model that cannot be trained must not cost the others' figures
            return Rung(name=name, title=kind.title, what=kind.what, figures=None, sentence=f"Failed: {error}")
    if any(issubclass(w.category, TrainingWarning) for w in caught):
        sentence = f"{sentence} Its posterior collapsed: no code is in use.".strip()
    return Rung(name=name, title=kind.title, what=kind.what, figures=found, sentence=sentence)


def _words(data: Prepared) -> str:
    if isinstance(data.schema, ImageSchema):
        return (
            f"images of {data.schema.height} x {data.schema.width}{' in colour' if data.schema.channels == 3 else ''}"
        )
    return f"rows of {len(data.columns)} columns"
