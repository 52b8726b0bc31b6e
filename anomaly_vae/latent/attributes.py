r"""Attributes as directions: what a label says, as a step in the latent space; and rows of a class, drawn.

The direction of an attribute is the difference between the mean codes of rows that have it and of rows that have not
(White 2016). Where another attribute goes along with it in the data, the difference is taken within each of the other's
values and averaged, so that the step does not change both (White's "replicate to balance", without replicates).

How far to go is a question of each row's own: :math:`t = (s^* - w^T z) / w^T v`, with v the direction, w the normal of
the best linear separation of the two kinds (Fisher's), and s* the mean of :math:`w^T z` over rows of the kind wanted.

Shapes: n rows, l latent width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.covariance import LedoitWolf

from ..errors import ConfigError, ShapeError
from .space import Codes, LatentSpace

FEWEST = 2
"""Rows of each kind that a direction wants at least."""


@dataclass(frozen=True, eq=False)
class AttributeVector:
    """A direction in the latent space.

    Attributes:
        name: The attribute.
        vector: From the mean code without it to the mean code with it, (l,).
        normal: Normal of the best linear separation, (l,).
        without: Mean of normal . z over the rows without it.
        within: The same over the rows with it.
        rows: Rows without and with it.
        accuracy: Share of those rows that lie on their own side of the middle, each kind counted half.
    """

    name: str
    vector: NDArray[np.float64]
    normal: NDArray[np.float64]
    without: float
    within: float
    rows: tuple[int, int]
    accuracy: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON has a word for."""
        facts = dataclasses.asdict(self)
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in facts.items()}

    def shifted(self, z: NDArray[Any], amount: float) -> Codes:
        """Return codes (n, l) moved by so many times the vector: 1 adds the attribute, -1 takes it away."""
        return (np.asarray(z) + amount * self.vector).astype(np.float32)

    def set(self, z: NDArray[Any], *, present: bool, strength: float = 1.0) -> Codes:
        """Return codes (n, l) moved along the vector, each as far as it takes.

        Args:
            z: Codes.
            present: Whether the attribute is to be there afterwards.
            strength: 1 = to where rows of that kind are on average; more goes further beyond.
        """
        middle = 0.5 * (self.without + self.within)
        goal = middle + strength * ((self.within if present else self.without) - middle)
        step = (goal - np.asarray(z, dtype=np.float64) @ self.normal) / float(self.normal @ self.vector)
        step = np.maximum(step, 0.0) if present else np.minimum(step, 0.0)  # one who has it already stays
        return (np.asarray(z) + step[:, None] * self.vector).astype(np.float32)


def attribute_vector(
    z: ArrayLike, attribute: ArrayLike, *, name: str = "attribute", balance: ArrayLike | None = None
) -> AttributeVector:
    """Return the direction of an attribute.

    Args:
        z: Codes of labelled rows, (n, l).
        attribute: Whether each row has it, (n,), bool or 0 and 1.
        name: What it is called.
        balance: Another attribute, (n,), any values, that is to stay as it is: the difference is taken within each of
            its values that has rows of both kinds, weighted by the fewer of them.

    Raises:
        ShapeError: The arrays differ in length.
        ConfigError: The attribute is the same for all rows (or for all rows of each value of `balance`), or is not of
            two values.

    Example:
        >>> codes = np.random.default_rng(0).normal(size=(100, 2))
        >>> found = attribute_vector(codes, codes[:, 1] > 0)
        >>> bool(abs(found.vector[1]) > 3 * abs(found.vector[0]))
        True

    References:
        White (2016), Sampling generative networks, arXiv:1609.04468, section 4.
    """
    codes, has = np.asarray(z, dtype=np.float64), np.asarray(attribute)
    others = np.zeros(len(codes)) if balance is None else np.asarray(balance)
    if codes.ndim != 2 or has.shape != (len(codes),) or others.shape != (len(codes),):
        raise ShapeError(f"an attribute must have one value for each row, got {has.shape} for codes {codes.shape}.")
    if not np.isin(has, (0, 1)).all():
        raise ConfigError(
            f"attribute {name!r} must be true or false in every row, got {has[~np.isin(has, (0, 1))][0]!r}."
        )
    has = has.astype(bool)
    differences, weights, within = [], [], np.zeros_like(codes)
    kinds = np.unique(others.astype(str) if others.dtype == object else others, return_inverse=True)[1]
    for kind in range(kinds.max() + 1 if len(kinds) else 0):
        one, other = (kinds == kind) & has, (kinds == kind) & ~has
        for part in (one, other):
            if part.any():
                within[part] = codes[part] - codes[part].mean(0)
        fewer = min(int(one.sum()), int(other.sum()))
        if fewer >= FEWEST:
            differences.append(codes[one].mean(0) - codes[other].mean(0))
            weights.append(fewer)
    if not differences:
        raise ConfigError(
            f"attribute {name!r} must have at least {FEWEST} rows with it and {FEWEST} without, got {int(has.sum())} "
            f"with it of {len(has)}. An attribute of one class has no direction; give rows of both.",
            attribute=name,
        )
    vector = np.average(differences, axis=0, weights=weights)
    normal = np.linalg.solve(
        LedoitWolf(assume_centered=True).fit(within).covariance_ + 1e-9 * np.eye(len(vector)), vector
    )
    along = codes @ normal
    without, present = float(along[~has].mean()), float(along[has].mean())
    middle = 0.5 * (without + present)
    accuracy = 0.5 * float((along[has] > middle).mean() + (along[~has] <= middle).mean())
    return AttributeVector(name, vector, normal, without, present, (int((~has).sum()), int(has.sum())), accuracy)


