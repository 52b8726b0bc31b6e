"""The heads of a table's likelihood as the compiled code takes them (`densities.h`)."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, c_float, c_int64, c_void_p

import torch
from torch import Tensor, nn

from .bounds import HALF_LOG_2PI
from .likelihoods import (
    DEGREES,
    LOG_T,
    NOISE_FLOOR,
    Bernoulli,
    Categorical,
    FixedGaussian,
    Gaussian,
    RoundedLogNormal,
    StudentT,
    TableLikelihood,
    ZeroInflated,
)
from .networks import gradient_of, padded

KINDS = {FixedGaussian: 0, Gaussian: 0, StudentT: 1, Bernoulli: 2, Categorical: 3, RoundedLogNormal: 4, ZeroInflated: 5}
"""Heads as the compiled code numbers them."""


class Head(Structure):
    """One head; see `densities.h`."""

    _fields_ = (
        *((name, c_int64) for name in ("kind", "columns", "output")),
        *((name, c_void_p) for name in ("cells", "sizes")),
        *((name, c_float) for name in ("degrees", "floor")),
        *((name, c_void_p) for name in ("constant", "fixed", "noise_log", "noise_gradient")),
        *((name, c_void_p) for name in ("known", "unseen", "center", "scale")),
        *((name, c_void_p) for name in ("inverse", "level", "ratio", "pulled")),
    )


class Heads:
    """All heads of a likelihood.

    Args:
        likelihood: The likelihood, of whose noise the values are copied, as they are now.
        trained: Whether it is to be trained: then the noise, and its gradients, which must be there, are read and
            written where they lie in memory.

    Attributes:
        array: The heads.
    """

    def __init__(self, likelihood: TableLikelihood, *, trained: bool) -> None:
        self._kept: list[Tensor] = []  # what the heads point to
        heads: list[Head] = []
        for head, cells in zip(likelihood.heads.values(), likelihood.groups, strict=True):
            heads.append(self._described(head, cells, sum(likelihood.widths[: len(heads)])))
            if isinstance(head, Gaussian | RoundedLogNormal):
                self._noise(heads[-1], head, trained=trained)
        self.array = (Head * len(heads))(*heads)

    @staticmethod
    def serve(likelihood: TableLikelihood) -> bool:
        """Return whether compiled code knows all heads of a likelihood."""
        return all(type(head) in KINDS for head in likelihood.heads.values())

    def _described(self, head: nn.Module, cells: Sequence[int], output: int) -> Head:
        buffers = dict(head.named_buffers())
        found = Head(kind=KINDS[type(head)], columns=len(cells), output=output, degrees=DEGREES, floor=NOISE_FLOOR)
        found.cells = self._place(torch.tensor(cells, dtype=torch.int64))
        if isinstance(head, Categorical):
            found.sizes = self._place(torch.tensor(head.sizes, dtype=torch.int64))
        if "unseen" in buffers:
            found.known = self._place(torch.log1p(-buffers["unseen"]))
            found.unseen = self._place(buffers["unseen"].log())
        if isinstance(head, RoundedLogNormal):
            found.center, found.scale = self._place(buffers["center"]), self._place(buffers["scale"])
        return found

    def _noise(self, found: Head, head: Gaussian | RoundedLogNormal, *, trained: bool) -> None:
        constant = None
        if isinstance(head, Gaussian):
            constant = (LOG_T if isinstance(head, StudentT) else -HALF_LOG_2PI) - head.log_scale
        fixed = dict(head.named_buffers())["noise"] if isinstance(head, FixedGaussian) else None
        if not trained:
            noise = NOISE_FLOOR + head.noise_log.detach().exp() if fixed is None else fixed
            found.inverse = self._place(noise.reciprocal())
            if constant is not None:
                found.level = self._place(constant - noise.log())
            return
        if constant is not None:
            found.constant = self._place(constant)
        if fixed is not None:
            found.fixed = self._place(fixed)
        else:
            found.noise_log = head.noise_log.data_ptr()
            found.noise_gradient = gradient_of(head.noise_log).data_ptr()
        room = padded(found.columns)
        for name, size in {"inverse": room, "level": room, "ratio": room, "pulled": 16 * room}.items():
            setattr(found, name, self._place(torch.empty(size, dtype=torch.float32)))

    def _place(self, values: Tensor) -> int:
        self._kept.append(values.clone(memory_format=torch.contiguous_format))
        return self._kept[-1].data_ptr()
