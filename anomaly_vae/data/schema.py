"""Typed columns, and the way between a table and the array that a model sees.

The encoded array has one entry a modelled column, float32, NaN = missing:

===========  =====================================================================================
continuous   (value - center) / scale, kept within +-SATURATION
count        the count itself, -1 = no count (negative or fractional)
binary       0 or 1, 2 = unseen
categorical  index of the category, number of categories = unseen
===========  =====================================================================================

Columns are found by name: their order in a table does not matter, extra ones are ignored with a warning,
absent ones are an error, or on demand columns of missing cells.
"""

from __future__ import annotations

import difflib
import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import DataWarning, SchemaError
from ..options import KINDS
from .cells import UNSEEN, category_codes, levels, numbers, row_label, text_of, times, unwrapped
from .inference import LARGEST_COUNT, infer_kind

SATURATION = 1e4
"""Encoded continuous values are kept within this many standard deviations of the training mean."""
ABSURD = 1e4
"""A standard deviation of more than this many interquartile ranges is that of a few absurd cells."""
MAX_CATEGORIES = 256
"""Categories kept per column, the most frequent first; rarer ones are encoded as unseen."""
NO_COUNT = -1.0
"""Code of a cell in a count column that is no count: as improbable as an unseen category, and not an error, since
such a cell is what a detector is asked to find."""
UNSEEN_FLOOR = 1e-6
"""Least probability given to a value never seen in training: a surprise of at most 13.8 nats."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table, with what its training cells said.

    Attributes:
        name: Name in the user's table.
        kind: continuous, binary, categorical, count or ignored.
        dtype: What a cell is to the user: float64, int64, bool, string or datetime64[ns].
        reason: Why this kind, where it may surprise.
        center: Mean of the training cells (of log(1 + count) for counts), in the column's own units.
        scale: Standard deviation of the same, above 0.
        categories: Canonical texts of the known values; empty for continuous and count.
        unseen: Probability of a value outside `categories`: the Good-Turing estimate (share of values seen once),
            at least `UNSEEN_FLOOR`.
        n_missing: Missing cells among the rows the schema was fitted on.
    """

    name: str
    kind: str
    dtype: str
    reason: str = ""
    center: float = 0.0
    scale: float = 1.0
    categories: tuple[str, ...] = ()
    unseen: float = UNSEEN_FLOOR
    n_missing: int = 0

    @cached_property
    def index_of(self) -> Mapping[str, int]:
        """The position of each category."""
        return {c: i for i, c in enumerate(self.categories)}


def _is_discrete(column: Column) -> bool:
    return column.kind in ("binary", "categorical")


