r"""How far the log of a mean of importance weights lies from what it estimates, where large weights are rare.

Of k weights :math:`v = e^w` of a poor proposal the largest decide, and those that matter may not have come: the
estimate is then low, and the spread of the weights that did come, which is all that the delta method knows, says
nothing of it.
Spread and skewness of the *log* weights do, which are known from few samples. `ROOT_MEAN_SQUARES` holds the root mean
square, bias and spread together, of :math:`\log \tfrac1k \sum_i e^{\sigma y_i} - \log E e^{\sigma y}` for y that is
standard normal, or minus a standardised gamma variable where it is skewed to the left; found by simulation.

Where weights are bounded, many come near the bound: then none are missing, whatever the spread. So the table is
believed only where no more samples count than would be usual of normal log weights so spread (`EFFECTIVE`).

References:
    Chatterjee & Diaconis (2018), The sample size required in importance sampling, arXiv:1511.01437.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

SKEWNESSES = (0.0, 0.5, 1.0, 2.0)
"""To the left: the table's blocks. Of log weights skewed to the right less is known; they count as symmetric."""
SAMPLES = (4, 16, 64, 256, 1024, 4096)
"""k: the rows of a block."""
SPREADS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
"""Standard deviations of the log weights, nats: the columns."""
EFFECTIVE = (
    (3.44, 2.805, 2.399, 2.152, 1.965, 1.837, 1.605, 1.288),  # k = 4
    (13.37, 9.657, 7.092, 5.511, 3.858, 3.075, 2.344, 1.914),  # k = 16
    (52.01, 33.19, 20.46, 13.42, 7.303, 4.98, 3.244, 2.226),  # k = 64
    (204.2, 117.4, 60.77, 33.11, 13.39, 7.69, 4.236, 2.605),  # k = 256
    (807.7, 431.7, 191.8, 86.55, 25.62, 11.97, 5.401, 2.943),  # k = 1024
    (3211, 1628, 633.3, 238.5, 49.97, 18.62, 6.811, 3.33),  # k = 4096
)
"""The effective sample size that seven in eight sets of k normal log weights do not exceed, by simulation."""
DOUBTED = 0.5
"""Skewness to the left that is taken for none: the far right, which matters, is heavier than a gamma variable's."""
ROOT_MEAN_SQUARES = (
    (  # skewness 0
        (0.262, 0.586, 1.005, 1.554, 3.203, 5.739, 13.72, 41.64),  # k = 4
        (0.133, 0.31, 0.561, 0.9, 1.978, 3.836, 10.38, 35.36),  # k = 16
        (0.0665, 0.161, 0.314, 0.54, 1.277, 2.656, 8.118, 30.83),  # k = 64
        (0.0333, 0.0819, 0.172, 0.328, 0.858, 1.883, 6.459, 27.28),  # k = 256
        (0.0168, 0.0412, 0.0897, 0.191, 0.589, 1.364, 5.209, 24.41),  # k = 1024
        (0.0081, 0.0204, 0.0461, 0.105, 0.398, 0.987, 4.191, 21.93),  # k = 4096
    ),
    (  # skewness -0.5
        (0.241, 0.499, 0.799, 1.148, 2.004, 3.077, 5.79, 12.82),  # k = 4
        (0.118, 0.243, 0.392, 0.571, 1.024, 1.611, 3.219, 7.877),  # k = 16
        (0.0588, 0.12, 0.196, 0.291, 0.548, 0.891, 1.863, 4.994),  # k = 64
        (0.0292, 0.0598, 0.0972, 0.146, 0.292, 0.504, 1.115, 3.223),  # k = 256
        (0.0146, 0.0298, 0.0487, 0.074, 0.154, 0.285, 0.691, 2.094),  # k = 1024
        (0.0074, 0.0152, 0.025, 0.0378, 0.0786, 0.151, 0.414, 1.377),  # k = 4096
    ),
    (  # skewness -1
        (0.221, 0.428, 0.647, 0.886, 1.422, 2.029, 3.418, 6.68),  # k = 4
        (0.106, 0.199, 0.292, 0.39, 0.612, 0.868, 1.47, 2.973),  # k = 16
        (0.0528, 0.0975, 0.141, 0.186, 0.286, 0.4, 0.676, 1.387),  # k = 64
        (0.0264, 0.0487, 0.0704, 0.0925, 0.141, 0.195, 0.327, 0.677),  # k = 256
        (0.013, 0.0239, 0.0344, 0.0452, 0.0685, 0.095, 0.159, 0.332),  # k = 1024
        (0.0066, 0.0121, 0.0175, 0.0231, 0.035, 0.0482, 0.0796, 0.165),  # k = 4096
    ),
    (  # skewness -2
        (0.191, 0.331, 0.458, 0.583, 0.837, 1.101, 1.655, 2.833),  # k = 4
        (0.0898, 0.148, 0.195, 0.236, 0.307, 0.371, 0.491, 0.73),  # k = 16
        (0.0443, 0.0726, 0.0946, 0.113, 0.144, 0.171, 0.215, 0.289),  # k = 64
        (0.022, 0.036, 0.0467, 0.0557, 0.0707, 0.0832, 0.104, 0.138),  # k = 256
        (0.011, 0.018, 0.0234, 0.028, 0.0355, 0.0418, 0.0521, 0.0682),  # k = 1024
        (0.0056, 0.0091, 0.0118, 0.0141, 0.0177, 0.0207, 0.0257, 0.0336),  # k = 4096
    ),
)
"""Nats."""


