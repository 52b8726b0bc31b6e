"""A detector as files: JSON and safetensors, checked on the way back in.

================  ==========================================================================================
config.json       format version, package version, settings, schema, digests of the other files
model.safetensors weights, calibration scores, noise, what missing cells are charged or how statistics are distributed,
                  counts of the training rows' cells in bins
golden.json       rows drawn from the model, with their scores; images as PNG in base64
================  ==========================================================================================

Nothing in it is executable and no training row is in it. Format version 6; version 5, without a weight of
marginals, version 4, without a second autoencoder, version 3, without counts of the training rows, version 2, of tables
alone, and version 1, without companions, are read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file as map_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..data.images import ImageSchema
from ..data.profile import Profile
from ..data.schema import Schema
from ..errors import AnomalyVaeError, ArtifactError, OutputExistsError
from ..models.conv import ImageVAE
from ..models.family import Model, image_model
from ..models.mixture import ClassMixture
from ..models.subspace import FEATURES, SubspaceMixture
from ..models.vae import VAE
from ..options import Config, ImageConfig, TrainConfig
from .attribution import plain
from .complexity import COMPRESSOR
from .statistics import StatisticsDensity

if TYPE_CHECKING:
    from .detector import Detector

FORMAT_VERSION = 7
GOLDEN_ROWS = 8
MOST_GOLDEN_ROWS = 1024
LARGEST_JSON = 64 << 20
LATER_SETTINGS: dict[str, Any] = {
    "charge_missing": False,
    "companions": [],
    "class_power": 1.0,
    "marginal_weight": 0.0,
    "second_beta": 0.0,
    "score_beta": 1.0,
    "autoencoder_share": 2 / 3,
    "precision": "float32",
    "counts": "rounded_log_normal",
    "split_by": None,
    "group_by": None,
}
"""Settings that files of format 1 lack, with the values that describe them; so set, they are not in a digest."""
LATER_IMAGE_SETTINGS: dict[str, Any] = {"condition": None, "split_by": None, "group_by": None}
"""The same of images, where files of format 4 may lack them."""
DAMAGES = (
    *(AnomalyVaeError, SafetensorError, KeyError, IndexError, TypeError, ValueError, AttributeError),
    *(OverflowError, MemoryError, RuntimeError),  # of which deep nesting is one
)
"""What reading damaged files raises."""
CONFIG, TENSORS, GOLDEN = "config.json", "model.safetensors", "golden.json"


@dataclass(frozen=True)
class Loaded:
    """What the files hold."""

    schema: Schema | ImageSchema
    model: Model
    config: Config
    calibration: dict[int, NDArray[np.float64]]
    groups: dict[str, dict[int, NDArray[np.float64]]]
    noise: Tensor
    missing_cost: Tensor | None
    statistics: StatisticsDensity | None
    profile: Profile | None
    golden: dict[str, Any]


def digest_of(detector: Detector) -> str:
    """Return the SHA-256 of settings, schema and tensors."""
    return _digest(detector.config.to_dict(), detector.schema.to_dict(), _tensor_bytes(detector))


def _digest(config: dict[str, Any], schema: dict[str, Any], tensors: bytes) -> str:
    config = {k: v for k, v in config.items() if (k, v) not in (LATER_SETTINGS | LATER_IMAGE_SETTINGS).items()}
    described = json.dumps([config, schema], sort_keys=True).encode()
    return hashlib.sha256(described + hashlib.sha256(tensors).digest()).hexdigest()


def _tensor_bytes(detector: Detector) -> bytes:
    tensors = {f"model.{name}": value.contiguous() for name, value in detector.model.state_dict().items()}
    tensors |= {f"calibration.{k}": torch.from_numpy(v) for k, v in sorted(detector.calibration.scores.items())}
    for group, scores in sorted(detector.calibration.groups.items()):
        tensors |= {f"group.{group}.{k}": torch.from_numpy(v) for k, v in sorted(scores.items())}
    tensors["noise"] = detector.noise
    if detector.missing_cost is not None:
        tensors["missing_cost"] = detector.missing_cost
    if detector.statistics is not None:
        tensors |= {f"statistics.{k}": torch.from_numpy(v) for k, v in vars(detector.statistics).items()}
    if detector.profile is not None:
        arrays = detector.profile.to_arrays()
        tensors |= {f"profile.{k}": torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}
    return save_tensors(tensors)


def save(detector: Detector, folder: Path) -> None:
    """Write a detector into a new folder, whole or not at all.

    Raises:
        OutputExistsError: The folder exists and is not empty.
    """
    from .. import __version__

    tensors = _tensor_bytes(detector)
    records = golden_records(detector)
    scores = detector.log_likelihood(
        frame_of(records, detector.schema), k=detector.config.k, kind=detector.config.score_kind
    )
    golden = json.dumps(
        {"k": detector.config.k, "rows": records, "scores": scores.value.tolist()}, allow_nan=False
    ).encode()
    config = {
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "digest": detector.digest,
        "sha256": {TENSORS: hashlib.sha256(tensors).hexdigest(), GOLDEN: hashlib.sha256(golden).hexdigest()},
        "config": detector.config.to_dict(),
        "schema": detector.schema.to_dict(),
    }
    if detector.statistics is not None:
        config["compressor"] = COMPRESSOR
    files = {TENSORS: tensors, GOLDEN: golden, CONFIG: json.dumps(config, indent=1, allow_nan=False).encode()}
    write_files(folder, files)


def write_files(folder: Path, files: Mapping[str, bytes], *, inside: Callable[[Path], None] | None = None) -> None:
    """Write files into a new folder, whole or not at all.

    Args:
        folder: Where; it does not exist yet, or is empty.
        files: Content by name.
        inside: Called with the folder before it appears under its name, to put more into it.

    Raises:
        OutputExistsError: The folder exists and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OutputExistsError(f"the folder must be new or empty, got {str(folder)!r}. Choose another or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, content in files.items():
            (aside / name).write_bytes(content)
        if inside is not None:
            inside(aside)
        aside.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(aside, folder)  # noqa: PTH105 - Path.replace says the same; this is the atomic step
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def load(folder: Path, *, shared: bool = False) -> Loaded:
    """Read and check the files of a detector.

    Args:
        folder: The detector's.
        shared: Map the weights into memory instead of reading them, so that processes on a machine hold them once. The
            file must then stay as it is for as long as the detector is used.

    Raises:
        ArtifactError: A file is absent, damaged or altered, or the format is newer than this version reads.
    """
    facts = read_json(folder, CONFIG)
    version = facts.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise ArtifactError(f"{CONFIG} must state a format version, got {version!r}. The file is not a detector's.")
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"the model must be of format {FORMAT_VERSION} or older, got format {version}, written by anomaly-vae "
            f"{facts.get('package_version')}. Upgrade anomaly-vae to read it.",
            version=version,
        )
    tensors = read_file(folder, TENSORS)
    golden = read_file(folder, GOLDEN, most=LARGEST_JSON)
    try:
        for name, content in ((TENSORS, tensors), (GOLDEN, golden)):
            if hashlib.sha256(content).hexdigest() != facts["sha256"][name]:
                raise altered(name, "its digest differs from the one in config.json")
        if _digest(facts["config"], facts["schema"], tensors) != facts["digest"]:
            raise altered(CONFIG, "its settings or schema were changed after saving")
        arrays = map_tensors(folder / TENSORS) if shared else load_tensors(tensors)
        del tensors
        weights = _named("model.", arrays)
        schema, config, model = (
            _of_images(facts, weights)
            if facts["schema"].get("kind") == ImageSchema.kind
            else _of_a_table(facts, weights)
        )
        model.load_state_dict(weights, assign=shared)
        density = _named("statistics.", arrays)
        statistics = StatisticsDensity(**{k: v.numpy() for k, v in density.items()}) if density else None
        calibration = {int(k.split(".")[1]): v.numpy() for k, v in arrays.items() if k.startswith("calibration.")}
        groups: dict[str, dict[int, NDArray[np.float64]]] = {}
        for name, value in _named("group.", arrays).items():
            group, k = name.rsplit(".", 1)
            groups.setdefault(group, {})[int(k)] = value.numpy()
        counted = {k: v.numpy() for k, v in _named("profile.", arrays).items()}
        profile = Profile.from_arrays(schema.modelled, counted) if isinstance(schema, Schema) and counted else None
        noise = arrays["noise"]
        parsed = _golden(golden, config, noise)
    except ArtifactError:
        raise
    except DAMAGES as error:
        raise damaged(error) from error
    model.eval().requires_grad_(False)
    costs = arrays.get("missing_cost")
    return Loaded(schema, model, config, calibration, groups, noise, costs, statistics, profile, parsed)


