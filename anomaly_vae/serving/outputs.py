"""Output files that appear whole or not at all: written beside their place, flushed to the disk and renamed."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ..data.formulas import harmless_table
from ..data.image_source import ImageError, write_errors
from ..errors import ConfigError, OutputExistsError
from ..options import ScoreConfig

OUTPUT_SUFFIXES = (".parquet", ".pq", ".csv")


def write_tables(tables: Iterable[pa.Table], path: Path, suffix: str, on_table: Callable[[pa.Table], None]) -> None:
    """Write tables of one schema into a file, and see it safe on the disk; in CSV, formulas are made plain text.

    Args:
        tables: The tables.
        path: The file.
        suffix: One of `OUTPUT_SUFFIXES`.
        on_table: Called after each table.
    """
    with path.open("wb") as file, contextlib.ExitStack() as open_writers:
        writer: pq.ParquetWriter | pyarrow.csv.CSVWriter | None = None
        for table in map(harmless_table, tables) if suffix == ".csv" else tables:
            if writer is None and suffix == ".csv":
                writer = open_writers.enter_context(pyarrow.csv.CSVWriter(file, table.schema))
            elif writer is None:
                writer = open_writers.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
            writer.write_table(table)
            on_table(table)
        open_writers.close()  # the last bytes of a file are its footer
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def temporary(output: Path) -> Iterator[Path]:
    """A temporary path beside the output, removed at the end whatever happens."""
    path = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def appearing(output: Path) -> Iterator[Path]:
    """A temporary path that becomes the output if the block succeeds."""
    with temporary(output) as path:
        yield path
        publish(path, output)


def publish(aside: Path, output: Path) -> None:
    """Give a finished file its name, so that the name outlives a power failure too."""
    aside.replace(output)
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(output.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_output(
    output: Path,
    source: Path,
    config: ScoreConfig,
    taken: Collection[str],
    *,
    suffixes: Sequence[str] = OUTPUT_SUFFIXES,
) -> None:
    """Refuse an output that cannot be written, lies in the input, or exists and may not be replaced.

    Args:
        output: The file to write.
        source: The input.
        config: Of the job: its keys, and whether to overwrite.
        taken: Names of the output's columns besides the keys.
        suffixes: How its name may end.

    Raises:
        ConfigError: Its name or place cannot be used, or a key has the name of another column.
        OutputExistsError: It exists.
    """
    if output.suffix not in suffixes:
        raise ConfigError(f"an output must end in one of {', '.join(suffixes)}, got {output.name!r}. Rename it.")
    if not output.parent.is_dir():
        raise ConfigError(f"an output's folder must exist, got {str(output.parent)!r}. Make it first.")
    if output.is_dir():
        raise ConfigError(f"an output must be a file, got the folder {str(output)!r}. Name a file in it.")
    inside = source.is_dir() and output.resolve().is_relative_to(source.resolve())
    if inside or output.resolve() == source.resolve():
        raise ConfigError(f"an output must lie outside the input, got {str(output)!r}. Write it somewhere else.")
    check_keys(config.key, taken)
    if output.exists() and not config.overwrite:
        raise OutputExistsError(
            f"an output must not exist yet, got {str(output)!r}. Use --overwrite to replace it.", path=output
        )


def check_keys(key: Sequence[str], taken: Collection[str]) -> None:
    """Refuse keys that are named twice or have the name of another column of the output.

    Raises:
        ConfigError: See above.
    """
    for name in key:
        if name in taken or key.count(name) > 1:
            rule = "not have the name of an output column" if name in taken else "be named once"
            raise ConfigError(f"a key must {rule}, got {name!r}. Rename the column, or use another key.", column=name)


def write_errors_of(output: Path, errors: Sequence[ImageError]) -> Path | None:
    """List what could not be read beside an output; return the list's path, or None, without a list, if all could.

    A list that an earlier job left there is removed.
    """
    path = output.with_name(f"{output.name}.errors.csv")
    if errors:
        write_errors(path, errors)
        return path
    path.unlink(missing_ok=True)
    return None