def stated_error(delta: Tensor, effective: Tensor, spread: Tensor, skewness: Tensor, k: int | Tensor) -> Tensor:
    """Return the error to state of the log of a mean of k weights, (n,), nats.

    It is the delta method's, unless no more of the samples count than is usual of normal log weights so spread, and log
    weights of such spread and skewness have a larger error. That grows faster than the spread, which k samples know
    only so well: its standard error, that of normal variables, is added to it.

    Args:
        delta: The delta method's standard error, (n,).
        effective: Effective sample size, (n,).
        spread: Standard deviations of the log weights, (n,), nats.
        skewness: Their skewness, (n,); NaN where they do not vary.
        k: Samples, of all rows or of each, (n,).
    """
    unseen = unseen_error(spread * (1 + uncertainty(k)), skewness, k)
    return torch.where(effective <= usual_effective(spread, k), torch.maximum(unseen, delta), delta)


def uncertainty(k: int | Tensor) -> Tensor:
    """Return the relative standard error of the standard deviation of k normal variables, 1 / sqrt(2 (k - 1))."""
    return (2.0 * torch.as_tensor(k) - 2.0).rsqrt()


def usual_effective(spread: Tensor, k: int | Tensor) -> Tensor:
    """Return the effective sample size that seven in eight sets of k normal log weights do not exceed, (n,).

    `EFFECTIVE` is interpolated on a log scale, in the spread and in log k; it stays beyond the ends of the spread, and
    goes on beyond the most samples.

    Args:
        spread: Standard deviations of the log weights, (n,), nats.
        k: Samples, of all rows or of each, (n,).
    """
    tables = _tables(spread.dtype, spread.device, k if isinstance(k, int) else None)
    along_spread = _place(spread.clamp(max=SPREADS[-1]), tables.spreads)
    return _interpolated(tables.log_effective, [*_places_of(k, spread, tables), along_spread]).exp()


def unseen_error(spread: Tensor, skewness: Tensor, k: int | Tensor) -> Tensor:
    """Return the root mean square error of the log of a mean of k weights, (n,), nats.

    The table's ratios of error to spread are interpolated on a log scale, in the skewness, the spread and log k; beyond
    the most samples they go on along the same line.

    Args:
        spread: Standard deviations of the log weights, (n,), nats.
        skewness: Their skewness, (n,), of which `DOUBTED` is not believed; NaN where they do not vary.
        k: Samples, of all rows or of each, (n,).
    """
    tables = _tables(spread.dtype, spread.device, k if isinstance(k, int) else None)
    places = [
        _place((-skewness.nan_to_num(0.0) - DOUBTED).clamp(max=SKEWNESSES[-1]), tables.skewnesses),
        *_places_of(k, spread, tables),
        _place(spread.clamp(max=SPREADS[-1]), tables.spreads),
    ]
    return spread * _interpolated(tables.log_ratios, places).exp()


class _Tables(NamedTuple):
    """Both tables on a log scale, the second as ratios of error to spread, and the values along their axes.

    Those of one k for all rows have been interpolated to it and have no axis of samples.
    """

    log_effective: Tensor
    log_ratios: Tensor
    skewnesses: Tensor
    levels: Tensor
    spreads: Tensor


@lru_cache
@torch.inference_mode(False)
def _tables(dtype: torch.dtype, device: torch.device, k: int | None) -> _Tables:
    def tensor(values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    spreads, levels = tensor(SPREADS), tensor([math.log(k) for k in SAMPLES])
    ratios = tensor(ROOT_MEAN_SQUARES) / spreads
    log_effective, log_ratios = tensor(EFFECTIVE).log(), ratios.log()
    if k is not None:
        below, along = _place(tensor([k]).log(), levels)
        log_effective, log_ratios = (
            torch.lerp(table[..., below[0], :], table[..., below[0] + 1, :], along)
            for table in (log_effective, log_ratios)
        )
    return _Tables(log_effective, log_ratios, tensor(SKEWNESSES), levels, spreads)


def _places_of(k: int | Tensor, like: Tensor, tables: _Tables) -> list[tuple[Tensor, Tensor]]:
    """Return the places of each row's number of samples, none where all have the same."""
    return [] if isinstance(k, int) else [_place(k.to(like).log(), tables.levels)]


def _interpolated(table: Tensor, places: Sequence[tuple[Tensor, Tensor]], entry: int | Tensor = 0) -> Tensor:
    """Return a table's entries at `_place`s along its axes, linear between them; `entry` is where the table begins."""
    (below, along), *rest = places
    stride = table.stride(-len(places))
    lower, upper = entry + stride * below, entry + stride * (below + 1)
    if rest:
        ends = _interpolated(table, rest, lower), _interpolated(table, rest, upper)
    else:
        ends = table.take(lower), table.take(upper)
    return torch.lerp(*ends, along)


def _place(value: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the grid's entry below each value, and how far the value is on the way to the next, 0 before the first."""
    below = (torch.bucketize(value.contiguous(), grid, right=True) - 1).clamp(0, len(grid) - 2)
    start = grid.take(below)
    return below, ((value - start) / (grid.take(below + 1) - start)).clamp(min=0.0)
