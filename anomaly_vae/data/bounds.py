"""How wide a table may be, and how long a line of CSV: more is an accident, or aimed at its reader's memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import IO

from ..errors import UnreadableDataError

MOST_COLUMNS = 20_000
LONGEST_HEADER = 1 << 24
LONGEST_LINE = 1 << 26
"""Bytes of a header and of any line. A few kilobytes of gzip hold lines of gigabytes."""


def check_columns(columns: int, name: str) -> None:
    """Refuse a table that is too wide.

    Raises:
        UnreadableDataError: It has more than `MOST_COLUMNS` columns.
    """
    if columns > MOST_COLUMNS:
        raise UnreadableDataError(
            f"{name!r} must have at most {MOST_COLUMNS:,} columns, got {columns:,}. Check its separator and line ends, "
            "or drop columns."
        )


def check_header(stream: IO[bytes], separator: str, name: str) -> None:
    """Read the header of CSV and refuse one that is too wide, before a reader makes columns of it.

    Args:
        stream: From the file's beginning.
        separator: Between cells.
        name: The file's, for messages.

    Raises:
        UnreadableDataError: See above; also a header of more than `LONGEST_HEADER` bytes.
    """

    def lines() -> Iterator[str]:
        left = LONGEST_HEADER
        while line := stream.readline(left + 1):
            left -= len(line)
            if left < 0:
                raise UnreadableDataError(
                    f"{name!r} must have a header of at most {LONGEST_HEADER >> 20} MiB, got a longer first line. "
                    "Check its separator and line ends."
                )
            yield line.decode("utf-8", errors="replace")

    try:
        header = next((cells for cells in csv.reader(lines(), delimiter=separator) if cells), [])
    except csv.Error as error:
        raise UnreadableDataError(f"{name!r} must be a readable table, got a header with an error: {error}.") from error
    check_columns(len(header), name)


def bounded_lines(stream: IO[bytes], name: str) -> IO[bytes]:
    """Return a stream of the same bytes that refuses to read on in a line of more than `LONGEST_LINE` bytes."""
    return io.BufferedReader(_BoundedLines(stream, name), buffer_size=1 << 18)


class _BoundedLines(io.RawIOBase):
    def __init__(self, stream: IO[bytes], name: str) -> None:
        super().__init__()
        self.stream, self.name, self.length = stream, name, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        part = self.stream.read(len(buffer))
        buffer[: len(part)] = part
        end = max(part.rfind(b"\n"), part.rfind(b"\r"))
        self.length = self.length + len(part) if end < 0 else len(part) - end - 1
        if self.length > LONGEST_LINE:
            raise UnreadableDataError(
                f"{self.name!r} must have lines of at most {LONGEST_LINE >> 20} MiB, got a longer one. Check its line "
                "ends and quotes."
            )
        return len(part)

    def close(self) -> None:
        self.stream.close()
        super().close()
