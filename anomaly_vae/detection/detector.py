"""The detector: schema, model and calibration, one artifact."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..cards import card
from ..data.images import ImageSchema
from ..data.profile import Profile
from ..data.schema import Schema, named
from ..errors import CalibrationError, ConfigError, DataWarning, ShapeError
from ..models.conv import ImageVAE
from ..models.devices import exact_convolutions, resolve_device
from ..models.family import Model
from ..models.vae import VAE
from ..options import Config, TrainConfig
from . import artifact
from .adaptive import MAX_K, LogLikelihoods, log_likelihoods
from .attribution import attributions
from .calibration import Calibration, check_rates, judged
from .draws import drawn
from .image_scores import fitted_density, heat_maps, image_attributions, reconstructions, score_images
from .kept import Kept
from .latent import entered, posteriors
from .missing import charged, expected_costs, total
from .scores import Scores, score_rows
from .statistics import StatisticsDensity
from .verdicts import SCORE_COLUMNS as SCORE_COLUMNS
from .verdicts import Verdicts

LIKELIHOOD_COLUMNS = ("log_likelihood", "log_likelihood_se", "log_likelihood_k", "log_likelihood_reached")
"""Columns that `score_frame` adds when asked for log p(x) to a stated error."""


@dataclass(frozen=True, eq=False)
class Detector:
    """A trained, calibrated detector of improbable rows, of a table or of images (one column of images).

    Attributes:
        schema: The table's columns, or what the images are brought to.
        model: The density, in eval mode.
        config: How it was trained; names the score and its k.
        calibration: Scores of held-out normal rows.
        noise: Standard normal draws shared by all rows, (k_max, l).
        missing_cost: What a missing cell of each column is charged, (m,), float64, nats; None: nothing.
        statistics: The density of images' statistics; None for tables.
        profile: Counts of the training rows' cells, to compare later rows with; None for images and older models.

    Example:
        >>> from anomaly_vae import fit_detector, TrainConfig
        >>> rng = np.random.default_rng(0)
        >>> rows = pd.DataFrame({"a": rng.normal(size=400)}).assign(b=lambda t: 2 * t.a + 0.1 * rng.normal(size=400))
        >>> detector = fit_detector(rows, TrainConfig(steps=1000)).detector
        >>> detector.score_frame(pd.DataFrame({"a": [0.5, 0.5], "b": [1.0, -1.0]})).is_anomaly.tolist()
        [False, True]
    """

    schema: Schema | ImageSchema
    model: Model
    config: Config
    calibration: Calibration
    noise: Tensor
    missing_cost: Tensor | None = None
    statistics: StatisticsDensity | None = None
    profile: Profile | None = None

    @classmethod
    def calibrated(
        cls,
        schema: Schema | ImageSchema,
        model: Model,
        config: Config,
        frame: pd.DataFrame,
        *,
        trained: Tensor | None = None,
        held: Tensor | None = None,
    ) -> Self:
        """Make a detector from a trained model and held-out normal rows (may be none: then it gives no p-values).

        Args:
            schema: The table's columns.
            model: The trained model.
            config: How it was trained.
            frame: Held-out normal rows.
            trained: Training rows, encoded, (n, m): what a missing cell is charged, and the profile.
            held: Held-out normal images, encoded, (v, m), other than those of `frame`: their statistics are fitted.
        """
        generator = torch.Generator().manual_seed(config.seed)
        noise = torch.randn(max(config.calibration_k), model.latent, generator=generator)
        model = model.cpu().eval().requires_grad_(False)
        costs = density = profile = None
        if isinstance(schema, Schema) and trained is not None:
            profile = Profile.fit(schema, trained.cpu().numpy())
        if isinstance(model, VAE) and isinstance(config, TrainConfig) and config.charge_missing and trained is not None:
            costs = expected_costs(model, trained.cpu(), noise=noise[: config.k], kind=config.score_kind)
        if isinstance(model, ImageVAE) and held is not None and len(held):
            density = fitted_density(model, held.cpu(), noise=noise[: config.k], seed=config.seed)
        bare = cls(schema, model, config, Calibration({}), noise, costs, density, profile)
        return bare.calibrate(frame) if len(frame) else bare

    def calibrate(self, frame: pd.DataFrame, *, groups: ArrayLike | None = None) -> Self:
        """Return the same model with p-values and thresholds taken from these rows.

        Args:
            frame: Normal rows that the model was not trained on; `config.max_calibration_rows` of them are drawn if
                there are more.
            groups: Group of each row, (n,): rows can then be judged within their own group, which promises the
                false-alarm rate in each (see `score_frame`).

        Raises:
            CalibrationError: No rows.
            SchemaError: The rows are not of the schema.
        """
        if len(frame) == 0:
            raise CalibrationError("calibration data must have rows, got none. Give rows that were not trained on.")
        most = self.config.max_calibration_rows
        if len(frame) > most:
            kept = np.random.default_rng(self.config.seed).choice(len(frame), most, replace=False)
            frame = frame.iloc[np.sort(kept)]
            groups = None if groups is None else np.asarray(groups)[np.sort(kept)]
        x = self.encode(frame)
        scores = {k: self._scores(x, k).value for k in self.config.calibration_k}
        return replace(self, calibration=Calibration.of(scores, groups))

    def score_frame(
        self,
        frame: pd.DataFrame,
        *,
        alpha: float = 0.05,
        fdr: float | None = None,
        k: int | None = None,
        explain: int = 0,
        allow_missing: bool = False,
        mc_se: float | None = None,
        groups: ArrayLike | None = None,
    ) -> pd.DataFrame:
        """Score, judge and explain rows.

        Args:
            frame: Rows with the training columns, in any order.
            alpha: Flag rows with p-value <= alpha: at most this share of normal rows is flagged, on average over
                calibration draws.
            fdr: Flag by Benjamini and Hochberg over these rows instead: at most this share of the flagged is normal.
            k: Posterior samples per row, one of those calibrated for; by default the model's own.
            explain: Columns named in each row's attributions; 0 = none.
            allow_missing: Take an absent column for one of missing cells, with a warning.
            mc_se: Also estimate log p(x) to within this standard error, nats (see `estimate_log_likelihood`), and add
                the columns `LIKELIHOOD_COLUMNS`. Scores, p-values and flags stay those of k samples.
            groups: Group of each row, (n,), as in `calibrate`: p-values and thresholds are those of its own group.

        Returns:
            One row each, same index, with the columns `SCORE_COLUMNS`: score, standard error and threshold in nats;
            `mc_se` NaN at k = 1; `ess` of importance weights, so for the likelihood alone, and `reliable` false where
            it is under 5; `attributions` JSON text whose nats sum to the score.

        Raises:
            SchemaError: The rows are not of the schema.
            CalibrationError: k is not calibrated for, or alpha needs more calibration rows than there are.
            ConfigError: alpha, fdr, explain or mc_se is out of range.
        """
        check_rates(alpha, fdr)
        if explain < 0:
            raise ConfigError(f"explain must be a number of columns from 0 up, got {explain!r}.")
        x = self.encode(frame, allow_missing=allow_missing)
        out = self.verdicts(x, alpha=alpha, fdr=fdr, k=k, groups=groups).frame(frame.index)
        if explain:
            reasons = self._reasons(frame, x, k=self.config.k if k is None else k, top=explain)
            out["attributions"] = pd.Series(reasons, index=out.index, dtype=object)
        if mc_se is None:
            return out
        found = self._log_likelihoods(x, mc_se, MAX_K)
        added = (found.value, found.mc_se, found.k, found.reached)
        return out.assign(**dict(zip(LIKELIHOOD_COLUMNS, added, strict=True)))

    def verdicts(
        self,
        x: Tensor,
        *,
        alpha: float = 0.05,
        fdr: float | None = None,
        k: int | None = None,
        groups: ArrayLike | None = None,
    ) -> Verdicts:
        """Score and judge rows that `encode` has returned, (n, m); without attributions. See `score_frame`."""
        check_rates(alpha, fdr)
        k = self.config.k if k is None else k
        self.threshold(alpha if fdr is None else 0.5, k=k)  # refuse what cannot be promised before computing
        scores = self._scores(x, k)
        return Verdicts(
            scores, self.config.score_kind, *judged(self.calibration, scores.value, groups, alpha=alpha, fdr=fdr, k=k)
        )

    def log_likelihood(self, frame: pd.DataFrame, *, k: int = 64, kind: str = "likelihood") -> Scores:
        """Return minus log p(x) of each row with its error, for any k and any kind of score, without p-values.

        It is the density of the observed cells alone: missing cells are charged nothing.

        Args:
            frame: Rows of the schema.
            k: Posterior samples per row; memory does not grow with it.
            kind: A name in `scores.SCORES`.
        """
        return self._uncharged(self.encode(frame), k, kind)

    def estimate_log_likelihood(
        self, frame: pd.DataFrame, *, mc_se: float = 0.05, max_k: int = MAX_K
    ) -> LogLikelihoods:
        """Return log p(x) of each row to within a standard error: hard rows get more samples than easy ones.

        Args:
            frame: Rows of the schema.
            mc_se: Bound on the standard error, nats.
            max_k: Samples after which a row that has not reached the bound is left, and said so.

        Raises:
            ConfigError: mc_se is not positive, or max_k is under 64.
        """
        return self._log_likelihoods(self.encode(frame), mc_se, max_k)

    def threshold(self, alpha: float, *, k: int | None = None) -> float:
        """Return the score above which a row's p-value is at most alpha, nats.

        Raises:
            CalibrationError: See `Calibration.threshold`.
        """
        if not self.calibration.scores:
            needed = int(np.ceil(min(1 / alpha, np.finfo(float).max))) - 1
            raise CalibrationError(
                f"a detector must have at least {needed} calibration rows to give p-values, got none. "
                "Calibrate it with normal rows that it was not trained on."
            )
        return self.calibration.threshold(alpha, k=self.config.k if k is None else k)

    def encode(self, frame: pd.DataFrame, *, allow_missing: bool = False) -> Tensor:
        """Return rows as the model's tensor, (n, m); warns of rows without a single observed cell.

        Args:
            frame: Rows, n.
            allow_missing: See `Schema.encode`.
        """
        if not isinstance(frame, pd.DataFrame):
            raise ShapeError(
                f"rows must be a pandas DataFrame, got {type(frame).__name__}. Wrap them with their names."
            )
        encoded = self.schema.encode(frame, allow_missing=allow_missing)
        empty = int(np.isnan(encoded).all(1).sum()) if np.issubdtype(encoded.dtype, np.floating) else 0
        if empty:
            warnings.warn(
                f"rows without any observed cell: {empty}. Nothing speaks against them, so they score as normal",
                DataWarning,
                stacklevel=3,
            )
        return torch.from_numpy(encoded)

    def latent(self, frame: pd.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the means and log standard deviations of rows' codes, each (n, l).

        Args:
            frame: Rows of the schema, n.
        """
        return posteriors(self.model, self.encode(frame).to(self.device))

    def standardised(self, frame: pd.DataFrame) -> NDArray[np.float32]:
        """Return rows as the encoder sees them, (n, d): standardised cells and indicators, or pixels in [-1, 1].

        Args:
            frame: Rows of the schema, n.
        """
        return entered(self.model, self.encode(frame).to(self.device))

    def sample(self, n: int, *, seed: int = 0, given: Any = None) -> pd.DataFrame:
        """Return n rows drawn from the model, in the user's columns and dtypes.

        Args:
            n: Rows.
            seed: Of the draws.
            given: Class to draw of a model that is told classes; by default all, as often as training had them.

        Raises:
            ConfigError: The class is unknown, or the model is told none.
        """
        return self.schema.decode(drawn(self.model, self.schema, n, seed=seed, given=given).numpy())

    def heat_maps(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Return what each pixel of images costs beyond a perfect reconstruction, nats, (n, h, w).

        Colours are added up. High where the model is surprised; never below 0, which is a perfect reconstruction.

        Args:
            frame: Images, n rows.

        Raises:
            ConfigError: The detector is of tables.
        """
        x, model = self.encode(frame).to(self.device), self._images("heat maps")
        maps = heat_maps(model, x, noise=self._noise(self.config.k))
        return maps.reshape(len(x), *model.shape).sum(1)

    def pixels(self, frame: pd.DataFrame) -> NDArray[np.uint8]:
        """Return images as the model sees them, (n, h, w, c) levels.

        Args:
            frame: Images, n rows.

        Raises:
            ConfigError: The detector is of tables.
        """
        x, model = self.encode(frame), self._images("pixels")
        return model.levels(x).reshape(len(x), *model.shape).permute(0, 2, 3, 1).numpy()

    def reconstruct(self, frame: pd.DataFrame) -> NDArray[np.uint8]:
        """Return the model's reconstruction of images, from the posterior means, (n, h, w, c) levels.

        Args:
            frame: Images, n rows.

        Raises:
            ConfigError: The detector is of tables.
        """
        x, model = self.encode(frame).to(self.device), self._images("reconstructions")
        return reconstructions(model, x)

    def _images(self, what: str) -> ImageVAE:
        if not isinstance(self.model, ImageVAE):
            raise ConfigError(f"{what} must be asked of a detector of images, got one of a table. Use attributions.")
        return self.model

    def on(self, device: str) -> Self:
        """Return the same detector computing elsewhere: "cpu", "cuda", "mps", or "auto".

        Scores on another device differ in the last digits; thresholds and p-values remain those of the calibration.

        Raises:
            ConfigError: The device is not there, or the detector is of a table: these networks are too small for one.
        """
        place = resolve_device(device)
        if place.type != "cpu":
            self._images("another device")
        return replace(self, model=copy.deepcopy(self.model).to(place))

    @property
    def device(self) -> torch.device:
        """Where the detector computes."""
        return next(self.model.parameters()).device

    @property
    def kind(self) -> str:
        """What it was trained on, in words: "rows of 5 columns" or "images of 28 x 28"."""
        return self.schema.called

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything a score depends on, hexadecimal."""
        return artifact.digest_of(self)

    def describe(self) -> dict[str, Any]:
        """Return the detector's facts, JSON-able: columns, score, calibration, settings, digest."""
        return {
            "columns": self.schema.described(),
            "score_kind": self.config.score_kind,
            "k": self.config.k,
            "calibration": self.calibration.described(),
            "latent": self.model.latent,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "digest": self.digest,
            "config": self.config.to_dict(),
        }

    def _repr_html_(self) -> str:
        facts = self.describe()
        columns, shown = facts["columns"], {name: facts[name] for name in ("score_kind", "calibration", "digest")}
        return card(f"Detector of {self.kind}", shown, tables={f"{len(columns):,} columns": columns})

    def save(self, folder: str | Path) -> None:
        """Write the artifact; see `artifact.save`."""
        artifact.save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, *, shared: bool = False) -> Self:
        """Read an artifact and check that it scores its golden rows as it did when saved; see `artifact.load`.

        Args:
            folder: Where `save` wrote it.
            shared: Map the weights instead of reading them, for several processes on one machine.

        Raises:
            ArtifactError: It is absent, damaged, altered, or of a newer format.
        """
        parts = artifact.load(Path(folder), shared=shared)
        detector = cls(
            parts.schema, parts.model, parts.config, Calibration(parts.calibration, parts.groups), parts.noise,
            parts.missing_cost, parts.statistics, parts.profile,
        )  # fmt: skip
        artifact.check_golden(detector, parts.golden)
        return detector

    @cached_property
    def _kept(self) -> Kept:
        return Kept()

    def _noise(self, k: int) -> Tensor:
        noise = self.noise[:k]
        if k > len(noise):
            generator = torch.Generator().manual_seed(self.config.seed + 1)
            noise = torch.cat([noise, torch.randn(k - len(noise), self.model.latent, generator=generator)])
        return noise.to(self.device)

    def _log_likelihoods(self, x: Tensor, mc_se: float, max_k: int) -> LogLikelihoods:
        return log_likelihoods(self.model, x.to(self.device), mc_se=mc_se, max_k=max_k, seed=self.config.seed + 2)

    def _scores(self, x: Tensor, k: int) -> Scores:
        scores = self._uncharged(x, k, self.config.score_kind)
        if self.missing_cost is None:
            return scores
        return replace(scores, value=scores.value + total(charged(x, self.missing_cost)))

    def _uncharged(self, x: Tensor, k: int, kind: str) -> Scores:
        x, noise = x.to(self.device), self._noise(k)
        if isinstance(self.model, ImageVAE):
            with exact_convolutions(self.device):
                return score_images(self.model, x, noise=noise, kind=kind, density=self.statistics)
        return score_rows(self.model, x, noise=noise, kind=kind, kept=self._kept)

    def _reasons(self, frame: pd.DataFrame, x: Tensor, *, k: int, top: int) -> list[str]:
        kind, noise = self.config.score_kind, self._noise(k)
        if isinstance(self.model, ImageVAE):
            x = x.to(self.device)
            return image_attributions(self.model, x, noise=noise, kind=kind, top=top, density=self.statistics)
        assert isinstance(self.schema, Schema)
        return attributions(
            self.model, self.schema, named(frame), x,
            noise=noise, kind=kind, top=top, missing_cost=self.missing_cost,
        )  # fmt: skip

    def scores_of_encoded(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Return the anomaly scores of already encoded rows (n, m), shape (n,), at the model's own k."""
        return self._scores(torch.from_numpy(x), self.config.k).value
