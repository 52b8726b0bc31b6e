"""Two processes train the model that one process trains."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from anomaly_vae import ImageConfig, TrainConfig, fit_detector
from anomaly_vae.cli.detect import train
from anomaly_vae.data.images import ImageSchema
from anomaly_vae.data.schema import Schema
from anomaly_vae.errors import ConfigError, TrainingError
from anomaly_vae.estimator import Elsewhere, Fit, untrained
from anomaly_vae.models.family import Model
from anomaly_vae.models.team import Team
from anomaly_vae.options import Config
from anomaly_vae.serving.distributed import read_result, take_part, write_job
from anomaly_vae.training import Epoch, Optimiser, fit, optimised
from tests.conftest import digit_images, mixed_frame

SMALL = {"steps": 60, "batch_size": 33, "latent": 2, "device": "cpu", "calibration_k": (1, 4), "k": 4}


@pytest.fixture(scope="module")
def two() -> Iterator[Executor]:
    """Two processes, each of which is busy while it waits for the other."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield pool


def by(pool: Executor, folder: Path) -> Elsewhere:
    """A team of two, which meets by a file: a new one each time, for who leaves last removes it, at any time."""

    def of(schema: Schema | ImageSchema) -> Optimiser:
        def optimise(model: Model, x: torch.Tensor, **given: Any) -> tuple[list[Epoch], torch.Tensor | None]:
            wanted = {name: given[name] for name in ("validation", "config", "weights")}
            folder.mkdir(exist_ok=True)
            write_job(folder, schema, model, x, **wanted)
            meeting, kept = f"file://{folder}/{uuid4().hex}", given["checkpoint"] and str(given["checkpoint"])
            parts = [
                pool.submit(take_part, str(folder), meeting, rank=rank, size=2, checkpoint=kept) for rank in range(2)
            ]
            for part in parts:
                part.result(timeout=600)  # they import torch first, which takes minutes on a busy machine
            return read_result(folder, model)

        return optimise

    return of


def assert_alike(one: Fit, other: Fit, tolerance: float) -> None:
    assert [epoch.step for epoch in one.history] == [epoch.step for epoch in other.history]
    for name in ("loss", "elbo", "kl", "reconstruction", "validation_elbo"):
        pairs = ([getattr(epoch, name) for epoch in fit.history] for fit in (one, other))
        np.testing.assert_allclose(*pairs, rtol=tolerance, atol=tolerance, err_msg=name)
    theirs = other.detector.model.state_dict()
    for name, value in one.detector.model.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=10 * tolerance, atol=10 * tolerance, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": {"city": "ignored", "member": "ignored", "visits": "ignored"}},  # the written-out gradient
        {"prior": "aggregated_posterior", "objective": "iwae", "train_k": 2},
    ],
)
@pytest.mark.whole
def test_two_processes_train_the_model_of_one(changes: dict[str, object], tmp_path: Path, two: Executor) -> None:
    """The batch is odd, so that the parts differ in size; rows have weights, so that parts differ in mass."""
    config, frame = TrainConfig(**SMALL, hidden=(16,), companions=(2,), **changes), mixed_frame(300)
    weights = np.where(np.arange(300) % 7 == 0, 5.0, 1.0)
    alone = fit_detector(frame, config, sample_weight=weights)
    together = fit_detector(frame, config, sample_weight=weights, elsewhere=by(two, tmp_path))
    assert_alike(together, alone, 2e-4)
    scores = (fitted.detector.score_frame(frame)["anomaly_score"] for fitted in (together, alone))
    np.testing.assert_allclose(*scores, rtol=1e-3, atol=1e-3)
    other = fit_detector(frame, TrainConfig(**SMALL | {"seed": 1}, hidden=(16,), companions=(2,), **changes))
    with pytest.raises(AssertionError):  # it is no tolerance that any two trainings would meet
        assert_alike(together, other, 2e-2)


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.TrainingWarning")  # too short for more than plain pixels
def test_images_train_together(tmp_path: Path, two: Executor) -> None:
    config = ImageConfig(**SMALL | {"steps": 25}, channels=4, mixed_precision=False)
    images = digit_images()[0][:200]
    alone = fit_detector(images, config)
    together = fit_detector(images, config, elsewhere=by(two, tmp_path))
    assert_alike(together, alone, 1e-3)


def test_a_team_goes_on_from_its_checkpoint(tmp_path: Path, two: Executor) -> None:
    """The first epoch is always kept; both processes begin the second run with it."""
    config, frame = TrainConfig(**SMALL, hidden=(16,), companions=()), mixed_frame(300)
    checkpoint = tmp_path / "run.safetensors"
    whole = fit_detector(frame, config, elsewhere=by(two, tmp_path / "one"), checkpoint=checkpoint)
    seconds = whole.history[0].seconds
    resumed = fit_detector(frame, config, elsewhere=by(two, tmp_path / "other"), checkpoint=checkpoint)
    assert len(resumed.history) == 3
    assert resumed.history[0].seconds == seconds  # read, not made again
    assert [epoch.validation_elbo for epoch in resumed.history] == [epoch.validation_elbo for epoch in whole.history]
    assert resumed.detector.digest == whole.detector.digest


def test_the_cluster_s_options_need_the_engine() -> None:
    for option in (["--processes", "2"], ["--master", "spark://host:7077"]):
        done = CliRunner().invoke(train, ["pumps.csv", "--name", "pumps", *option])
        assert f"{option[0]} must go with --engine spark, got --engine local." in str(done.exception)


def test_every_row_of_a_batch_is_one_process_s() -> None:
    for size in (1, 2, 3, 7):
        for batch in (7, 8, 33, 256):
            rows = [row for rank in range(size) for row in range(batch)[Team(rank, size).rows_of(batch)]]
            assert rows == list(range(batch))
            parts = [len(range(batch)[Team(rank, size).rows_of(batch)]) for rank in range(size)]
            assert max(parts) - min(parts) <= 1


def test_a_batch_smaller_than_the_team_is_refused() -> None:
    x = torch.zeros(50, 1)
    with pytest.raises(ConfigError, match=r"a batch must have a row for each of 4 processes, got 3\. Raise batch_size"):
        optimised(small_model(), x, validation=x, config=TrainConfig(**SMALL | {"batch_size": 3}), team=Team(0, 4))


def test_a_folder_that_is_not_shared_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"result.safetensors must be in the folder that all processes"):
        read_result(tmp_path, small_model())


def test_whatever_takes_the_steps_the_model_gets_its_companions() -> None:
    """An optimiser of another place leaves the rest of the training to this process."""
    model, x = small_model(TrainConfig(**SMALL, hidden=(8,), companions=(2,))), torch.randn(40, 1)
    epoch = Epoch(
        epoch=1, step=1, loss=1.0, elbo=-1.0, kl=0.1, reconstruction=-0.9, validation_elbo=-1.0, active_units=1,
        beta=1.0, seconds=0.0,
    )  # fmt: skip
    asked = []

    def take(model, x, *, validation, config, weights, checkpoint, on_epoch, progress):
        """As a cluster's: it is told everything."""
        asked.append((model, config.beta))
        return [epoch], None

    history = fit(model, x, validation=x[:0], config=TrainConfig(**SMALL, companions=(2,)), optimise=take)
    assert history == [epoch]
    assert asked == [(model, 1.0), (model.second, 0.5)]
    assert len(model.companions) == 2
    assert not model.training


def small_model(config: Config | None = None) -> Model:
    schema = Schema.fit(mixed_frame(50)[["height"]])
    return untrained(schema, config or TrainConfig(**SMALL, hidden=(8,)))
