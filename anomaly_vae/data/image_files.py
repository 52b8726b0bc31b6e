"""Images from files as a stream of frames: decoded in parallel at a schema's size, bad ones set aside with a reason.

A path is one of

- a folder of PNG, JPEG, WebP and TIFF files, at any depth, in natural order of name (2 before 10); where they lie in
  sub-folders, the first of these is an image's class. Hidden files and links that leave the folder are left out, and
  nothing outside it is read;
- an image file;
- an .npy or .npz array (n, h, w) or (n, h, w, c), without pickled objects. Of several arrays in an .npz, that called x,
  images or X is taken, or the one named after a colon (`mnist.npz:x_test`); its labels are those of the same name with
  y for x and labels for images, or else y, labels or label;
- a Parquet file, or a folder of them, with one binary column of encoded files (plain, or a struct with `bytes`); its
  other columns are kept;
- the word `sklearn:digits`, the 1,797 digits that scikit-learn brings, 8 x 8.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import SchemaError, UnreadableDataError, UnreadableImageError
from .image_arrays import ARRAY_SUFFIXES, ArrayFile, open_array, split_key
from .image_source import BATCH_BYTES, FILE, LABEL, ImageError, ImageSource, write_errors
from .images import IMAGE, frame_of
from .pixels import FORMATS, SUFFIXES, NamedFile, format_of
from .sources import CSV_SUFFIXES, PARQUET_SUFFIXES

__all__ = [
    "DIGITS", "ImageError", "ImageSource", "files_in", "image_tables", "is_images", "open_files", "open_images",
    "write_errors",
]  # fmt: skip

DIGITS = "sklearn:digits"
"""Name of the built-in set."""
OTHER_SUFFIXES = (".gif", ".bmp", ".heic", ".heif", ".avif", ".jp2", ".psd", ".ico", ".svg", ".ppm", ".pgm")
"""Image files that are not read: each is said, not passed over."""


def is_images(path: str | Path) -> bool:
    """Whether a path is a set of images rather than a table; False also where there is nothing.

    A folder is one of images where it holds more image files than table files (CSV, Parquet), or Parquet files of
    which the first has images; a file by its suffix; a Parquet file by one binary column that starts with an image.
    """
    if str(path) == DIGITS:
        return True
    file, _ = split_key(path)
    if file.is_dir():
        images, tables = _census(file)
        return images > len(tables) or bool(tables and _image_column(tables[0]))
    suffix = file.suffix.lower()
    return suffix in (*ARRAY_SUFFIXES, *SUFFIXES, *OTHER_SUFFIXES) or _image_column(file) is not None


def open_images(path: str | Path, *, label: str | None = None, batch_rows: int = 4096) -> ImageSource:
    """Open a set of images; nothing is decoded yet.

    Args:
        path: See the module.
        label: Column of classes: a column of a Parquet file, an array of an .npz, or the name that the classes of
            sub-folders or digits get. By default the classes of these, or an .npz's labels, as "label".
        batch_rows: Rows of a frame at most.

    Raises:
        UnreadableDataError: The path is absent, or holds no images of a kind that is read.
        SchemaError: There are no such labels.
    """
    if label in (IMAGE, FILE):
        raise SchemaError(f"the label of images must not be called {IMAGE!r} or {FILE!r}, got {label!r}. Rename it.")
    if str(path) == DIGITS:
        return _digits(label, batch_rows)
    file, _ = split_key(path)
    if not file.exists():
        raise UnreadableDataError(
            f"images must be a file, a folder or {DIGITS}, got {str(path)!r}, which does not exist. Check the path."
        )
    if file.is_dir():
        if tables := image_tables(file):
            return _parquet(file.name or str(file), tables, label, batch_rows)
        return _folder(file, label, batch_rows)
    if file.suffix.lower() in ARRAY_SUFFIXES:
        return _array(open_array(path, label=label), label, batch_rows)
    if _is_parquet(file):
        return _parquet(file.name, [file], label, batch_rows)
    if file.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES):
        return open_files(file.name, [NamedFile(file, _text(file.name))], label, batch_rows)
    raise UnreadableDataError(
        f"images must be a folder, {FORMATS}, {', '.join(ARRAY_SUFFIXES + PARQUET_SUFFIXES)}, got {file.name!r}. "
        "Convert or rename it."
    )


def _digits(label: str | None, batch_rows: int) -> ImageSource:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    name = label or LABEL

    def raw(rows: int) -> Iterator[pd.DataFrame]:
        for start in range(0, len(images), rows):
            frame = _numbered(frame_of(images[start : start + rows]), start)
            yield frame.assign(**{name: bunch.target[start : start + rows]})

    return ImageSource(name=DIGITS, count=len(images), label=name, batch_rows=batch_rows, raw=raw)


def _array(array: ArrayFile, label: str | None, batch_rows: int) -> ImageSource:
    name = None if array.labels is None else label or LABEL

    def raw(rows: int) -> Iterator[pd.DataFrame]:
        start = 0
        for chunk in array.chunks(rows, BATCH_BYTES):
            frame = _numbered(frame_of(chunk), start)
            if name is not None and array.labels is not None:
                frame[name] = array.labels[start : start + len(chunk)]
            start += len(chunk)
            yield frame

    return ImageSource(name=array.name, count=array.count, label=name, batch_rows=batch_rows, raw=raw)


def _numbered(frame: pd.DataFrame, start: int) -> pd.DataFrame:
    frame.index = pd.RangeIndex(start, start + len(frame))
    return frame.assign(**{FILE: frame.index.astype(str)})


def _folder(root: Path, label: str | None, batch_rows: int) -> ImageSource:
    files, passed_over = files_in(root)
    return open_files(root.name or str(root), files, label, batch_rows, passed_over=tuple(passed_over))


def open_files(
    name: str,
    files: Sequence[NamedFile],
    label: str | None,
    batch_rows: int,
    *,
    passed_over: tuple[ImageError, ...] = (),
    sorted_into_classes: bool | None = None,
) -> ImageSource:
    """Open image files as one set, called `name` in messages; see `open_images`.

    Whether they are sorted into classes is by default whether one lies in a sub-folder; of a part of a folder it is
    known from the whole.
    """
    classes = [file.name.partition("/")[0] if "/" in file.name else None for file in files]
    some = any(c is not None for c in classes) if sorted_into_classes is None else sorted_into_classes
    column = (label or LABEL) if some else None
    if label is not None and column is None:
        raise SchemaError(
            f"the classes of image files must be the names of sub-folders, got no sub-folder in {name!r}. "
            f"Leave out the label {label!r}, or sort the files into folders."
        )

    def raw(rows: int) -> Iterator[pd.DataFrame]:
        for start in range(0, len(files), rows):
            some = files[start : start + rows]
            cells = {IMAGE: pd.Series(list(some), dtype=object), FILE: [file.name for file in some]}
            frame = pd.DataFrame(cells)
            if column is not None:
                frame[column] = pd.Series(classes[start : start + rows], dtype=object)
            frame.index = pd.RangeIndex(start, start + len(some))
            yield frame

    return ImageSource(
        name=name, count=len(files), label=column, batch_rows=batch_rows, raw=raw, passed_over=passed_over
    )


def files_in(root: Path) -> tuple[list[NamedFile], list[ImageError]]:
    """Return the image files under a folder in natural order, and a line for what is passed over.

    Raises:
        UnreadableDataError: There are none.
    """
    files, passed_over = _walk(root)
    if not files:
        others = f" ({passed_over[0]})" if passed_over else ""
        raise UnreadableDataError(
            f"a folder of images must hold {FORMATS} files, got none in {str(root)!r}{others}. Check the path."
        )
    return files, passed_over


def _walk(root: Path) -> tuple[list[NamedFile], list[ImageError]]:
    files: list[NamedFile] = []
    passed_over: list[ImageError] = []
    others: Counter[str] = Counter()
    real = root.resolve()

    def leave(path: Path, reason: str) -> None:
        passed_over.append(ImageError(_text(path.relative_to(root).as_posix()), None, reason))

    def unlisted(error: OSError) -> None:
        leave(Path(error.filename), f"must be a folder that can be listed, got {error.strerror!r}. Check its rights.")

    for folder, folders, names in os.walk(root, onerror=unlisted):
        for name in [*folders, *names]:
            path = Path(folder, name)
            if name.startswith("."):
                leave(path, "must not be hidden, got a name that starts with a dot. Rename it if it belongs here.")
            elif path.is_symlink() and not (name in names and _stays(path, real)):
                leave(path, "must be a file in the folder, got a link that leads elsewhere. Copy what it points to.")
            elif name in names:
                file = NamedFile(path, _text(path.relative_to(root).as_posix()))
                if _may_be_image(file):
                    files.append(file)
                else:
                    others[path.suffix.lower() or "no suffix"] += 1
        folders[:] = [f for f in folders if not f.startswith(".")]  # links to folders are not followed
    passed_over.sort(key=lambda error: _natural(error.file))
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items())[:8])
        reason = f"must hold image files, got {sum(others.values())} others ({kinds}). They were passed over."
        passed_over.append(ImageError(".", None, reason))
    return sorted(files, key=lambda file: _natural(file.name)), passed_over


def _stays(path: Path, root: Path) -> bool:
    """Whether a link leads to a file inside the folder that is not hidden there."""
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # a loop
        return False
    inside = target.is_relative_to(root) and not _hidden(target, root)
    return inside and not target.is_dir()


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _may_be_image(file: NamedFile) -> bool:
    if file.path.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES):
        return True
    try:
        return format_of(file.read(16)) in set(SUFFIXES.values())
    except UnreadableImageError:
        return False


def _natural(name: str) -> tuple[Any, ...]:
    """Sort key: folder by folder, numbers by value; names that are then equal ("1", "01") as text."""
    pieces = [re.split(r"([0-9]{1,18})", part) for part in name.split("/")]  # every second one is a number
    return [[int(t) if i % 2 else t for i, t in enumerate(some)] for some in pieces], name


def _census(folder: Path) -> tuple[int, list[Path]]:
    """The number of image files and the table files under a folder, by their suffixes."""
    images = 0
    tables: list[Path] = []
    real = folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.name.lower()
        if _hidden(path, folder) or (path.is_symlink() and not _stays(path, real)):
            continue
        images += name.endswith((*SUFFIXES, *OTHER_SUFFIXES))
        if name.endswith(CSV_SUFFIXES + PARQUET_SUFFIXES) and not name.startswith("_"):
            tables.append(path)
    return images, tables


def image_tables(folder: Path) -> list[Path]:
    """Return the Parquet files that a folder's images lie in; none where they are files of their own."""
    images, tables = _census(folder)
    held = images <= len(tables) and tables and _image_column(tables[0])
    return [table for table in tables if _is_parquet(table)] if held else []