def _named(prefix: str, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _of_a_table(facts: dict[str, Any], weights: dict[str, Tensor]) -> tuple[Schema, TrainConfig, VAE]:
    config = TrainConfig.from_mapping({**LATER_SETTINGS, **facts["config"]})
    schema = Schema.from_dict(facts["schema"])
    categories = sum(len(c.categories) for c in schema.modelled if c.kind in ("binary", "categorical"))
    widths = (len(schema.modelled) + categories, *config.hidden, 2 * (config.latent or 1))
    _refuse_giants(sum(a * b for a, b in pairwise(widths)), weights)
    with torch.random.fork_rng(devices=[]):
        model = VAE(schema.modelled, config)
        if second := _named("second.", weights):
            _refuse_giants(sum(p.numel() for p in model.parameters()), second)
            model.second = VAE(schema.modelled, config)
    model.companions = _companions(schema, weights)
    return schema, config, model


def _of_images(facts: dict[str, Any], weights: dict[str, Tensor]) -> tuple[ImageSchema, ImageConfig, ImageVAE]:
    if facts.get("compressor", COMPRESSOR) != COMPRESSOR:
        raise ArtifactError(
            f"the model must be used with the compressor it was trained with, {facts['compressor']}, got {COMPRESSOR}: "
            "compressed lengths are part of its score. Train again, or restore that environment."
        )
    config = ImageConfig.from_mapping({**LATER_IMAGE_SETTINGS, **facts["config"]})
    schema = ImageSchema.from_dict(facts["schema"])
    if (config.condition is None) is not (schema.classes is None):
        raise altered(CONFIG, "its settings and its schema differ in whether the model is told classes")
    _refuse_giants(config.blocks * config.channels**2 + config.latent, weights)
    with torch.random.fork_rng(devices=[]):
        model = image_model(schema.shape, config, len(schema.classes.names) if schema.classes else 0)
    for name in FEATURES:
        if (first := f"companions.{name}.directions") in weights:
            classes = len(weights[f"companions.{name}.log_weights"])
            model.companions[name] = SubspaceMixture(weights[first].shape[0], weights[first].shape[1], classes)
    return schema, config, model


def _refuse_giants(parameters: int, weights: dict[str, Tensor]) -> None:
    """Refuse settings of a larger network than the tensors are: it would fill the memory before that shows.

    Args:
        parameters: The least that a network of these settings has.
        weights: Those in the file.
    """
    held = sum(tensor.numel() for tensor in weights.values())
    if parameters > held:
        raise altered(CONFIG, f"its settings are of at least {parameters:,} parameters, and {held:,} are there")


def _golden(content: bytes, config: Config, noise: Tensor) -> dict[str, Any]:
    """Return the golden rows; what scoring them costs is bounded by what the tensors hold."""
    golden = json.loads(content)
    k, rows, scores = golden["k"], golden["rows"], golden["scores"]
    if k != config.k or not 1 <= config.k <= len(noise) or noise.ndim != 2:
        raise altered(GOLDEN, f"it asks for {k!r} posterior samples")
    if not isinstance(rows, list) or not 1 <= len(rows) == len(scores) <= MOST_GOLDEN_ROWS:
        raise altered(GOLDEN, f"it must have from 1 to {MOST_GOLDEN_ROWS} rows, each with its score")
    return {"k": k, "rows": rows, "scores": scores}


def golden_records(detector: Detector) -> list[dict[str, Any]]:
    """Return rows drawn from the model as JSON has them; images as PNG in base64."""
    rows = detector.sample(GOLDEN_ROWS, seed=detector.config.seed)
    if isinstance(detector.schema, ImageSchema):
        rows[detector.schema.column] = [base64.b64encode(png).decode() for png in rows[detector.schema.column]]
        return [{str(name): cell for name, cell in row.items()} for row in rows.to_dict("records")]
    return [{name: plain(cell) for name, cell in row.items()} for row in rows.to_dict("records")]


def _companions(schema: Schema, weights: dict[str, Tensor]) -> torch.nn.ModuleList:
    """Make the companions that the weights are of."""
    made = torch.nn.ModuleList()
    while (name := f"companions.{len(made)}") + ".log_weights" in weights:
        classes, bent = len(weights[f"{name}.log_weights"]), f"{name}.bend.constants" in weights
        joint = sum(column.kind == "continuous" for column in schema.modelled)
        _refuse_giants(classes * joint**2, _named(f"{name}.covariances", weights))
        made.append(ClassMixture(schema.modelled, classes, bent=bent))
    return made


def check_golden(detector: Detector, golden: dict[str, Any]) -> None:
    """Score the golden rows and compare.

    Raises:
        ArtifactError: A score differs by more than 1e-5 * max(1, |score|), or the rows cannot be scored.
    """
    try:
        frame = frame_of(golden["rows"], detector.schema)
        got = detector.log_likelihood(frame, k=golden["k"], kind=detector.config.score_kind).value
        wanted = np.asarray(golden["scores"], dtype=np.float64)
        worst = float(np.max(np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted))))
    except DAMAGES as error:
        raise damaged(error) from error
    if not worst <= 1e-5:
        raise ArtifactError(
            f"the model must score its golden rows as when it was saved, got a relative difference of {worst:.1e}. The "
            "artifact or the numerical libraries changed; train again or restore the environment.",
            difference=worst,
        )


