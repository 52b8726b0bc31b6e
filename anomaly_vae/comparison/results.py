"""What a comparison of models comes to."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import SchemaError

Kind = TypeVar("Kind")


def plain(value: Any) -> Any:
    """Return a dataclass, or a list or dict of them, as values that JSON has a word for: None for what is not finite.

    Example:
        >>> plain({"a": (1.0, float("nan"))})
        {'a': [1.0, None]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def restored(kind: type[Kind], value: Any) -> Kind:
    """Return the dataclass that `plain` made a mapping of; None for a number stands for NaN, unknown keys are left out.

    Args:
        kind: The dataclass.
        value: As JSON holds it.

    Raises:
        SchemaError: A field is absent or of another type; the text says which, as "samples.0.name".

    Example:
        >>> restored(Figures, {**plain(Figures(seconds=2.0, parameters=3)), "elbo": -1}).elbo
        -1.0
    """
    made: Kind = _restored(kind, value, "")
    return made


def _restored(kind: Any, value: Any, at: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):  # of one type and None
        return None if value is None else _restored(inner[0], value, at)
    if kind is float and (value is None or (isinstance(value, int) and not isinstance(value, bool))):
        return math.nan if value is None else _finite(value, at)
    if origin is tuple and isinstance(value, list):
        return tuple(_restored(inner[0], one, f"{at}.{i}") for i, one in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _restored(inner[1], one, f"{at}.{key}") for key, one in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints, found = typing.get_type_hints(kind), {}
        for field in dataclasses.fields(kind):
            if field.name in value:
                found[field.name] = _restored(hints[field.name], value[field.name], f"{at}.{field.name}")
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise _foreign(f"{at}.{field.name}", "nothing")
        return kind(**found)
    if origin is None and isinstance(kind, type) and type(value) is kind:
        return value
    raise _foreign(at, type(value).__name__)


def _finite(value: int, at: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _foreign(at, "an integer that is too large") from None


def _foreign(at: str, found: str) -> SchemaError:
    where = at.lstrip(".")[:80] or "the whole"
    return SchemaError(f"{where} must be what the verb that wrote it put there, got {found}. Write it anew.", at=where)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one model came to; None: it has no such figure.

    Attributes:
        reconstruction_error: Mean over the test rows' cells, of the row's reconstruction from its code's mean: squared
            error in the column's own standard deviations, of counts in those of log(1 + n), 1 for a wrong category;
            of images squared error of pixels in [0, 1].
        elbo: Mean evidence lower bound of the test rows, nats; of an exact model its log-likelihood.
        log_likelihood: Mean log p(x) of the test rows, nats, in the user's own units.
        log_likelihood_se: Its standard error over the choice of rows.
        mc_se: Its Monte-Carlo standard error: 0 where the likelihood is exact.
        exact: Whether the likelihood is exact, rather than estimated from below by importance sampling.
        bits_per_dimension: -log_likelihood / (m log 2).
        latent: Latent width.
        active_units: Latent dimensions in use.
        auroc: Probability that an anomalous row scores above a normal one.
        auroc_low: Lower end of its 95 % bootstrap interval.
        auroc_high: Upper end.
        score: By what it is ranked: "log-likelihood" or "reconstruction error".
        seconds: Training.
        parameters: Numbers that training has set.
        principal_angle: Largest angle to the subspace of as many principal components, degrees.
    """

    reconstruction_error: float | None = None
    elbo: float | None = None
    log_likelihood: float | None = None
    log_likelihood_se: float | None = None
    mc_se: float | None = None
    exact: bool = False
    bits_per_dimension: float | None = None
    latent: int | None = None
    active_units: int | None = None
    auroc: float | None = None
    auroc_low: float | None = None
    auroc_high: float | None = None
    score: str | None = None
    seconds: float = 0.0
    parameters: int = 0
    principal_angle: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A model among those compared.

    Attributes:
        name: One of `understanding.RUNGS`.
        title: The same for people.
        what: What it adds to the ones before it, in a sentence.
        figures: What it came to; None if it does not apply.
        sentence: Why it does not apply, or what is to be known of its figures; empty otherwise.
    """

    name: str
    title: str
    what: str
    figures: Figures | None
    sentence: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelComparison:
    """The models of the family on one data set.

    Attributes:
        data: What was compared on, in words: "rows of 5 columns" or "images of 8 x 8".
        dimensions: Columns or pixels m.
        rows: How many rows were "train", "validation", "test" and "anomalous".
        latent: Latent width of all.
        config: Settings.
        rungs: The models, from the simplest.
    """

    data: str
    dimensions: int
    rows: dict[str, int]
    latent: int
    config: dict[str, Any]
    rungs: tuple[Rung, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON has a word for."""
        return dict(plain(self))

    def of(self, name: str) -> Rung:
        """Return the rung of this name."""
        return next(rung for rung in self.rungs if rung.name == name)
