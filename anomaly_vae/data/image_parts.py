"""Images as the parts of a job: some thousands of a folder's files at a time, or a file that holds many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnreadableDataError
from .image_arrays import split_key
from .image_files import DIGITS, files_in, image_tables, open_files, open_images
from .image_source import ImageError, ImageSource
from .pixels import NamedFile

IMAGES_A_PART = 4096


@dataclass(frozen=True, kw_only=True)
class ImagePart:
    """One part of a set of images; beside `sources.TableFile`, whose place it takes in a job of images.

    Attributes:
        name: What it is called in messages and outputs.
        place: Folder of its files, or what `open_images` takes.
        files: Its image files; none where `place` is the whole of it.
        size: Bytes.
        stamp: Text that differs when the content does.
        passed_over: What was found beside images in the folder; of its first part.
        sorted_into_classes: Whether the folder has sub-folders of images, of which this part may have none.
    """

    name: str
    place: str
    files: tuple[NamedFile, ...] = ()
    size: int = 0
    stamp: str = ""
    passed_over: tuple[ImageError, ...] = ()
    sorted_into_classes: bool = False
    is_csv = False

    @property
    def path(self) -> Path | None:
        """Where it is on this machine; None: it is built in."""
        return None if self.place == DIGITS else split_key(self.place)[0]

    @property
    def rows(self) -> int | None:
        """Its images; None where that is known when it is opened."""
        return len(self.files) or None

    def now(self) -> ImagePart:
        """Describe it as it is now.

        Raises:
            UnreadableDataError: Some of it is gone.
        """
        return _part(self.name, self.place, self.files, self.passed_over, self.sorted_into_classes)

    def open(self, *, label: str | None, batch_rows: int) -> ImageSource:
        """Open it; see `open_images`."""
        if not self.files:
            return open_images(self.place, label=label, batch_rows=batch_rows)
        return open_files(
            self.name, self.files, label, batch_rows,
            passed_over=self.passed_over, sorted_into_classes=self.sorted_into_classes,
        )  # fmt: skip


def image_parts(source: str | Path, *, at_once: int = IMAGES_A_PART) -> list[ImagePart]:
    """Return the parts of a set of images, in order of name.

    A folder's files are parts of `at_once` images, called images-00000 and so on; a Parquet file is a part, and so is
    any other source as a whole.

    Args:
        source: See `image_files`.
        at_once: Files of a part.

    Raises:
        UnreadableDataError: There is nothing to read.
    """
    folder = Path(source)
    if str(source) == DIGITS or not folder.is_dir():
        path, key = split_key(source)
        if str(source) != DIGITS and not path.exists():
            raise UnreadableDataError(
                f"images must be a file, a folder or {DIGITS}, got {str(source)!r}, which does not exist. "
                "Check the path."
            )
        name = "digits" if str(source) == DIGITS else path.name + (f".{key}" if key else "")
        return [_part(name, str(source))]
    if tables := image_tables(folder):
        return [_part(file.relative_to(folder).as_posix(), str(file)) for file in tables]
    files, passed_over = files_in(folder)
    first, classes = range(0, len(files), at_once), any("/" in file.name for file in files)
    return [
        _part(f"images-{i:05d}", str(folder), files[start : start + at_once], () if i else passed_over, classes)
        for i, start in enumerate(first)
    ]


def _part(
    name: str,
    place: str,
    files: Iterable[NamedFile] = (),
    passed_over: Iterable[ImageError] = (),
    sorted_into_classes: bool = False,
) -> ImagePart:
    files, size, digest = tuple(files), 0, hashlib.sha256()
    try:
        for path in [file.path for file in files] or ([] if place == DIGITS else [split_key(place)[0]]):
            facts = path.stat()
            size += facts.st_size
            digest.update(f"{path.name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode(errors="backslashreplace"))
    except OSError as error:
        raise UnreadableDataError(
            f"{str(error.filename)!r} must stay where it is during the job, and is gone. Begin anew with --overwrite."
        ) from error
    stamp = digest.hexdigest()
    return ImagePart(
        name=name, place=place, files=files, size=size, stamp=stamp,
        passed_over=tuple(passed_over), sorted_into_classes=sorted_into_classes,
    )  # fmt: skip
