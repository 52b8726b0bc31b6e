"""Results as figures: training curves, score histogram, calibration of p-values, mean ranks.

Every function returns a `matplotlib.figure.Figure` made with the object interface: no pyplot, no global
state, so a figure can be made in any thread of any program. `figure.savefig(path)` writes it. The colours are
Okabe and Ito's, which stay apart for colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, betabinom, binom

from ..errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from ..evaluation.comparison import Comparison
    from ..evaluation.martingale import Evidence
    from ..training import Epoch

BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, GREY, PALE = "#222222", "#6E6E6E", "#E3E3E3"
_BINS = 48
EXACT_ROWS = 2000
"""Rows up to which the band of a calibration is exact."""


def training_curves(history: Sequence[Epoch]) -> Figure:
    """How training went: the bound, its two parts, and the latent units in use.

    Args:
        history: One `Epoch` after another, as `fit_detector` returns them.

    Returns:
        Three panels over optimiser steps. The best validation epoch, whose weights are kept, is marked.

    Raises:
        ShapeError: The history is empty.
    """
    if not history:
        raise ShapeError("history must hold at least one epoch, got 0. Pass the history of a finished training.")
    steps = [e.step for e in history]
    figure = Figure(figsize=(13, 4), layout="constrained", facecolor="white")
    bound, parts, units = figure.subplots(1, 3)

    validation = np.array([e.validation_elbo for e in history], dtype=np.float64)
    _style(bound, "Evidence lower bound", "optimiser step", "ELBO, nats per row")
    bound.plot(steps, [e.elbo for e in history], color=BLUE, label="training batches")
    if np.isfinite(validation).any():
        best = int(np.nanargmax(validation))
        bound.plot(steps, validation, color=VERMILLION, label="validation rows")
        label = f"best: {validation[best]:.4g} at step {steps[best]:,}"
        bound.plot(steps[best], validation[best], "o", color=VERMILLION, markersize=8, label=label)
    _focus(bound, np.concatenate([[e.elbo for e in history], validation]))
    _legend(bound, "lower right")

    _style(parts, "Its two parts", "optimiser step", "nats per row")
    parts.plot(steps, [-e.reconstruction for e in history], color=BLUE, label="misfit, −log p(x|z)")
    parts.plot(steps, [e.kl for e in history], color=VERMILLION, label="KL(q(z|x) ‖ p(z))")
    _legend(parts, "upper right")

    _style(units, "Latent units in use", "optimiser step", "active units")
    units.step(steps, [e.active_units for e in history], where="mid", color=GREEN, label="active units (left)")
    units.set_ylim(0, max(e.active_units for e in history) * 1.25 + 1)
    units.yaxis.set_major_locator(MaxNLocator(integer=True))
    weight = units.twinx()
    weight.plot(steps, [e.beta for e in history], color=GREY, linestyle="--", label="KL weight β (right)")
    weight.set_ylim(0, max(e.beta for e in history) * 1.25 + 0.05)
    weight.set_ylabel("β", color=GREY)
    weight.tick_params(colors=GREY, length=0)
    weight.spines[:].set_visible(False)
    handles = [*units.get_lines(), *weight.get_lines()]
    units.legend(handles=handles, loc="lower right", frameon=False, labelcolor=INK)
    return figure


def score_histogram(scores: ArrayLike, threshold: float, labels: ArrayLike | None = None) -> Figure:
    """Where the anomaly scores lie, and what the threshold cuts off.

    With labels both kinds of row are drawn as shares of their own kind, so that few anomalies stay visible.
    Scores far beyond the bulk are gathered in the outermost bars, which then say so.

    Args:
        scores: Anomaly scores, nats, high = anomalous, shape (n,).
        threshold: The score above which a row is flagged.
        labels: True (or 1) for rows known to be anomalous, shape (n,).

    Raises:
        ShapeError: There is no row, or labels and scores differ in length.
        ConfigError: A score is not finite.
    """
    values = _finite(scores, "scores")
    anomalous = None if labels is None else np.asarray(labels).astype(bool)
    if anomalous is not None and anomalous.shape != values.shape:
        raise ShapeError(f"labels must have the scores' shape {values.shape}, got {anomalous.shape}. Pass one per row.")
    low, high = _bulk(values, threshold)
    edges = np.linspace(low, high, _BINS + 1).tolist()
    figure = Figure(figsize=(9, 4.5), layout="constrained", facecolor="white")
    axes = figure.subplots()
    if anomalous is None:
        _style(axes, f"Anomaly scores of {len(values):,} rows", "anomaly score, nats", "rows")
        axes.hist(np.clip(values, low, high), edges, color=BLUE, alpha=0.85, label="all rows")
        flagged = f"{(values > threshold).mean():.1%} of the rows are above"
    else:
        ylabel = "share of the rows of its kind"
        _style(axes, f"Anomaly scores of {len(values):,} labelled rows", "anomaly score, nats", ylabel)
        shares = []
        for name, rows, color in (("normal", ~anomalous, BLUE), ("anomalous", anomalous, VERMILLION)):
            n = int(rows.sum())
            weights = np.full(n, 1 / max(n, 1))
            label = f"{name}, {n:,} rows"
            axes.hist(np.clip(values[rows], low, high), edges, weights=weights, color=color, alpha=0.6, label=label)
            above = (values[rows] > threshold).mean() if n else 0.0
            shares.append(f"{above:.1%} of the {name}" if n else f"no {name} rows")
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        flagged = f"above: {', '.join(shares)}"
    axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.5, label=f"threshold {threshold:.4g}; {flagged}")
    axes.set_xlim(low - (high - low) * 0.02, high + (high - low) * 0.02)
    _mark_overflow(axes, int((values < low).sum()), int((values > high).sum()))
    axes.set_ylim(top=axes.get_ylim()[1] * 1.35)  # room for the legend
    _legend(axes, "upper right")
    return figure


def calibration_curve(p_values: ArrayLike, *, n_calibration: int | None = None) -> Figure:
    """Whether p-values of rows known to be normal keep their promise.

    The share of rows with p ≤ α should be at most α. The band holds 95 % of the curves that an exact
    calibration gives, point by point; below it the promise is kept with room to spare, above it is broken.

    Args:
        p_values: p-values of normal rows used neither in training nor in calibration, shape (n,).
        n_calibration: Calibration rows behind the p-values, whose chance the band then includes; None: the
            chance of the n rows alone.

    Raises:
        ShapeError: There is no row.
        ConfigError: A p-value is not between 0 and 1, or n_calibration is below 1.
    """
    values = np.sort(_finite(p_values, "p-values"))
    if values[0] < 0 or values[-1] > 1:
        worst = values[0] if values[0] < 0 else values[-1]
        raise ConfigError(f"p-values must be between 0 and 1, got {worst:.6g}. Pass the p_value column.")
    if n_calibration is not None and n_calibration < 1:
        raise ConfigError(f"n_calibration must be at least 1, got {n_calibration}. Leave it out if unknown.")
    figure = Figure(figsize=(10, 5), layout="constrained", facecolor="white")
    panels = ((1.0, f"False alarms of {len(values):,} normal rows"), (0.1, "The same, up to α = 10 %"))
    for axes, (end, title) in zip(figure.subplots(1, 2), panels, strict=True):
        alpha = np.linspace(0, end, 201)
        low, high = calibration_band(alpha, len(values), n_calibration)
        observed = np.searchsorted(values, alpha + 1e-12, side="right") / len(values)
        _style(axes, title, "promised rate α", "observed share with p ≤ α")
        axes.fill_between(alpha, low, high, color=PALE, label="95 % band of an exact calibration", linewidth=0)
        axes.plot([0, end], [0, end], color=GREY, linestyle="--", linewidth=1, label="promised")
        axes.plot(alpha, observed, color=BLUE, drawstyle="steps-post", label="observed")
        axes.set_xlim(0, end)
        axes.set_ylim(0, max(end, float(observed[-1]), float(high[-1])) * 1.02)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        _legend(axes, "upper left")
    return figure


def mean_ranks(names: Sequence[str], comparison: Comparison, *, metric: str) -> Figure:
    """Mean ranks of detectors over tables with their intervals, the best on top.

    Args:
        names: One for each detector of the comparison.
        comparison: As `evaluation.comparison.compare` returns it; detectors without a rank are left out.
        metric: What they were ranked by.

    Raises:
        ShapeError: There are not as many names as detectors, or none has a rank.
    """
    ranked = np.flatnonzero(np.isfinite(comparison.rank))
    if len(names) != len(comparison.rank) or not len(ranked):
        raise ShapeError(
            f"names must be one for each of {len(comparison.rank)} detectors, of which {len(ranked)} have a rank, got "
            f"{len(names)}. Compare detectors that have all runs."
        )
    order = ranked[np.argsort(-comparison.rank[ranked], kind="stable")]  # the worst first, at the bottom
    figure = Figure(figsize=(9, 1.6 + 0.4 * len(order)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    title = f"Mean rank by {metric}; {comparison.level:.0%} intervals over the choice of tables ({comparison.tables})"
    _style(axes, title, "mean rank, 1 = best", "")
    heights = np.arange(len(order))
    axes.hlines(heights, comparison.rank_low[order], comparison.rank_high[order], color=BLUE, linewidth=2)
    axes.plot(comparison.rank[order], heights, "o", color=BLUE, label="mean rank")
    for height, rank in zip(heights, comparison.rank[order], strict=True):
        axes.annotate(
            f"{rank:.2f}", (rank, height), (0, 6), textcoords="offset points", ha="center", color=INK, fontsize=9
        )
    axes.set_yticks(heights, [names[i] for i in order])
    axes.set_ylim(-0.6, len(order) - 0.3)
    axes.set_xlim(0.9, len(order) + 0.1)
    return figure


def calibration_band(
    alpha: NDArray[np.float64], n: int, n_calibration: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the central 95 % of the share of normal rows with p <= alpha under split-conformal calibration.

    Args:
        alpha: Rates, (a,).
        n: Normal rows.
        n_calibration: Calibration rows behind the p-values; None: the chance of the n rows alone.
    """
    if n_calibration is None:
        law = binom(n, alpha)
        return law.ppf(0.025) / n, law.ppf(0.975) / n
    # The chance of p <= alpha, given the calibration rows, is Beta(r, n_calibration + 1 - r).
    rank = np.floor(alpha * (n_calibration + 1) + 1e-9)
    inner = np.clip(rank, 1, n_calibration)
    if n <= EXACT_ROWS:
        # All quantiles from one sum of the probabilities: scipy's ppf sums them anew for each step of its search.
        chances = betabinom.pmf(np.arange(n + 1)[:, None], n, inner, n_calibration + 1 - inner).cumsum(0)
        low, high = ((chances < q).sum(0) / n for q in (0.025, 0.975))
    else:
        low, high = _beta_band(inner, n, n_calibration)
    certain, impossible = rank > n_calibration, rank < 1
    low[certain] = high[certain] = 1.0
    low[impossible] = high[impossible] = 0.0
    return low, high


