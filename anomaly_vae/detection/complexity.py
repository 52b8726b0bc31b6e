"""How long an image is once compressed without loss: what any model of natural images finds hard about it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEVEL = 9
NATS_PER_BYTE = 8 * math.log(2)
COMPRESSOR = f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
"""What the lengths depend on: another version may compress otherwise."""


def compressed_nats(x: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the compressed length of images (n, c h w), nats, (n,): PNG's Paeth filter, then deflate.

    Args:
        x: Pixels, levels 0 to 255, channel first.
        shape: (c, h, w).
    """
    images = np.ascontiguousarray(x.reshape(len(x), *shape).transpose(0, 2, 3, 1))
    filtered = _paeth(images)
    return np.array([len(zlib.compress(image.tobytes(), LEVEL)) for image in filtered]) * NATS_PER_BYTE


def _paeth(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return each pixel less PNG's prediction of it from its left, upper and upper left neighbours, (n, h, w, c)."""
    padded = np.pad(images, ((0, 0), (1, 0), (1, 0), (0, 0))).astype(np.int16)
    left, up, corner = padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]
    to_left, to_up, to_corner = np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)
    guess = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
    return (padded[:, 1:, 1:] - guess).astype(np.uint8)
