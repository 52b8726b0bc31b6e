"""What the image detector is worth: outliers from other sets and from damage, one class against the rest, its cost.

Five protocols:

ood        learn one data set's training images; tell its test images from other data sets' and from damaged ones
           (uniform noise, constant, inverted, half contrast, flipped upside down; of colour: red and blue swapped, no
           colour), and count false alarms, of PCA's residual too, calibrated on the same images
one-class  learn one class; tell its test images from all others', beside PCA's residual and PyOD's networks
alarms     shuffle training and test images together, divide them anew, and count false alarms of unseen ones: both are
           then exchangeable, as calibration supposes; by a set's own division, in `ood`, they need not be
cost       seconds an image of the default score, of one pass for the ELBO, of compression, and of likelihood regret
devices    images a second of training and scoring on the processor, and on a GPU where there is one (on request only)

Data are .npz files with x_train, x_test (n, h, w) or (n, h, w, c) of bytes and y_train, y_test; without --data those
that scikit-learn ships: its digits, or with --photographs squares of 32 x 32 pixels cut out of its two photographs,
from places of which some are for training alone, so that false alarms there are no test of the promise. Each finished
run is kept under --out, and a later call goes on from there.

Example:
    python pipelines/bench_images.py --data mnist.npz --data fashion_mnist.npz --protocol ood
"""

from __future__ import annotations

import functools
import itertools
import json
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from contenders import pca_residual, source_digest
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import betabinom
from sheet import Sheet
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import roc_auc_score

from anomaly_vae.data.images import frame_of
from anomaly_vae.detection.calibration import Calibration
from anomaly_vae.detection.complexity import compressed_nats
from anomaly_vae.detection.detector import Detector
from anomaly_vae.detection.image_scores import IMAGE_SCORES, score_images
from anomaly_vae.detection.regret import likelihood_regret
from anomaly_vae.errors import AnomalyVaeError
from anomaly_vae.estimator import Fit, fit_detector
from anomaly_vae.models.conv import ImageVAE
from anomaly_vae.options import ImageConfig

Images = NDArray[np.uint8]
Scorer = Callable[[Images], NDArray[np.float64]]
PROTOCOLS = ("ood", "one-class", "cost", "alarms", "devices")
ON_REQUEST = ("alarms", "devices")
PEERS = ("pca_residual", "pyod_deep_svdd", "pyod_autoencoder")
MOST_TESTED = 10_000
REGRET_IMAGES = 16
TIMED_STEPS, TIMED_IMAGES = 100, 2000
"""Of training and of scoring, in timing them on a device."""
SQUARE, PLACE = 32, 64
"""Pixels a side of a square cut out of a photograph, and of the places that are for training or for testing."""


@dataclass(frozen=True)
class Data:
    """A data set: images and their classes, for training and for testing."""

    name: str
    train: Images
    train_labels: NDArray[np.int64]
    test: Images
    test_labels: NDArray[np.int64]


