"""Where to compute, by name, and how exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import ConfigError

WORTH_A_GPU = 8_000_000
"""Multiplications of a step's largest product from which a GPU is the faster: the launch of a step's kernels takes some
2 ms, whatever they compute."""


def resolve_device(name: str, multiply_adds: int | None = None) -> torch.device:
    """Return the device for a `TrainConfig.device`.

    Args:
        name: One of `DEVICES`.
        multiply_adds: Of a step's largest product, by which "auto" decides whether a GPU that is there is worth it;
            by default it is.

    Raises:
        ConfigError: The device is not there.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        small = multiply_adds is not None and multiply_adds < WORTH_A_GPU
        return torch.device("cpu" if small else next(d for d in ("cuda", "mps", "cpu") if present[d]))
    if not present.get(name, False):
        raise ConfigError(f"device must be one that is present, got {name!r}. Use auto or cpu.", device=name)
    return torch.device(name)


@contextmanager
def exact_convolutions(device: torch.device) -> Iterator[None]:
    """Compute convolutions on a GPU in float32 inside, not in its shortened form of 10 bits."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
        yield
