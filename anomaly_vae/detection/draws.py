"""Rows drawn from a model: of p(x), of p(x|class), or of both together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data.classes import Classes
from ..data.images import ImageSchema
from ..data.schema import Schema
from ..errors import ConfigError
from ..models.conv import ImageVAE
from ..models.family import Model


def told_classes(schema: Schema | ImageSchema) -> Classes | None:
    """Return what a model of a schema is told of each row; None for a model of p(x)."""
    return schema.classes if isinstance(schema, ImageSchema) else None


def refuse_classes(schema: Schema | ImageSchema, what: str) -> None:
    """Refuse a model that is told classes, where what is asked for is a matter of p(x).

    Raises:
        ConfigError: It is told classes.
    """
    classes = told_classes(schema)
    if classes is not None:
        raise ConfigError(
            f"{what} must be of a model of p(x), got one that is told {classes.column!r}. Train one without "
            "--condition."
        )


def numbers_of(schema: Schema | ImageSchema, n: int, generator: torch.Generator, *, given: Any = None) -> Tensor | None:
    """Return the numbers of n rows' classes, (n,): of one class, or drawn as often as training had them.

    Args:
        schema: The model's.
        n: Rows.
        generator: Of the draws.
        given: The class that all are of, if there is one.

    Returns:
        None for a model that is told no classes.

    Raises:
        ConfigError: A class is given that the model does not know, or a model that knows none.
    """
    classes = told_classes(schema)
    if classes is None:
        if given is not None:
            raise ConfigError(
                f"rows given a class must be asked of a model that is told classes, got {str(given)!r} for a model of "
                "p(x). Train with --condition COL, or draw by labelled rows: --data and --label.",
                wanted=given,
            )
        return None
    if given is not None:
        return torch.full((n,), classes.number(given))
    return torch.multinomial(torch.tensor(classes.counts, dtype=torch.float64), n, True, generator=generator)


def drawn(model: Model, schema: Schema | ImageSchema, n: int, *, seed: int, given: Any = None) -> Tensor:
    """Return n rows drawn from the model, encoded, (n, m); see `numbers_of`."""
    generator = torch.Generator().manual_seed(seed)
    numbers = numbers_of(schema, n, generator, given=given)
    if numbers is None:
        return model.sample(n, generator)
    assert isinstance(model, ImageVAE)
    return model.sample(n, generator, numbers)