def _text(name: str) -> str:
    """A file name without what is no text."""
    return name.encode("utf-8", "backslashreplace").decode()


def _is_parquet(path: Path) -> bool:
    return path.name.lower().endswith(PARQUET_SUFFIXES)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and _holds_bytes(f.type) for f in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _bytes_of(column: pa.Array) -> pa.Array:
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _image_column(path: Path) -> str | None:
    """The column of images of a Parquet file: its only binary one, or that named "image" of several."""
    if not _is_parquet(path) or not path.is_file():
        return None
    try:
        with pq.ParquetFile(path, pre_buffer=False) as table:
            names = [f.name for f in table.schema_arrow if _holds_bytes(f.type)]
            names = [IMAGE] if IMAGE in names else names
            if len(names) != 1:
                return None
            for batch in table.iter_batches(1, columns=names):
                head = _bytes_of(batch.column(0))[0].as_py()
                if head is not None:
                    return names[0] if format_of(head[:16]) is not None else None
    except (pa.ArrowException, OSError):
        return None
    return None


def _parquet(name: str, files: Sequence[Path], label: str | None, batch_rows: int) -> ImageSource:
    column = _image_column(files[0])
    if column is None:
        raise UnreadableDataError(
            f"a Parquet file of images must have one binary column of {FORMATS} files, got another in "
            f"{files[0].name!r}. Name the column {IMAGE!r} where there are several."
        )
    count = 0
    for file in files:
        with _opened(file) as table:
            names = table.schema_arrow.names
            count += table.metadata.num_rows
        if column not in names or names.count(column) > 1 or (column != IMAGE and IMAGE in names):
            raise UnreadableDataError(
                f"the files of {name!r} must have one column {column!r} and no other called {IMAGE!r}, "
                f"got {names[:8]} in {file.name!r}. Rename or drop one."
            )
        if label is not None and (label == column or label not in names):
            raise SchemaError(f"label {label!r} must be a column of {file.name!r}, got {names[:8]}. Name one of them.")

    def raw(rows: int) -> Iterator[pd.DataFrame]:
        start = 0
        for file in files:
            for batch in _record_batches(file, column, rows):
                yield _frame_of_batch(batch, column, start)
                start += len(batch)

    return ImageSource(name=name, count=count, label=label, batch_rows=batch_rows, raw=raw)


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableDataError(
            f"{file.name!r} must be a readable Parquet file, got an error: {str(error).splitlines()[0]}"
        ) from error


def _record_batches(file: Path, column: str, rows: int) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file, pre_buffer=False) as table:
            groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
            heaviest = max((g.total_byte_size // max(1, g.num_rows) for g in groups), default=1)
            yield from table.iter_batches(max(1, min(rows, BATCH_BYTES // max(1, heaviest))))
    except (pa.ArrowException, OSError) as error:
        raise UnreadableDataError(
            f"{file.name!r} must be a readable Parquet file, got an error: {str(error).splitlines()[0]}"
        ) from error


def _frame_of_batch(batch: pa.RecordBatch, column: str, start: int) -> pd.DataFrame:
    others = [name for name in batch.schema.names if name != column]
    frame = batch.select(others).to_pandas(integer_object_nulls=True)
    index = pd.RangeIndex(start, start + len(batch))
    cells = pd.Series(_bytes_of(batch.column(column)).to_pylist(), dtype=object, index=index)
    frame.index = index
    frame.insert(0, IMAGE, cells)
    return frame if FILE in frame else frame.assign(**{FILE: index.astype(str)})