def read(path: Path | None) -> Data:
    """Read an .npz file, or scikit-learn's digits, two thirds of them for training."""
    if path is None:
        digits = load_digits()
        x = np.round(digits.images * 255 / 16).astype(np.uint8)
        order = np.random.default_rng(0).permutation(len(x))
        first, rest = np.split(order, [len(x) * 2 // 3])
        return Data("digits", x[first], digits.target[first], x[rest], digits.target[rest])
    with np.load(path, allow_pickle=False) as file:
        absent = {"x_train", "y_train", "x_test", "y_test"} - set(file.files)
        if absent:
            raise click.UsageError(
                f"{path.name} must hold x_train, y_train, x_test and y_test, and lacks {sorted(absent)}."
            )
        return Data(path.stem, file["x_train"], file["y_train"].astype(int), file["x_test"], file["y_test"].astype(int))


def photographs(train: int = 5000, test: int = 500) -> list[Data]:
    """Return squares of each of scikit-learn's two photographs: a temple and a flower, in colour."""
    rng = np.random.default_rng(0)

    def squares(photo: Images, places: NDArray[np.int64], n: int) -> Images:
        corners = places[rng.integers(len(places), size=n)] + rng.integers(PLACE - SQUARE + 1, size=(n, 2))
        return np.stack([photo[y : y + SQUARE, x : x + SQUARE] for y, x in corners])

    found, photos = [], load_sample_images()
    for name, photo in zip(photos.filenames, photos.images, strict=True):
        grid = [range(0, size - PLACE + 1, PLACE) for size in photo.shape[:2]]
        places = rng.permutation(np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, 2))
        cut = len(places) * 7 // 10
        parts = squares(photo, places[:cut], train), squares(photo, places[cut:], test)
        labels = (np.zeros(len(part), dtype=np.int64) for part in parts)
        found.append(Data(Path(name).stem, parts[0], next(labels), parts[1], next(labels)))
    return found


def damaged(x: Images, seed: int) -> dict[str, Images]:
    """Return what no data set holds: noise and constants, and these images damaged."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, len(x), dtype=np.uint8)
    of_colour = {}
    if x.ndim == 4 and x.shape[-1] == 3:
        grey = x.mean(-1, keepdims=True).round().astype(np.uint8)
        of_colour = {"red and blue swapped": x[..., ::-1].copy(), "no colour": np.repeat(grey, 3, -1)}
    return {
        "noise": rng.integers(0, 256, x.shape, dtype=np.uint8),
        "constant": np.broadcast_to(levels.reshape(-1, *[1] * (x.ndim - 1)), x.shape).copy(),
        "inverted": 255 - x,
        "half contrast": x // 2,
        "flipped": x[:, ::-1].copy(),
        **of_colour,
    }


def ood(data: Data, others: Sequence[Data], seed: int, config: ImageConfig) -> Iterator[dict[str, Any]]:
    """Yield AUROC for each score against each kind of outlier, and the false alarms of the default score."""
    start = time.perf_counter()
    fit = fit_detector(data.train, config)
    seconds = time.perf_counter() - start
    detector = fit.detector.on(config.device)
    scorers: dict[str, Scorer] = {kind: _scorer(detector, kind) for kind in IMAGE_SCORES}
    shape = detector.model.shape
    assert isinstance(shape, tuple)
    scorers["complexity"] = lambda x: compressed_nats(detector.encode(frame_of(x)).numpy(), shape)
    scorers["pca_residual"] = pca_residual(data.train)
    tested = data.test[:MOST_TESTED]
    normal = {name: score(tested) for name, score in scorers.items()}
    outliers = {o.name: o.test[:MOST_TESTED] for o in others if o.test.shape[1:] == data.test.shape[1:]}
    for outlier, x in (outliers | damaged(tested, seed)).items():
        for name, score in scorers.items():
            yield {"detector": name, "against": outlier, "auroc": _auroc(normal[name], score(x)), "seconds": seconds}
    yield from false_alarms(fit, data.train, tested, [0.05], seconds)


def alarms(data: Data, seed: int, config: ImageConfig) -> Iterator[dict[str, Any]]:
    """Yield false-alarm rates among unseen images, where chance alone decided which images are unseen."""
    images = np.concatenate([data.train, data.test])
    order = np.random.default_rng(seed).permutation(len(images))
    train, unseen = images[order[: len(data.train)]], images[order[len(data.train) :]]
    start = time.perf_counter()
    fit = fit_detector(train, config)
    yield from false_alarms(fit, train, unseen[:MOST_TESTED], [0.01, 0.05, 0.1], time.perf_counter() - start)


def false_alarms(
    fit: Fit, train: Images, normal: Images, rates: Sequence[float], seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield the share of normal images that are flagged at each rate, and between which shares 95 % should lie.

    Beside it that of PCA's residual by the same division: where both are off, the images are not as those for training.
    """
    detector = fit.detector.on(fit.detector.config.device)
    residual = pca_residual(train[fit.split["train"]])
    beside = Calibration.of({1: residual(train[fit.split["calibration"]])})
    p_values = {
        detector.config.score_kind: detector.score_frame(frame_of(normal), alpha=max(rates))["p_value"].to_numpy(),
        "pca_residual": beside.p_values(residual(normal), k=1),
    }
    for alpha, (name, p) in itertools.product(rates, p_values.items()):
        low, high = promised(len(normal), beside.rows, alpha=alpha)
        yield {
            "detector": name, "against": f"false alarms at {alpha:g}".replace("0.", "."),
            "auroc": float((p <= alpha).mean()), "seconds": seconds,
            "low": low, "high": high, "calibration_rows": beside.rows,
        }  # fmt: skip


def promised(tested: int, calibrating: int, *, alpha: float) -> tuple[float, float]:
    """Return between which false-alarm rates 95 % of detectors lie that keep their promise: the beta-binomial law."""
    rank = int(np.floor(alpha * (calibrating + 1)))
    low, high = betabinom(tested, rank, calibrating + 1 - rank).interval(0.95)
    return low / tested, high / tested


def one_class(data: Data, label: int, seed: int, config: ImageConfig, peers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the AUROC of each detector that learns one class and is shown all."""
    train, truth = data.train[data.train_labels == label], data.test_labels != label
    makers: dict[str, Callable[[], Scorer]] = {"anomaly_vae": lambda: _fitted(train, config)}
    makers |= {name: (lambda name=name: peer(name, train, seed)) for name in peers}  # type: ignore[misc]
    for name, make in makers.items():
        start = time.perf_counter()
        scores = make()(data.test)
        yield {
            "detector": name, "against": f"class {label}", "auroc": _auroc(scores[~truth], scores[truth]),
            "seconds": time.perf_counter() - start,
        }  # fmt: skip


def cost(data: Data, config: ImageConfig) -> Iterator[dict[str, Any]]:
    """Yield seconds an image of the default score and of its parts, the best of three, one after the other."""
    detector = fit_detector(data.train, config).detector
    x, model, density = detector.encode(frame_of(data.test[:2000])), detector.model, detector.statistics
    noise = detector.noise[: config.k]
    assert isinstance(model, ImageVAE)
    works: dict[str, Callable[[], Any]] = {
        "default score": lambda: score_images(model, x, noise=noise, kind=config.score_kind, density=density),
        "one ELBO pass": lambda: score_images(model, x, noise=noise, kind="elbo"),
        "compression": lambda: compressed_nats(x.numpy(), model.shape),
    }
    times = {name: [] for name in works}  # type: dict[str, list[float]]
    for _ in range(3):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - start) / len(x))
    for name, values in times.items():
        yield {"detector": name, "against": "seconds an image", "auroc": min(values), "seconds": min(values)}
    start = time.perf_counter()
    likelihood_regret(model, x[:REGRET_IMAGES], noise=noise)
    spent = (time.perf_counter() - start) / REGRET_IMAGES
    yield {"detector": "likelihood regret", "against": "seconds an image", "auroc": spent, "seconds": spent}


def devices(data: Data, config: ImageConfig) -> Iterator[dict[str, Any]]:
    """Yield images a second of training and of scoring on each device that is there, and how many times the processor.

    Training is the optimiser's steps with the looks at validation images, without companions and calibration, which
    the processor does in any case. Of scoring, the best of three.
    """
    places = [name for name in ("cpu", "cuda", "mps") if name == "cpu" or _present(name)]
    found: dict[str, dict[str, float]] = {name: {} for name in places}
    timed = config.updated([f"steps={TIMED_STEPS}"])
    for place in places:
        fit = fit_detector(data.train, timed.updated([f"device={place}"]))
        last, detector = fit.history[-1], fit.detector.on(place)
        found[place]["trained"] = last.step * config.batch_size / last.seconds
        tested = frame_of(data.test[:TIMED_IMAGES])
        for kind in ("elbo", config.score_kind):
            score = functools.partial(detector.log_likelihood, tested, k=config.k, kind=kind)
            found[place][f"scored by {kind}"] = len(tested) / min(timeit.repeat(score, number=1, repeat=3))
    for place, rates in found.items():
        for job, rate in rates.items():
            about = {"against": f"images/s {job}", "seconds": 1 / rate}
            yield {"detector": place, "auroc": rate, **about}
            if place != "cpu":
                yield {"detector": f"{place} to cpu", "auroc": rate / found["cpu"][job], **about}


def _present(device: str) -> bool:
    return torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()


def peer(name: str, train: Images, seed: int) -> Scorer:
    """Fit a peer on flattened images in [0, 1]."""
    if name == "pca_residual":
        return pca_residual(train)
    flat = train.reshape(len(train), -1) / 255.0
    if name == "pyod_deep_svdd":
        from pyod.models.deep_svdd import DeepSVDD  # type: ignore[import-untyped]

        model = DeepSVDD(n_features=flat.shape[1], random_state=seed, verbose=0)
    else:
        from pyod.models.auto_encoder import AutoEncoder  # type: ignore[import-untyped]

        model = AutoEncoder(random_state=seed, verbose=0)
    model.fit(flat)
    return lambda x: np.asarray(model.decision_function(x.reshape(len(x), -1) / 255.0))


def _fitted(train: Images, config: ImageConfig) -> Scorer:
    return _scorer(fit_detector(train, config).detector.on(config.device), config.score_kind)


def _scorer(detector: Detector, kind: str) -> Scorer:
    return lambda x: detector.log_likelihood(frame_of(x), k=detector.config.k, kind=kind).value


def _auroc(normal: NDArray[np.float64], anomalous: NDArray[np.float64]) -> float:
    truth = np.arange(len(normal) + len(anomalous)) >= len(normal)
    return float(roc_auc_score(truth, np.concatenate([normal, anomalous])))


class Results:
    """Finished runs as lines of JSON, to go on from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.runs: dict[str, list[dict[str, Any]]] = {run["key"]: run["rows"] for run in map(json.loads, lines)}

    def of(self, key: Mapping[str, Any], work: Callable[[], Iterator[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return a run's rows, computed if they are not there."""
        text = json.dumps(key, sort_keys=True)
        if text not in self.runs:
            self.runs[text] = list(work())
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": text, "rows": self.runs[text]}) + "\n")
        return [{**key, **row} for row in self.runs[text]]


@dataclass(frozen=True)
class Job:
    """A protocol on a data set with a seed."""

    protocol: str
    data: Data
    others: Sequence[Data]
    seed: int
    config: ImageConfig
    peers: Sequence[str]

    def rows(self, results: Results, classes: Sequence[int], console: Console) -> list[dict[str, Any]]:
        """Return its results, computed where they are not there."""
        key: dict[str, Any] = {"protocol": self.protocol, "data": self.data.name, "seed": self.seed}
        key |= {"config": json.dumps(self.config.to_dict()), "source": source_digest()}
        console.print(f"{self.protocol}, {self.data.name}, seed {self.seed}", style="dim", highlight=False)
        if self.protocol == "ood":
            others = {"others": [other.name for other in self.others]}
            return results.of({**key, **others}, lambda: ood(self.data, self.others, self.seed, self.config))
        if self.protocol == "alarms":
            return results.of(key, lambda: alarms(self.data, self.seed, self.config))
        if self.protocol == "cost":
            return results.of(key, lambda: cost(self.data, self.config))
        if self.protocol == "devices":
            return results.of(key, lambda: devices(self.data, self.config))
        rows: list[dict[str, Any]] = []
        for label in classes or np.unique(self.data.train_labels).tolist():
            about = {**key, "class": label, "peers": list(self.peers)}
            rows += results.of(
                about, functools.partial(one_class, self.data, label, self.seed, self.config, self.peers)
            )
            console.print(f"  class {label}: {rows[-len(self.peers) - 1]['auroc']:.4f}", style="dim", highlight=False)
        return rows


def tables(rows: pd.DataFrame) -> list[Sheet]:
    """Return a table for each protocol and data set: detectors by what they were shown, means over seeds."""
    sheets = []
    for (protocol, name), part in rows.groupby(["protocol", "data"], sort=False):
        grid = part.pivot_table(index="detector", columns="against", values="auroc", sort=False)
        if protocol == "one-class":
            grid.insert(0, "mean", grid.mean(axis=1))
        digits = {"cost": 6, "devices": 1, "alarms": 4}.get(str(protocol), 3)
        sheet = Sheet(f"{protocol}, {name}: mean of {part.seed.nunique()} seeds", ("", *map(str, grid.columns)))
        for label, values in grid.iterrows():
            sheet.rows.append((str(label), *("" if v != v else f"{v:.{digits}f}" for v in values)))
        sheet.notes.append(f"seconds to fit: {part.groupby('detector', sort=False).seconds.mean().round(4).to_dict()}")
        alarms = part[part.against.str.startswith("false alarms")]
        for _, row in alarms.iterrows():
            interval = f"95 % of calibrations lie from {row.low:.2%} to {row.high:.2%}"
            sheet.notes.append(
                f"seed {row.seed}, {row.detector}: {row.auroc:.2%} {row.against}, {interval}; "
                f"{row.calibration_rows:.0f} calibrating"
            )
        sheets.append(sheet)
    return sheets


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data",
    "paths",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="An .npz file or a folder of them; repeatable.",
)
@click.option("--photographs", "photos", is_flag=True, help="Squares of scikit-learn's two photographs, in colour.")
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    type=click.Choice(PROTOCOLS),
    default=[name for name in PROTOCOLS if name not in ON_REQUEST],
    help=f"Repeatable; all by default but {' and '.join(ON_REQUEST)}.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--class", "classes", multiple=True, type=int, help="Class to learn in one-class; all by default.")
@click.option("--peer", "peers", multiple=True, type=click.Choice(PEERS), default=PEERS)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the image detector.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("mlruns/bench-images"), show_default=True)
def main(
    paths: tuple[Path, ...], photos: bool, protocols: tuple[str, ...], seeds: int, classes: tuple[int, ...],
    peers: tuple[str, ...], settings: tuple[str, ...], out: Path,
) -> None:  # fmt: skip
    """Measure the image detector; print the tables and keep them as Markdown and Parquet."""
    console = Console(width=200)
    files = [f for p in paths for f in (sorted(p.rglob("*.npz")) if p.is_dir() else [p])]
    sets = [read(file) for file in files] + (photographs() if photos else []) or [read(None)]
    try:
        base = ImageConfig().updated(settings)
    except AnomalyVaeError as error:
        raise click.UsageError(str(error)) from None
    results, rows = Results(out / "runs.jsonl"), []
    for protocol in protocols:
        for data in sets:
            for seed in range(seeds):
                job = Job(
                    protocol, data, [o for o in sets if o is not data], seed, base.updated([f"seed={seed}"]), peers
                )
                rows += job.rows(results, classes, console)
    frame = pd.DataFrame(rows)
    frame.drop(columns=["config", "source"]).to_parquet(out / "results.parquet", index=False)
    sheets = tables(frame)
    for sheet in sheets:
        sheet.show(console)
    (out / "report.md").write_text("\n".join(sheet.to_markdown() for sheet in sheets), encoding="utf-8")
    console.print(f"written to {out / 'report.md'}", highlight=False)


if __name__ == "__main__":
    main()
