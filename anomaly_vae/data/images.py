"""A column of images, and the way between it and the array that a model sees.

A set of images is a table with one column of them (see `pixels.pixels_of` for what a cell may hold). The encoded array
has shape (n, c * h * w), uint8: every image at the schema's size, channel by channel, row by row. For a model of
p(x|class) the number of its class follows, (n, c * h * w + 1).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from ..errors import SchemaError, UnreadableImageError
from .classes import Classes, Fault
from .image_column import IMAGE as IMAGE
from .image_column import alike, cells_of, checked, only_column
from .pixels import has_colour, in_order, pixels_of, quantised, with_channels

LARGEST_OWN = 128
"""Images that are all of one size keep it up to this many pixels a side."""
RESIZED_TO = 64
"""Pixels of the longer side where images must be resized and no size is given: what trains in minutes on two cores."""
STEP = 4
"""Sides are multiples of this where images must be resized and no size is given: a network halves them twice."""
SMALLEST = 8
"""Pixels a side at least where images must be resized and no size is given."""
LARGEST = 1024
"""Pixels a side at most where a size is given."""
_CHUNK = 512
_LIGHT = 1 << 14


@dataclass(frozen=True)
class Looks:
    """What a schema is fitted to: height and width of an image in pixels, and whether its channels differ."""

    height: int
    width: int
    colour: bool


@dataclass(frozen=True, kw_only=True)
class ImageSchema:
    """The size and channels of the images that a model sees.

    Images of another size are stretched to this one, without keeping their aspect and without cutting anything off, by
    a bilinear filter as wide as the reduction. A grey image becomes RGB by repeating its channel; an RGB image becomes
    grey only if its three channels are equal.

    Attributes:
        height: Pixels, h.
        width: Pixels, w.
        channels: 1 = grey, 3 = RGB, c.
        column: Name of the column of images.
        classes: What a model of p(x|class) is told of each image; None for a model of p(x).

    Example:
        >>> frame = frame_of(np.zeros((5, 8, 8), np.uint8))
        >>> schema = ImageSchema.fit(frame)
        >>> schema
        ImageSchema(height=8, width=8, channels=1, column='image', classes=None)
        >>> schema.encode(frame).shape
        (5, 64)
    """

    height: int
    width: int
    channels: int
    column: str = IMAGE
    classes: Classes | None = None

    kind: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels"):
            value = getattr(self, name)
            allowed: Sequence[int] = (1, 3) if name == "channels" else range(1, LARGEST + 1)
            if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
                rule = "1 (grey) or 3 (RGB)" if name == "channels" else f"a whole number from 1 to {LARGEST}"
                raise SchemaError(f"the {name} of images must be {rule}, got {value!r}. Choose another.")
        if not isinstance(self.column, str) or not self.column:
            raise SchemaError(f"the column of images must have a name, got {self.column!r}. Name it.")
        if self.classes is not None and self.classes.column == self.column:
            raise SchemaError(f"images and classes must be two columns, got {self.column!r} for both. Rename one.")

    @classmethod
    def fit(
        cls,
        images: pd.DataFrame | NDArray[Any],
        *,
        size: int | tuple[int, int] | None = None,
        rows: NDArray[np.intp] | None = None,
        column: str | None = None,
        condition: str | None = None,
    ) -> Self:
        """Choose size and channels by the images; see `of_looks` for the rule.

        Args:
            images: A table with a column of images, or an array (n, h, w) or (n, h, w, c).
            size: Side, or height and width, in pixels.
            rows: Positions of the training rows. As with `Schema`, what the column is, is judged by all rows.
            column: Name of the column; by default the only one, or the one named "image".
            condition: Column of classes, for a model of p(x|class).

        Raises:
            SchemaError: There is no such column, no row, or an image that cannot be read; see also `Classes.fit`.
        """
        frame = images if isinstance(images, pd.DataFrame) else frame_of(images, column=column or IMAGE)
        classes = None if condition is None else Classes.fit(frame, condition, rows=rows)
        name = column or only_column(frame if condition is None else frame.drop(columns=condition))
        looks, faults = looks_each(cells_of(frame, name))
        _refuse_faults(frame, name, faults)
        return replace(cls.of_looks(looks, size=size, column=name), classes=classes)

    @classmethod
    def of_looks(
        cls, looks: Iterable[Looks], *, size: int | tuple[int, int] | None = None, column: str = IMAGE
    ) -> Self:
        """Choose size and channels.

        Without `size`, images that are all of one size of at most `LARGEST_OWN` a side keep it. All others get the
        median aspect (width / height) and the median of their longer sides, at most `RESIZED_TO`, both sides rounded
        to multiples of `STEP`, at least `SMALLEST`. One image in colour makes all RGB.

        Raises:
            SchemaError: There is no image, or the size is out of range.
        """
        looks = list(looks)
        if not looks:
            raise SchemaError("images must have rows, got none. Check the file.")
        channels = 3 if any(look.colour for look in looks) else 1
        height, width = _chosen_size(looks) if size is None else (size, size) if isinstance(size, int) else size
        return cls(height=height, width=width, channels=channels, column=column)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.height, self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image as a model sees it, (c, h, w)."""
        return self.channels, self.height, self.width

    @property
    def width_flat(self) -> int:
        """Levels of an encoded row, c * h * w."""
        return self.channels * self.height * self.width

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns that a row must have: that of images, and that of classes if there is one."""
        return (self.column,) if self.classes is None else (self.column, self.classes.column)

    @property
    def text_columns(self) -> frozenset[str]:
        """Columns whose cells are text for a CSV reader: images as base64."""
        return frozenset(self.names)

    def encode(self, frame: pd.DataFrame, *, allow_missing: bool = False) -> NDArray[np.uint8]:
        """Return images as the model's array, shape (n, c * h * w), with the class's number last if there are classes.

        Args:
            frame: Rows, n; other columns than `names` are not looked at.
            allow_missing: Of no effect, since without its only column there is nothing to score.

        Raises:
            SchemaError: A column is absent, cells are no images, or a class is unknown: every cell is looked at, the
                first that is bad is named, and `error.faults` has all of them.
        """
        x, faults = self.encode_each(frame)
        _refuse_faults(frame, self.column, faults)
        return x

    def encode_each(self, frame: pd.DataFrame) -> tuple[NDArray[np.uint8], list[Fault]]:
        """Encode what can be read, and say what cannot.

        Returns:
            The readable images in order, as `encode` returns them, and for each of the others its position in the
            frame and the rule it broke, "must ..., got ...", without a subject.

        Raises:
            SchemaError: A column is absent.
        """
        if self.classes is None:
            return self._levels_each(frame)
        numbers, unknown = self.classes.numbers(frame)
        x, unreadable = self._levels_each(frame)
        reasons = {**dict(unknown), **dict(unreadable)}
        of_x = np.delete(numbers, [i for i, _ in unreadable])
        known = of_x >= 0
        return np.column_stack([x[known], of_x[known].astype(np.uint8)]), sorted(reasons.items())

    def _levels_each(self, frame: pd.DataFrame) -> tuple[NDArray[np.uint8], list[Fault]]:
        cells = cells_of(frame, self.column)
        together = alike(cells)
        if together is not None:
            return self._encode_alike(together)
        out = np.empty((len(cells), self.width_flat), dtype=np.uint8)
        faults: list[Fault] = []
        good = self._put(out, cells, faults)
        return out[:good], faults

    def encode_array(self, array: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the levels of an array of images (n, h, w) or (n, h, w, c), (n, c * h * w).

        Raises:
            SchemaError: The shape is another, or values are outside their range (see `pixels.quantised`).
        """
        x, faults = self._encode_alike(checked(array))
        _refuse_faults(pd.DataFrame(index=pd.RangeIndex(len(array))), self.column, faults)
        return x

    def pixels(self, x: NDArray[Any]) -> NDArray[np.uint8]:
        """Return encoded rows, or values from 0 to 255 drawn from a model, as images (n, h, w) or (n, h, w, 3)."""
        values = np.asarray(x)[:, : self.width_flat]
        if values.dtype != np.uint8:
            values = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        planes = values.reshape(-1, *self.shape)
        return planes[:, 0] if self.channels == 1 else np.ascontiguousarray(np.moveaxis(planes, 1, 3))

    def decode(self, x: NDArray[Any]) -> pd.DataFrame:
        """Return encoded rows as a table of PNG files in bytes, and their classes if there are any."""
        cells = pd.Series([png_of(image) for image in self.pixels(x)], dtype=object)
        frame = pd.DataFrame({self.column: cells})
        if self.classes is not None:
            frame[self.classes.column] = self.classes.texts(np.asarray(x)[:, self.width_flat])
        return frame

    @property
    def called(self) -> str:
        """What rows are, in words: "images of 28 x 28"."""
        given = "" if self.classes is None else f" given one of {len(self.classes.names)} classes"
        return f"images of {self.height} x {self.width}{' in colour' if self.channels == 3 else ''}{given}"

    def described(self) -> list[dict[str, Any]]:
        """Return what is known of the columns, JSON-able, for people."""
        size = f"{self.height} x {self.width} x {self.channels}"
        found = [{"name": self.column, "kind": "image", "dtype": "bytes", "reason": size}]
        if self.classes is not None:
            known = f"{len(self.classes.names)} classes"
            found.append({"name": self.classes.column, "kind": "class", "dtype": "string", "reason": known})
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able facts; `from_dict` is the inverse."""
        facts = {"kind": self.kind, **asdict(self)}
        del facts["classes"]
        return facts if self.classes is None else {**facts, "classes": self.classes.to_dict()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Self:
        """Rebuild a schema from `to_dict`.

        Raises:
            SchemaError: The facts are not those of a schema of images.
        """
        known = {"kind", "height", "width", "channels", "column"}
        if not isinstance(facts, Mapping) or set(facts) - {"classes"} != known or facts["kind"] != cls.kind:
            raise SchemaError(
                f"a stored schema of images must have {sorted(known)}, got another. Save the model again."
            )
        classes = Classes.from_dict(facts["classes"]) if "classes" in facts else None
        own = {name: value for name, value in facts.items() if name not in ("kind", "classes")}
        return cls(**own, classes=classes)

    def _encode_cell(self, cell: Any) -> NDArray[np.uint8]:
        return self._flat(pixels_of(cell, size=self.size)[None])[0]

    def _encode_alike(self, array: NDArray[Any]) -> tuple[NDArray[np.uint8], list[Fault]]:
        """Encode images of one shape and dtype: whole chunks at a time, row by row where a chunk has a fault."""
        out = np.empty((len(array), self.width_flat), dtype=np.uint8)
        faults: list[Fault] = []
        good = 0
        for start in range(0, len(array), _CHUNK):
            chunk = array[start : start + _CHUNK]
            if chunk.shape[1:3] == self.size:
                with contextlib.suppress(UnreadableImageError):
                    out[good : good + len(chunk)] = self._flat(quantised(chunk))
                    good += len(chunk)
                    continue
            good += self._put(out[good:], chunk, faults, start=start)
        return out[:good], faults

    def _put(
        self, out: NDArray[np.uint8], cells: Sequence[Any] | NDArray[Any], faults: list[Fault], *, start: int = 0
    ) -> int:
        """Write the cells that are images into the first rows, add the others to the faults; return how many are."""
        good = 0
        for i, row in enumerate(_each(self._encode_cell, cells), start):
            if isinstance(row, str):
                faults.append((i, row))
            else:
                out[good] = row
                good += 1
        return good

    def _flat(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images (n, h, w) or (n, h, w, c) in this schema's channels, (n, c * h * w)."""
        planes = pixels if pixels.ndim == 4 else pixels[..., None]
        if self.channels == 1 and planes.shape[3] == 3:
            if has_colour(planes):
                raise UnreadableImageError(
                    "must be grey like the images the model was trained on, got colour. "
                    "Convert it to grey, or train on images in colour."
                )
            planes = planes[..., :1]
        elif self.channels == 3 and planes.shape[3] == 1:
            planes = np.broadcast_to(planes, (*planes.shape[:3], 3))
        return np.moveaxis(planes, 3, 1).reshape(len(planes), -1)


