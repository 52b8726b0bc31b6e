"""What the service answers with where its model is a resampler: a weight for each row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow

from ..detection.artifact import CONFIG, golden_records, read_json
from ..detection.detector import Detector
from ..errors import ConfigError
from ..row_weigher import KIND, RowWeigher
from . import flavor, payload, tracking, weigher_flavor
from .lane import Answer, Asked, body_of

Served = Detector | RowWeigher
"""What a service may have for its model."""


def load(uri: str) -> tuple[Served, str]:
    """Load a detector or a resampler and resolve its URI to a version; see `tracking.load`.

    Raises:
        ArtifactError: There is neither, or it is damaged.
    """
    return tracking.found(uri, _own, _logged)


def _own(folder: Path) -> Served:
    return RowWeigher.load(folder) if read_json(folder, CONFIG).get("kind") == KIND else Detector.load(folder)


def _logged(uri: str) -> Served:
    data = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri)) / "data"
    if (data / flavor.RESAMPLER_FOLDER).is_dir():
        return RowWeigher.load(data / flavor.RESAMPLER_FOLDER)
    if (data / flavor.DETECTOR_FOLDER).is_dir():
        return Detector.load(data / flavor.DETECTOR_FOLDER)
    return flavor.load_model(uri)  # which says what is wrong


def asked(weigher: RowWeigher, body: bytes, media: str, *, max_rows: int) -> Asked:
    """Return what a request asks of a resampler; see `payload.read`.

    Raises:
        ConfigError: It has parameters.
    """
    also = (str(weigher.label_column),) if weigher.needs_labels else ()
    frame, params = payload.read(body, media, weigher.detector.schema, max_rows=max_rows, also=also)
    if params:
        raise ConfigError(f"a resampler must be asked without parameters, got {sorted(params)[0]!r}. Drop it.")

    def weighed() -> Answer:
        columns = flavor.columns_of(weigher.score_frame(frame))
        return body_of(columns), len(frame), 0, []

    return Asked(weighed)


def example_records(served: Served) -> list[dict[str, Any]]:
    """Return rows that a model must be able to answer for, as JSON has them."""
    if isinstance(served, Detector):
        return golden_records(served)
    records = golden_records(served.detector)
    if not served.needs_labels:
        return records
    label = str(served.label_column)
    labels = weigher_flavor.example(served)[label].tolist()
    return [{**record, label: labels[i % len(labels)]} for i, record in enumerate(records)]