@dataclass(frozen=True)
class Schema:
    """The columns of a table, fitted to training rows.

    Example:
        >>> frame = pd.DataFrame({"age": [31.5, 40.2, 28.9], "city": ["Oslo", "Rome", "Rome"]})
        >>> schema = Schema.fit(frame)
        >>> [(c.name, c.kind) for c in schema.modelled]
        [('age', 'continuous'), ('city', 'binary')]
        >>> schema.decode(schema.encode(frame))["city"].tolist()
        ['Oslo', 'Rome', 'Rome']
    """

    columns: tuple[Column, ...]

    @classmethod
    def fit(
        cls,
        table: pd.DataFrame | pa.Table,
        *,
        kinds: Mapping[str, str] | None = None,
        rows: NDArray[np.intp] | None = None,
    ) -> Self:
        """Infer kinds and fit scales and categories.

        Args:
            table: All rows at hand: what a column is, is judged by all of them.
            kinds: Declared kinds by column name; the other columns are inferred (see `inference`).
            rows: Positions of the training rows, from which scales and categories are taken; by default all.

        Raises:
            SchemaError: No rows or columns, duplicate names, a declared column that is absent, or bad cells.
        """
        frame = named(table.to_pandas() if isinstance(table, pa.Table) else table)
        kinds = kinds or {}
        _refuse_unknown(kinds, list(frame.columns))
        if frame.shape[0] == 0 or frame.shape[1] == 0:
            raise SchemaError(f"a table must have rows and columns, got shape {frame.shape}. Check the file.")
        columns = tuple(_fit_column(unwrapped(frame[name]), name, kinds.get(name), rows) for name in frame.columns)
        if all(c.kind == "ignored" for c in columns):
            reasons = "; ".join(f"{c.name}: {c.reason}" for c in columns[:8])
            raise SchemaError(f"a table must have a column to model, got none ({reasons}). Declare one.")
        return cls(columns)

    @cached_property
    def modelled(self) -> tuple[Column, ...]:
        """The columns a model sees, in order; the m of every shape (n, m)."""
        return tuple(c for c in self.columns if c.kind != "ignored")

    @cached_property
    def ignored(self) -> tuple[Column, ...]:
        """The columns left out, each with its reason."""
        return tuple(c for c in self.columns if c.kind == "ignored")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the modelled columns."""
        return tuple(c.name for c in self.modelled)

    @cached_property
    def text_columns(self) -> frozenset[str]:
        """Columns whose cells are text: a CSV reader must not turn them into numbers."""
        return frozenset(c.name for c in self.columns if c.dtype == "string")

    def encode(self, frame: pd.DataFrame, *, allow_missing: bool = False) -> NDArray[np.float32]:
        """Return rows as the model's array, shape (n, m), NaN = missing.

        Args:
            frame: Rows, n.
            allow_missing: Take an absent column for one of missing cells, with a warning, as long as one is present.

        Raises:
            SchemaError: A column is absent or given twice, or a cell is text among numbers or infinite; column
                and row are named.
        """
        frame = named(frame)
        self._check_names(list(frame.columns), allow_missing)
        out = np.full((len(frame), len(self.modelled)), np.nan, dtype=np.float32)
        done = self._standardised_at_once(frame, out)
        for j, column in enumerate(self.modelled):
            if j in done or column.name not in frame.columns:
                continue
            series = frame[column.name]
            if _is_discrete(column):
                boolean = column.dtype == "bool"
                out[:, j] = category_codes(series, column.name, column.index_of, boolean=boolean)
            elif column.kind == "count":
                out[:, j] = _counts(series, column)
            else:
                out[:, j] = _standardised(series, column)
        return out

    def _standardised_at_once(self, frame: pd.DataFrame, out: NDArray[np.float32]) -> frozenset[int]:
        """Fill in continuous columns of plain numbers together, and return which; none where one needs a word said.

        The arithmetic is that of `_standardised`, cell by cell; of a few rows nearly all cost lies in the calls.
        """
        plain = {
            name for name, dtype in zip(frame.columns, frame.dtypes, strict=True) if dtype in (np.float64, np.int64)
        }
        found = [j for j, c in enumerate(self.modelled) if c.kind == "continuous" and c.name in plain]
        found = [j for j in found if self.modelled[j].dtype != "datetime64[ns]"]
        columns = [self.modelled[j] for j in found]
        place = {name: i for i, name in enumerate(frame.columns)}
        cells = frame.take([place[c.name] for c in columns], axis=1).to_numpy(dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            values = (cells - [c.center for c in columns]) / [c.scale for c in columns]
            if (np.abs(values) > SATURATION).any() or np.isinf(cells).any():
                return frozenset()
        out[:, found] = values
        return frozenset(found)

    def decode(self, x: NDArray[Any]) -> pd.DataFrame:
        """Return encoded rows (n, m) as a table with the user's names and dtypes; unseen categories are `UNSEEN`."""
        cells = {c.name: decode_cells(np.asarray(x)[:, j], c) for j, c in enumerate(self.modelled)}
        return pd.DataFrame(cells)

    @property
    def called(self) -> str:
        """What rows are, in words: "rows of 5 columns"."""
        return f"rows of {len(self.modelled)} columns"

    def described(self) -> list[dict[str, Any]]:
        """Return what is known of each column, JSON-able, for people."""
        return [{"name": c.name, "kind": c.kind, "dtype": c.dtype, "reason": c.reason} for c in self.columns]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able facts; `from_dict` is the inverse."""
        return {"columns": [{**asdict(c), "categories": list(c.categories)} for c in self.columns]}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Self:
        """Rebuild a schema from `to_dict`.

        Raises:
            SchemaError: The facts are not those of a schema.
        """
        known = {f.name for f in fields(Column)}
        try:
            columns = [Column(**{**c, "categories": tuple(map(str, c["categories"]))}) for c in facts["columns"]]
            for c in columns:
                numeric = [c.center, c.scale, c.unseen]
                if c.kind not in KINDS or not all(map(math.isfinite, numeric)) or c.scale <= 0 or not 0 < c.unseen < 1:
                    raise ValueError(f"column {c.name!r} is not valid")
        except (KeyError, TypeError, ValueError) as error:
            raise SchemaError(
                f"a stored schema must list columns with {sorted(known)}, got another ({error})."
            ) from error
        return cls(tuple(columns))

    def to_toml(self) -> str:
        """Return the kinds as editable TOML, accepted by `TrainConfig.from_toml`."""
        lines = ["# Kinds: continuous, binary, categorical, count, ignored.", "[columns]"]
        for c in self.columns:
            values = ", ".join(c.categories[:6]) + (", ..." if len(c.categories) > 6 else "")
            facts = [c.reason, f"{c.n_missing} missing" if c.n_missing else "", values]
            note = "; ".join(fact.replace("\n", " ") for fact in facts if fact)
            lines.append(
                f"{json.dumps(c.name, ensure_ascii=False)} = {json.dumps(c.kind)}" + (f"  # {note}" if note else "")
            )
        return "\n".join(lines) + "\n"

    def _check_names(self, got: Sequence[str], allow_missing: bool) -> None:
        absent = [name for name in self.names if name not in set(got)]
        known = {c.name for c in self.columns}
        extra = [name for name in got if name not in known]
        if absent and allow_missing and len(absent) < len(self.names):
            message = f"absent columns count as missing cells: {', '.join(map(repr, absent))}"
            warnings.warn(message, DataWarning, stacklevel=3)
        elif absent:
            near = {name: difflib.get_close_matches(name, extra, n=1) for name in absent}
            lines = [f"  - {name}" + (f"   (is it {near[name][0]!r}?)" if near[name] else "") for name in absent]
            lines += [f"  + {name}" for name in extra]
            remedy = "Add or rename them, or let them count as missing cells: allow_missing=True, --allow-missing."
            if len(absent) == len(self.names):
                remedy = "Add or rename them: without any of them there is nothing to score."
            raise SchemaError(
                f"a table must have the {len(self.names)} columns of the training table, got {len(absent)} too few: "
                f"column {', '.join(map(repr, absent[:5]))} absent. {remedy}\n" + "\n".join(lines[:40]),
                absent=tuple(absent),
                extra=tuple(extra),
            )
        if extra:
            shown = ", ".join(map(repr, extra[:5])) + (", ..." if len(extra) > 5 else "")
            warnings.warn(f"columns unknown to the model were ignored: {shown}", DataWarning, stacklevel=3)


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with text column names.

    Raises:
        SchemaError: Two columns have the same name.
    """
    names = [str(name) for name in frame.columns]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SchemaError(f"column names must differ, got {twice[0]!r} more than once. Rename one.", column=twice[0])
    if names != list(frame.columns):
        frame = frame.set_axis(names, axis=1)
    return frame


