"""Training by several processes, on one machine or many: what they are given and what they give back, as files.

A folder holds a job: settings, schema, rows and first weights. Each process that a launcher starts (Spark's
TorchDistributor, see `spark`; torchrun; a test) calls `take_part` with it. The first one writes the result.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.images import ImageSchema
from ..data.schema import Schema
from ..errors import AnomalyVaeError, TrainingError
from ..estimator import untrained
from ..models.family import Model
from ..models.team import Team
from ..options import Config, ImageConfig, TrainConfig
from ..training import Epoch, optimised

JOB, RESULT, FAILED = "job.safetensors", "result.safetensors", "failed.txt"


def write_job(
    folder: Path,
    schema: Schema | ImageSchema,
    model: Model,
    x: Tensor,
    *,
    validation: Tensor,
    config: Config,
    weights: Tensor | None = None,
) -> None:
    """Write a job for the processes of a team.

    Args:
        folder: Where; all processes must see it under the same path.
        schema: What the rows are of.
        model: The model, with its first weights.
        x: Training rows, encoded, (n, m).
        validation: Rows that decide when to stop, (v, m).
        config: Settings.
        weights: Weight of each training row, (n,).
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {"x": x, "validation": validation} | ({} if weights is None else {"weights": weights})
    facts = {"config": json.dumps(config.to_dict()), "schema": json.dumps(schema.to_dict())}
    _write(folder / JOB, tensors, facts)


def take_part(
    folder: str, meeting: str = "env://", *, rank: int = -1, size: int = -1, checkpoint: str | None = None
) -> None:
    """Train as one process of a team; the first writes the result.

    Args:
        folder: With the job.
        meeting: See `Team.joined`, also for the others.
        rank: This process's number.
        size: Processes in the team.
        checkpoint: See `training.optimised`.
    """
    tensors, facts = _read(Path(folder) / JOB)
    described, settings = json.loads(facts["schema"]), json.loads(facts["config"])
    schema: Schema | ImageSchema
    config: Config
    if described.get("kind") == ImageSchema.kind:
        schema, config = ImageSchema.from_dict(described), ImageConfig.from_mapping(settings)
    else:
        schema, config = Schema.from_dict(described), TrainConfig.from_mapping(settings)
    with torch.random.fork_rng(devices=[]):
        model = untrained(schema, config)
    model.load_state_dict(_named("model.", tensors))
    try:
        with Team.joined(meeting, rank=rank, size=size) as team:
            history, weights = optimised(
                model, tensors["x"], validation=tensors["validation"], config=config, weights=tensors.get("weights"),
                checkpoint=None if checkpoint is None else Path(checkpoint), team=team,
            )  # fmt: skip
    except AnomalyVaeError as error:
        (Path(folder) / FAILED).write_text(str(error), "utf-8")  # a launcher buries it in its own words
        raise
    if team.rank == 0:
        found = {f"model.{name}": value for name, value in model.state_dict().items()}
        found |= {} if weights is None else {"weights": weights}
        _write(Path(folder) / RESULT, found, {"history": json.dumps([asdict(epoch) for epoch in history])})


def read_result(folder: Path, model: Model) -> tuple[list[Epoch], Tensor | None]:
    """Give a model the weights that a team has found; return the epochs and the rows' weights, see `optimised`.

    Raises:
        TrainingError: There is no result.
    """
    tensors, facts = _read(folder / RESULT)
    model.load_state_dict(_named("model.", tensors))
    return [Epoch(**epoch) for epoch in json.loads(facts["history"])], tensors.get("weights")


def failure(folder: Path) -> TrainingError | None:
    """Return what a process of the team has said before it gave up, if it has."""
    path = folder / FAILED
    return TrainingError(path.read_text("utf-8")) if path.exists() else None


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _write(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    aside = path.with_suffix(".partial")
    save_file({name: value.detach().cpu().clone() for name, value in tensors.items()}, aside, metadata=facts)
    aside.replace(path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TrainingError(
            f"{path.name} must be in the folder that all processes of a training share, got an error: {error}. Name "
            "a folder that every machine sees under the same path."
        ) from error