def frame_of(records: list[dict[str, Any]], schema: Schema | ImageSchema) -> pd.DataFrame:
    """Return JSON rows as a table of the schema's dtypes."""
    frame = pd.DataFrame(records, columns=list(schema.names))
    if isinstance(schema, ImageSchema):
        return frame
    for column in schema.modelled:
        if column.dtype == "datetime64[ns]":
            frame[column.name] = pd.to_datetime(frame[column.name])
    return frame


def damaged(error: Exception) -> ArtifactError:
    """Return the error that says that reading an artifact raised this one."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ArtifactError(f"the model must be as it was saved, got an error reading it: {reason}. Restore it.")


def altered(name: str, why: str) -> ArtifactError:
    """Return the error that says that a file is not as it was saved, and why."""
    return ArtifactError(f"{name} must be as it was saved, got a changed file: {why}. Restore the artifact.", file=name)


def read_file(folder: Path, name: str, *, most: int | None = None, whose: str = "detector") -> bytes:
    """Return the content of a file of an artifact.

    Args:
        folder: The artifact.
        name: The file's name.
        most: Bytes that it may have.
        whose: What the artifact is of, for messages.

    Raises:
        ArtifactError: The file is absent, a link that leads elsewhere, or too large.
    """
    path = folder / name
    if not path.is_file():
        raise ArtifactError(
            f"a {whose} must have the file {name}, got none in {str(folder)!r}. Check the path.", file=name
        )
    if path.resolve().parent != folder.resolve():
        raise ArtifactError(
            f"{name} must be a file of the {whose}'s own folder, got a link that leads out of it. Copy the file.",
            file=name,
        )
    if most is not None and (size := path.stat().st_size) > most:
        raise ArtifactError(
            f"{name} must be under {most >> 20} MiB, got {size >> 20} MiB. The file is not a {whose}'s.", file=name
        )
    return path.read_bytes()


def read_json(folder: Path, name: str, *, whose: str = "detector") -> dict[str, Any]:
    """Return a JSON object from a file of an artifact; see `read_file`."""
    content = read_file(folder, name, most=LARGEST_JSON, whose=whose)
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{name} must be JSON, got a damaged file ({error}). Restore the artifact.", file=name
        ) from error
    if not isinstance(facts, dict):
        raise ArtifactError(
            f"{name} must be a JSON object, got {type(facts).__name__}. Restore the artifact.", file=name
        )
    return facts
