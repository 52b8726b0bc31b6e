"""Arrays of images in .npy and .npz files, streamed: headers are judged before anything is read, no object is made.

An .npz is a zip of .npy files, so both are one stream of bytes behind a header. The header must agree with the length
of the stream, so that one that declares petabytes is refused, not believed.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import SchemaError, UnreadableDataError

ARRAY_SUFFIXES = (".npy", ".npz")
MOST_ARRAY_BYTES = 1 << 36
"""Bytes of an array at most, as its header and the zip's directory declare them."""
MOST_AT_ONCE = 1 << 30
"""Bytes of what must be read at once at most: labels, and arrays whose first axis runs fastest."""
IMAGE_KEYS = ("x", "images", "X")
LABEL_KEYS = ("y", "labels", "label")


@dataclass(frozen=True)
class Header:
    """What an .npy header says, checked against the length of what follows."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def is_images(self) -> bool:
        """Whether it is an array (n, h, w) or (n, h, w, c) of numbers."""
        return len(self.shape) in (3, 4) and self.dtype.kind in "biuf"


@dataclass(frozen=True)
class ArrayFile:
    """An array of images in a file.

    Attributes:
        name: File name, with the key where there are several.
        path: Where it lies.
        key: Name of the array in an .npz, None for an .npy.
        header: Its shape and dtype.
        labels: Labels of its images, (n,), or None.
    """

    name: str
    path: Path
    key: str | None
    header: Header
    labels: NDArray[Any] | None

    @property
    def count(self) -> int:
        """Images, n."""
        return self.header.shape[0]

    def chunks(self, rows: int, most_bytes: int) -> Iterator[NDArray[Any]]:
        """Yield consecutive images, at most so many and so many bytes, at least one.

        Raises:
            UnreadableDataError: The file ends early or is damaged.
        """
        shape, dtype = self.header.shape, self.header.dtype
        one = math.prod(shape[1:]) * dtype.itemsize
        rows = max(1, min(rows, most_bytes // max(1, one)))
        with _damage_said(self.name), _stream(self.path, self.key) as (file, length):
            _header(file, length, self.name)
            if self.header.fortran:
                whole = np.frombuffer(_exactly(file, one * shape[0], last=True), dtype).reshape(shape[::-1]).T
                yield from (whole[start : start + rows] for start in range(0, shape[0], rows))
                return
            for start in range(0, shape[0], rows):
                n = min(rows, shape[0] - start)
                yield np.frombuffer(_exactly(file, one * n, last=start + n == shape[0]), dtype).reshape(n, *shape[1:])


def split_key(path: str | Path) -> tuple[Path, str | None]:
    """Return `sets.npz:x_test` as its file and the name of an array; other paths as they are, without a name."""
    file, colon, key = str(path).rpartition(":")
    if colon and file.lower().endswith(".npz"):
        return Path(file), key
    return Path(path), None


def open_array(path: str | Path, *, label: str | None = None) -> ArrayFile:
    """Find the array of images in a file, and its labels.

    Args:
        path: An .npy or .npz, an array of the latter named after a colon.
        label: Array of labels; by default one that is named as the images are (see `image_files`), if there is one.

    Raises:
        UnreadableDataError: The file is damaged, holds pickled objects or a header that is not true, or has no such
            array of images, or several and none is named.
        SchemaError: There are no such labels.
    """
    file, key = split_key(path)
    with _damage_said(file.name):
        headers = _headers(file)
    if file.suffix.lower() == ".npy":
        if label is not None:
            raise SchemaError(f"labels must be an array of an .npz, got {label!r} for {file.name!r}. Leave them out.")
        chosen = None
        name = file.name
    else:
        chosen = _chosen(headers, key, file.name)
        name = f"{file.name}:{chosen}" if len(headers) > 1 else file.name
    header = headers[chosen]
    _check(header, name)
    return ArrayFile(name, file, chosen, header, _labels(file, headers, chosen, label))


def _chosen(headers: dict[str | None, Header], key: str | None, name: str) -> str:
    shown = ", ".join(f"{k} {h.dtype} {h.shape}" for k, h in list(headers.items())[:8])
    if key is not None:
        if key not in headers:
            raise UnreadableDataError(f"an array of {name!r} must be named, got {key!r}. There are: {shown or 'none'}.")
        return key
    candidates = [k for k, h in headers.items() if h.is_images and k is not None]
    preferred = [k for k in IMAGE_KEYS if k in candidates] or candidates
    if len(preferred) > 1 and preferred[0] not in IMAGE_KEYS:
        raise UnreadableDataError(
            f"{name!r} must have one array of images, got {len(preferred)} ({shown}). Name one: {name}:{preferred[0]}."
        )
    if not preferred:
        raise UnreadableDataError(
            f"{name!r} must have an array of images (n, h, w) or (n, h, w, c), got {shown or 'none'}. Reshape it."
        )
    return preferred[0]


def _check(header: Header, name: str) -> None:
    shape = header.shape
    if not header.is_images or (len(shape) == 4 and shape[3] not in (1, 3)) or 0 in shape:
        hint = " Channels come last." if len(shape) == 4 and shape[1] in (1, 3) else ""
        raise UnreadableDataError(
            f"{name!r} must be numbers of the shape (n, h, w), (n, h, w, 1) or (n, h, w, 3), got {header.dtype} "
            f"{shape}.{hint} Reshape or convert it."
        )
    one = math.prod(shape[1:]) * header.dtype.itemsize
    if max(one, one * shape[0] * header.fortran) > MOST_AT_ONCE:
        raise UnreadableDataError(
            f"{name!r} must be read {MOST_AT_ONCE >> 30} GiB at a time at most, got {shape} {header.dtype}"
            f"{' in Fortran order' if header.fortran else ''}. Save it smaller, in C order."
        )


def _labels(
    file: Path, headers: dict[str | None, Header], images: str | None, label: str | None
) -> NDArray[Any] | None:
    if images is None:
        return None
    n = headers[images].shape[0]
    like = images.replace("images", "labels") if "images" in images else "y" + images[1:]
    fitting = [
        k
        for k in ([label] if label is not None else [like, *LABEL_KEYS])
        if k in headers and k != images and headers[k].shape == (n,) and headers[k].dtype.kind in "biufUS"
    ]
    if not fitting:
        if label is None:
            return None
        got = f"{headers[label].dtype} {headers[label].shape}" if label in headers else "none"
        raise SchemaError(f"labels {label!r} of {file.name!r} must be an array ({n},), got {got}. Name another array.")
    header = headers[fitting[0]]
    size = n * header.dtype.itemsize
    if size > MOST_AT_ONCE:
        raise SchemaError(f"labels must take at most {MOST_AT_ONCE >> 30} GiB, got {size >> 30}. Shorten the texts.")
    with _damage_said(file.name), _stream(file, fitting[0]) as (stream, length):
        _header(stream, length, file.name)
        values = np.frombuffer(_exactly(stream, size, last=True), header.dtype)
        return values.astype(str) if header.dtype.kind == "S" else values


def _headers(file: Path) -> dict[str | None, Header]:
    if file.suffix.lower() == ".npy":
        with _stream(file, None) as (stream, length):
            return {None: _header(stream, length, file.name)}
    found: dict[str | None, Header] = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                key = member.filename[: -len(".npy")]
                with archive.open(member) as stream:
                    found[key] = _header(stream, member.file_size, f"{file.name}:{key}")
    return found


def _header(file: IO[bytes], length: int, name: str) -> Header:
    """Read the header of an .npy stream of so many bytes, and leave the stream at the first value."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UnreadableDataError(
            f"{name!r} must be an array of plain numbers, got .npy version {version}. Save it so."
        )
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise UnreadableDataError(
            f"{name!r} must be an array of numbers, got pickled objects, which could run code. Save it without them."
        )
    declared, held = math.prod(shape) * dtype.itemsize, length - file.tell()
    if min(shape, default=0) < 0 or declared != held or declared > MOST_ARRAY_BYTES:
        raise UnreadableDataError(
            f"{name!r} must hold what its header declares, at most {MOST_ARRAY_BYTES >> 30} GiB, got {shape} "
            f"{dtype} in {held:,} bytes. Save it again."
        )
    return Header(tuple(shape), bool(fortran), dtype)


@contextlib.contextmanager
def _stream(file: Path, key: str | None) -> Iterator[tuple[IO[bytes], int]]:
    """The bytes of an .npy, or of an array in an .npz, and their number as the file system or zip has it."""
    if key is None:
        with file.open("rb") as stream:
            yield stream, file.stat().st_size
        return
    with zipfile.ZipFile(file) as archive, archive.open(f"{key}.npy") as member:
        yield member, archive.getinfo(f"{key}.npy").file_size


@contextlib.contextmanager
def _damage_said(name: str) -> Iterator[None]:
    try:
        yield
    except SchemaError:
        raise
    except Exception as error:  # zip, deflate, and a header that is parsed as Python: each has errors of its own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UnreadableDataError(
            f"{name!r} must be a readable array file, got an error: {reason}. Save it again."
        ) from error


def _exactly(file: IO[bytes], length: int, *, last: bool) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise EOFError(f"{length - len(data)} bytes are missing")
    if last:
        file.read(1)  # a zip compares its checksum at the end of a member
    return data