def frame_of(images: NDArray[Any], *, column: str = IMAGE) -> pd.DataFrame:
    """Return an array of images (n, h, w) or (n, h, w, c) as a table with one column of views, nothing copied.

    Raises:
        SchemaError: The array has another shape.
    """
    array = checked(images)
    cells = np.empty(len(array), dtype=object)
    for i, image in enumerate(array):
        cells[i] = image
    return pd.DataFrame({column: pd.Series(cells, dtype=object)})


def looks_of(cell: Any) -> Looks:
    """Return size and colour of one image, decoded in full.

    Raises:
        UnreadableImageError: See `pixels.pixels_of`.
    """
    pixels = with_channels(pixels_of(cell))
    return Looks(pixels.shape[0], pixels.shape[1], has_colour(pixels))


def looks_each(cells: Sequence[Any]) -> tuple[list[Looks], list[Fault]]:
    """Return the looks of what can be read, and position and reason of what cannot; see `ImageSchema.encode_each`."""
    array = alike(cells)
    if array is None:
        return _parted(_each(looks_of, cells))
    looks: list[Looks] = []
    faults: list[Fault] = []
    for start in range(0, len(array), _CHUNK):
        chunk = array[start : start + _CHUNK]
        try:
            pixels = quantised(chunk)
            colour = chunk.ndim == 4 and has_colour(pixels)
            looks += [Looks(chunk.shape[1], chunk.shape[2], colour)] * len(chunk)
        except UnreadableImageError:
            some, wrong = _parted(_each(looks_of, chunk), start)
            looks += some
            faults += wrong
    return looks, faults


