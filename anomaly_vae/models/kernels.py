"""A network of `fused` as compiled code (`kernels.c`), where there is some (`compiled`).

torch computes one layer of a block of samples after the other, each from memory to memory, and beside products of 128
numbers activations, biases and densities take longer than the products. Compiled code takes 32 samples through all
layers at once. It is used for networks that stay in a core's own cache, and in bfloat16 asks for AMX.

Shapes: k samples of each of n rows, h = k n, l inputs, w outputs; n, or h without rows, a multiple of 16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import copy
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .compiled import Scratch, check, here, precisions, used
from .heads import Head, Heads
from .networks import MLP

HALF = 16
"""Samples are computed in halves of a vector: their number must be a multiple of it."""
OUTPUTS = 8
"""Outputs whose weights lie side by side, in float32."""
DEPTH = 32
"""Inputs that the matrix unit takes at once: weights in bfloat16 are padded with zeros to a multiple."""
PER_UNIT = 2
"""Cells in a unit of an activation's argument: a power of 2, by which weights are multiplied without rounding."""
LAST_CELL = 15
"""Beyond its middle, 7.5, SiLU is the identity or zero, to what bfloat16 can tell."""
LARGEST = 1 << 18
"""Weights of a network at most: 1 MiB, so that they stay in a core's own cache."""


class _Network(Structure):
    _fields_ = (
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("layers", c_int64),
        ("widths", POINTER(c_int64)),
        ("weights", POINTER(c_void_p)),
        ("biases", POINTER(c_void_p)),
        ("linear", c_void_p),
        ("cells", c_void_p),
    )


class _Rows(Structure):
    _fields_ = (
        ("rows", c_int64),
        ("columns", c_int64),
        ("student", c_int64),
        ("weight", c_float),
        *((name, c_void_p) for name in ("x", "bias", "inverse", "constant")),
        ("head", POINTER(Head)),
        ("heads", c_int64),
        *((name, c_void_p) for name in ("mean", "scale", "spread", "noise")),
        *((name, c_void_p) for name in ("chosen", "log_px", "log_w")),
    )


class _Posteriors(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("rows", "columns", "latent")),
        *((name, c_float) for name in ("bound", "limit")),
        *((name, c_void_p) for name in ("x", "bias", "mean", "log_scale", "scale", "spread")),
    )


class Columns(NamedTuple):
    """Continuous columns: log p(x|z) is the sum of `constant`, (m,), less `weight` times that of r^2 or ln(1 + r^2).

    A residual r is (x - bias - output) times `inverse`, (m,) each, and 0 where x is missing.
    """

    bias: Tensor
    inverse: Tensor
    constant: Tensor
    weight: float
    student: bool


class AnyColumns(NamedTuple):
    """Columns of any kind by the heads of their likelihood; `bias` of all outputs, (w,)."""

    bias: Tensor
    heads: Heads


class Drawn(NamedTuple):
    """What codes mean + scale * noise are made of: (n, l), (n, l), and noise (k, l) that all rows share.

    `spread` is the sum of the logarithms of the scales, (n,).
    """

    mean: Tensor
    scale: Tensor
    spread: Tensor
    noise: Tensor


