"""Data of either kind as a stream of frames: rows of a table, or images, of which unreadable ones are set aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from ..data.image_files import is_images, open_images
from ..data.image_parts import ImagePart
from ..data.image_source import FILE, ImageError, ImageSource
from ..data.images import ImageSchema
from ..data.rows import opened_parquet, read_frames, read_table
from ..data.schema import Schema
from ..data.sources import TableFile, table_files
from ..errors import ConfigError, SchemaError, UnreadableDataError
from ..evaluation.groups import MISSING

ROW = "row"
"""The key column of an output that was given no key: the row's number in the input, from 0."""
IMAGES_AT_ONCE = 4096


@dataclass(frozen=True)
class Stream:
    """Frames of a source.

    Attributes:
        frames: To be gone through once; indexed by row number from 0 over all files.
        types: Arrow types of the key columns: those asked for, or what tells rows apart by default.
        source: Where images come from; None for a table.
    """

    frames: Iterator[pd.DataFrame]
    types: dict[str, pa.DataType]
    source: ImageSource | None = None

    @property
    def errors(self) -> list[ImageError]:
        """Images that could not be read; complete once the frames are gone through."""
        return self.source.errors if self.source else []


@dataclass(frozen=True)
class Whole:
    """A whole data set.

    Attributes:
        frame: Its rows, or images.
        errors: Images that could not be read.
    """

    frame: pd.DataFrame
    errors: list[ImageError]


def holds_images(source: str | Path) -> bool:
    """Whether a source is a set of images rather than a table.

    Raises:
        UnreadableDataError: It is a folder that holds neither.
    """
    if is_images(source):
        return True
    path = Path(source)
    if path.is_dir() and not any(path.rglob("*.*")):
        raise UnreadableDataError(
            f"a folder must hold CSV or Parquet files, or images, got none in {str(source)!r}. Check the path."
        )
    return False


def stream(
    source: str | Path | TableFile | ImagePart,
    schema: Schema | ImageSchema | None,
    *,
    batch_rows: int = 65_536,
    key: Sequence[str] = (),
    label: str | None = None,
    may_be_empty: bool = False,
) -> Stream:
    """Open a source for a model.

    Args:
        source: CSV or Parquet file, or a folder of them, or one of `data.sources.parts_of`; for a model of images what
            `open_images` takes, or one of `data.image_parts`.
        schema: The model's columns, or images.
        batch_rows: Rows of a frame at most.
        key: Columns to tell rows apart by: they stay text in CSV.
        label: A column of labels: it stays text in CSV.
        may_be_empty: Whether a table may be without rows.

    Raises:
        UnreadableDataError: There is nothing to read.
    """
    if isinstance(schema, ImageSchema) and not isinstance(source, TableFile):
        opened = images_of(source, schema, label=label, batch_rows=min(batch_rows, IMAGES_AT_ONCE))
        return Stream(_as_text(opened.batches(schema), key), {name: pa.string() for name in key or (FILE,)}, opened)
    if isinstance(source, ImagePart):
        raise ConfigError(f"a part of a table must be CSV or Parquet, got the images {source.name!r}.")
    text = {*(schema.text_columns if isinstance(schema, Schema) else ()), *key, *([label] if label else [])}
    frames = read_frames(source, batch_rows=batch_rows, text=text, may_be_empty=may_be_empty)
    return Stream(frames, _key_types(source, key))


def read_all(source: str | Path, schema: Schema | ImageSchema | None = None, *, group: str | None = None) -> Whole:
    """Return a whole table, or set of images, for training or calibration; see `stream`.

    Args:
        source: See `stream`.
        schema: The model's columns, or images.
        group: A column of groups, kept beside images, and text in CSV where the model does not know it.
    """
    if isinstance(schema, ImageSchema):
        opened = images_of(source, schema, label=group)
        return Whole(_chosen(opened.read(schema), [*schema.names, group]), opened.errors)
    text = {*(schema.text_columns if schema else ()), *beyond(schema, group)}
    return Whole(read_table(source, text=text), [])


