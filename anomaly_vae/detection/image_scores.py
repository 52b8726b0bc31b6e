r"""Scores of images: a likelihood corrected for what any model would have to pay, and the density of statistics.

A likelihood of pixels says more about an image's contrast and texture than about what it shows: digits are more
probable under a model of clothes than clothes are. Two remedies, both at the price of one pass:

``corrected``
    minus the bias-corrected bound: the ELBO less the log-likelihood that the same family gives to a perfect
    reconstruction of that image.
``statistics``
    minus the log density of a few statistics of the image (`STATISTICS`), by a Gaussian mixture that was fitted to
    held-out normal images.

Shapes: k posterior samples, n images, m = c h w pixels, s statistics.

References:
    Nalisnick et al. (2019), arXiv:1810.09136; Chauhan et al. (2022), arXiv:2108.08760 (the correction);
    Serra et al. (2020), arXiv:1909.11480 (complexity); Morningstar et al. (2021), arXiv:2006.09273 (density of states).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError
from ..models.conv import ImageVAE
from ..models.subspace import FEATURES, companion_statistics, statistic_names
from .attribution import DEPENDENCE, LATENT, OTHERS
from .complexity import compressed_nats
from .scores import SCORES, Scores, densities_of, score_rows, split_scores
from .statistics import StatisticsDensity

OWN = ("corrected", "kl", "complexity")
STATISTICS = (*OWN, *statistic_names(FEATURES))
"""What the default score looks at: the corrected bound, the KL term and the compressed length, in nats; then what the
companions say (`subspace.NAMES`). The first two are given the class, of a model that is told it."""
IMAGE_SCORES = ("statistics", "corrected", *(name for name in SCORES if name != "ensemble"))
COMPONENTS = ((3, 50), (12, 150))
"""Of the density of statistics: so many at most, one for every so many held-out images; the rule that gives more."""
PIECE = 4096
"""Images looked at together, at most: what is kept of each is k numbers."""


def statistics_of(model: ImageVAE) -> tuple[str, ...]:
    """Return the names of a model's statistics: `STATISTICS`, or without those of companions that it lacks."""
    return (*OWN, *statistic_names(model.companions))


