"""The compiled code of `kernels.c` and `steps.c`, where it is there.

It is built with the package where there is a C compiler, and asks for a processor with AVX-512. Anywhere else torch or
numpy compute the same, to rounding: nothing but time depends on it. The environment variable ANOMALY_VAE_KERNELS=off
leaves it unused.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SWITCH = "ANOMALY_VAE_KERNELS"
FORM = 2
"""Of the compiled code, which may be older than what calls it."""
ALIGNED = 64
"""Bytes."""
SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "scratch_size": ([c_void_p] * 2, c_int64),
    "decode": ([c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int64], None),
    "encode": ([c_void_p] * 3, None),
    "reduced": ([c_void_p, c_int64, c_int64, c_int64, c_void_p], None),
    "step_scratch": ([c_void_p] * 3, c_int64),
    "gradient": ([c_void_p] * 4, None),
    "descend": ([c_void_p], None),
    "normal_masses": ([c_void_p, c_void_p, c_int64, c_void_p], None),
}


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled code, None where it was not built (in this form) or the processor has no use for it."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_compiled{suffix}")
        if path.exists():
            found = ctypes.CDLL(str(path))
            if found.form() != FORM or found.instructions() == 0:
                return None
            for name, (arguments, result) in SIGNATURES.items():
                function = getattr(found, name)
                function.argtypes, function.restype = arguments, result
            return found
    return None


@cache
def precisions() -> tuple[str, ...]:
    """Return the precisions for which there is compiled code here, of "float32" and "bf16"."""
    found = library()
    return ("float32", "bf16")[: 2 if found.instructions() == 3 else 1] if found is not None else ()


def used() -> bool:
    """Return whether there is compiled code here, and it is not switched off."""
    return os.environ.get(SWITCH) != "off" and library() is not None


def here() -> ctypes.CDLL:
    """Return the compiled code, which is there."""
    found = library()
    assert found is not None
    return found


def check(name: str, part: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """See that there is what the compiled code will read.

    Raises:
        ValueError: It has another shape or type, or is not on the CPU.
    """
    if part.dtype != dtype or part.shape != shape or part.device.type != "cpu":
        raise ValueError(f"{name} must be {dtype} {shape}, got {part.dtype} {tuple(part.shape)} on {part.device}.")


class Scratch:
    """Memory that is kept from one call to the next, and grows. Each thread needs its own."""

    def __init__(self) -> None:
        self._numbers: Tensor = torch.empty(0)

    def address(self, size: int) -> int:
        """Return the address of so many numbers of float32, a multiple of `ALIGNED`."""
        if len(self._numbers) < size + ALIGNED:
            self._numbers = torch.empty(size + ALIGNED, dtype=torch.float32)
        return -(-self._numbers.data_ptr() // ALIGNED) * ALIGNED
