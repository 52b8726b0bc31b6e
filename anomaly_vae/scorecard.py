r"""The six properties of a good generative model, each measured on one trained detector and shown beside baselines.

=====================  ==========================================================================================
efficient sampling     rows a second
sample quality         Fréchet distance, two-sample classifier, precision and density, inception score
coverage               recall and coverage, modes
well-behaved latent    smoothness along interpolations, agreement of the aggregated posterior and the prior
interpretable latent   MIG, DCI, FactorVAE score, correlations with known factors; else dimensions in use
efficient likelihood   the bound as k grows, effective sample size
=====================  ==========================================================================================

Baselines: samples are compared with data that the comparison was not made from ("data", the best that can be), with
each column drawn by itself from the data ("independent columns"), and with a Gaussian of the data's mean and covariance
("Gaussian"). A figure of a model means little without them.

Distances and neighbours are looked at in the leading principal components of the features, for in many dimensions all
rows are far from each other. They are blind to what lies outside these components, such as faint noise of single
pixels; the two-sample classifier, which sees all, is not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from .comparison.results import plain, restored
from .detection.detector import Detector
from .detection.latent import posteriors
from .detection.scores import densities_of
from .errors import ConfigError, SchemaError, ShapeError
from .evaluation.disentanglement import Disentanglement, disentanglement
from .evaluation.divergences import Perplexity, perplexities
from .evaluation.generation import (
    FEWEST,
    Frechet,
    InceptionScore,
    Modes,
    Neighbourhoods,
    TwoSample,
    frechet_distance,
    inception_score,
    modes,
    neighbourhoods,
    two_sample_classifier,
)
from .evaluation.latents import BoundAtK, PriorAgreement, Smoothness, bounds_by_k, prior_agreement, smoothness
from .latent.space import LatentSpace
from .models.ladder import LadderVAE
from .options.understanding import ScorecardConfig

STEPS = 16
"""Steps of an interpolation."""
CLUSTERS = 10
"""Modes, where there are no classes."""
MOST_CLASSES = 100
CLASS_ROWS = 5
"""Rows that each class wants for a classifier to be trained."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """How one set of samples compares with held-out rows of the data.

    Attributes:
        name: "model", or that of a baseline.
        frechet: Fréchet distance.
        neighbourhoods: Precision, recall, density, coverage.
        classifier: Two-sample classifier.
        modes: Classes by a classifier, or clusters of the data.
        inception: Inception score; None without classes.
    """

    name: str
    frechet: Frechet
    neighbourhoods: Neighbourhoods
    classifier: TwoSample
    modes: Modes
    inception: InceptionScore | None


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """The six properties of one model.

    Attributes:
        data: What the rows are, in words.
        rows: Rows of the data that were looked at.
        space: In which features samples were compared.
        rows_per_second: Rows drawn a second, decoded into the model's array.
        samples: The model's samples and the baselines', against the same held-out rows.
        smoothness: Along straight lines between codes of rows; None where there are no two different codes.
        prior: Agreement of the aggregated posterior and the prior; None for a ladder, whose codes have no prior alone.
        active: Latent dimensions in use.
        latent: Latent width.
        factors: How dimensions and known factors belong together; None without factors.
        bounds: The bound as k grows.
        perplexities: Of categorical columns, given the row's code.
        notes: What could not be measured, and why.
        config: Settings.
    """

    data: str
    rows: int
    space: str
    rows_per_second: float
    samples: tuple[Samples, ...]
    smoothness: Smoothness | None
    prior: PriorAgreement | None
    active: int
    latent: int
    factors: Disentanglement | None
    bounds: tuple[BoundAtK, ...]
    perplexities: tuple[Perplexity, ...] = ()
    notes: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON has a word for."""
        return dict(plain(self))

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Scorecard:
        """Return a scorecard from what `to_dict` returned, for example out of a file; other keys are left out.

        Raises:
            SchemaError: It is none.
        """
        return restored(cls, facts)

    def of(self, name: str) -> Samples:
        """Return the samples of this name."""
        return next(samples for samples in self.samples if samples.name == name)


