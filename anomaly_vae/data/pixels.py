"""One image as pixels: whatever a cell holds becomes an array (h, w) or (h, w, 3), uint8, or a reason why not.

A cell is an encoded file (bytes, base64 text, or a named file that is read only when it is needed), an array, or a
Pillow image. Every fault is an `UnreadableImageError` whose text is a rule without a subject, "must ..., got ...": the
caller knows whether it speaks of a row or of a file.

Files are known by their content: PNG, JPEG, WebP and TIFF. Their pixels are taken thus:

- the EXIF orientation is applied;
- transparent parts lie on white; palettes and bilevel images become grey or RGB; 16 bits become 8 (divided by 257);
- several frames, CMYK, LAB, 32-bit integers and more than `MOST_PIXELS` or `MOST_BYTES` are refused, the last two from
  the header alone, before anything is decoded.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile as PillowFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..errors import UnreadableImageError

MOST_PIXELS = 64_000_000
"""Pixels of an image at most, as its header declares them."""
MOST_BYTES = 1 << 28
"""Bytes of an encoded file at most."""
LARGE = 16_000_000
"""Images with more pixels are decoded one at a time, so that threads do not multiply their memory."""
SUFFIXES = {
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    ".webp": "WebP",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
}
"""Format that a file's suffix promises."""
FORMATS = "PNG, JPEG, WebP or TIFF"

