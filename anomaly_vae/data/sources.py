"""Files of a table wherever they are: a file, a folder, a glob, or a URL that pyarrow or fsspec reads.

`s3://` and `gs://` go through pyarrow's own file systems, every other scheme through fsspec's, which may ask for a
package of its own (`abfs://`: adlfs, `sftp://`: paramiko). Credentials are found as these libraries find them.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

from ..errors import UnreadableDataError, redacted

CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
OF_PYARROW = ("s3", "gs", "gcs")


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """One CSV or Parquet file.

    Attributes:
        name: What it is called in messages and outputs: its path below the folder, or the fixed beginning of the
            glob, it was found by; with forward slashes.
        place: Local path, or URL.
        size: Bytes.
        stamp: Text that differs when the content does: the time of change, or what a remote store tells of the file.
    """

    name: str
    place: str
    size: int
    stamp: str

    @classmethod
    def at(cls, path: Path, name: str | None = None) -> TableFile:
        """Describe a local file."""
        facts = path.stat()
        return cls(name=name or path.name, place=str(path), size=facts.st_size, stamp=str(facts.st_mtime_ns))

    @property
    def path(self) -> Path | None:
        """Where it is on this machine; None: it is elsewhere."""
        return None if is_url(self.place) else Path(self.place)

    @property
    def is_csv(self) -> bool:
        """Whether it is CSV, by its name; otherwise it is Parquet."""
        return self.name.lower().endswith(CSV_SUFFIXES)

    def open(self) -> IO[bytes]:
        """Open it for reading, seekable, compressed as it is."""
        if self.path is not None:
            return self.path.open("rb")
        system, path = _system(self.place)
        return cast(IO[bytes], system.open(path, "rb"))

    def now(self) -> TableFile:
        """Describe it as it is now.

        Raises:
            UnreadableDataError: It is gone.
        """
        try:
            if self.path is not None:
                return TableFile.at(self.path, self.name)
            system, path = _system(self.place)
            return _described(system.info(path), self.name, self.place)
        except OSError as error:
            raise UnreadableDataError(f"{self.name!r} must stay where it is during the job, and is gone.") from error


def is_url(source: str) -> bool:
    """Whether a text is a URL and not a path."""
    return "://" in source


def plain(source: str | Path) -> str:
    """Return the path that a `file://` URL stands for; others as they are."""
    text = str(source)
    return unquote(urlsplit(text).path) if text.startswith("file://") else text


def table_files(path: str | Path) -> list[Path]:
    """Return the table files at a path: itself, or those in a folder, by name.

    Raises:
        UnreadableDataError: The path does not exist, or holds no CSV or Parquet file.
    """
    path = Path(path)
    suffixes = CSV_SUFFIXES + PARQUET_SUFFIXES
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and _is_table(p.name))
        if not files:
            raise UnreadableDataError(f"a folder must hold {', '.join(suffixes)} files, got none in {str(path)!r}.")
        return files
    if not path.exists():
        raise UnreadableDataError(
            f"the input must be a file or folder, got {str(path)!r}, which does not exist. Check the path."
        )
    if not path.name.lower().endswith(suffixes):
        raise UnreadableDataError(
            f"a table must be one of {', '.join(suffixes)}, got {path.name!r}. Convert or rename it."
        )
    return [path]


def _is_table(name: str) -> bool:
    return name.lower().endswith(CSV_SUFFIXES + PARQUET_SUFFIXES) and name[0] not in "._"


def parts_of(source: str | Path) -> list[TableFile]:
    """Return the files that a source stands for, in order of name.

    Args:
        source: A CSV or Parquet file; a folder, of which all such files are taken, but for hidden ones and names that
            begin with `_`; a glob (`**` crosses folders); or a URL of a file, a folder or a glob.

    Raises:
        UnreadableDataError: There are none, or the URL cannot be read.
    """
    text = plain(source)
    if is_url(text):
        return _remote(text)
    path = Path(text)
    if path.exists() or not glob.has_magic(text):
        root = path if path.is_dir() else path.parent
        return [TableFile.at(p, p.relative_to(root).as_posix()) for p in table_files(path)]
    root = Path(fixed_part(text))
    found = sorted(p for p in map(Path, glob.glob(text, recursive=True)) if p.is_file() and _is_table(p.name))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not found:
        raise UnreadableDataError(f"a glob must match CSV or Parquet files, got none for {text!r}. Check the pattern.")
    return [TableFile.at(p, p.relative_to(root).as_posix()) for p in found]


def fixed_part(pattern: str) -> str:
    """Return the folder that a glob begins with.

    Example:
        >>> fixed_part("data/2026-*/part.parquet"), fixed_part("*.csv")
        ('data', '.')
    """
    parts = PurePosixPath(pattern).parts
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return str(PurePosixPath(*parts[:first]))


def _remote(url: str) -> list[TableFile]:
    try:
        system, path = _system(url)
        if glob.has_magic(path):
            root, found = fixed_part(path), system.glob(path, detail=True)
        elif system.isdir(path):
            root, found = path, system.find(path, detail=True)
        else:
            root, found = str(PurePosixPath(path).parent), {path: system.info(path)}
    except (OSError, ImportError, ValueError) as error:
        reason = redacted(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        raise UnreadableDataError(
            f"the input must be a file, folder or glob that can be read, got {redacted(url)!r} ({reason})."
        ) from error
    parts = []
    for at, facts in sorted(found.items()):
        if facts["type"] == "file" and _is_table(PurePosixPath(at).name):
            name = at.removeprefix(root).lstrip("/")
            head, found_there, tail = url.rpartition(path)  # what follows the path are options of the store
            place = head + at + tail if found_there else system.unstrip_protocol(at)
            # Other systems' listings may tell less than, or something else than, `info` does when a part is looked at.
            known = facts if url.startswith(OF_PYARROW) else system.info(at)
            parts.append(_described(known, name, place))
    if not parts:
        raise UnreadableDataError(f"the input must hold CSV or Parquet files, got none at {redacted(url)!r}.")
    return parts


def _system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    scheme, _, rest = url.partition("://")
    if scheme not in OF_PYARROW:
        import fsspec.core

        system, path = fsspec.core.url_to_fs(url)
        return system, path
    import pyarrow.fs
    from fsspec.implementations.arrow import ArrowFSWrapper

    # The path is cut off by hand: a URL's parser would take a glob's "?" for the beginning of a query.
    path, _, query = rest.rpartition("?") if "=" in rest.rpartition("?")[2] else (rest, "", "")
    bucket = path.partition("/")[0]
    made, _ = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{bucket}" + (f"?{query}" if query else ""))
    return ArrowFSWrapper(made), path


def _described(facts: dict[str, Any], name: str, place: str) -> TableFile:
    marks = [facts[key] for key in ("ETag", "etag", "md5", "mtime", "LastModified", "created") if facts.get(key)]
    return TableFile(name=name, place=place, size=int(facts.get("size") or 0), stamp=" ".join(map(str, marks)))


def inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder, or lies in it, links followed."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())