def make_scorecard(
    detector: Detector,
    frame: pd.DataFrame,
    config: ScorecardConfig | None = None,
    *,
    classes: Any = None,
    factors: Mapping[str, Any] | None = None,
    classifier: Any = None,
) -> Scorecard:
    """Measure the six properties of a model on rows that it was not trained on.

    Args:
        detector: The model.
        frame: Rows of the model, at least 60: a third is what samples are compared with, a third the baseline "data",
            a third makes the baselines and the features.
        config: Features, sizes, seed.
        classes: Class of each row, (n,), for the inception score and the modes.
        factors: What is known of each row, name: values (n,); by default the classes, if there are some.
        classifier: Of the classes, with scikit-learn's `predict_proba` and `classes_`, over rows as the encoder sees
            them (`Detector.standardised`); by default one is trained on the classes.

    Raises:
        SchemaError: Fewer than 60 rows, or not the model's.
        ShapeError: There are not as many classes as rows.
        ConfigError: A classifier's features are asked for, and there are no classes.

    References:
        See `evaluation.generation`, `evaluation.latents` and `evaluation.disentanglement`.
    """
    config = config or ScorecardConfig()
    if len(frame) < 3 * FEWEST:
        raise SchemaError(
            f"data for a scorecard must have at least {3 * FEWEST} rows, got {len(frame)}. Give more: fewer do not say "
            "what a distribution is.",
            rows=len(frame),
        )
    known = {"classes": classes, **(factors or {})}
    for name, values in known.items():
        if values is not None and len(values) != len(frame):
            raise ShapeError(f"{name} must be as many as the {len(frame)} rows, got {len(values)}. Give one a row.")
    chosen = np.random.default_rng(config.seed).permutation(len(frame))[: 3 * config.rows]
    frame = frame.iloc[chosen].reset_index(drop=True)
    texts = None if classes is None else pd.Series(np.asarray(classes, dtype=object)[chosen]).map(str).to_numpy()
    given = {name: np.asarray(values)[chosen] for name, values in (factors or {}).items()}
    space = LatentSpace(detector)
    notes: list[str] = []
    judge = _judge(detector, frame, texts, classifier, config, notes)
    drawn, rate = _drawn(detector, len(frame) // 3, config.seed)
    samples = _compared(detector, frame, drawn, judge, config, notes)
    mean, log_scale = detector.latent(frame)
    if texts is not None and not given:
        given = {"class": texts}
    measured = _factors(mean, given, config, notes)
    return Scorecard(
        data=detector.kind, rows=len(frame), space=config.space, rows_per_second=rate, samples=samples,
        smoothness=_smoothness(space, mean, config, notes), prior=_prior(space, mean, log_scale, config, notes),
        active=int((mean.var(0) > 0.01).sum()), latent=space.width, factors=measured,
        bounds=_bounds(detector, frame, config), perplexities=_perplexities(detector, frame, config),
        notes=tuple(notes), config=config.to_dict(),
    )  # fmt: skip


@dataclass(frozen=True)
class _Judge:
    """Says which class a row is of; without classes, which cluster of the data is nearest."""

    model: Any
    classes: bool

    def modes(self, x: Floats) -> NDArray[np.str_]:
        return np.asarray(self.model.predict(x)).astype(str)


def _judge(
    detector: Detector,
    frame: pd.DataFrame,
    classes: NDArray[Any] | None,
    classifier: Any,
    config: ScorecardConfig,
    notes: list[str],
) -> _Judge:
    x = detector.standardised(frame)
    if classifier is not None:
        return _Judge(classifier, True)
    if classes is not None:
        names, counts = np.unique(classes, return_counts=True)
        usable = names[counts >= CLASS_ROWS]
        if 2 <= len(usable) <= MOST_CLASSES:
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler

            rows = np.isin(classes, usable)
            fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1)).fit(
                x[rows], classes[rows]
            )
            return _Judge(fitted, True)
        notes.append(
            f"No classifier: it needs 2 to {MOST_CLASSES} classes of at least {CLASS_ROWS} rows, and the rows have "
            f"{len(usable):,} such among {len(names):,}. Modes are clusters, and there is no inception score."
        )
    else:
        notes.append("No classes were given: modes are clusters of the data, and there is no inception score.")
    count = min(CLUSTERS, len(np.unique(x, axis=0)))
    return _Judge(KMeans(count, n_init=3, random_state=config.seed % 2**32).fit(x.astype(np.float64)), False)


