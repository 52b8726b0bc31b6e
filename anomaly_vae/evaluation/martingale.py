r"""Whether a stream of conformal p-values has left the distribution of its calibration rows: a test martingale.

p-values against one fixed calibration set are not independent: a calibration set with a low tail makes all of them
small together, and a martingale that takes them for independent gives false alarms (a test shows it). So they are made
into online p-values first, in which each row is ranked among the calibration rows and all rows before it. If those
rows are exchangeable, ranks among c calibration scores follow Pólya's urn with c + 1 colours,

.. math:: P(j_{t+1} = j \mid j_1, \dots, j_t) = \frac{1 + n_j}{c + 1 + t},

n_j of the t rows so far having had rank j, and smoothing by a uniform number makes the online p-values exactly
independent and uniform, for any number of rows and over the draw of the calibration set. Nothing is approximated, and
all that is kept is a count for each rank.

The bets: one unit of capital, released from cash over the rows so that a share 1 / (s (s + 1)) starts betting at row
s, spread over fixed densities of the online p-values (`BETS`) and over the shares that intervals of ranks have had in
the stream so far, divided by those that the urn expects (`MEMORIES`). So a change after row s costs 2 log s nats of
evidence at most. Capital is a martingale: by Ville's inequality it ever reaches 1 / level with probability at most
level while nothing changes. After an alarm it starts anew from 1, so that k false alarms have a probability of at most
level^k.

What it can find is bounded by the calibration rows: once many more rows than these have been seen, a stream that was
shifted from its first row on has become its own standard.

References:
    Vovk, Gammerman & Shafer (2005), Algorithmic Learning in a Random World, sections 2.4 and 7.1.
    Vovk, Petej, Nouretdinov, Ahlberg, Carlsson & Gammerman (2021), Retrain or not retrain: conformal test martingales
    for change-point detection, arXiv:2102.10439.
    Ville (1939), Étude critique de la notion de collectif.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import lfilter
from scipy.special import logsumexp

from ..errors import CalibrationError, ConfigError, ShapeError

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]

BLOCK = 512
"""Rows ranked among each other at once."""
POINTS = 400
"""Points of the path that is kept for a picture, about."""
LEAST = 1e-12

BETS: Mapping[str, Callable[[Floats], Floats]] = {
    "far too many anomalous": lambda u: math.log(0.3) - 0.7 * np.log(u),
    "too many anomalous": lambda u: math.log(0.6) - 0.4 * np.log(u),
    "more anomalous on the whole": lambda u: np.log1p(-1.5 * (u - 0.5)),
    "less anomalous on the whole": lambda u: np.log1p(1.5 * (u - 0.5)),
    "far too many typical": lambda u: math.log(0.6) - 0.4 * np.log1p(-u),
    "too many of both ends": lambda u: -math.log(math.pi) - 0.5 * (np.log(u) + np.log1p(-u)),
    "too few of both ends": lambda u: math.log(6.0) + np.log(u) + np.log1p(-u),
}
"""log densities on (0, 1) of the online p-value u; small u are anomalous rows."""
MEMORIES: Mapping[str, float] = {"another distribution of scores": 1.0, "another distribution of late": 0.995}
"""Bets on the share of each of some intervals of ranks, learnt from the stream; earlier rows fade by this factor."""
SHARES = (0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
"""Where the intervals end, as shares of the ranks, the anomalous ones first."""
CAUTION = 20.0
"""Rows that the calibration's own shares count for in a bet on intervals."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a martingale has come to.

    Attributes:
        rows: Rows seen.
        level: Probability that capital ever reaches 1 / level while nothing changes.
        log_capital: log of the capital now, since the last restart.
        log_largest: log of the largest capital so far.
        alarms: Numbers of the rows, from 0, at which capital reached 1 / level and was set back to 1.
        direction: The bet that had earned most at the first alarm, or has so far; "" without rows.
        calibration_rows: Rows behind the p-values.
        path: Pairs of row number and log capital.
    """

    rows: int
    level: float
    log_capital: float
    log_largest: float
    alarms: tuple[int, ...]
    direction: str
    calibration_rows: int
    path: tuple[tuple[int, float], ...] = ()

    @property
    def alarm(self) -> bool:
        """Whether there was any."""
        return bool(self.alarms)

    @property
    def sentence(self) -> str:
        """The same in plain words."""
        largest = _times(self.log_largest)
        if self.alarms:
            return (
                f"The scores have left the distribution of the calibration rows: alarm at row {self.alarms[0] + 1:,} "
                f"of {self.rows:,} ({self.direction}; {_repeated(len(self.alarms))}). Of undisturbed streams at most a "
                f"share of {self.level:g} comes to any alarm."
            )
        return (
            f"The scores of {self.rows:,} rows agree with the {self.calibration_rows:,} calibration rows: betting "
            f"against that multiplied the stake by {largest} at most, an alarm needs {1 / self.level:,.0f}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        facts = dataclasses.asdict(self)
        return {**facts, "alarms": list(self.alarms), "path": [list(p) for p in self.path], "sentence": self.sentence}


def _times(log_value: float) -> str:
    return f"{math.exp(log_value):,.2g}" if log_value < 14 else f"e^{log_value:.0f}"


def _repeated(alarms: int) -> str:
    return "once" if alarms == 1 else f"{alarms:,} times, starting anew after each"


class Martingale:
    """A bet that a stream of rows goes on like the calibration rows, kept up row by row.

    Args:
        calibration_rows: Rows behind the p-values, c.
        level: Probability of any alarm while nothing changes.
        seed: Of the numbers that smooth ties.

    Raises:
        CalibrationError: There are no calibration rows.
        ConfigError: The level is not between 0 and 1.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> martingale = Martingale(999, level=0.01)
        >>> martingale.update(rng.integers(0, 1000, 300))
        >>> martingale.evidence().alarm
        False
        >>> martingale.update(rng.integers(0, 500, 300))
        >>> martingale.evidence().alarms[0] < 400
        True
    """

    def __init__(self, calibration_rows: int, *, level: float, seed: int = 0) -> None:
        if calibration_rows < 1:
            raise CalibrationError("p-values must come from calibration rows, got none. Calibrate the model first.")
        if not 0 < level < 1:
            raise ConfigError(f"level must be a number between 0 and 1, got {level!r}. Choose for example 0.01.")
        self.level, self.rows = level, 0
        self._rng = np.random.default_rng(seed)
        self._counts: Ranks = np.ones(calibration_rows + 1, dtype=np.int64)
        ends = np.unique(np.ceil(np.array([*SHARES, 1.0]) * (calibration_rows + 1)).astype(np.int64))
        self._interval = np.searchsorted(ends, np.arange(calibration_rows + 1), side="right")
        self._remembered = {name: np.zeros(len(ends)) for name in MEMORIES}
        self._path: list[tuple[int, float]] = []
        self._alarms: list[int] = []
        self._direction, self._log_largest = "", 0.0
        self._restart()

    def _restart(self) -> None:
        self._age, self._log_capital = 0, 0.0
        self._invested: Floats = np.full(len(BETS) + len(MEMORIES), -np.inf)

    def update(self, ranks: ArrayLike) -> None:
        """Take further rows.

        Args:
            ranks: How many calibration scores are at least as high as each row's, (n,), 0 to c; ties broken at random
                (see `Ranker`).

        Raises:
            ShapeError: They are not of one dimension.
            ConfigError: A rank is outside.
        """
        given = np.asarray(ranks)
        if given.ndim != 1:
            raise ShapeError(f"ranks must have shape (n,), got {given.shape}.")
        if len(given) and not (given.min() >= 0 and given.max() < len(self._counts)):
            raise ConfigError(f"ranks must be from 0 to {len(self._counts) - 1}, got others. Use this model's scores.")
        given = given.astype(np.int64)
        for start in range(0, len(given), 8 * BLOCK):
            part = given[start : start + 8 * BLOCK]
            learnt = self._learnt(self._interval[part])
            u = self._online(part)
            self._bet(np.stack([*(bet(u) for bet in BETS.values()), *learnt]))

    def evidence(self) -> Evidence:
        """Return what it has come to."""
        return Evidence(
            rows=self.rows, level=self.level, log_capital=self._log_capital, log_largest=self._log_largest,
            alarms=tuple(self._alarms), direction=self._direction, calibration_rows=len(self._counts) - 1,
            path=tuple(self._path),
        )  # fmt: skip

    def _online(self, ranks: Ranks) -> Floats:
        """Return independent uniform p-values of the next rows, if they are exchangeable with all before."""
        out = np.empty(len(ranks))
        for start in range(0, len(ranks), BLOCK):
            part = ranks[start : start + BLOCK]
            earlier = np.tri(len(part), k=-1, dtype=bool)
            same = self._counts[part] + ((part == part[:, None]) & earlier).sum(1)
            above = (np.cumsum(self._counts) - self._counts)[part] + ((part < part[:, None]) & earlier).sum(1)
            total = self._counts.sum() + np.arange(len(part))
            out[start : start + BLOCK] = (above + self._rng.random(len(part)) * same) / total
            self._counts += np.bincount(part, minlength=len(self._counts))
        return np.clip(out, LEAST, 1 - LEAST)

    def _learnt(self, intervals: Ranks) -> list[Floats]:
        """Return log of the shares bet on over those expected, for the interval of each of the next rows, (n,) each."""
        own = np.bincount(self._interval)
        seen = np.eye(len(own))[intervals]
        before = np.bincount(self._interval, weights=self._counts) + np.cumsum(seen, axis=0) - seen
        place = np.arange(len(intervals)), intervals
        expected = before[place] / before.sum(1)
        out = []
        for name, fade in MEMORIES.items():
            after = lfilter([1.0], [1.0, -fade], seen, axis=0, zi=fade * self._remembered[name][None])[0]
            past = np.vstack([self._remembered[name], after[:-1]]) + CAUTION * own / own.sum()
            out.append(np.log(past[place] / past.sum(1)) - np.log(expected))
            self._remembered[name] = after[-1]
        return out

    def _bet(self, gains: Floats) -> None:
        start = 0
        while start < gains.shape[1]:
            log_capital, invested = self._grown(gains[:, start:])
            reached = np.flatnonzero(log_capital >= -math.log(self.level))
            stop = int(reached[0]) + 1 if len(reached) else len(log_capital)
            self._remember(log_capital[:stop])
            self._invested, self._age = invested[:, stop - 1], self._age + stop
            self._log_capital = float(log_capital[stop - 1])
            if not self._alarms:
                self._direction = [*BETS, *MEMORIES][int(self._invested.argmax())]
            self.rows += stop
            if len(reached):
                self._alarms.append(self.rows - 1)
                self._restart()
            start += stop

    def _grown(self, gains: Floats) -> tuple[Floats, Floats]:
        """Return the log capital after each row, (n,), and that in each bet, (K, n)."""
        age = self._age + np.arange(gains.shape[1], dtype=np.float64)
        until = np.cumsum(gains, axis=1)
        released = -np.log((age + 1) * (age + 2) * len(gains)) - (until - gains)
        stakes = np.concatenate([self._invested[:, None], released], axis=1)
        invested = np.logaddexp.accumulate(stakes, axis=1)[:, 1:] + until
        return np.logaddexp(logsumexp(invested, axis=0), -np.log(age + 2)), invested

    def _remember(self, log_capital: Floats) -> None:
        self._log_largest = max(self._log_largest, float(log_capital.max()))
        last = self._path[-1][0] if self._path else -1
        step = max(1, (self.rows + len(log_capital)) // POINTS)
        rows = np.arange(self.rows, self.rows + len(log_capital))
        kept = np.flatnonzero((rows % step == 0) & (rows > last))
        self._path += [(int(rows[i]), float(log_capital[i])) for i in kept]
        if len(self._path) > 2 * POINTS:
            self._path = self._path[::2]


def ranks_of_p_values(p_values: ArrayLike, calibration_rows: int) -> Ranks:
    """Return the ranks behind conformal p-values (1 + rank) / (c + 1), (n,).

    They are exact for scores without ties. With ties among calibration scores, p-values are larger than they need be,
    and so are these ranks: use `Ranker`.

    Raises:
        ConfigError: They are not p-values against that many rows.
    """
    p = np.asarray(p_values, dtype=np.float64) * (calibration_rows + 1)
    if not np.isfinite(p).all() or (np.abs(p - np.round(p)) > 1e-6 * (calibration_rows + 1)).any():
        raise ConfigError(
            f"p-values must be multiples of 1 / {calibration_rows + 1}, got others. Score the rows with this model."
        )
    return np.round(p).astype(np.int64) - 1


class Ranker:
    """Ranks scores among calibration scores, ties broken at random, those among calibration scores once and for all.

    Args:
        calibration: Scores of the calibration rows, (c,).
        seed: Of the draws.

    Example:
        >>> Ranker([1.0, 2.0, 3.0])([0.5, 2.5, 9.0]).tolist()
        [3, 1, 0]
    """

    def __init__(self, calibration: ArrayLike, *, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._values, place = np.unique(np.asarray(calibration, dtype=np.float64), return_inverse=True)
        self._keys = np.sort(place + self._rng.random(len(place)))

    def __call__(self, scores: ArrayLike) -> Ranks:
        """Return how many calibration scores are higher than each, (n,), those it is tied with as the draws say."""
        given = np.asarray(scores, dtype=np.float64)
        place = np.searchsorted(self._values, given, side="left")
        tied = self._values[np.minimum(place, len(self._values) - 1)] == given
        keys = place + np.where(tied, self._rng.random(len(given)), 0.0)
        return (len(self._keys) - np.searchsorted(self._keys, keys, side="left")).astype(np.int64)
