"""How a detector is trained, of a table or of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..fields import NOT_NEGATIVE, POSITIVE, SHARE, Options, Rule, check, is_integer, is_number, option

KINDS = ("continuous", "binary", "categorical", "count", "ignored")
SCORE_KINDS = ("ensemble", "elbo", "likelihood", "reconstruction")
IMAGE_SCORE_KINDS = ("statistics", "corrected", "elbo", "likelihood", "reconstruction")
IMAGE_MODELS = ("vae", "ladder")
PIXELS = ("continuous_bernoulli", "bernoulli", "discretized_logistic", "gaussian")
OBJECTIVES = ("elbo", "iwae")
PRIORS = ("standard_normal", "aggregated_posterior", "exemplars")
CONTINUOUS = ("student_t", "gaussian", "fixed_gaussian")
PRECISIONS = ("float32", "bf16")
COUNTS = ("zero_inflated", "rounded_log_normal")
DEVICES = ("auto", "cpu", "cuda", "mps")


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
    device: str = option("auto", f"where to compute: {', '.join(DEVICES)}; auto takes a GPU for large steps")
    split_by: str | None = option(None, "column of times: the latest rows calibrate; it is left out of the model")
    group_by: str | None = option(None, "column of groups held out whole, not in parts; it is left out of the model")

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
        self._check_columns("split_by", "group_by")
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

    def _check_columns(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            check(value is None or (isinstance(value, str) and value != ""), name, "be the name of a column", value)

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
    class_power: float = option(5.0, "power of a class's share in the mixtures: above 1 rare classes count as rarer")
    marginal_weight: float = option(
        0.3, "weight with which the columns' own log densities are taken off the mixtures' term of the ensemble"
    )
    second_beta: float = option(0.5, "KL weight that the ensemble's second autoencoder is trained with; 0 = none")
    score_beta: float = option(0.5, "weight of the KL terms in ensemble scores")
    autoencoder_share: float = option(2 / 3, "the autoencoders' weight in the ensemble; the mixtures share the rest")
    input_noise: float = option(0.1, "standard deviation of the noise added to the encoder's input in training")
    hide: float = option(0.1, "share of cells made missing in training, so that missing ones are understood")
    charge_missing: bool = option(True, "charge a missing cell its column's mean nats, so that rows are comparable")
    precision: str = option("float32", f"of the decoder's hidden layers when scoring: {', '.join(PRECISIONS)}")

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
                "class_power": POSITIVE,
                "marginal_weight": (lambda v: 0 <= v <= 1, "be a weight from 0 to 1"),
                "score_beta": NOT_NEGATIVE,
                "second_beta": NOT_NEGATIVE,
            }
        )
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
    condition: str | None = option(None, "column of classes that the model is told, for p(image | class)")

    def __post_init__(self) -> None:
        self._check_choices({"score_kind": IMAGE_SCORE_KINDS, "model": IMAGE_MODELS, "pixels": PIXELS})
        super().__post_init__()
        self._check_integers("latent", "channels", "blocks")
        self._check_integer_lists("size")
        check(len(self.size) in (0, 2), "size", "be empty or [height, width]", self.size)
        self._check_flags("mixed_precision")
        self._check_columns("condition")
        if self.condition is not None:
            apart = self.condition not in (self.split_by, self.group_by)
            check(apart, "condition", "be another column than split_by and group_by", self.condition)
            check(self.input_noise == 0, "input_noise", "be 0 for a model that is told classes", self.input_noise)

    def steps_for(self, rows: int) -> int:
        """Return the optimiser steps of a training on so many images."""
        return self.steps or min(max(1000, 2 * math.ceil(rows / self.batch_size)), 20_000)

    @property
    def beside(self) -> tuple[str, ...]:
        """Columns that images must come with for training: their classes, and what they are split by."""
        return tuple(dict.fromkeys(filter(None, (self.condition, self.split_by, self.group_by))))

    @property
    def height_width(self) -> tuple[int, int] | None:
        """The size that images are brought to; None: chosen by the images."""
        return (self.size[0], self.size[1]) if self.size else None


Config = TrainConfig | ImageConfig
"""How a detector is trained, of a table or of images."""
