"""Settings of each verb: frozen, keyword-only, checked when made.

Command-line options, TOML keys, MLflow parameters and the saved `config.json` are all read off the fields of
these classes. Nothing here imports more than the standard library, so that `--help` stays instant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .fields import NOT_NEGATIVE, POSITIVE, SHARE, Options, Rule, check, is_integer, is_number, option

KINDS = ("continuous", "binary", "categorical", "count", "ignored")
SCORE_KINDS = ("ensemble", "elbo", "likelihood", "reconstruction")
IMAGE_SCORE_KINDS = ("statistics", "corrected", "elbo", "likelihood", "reconstruction")
IMAGE_MODELS = ("vae", "ladder")
PIXELS = ("continuous_bernoulli", "bernoulli", "discretized_logistic", "gaussian")
OBJECTIVES = ("elbo", "iwae")
PRIORS = ("standard_normal", "aggregated_posterior")
CONTINUOUS = ("student_t", "gaussian", "fixed_gaussian")
PRECISIONS = ("float32", "bf16")
COUNTS = ("zero_inflated", "rounded_log_normal")
DEVICES = ("auto", "cpu", "cuda", "mps")
DENSITIES = ("knn", "aggregated_posterior", "kde", "gmm", "clusters", "dbvae")
SPACES = ("latent", "raw", "pca")
MODES = ("weights", "oversample", "subsample", "thin")
CLASS_MASS = ("tempered", "equal", "kept")
COMBINATIONS = ("product", "max")
ON_ERROR = ("fail", "quarantine")
FORMATS = ("parquet", "csv")
ENGINES = ("local", "spark")


@dataclass(frozen=True, kw_only=True)
class FitConfig(Options):
    """What the training of every kind of data has in common: objective, optimiser, splits, the score's samples."""

    k: int = option(16, "posterior samples per row when scoring, one of calibration_k")
    calibration_k: tuple[int, ...] = option((1, 16, 64), "numbers of samples to calibrate for")
    prior: str = option("standard_normal", f"prior over the latent: {', '.join(PRIORS)}")
    objective: str = option("elbo", f"training bound: {', '.join(OBJECTIVES)}")
    train_k: int = option(1, "posterior samples per row in training")
    beta: float = option(1.0, "weight of the KL term after warm-up (elbo objective only)")
    input_noise: float = option(0.0, "standard deviation of the noise added to the encoder's input in training")
    steps: int | None = option(None, "optimiser steps; by default 2000, or three passes over the rows, at most 20000")
    batch_size: int = option(256, "rows per optimiser step")
    learning_rate: float = option(3e-3, "AdamW's step size, cosine-annealed to a twentieth")
    weight_decay: float = option(1e-4, "AdamW's weight decay")
    warmup: float = option(0.1, "share of the steps over which beta rises from 0")
    patience: int = option(10, "epochs without a better validation ELBO before stopping")
    clip_norm: float = option(10.0, "bound on the gradient's norm")
    validation: float = option(0.1, "share of rows held out to decide when to stop")
    calibration: float | None = option(
        None,
        "share of rows held out for p-values; by default about a tenth, at least 19 if that is at most a fifth",
    )
    max_calibration_rows: int = option(10_000, "held-out calibration rows kept at most")
    seed: int = option(0, "seed of the split, the weights, the batches and the score's noise")
    device: str = option("auto", f"where to compute: {', '.join(DEVICES)}")

    def steps_for(self, rows: int) -> int:
        """Return the optimiser steps of a training on so many rows."""
        return self.steps or min(max(2000, 3 * math.ceil(rows / self.batch_size)), 20_000)

    def calibration_share(self, rows: int) -> float:
        """Return the share of the rows to hold out for calibration.

        By default a tenth, rounded up to 19, 39, 59, ... rows, with which p-values of exactly .05 exist, where these
        are at most a fifth; never more than `max_calibration_rows`.
        """
        if self.calibration is not None:
            return self.calibration
        held = 0.1 * rows
        exact = 20 * math.ceil((held + 1) / 20) - 1
        if exact <= 0.2 * rows:
            held = exact
        return min(held, self.max_calibration_rows) / max(rows, 1)

    def __post_init__(self) -> None:
        choices = {"objective": OBJECTIVES, "device": DEVICES, "prior": PRIORS}
        self._check_choices(choices)
        self._check_integers("k", "train_k", "batch_size", "patience", "max_calibration_rows")
        self._check_integer_lists("calibration_k")
        check(
            len(self.calibration_k) > 0,
            "calibration_k",
            "name at least one number of samples",
            self.calibration_k,
        )
        check(self.k in self.calibration_k, "k", f"be one of calibration_k {list(self.calibration_k)}", self.k)
        self._check_optional_integers("steps")
        check(
            is_integer(self.seed, 0) and self.seed < 2**63,
            "seed",
            "be an integer from 0 to 2^63 - 1",
            self.seed,
        )
        self._check_numbers(
            {
                "beta": NOT_NEGATIVE,
                "input_noise": NOT_NEGATIVE,
                "weight_decay": NOT_NEGATIVE,
                "learning_rate": POSITIVE,
                "clip_norm": POSITIVE,
                "warmup": SHARE,
                "validation": SHARE,
                "calibration": SHARE,
            }
        )
        held = self.validation + (self.calibration or 0.0)
        check(held < 0.95, "validation + calibration", "leave at least 5 % of the rows for training", held)

    def _check_choices(self, choices: Mapping[str, tuple[str, ...]]) -> None:
        for name, allowed in choices.items():
            check(getattr(self, name) in allowed, name, f"be one of {', '.join(allowed)}", getattr(self, name))

    def _check_integers(self, *names: str) -> None:
        for name in names:
            check(is_integer(getattr(self, name)), name, "be an integer of at least 1", getattr(self, name))

    def _check_optional_integers(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            check(value is None or is_integer(value), name, "be an integer of at least 1", value)

    def _check_integer_lists(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            ok = isinstance(value, tuple) and all(is_integer(v) for v in value)
            check(ok, name, "be a list of integers of at least 1", value)

    def _check_numbers(self, rules: Mapping[str, Rule]) -> None:
        for name, (accept, rule) in rules.items():
            value = getattr(self, name)
            if name != "calibration" or value is not None:
                check(is_number(value) and accept(value), name, rule, value)

    def _check_flags(self, *names: str) -> None:
        for name in names:
            check(isinstance(getattr(self, name), bool), name, "be true or false", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FitConfig):
    """How a detector of a table is trained. The defaults are meant to be left alone.

    Example:
        >>> TrainConfig(latent=2).score_kind
        'ensemble'
    """

    columns: dict[str, str] = option({}, f"declared kinds, name = one of {', '.join(KINDS)}; the rest is inferred")
    score_kind: str = option("ensemble", f"what the score is: {', '.join(SCORE_KINDS)}")
    latent: int | None = option(None, "latent width; by default the number of columns, at most 32")
    hidden: tuple[int, ...] = option((128, 128), "widths of the hidden layers of encoder and decoder")
    continuous: str = option("student_t", f"likelihood of continuous columns: {', '.join(CONTINUOUS)}")
    variance: float = option(1.0, "noise variance of fixed_gaussian, in units of the column's variance")
    counts: str = option("zero_inflated", f"likelihood of count columns: {', '.join(COUNTS)}")
    companions: tuple[int, ...] = option(
        (3, 3, 3, 30, 30), "classes of the mixtures beside the autoencoder, each fitted on two scales; [] = none"
    )
    autoencoder_share: float = option(0.75, "the autoencoder's weight in the ensemble; the mixtures share the rest")
    input_noise: float = option(0.1, "standard deviation of the noise added to the encoder's input in training")
    hide: float = option(0.1, "share of cells made missing in training, so that missing ones are understood")
    charge_missing: bool = option(True, "charge a missing cell its column's mean nats, so that rows are comparable")
    precision: str = option("float32", f"of the decoder's hidden layers when scoring: {', '.join(PRECISIONS)}")
    split_by: str | None = option(None, "column of times: the latest rows calibrate; it is left out of the model")
    group_by: str | None = option(None, "column of groups held out whole, not in parts; it is left out of the model")

    def __post_init__(self) -> None:
        self._check_choices(
            {"score_kind": SCORE_KINDS, "continuous": CONTINUOUS, "counts": COUNTS, "precision": PRECISIONS}
        )
        super().__post_init__()
        self._check_flags("charge_missing")
        self._check_integer_lists("hidden", "companions")
        self._check_optional_integers("latent")
        self._check_numbers(
            {
                "variance": POSITIVE,
                "hide": (lambda v: 0 <= v <= 0.5, "be a share from 0 to 0.5"),
                "autoencoder_share": (lambda v: 0 < v <= 1, "be a share from above 0 to 1"),
            }
        )
        for name in ("split_by", "group_by"):
            value = getattr(self, name)
            check(value is None or (isinstance(value, str) and value != ""), name, "be the name of a column", value)
        check(isinstance(self.columns, Mapping), "columns", "be a table of name = kind", self.columns)
        for name, kind in self.columns.items():
            check(kind in KINDS, f"columns.{name}", f"be one of {', '.join(KINDS)}", kind)


@dataclass(frozen=True, kw_only=True)
class ImageConfig(FitConfig):
    """How a detector of images is trained. The defaults are meant to be left alone.

    Example:
        >>> ImageConfig(latent=16).score_kind
        'statistics'
    """

    score_kind: str = option("statistics", f"what the score is: {', '.join(IMAGE_SCORE_KINDS)}")
    size: tuple[int, ...] = option((), "height and width that images are brought to; by default their own")
    model: str = option("vae", f"the network: {', '.join(IMAGE_MODELS)}")
    pixels: str = option("continuous_bernoulli", f"likelihood of pixels: {', '.join(PIXELS)}")
    latent: int = option(32, "latent width; of a ladder, of the vector above its maps")
    channels: int = option(16, "channels of the widest images; each halving of the sides doubles them, up to fourfold")
    blocks: int = option(1, "residual blocks at each size")
    k: int = option(4, "posterior samples per image when scoring, one of calibration_k")
    calibration_k: tuple[int, ...] = option((1, 4, 16), "numbers of samples to calibrate for")
    steps: int | None = option(None, "optimiser steps; by default 1000, or two passes over the images, at most 20000")
    batch_size: int = option(128, "images per optimiser step")
    learning_rate: float = option(2e-3, "AdamW's step size, cosine-annealed to a twentieth")
    mixed_precision: bool = option(True, "train the layers in bfloat16 where the processor multiplies it faster")

    def __post_init__(self) -> None:
        self._check_choices({"score_kind": IMAGE_SCORE_KINDS, "model": IMAGE_MODELS, "pixels": PIXELS})
        super().__post_init__()
        self._check_integers("latent", "channels", "blocks")
        self._check_integer_lists("size")
        check(len(self.size) in (0, 2), "size", "be empty or [height, width]", self.size)
        self._check_flags("mixed_precision")

    def steps_for(self, rows: int) -> int:
        """Return the optimiser steps of a training on so many images."""
        return self.steps or min(max(1000, 2 * math.ceil(rows / self.batch_size)), 20_000)

    @property
    def height_width(self) -> tuple[int, int] | None:
        """The size that images are brought to; None: chosen by the images."""
        return (self.size[0], self.size[1]) if self.size else None


Config = TrainConfig | ImageConfig
"""How a detector is trained, of a table or of images."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Options):
    """How rows are scored and flagged.

    Example:
        >>> ScoreConfig(alpha=0.01).alpha
        0.01
    """

    alpha: float = option(0.05, "false-alarm rate promised on normal rows")
    fdr: float | None = option(None, "flag the whole job under this false discovery rate instead of alpha")
    k: int | None = option(None, "posterior samples per row, one the model is calibrated for")
    explain: int = option(0, "columns named in each row's attributions; 0 = none")
    mc_se: float | None = option(None, "also estimate log p(x) to within this standard error, nats; by default not")
    key: tuple[str, ...] = option((), "columns copied to the output to tell rows apart; by default the row number")
    group: str | None = option(None, "column of groups that the model is calibrated for: rows are judged within theirs")
    overwrite: bool = option(False, "replace an output that exists")
    allow_missing: bool = option(False, "take a column that is absent for one of missing cells")
    batch_rows: int = option(65_536, "rows read, scored and written at a time")
    workers: int | None = option(None, "threads that score frames; by default one a core, at most 8")
    max_flagged: float | None = option(None, "share of rows (below 1) or number of them (from 1) that may be flagged")

    def __post_init__(self) -> None:
        for name in ("alpha", "fdr"):
            value = getattr(self, name)
            ok = (value is None and name == "fdr") or (is_number(value) and 0 < value < 1)
            check(ok, name, "be a number between 0 and 1", value)
        ok = self.mc_se is None or (is_number(self.mc_se) and self.mc_se > 0)
        check(ok, "mc_se", "be a number above 0", self.mc_se)
        for name in ("k", "workers"):
            value = getattr(self, name)
            check(value is None or is_integer(value), name, "be an integer of at least 1", value)
        check(is_integer(self.explain, 0), "explain", "be an integer of at least 0", self.explain)
        for name in ("overwrite", "allow_missing"):
            check(isinstance(getattr(self, name), bool), name, "be true or false", getattr(self, name))
        check(is_integer(self.batch_rows), "batch_rows", "be an integer of at least 1", self.batch_rows)
        most = self.max_flagged
        check(most is None or (is_number(most) and most >= 0), "max_flagged", "be a number of at least 0", most)

    def too_many(self, flagged: int, rows: int) -> bool:
        """Whether more rows are flagged than `max_flagged` allows."""
        if self.max_flagged is None:
            return False
        return flagged > (self.max_flagged * rows if self.max_flagged < 1 else self.max_flagged)


@dataclass(frozen=True, kw_only=True)
class BatchConfig(ScoreConfig):
    """How a folder of parts is scored into a folder.

    Example:
        >>> BatchConfig(processes=4, on_error="quarantine").format
        'parquet'
    """

    processes: int = option(1, "processes that score parts side by side, each on one thread if more than one")
    on_error: str = option("fail", f"what becomes of rows that cannot be scored: {', '.join(ON_ERROR)}")
    format: str = option("parquet", f"of the output's parts: {', '.join(FORMATS)}")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(is_integer(self.processes), "processes", "be an integer of at least 1", self.processes)
        check(self.on_error in ON_ERROR, "on_error", f"be one of {', '.join(ON_ERROR)}", self.on_error)
        check(self.format in FORMATS, "format", f"be one of {', '.join(FORMATS)}", self.format)
        alone = self.processes == 1 or self.workers is None
        check(alone, "workers", "be left out where there are several processes", self.workers)


@dataclass(frozen=True, kw_only=True)
class ResampleConfig(Options):
    """How rows are weighed by the density of their codes. The defaults are those that held up in measurement.

    The published recipe of Amini et al. (2019) is `density="dbvae", within_class=False, class_mass="kept",
    ess=None, cap=None, floor=None, guard=0, isolation_guard=None, label_guard=None`.

    Example:
        >>> ResampleConfig(mode="oversample").ess
        0.3
    """

    mode: str = option("weights", f"what to make: {', '.join(MODES)}")
    size: int | None = option(None, "rows of an oversample or a subsample; by default twice, or ess times, the rows")
    density: str = option("knn", f"how density is estimated: {', '.join(DENSITIES)}")
    space: str = option("latent", f"where: {', '.join(SPACES)}")
    within_class: bool = option(True, "measure density within each class, where there are labels")
    label_kind: str | None = option(None, "of the labels: classes or continuous; by default read off them")
    label_bins: int = option(10, "intervals between quantiles into which a continuous target is cut")
    ess: float | None = option(0.3, "floor of the effective sample size, as a share of the rows; none: gamma = 1")
    cap: float | None = option(10.0, "largest weight that density gives, in units of its class's mean")
    floor: float | None = option(0.1, "least weight that density gives, in units of its class's mean")
    class_mass: str = option(
        "tempered", f"mass of the classes: {', '.join(CLASS_MASS)}; tempered = as equal as ess allows"
    )
    guard: float = option(0.01, "rows whose anomaly p-value is at most this are never weighted up; 0 = no guard")
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

    def __post_init__(self) -> None:
        choices = {
            "mode": MODES, "density": DENSITIES, "space": SPACES, "class_mass": CLASS_MASS, "combine": COMBINATIONS,
            "label_kind": (None, "classes", "continuous"),
        }  # fmt: skip
        for name, allowed in choices.items():
            value = getattr(self, name)
            check(value in allowed, name, f"be one of {', '.join(map(str, allowed))}", value)
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
            "isolation_guard": (lambda v: v >= 1, "be a ratio of at least 1"),
            "label_guard": (lambda v: v >= 1, "be a ratio of at least 1"),
            "guard": SHARE,
            "smoothing_alpha": NOT_NEGATIVE,
        }
        for name, (accept, rule) in rules.items():
            value = getattr(self, name)
            optional = name not in ("guard", "smoothing_alpha")
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


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """What a report shows of a data set, and how much.

    Example:
        >>> ReportConfig(top=12).points
        2000
    """

    alpha: float = option(0.05, "false-alarm rate to flag at; of a scored file the flags are its own")
    top: int = option(6, "strangest rows, or images, shown with their reasons, at most 24")
    points: int = option(2000, "points of the latent map at most")
    sample: int = option(20_000, "rows drawn at random for the latent map, the columns' values and the audit")
    seed: int = option(0, "seed of the draw")

    def __post_init__(self) -> None:
        check(is_number(self.alpha) and 0 < self.alpha < 1, "alpha", "be a number between 0 and 1", self.alpha)
        bounds = {"top": (0, 24), "points": (1, 5000), "sample": (1, 100_000), "seed": (0, 2**63 - 1)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            check(is_integer(value, low) and value <= high, name, f"be an integer from {low} to {high}", value)


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Options):
    """How requests are answered over HTTP, and what is refused. All bounds are those of one worker.

    Example:
        >>> ServeConfig(max_rows=1000).host
        '127.0.0.1'
    """

    host: str = option("127.0.0.1", "address to listen on; there is no authentication, so this machine alone")
    port: int = option(5000, "port to listen on")
    workers: int = option(1, "server processes")
    max_bytes: int = option(16 << 20, "bytes of a request's body at most; more is answered 413")
    max_rows: int = option(100_000, "rows of a request at most; more is answered 413")
    timeout_s: float = option(60.0, "seconds that scoring a request may take, waiting included; more is answered 504")
    read_timeout_s: float = option(30.0, "seconds that a client may take to send a request, or to take its answer")
    concurrency: int | None = option(None, "requests scored at once; by default one a core, at most 4")
    queue: int = option(64, "requests that may wait for one of these places; more are answered 503")

    def __post_init__(self) -> None:
        check(isinstance(self.host, str) and self.host.strip() != "", "host", "be an address", self.host)
        ok = is_integer(self.port) and self.port < 65536
        check(ok, "port", "be an integer from 1 to 65535", self.port)
        for name, low in (("workers", 1), ("max_bytes", 1), ("max_rows", 1), ("concurrency", 1), ("queue", 0)):
            value = getattr(self, name)
            ok = is_integer(value, low) or (value is None and name == "concurrency")
            check(ok, name, f"be an integer of at least {low}", value)
        for name in ("timeout_s", "read_timeout_s"):
            value = getattr(self, name)
            check(is_number(value) and value > 0, name, "be a number above 0", value)


@dataclass(frozen=True, kw_only=True)
class MonitorConfig(Options):
    """How scored rows are watched for drift.

    Example:
        >>> MonitorConfig(level=0.05).least_psi
        0.1
    """

    level: float = option(0.01, "share of undisturbed jobs in which anything may be alarmed")
    least_psi: float = option(0.1, "stability indices of a column under this are not worth an alarm, however certain")
    least_missing: float = option(0.05, "changes of a column's share of missing cells under this are not, either")
    seed: int = option(0, "seed of the numbers that smooth p-values")

    def __post_init__(self) -> None:
        check(is_number(self.level) and 0 < self.level < 1, "level", "be a number between 0 and 1", self.level)
        for name in ("least_psi", "least_missing"):
            value = getattr(self, name)
            check(is_number(value) and value >= 0, name, "be a number of at least 0", value)
        check(is_integer(self.seed, 0), "seed", "be an integer of at least 0", self.seed)
