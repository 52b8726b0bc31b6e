"""Each model of the comparison: how it is made from the data, and when it does not apply.

All networks have the same layers, likelihood and latent width; each rung changes one thing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from torch import Tensor, nn

from .. import training
from ..data.images import ImageSchema
from ..detection.latent import posteriors
from ..models.autoencoder import Autoencoder, ImageAutoencoder, LinearAutoencoder
from ..models.conditional import ConditionalImageVAE, ConditionalVAE, with_classes
from ..models.conv import ImageVAE
from ..models.family import Model
from ..models.flow import Flow, flows_available
from ..models.ladder import LadderVAE
from ..models.linear import ProbabilisticPCA
from ..models.vae import VAE
from ..options import ImageConfig, TrainConfig
from ..options.understanding import CompareConfig
from .measuring import Density, figures, marginal_density, network_density, network_errors
from .prepared import Prepared
from .results import Figures

MOST_CLASSES = 20
"""A conditional model is asked for each class in turn."""
LARGEST_FLOW = 1024
"""Dimensions of a flow: one of more takes hours on a CPU."""


@dataclass(frozen=True)
class Kind:
    """A model that can be compared.

    Attributes:
        title: Its name for people.
        what: What it adds to the ones before it.
        measure: Trains it and returns its figures and what is to be known of them.
        refuses: Why it does not apply to a data set; empty if it does.
    """

    title: str
    what: str
    measure: Callable[[Prepared, CompareConfig], tuple[Figures, str]]
    refuses: Callable[[Prepared], str] = lambda data: ""


def _numbers(data: Prepared) -> str:
    return data.no_numbers(density=False)


def _subspace(data: Prepared) -> str:
    return data.no_numbers(density=False) or _narrow(data, 0)


def _narrow(data: Prepared, spare: int) -> str:
    """Return that the latent width leaves nothing out, if it does."""
    if data.latent + spare > data.dimensions:
        return f"Does not apply: {data.latent} codes of {data.dimensions} columns leave nothing out."
    return ""


def _real(data: Prepared) -> str:
    return data.no_numbers(density=True)


def _pca(data: Prepared, config: CompareConfig) -> tuple[Figures, str]:
    start = time.perf_counter()
    fitted = PCA(min(data.latent, len(data.parts["train"])), svd_solver="full").fit(data.numbers("train").numpy())
    seconds = time.perf_counter() - start

    def reconstruct(part: str) -> Tensor:
        x = data.numbers(part).numpy()
        return torch.from_numpy(fitted.inverse_transform(fitted.transform(x)) - x).square()

    parameters = fitted.components_.size + fitted.mean_.size
    found = figures(data, seconds=seconds, parameters=parameters, latent=data.latent, reconstruct=reconstruct)
    return found, "No density: it has no likelihood."


def _probabilistic_pca(data: Prepared, config: CompareConfig) -> tuple[Figures, str]:
    start = time.perf_counter()
    fitted = ProbabilisticPCA.fit(data.numbers("train", spread=True, seed=config.seed), latent=data.latent)
    seconds = time.perf_counter() - start

    def reconstruct(part: str) -> Tensor:
        x = data.numbers(part, spread=True, seed=config.seed + 1)
        return (fitted.posterior(x)[0] @ fitted.loadings.T + fitted.mean - x).square()

    def density(part: str) -> Density:
        x = data.numbers(part, spread=True, seed=config.seed + 1)
        return Density.exact(fitted.log_likelihood(x) - data.log_scale)

    means = fitted.posterior(data.numbers("test", spread=True, seed=config.seed + 1))[0].float().numpy()
    parameters = fitted.loadings.numel() + fitted.mean.numel() + 1
    found = figures(
        data, seconds=seconds, parameters=parameters, latent=data.latent, reconstruct=reconstruct, density=density,
        means=means, exact=True,
    )  # fmt: skip
    return found, "The exact posterior: every bound is the likelihood."


def _linear(data: Prepared, config: CompareConfig) -> tuple[Figures, str]:
    start = time.perf_counter()
    x = data.numbers("train")
    fitted = LinearAutoencoder.fit(x, latent=data.latent, seed=config.seed)
    seconds = time.perf_counter() - start
    components = PCA(data.latent, svd_solver="full").fit(x.numpy()).components_
    angle = float(np.degrees(subspace_angles(components.T, fitted.decoder.T.numpy()).max()))

    def reconstruct(part: str) -> Tensor:
        rows = data.numbers(part)
        return (fitted.decode(fitted.encode(rows)) - rows).square()

    parameters = fitted.encoder.numel() + fitted.decoder.numel() + fitted.mean.numel()
    found = figures(
        data, seconds=seconds, parameters=parameters, latent=data.latent, reconstruct=reconstruct,
        principal_angle=angle,
    )  # fmt: skip
    return found, f"{angle:.2g} degrees from the subspace of the principal components."


def _made(data: Prepared, tabular: Callable[[], VAE], image: Callable[[tuple[int, int, int]], ImageVAE]) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data.base.seed)
        return image(data.schema.shape) if isinstance(data.schema, ImageSchema) else tabular()


def _trained(
    data: Prepared, model: Model, config: TrainConfig | ImageConfig, *, conditional: bool = False
) -> tuple[Model, float]:
    """Train a model; return it, and the seconds."""
    rows = _rows(data, conditional)
    start = time.perf_counter()
    training.fit(model, rows("train"), validation=rows("validation"), config=config)
    seconds = time.perf_counter() - start
    model.companions = nn.ModuleDict() if isinstance(model, ImageVAE) else nn.ModuleList()
    return model.cpu().eval().requires_grad_(False), seconds


def _rows(data: Prepared, conditional: bool) -> Callable[[str], Tensor]:
    if not conditional:
        return data.parts.__getitem__
    classes = data.classes
    assert classes is not None
    return lambda part: with_classes(data.parts[part], classes[part])


def _network(
    data: Prepared, config: CompareConfig, model: Model, sentence: str = "", *, density: bool = True, **changes: object
) -> tuple[Figures, str]:
    """Train a model with some settings changed, and measure it."""
    base = dataclasses.replace(data.base, **changes)  # type: ignore[arg-type]
    conditional = isinstance(model, (ConditionalVAE, ConditionalImageVAE))
    rows = _rows(data, conditional)
    model, seconds = _trained(data, model, base, conditional=conditional)

    def known(part: str) -> Density:
        if conditional:
            return marginal_density(model, data.parts[part], data.shares, config)
        return network_density(model, data.parts[part], config)

    found = figures(
        data, seconds=seconds, parameters=sum(p.numel() for p in model.parameters()), latent=model.latent,
        reconstruct=lambda part: network_errors(model, rows(part), data), density=known if density else None,
        means=posteriors(model, rows("test"))[0],
    )  # fmt: skip
    return found, sentence


def _vae_of(data: Prepared, **changes: object) -> Model:
    base = dataclasses.replace(data.base, **changes)  # type: ignore[arg-type]
    return _made(
        data,
        lambda: VAE(data.columns, base),  # type: ignore[arg-type]
        lambda shape: ImageVAE(shape, base),  # type: ignore[arg-type]
    )


def _autoencoder(data: Prepared, config: CompareConfig) -> tuple[Figures, str]:
    model = _made(
        data,
        lambda: Autoencoder(data.columns, data.base),  # type: ignore[arg-type]
        lambda shape: ImageAutoencoder(shape, data.base),  # type: ignore[arg-type]
    )
    return _network(data, config, model, "No density: its codes have no prior.", density=False, beta=0.0)


def _vae(data: Prepared, config: CompareConfig) -> tuple[Figures, str]:
    return _network(data, config, _vae_of(data))


def _beta_vae(data: Prepared, config: CompareConfig) -> tuple[Figures, str]:
    return _network(data, config, _vae_of(data), f"beta = {config.beta:g}.", beta=config.beta)


def _iwae(data: Prepared, config: CompareConfig) -> tuple[Figures, str]:
    sentence = f"{config.train_k} samples a row in training."
    return _network(data, config, _vae_of(data), sentence, objective="iwae", train_k=config.train_k)


def _exemplar(data: Prepared, config: CompareConfig) -> tuple[Figures, str]:
    prior = "aggregated_posterior"
    return _network(data, config, _vae_of(data, prior=prior), prior=prior)


def _classless(data: Prepared) -> str:
    count = int((data.shares > 0).sum())
    if data.classes is None:
        return "Does not apply: it needs a class for each row, and none were given (--classes)."
    if not 2 <= count <= MOST_CLASSES:
        return f"Does not apply: it needs 2 to {MOST_CLASSES} classes, and the training rows have {count:,}."
    return ""


def _conditional(data: Prepared, config: CompareConfig) -> tuple[Figures, str]:
    count = len(data.shares)
    model = _made(
        data,
        lambda: ConditionalVAE(data.columns, data.base, count),  # type: ignore[arg-type]
        lambda shape: ConditionalImageVAE(shape, data.base, count),  # type: ignore[arg-type]
    )
    sentence = f"Trained on log p(x | class) of {count} classes; measured without them, log of the mean over classes."
    return _network(data, config, model, sentence)


def _ladder(data: Prepared, config: CompareConfig) -> tuple[Figures, str]:
    model = _made(data, lambda: VAE(data.columns, data.base), lambda shape: LadderVAE(shape, data.base))  # type: ignore[arg-type]
    return _network(data, config, model, f"{model.latent} codes in all its layers.")


def _no_flow(data: Prepared) -> str:
    if not flows_available():
        return "Skipped: it needs zuko (pip install 'anomaly-vae[flows]')."
    if data.dimensions > LARGEST_FLOW:
        return f"Does not apply: {data.dimensions:,} dimensions are more than the {LARGEST_FLOW:,} tried on a CPU."
    return data.no_numbers(density=True)


def _flow(data: Prepared, config: CompareConfig) -> tuple[Figures, str]:
    x, held = (data.numbers(part, spread=True, seed=config.seed).float() for part in ("train", "validation"))
    start = time.perf_counter()
    fitted = Flow.fit(x, validation=held, steps=config.steps, seed=config.seed)
    seconds = time.perf_counter() - start

    def density(part: str) -> Density:
        x = data.numbers(part, spread=True, seed=config.seed + 1).float()
        return Density.exact(fitted.log_likelihood(x) - data.log_scale)

    found = figures(
        data, seconds=seconds, parameters=fitted.parameters, latent=None, density=density, exact=True
    )  # fmt: skip
    return found, "No code narrower than the row: nothing is reconstructed."


KINDS: dict[str, Kind] = {
    "pca": Kind("PCA", "The best linear code.", _pca, _subspace),
    "probabilistic_pca": Kind(
        "probabilistic PCA", "A Gaussian around PCA's subspace: the linear code with a density.",
        _probabilistic_pca, lambda data: _real(data) or _narrow(data, 1),
    ),
    "linear_autoencoder": Kind(
        "linear autoencoder", "The same code found by gradients: a network without hidden layers.", _linear, _subspace
    ),
    "autoencoder": Kind("autoencoder", "Hidden layers: a code on a curved surface, without a density.", _autoencoder),
    "vae": Kind("VAE", "Noise on the code and a prior: a density, bounded from below.", _vae),
    "beta_vae": Kind("beta-VAE", "More weight on the prior: fewer, more independent codes.", _beta_vae),
    "iwae": Kind("IWAE", "Trained on the bound of several samples, which is tighter.", _iwae),
    "conditional_vae": Kind(
        "conditional VAE", "Told the class of each row: the code holds the rest.", _conditional, _classless
    ),
    "exemplar_vae": Kind("exemplar VAE", "Its prior is where training rows lie.", _exemplar),
    "ladder_vae": Kind(
        "hierarchical VAE", "Codes in layers, from the whole image to its details.", _ladder,
        lambda data: "" if data.images else "Does not apply: its layers are sizes of an image.",
    ),
    "flow": Kind("normalizing flow", "An invertible network: no code, and an exact likelihood.", _flow, _no_flow),
}  # fmt: skip
"""Models by name, from the simplest; the names are `understanding.RUNGS`."""