def decode_cells(values: NDArray[Any], column: Column) -> pd.Series:
    """Return one column of encoded values (n,) as the user's cells."""
    missing = np.isnan(values)
    if _is_discrete(column):
        table = np.array([*map(_typed(column), column.categories), UNSEEN], dtype=object)
        codes = np.where(missing, len(column.categories), values).astype(np.intp)
        cells = pd.Series(table[codes], dtype=object).mask(missing, None)
        plain = column.dtype in ("bool", "int64", "float64") and not (missing | (codes == len(column.categories))).any()
        return cells.astype(column.dtype) if plain else cells
    numeric = values.astype(np.float64)
    if column.kind == "continuous":
        numeric = numeric * column.scale + column.center
    if column.dtype == "datetime64[ns]":
        return pd.Series(pd.to_datetime(numeric, unit="s"))
    if column.dtype == "int64":
        whole = pd.Series(np.round(numeric)).astype("Int64")
        if column.kind == "count" and (values == NO_COUNT).any():
            return whole.astype(object).mask(values == NO_COUNT, UNSEEN)
        return whole if missing.any() else whole.astype("int64")
    return pd.Series(numeric)


def _typed(column: Column) -> Any:
    kinds = {"bool": lambda t: t == "True", "int64": int, "float64": float}
    return kinds.get(column.dtype, str)


def _refuse_unknown(kinds: Mapping[str, str], names: Sequence[str]) -> None:
    for name, kind in kinds.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The table has {', '.join(map(repr, names[:8]))}."
            raise SchemaError(f"a declared column must be in the table, got {name!r}. {hint}", column=name)
        if kind not in KINDS:
            raise SchemaError(f"column {name!r} must be declared one of {', '.join(KINDS)}, got {kind!r}.", column=name)