def beyond(schema: Schema | ImageSchema | None, *names: str | None) -> list[str]:
    """Return which of some columns the model does not know; None among them is passed over."""
    known = () if schema is None else schema.names
    return [name for name in dict.fromkeys(names) if name is not None and name not in known]


def group_names(frame: pd.DataFrame, column: str) -> pd.Series:
    """Return each row's group as text, the same from CSV and from Parquet; "(missing)" where the cell is.

    Raises:
        SchemaError: The column is absent.
        ConfigError: No cell of it has a value.
    """
    if column not in frame.columns:
        shown = ", ".join(repr(str(name)) for name in frame.columns[:8])
        raise SchemaError(f"a group must be a column of the table, got {column!r}. It has {shown}.", column=column)
    cells = frame[column]
    if not cells.notna().any():
        raise ConfigError(f"a group column must have values, got none in {column!r}. Choose another.", column=column)
    if pd.api.types.is_float_dtype(cells.dtype):  # whole numbers beside missing cells
        return cells.map(lambda value: MISSING if pd.isna(value) else f"{value:.15g}")
    return cells.astype(object).where(cells.notna(), MISSING).map(str)


def read_images(
    source: str | Path,
    *,
    label: str | None = None,
    beside: Sequence[str] = (),
    size: tuple[int, int] | None = None,
) -> Whole:
    """Return a whole set of images at one size, for training.

    Args:
        source: See `open_images`.
        label: Name for the column of classes, kept beside the images if it is given.
        beside: The same for what training looks at, `ImageConfig.beside`. Only a Parquet file has two such columns.
        size: Height and width; by default chosen by the images.

    Raises:
        SchemaError: A column is absent.
    """
    opened = open_images(source, label=next(iter(beside), label))
    schema = opened.fit(size=size)
    return Whole(_chosen(opened.read(schema), [schema.column, *beside, label]), opened.errors)


def images_of(
    source: str | Path | ImagePart, schema: ImageSchema, *, label: str | None = None, batch_rows: int = IMAGES_AT_ONCE
) -> ImageSource:
    """Open images for a model, with their classes if it is told these; see `open_images`.

    Raises:
        SchemaError: There are no such classes, or labels.
    """
    named = label if schema.classes is None else schema.classes.column
    try:
        if isinstance(source, ImagePart):
            return source.open(label=named, batch_rows=batch_rows)
        return open_images(source, label=named, batch_rows=batch_rows)
    except UnreadableDataError:
        raise
    except SchemaError as error:
        if schema.classes is None:
            raise
        raise SchemaError(
            f"images of a model that is told {schema.classes.column!r} must come with it: in sub-folders, in a column "
            f"of a Parquet file, or as an array of an .npz. {str(error)[:1].upper()}{str(error)[1:]}",
            column=schema.classes.column,
        ) from error


def _chosen(frame: pd.DataFrame, names: Sequence[str | None]) -> pd.DataFrame:
    """Return some columns of images, None among them passed over.

    Raises:
        SchemaError: One is absent.
    """
    wanted = list(dict.fromkeys(name for name in names if name is not None))
    absent = [name for name in wanted if name not in frame.columns]
    if absent:
        shown = ", ".join(repr(str(name)) for name in frame.columns[:8])
        raise SchemaError(
            f"a named column must be beside the images, got {absent[0]!r}. They have {shown}; only a Parquet file has "
            "several columns of classes.",
            column=absent[0],
        )
    return frame[wanted]


def _as_text(frames: Iterator[pd.DataFrame], key: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Yield frames whose key columns are text: images come from sources that have no types, or any."""
    for frame in frames:
        present = [name for name in key if name in frame.columns]
        yield frame.astype(dict.fromkeys(present, "string")) if present else frame


def _key_types(source: str | Path | TableFile, key: Sequence[str]) -> dict[str, pa.DataType]:
    """Arrow types of the keys: those of the Parquet input, text from CSV (where the characters are the value)."""
    if not key:
        return {ROW: pa.int64()}
    first = source if isinstance(source, TableFile) else TableFile.at(table_files(source)[0])
    if first.is_csv:
        return {name: pa.string() for name in key}
    with opened_parquet(first) as table:
        fields = table.schema_arrow
    return {name: fields.field(name).type if name in fields.names else pa.string() for name in key}
