"""Whether a new model may take an old one's place: both judged on the same held-out rows, pair by pair.

Three questions, each of which the challenger must not lose:

- false alarms: among the normal rows, are there no more than calibration explains, or no more than the champion has?
- ranking, where labels know anomalous rows: is its AUROC at most `MARGIN` lower, at 97.5 % confidence (DeLong)?
- density, where they do not: does it not find the rows less probable, by Wilcoxon's signed-rank test at `DOUBT`?

References:
    DeLong, DeLong & Clarke-Pearson (1988), Comparing the areas under two or more correlated ROC curves, Biometrics 44.
    Sun & Xu (2014), Fast implementation of DeLong's algorithm, IEEE Signal Processing Letters 21(11).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import betabinom, norm, rankdata, wilcoxon

from ..errors import ConfigError, ShapeError

MARGIN = 0.02
DOUBT = 0.01
FEWEST_LABELLED = 10
"""Anomalous and normal rows that a comparison of rankings needs: with fewer its interval is not to be trusted."""
BAND = 0.99


@dataclass(frozen=True, kw_only=True)
class PairedRanking:
    """Two AUROCs on the same rows.

    Attributes:
        champion: The one's.
        challenger: The other's.
        difference: challenger - champion.
        low: Lower end of the difference's confidence interval.
        high: Upper end.
        p_value: Of the hypothesis that they do not differ.
        n_normal: Normal rows.
        n_anomalous: Anomalous rows.
        level: Confidence level of the interval.
    """

    champion: float
    challenger: float
    difference: float
    low: float
    high: float
    p_value: float
    n_normal: int
    n_anomalous: int
    level: float


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """False alarms of one model among held-out normal rows, and the law they follow if its calibration still holds.

    Attributes:
        flagged: Rows with p-values up to alpha.
        rows: Rows.
        calibration_rows: Rows behind the p-values, c.
        alpha: Promised rate.
        high: Upper end of the central 99 % of BetaBinomial(rows, a, c + 1 - a), a = floor(alpha (c + 1)).
    """

    flagged: int
    rows: int
    calibration_rows: int
    alpha: float
    high: int

    @property
    def kept(self) -> bool:
        """Whether there are no more than calibration explains."""
        return self.flagged <= self.high


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Champion and challenger side by side.

    Attributes:
        champion: Its false alarms.
        challenger: Its false alarms.
        ranking: Their AUROCs, where labels know enough anomalous rows.
        closer: Share of the normal rows that the challenger finds more probable; None where their scores cannot be
            compared.
        density_p: Wilcoxon's p-value for the challenger finding the rows less probable; None likewise.
        reasons: Why it may not take the champion's place; empty if it may.
    """

    champion: Alarms
    challenger: Alarms
    ranking: PairedRanking | None
    closer: float | None
    density_p: float | None
    reasons: tuple[str, ...]

    @property
    def promote(self) -> bool:
        """Whether the challenger is not worse."""
        return not self.reasons

    @property
    def sentences(self) -> tuple[str, ...]:
        """The comparison in plain words."""
        out = [
            f"{who}: {a.flagged:,} of {a.rows:,} normal rows flagged at {a.alpha:g}; calibration explains {a.high:,}."
            for who, a in (("Champion", self.champion), ("Challenger", self.challenger))
        ]
        if self.ranking is not None:
            r = self.ranking
            out.append(
                f"AUROC {r.champion:.3f} against {r.challenger:.3f}, difference {r.difference:+.3f} "
                f"({r.level:.0%}: {r.low:+.3f} to {r.high:+.3f})."
            )
        elif self.closer is not None:
            out.append(f"The challenger finds {self.closer:.0%} of the rows more probable (p = {self.density_p:.2g}).")
        verdict = "is not worse" if self.promote else f"may not take its place: {'; '.join(self.reasons)}"
        return (*out, f"The challenger {verdict}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values, with the verdict."""
        facts = dataclasses.asdict(self)
        return {"promote": self.promote, "sentences": list(self.sentences), **facts, "reasons": list(self.reasons)}


def alarms(p_values: ArrayLike, *, calibration_rows: int, alpha: float) -> Alarms:
    """Count false alarms among normal rows.

    Args:
        p_values: Of the rows, (n,).
        calibration_rows: Rows behind them.
        alpha: Promised rate.

    Example:
        >>> found = alarms(np.linspace(0.01, 1, 100), calibration_rows=99, alpha=0.05)
        >>> found.flagged, found.kept
        (5, True)
    """
    p = np.asarray(p_values, dtype=np.float64)
    low = math.floor(alpha * (calibration_rows + 1) * (1 + 1e-12))
    law = betabinom(len(p), max(low, 1), calibration_rows + 1 - max(low, 1))
    high = int(law.ppf((1 + BAND) / 2)) if len(p) else 0
    flagged = int((p <= alpha * (1 + 1e-12)).sum())
    return Alarms(flagged=flagged, rows=len(p), calibration_rows=calibration_rows, alpha=alpha, high=high)


def delong(labels: ArrayLike, champion: ArrayLike, challenger: ArrayLike, *, level: float = 0.95) -> PairedRanking:
    """Compare the AUROCs of two scores on the same rows.

    Args:
        labels: True for anomalous rows, (n,).
        champion: Scores, high = anomalous, (n,).
        challenger: Scores of the same rows, (n,).
        level: Confidence level of the interval.

    Raises:
        ShapeError: The arrays differ in length, or hold fewer than two rows of either kind.
        ConfigError: The level is out of range.

    References:
        DeLong et al. (1988), eqs. 3 to 5; midranks after Sun & Xu (2014).
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, got {level!r}. Use 0.95 for a 95 % interval.", level=level)
    truth = np.asarray(labels, dtype=bool)
    scores = np.stack([np.asarray(s, dtype=np.float64) for s in (champion, challenger)])
    m, n = int(truth.sum()), int((~truth).sum())
    if scores.shape != (2, len(truth)) or min(m, n) < 2:
        raise ShapeError(f"rankings must be of the same rows, two of each kind at least, got {m} and {n}. Give more.")
    whole = rankdata(scores, axis=1)
    of_anomalous = (whole[:, truth] - rankdata(scores[:, truth], axis=1)) / n  # share of normal rows below each
    of_normal = 1 - (whole[:, ~truth] - rankdata(scores[:, ~truth], axis=1)) / m
    first, second = of_anomalous.mean(1).tolist()
    spread = np.cov(of_anomalous) / m + np.cov(of_normal) / n
    difference = second - first
    error = math.sqrt(max(0.0, spread[0, 0] + spread[1, 1] - 2 * spread[0, 1]))
    reach = float(norm.ppf((1 + level) / 2)) * error
    p_value = float(2 * norm.sf(abs(difference) / error)) if error else float(difference == 0)
    return PairedRanking(
        champion=first, challenger=second, difference=difference, low=difference - reach, high=difference + reach,
        p_value=p_value, n_normal=n, n_anomalous=m, level=level,
    )  # fmt: skip


def contest(
    champion: tuple[ArrayLike, Alarms],
    challenger: tuple[ArrayLike, Alarms],
    *,
    labels: ArrayLike | None = None,
    comparable: bool = True,
) -> Contest:
    """Decide whether a challenger is not worse than the champion.

    Args:
        champion: Scores of the held rows, (n,), high = anomalous, and false alarms among the normal ones.
        challenger: The same of the challenger.
        labels: True for rows known to be anomalous, (n,).
        comparable: Whether both scores are the same density of the same columns.
    """
    one, other = (np.asarray(s, dtype=np.float64) for s in (champion[0], challenger[0]))
    truth = np.zeros(len(one), dtype=bool) if labels is None else np.asarray(labels, dtype=bool)
    reasons, ranking, closer, density_p = [], None, None, None
    if not challenger[1].kept and challenger[1].flagged > champion[1].flagged:
        reasons.append(f"it flags {challenger[1].flagged:,} normal rows, which calibration does not explain")
    if min(truth.sum(), (~truth).sum()) >= FEWEST_LABELLED:
        ranking = delong(truth, one, other)
        if ranking.low < -MARGIN:
            reasons.append(f"its AUROC may be lower by {-ranking.low:.3f}, more than {MARGIN:g}")
    elif comparable and (~truth).any():
        closer, density_p = _density(one[~truth], other[~truth])
        if density_p < DOUBT:
            reasons.append(f"it finds {1 - closer:.0%} of the normal rows less probable")
    return Contest(
        champion=champion[1], challenger=challenger[1], ranking=ranking, closer=closer, density_p=density_p,
        reasons=tuple(reasons),
    )  # fmt: skip


def _density(champion: NDArray[np.float64], challenger: NDArray[np.float64]) -> tuple[float, float]:
    """Return the share of rows that the challenger finds more probable, and the p-value of the contrary."""
    more = challenger - champion
    if not more.any():
        return 0.5, 1.0
    closer = float((more < 0).mean() + 0.5 * (more == 0).mean())
    return closer, float(wilcoxon(more, alternative="greater").pvalue)
