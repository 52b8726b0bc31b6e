"""Settings of the verbs that show what a model is: compare, scorecard, generate, latent. See `options` for the others.

Nothing here imports more than the standard library, so that `--help` stays instant.
"""

from __future__ import annotations

from dataclasses import dataclass

from .fields import Options, check, is_integer, is_number, option

RUNGS = (
    "pca", "probabilistic_pca", "linear_autoencoder", "autoencoder", "vae", "beta_vae", "iwae", "conditional_vae",
    "exemplar_vae", "ladder_vae", "flow",
)  # fmt: skip
"""Models that are compared, from the simplest."""


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