def resynthesise(
    space: LatentSpace,
    frame: pd.DataFrame,
    vector: AttributeVector,
    *,
    present: bool,
    strength: float = 1.0,
    keep_residual: bool = False,
) -> pd.DataFrame:
    """Return rows with an attribute given to them, or taken from them: encoded, moved, decoded.

    Args:
        space: The latent space that the vector is of.
        frame: Rows, n.
        vector: The attribute's.
        present: Whether the attribute is to be there.
        strength: See `AttributeVector.set`.
        keep_residual: Of images, add what the reconstruction had lost: the details that codes do not hold stay.

    Raises:
        SchemaError: The rows are not of the model.
        ConfigError: A residual is asked of a table.
    """
    z = space.encode(frame)
    moved = vector.set(z, present=present, strength=strength)
    if not keep_residual:
        return space.decode(moved, like=frame).set_axis(frame.index)
    if not space.images:
        raise ConfigError("a residual must be that of images, got a table's rows. Leave keep_residual out.")
    x = space.detector.encode(frame).numpy().astype(np.float64)
    left = x - space.decode_encoded(z, like=frame)
    levels = np.clip(np.round(space.decode_encoded(moved, like=frame) + left), 0, 255).astype(np.uint8)
    return space.schema.decode(levels).set_axis(frame.index)


def sample_of_class(
    space: LatentSpace, frame: pd.DataFrame, classes: ArrayLike, wanted: Any, n: int, *, seed: int = 0
) -> pd.DataFrame:
    """Return new rows of a class: drawn from a Gaussian fitted to codes of labelled rows of it, and decoded.

    The model need not know of classes: any labelled rows will do. Codes are draws of the posteriors, not their means,
    so that the Gaussian is that of the class's aggregated posterior; its covariance is shrunk (Ledoit & Wolf 2004).

    Args:
        space: The latent space.
        frame: Labelled rows, (r,).
        classes: Class of each, (r,).
        wanted: The class to draw.
        n: Rows to draw.
        seed: Of the draws.

    Raises:
        ConfigError: No row is of the class.
        ShapeError: There are not as many classes as rows.
    """
    values = pd.Series(np.asarray(classes, dtype=object)).map(str).to_numpy()
    if len(values) != len(frame):
        raise ShapeError(f"classes must be as many as the {len(frame)} rows, got {len(values)}. Give one a row.")
    chosen = values == str(wanted)
    if chosen.sum() < FEWEST:
        known = pd.unique(values)[:8].tolist()
        raise ConfigError(
            f"a class must have at least {FEWEST} labelled rows, got {int(chosen.sum())} of {str(wanted)!r}. "
            f"Known: {', '.join(map(repr, known))}.",
            wanted=wanted,
        )
    if n < 1:
        raise ConfigError(f"rows to draw must be at least 1, got {n}. Draw for example 100.", n=n)
    mean, log_scale = space.posterior(frame[chosen])
    rng = np.random.default_rng(seed)
    middle = mean.mean(0)
    covariance = LedoitWolf().fit(mean).covariance_ + np.diag(np.exp(2.0 * log_scale).mean(0))
    return space.decode(rng.multivariate_normal(middle, covariance, size=n).astype(np.float32))