def _beta_band(
    rank: NDArray[np.float64], n: int, n_calibration: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the band by the Beta law of the same mean and variance: exact quantiles add up n probabilities each."""
    size = n_calibration + 1
    matched = n * (size + 1) / (size + n) - 1
    law = beta(rank / size * matched, (1 - rank / size) * matched)
    return law.ppf(0.025), law.ppf(0.975)


def _bulk(values: NDArray[np.float64], threshold: float) -> tuple[float, float]:
    """Ends of an axis that shows the bulk of the scores and the threshold."""
    smallest, lower, median, upper, largest = np.quantile(values, [0, 0.01, 0.5, 0.9, 1])
    reach = max(upper, threshold) - median
    low = max(smallest, min(lower, threshold) - reach)
    high = min(largest, median + 5 * reach)
    low, high = min(low, threshold), max(high, threshold)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        return low - 0.5, high + 0.5
    return float(low), float(high)


def _mark_overflow(axes: Axes, n_below: int, n_above: int) -> None:
    low, high = axes.get_xlim()
    for count, x, align, words in ((n_below, low, "left", "lower"), (n_above, high, "right", "higher")):
        if count:
            text = f"the last bar holds {count:,} {'row' if count == 1 else 'rows'} with {words} scores"
            below_axis = axes.get_xaxis_transform()
            axes.text(x, -0.16, text, transform=below_axis, ha=align, color=GREY, fontsize=9)


def _focus(axes: Axes, values: NDArray[np.float64]) -> None:
    """Keep the first, very low epochs from flattening the rest of the curve."""
    finite = values[np.isfinite(values)]
    low, middle, high = np.quantile(finite, [0, 0.25, 1])
    span = high - middle
    if span > 0 and middle - low > 3 * span:
        axes.set_ylim(middle - 3 * span, high + 0.3 * span)


def drift_curve(evidence: Evidence) -> Figure:
    """What betting against the calibration rows has earned, row by row, and where that is an alarm.

    Args:
        evidence: The outcome of a martingale.

    Raises:
        ShapeError: It has seen no rows.
    """
    if not evidence.path:
        raise ShapeError("a martingale must have seen rows to be drawn, got none. Update it first.")
    rows, log_capital = np.array(evidence.path).T
    figure = Figure(figsize=(9, 4.5), layout="constrained", facecolor="white")
    axes = figure.subplots()
    title = f"Evidence that {evidence.rows:,} rows differ from {evidence.calibration_rows:,} calibration rows"
    _style(axes, title, "row", "log of the capital, from 0")
    axes.plot(rows + 1, log_capital, color=BLUE, label="log capital")
    bound = f"alarm: {1 / evidence.level:,.0f}-fold, level {evidence.level:g}"
    axes.axhline(-np.log(evidence.level), color=VERMILLION, linestyle="--", label=bound)
    for row in evidence.alarms[:50]:
        axes.axvline(row + 1, color=VERMILLION, alpha=0.5, linewidth=1)
    _legend(axes, "upper left")
    return figure


def _style(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor=INK)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(axes: Axes, place: Literal["upper left", "upper right", "lower right"]) -> None:
    axes.legend(loc=place, frameon=False, labelcolor=INK, fontsize=9)


def _finite(numbers: ArrayLike, name: str) -> NDArray[np.float64]:
    values = np.asarray(numbers, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ShapeError(f"{name} must have shape (n,) with n >= 1, got {values.shape}. Pass one number per row.")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ConfigError(f"{name} must be finite, got {values[row]} in row {row}. Leave out rows without one.")
    return values
