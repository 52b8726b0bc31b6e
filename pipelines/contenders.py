"""The detectors that are compared, by name: this package's, its own linear special case, and PyOD's.

This package's detector takes settings, `anomaly_vae:prior=aggregated_posterior,k=16`; the peers run at their defaults.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

import anomaly_vae
from anomaly_vae import AnomalyDetector, TrainConfig
from anomaly_vae.errors import ConfigError
from anomaly_vae.models.linear import ProbabilisticPCA

OURS = "anomaly_vae"
Rows = NDArray[np.float64]

# The layering of the rooms keeps a score from depending on what is above the estimator.
NO_SCORE_DEPENDS_ON = ("cli", "serving", "reporting")


class Model(Protocol):
    """What is asked of a detector, in PyOD's conventions."""

    def fit(self, X: Rows) -> Any:
        """Learn rows."""

    def decision_function(self, X: Rows) -> NDArray[np.float64]:
        """Score rows, high = anomalous."""


@dataclass(frozen=True)
class Kind:
    """An entry of the registry.

    Attributes:
        make: Makes an unfitted detector from settings, a seed, and whether scores of its training rows are wanted.
        packages: Packages whose versions its scores depend on.
        own: Whether they depend on the source of this package.
        quick: Whether it belongs to the detectors compared by default.
        standardised: Whether it is given standardised columns.
    """

    make: Callable[[Mapping[str, Any], int, bool], Model]
    packages: tuple[str, ...]
    own: bool = False
    quick: bool = True
    standardised: bool = True


@dataclass(frozen=True)
class Contender:
    """A detector with its settings.

    Attributes:
        label: What it was asked for as.
        name: Its name in `DETECTORS`.
        settings: All its settings but the seed, JSON-able; none for a peer at its defaults.
        versions: Of what its scores depend on.
    """

    label: str
    name: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Timed:
    """Scores, high = anomalous, and what they took."""

    scores: NDArray[np.float64]
    fit_seconds: float
    score_seconds: float


class Plain:
    """This package's estimator without scores of its training rows, which only the contaminated protocol needs."""

    def __init__(self, estimator: AnomalyDetector) -> None:
        self.estimator = estimator

    def fit(self, X: Rows) -> Self:
        """Fit the estimator."""
        self.estimator.fit(X)
        return self

    def decision_function(self, X: Rows) -> NDArray[np.float64]:
        """Return minus the estimator's scores."""
        return -self.estimator.score_samples(X)


