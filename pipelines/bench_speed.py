"""Speed beside PyOD's VAE and in reduced precision: the parts of `bench.py speed` that need a labelled table.

Every pair of figures is measured in one run, in turns, and the shortest of several times is taken, so that a busy
machine slows both sides alike. What needs PyOD is left out, and said so, where PyOD is not installed.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from labelled import find_tables
from numpy.typing import NDArray
from sheet import Sheet
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_vae import Detector, TrainConfig, fit_detector, training
from anomaly_vae.data.schema import Schema
from anomaly_vae.detection.scores import score_rows
from anomaly_vae.errors import TrainingWarning
from anomaly_vae.models.vae import VAE

PYOD_SIZES: dict[str, Any] = {"hidden": (128, 64, 32), "latent": 2, "batch_size": 32}
"""Layers and batch of PyOD's VAE at its defaults."""
EPOCHS = 30
"""Epochs of PyOD's VAE at its defaults."""
BUDGETS = (250, 500, 1000, 2000, 4000, 8000)
TRAIN_ROWS = 25_000
SAMPLES = 64
FEWEST_ROWS = 32_768
"""Of which rates are taken at least."""
ABSENT = "Left out, since PyOD is not installed: training and scoring beside PyOD's VAE, time to its quality."


@dataclass(frozen=True)
class Split:
    """Normal rows to train on (n, m), and rows to test on with their labels, True = anomaly."""

    name: str
    train: NDArray[np.float64]
    test: NDArray[np.float64]
    anomalous: NDArray[np.bool_]


def pyod_is_there() -> bool:
    """Return whether PyOD can be imported."""
    return importlib.util.find_spec("pyod") is not None


def made_up(rows: int, columns: int = 9) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return rows near a curved surface, a twentieth of them anomalous: their columns are drawn from different rows."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(rows, 3))
    x = np.tanh(z @ rng.normal(size=(3, columns))) + 0.1 * rng.normal(size=(rows, columns))
    anomalous = rng.random(rows) < 0.05
    shuffled = np.stack([rng.permutation(column) for column in x.T], 1)
    return np.where(anomalous[:, None], shuffled, x), anomalous