@torch.inference_mode()
def statistics(model: ImageVAE, x: Tensor, *, noise: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the statistics of images, (n, s), and what each posterior sample makes of them, (k, n, s).

    The first is the mean of the second over samples.

    Args:
        model: Trained model in eval mode.
        x: Encoded images, (n, m), levels.
        noise: The noise of the score, (k, l).
    """
    means, samples = [], []
    for part in x.split(PIECE):
        log_px, log_w = (t.numpy() for t in densities_of(model, part, noise))
        best = _best(model, part)
        levels = model.levels(part)
        lengths = np.broadcast_to(compressed_nats(levels.cpu().numpy(), model.shape), log_px.shape)
        beside = companion_statistics(model.companions, levels, model.shape).cpu().numpy()
        others = [np.broadcast_to(column, log_px.shape) for column in beside.T]
        of_samples = np.stack([log_w - best, log_px - log_w, lengths, *others], -1)
        samples.append(of_samples)
        means.append(of_samples.mean(0))
    if not means:
        width = len(statistics_of(model))
        return np.empty((0, width)), np.empty((len(noise), 0, width))
    return np.concatenate(means), np.concatenate(samples, 1)


def score_images(
    model: ImageVAE, x: Tensor, *, noise: Tensor, kind: str, density: StatisticsDensity | None = None
) -> Scores:
    """Score images.

    The standard error of `statistics` is by the delta method: the spread over samples of what each adds to the log
    density's first-order change.

    Args:
        model: Trained model in eval mode.
        x: Encoded images, (n, m), levels.
        noise: Standard normal draws, (k, l), shared by all images.
        kind: A name in `IMAGE_SCORES`.
        density: Of the statistics; for that kind alone.

    Raises:
        ConfigError: The kind is `statistics`, and there is no density of them.
    """
    if kind in SCORES:
        return score_rows(model, x, noise=noise, kind=kind)
    if kind == "corrected":
        scores = score_rows(model, x, noise=noise, kind="elbo")
        return Scores(scores.value + _best(model, x), scores.mc_se, scores.ess)
    if density is None:
        raise ConfigError(
            "the score statistics must be that of a model which has their density, got one without: no images were "
            "held out for validation. Take corrected, elbo or likelihood."
        )
    means, samples = statistics(model, x, noise=noise)
    value = -density.log_prob(means)
    error = np.full(len(x), np.nan)
    if len(noise) > 1:
        changes = np.einsum("kns,ns->kn", samples, density.gradient(means))
        error = changes.std(0, ddof=1) / np.sqrt(len(noise))
    return Scores(value, error, np.full(len(x), np.nan))


def heat_maps(model: ImageVAE, x: Tensor, *, noise: Tensor) -> NDArray[np.float64]:
    """Return what each pixel costs beyond a perfect reconstruction, nats, (n, m).

    Together with the latent part they add up to the score `corrected`.

    Args:
        model: Trained model in eval mode.
        x: Encoded images, (n, m), levels.
        noise: The noise of the score, (k, l).
    """
    return _of_pixels(model, split_scores(model, x, noise=noise, kind="elbo").columns) + _best_of_pixels(model, x)


def _of_pixels(model: ImageVAE, nats: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the parts (n, c h w) of columns' nats (n, m): a class that the model is told costs none."""
    return nats[:, : math.prod(model.shape)]


def _best_of_pixels(model: ImageVAE, x: Tensor) -> NDArray[np.float64]:
    return model.best(x).double().cpu().numpy()


def _best(model: ImageVAE, x: Tensor) -> NDArray[np.float64]:
    parts = [model.best(part).sum(1, dtype=torch.float64).cpu() for part in x.split(PIECE)]
    return torch.cat(parts).numpy() if parts else np.empty(0)


def components_for(images: int) -> int:
    """Return of how many components the density of so many images' statistics is."""
    return max(1, *(min(most, images // each) for most, each in COMPONENTS))


def fitted_density(model: ImageVAE, x: Tensor, *, noise: Tensor, seed: int) -> StatisticsDensity:
    """Return the density of the statistics of held-out normal images (v, m).

    Args:
        model: Trained model in eval mode.
        x: Encoded images, (v, m), levels.
        noise: The noise of the score, (k, l).
        seed: Of the fit's start.
    """
    values = statistics(model, x, noise=noise)[0]
    return StatisticsDensity.fitted(values, components=components_for(len(values)), seed=seed)


def image_attributions(
    model: ImageVAE, x: Tensor, *, noise: Tensor, kind: str, top: int, density: StatisticsDensity | None = None
) -> list[str]:
    """Return each image's reasons as JSON text: of which statistics, or of which pixels; see the two functions below.

    Args:
        model: Trained model in eval mode.
        x: Encoded images, (n, m), levels.
        noise: The noise of the score, (k, l).
        kind: The score's kind.
        top: Reasons to name, the costliest first.
        density: Of the statistics; for that kind alone.
    """
    if kind != "statistics":
        return pixel_attributions(model, x, noise=noise, kind=kind, top=top)
    assert density is not None
    return statistic_attributions(model, x, noise=noise, density=density, top=top)


def statistic_attributions(
    model: ImageVAE, x: Tensor, *, noise: Tensor, density: StatisticsDensity, top: int
) -> list[str]:
    """Return each image's reasons as JSON text: which of its statistics are improbable.

    Args:
        model: Trained model in eval mode.
        x: Encoded images, (n, m), levels.
        noise: The noise of the score, (k, l).
        density: Of the statistics.
        top: Statistics to name, the costliest first.

    Returns:
        n JSON lists of {"column", "nats", "value", "expected"}, where a column is a name in `statistics_of`; then the
        other statistics together and `(dependence)`, what they tell of each other. The nats sum to the score.
    """
    values, names = statistics(model, x, noise=noise)[0], statistics_of(model)
    parts, rest, expected = density.split(values)
    texts = []
    for i, chosen in enumerate(np.argsort(-parts, axis=1, kind="stable")[:, :top]):
        named: list[dict[str, Any]] = [
            {"column": names[j], "nats": parts[i, j], "value": values[i, j], "expected": expected[i, j]} for j in chosen
        ]
        if len(chosen) < len(names):
            named.append({"column": OTHERS, "nats": float(np.delete(parts[i], chosen).sum())})
        texts.append(json.dumps([*named, {"column": DEPENDENCE, "nats": rest[i]}], allow_nan=False))
    return texts


def pixel_attributions(model: ImageVAE, x: Tensor, *, noise: Tensor, kind: str, top: int) -> list[str]:
    """Return each image's reasons as JSON text: which of its pixels are improbable.

    Args:
        model: Trained model in eval mode.
        x: Encoded images, (n, m), levels.
        noise: The noise of the score, (k, l).
        kind: The score's kind, any but `statistics`.
        top: Pixels to name, the costliest first.

    Returns:
        n JSON lists of {"column", "nats", "value", "expected"}: the `top` pixels as "row,column" (of a colour image,
        "row,column,channel"), levels; then, without value and expectation, the sum of the other pixels and the latent
        part. The nats sum to the score.
    """
    split = split_scores(model, x, noise=noise, kind=kind if kind in SCORES else "elbo")
    nats = _of_pixels(model, split.columns)
    if kind not in SCORES:
        nats = nats + _best_of_pixels(model, x)
    order = np.argsort(-nats, axis=1, kind="stable")[:, :top]
    expected = reconstructions(model, x).transpose(0, 3, 1, 2).reshape(len(x), -1)
    texts = []
    for i, chosen in enumerate(order):
        named = [
            {
                "column": _place(j, model.shape),
                "nats": float(nats[i, j]),
                "value": int(x[i, j]),
                "expected": int(expected[i, j]),
            }
            for j in chosen
        ]
        rest = [
            {"column": OTHERS, "nats": float(np.delete(nats[i], chosen).sum())},
            {"column": LATENT, "nats": float(split.latent[i])},
        ]
        texts.append(json.dumps([*named, *rest], allow_nan=False))
    return texts


@torch.inference_mode()
def reconstructions(model: ImageVAE, x: Tensor) -> NDArray[np.uint8]:
    """Return the reconstruction of images from their posterior means, (n, h, w, c), levels 0 to 255."""
    parts = []
    for part in x.split(PIECE // 16):
        levels = model.reconstruct_given(model.posterior(part)[0], part)
        parts.append(levels.round().clamp(0, 255).to(torch.uint8).reshape(len(part), *model.shape).cpu())
    joined = torch.cat(parts) if parts else torch.empty(0, *model.shape, dtype=torch.uint8)
    return joined.permute(0, 2, 3, 1).numpy()


def _place(pixel: int, shape: Sequence[int]) -> str:
    channel, row, column = np.unravel_index(pixel, shape)
    return f"{row},{column}" if shape[0] == 1 else f"{row},{column},{channel}"