def png_of(image: NDArray[np.uint8]) -> bytes:
    """Return an image (h, w) or (h, w, 3) as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _each(function: Any, cells: Sequence[Any] | NDArray[Any]) -> Iterable[Any]:
    """Yield `function(cell)` or the reason why it could not be had."""

    def attempt(cell: Any) -> Any:
        try:
            return function(cell)
        except UnreadableImageError as error:
            return str(error)

    light = len(cells) < 4 or all(
        isinstance(c, np.ndarray) or (isinstance(c, bytes) and len(c) < _LIGHT) for c in cells
    )
    return in_order(attempt, cells, workers=1 if light else None)  # a thread costs more than a thumbnail's decoding


def _parted(found: Iterable[Any], start: int = 0) -> tuple[list[Any], list[Fault]]:
    """Part results from reasons, each with its position."""
    values: list[Any] = []
    faults: list[Fault] = []
    for i, item in enumerate(found, start):
        if isinstance(item, str):
            faults.append((i, item))
        else:
            values.append(item)
    return values, faults


def _chosen_size(looks: Sequence[Looks]) -> tuple[int, int]:
    sizes = np.array([(look.height, look.width) for look in looks], dtype=np.float64)
    if (sizes == sizes[0]).all() and sizes.max() <= LARGEST_OWN:
        return looks[0].height, looks[0].width
    aspect = float(np.median(sizes[:, 1] / sizes[:, 0]))
    longer = min(float(np.median(sizes.max(axis=1))), RESIZED_TO)
    sides = (longer / max(aspect, 1.0), longer * min(aspect, 1.0))
    height, width = (max(SMALLEST, STEP * round(side / STEP)) for side in sides)
    return height, width


def _refuse_faults(frame: pd.DataFrame, column: str, faults: Sequence[Fault]) -> None:
    if not faults:
        return
    position, reason = faults[0]
    label = frame.index[position]
    row = label.item() if isinstance(label, np.generic) else label
    others = f" {len(faults) - 1} more of {len(frame)} images cannot be used." if len(faults) > 1 else ""
    raise SchemaError(f"the image in row {row!r} {reason}{others}", column=column, row=row, faults=tuple(faults))