@torch.inference_mode()
def _drawn(detector: Detector, n: int, seed: int) -> tuple[NDArray[Any], float]:
    """Return n rows drawn, encoded, (n, m), and how many are drawn a second."""
    generator = torch.Generator().manual_seed(seed)
    detector.model.sample(2, generator)  # the first call sets things up
    start = time.perf_counter()
    x = detector.model.sample(n, generator)
    return x.numpy(), n / max(time.perf_counter() - start, 1e-9)


def _compared(
    detector: Detector,
    frame: pd.DataFrame,
    drawn: NDArray[Any],
    judge: _Judge,
    config: ScorecardConfig,
    notes: list[str],
) -> tuple[Samples, ...]:
    """Return how the model's samples and the baselines' compare with the first third of the rows."""
    x = detector.encode(frame).numpy()
    third = len(frame) // 3
    held, other, rest = x[:third], x[third : 2 * third], x[2 * third :]
    rng = np.random.default_rng(config.seed + 1)
    seen = {name: _entered(detector, part) for name, part in (("held", held), ("data", other), ("model", drawn))}
    columns = np.stack([rng.permutation(np.resize(rest[:, j], third)) for j in range(x.shape[1])], 1)
    seen["independent columns"] = _entered(detector, columns)
    rest_seen = _entered(detector, rest)
    covariance = np.atleast_2d(np.cov(rest_seen, rowvar=False))
    seen["Gaussian"] = rng.multivariate_normal(rest_seen.mean(0), covariance, size=third, method="eigh")
    constant = rest_seen.std(0) == 0  # to the digit, or a classifier would tell them by the last one
    seen["Gaussian"][:, constant] = rest_seen[0, constant]
    features = _features(detector, judge, rest, rest_seen, config)
    points = {name: features(part) for name, part in seen.items()}
    neighbours = min(config.neighbours, third - 1)
    found = []
    for name in ("model", "data", "independent columns", "Gaussian"):
        inception = None
        if judge.classes:
            inception = inception_score(judge.model.predict_proba(seen[name]))
        found.append(
            Samples(
                name=name, frechet=frechet_distance(points["held"], points[name], seed=config.seed),
                neighbourhoods=neighbourhoods(points["held"], points[name], neighbours=neighbours),
                classifier=two_sample_classifier(seen["held"], seen[name], seed=config.seed),
                modes=modes(judge.modes(seen["held"]), judge.modes(seen[name])), inception=inception,
            )
        )  # fmt: skip
    if third < 10 * config.dimensions:
        notes.append(f"{third:,} rows are few for Fréchet distances in {points['held'].shape[1]} dimensions.")
    return tuple(found)


def _entered(detector: Detector, x: NDArray[Any]) -> Floats:
    """Return encoded rows (n, m) as the encoder sees them, (n, d)."""
    from .detection.latent import entered

    return entered(detector.model, torch.from_numpy(np.ascontiguousarray(x))).astype(np.float64)


def _features(detector: Detector, judge: _Judge, rest: NDArray[Any], rest_seen: Floats, config: ScorecardConfig) -> Any:
    """Return a function from rows as the encoder sees them to the features in which they are compared."""
    if config.space == "classifier":
        if not judge.classes:
            raise ConfigError(
                "features of a classifier must come with classes, got none. Give --classes.", option="space"
            )
        base: Any = lambda part: np.log(np.clip(judge.model.predict_proba(part), 1e-6, None))  # noqa: E731
    elif config.space == "latent":
        model = detector.model

        def base(part: Floats) -> Floats:
            with torch.inference_mode():
                entered = torch.from_numpy(part).float()
                found = [_means(model, block) for block in entered.split(256)]
            return torch.cat(found).double().numpy()
    else:
        base = lambda part: part  # noqa: E731
    reference = base(rest_seen)
    kept = max(1, min(config.dimensions, reference.shape[1], len(reference) - 1))
    axes = PCA(kept, random_state=config.seed % 2**32).fit(reference)
    return lambda part: axes.transform(base(part))


