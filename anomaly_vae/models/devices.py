"""Where to compute, by name, and how exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Return the device for a `TrainConfig.device`.

    Raises:
        ConfigError: The device is not there.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(d for d in ("cuda", "mps", "cpu") if present[d]))
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