_OPENERS: dict[str, Callable[[io.BytesIO], PillowFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WebP": WebPImageFile,
    "TIFF": TiffImageFile,
}
"""Called by name: Pillow's own `open` would try every plugin, and warn on standard error of what is refused here."""
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    *((magic, "TIFF") for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((magic, "GIF") for magic in (b"GIF87a", b"GIF89a")),
    (b"BM", "BMP"),
    (b"%PDF", "PDF"),
    (b"8BPS", "PSD"),
    *((magic, "JPEG 2000") for magic in (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),
)
_one_large = threading.Lock()
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class NamedFile:
    """An image file as a cell, read when it is decoded.

    Attributes:
        path: Where it lies.
        name: Name by which it is spoken of; its suffix must agree with the content.
    """

    path: Path
    name: str

    def read(self, most: int | None = None) -> bytes:
        """Return the first `most` bytes of a regular file, by default all.

        Raises:
            UnreadableImageError: It is no regular file, is over `MOST_BYTES`, or cannot be read.
        """
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            with open(self.path, "rb", opener=lambda path, _: os.open(path, flags)) as file:
                facts = os.fstat(file.fileno())
                if not stat.S_ISREG(facts.st_mode):
                    raise UnreadableImageError(
                        "must be a regular file, got a device, a pipe or a folder. Leave it out."
                    )
                if most is None:
                    _refuse_long(facts.st_size)
                return file.read(MOST_BYTES if most is None else most)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UnreadableImageError(f"must be readable, got {reason!r}. Check the file.") from error


def in_order(function: Callable[[_In], _Out], items: Iterable[_In], *, workers: int | None = None) -> Iterator[_Out]:
    """Yield `function(item)` of every item, in their order, from threads that run only a few items ahead.

    Args:
        function: Called in a thread; decoders release the interpreter's lock.
        items: Read no further than the threads need.
        workers: Threads; by default one a core, at most 8; 1 = none.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    if workers == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[_Out]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 8 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def pixels_of(cell: Any, *, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Return a cell's pixels, shape (h, w), (h, w, 1) or (h, w, 3).

    Args:
        cell: Bytes, base64 text, `NamedFile`, an array or nested list (h, w) or (h, w, c), or a Pillow image.
        size: Height and width to resize to: both sides are scaled to fit (the aspect is not kept, nothing is cut off)
            by a bilinear filter as wide as the reduction, so that fine detail does not alias; None = as it is.

    Raises:
        UnreadableImageError: See the module; its text is the rule broken.
    """
    if cell is None or (pd.api.types.is_scalar(cell) and pd.isna(cell)):
        raise UnreadableImageError("must be an image, got a missing cell. Fill it or drop the row.")
    if isinstance(cell, Image.Image):
        return _of_pillow(cell, size)
    if isinstance(cell, NamedFile):
        return _of_bytes(cell.read(), size, name=cell.name)
    if isinstance(cell, str):
        return _of_bytes(_of_base64(cell), size)
    if isinstance(cell, bytes | bytearray | memoryview):
        return _of_bytes(bytes(cell), size)
    if isinstance(cell, list | tuple) or hasattr(cell, "__array__"):
        return _resized(_of_array(cell), size)
    raise UnreadableImageError(
        f"must be the bytes of an image file, base64 text or an array, got {type(cell).__name__}. Convert it."
    )


def quantised(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixel values of any allowed dtype as uint8, same shape.

    Args:
        array: uint8; bool (false = 0, true = 255); uint16 (0 to 65535, divided by 257); floats in [0, 1] (times 255,
            rounded); other integers, if they lie within 0 to 255.

    Raises:
        UnreadableImageError: A value is outside its range or not finite, or the dtype is another.
    """
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind == "u" and array.itemsize == 2:  # of either byte order
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind not in "iuf":
        raise UnreadableImageError(f"must hold numbers, got an array of {array.dtype}. Convert it to uint8.")
    if array.size == 0:
        return array.astype(np.uint8)
    low, high = float(array.min()), float(array.max())
    if kind in "iu":
        if low < 0 or high > 255:
            raise UnreadableImageError(
                f"must hold integers from 0 to 255, got {low:.0f} to {high:.0f}. Use uint8, or uint16 for 16 bits."
            )
        return array.astype(np.uint8)
    if not np.isfinite([low, high]).all():  # both are NaN where any value is
        raise UnreadableImageError("must hold finite values, got NaN or infinity. Replace them or drop the row.")
    if low < 0 or high > 1:
        raise UnreadableImageError(
            f"must lie in [0, 1] as a float image, got {low:.4g} to {high:.4g}. "
            "Divide by 255 if it runs to 255, or pass uint8."
        )
    return np.rint(array * np.float32(255)).astype(np.uint8)


def format_of(head: bytes) -> str | None:
    """Return the name of the format that a file's first 16 bytes show, allowed or not; None = no image."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return "AVIF" if head[8:12] in (b"avif", b"avis") else "HEIC or a video"
    return next((name for magic, name in _MAGIC if head.startswith(magic)), None)


def has_colour(pixels: NDArray[np.uint8]) -> bool:
    """Whether the channels of (..., h, w, 3) differ anywhere; (..., h, w, 1) has no colour."""
    if pixels.shape[-1] == 1:
        return False
    return any(  # a few pixels show it at once in almost every image that has colour
        bool((part[..., 1:] != part[..., :1]).any()) for part in (pixels[..., ::16, ::16, :], pixels)
    )


def with_channels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (h, w) as (h, w, 1), and what has channels as it is."""
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _of_base64(text: str) -> bytes:
    _refuse_long(len(text) * 3 // 4)
    body = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnreadableImageError(
            f"must be base64 text of an image file, got {_short(text)}. Paths are not opened: pass the file's bytes."
        ) from error


def _of_array(cell: Any) -> NDArray[np.uint8]:
    try:
        array = np.asarray(cell)
    except (ValueError, TypeError, OverflowError) as error:
        raise UnreadableImageError("must be a rectangular array, got lists that differ in length. Pad them.") from error
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        hint = " Channels come last." if array.ndim == 3 and array.shape[0] in (1, 3) else ""
        raise UnreadableImageError(
            f"must have the shape (h, w), (h, w, 1) or (h, w, 3), got {array.shape}.{hint} Reshape or convert it."
        )
    _refuse_large(array.shape[1], array.shape[0])
    return quantised(array)


def _of_bytes(data: bytes, size: tuple[int, int] | None, *, name: str = "") -> NDArray[np.uint8]:
    if not data:
        raise UnreadableImageError("must hold an image, got an empty file. Check the export.")
    _refuse_long(len(data))
    kind = format_of(data[:16])
    if kind not in _OPENERS:
        got = kind or f"bytes that start with {data[:8]!r}"
        raise UnreadableImageError(f"must be {FORMATS}, got {got}. Convert or remove it.")
    if name and SUFFIXES.get(Path(name).suffix.lower()) != kind:
        raise UnreadableImageError(
            f"must have the suffix of its content, got {Path(name).suffix or 'none'!r} for {kind}. Rename it."
        )
    if kind == "WebP":
        _refuse_large(*_webp_size(data))  # its decoder reserves the canvas as soon as it is made
    try:
        with _OPENERS[kind](io.BytesIO(data)) as image:
            if size and image.width * image.height <= MOST_PIXELS:
                image.draft(image.mode, (2 * max(size), 2 * max(size)))  # JPEG alone has smaller versions of itself
            return _of_pillow(image, size)
    except UnreadableImageError:
        raise
    except Exception as error:  # a decoder of foreign bytes may raise anything; each is the file's fault
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UnreadableImageError(
            f"must be a whole {kind} file, got one cut short, damaged or of a rare kind ({reason}). Replace it."
        ) from error


def _of_pillow(image: Image.Image, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    _refuse_large(*image.size)
    if getattr(image, "is_animated", False):
        # counting a TIFF's pages means reading all of their directories, so it is not done
        frames = (
            "several pages" if isinstance(image, TiffImageFile) else f"{getattr(image, 'n_frames', 'several')} frames"
        )
        raise UnreadableImageError(f"must be a single image, got {frames}. Save one of them.")
    if image.mode in ("CMYK", "LAB", "HSV"):
        raise UnreadableImageError(f"must be grey or RGB, got {image.mode}. Convert it to RGB.")
    with _one_large if image.width * image.height > LARGE else contextlib.nullcontext():
        image.load()
        plain = _upright(image)
        if plain.mode == "F" or plain.mode.startswith("I"):
            return _resized(_deep(plain), size)
        plain = _plain(plain)
        if size and plain.size != size[::-1]:
            plain = plain.resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(plain)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF data say nothing about the pixels
        return image
    if orientation == 1 or isinstance(image, TiffImageFile):  # Pillow turns a TIFF when it loads it
        return image
    return ImageOps.exif_transpose(image)


def _deep(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels of more than 8 bits."""
    array = np.asarray(image)
    if image.mode == "I":
        raise UnreadableImageError("must have 8 or 16 bits a channel, got 32-bit integers. Convert it.")
    return quantised(array if image.mode == "F" else array.astype(np.uint16))


def _plain(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        grey = image.mode in ("L", "LA", "La")
        top = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, top).convert("L" if grey else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _resized(pixels: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    if size is None or pixels.shape[:2] == size:
        return pixels
    flat = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    return np.asarray(Image.fromarray(np.ascontiguousarray(flat)).resize(size[::-1], Image.Resampling.BILINEAR))


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from a WebP header; (0, 0) where it has none that could be read."""
    chunk, head = data[12:16], data[:30].ljust(30, b"\0")
    if chunk == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _refuse_large(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise UnreadableImageError(
            f"must have at most {MOST_PIXELS:,} pixels, got {width:,} x {height:,}. Make it smaller, or tiles of it."
        )
    if width * height == 0:
        raise UnreadableImageError(f"must have pixels, got {width} x {height}. Drop it.")


def _refuse_long(length: int) -> None:
    if length > MOST_BYTES:
        raise UnreadableImageError(
            f"must be at most {MOST_BYTES >> 20} MiB as a file, got {length >> 20} MiB. Make it smaller."
        )


def _short(value: str) -> str:
    return repr(value) if len(value) <= 40 else repr(value[:37]) + "..."