def _means(model: Any, entered: torch.Tensor) -> torch.Tensor:
    found = model.encoded(entered)
    return found.above.chunk(2, 1)[0] if isinstance(model, LadderVAE) else found[0]


def _smoothness(
    space: LatentSpace, mean: NDArray[np.float32], config: ScorecardConfig, notes: list[str]
) -> Smoothness | None:
    pairs = min(config.paths, len(mean) // 2)
    points = space.path(mean[:pairs], mean[pairs : 2 * pairs], steps=STEPS)
    decoded = space.decode_encoded(points.reshape(-1, space.width))
    features = _entered(space.detector, decoded).reshape(pairs, STEPS + 1, -1)
    try:
        return smoothness(features)
    except ShapeError:
        notes.append("No smoothness: all codes decode to the same row, the latent space is not in use.")
        return None


def _prior(
    space: LatentSpace,
    mean: NDArray[np.float32],
    log_scale: NDArray[np.float32],
    config: ScorecardConfig,
    notes: list[str],
) -> PriorAgreement | None:
    if isinstance(space.model, LadderVAE):
        notes.append("No agreement of posterior and prior: the lower layers' prior depends on the codes above.")
        return None
    rows = slice(0, 4 * config.likelihood_rows)
    generator = torch.Generator().manual_seed(config.seed + 2)
    mean, log_scale = mean[rows], log_scale[rows]
    z = mean + np.exp(log_scale) * torch.randn(mean.shape, generator=generator).numpy()
    with torch.inference_mode():
        log_prior = space.model.prior.log_prob(torch.from_numpy(z)).double().numpy()
    return prior_agreement(z, mean, log_scale, log_prior)


def _factors(
    mean: NDArray[np.float32], given: Mapping[str, NDArray[Any]], config: ScorecardConfig, notes: list[str]
) -> Disentanglement | None:
    if not given:
        notes.append("No factors are known: no MIG, DCI or correlations. Traversals show what each dimension changes.")
        return None
    try:
        return disentanglement(mean, given, seed=config.seed)
    except ShapeError as error:
        notes.append(f"No MIG, DCI or correlations: {error}")
        return None


def _bounds(detector: Detector, frame: pd.DataFrame, config: ScorecardConfig) -> tuple[BoundAtK, ...]:
    x = detector.encode(frame.iloc[: config.likelihood_rows])
    noise = torch.randn(config.k, detector.model.latent, generator=torch.Generator().manual_seed(config.seed + 3))
    return bounds_by_k(densities_of(detector.model, x, noise)[1].numpy())


def _perplexities(detector: Detector, frame: pd.DataFrame, config: ScorecardConfig) -> tuple[Perplexity, ...]:
    """Return the perplexity of categorical columns, each given the code of the other cells."""
    columns = getattr(detector.schema, "modelled", ())
    chosen = [(j, c) for j, c in enumerate(columns) if c.kind in ("binary", "categorical")]
    if not chosen:
        return ()
    x = detector.encode(frame.iloc[: config.likelihood_rows])
    log_p = []
    with torch.inference_mode():
        for j, _ in chosen:
            hidden = x.clone()
            hidden[:, j] = torch.nan  # a cell must not vouch for itself
            z = torch.from_numpy(posteriors(detector.model, hidden)[0])
            log_p.append(detector.model.log_px_given_z(x, z[None])[0, :, j].double().numpy())
    at = [j for j, _ in chosen]
    return perplexities(np.stack(log_p, 1), x[:, at].double().numpy(), [c.name for _, c in chosen])
