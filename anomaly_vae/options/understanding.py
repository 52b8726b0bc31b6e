"""Settings of the verbs that show what a model is: compare, scorecard, generate, latent. See `options` for the others.

Nothing here imports more than the standard library, so that `--help` stays instant.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..fields import Options, check, is_integer, is_number, option

RUNGS = (
    "pca", "probabilistic_pca", "linear_autoencoder", "autoencoder", "vae", "beta_vae", "iwae", "conditional_vae",
    "exemplar_vae", "ladder_vae", "flow",
)  # fmt: skip
"""Models that are compared, from the simplest."""


GENERATED = ("sample", "reconstruct", "denoise", "impute", "interpolate", "attribute", "decompress")
"""What `generate` makes."""
SHOWN = ("codes", "map", "clusters", "manifold", "traversals", "compress")
"""What `latent` shows."""
PATHS = ("linear", "spherical")
SPACES = ("latent", "standardised", "classifier")
"""Feature spaces in which samples are compared with data."""


def _check_integers(options: Options, rules: dict[str, int], *, optional: tuple[str, ...] = ()) -> None:
    for name, low in rules.items():
        value = getattr(options, name)
        ok = is_integer(value, low) or (value is None and name in optional)
        check(ok, name, f"be an integer of at least {low}", value)


def _check_seed(seed: int) -> None:
    check(is_integer(seed, 0) and seed < 2**63, "seed", "be an integer from 0 to 2^63 - 1", seed)


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Options):
    """How the models of the family are compared on one data set.

    Example:
        >>> CompareConfig(models="pca,vae").chosen
        ('pca', 'vae')
    """

    models: str = option("all", f"models, separated by commas: all, or some of {', '.join(RUNGS)}")
    latent: int | None = option(None, "latent width of all; by default half of the columns, at most 16")
    beta: float = option(4.0, "beta of the beta-VAE")
    train_k: int = option(8, "posterior samples a row in the training of the IWAE")
    steps: int = option(2000, "optimiser steps of each network at most")
    rows: int = option(20_000, "rows that are looked at; more are thinned out by chance")
    test: float = option(0.2, "share of the normal rows held out to measure with")
    test_rows: int = option(1000, "held-out rows measured at most, and anomalous ones")
    mc_se: float = option(0.1, "standard error, nats, to which each log-likelihood is estimated")
    max_k: int = option(1024, "posterior samples after which an estimate is left as it is")
    seed: int = option(0, "seed of the split, the weights, the batches and the draws")

    def __post_init__(self) -> None:
        _check_integers(
            self, {"latent": 1, "train_k": 2, "steps": 1, "rows": 20, "test_rows": 2, "max_k": 64}, optional=("latent",)
        )
        for name, low in (("beta", 0.0), ("mc_se", 0.0)):
            value = getattr(self, name)
            check(is_number(value) and value > low, name, "be a number above 0", value)
        check(is_number(self.test) and 0 < self.test <= 0.5, "test", "be a share from above 0 to 0.5", self.test)
        _check_seed(self.seed)
        known = isinstance(self.models, str) and all(name in RUNGS for name in self.chosen)
        check(known and len(self.chosen) > 0, "models", f"be all or some of {', '.join(RUNGS)}", self.models)

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the models, in the order of `RUNGS`."""
        if self.models.strip() == "all":
            return RUNGS
        words = [word.strip() for word in self.models.split(",") if word.strip()]
        unknown = tuple(word for word in words if word not in RUNGS)
        return (*(name for name in RUNGS if name in words), *unknown)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Options):
    """What rows are made from codes.

    Example:
        >>> GenerateConfig(what="interpolate", steps=4).path
        'linear'
    """

    what: str = option("sample", f"what to make: {', '.join(GENERATED)}")
    rows: int = option(100, "rows to draw; rows of DATA that are used at most, in the other modes")
    steps: int = option(8, "interpolate: steps from one row to the next")
    path: str = option("linear", f"interpolate: {', '.join(PATHS)}")
    strength: float = option(1.0, "attribute: how far to go; 1 = to where rows that have it are on average")
    seed: int = option(0, "seed of all draws")

    def __post_init__(self) -> None:
        check(self.what in GENERATED, "what", f"be one of {', '.join(GENERATED)}", self.what)
        check(self.path in PATHS, "path", f"be one of {', '.join(PATHS)}", self.path)
        _check_integers(self, {"rows": 1, "steps": 1})
        check(is_number(self.strength) and self.strength > 0, "strength", "be a number above 0", self.strength)
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class LatentConfig(Options):
    """What is shown of a latent space.

    Example:
        >>> LatentConfig(what="clusters").clusters
        10
    """

    what: str = option("map", f"what to show: {', '.join(SHOWN)}")
    clusters: int = option(10, "clusters: how many")
    size: int = option(15, "manifold: points along each side")
    steps: int = option(9, "traversals: values of each dimension")
    reach: float = option(3.0, "traversals: how far, in standard deviations of the prior")
    step: float = option(
        1.0, "compress: width of a step, in posterior standard deviations; wider = smaller and coarser"
    )
    seed: int = option(0, "seed of the clusters")

    def __post_init__(self) -> None:
        check(self.what in SHOWN, "what", f"be one of {', '.join(SHOWN)}", self.what)
        _check_integers(self, {"clusters": 1, "size": 2, "steps": 2})
        for name in ("reach", "step"):
            value = getattr(self, name)
            check(is_number(value) and value > 0, name, "be a number above 0", value)
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class ScorecardConfig(Options):
    """How a scorecard is made.

    Example:
        >>> ScorecardConfig(space="latent").neighbours
        5
    """

    space: str = option("standardised", f"features in which samples are compared with data: {', '.join(SPACES)}")
    dimensions: int = option(16, "principal components of these features that are kept at most")
    rows: int = option(2000, "rows of the data looked at most, and samples drawn")
    neighbours: int = option(5, "neighbours behind precision, recall, density and coverage")
    k: int = option(256, "posterior samples up to which the bound is followed")
    likelihood_rows: int = option(500, "rows for the bound and the aggregated posterior at most")
    paths: int = option(50, "interpolations that are looked at")
    seed: int = option(0, "seed of all draws")

    def __post_init__(self) -> None:
        check(self.space in SPACES, "space", f"be one of {', '.join(SPACES)}", self.space)
        lows = {"dimensions": 1, "rows": 20, "neighbours": 1, "k": 4, "likelihood_rows": 2, "paths": 2}
        _check_integers(self, lows)
        _check_seed(self.seed)