def _fit_column(series: pd.Series, name: str, declared: str | None, rows: NDArray[np.intp] | None) -> Column:
    inferred = infer_kind(series, name, declared)
    series = series if rows is None else series.iloc[rows]
    if inferred.kind != "ignored" and series.isna().all():
        inferred = replace(inferred, kind="ignored", reason="every cell is missing in the training rows")
    facts: dict[str, Any] = {"name": name, "n_missing": int(series.isna().sum()), **asdict(inferred)}
    if inferred.kind == "ignored":
        return Column(**facts)
    present = series.dropna()
    if inferred.kind in ("binary", "categorical"):
        codes, values = levels(present, name)
        if len(values) == 1:  # a Bernoulli needs two values; a category may be alone
            facts |= {"kind": "categorical", "reason": "constant: any other value is unseen"}
        counts = np.bincount(codes, minlength=len(values))
        texts = [text_of(v) for v in values]
        order = sorted(range(len(values)), key=lambda i: (-counts[i], texts[i]))
        if inferred.kind == "binary":
            order = sorted(
                order, key=lambda i: (0.0, texts[i]) if inferred.dtype == "string" else (float(values[i]), "")
            )
        kept = order[:MAX_CATEGORIES]
        others = counts.sum() - counts[kept].sum() + (counts[kept] == 1).sum()
        unseen = float(np.clip(others / max(1, counts.sum()), UNSEEN_FLOOR, 0.5))
        return Column(**facts, categories=tuple(texts[i] for i in kept), unseen=unseen)
    cells = numbers(present, name)
    center, scale = _moments(np.log1p(cells) if inferred.kind == "count" else cells)
    if inferred.kind == "continuous":
        _warn_if_ruled_by_few(cells, scale, name)
    return Column(**facts, center=center, scale=scale)


def _warn_if_ruled_by_few(values: NDArray[np.float64], scale: float, name: str) -> None:
    """Warn where a few cells lie so far out that, in units of the scale they make, all others look alike."""
    low, high = np.quantile(values, [0.25, 0.75])
    if 0 < high - low < scale / ABSURD:
        warnings.warn(
            f"column {name!r}: half of its cells lie within {high - low:.3g} of each other, the furthest is "
            f"{values[np.abs(values - low).argmax()]:.3g}: beside it the others hardly differ. Correct such cells or "
            "leave them empty, if they are errors",
            DataWarning,
            stacklevel=6,
        )


def _moments(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation that neither overflow at 1e300 nor vanish for a declared constant column."""
    largest = float(np.abs(values).max()) or 1.0
    ratios = values / largest
    center, scale = float(ratios.mean()) * largest, float(ratios.std()) * largest
    return center, scale if scale > 1e-12 * largest else largest


def _counts(series: pd.Series, column: Column) -> NDArray[np.float64]:
    values = numbers(series, column.name)
    with np.errstate(invalid="ignore"):
        outside = (values < 0) | (values != np.round(values)) & ~np.isnan(values)
    if outside.any():
        warnings.warn(
            f"count column {column.name!r}: cells that are no whole number from 0 up, such as "
            f"{float(values[outside][0])!r} in row {row_label(series, outside)!r}, score as values never seen",
            DataWarning,
            stacklevel=4,
        )
    return np.where(outside, NO_COUNT, _saturated(values, LARGEST_COUNT, column))


def _standardised(series: pd.Series, column: Column) -> NDArray[np.float64]:
    if column.dtype == "datetime64[ns]":
        series = times(series, column.name)
    values = numbers(series, column.name)
    with np.errstate(over="ignore"):
        return _saturated((values - column.center) / column.scale, SATURATION, column)


def _saturated(values: NDArray[np.float64], bound: float, column: Column) -> NDArray[np.float64]:
    beyond = int((np.abs(values) > bound).sum())
    if beyond:
        unit = "standard deviations from the training mean" if column.kind == "continuous" else ""
        warnings.warn(
            f"column {column.name!r}: {beyond} cells lie beyond {bound:g} {unit}".rstrip() + " and count as that far",
            DataWarning,
            stacklevel=4,
        )
    return np.clip(values, -bound, bound)