def split(table: Path | None, rows: int) -> Split:
    """Return at most so many normal rows of a labelled table to train on; the rest of the normal and all anomalies."""
    if table is None:
        name, (x, y) = "made-up table", made_up(2 * rows)
    else:
        name, (x, y) = table.stem, find_tables(table.parent, [table.stem])[0].load()
    normal = np.random.default_rng(0).permutation(np.flatnonzero(~y))
    train = normal[: min(rows, len(normal) // 2)]
    test = np.setdiff1d(np.arange(len(x)), train)
    return Split(f"{name}, {len(train):,} x {x.shape[1]}", x[train], x[test], y[test])


def in_turns(calls: Mapping[str, Callable[[], float]], *, repeats: int) -> dict[str, float]:
    """Return the shortest of the seconds that each call reports, called in turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            found[name].append(call())
    return {name: min(seconds) for name, seconds in found.items()}


def timed(call: Callable[[], object]) -> float:
    """Return the wall time of a call, seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def pyod_vae(epochs: int) -> Any:
    """Return PyOD's VAE at its defaults, which notes the seconds that its training loop took as `training_seconds`."""
    base: Any = importlib.import_module("pyod.models.vae").VAE

    class Timed(base):
        def train(self, train_loader: Any) -> None:
            self.training_seconds = timed(partial(super().train, train_loader))

    return Timed(epoch_num=epochs, verbose=0, device=torch.device("cpu"))


def training_seconds(x: NDArray[np.float64], config: TrainConfig) -> float:
    """Return the seconds of training alone, looks at validation rows included."""
    frame = pd.DataFrame(x).add_prefix("x")
    schema = Schema.fit(frame, kinds=dict.fromkeys(frame, "continuous"))
    encoded = torch.from_numpy(schema.encode(frame))
    with torch.random.fork_rng(devices=[]):
        model = VAE(schema.modelled, config)
    held = len(encoded) // 10
    return training.fit(model, encoded, validation=encoded[:held], config=config)[-1].seconds


def passes(x: NDArray[np.float64], **change: Any) -> TrainConfig:
    """Return the settings of one pass over the rows."""
    config = TrainConfig(device="cpu", patience=10**6, **change)
    return dataclasses.replace(config, steps=-(-len(x) // config.batch_size))


def quietly(call: Callable[[], Any]) -> Any:
    """Call without the warnings of models that are trained too briefly, and of libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return call()


def beside_pyod(data: Split, *, repeats: int) -> Sheet:
    """Rows per second of training and of scoring, ours and PyOD's VAE's."""
    sheet = Sheet(
        f"Beside PyOD's VAE: {data.name}, {torch.get_num_threads()} threads", ("job", "ours", "PyOD", "times PyOD's")
    )
    sizes = ", ".join(map(str, PYOD_SIZES["hidden"]))

    def theirs() -> float:
        model = pyod_vae(1)
        model.fit(data.train)
        return float(model.training_seconds)

    ours = {name: partial(training_seconds, data.train, passes(data.train, **change))
            for name, change in (("sizes", PYOD_SIZES), ("defaults", {}))}  # fmt: skip
    seconds = quietly(lambda: in_turns({**ours, "pyod": theirs}, repeats=repeats))
    rate = {name: len(data.train) / s for name, s in seconds.items()}
    for name, label in (
        ("sizes", f"train, rows/s, its sizes ({sizes}, batch 32)"),
        ("defaults", "train, rows/s, ours"),
    ):
        sheet.rows.append(_row(label, rate[name], rate["pyod"]))
    model = pyod_vae(1)
    quietly(lambda: model.fit(data.train))
    config = TrainConfig(device="cpu", steps=200, hidden=PYOD_SIZES["hidden"], latent=PYOD_SIZES["latent"])
    test = pd.DataFrame(data.test).add_prefix("x")
    small, usual = (
        quietly(partial(fit_detector, pd.DataFrame(data.train).add_prefix("x"), c)).detector
        for c in (config, TrainConfig(device="cpu", steps=200))
    )
    calls: dict[str, Callable[[], float]] = {"pyod": lambda: timed(partial(model.decision_function, data.test))}
    for k in (1, 16):
        for name, detector in (("its layers", small), ("ours", usual)):
            score = partial(detector.log_likelihood, test, k=k, kind="elbo")
            calls[f"ELBO of {k} samples, rows/s, {name}"] = partial(timed, score)
    seconds = in_turns(calls, repeats=repeats)
    for name in list(calls)[1:]:
        sheet.rows.append(_row(name, len(test) / seconds[name], len(test) / seconds["pyod"]))
    sheet.notes.append("Scores go from table to scores. Training is the loop alone: one pass over the rows.")
    return sheet


def _row(label: str, ours: float, theirs: float) -> tuple[str, ...]:
    return label, f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.1f}"


def time_to_quality(data: Split) -> Sheet:
    """Seconds to the detection quality of PyOD's VAE at its defaults, by our defaults with more and more steps."""
    sheet = Sheet(f"Time to PyOD's quality: {data.name}", ("detector", "seconds", "AUROC", "average precision"))
    model = pyod_vae(EPOCHS)
    seconds = quietly(lambda: timed(partial(model.fit, data.train)))
    goal = _quality(data.anomalous, model.decision_function(data.test))
    sheet.rows.append((f"PyOD's VAE, {EPOCHS} epochs", f"{seconds:.1f}", *(f"{v:.4f}" for v in goal)))
    train, test = (pd.DataFrame(x).add_prefix("x") for x in (data.train, data.test))
    for steps in BUDGETS:
        start = time.perf_counter()
        config = TrainConfig(device="cpu", steps=steps)
        detector = quietly(partial(fit_detector, train, config)).detector
        seconds = time.perf_counter() - start
        reached = _quality(data.anomalous, detector.log_likelihood(test, k=16, kind=detector.config.score_kind).value)
        sheet.rows.append((f"ours, {steps:,} steps", f"{seconds:.1f}", *(f"{v:.4f}" for v in reached)))
        if all(mine >= theirs for mine, theirs in zip(reached, goal, strict=True)):
            break
    else:
        sheet.notes.append("Not reached within the largest budget.")
    sheet.notes.append(
        "Seconds from a table to a detector, calibration included, on normal rows; scores of held-out rows."
    )
    return sheet


def _quality(anomalous: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[float, float]:
    return float(roc_auc_score(anomalous, scores)), float(average_precision_score(anomalous, scores))


def in_bf16(detector: Detector) -> VAE:
    """Return the detector's model with the decoder's hidden layers in bfloat16."""
    model = copy.deepcopy(detector.model)
    assert isinstance(model, VAE)
    model.precision = "bf16"
    return model


def precision(wide: Detector, frame: pd.DataFrame, data: Split, *, repeats: int) -> Sheet:
    """What bfloat16 gains in speed and loses in accuracy, at k = 64.

    Args:
        wide: Detector whose speed is measured.
        frame: Rows that it scores.
        data: Table on which the accuracy is measured.
        repeats: Times of which the shortest is taken.
    """
    sheet = Sheet(f"bfloat16 beside float32, k = {SAMPLES}", ("measure", "float32", "bf16", "bf16 to float32"))
    x, noise = wide.encode(frame), wide._noise(SAMPLES)
    models = {"float32": wide.model, "bf16": in_bf16(wide)}
    for kind in ("elbo", "likelihood"):
        seconds = in_turns(
            {name: partial(timed, partial(score_rows, m, x, noise=noise, kind=kind)) for name, m in models.items()},
            repeats=repeats,
        )
        rate = {name: len(x) / s for name, s in seconds.items()}
        times = f"{rate['bf16'] / rate['float32']:.2f} times"
        sheet.rows.append((f"{kind}: rows/s", f"{rate['float32']:,.0f}", f"{rate['bf16']:,.0f}", times))
    train = pd.DataFrame(data.train).add_prefix("x")
    detector = quietly(partial(fit_detector, train, TrainConfig(device="cpu", steps=1000))).detector
    x, noise = detector.encode(pd.DataFrame(data.test).add_prefix("x")), detector._noise(SAMPLES)
    for kind in ("elbo", "likelihood"):
        full, half = (score_rows(m, x, noise=noise, kind=kind).value for m in (detector.model, in_bf16(detector)))
        area = [_quality(data.anomalous, s)[0] for s in (full, half)]
        difference = np.quantile(np.abs(full - half), 0.99)
        sheet.rows.append((f"{kind}: error at the 99th percentile, nats", "", "", f"{difference:.4f}"))
        sheet.rows.append((f"{kind}: AUROC", f"{area[0]:.5f}", f"{area[1]:.5f}", f"{area[1] - area[0]:+.5f}"))
    sheet.notes.append(f"Speed of {len(frame):,} rows of {wide.model.columns} columns; accuracy on {data.name}.")
    return sheet


def sheets(wide: Detector, frame: pd.DataFrame, table: Path | None, *, rows: int, repeats: int) -> list[Sheet]:
    """Return all of this module's sheets; those that need PyOD only where it is installed.

    Args:
        wide: Detector whose speed in reduced precision is measured.
        frame: Rows that it scores.
        table: Labelled table NAME.npz; None for a made-up one.
        rows: Rows to train on, at most.
        repeats: Times of which the shortest is taken.
    """
    data = split(table, rows)
    found = [precision(wide, frame, data, repeats=repeats)]
    if not pyod_is_there():
        found[0].notes.append(ABSENT)
        return found
    return [*found, beside_pyod(data, repeats=min(repeats, 3)), time_to_quality(data)]
