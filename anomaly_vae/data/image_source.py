"""A stream of images, whatever it comes from, and the list of those that could not be read."""

from __future__ import annotations

import csv
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..errors import UnreadableDataError
from .formulas import harmless
from .images import IMAGE, Fault, ImageSchema, Looks, frame_of, looks_each

FILE = "file"
"""Column of the name of an image's file, or of its row number as text."""
LABEL = "label"
"""Column of classes, where no other name is given."""
BATCH_BYTES = 1 << 26
"""Bytes of pixels, or of encoded files, in a frame at most."""


@dataclass(frozen=True)
class ImageError:
    """An image that was left out.

    Attributes:
        file: Name of its file, relative to the folder.
        row: Row number in the source, from 0; None for what was passed over in a folder.
        reason: The rule it broke, "must ..., got ...".
    """

    file: str
    row: int | None
    reason: str

    def __str__(self) -> str:
        where = "" if self.row is None else f" (row {self.row})"
        return f"{self.file!r}{where} {self.reason}"


@dataclass
class ImageSource:
    """A stream of images.

    Attributes:
        name: What it is called in messages.
        count: Images in it, readable or not; None = unknown.
        label: Name of the column of classes, None = there is none.
        batch_rows: Rows of a frame at most; fewer where their pixels would pass `BATCH_BYTES`.
        passed_over: What a folder holds beside images.
        errors: The images that the last pass (`fit`, `batches`, `read`) could not read, in order, after `passed_over`.
    """

    name: str
    count: int | None
    label: str | None
    batch_rows: int
    raw: Callable[[int], Iterator[pd.DataFrame]] = field(repr=False)
    """Yields frames of at most so many rows, undecoded, indexed by row number: columns image, file, label, others."""
    passed_over: tuple[ImageError, ...] = ()
    errors: list[ImageError] = field(default_factory=list)

    def fit(self, *, size: int | tuple[int, int] | None = None) -> ImageSchema:
        """Choose size and channels by all readable images, in one pass; see `ImageSchema.of_looks`.

        Raises:
            UnreadableDataError: There is no readable image.
        """
        self.errors = list(self.passed_over)
        looks: list[Looks] = []
        for frame in self.raw(self.batch_rows):
            some, faults = looks_each(frame[IMAGE].tolist())
            looks += some
            self._keep(frame, faults)
        if not looks:
            raise self._nothing()
        return ImageSchema.of_looks(looks, size=size)

    def batches(self, schema: ImageSchema | None = None) -> Iterator[pd.DataFrame]:
        """Yield frames of decoded images: arrays at the schema's size, with file, label and further columns.

        Frames are indexed by row number over the whole source; rows that cannot be read are left out, and are in
        `errors` by the time their frame is yielded. The frames do not depend on the number of threads.

        Args:
            schema: What the images are decoded to; by default one fitted to them in a pass before.

        Raises:
            UnreadableDataError: There is no readable image, or the file cannot be read to its end.
        """
        schema = schema or self.fit()
        self.errors = list(self.passed_over)
        some = False
        for frame in self.raw(max(1, min(self.batch_rows, BATCH_BYTES // schema.width_flat))):
            frame = frame.rename(columns={IMAGE: schema.column})
            x, faults = schema.encode_each(frame)
            self._keep(frame, faults)
            good = frame.drop(frame.index[[i for i, _ in faults]]) if faults else frame
            if len(good):
                some = True
                decoded = frame_of(schema.pixels(x), column=schema.column).set_axis(good.index)
                yield good.assign(**{schema.column: decoded[schema.column]})
        if not some:
            raise self._nothing()

    def read(self, schema: ImageSchema | None = None) -> pd.DataFrame:
        """Return all readable images as one frame; see `batches`."""
        return pd.concat(list(self.batches(schema)))

    def _keep(self, frame: pd.DataFrame, faults: Iterable[Fault]) -> None:
        for position, reason in faults:
            row = int(frame.index[position])
            file = str(frame[FILE].iloc[position])
            self.errors.append(ImageError(self.name if file == str(row) else file, row, reason))

    def _nothing(self) -> UnreadableDataError:
        first = next((e for e in self.errors if e.row is not None), None)
        reason = f"none among {self.count}; the first, {first}" if first else "none"
        return UnreadableDataError(f"{self.name!r} must hold a readable image, got {reason}")


def write_errors(path: str | Path, errors: Iterable[ImageError]) -> None:
    """Write a CSV file with the columns file, row and reason, which appears only when it is whole.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with aside.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "row", "reason"])
            for error in errors:
                writer.writerow([harmless(error.file), "" if error.row is None else error.row, harmless(error.reason)])
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