class Kernel:
    """A network laid out for the compiled code. It keeps its scratch, so each thread needs its own.

    Args:
        network: Whose weights are copied.
        precision: "float32" or "bf16", of the hidden layers.
    """

    def __init__(self, network: MLP, precision: str) -> None:
        layers = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
        hidden = [layer.weight.detach() for layer in layers]
        if network.out is not None:
            hidden.append(network.out.weight.detach())
        self.half = precision == "bf16"
        self._biases = [layer.bias.detach().clone() for layer in layers]
        if self.half:
            scales = [PER_UNIT] * len(layers) + [1]
            self._weights = [_for_matrix_unit(w * scale) for w, scale in zip(hidden, scales, strict=False)]
            self._biases = [bias * PER_UNIT for bias in self._biases]
        else:
            self._weights = [_grouped(w) for w in hidden]
        self._cells = _cells()
        self._linear = _grouped(network.linear.weight.detach())
        self.inputs, self.outputs = network.linear.in_features, network.linear.out_features
        self._network = _Network(
            self.inputs,
            self.outputs,
            len(layers),
            (c_int64 * len(layers))(*(layer.out_features for layer in layers)),
            (c_void_p * len(self._weights))(*(w.data_ptr() for w in self._weights)),
            (c_void_p * len(layers))(*(b.data_ptr() for b in self._biases)),
            self._linear.data_ptr(),
            self._cells.data_ptr(),
        )
        self._scratch = Scratch()

    def copy(self) -> Kernel:
        """Return the same for another thread, with the same weights."""
        other = copy(self)
        other._scratch = Scratch()
        return other

    def decode(self, z: Tensor) -> Tensor:
        """Return the outputs (h, w), without the last bias, of inputs (h, l)."""
        z = z.contiguous()
        check("inputs", z, (len(z), self.inputs))
        y = z.new_empty(len(z), self.outputs)
        self._run(z, len(z), y, None, 0)
        return y

    def log_px(self, codes: Tensor, x: Tensor, columns: Columns | AnyColumns) -> Tensor:
        """Return log p(x|z), (k, n).

        Args:
            codes: Codes, (k, n, l).
            x: Rows, (n, m), NaN = missing.
            columns: The m columns, which the first outputs decode.
        """
        k, n = len(codes), len(x)
        check("codes", codes, (k, n, self.inputs))
        codes, x, found = codes.contiguous(), x.contiguous(), x.new_empty(k, n)
        pointers = (*[None] * (len(Drawn._fields) + 1), found.data_ptr(), None)
        self._run(codes, k * n, None, self._rows(x, columns, pointers), n)
        return found

    def log_densities(self, drawn: Drawn, x: Tensor, columns: Columns | AnyColumns) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and the log weights by a standard normal prior, each (k, n).

        Args:
            drawn: What the codes are made of.
            x: See `log_px`.
            columns: See `log_px`.
        """
        return self._log_densities(drawn, x, columns, None)

    def chosen(self, drawn: Drawn, x: Tensor, columns: Columns | AnyColumns, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and the log weight, each (n,), of one sample of each row, (n,), int32."""
        check("index", index, (len(x),), torch.int32)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(drawn.noise):
            raise ValueError(f"samples must be numbered from 0 to {len(drawn.noise) - 1}.")
        log_px, log_w = self._log_densities(drawn, x, columns, index.contiguous())
        return log_px[0], log_w[0]

    def _log_densities(
        self, drawn: Drawn, x: Tensor, columns: Columns | AnyColumns, index: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        samples, n = len(drawn.noise), len(x)
        shapes = ((n, self.inputs), (n, self.inputs), (n,), (samples, self.inputs))
        for name, part, shape in zip(Drawn._fields, drawn, shapes, strict=True):
            check(name, part, shape)
        k = samples if index is None else 1
        x, parts = x.contiguous(), [part.contiguous() for part in drawn]
        log_px, log_w = x.new_empty(2, k, n)
        pointers = [part if part is None else part.data_ptr() for part in (*parts, index, log_px, log_w)]
        self._run(None, k * n, None, self._rows(x, columns, pointers), n)
        return log_px, log_w

    def posteriors(
        self, x: Tensor, bias: Tensor, latent: int, *, bound: float, limit: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return means, log scales and scales, each (n, latent), and sums of the log scales, (n,).

        Args:
            x: Rows (n, m), NaN = missing, n a multiple of 16; the inputs are m cells and m indicators of missing ones.
            bias: Of the outputs, (w,), of which the first are means, then log scales.
            latent: How many of each.
            bound: Cells count as at most of this size.
            limit: So do log scales.
        """
        n, m = x.shape
        check("rows", x, (n, self.inputs // 2))
        check("bias", bias, (self.outputs,))
        if self.half or 2 * latent > self.outputs or n % HALF:
            raise ValueError(f"needs float32, at most {self.outputs} outputs and rows in {HALF}s, got {n}, {latent}.")
        x, bias = x.contiguous(), bias.contiguous()
        found = (*x.new_empty(3, n, latent), x.new_empty(n))
        rows = _Posteriors(n, m, latent, bound, limit, *(part.data_ptr() for part in (x, bias, *found)))
        library, network = here(), byref(self._network)
        library.encode(network, byref(rows), self._scratch.address(library.scratch_size(network, None)))
        return found

    def _rows(self, x: Tensor, columns: Columns | AnyColumns, pointers: Iterable[int | None]) -> _Rows:
        n, m = x.shape
        check("rows", x, (n, m))
        if isinstance(columns, AnyColumns):
            check("bias", columns.bias, (self.outputs,))
            array = columns.heads.array
            if m != sum(head.columns for head in array):
                raise ValueError(f"rows must have the columns of all heads, got {m}.")
            return _Rows(n, m, 0, 0.0, x.data_ptr(), columns.bias.data_ptr(), None, None, array, len(array), *pointers)
        for name, part in zip(columns._fields[:3], columns[:3], strict=True):
            check(name, part, (m,))
        if m > self.outputs:
            raise ValueError(f"rows must have at most {self.outputs} columns, got {m}.")
        given = (part.data_ptr() for part in (x, *columns[:3]))
        return _Rows(n, m, columns.student, columns.weight, *given, None, 0, *pointers)

    def _run(self, z: Tensor | None, height: int, y: Tensor | None, rows: _Rows | None, n: int) -> None:
        if height % HALF or n % HALF:
            raise ValueError(f"rows and samples must come in multiples of {HALF}, got {n} rows, {height} samples.")
        library, network, given = here(), byref(self._network), None if rows is None else byref(rows)
        scratch = self._scratch.address(library.scratch_size(network, given))
        given_z, into = (None if part is None else part.data_ptr() for part in (z, y))
        library.decode(network, given_z, height, into, given, scratch, self.half)


def kernel(network: MLP, precision: str) -> Kernel | None:
    """Return the network as compiled code, None where torch must compute it."""
    weight = network.linear.weight
    parameters = sum(p.numel() for p in network.parameters())
    ours = weight.dtype == torch.float32 and weight.device.type == "cpu" and parameters <= LARGEST
    if not ours or not used() or precision not in precisions():
        return None
    return Kernel(network, precision)


def reduced(log_weights: Tensor, *, weighted: bool) -> Tensor | None:
    """Return what a score and its error are made of, float64; None where torch must compute it.

    That is minus the mean and its standard error, (2, n), or of what is weighted minus the log of the mean weight and
    the `bounds.WeightMoments`, (5, n).

    Args:
        log_weights: Shape (k, n).
        weighted: Whether samples have unequal weights.
    """
    k, n = log_weights.shape
    ours = log_weights.dtype == torch.float32 and log_weights.device.type == "cpu" and n % HALF == 0 and k > 1
    if not ours or not used():
        return None
    log_weights = log_weights.contiguous()
    found = log_weights.new_empty(5 if weighted else 2, n, dtype=torch.float64)
    here().reduced(log_weights.data_ptr(), k, n, weighted, found.data_ptr())
    return found


def _grouped(weight: Tensor) -> Tensor:
    """Return weights (o, i) as (o / 8, i, 8)."""
    outputs, inputs = weight.shape
    groups = weight.reshape(outputs // OUTPUTS, OUTPUTS, inputs).transpose(1, 2)
    return groups.clone(memory_format=torch.contiguous_format)


def _for_matrix_unit(weight: Tensor) -> Tensor:
    """Return weights (o, i) in bfloat16, the inputs padded."""
    return F.pad(weight, (0, -weight.shape[1] % DEPTH)).to(torch.bfloat16).contiguous()


@cache
def _cells() -> Tensor:
    """Return coefficients (3, 32) of SiLU near n / `PER_UNIT`, n = 0..15, then -16..-1, in powers of what t exceeds n.

    Each is the quadratic through the function at the Chebyshev points of [n - 1/2, n + 1/2], off by 2e-4 at most.
    """
    points = 0.5 * torch.cos(torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64) * math.pi / 6)
    n = torch.cat([torch.arange(16), torch.arange(-16, 0)])
    values = F.silu((n + points[:, None]) / PER_UNIT)
    coefficients = torch.linalg.solve(torch.linalg.vander(points), values)
    last = torch.tensor([LAST_CELL / PER_UNIT, 1 / PER_UNIT, 0.0], dtype=torch.float64)
    coefficients[:, LAST_CELL], coefficients[:, -LAST_CELL] = last, 0.0
    return coefficients.float().contiguous()
