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
from sklearn.decomposition import PCA

from .comparison.results import plain, restored
from .data.images import ImageSchema
from .detection.detector import Detector
from .detection.draws import refuse_classes
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
from .judging import Judge, Judged, Rows, agreement, judge_of, log_probabilities, rows_of_pixels
from .latent.space import LatentSpace
from .models.ladder import LadderVAE
from .options.understanding import ScorecardConfig

STEPS = 16
"""Steps of an interpolation."""
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
        classifier: Of classes, with scikit-learn's `predict` and `predict_proba`, over rows as the encoder sees them
            (`Detector.standardised`), or a `judging.RowClassifier`, over rows as they came; by default one is trained
            on the classes.

    Raises:
        SchemaError: Fewer than 60 rows, or not the model's.
        ShapeError: There are not as many classes as rows.
        ConfigError: A classifier's features are asked for, and there are no classes, or no probabilities of them; or
            the model is told classes.

    References:
        See `evaluation.generation`, `evaluation.latents` and `evaluation.disentanglement`.
    """
    config = config or ScorecardConfig()
    refuse_classes(detector.schema, "a scorecard")
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
    judge, said = judge_of(detector, detector.standardised(frame), texts, classifier=classifier, seed=config.seed)
    notes = [said] if said else []
    drawn, rate = _drawn(detector, len(frame) // 3, config.seed)
    samples = _compared(judge, _sets(detector, frame, drawn, config), texts, config, notes)
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


@torch.inference_mode()
def _drawn(detector: Detector, n: int, seed: int) -> tuple[NDArray[Any], float]:
    """Return n rows drawn, encoded, (n, m), and how many are drawn a second."""
    generator = torch.Generator().manual_seed(seed)
    detector.model.sample(2, generator)  # the first call sets things up
    start = time.perf_counter()
    x = detector.model.sample(n, generator)
    return x.numpy(), n / max(time.perf_counter() - start, 1e-9)


def _sets(detector: Detector, frame: pd.DataFrame, drawn: NDArray[Any], config: ScorecardConfig) -> dict[str, Rows]:
    """Return held-out rows, "held", the sets that are compared with them, and the "rest", which makes the features."""
    x = detector.encode(frame).numpy()
    third = len(frame) // 3
    rest, rng = x[2 * third :], np.random.default_rng(config.seed + 1)
    columns = np.stack([rng.permutation(np.resize(rest[:, j], third)) for j in range(x.shape[1])], 1)
    parts = {
        "held": x[:third], "model": drawn, "data": x[third : 2 * third], "independent columns": columns, "rest": rest,
    }  # fmt: skip
    sets = {name: Rows(part, _entered(detector, part)) for name, part in parts.items()}
    seen = sets["rest"].seen
    covariance = np.atleast_2d(np.cov(seen, rowvar=False))
    gaussian = rng.multivariate_normal(seen.mean(0), covariance, size=third, method="eigh")
    constant = seen.std(0) == 0  # to the digit, or a classifier would tell them by the last one
    gaussian[:, constant] = seen[0, constant]
    levels = rows_of_pixels(gaussian) if isinstance(detector.schema, ImageSchema) else None
    return {**sets, "Gaussian": Rows(levels, gaussian)}


def _compared(
    judge: Judge, sets: dict[str, Rows], classes: NDArray[Any] | None, config: ScorecardConfig, notes: list[str]
) -> tuple[Samples, ...]:
    """Return how the model's samples and the baselines' compare with the first third of the rows."""
    third = len(sets["held"].seen)
    if judge.of_rows and sets["Gaussian"].encoded is None:
        sets = {name: one for name, one in sets.items() if name != "Gaussian"}
        notes.append("No Gaussian baseline: what it draws is no row that the named classifier could read.")
    verdicts = {name: judge.judged(one) for name, one in sets.items()}
    names = np.unique(np.concatenate([one.labels for one in verdicts.values()]))
    if judge.of_rows:
        if classes is not None:
            notes.append(agreement(verdicts["held"], classes[:third]))
        if verdicts["held"].probabilities is None:
            notes.append("The classifier gives labels alone: the inception score takes each for certain.")
    points = _points(judge, sets, verdicts, config)
    neighbours = min(config.neighbours, third - 1)
    held, found = sets["held"].seen, []
    for name in sets:
        if name in ("held", "rest"):
            continue
        found.append(
            Samples(
                name=name, frechet=frechet_distance(points["held"], points[name], seed=config.seed),
                neighbourhoods=neighbourhoods(points["held"], points[name], neighbours=neighbours),
                classifier=two_sample_classifier(held, sets[name].seen, seed=config.seed),
                modes=modes(verdicts["held"].labels, verdicts[name].labels),
                inception=inception_score(verdicts[name].shares(names)) if judge.classes else None,
            )
        )  # fmt: skip
    if third < 10 * config.dimensions:
        notes.append(f"{third:,} rows are few for Fréchet distances in {points['held'].shape[1]} dimensions.")
    return tuple(found)


def _entered(detector: Detector, x: NDArray[Any]) -> Floats:
    """Return encoded rows (n, m) as the encoder sees them, (n, d)."""
    from .detection.latent import entered

    return entered(detector.model, torch.from_numpy(np.ascontiguousarray(x))).astype(np.float64)


def _points(
    judge: Judge, sets: Mapping[str, Rows], verdicts: Mapping[str, Judged], config: ScorecardConfig
) -> dict[str, Floats]:
    """Return each set of rows in the features in which they are compared."""
    if config.space == "classifier":
        if not judge.classes:
            raise ConfigError(
                "features of a classifier must come with classes, got none. Give --classes, or --classifier.",
                option="space",
            )
        base = {name: log_probabilities(found) for name, found in verdicts.items()}
    elif config.space == "latent":
        base = {name: _codes(judge.detector.model, rows.seen) for name, rows in sets.items()}
    else:
        base = {name: rows.seen for name, rows in sets.items()}
    reference = base["rest"]
    kept = max(1, min(config.dimensions, reference.shape[1], len(reference) - 1))
    axes = PCA(kept, random_state=config.seed % 2**32).fit(reference)
    return {name: axes.transform(part) for name, part in base.items()}


@torch.inference_mode()
def _codes(model: Any, seen: Floats) -> Floats:
    blocks = torch.from_numpy(seen).float().split(256)
    return torch.cat([_means(model, block) for block in blocks]).double().numpy()


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