class PPCA:
    """Exact -log p(x) of probabilistic PCA on standardised columns, latent width half their number."""

    def fit(self, X: Rows) -> Self:
        """Fit scaler and model, and score the training rows."""
        self.scaler = StandardScaler().fit(X)
        latent = max(1, X.shape[1] // 2)
        self.model = ProbabilisticPCA.fit(torch.from_numpy(self.scaler.transform(X)), latent=latent)
        self.decision_scores_ = self.decision_function(X)
        return self

    def decision_function(self, X: Rows) -> NDArray[np.float64]:
        """Return the scores of rows, (n,), nats, high = anomalous."""
        return np.asarray(-self.model.log_likelihood(torch.from_numpy(self.scaler.transform(X))).numpy())


def _ours(settings: Mapping[str, Any], seed: int, training_scores: bool) -> Model:
    estimator = AnomalyDetector(TrainConfig.from_mapping(settings), random_state=seed)
    return estimator.as_pyod() if training_scores else Plain(estimator)


def _peer(module: str, name: str, *, quick: bool = True) -> Kind:
    def make(settings: Mapping[str, Any], seed: int, training_scores: bool) -> Model:
        kind = getattr(importlib.import_module(f"pyod.models.{module}"), name)
        seeded = "random_state" in inspect.signature(kind).parameters
        return kind(random_state=seed) if seeded else kind()

    deep = ("torch", "tqdm") if module == "vae" else ()  # it imports tqdm without requiring it
    return Kind(make, ("pyod", "scikit-learn", "numpy", "scipy", *deep), quick=quick)


DETECTORS: dict[str, Kind] = {
    OURS: Kind(_ours, ("torch", "numpy", "scikit-learn", "scipy", "pandas"), own=True, standardised=False),
    "knn": _peer("knn", "KNN"),
    "lof": _peer("lof", "LOF"),
    "cblof": _peer("cblof", "CBLOF"),
    "iforest": _peer("iforest", "IForest"),
    "ocsvm": _peer("ocsvm", "OCSVM"),
    "hbos": _peer("hbos", "HBOS"),
    "pca": _peer("pca", "PCA"),
    "ecod": _peer("ecod", "ECOD"),
    "ppca": Kind(lambda settings, seed, training_scores: PPCA(), ("torch", "numpy", "scikit-learn"), own=True),
    "mcd": _peer("mcd", "MCD", quick=False),
    "pyod_vae": _peer("vae", "VAE", quick=False),
}

DEFAULT = tuple(name for name, kind in DETECTORS.items() if kind.quick)


def pca_residual(train: NDArray[np.uint8], components: int = 32) -> Callable[[NDArray[np.uint8]], NDArray[np.float64]]:
    """Return a score of images (n, ...) of levels: the squared error that the leading principal components leave."""
    flat = train.reshape(len(train), -1) / 255.0
    pca = PCA(min(components, *flat.shape), random_state=0).fit(flat)

    def residual(x: NDArray[np.uint8]) -> NDArray[np.float64]:
        rows = x.reshape(len(x), -1) / 255.0
        return np.asarray(np.square(rows - pca.inverse_transform(pca.transform(rows))).sum(1))

    return residual


def contender(label: str) -> Contender:
    """Read NAME or NAME:key=value,key=value.

    Raises:
        ConfigError: The name is unknown, a setting is, or the detector takes none.
    """
    name, _, text = label.partition(":")
    if name not in DETECTORS:
        raise ConfigError(f"--detector must be one of {', '.join(DETECTORS)}, got {name!r}. Settings follow a colon.")
    words = [word for word in re.split(r",(?=\s*\w+\s*=)", text) if word.strip()]
    if words and name != OURS:
        raise ConfigError(f"settings must be those of {OURS}, got {text!r} for {name}. Peers run at their defaults.")
    settings: dict[str, Any] = {}
    if name == OURS:
        settings = TrainConfig().updated(words).to_dict()
        del settings["seed"]
        if any(word.partition("=")[0].strip() == "seed" for word in words):
            raise ConfigError(f"the seed must be left to --seeds, got {label!r}. Take it out.")
    kind = DETECTORS[name]
    versions = {package: _version(package) for package in kind.packages}
    return Contender(label, name, settings, versions | ({"source": source_digest()} if kind.own else {}))


def timed(of: Contender, train: Rows, test: Rows | None, seed: int) -> Timed:
    """Fit to training rows, and score test rows, or the training rows where there are none.

    Scoring its own training rows is part of a detector's fitting, as PyOD has it; this package's does so only where
    they are wanted.
    """
    kind = DETECTORS[of.name]
    if kind.standardised:
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), None if test is None else scaler.transform(test)
    model: Any = kind.make(of.settings, seed, test is None)
    start = time.perf_counter()
    model.fit(train)
    fitted = time.perf_counter()
    scores = model.decision_scores_ if test is None else model.decision_function(test)
    return Timed(np.asarray(scores, dtype=np.float64), fitted - start, time.perf_counter() - fitted)


@functools.cache
def warm_up(name: str) -> None:
    """Let a detector do, once in a process and untimed, what it does only the first time: imports and compilation."""
    rows = np.random.default_rng(0).normal(size=(60, 3))
    settings = {"steps": 1} if name == OURS else {}
    with contextlib.suppress(Exception):  # what fails here fails again where it is recorded
        timed(Contender(name, name, settings, {}), rows, rows, 0)


@functools.cache
def source_digest() -> str:
    """Return SHA-256 of the package's source files that a score can depend on, hexadecimal."""
    folder = Path(inspect.getfile(anomaly_vae)).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if name.parts[0] not in NO_SCORE_DEPENDS_ON:
            digest.update(f"{name.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"this detector must have {package} installed, got none. Run: pip install {package}"
        ) from None
