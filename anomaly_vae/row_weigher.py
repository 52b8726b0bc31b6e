"""What a resampler is once it is fitted: rows in, weights out; a model of its own, and one artifact.

===================  =======================================================================================
config.json          format version, package version, settings, classes, report, digests of the other files
weigher.safetensors  references and parameters of the density and the guards
golden.json          rows drawn from the detector, with their weights and log densities
detector/            the detector's own artifact
===================  =======================================================================================

Nothing in it is executable. It holds codes of training rows, and where the guards against isolated and mislabelled rows
are on, up to `Weigher.rows_held` of the rows themselves as the encoder sees them: keep it where the data may be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from .data.schema import named
from .debiasing.stored import described, restored
from .debiasing.weigher import ANOMALY, ISOLATED, MISLABELLED, CodedRows, Judged, Weigher
from .detection import artifact
from .detection.detector import Detector
from .detection.draws import refuse_classes
from .detection.latent import entered, posteriors
from .detection.scores import score_rows
from .errors import ArtifactError, ConfigError, SchemaError
from .models.conv import ImageVAE
from .options import ResampleConfig

FORMAT_VERSION = 1
KIND = "resampler"
WEIGHER, DETECTOR = "weigher.safetensors", "detector"
GUARDED = {ANOMALY: "guarded_anomaly", ISOLATED: "guarded_isolated", MISLABELLED: "guarded_label"}
SURPRISE_SAMPLES = 4
"""Posterior samples behind the ELBO of the fence."""
WEIGHT_COLUMNS = ("weight", "log_density", *GUARDED.values())
"""Columns of `RowWeigher.score_frame`."""
CLOSE = 1e-4
"""Golden log densities and weights may differ by this, relatively: distances are sums in single precision."""


@dataclass(frozen=True, eq=False, repr=False)
class RowWeigher:
    """Weighs rows by how rare their latent codes are.

    Attributes:
        detector: Whose latent it is.
        weigher: Space, density, guards, and how they become weights.
        label_column: Name of the column of labels; None = it was fitted without.

    Example:
        >>> from anomaly_vae import TrainConfig, fit_detector
        >>> rng = np.random.default_rng(0)
        >>> rows = pd.DataFrame(rng.normal(size=(400, 2)), columns=["a", "b"])
        >>> rows.iloc[:20] += 5
        >>> detector = fit_detector(rows, TrainConfig(steps=300)).detector
        >>> model = RowWeigher.fit(detector, rows)
        >>> weights = model.score_frame(pd.DataFrame({"a": [0.0, 5.0], "b": [0.0, 5.0]})).weight
        >>> bool(weights[1] > weights[0])
        True
    """

    detector: Detector
    weigher: Weigher
    label_column: str | None = None

    @classmethod
    def fit(
        cls,
        detector: Detector,
        frame: pd.DataFrame,
        config: ResampleConfig | None = None,
        *,
        labels: ArrayLike | None = None,
        label_column: str | None = None,
    ) -> Self:
        """Learn the density of rows and weigh them.

        Args:
            detector: Whose latent to measure in.
            frame: Rows, n.
            config: Settings; by default `ResampleConfig()`.
            labels: Label of each row, (n,), if there are any.
            label_column: What the labels are called in tables; by default "label".

        Raises:
            ConfigError: A label is missing, or settings and data do not go together.
            SchemaError: The rows are not of the detector's schema.
        """
        config = config or ResampleConfig()
        return cls.of_coded(detector, coded(detector, frame, config, labels), config, label_column=label_column)

    @classmethod
    def of_coded(
        cls, detector: Detector, rows: CodedRows, config: ResampleConfig, *, label_column: str | None = None
    ) -> Self:
        """Weigh rows that `coded` has returned; see `fit`."""
        facts = {"detector": detector.digest, "density": config.density}
        least, guard = 1 / (detector.calibration.rows + 1), config.guard_of(images=rows.images)
        blunt = rows.p_values is not None and 0 < guard < least
        notes = [
            f"the detector's least p-value, {least:.2g}, is above the guard of {guard:g}: no row is guarded as "
            "an anomaly. Calibrate with more rows, or raise the guard."
        ]
        weigher = Weigher.fit(rows, config, facts=facts, notes=notes if blunt else ())
        return cls(detector, weigher, (label_column or "label") if rows.labels is not None else None)

    def __repr__(self) -> str:
        within = f" within {self.label_column!r}" if self.needs_labels else ""
        return f"<RowWeigher of {self.detector.kind}{within}, {self.weigher.config.density}>"

    @property
    def needs_labels(self) -> bool:
        """Whether rows must come with labels to be weighed."""
        return self.weigher.strata.kind != "none"

    def judge(self, frame: pd.DataFrame, labels: ArrayLike | None = None) -> Judged:
        """Return the weights of rows and what they come from.

        Args:
            frame: Rows of the schema; other columns are not looked at.
            labels: Their labels, if it was fitted with some.

        Raises:
            ConfigError: Labels are absent, missing, or of an unknown class.
            SchemaError: The rows are not of the detector's schema.
        """
        return self.weigher.judge(coded(self.detector, frame, self.weigher.config, self._understood(labels)))

    def score_frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Weigh rows.

        Args:
            frame: Rows with the training columns, and the column of labels if there were labels, in any order.

        Returns:
            One row each, same index, with the columns `WEIGHT_COLUMNS`: the weight in units of the mean of the fitted
            rows, the log density of the row's code within its class (nats), and whether each guard holds it down.

        Raises:
            SchemaError: A column is absent.
            ConfigError: A label is missing, or of an unknown class.
        """
        frame = named(frame)
        labels = self.labels_in(frame) if self.needs_labels else None
        return weight_columns(self.judge(frame, labels)).set_axis(frame.index)

    def labels_in(self, frame: pd.DataFrame) -> pd.Series:
        """Return the column of labels of a table.

        Raises:
            SchemaError: It is absent.
        """
        if self.label_column not in frame.columns:
            raise SchemaError(
                f"a table must have the column of labels {self.label_column!r}, got none. Its rows are weighed within "
                "their class.",
                column=self.label_column,
            )
        return frame[self.label_column]

    def _understood(self, labels: ArrayLike | None) -> ArrayLike | None:
        """Return labels of the type that they were fitted with: text and JSON do not tell 7 from "7"."""
        if labels is None:
            return None
        series = labels if isinstance(labels, pd.Series) else pd.Series(np.asarray(labels).ravel())
        strata = self.weigher.strata
        numbers = strata.kind == "continuous" or not any(isinstance(value, str) for value in strata.values)
        numeric = pd.api.types.is_numeric_dtype(series.dtype)
        if numbers and not numeric and not any(isinstance(value, bool) for value in strata.values):
            found = pd.to_numeric(series, errors="coerce")
            return found if (found.notna() == series.notna()).all() else series
        if not numbers and numeric and series.notna().all():
            return series.map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
        return series

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything a weight depends on, hexadecimal."""
        facts, arrays = described(self.weigher)
        return _digest(facts, self.label_column, _tensors(arrays), self.detector.digest)

    def describe(self) -> dict[str, Any]:
        """Return the model's facts, JSON-able: label, classes, settings, report, what it holds of the rows, digests."""
        return {
            "label": self.label_column,
            "classes": list(self.weigher.strata.names) if self.needs_labels else [],
            "rows_held": self.weigher.rows_held,
            "report": self.weigher.weighing.report.to_dict(),
            "detector": self.detector.digest,
            "digest": self.digest,
            "config": self.weigher.config.to_dict(),
        }

    def save(self, folder: str | Path) -> None:
        """Write the artifact into a new folder, whole or not at all.

        Raises:
            OutputExistsError: The folder exists and is not empty.
            ConfigError: A class label cannot be saved.
        """
        from . import __version__

        facts, arrays = described(self.weigher)
        tensors = _tensors(arrays)
        golden = json.dumps(self._golden(), allow_nan=False).encode()
        config = {
            "format_version": FORMAT_VERSION,
            "kind": KIND,
            "package_version": __version__,
            "digest": _digest(facts, self.label_column, tensors, self.detector.digest),
            "sha256": {WEIGHER: _sha(tensors), artifact.GOLDEN: _sha(golden)},
            "detector": self.detector.digest,
            "label_column": self.label_column,
            "weigher": facts,
        }
        described_ = json.dumps(config, indent=1, allow_nan=False).encode()
        files = {WEIGHER: tensors, artifact.GOLDEN: golden, artifact.CONFIG: described_}
        artifact.write_files(Path(folder), files, inside=lambda aside: self.detector.save(aside / DETECTOR))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read an artifact and check that it weighs its golden rows as it did when saved.

        Raises:
            ArtifactError: It is absent, damaged, altered, or of a newer format.
        """
        folder = Path(folder)
        config = artifact.read_json(folder, artifact.CONFIG, whose=KIND)
        version = config.get("format_version")
        if config.get("kind") != KIND or not isinstance(version, int) or version < 1:
            raise ArtifactError(f"{artifact.CONFIG} must be a resampler's, got another. Check the path.")
        if version > FORMAT_VERSION:
            raise ArtifactError(
                f"the resampler must be of format {FORMAT_VERSION} or older, got format {version}, written by "
                f"anomaly-vae {config.get('package_version')}. Upgrade anomaly-vae to read it.",
                version=version,
            )
        tensors = artifact.read_file(folder, WEIGHER, whose=KIND)
        golden = artifact.read_file(folder, artifact.GOLDEN, most=artifact.LARGEST_JSON, whose=KIND)
        detector = Detector.load(folder / DETECTOR)
        try:
            for name, content in ((WEIGHER, tensors), (artifact.GOLDEN, golden)):
                if _sha(content) != config["sha256"][name]:
                    raise artifact.altered(name, "its digest differs from the one in config.json")
            label = config["label_column"]
            digests = _digest(config["weigher"], label, tensors, config["detector"]), config["detector"]
            if digests != (config["digest"], detector.digest):
                raise artifact.altered(artifact.CONFIG, "its settings or its detector were changed after saving")
            loaded = cls(detector, restored(config["weigher"], load_arrays(tensors)), label)
            loaded._check_golden(json.loads(golden))
        except ArtifactError:
            raise
        except artifact.DAMAGES as error:
            raise artifact.damaged(error) from error
        return loaded

    def _golden(self) -> dict[str, Any]:
        records = artifact.golden_records(self.detector)
        strata = self.weigher.strata
        shown: Sequence[Any] = strata.values or ((strata.edges[0] - 1.0, *strata.edges) if strata.edges else (0.0,))
        labels = [shown[i % len(shown)] for i in range(len(records))] if self.needs_labels else None
        judged = self._judge_records(records, labels)
        return {
            "rows": records,
            "labels": labels,
            "weights": judged.weights.tolist(),
            "log_density": judged.log_density.tolist(),
        }

    def _judge_records(self, records: list[dict[str, Any]], labels: list[Any] | None) -> Judged:
        return self.judge(artifact.frame_of(records, self.detector.schema), labels)

    def _check_golden(self, golden: dict[str, Any]) -> None:
        if not 1 <= len(golden["rows"]) <= artifact.MOST_GOLDEN_ROWS:
            raise artifact.altered(artifact.GOLDEN, f"it must have from 1 to {artifact.MOST_GOLDEN_ROWS} rows")
        judged = self._judge_records(golden["rows"], golden["labels"])
        got = np.stack([judged.weights, judged.log_density])
        wanted = np.array([golden["weights"], golden["log_density"]], dtype=np.float64)
        worst = float(np.max(np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted))))
        if not worst <= CLOSE:
            raise ArtifactError(
                f"the resampler must weigh its golden rows as when it was saved, got a relative difference of "
                f"{worst:.1e}. The artifact or the numerical libraries changed; fit again or restore the environment.",
                difference=worst,
            )


def coded(
    detector: Detector, frame: pd.DataFrame, config: ResampleConfig, labels: ArrayLike | None = None
) -> CodedRows:
    """Return what of rows is needed to weigh them.

    Args:
        detector: Whose latent to use.
        frame: Rows of its schema, n; other columns are not looked at.
        config: Names the guards: p-values are computed where one needs them.
        labels: Label of each row, (n,).

    Raises:
        ConfigError: The model is told classes: codes hold what a class leaves open, and say nothing of how rare it is.
    """
    refuse_classes(detector.schema, "a resampling's detector")
    names = set(detector.schema.names)
    x = detector.encode(frame[[name for name in frame.columns if name in names]])
    codes, log_scales = posteriors(detector.model, x)
    surprises, images = None, isinstance(detector.model, ImageVAE)
    calibrated = config.guard_of(images=images) and detector.calibration.rows
    p_values = detector.verdicts(x, alpha=0.5).p_values if calibrated else None
    if config.fence is not None and images:
        noise = detector.noise[:SURPRISE_SAMPLES].to(detector.device)
        surprises = score_rows(detector.model, x.to(detector.device), noise=noise, kind="elbo").value
    return CodedRows(codes, entered(detector.model, x), log_scales, p_values, surprises, labels, images=images)


def joined(parts: Sequence[CodedRows]) -> CodedRows:
    """Return the rows of several frames as one.

    Raises:
        ConfigError: There are none.
    """
    if not parts:
        raise ConfigError("there must be rows to weigh, got none. Check the input.")
    first = parts[0]
    together: dict[str, Any] = {
        name: None if getattr(first, name) is None else np.concatenate([getattr(part, name) for part in parts])
        for name in ("codes", "surface", "log_scales", "p_values", "surprises")
    }
    labels = None if first.labels is None else pd.concat([pd.Series(part.labels) for part in parts], ignore_index=True)
    return CodedRows(**together, labels=labels, images=first.images)


def weight_columns(judged: Judged) -> pd.DataFrame:
    """Return weights, log densities and guards of rows as a table of the columns `WEIGHT_COLUMNS`."""
    off = np.zeros(len(judged.weights), dtype=bool)
    flags = {column: judged.flags.get(guard, off) for guard, column in GUARDED.items()}
    return pd.DataFrame({"weight": judged.weights, "log_density": judged.log_density, **flags})


def _tensors(arrays: dict[str, NDArray[Any]]) -> bytes:
    # sorted and contiguous, so that equal weighers are equal bytes
    return bytes(save_arrays({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}))


def _digest(facts: dict[str, Any], label: str | None, tensors: bytes, detector: str) -> str:
    text = json.dumps([facts, label, _sha(tensors), detector], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
