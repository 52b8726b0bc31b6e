"""How rows are weighed and resampled, and groups audited."""

from __future__ import annotations

from dataclasses import dataclass

from ..fields import NOT_NEGATIVE, SHARE, Options, Rule, check, is_integer, is_number, option

DENSITIES = ("knn", "aggregated_posterior", "kde", "gmm", "clusters", "dbvae")
SPACES = ("latent", "raw", "pca", "joint")
MODES = ("weights", "oversample", "subsample", "thin")
CLASS_MASS = ("tempered", "equal", "kept")
COMBINATIONS = ("product", "max")
IMPROBABLE = 0.01
"""The p-value up to which rows are guarded by default."""


@dataclass(frozen=True, kw_only=True)
class ResampleConfig(Options):
    """How rows are weighed by the density of their codes. The defaults are those that held up in measurement.

    The published recipe of Amini et al. (2019) is `density="dbvae", within_class=False, class_mass="kept",
    ess=None, cap=None, floor=None, guard=0, fence=None, isolation_guard=None, label_guard=None`.

    Example:
        >>> ResampleConfig(mode="oversample").ess
        0.2
    """

    mode: str = option("weights", f"what to make: {', '.join(MODES)}")
    size: int | None = option(None, "rows of an oversample or a subsample; by default twice, or ess times, the rows")
    density: str = option("knn", f"how density is estimated: {', '.join(DENSITIES)}")
    space: str | None = option(None, f"where: {', '.join(SPACES)}; by default joint for knn of images, else latent")
    within_class: bool = option(True, "measure density within each class, where there are labels")
    label_kind: str | None = option(None, "of the labels: classes or continuous; by default read off them")
    label_bins: int = option(10, "intervals between quantiles into which a continuous target is cut")
    ess: float | None = option(0.2, "floor of the effective sample size, as a share of the rows; none: gamma = 1")
    cap: float | None = option(10.0, "largest weight that density gives, in units of its class's mean")
    floor: float | None = option(0.5, "least weight that density gives, in units of its class's mean")
    class_mass: str = option(
        "tempered", f"mass of the classes: {', '.join(CLASS_MASS)}; tempered = as equal as ess allows"
    )
    guard: float | None = option(
        None, "rows whose anomaly p-value is at most this are never weighted up; by default 0.01, or 0 behind a fence"
    )
    fence: float | None = option(
        3.0, "nor images whose ELBO is this many interquartile ranges under the lower quartile; none = no fence"
    )
    isolation_guard: float | None = option(
        2.0, "nor rows whose nearest neighbour is this many times farther than is usual around it; none = no guard"
    )
    label_guard: float | None = option(
        1.25, "nor rows that lie this many times nearer to another class than to their own; none = no guard"
    )
    neighbours: int = option(20, "knn: the neighbour whose distance measures density")
    smoothing: int = option(10, "knn: neighbours over whose densities a row's own is averaged; 0 = none")
    clusters: int = option(10, "clusters: how many, in each class; gmm: components at most")
    bins: int = option(10, "dbvae: bins of each latent dimension")
    smoothing_alpha: float = option(0.01, "dbvae: added to each bin's density, the paper's alpha")
    combine: str = option("product", f"dbvae: of the dimensions' densities: {', '.join(COMBINATIONS)}")
    seed: int = option(0, "seed of all draws")

    def measured_in(self, *, images: bool) -> str:
        """Return the space in which density is measured of images, or of rows of a table."""
        return self.space or ("joint" if images and self.density == "knn" else "latent")

    def guard_of(self, *, images: bool) -> float:
        """Return the p-value up to which images, or rows of a table, are guarded; 0 = they are not.

        By default no image behind a fence is: of garbage the p-value finds no more than the fence, but 1 % of any rows
        are at most .01, more of rare ones, and none of these would be weighted up.
        """
        if self.guard is not None:
            return self.guard
        return 0.0 if images and self.fence is not None else IMPROBABLE

    def __post_init__(self) -> None:
        choices = {
            "mode": MODES, "density": DENSITIES, "space": (None, *SPACES), "class_mass": CLASS_MASS,
            "combine": COMBINATIONS, "label_kind": (None, "classes", "continuous"),
        }  # fmt: skip
        for name, allowed in choices.items():
            value = getattr(self, name)
            check(value in allowed, name, f"be one of {', '.join(filter(None, allowed))}", value)
        for name in ("neighbours", "clusters", "bins", "label_bins"):
            check(is_integer(getattr(self, name)), name, "be an integer of at least 1", getattr(self, name))
        check(is_integer(self.smoothing, 0), "smoothing", "be an integer of at least 0", self.smoothing)
        check(self.size is None or is_integer(self.size), "size", "be an integer of at least 1", self.size)
        check(isinstance(self.within_class, bool), "within_class", "be true or false", self.within_class)
        check(is_integer(self.seed, 0) and self.seed < 2**63, "seed", "be an integer from 0 to 2^63 - 1", self.seed)
        rules: dict[str, Rule] = {
            "ess": (lambda v: 0 < v <= 1, "be a share of the rows above 0 and at most 1"),
            "cap": (lambda v: v >= 1, "be a number of at least 1, the mean"),
            "floor": (lambda v: 0 <= v <= 1, "be a number from 0 to 1, the mean"),
            "fence": (lambda v: v > 0, "be a number above 0 of interquartile ranges"),
            "isolation_guard": (lambda v: v >= 1, "be a ratio of at least 1"),
            "label_guard": (lambda v: v >= 1, "be a ratio of at least 1"),
            "guard": SHARE,
            "smoothing_alpha": NOT_NEGATIVE,
        }
        for name, (accept, rule) in rules.items():
            value = getattr(self, name)
            optional = name != "smoothing_alpha"
            check((value is None and optional) or (is_number(value) and accept(value)), name, rule, value)


@dataclass(frozen=True, kw_only=True)
class AuditConfig(Options):
    """How an audit is made.

    Example:
        >>> AuditConfig(level=0.01).level
        0.01
    """

    level: float = option(0.05, "share of audits of fair data in which anything may be found")
    alpha: float = option(0.05, "p-values up to this count as flagged")
    bootstrap: int = option(1000, "repetitions behind each interval")
    fewest_rows: int = option(50, "groups of fewer rows are not judged")
    largest_ratio: float = option(1.25, "ratios of rates up to this are not worth a finding, however certain")
    cells: int = option(20, "latent clusters whose masses are compared")
    rarest: int = option(3, "rarest regions described")
    seed: int = option(0, "seed of clusters and bootstrap")

    def __post_init__(self) -> None:
        for name in ("level", "alpha"):
            value = getattr(self, name)
            check(is_number(value) and 0 < value < 1, name, "be a number between 0 and 1", value)
        for name in ("bootstrap", "fewest_rows", "cells", "rarest"):
            check(is_integer(getattr(self, name)), name, "be an integer of at least 1", getattr(self, name))
        ok = is_number(self.largest_ratio) and self.largest_ratio >= 1
        check(ok, "largest_ratio", "be a number of at least 1", self.largest_ratio)
        check(is_integer(self.seed, 0), "seed", "be an integer of at least 0", self.seed)
