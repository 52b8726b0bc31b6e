"""The models that can be trained, scored and saved."""

from __future__ import annotations

from collections.abc import Sequence

from ..options import ImageConfig
from .conditional import ConditionalImageVAE, ConditionalLadderVAE
from .conv import ImageVAE
from .ladder import LadderVAE
from .vae import VAE

Model = VAE | ImageVAE
"""A VAE of the columns of a table, or one of images."""

IMAGE_FAMILIES: dict[str, type[ImageVAE]] = {"vae": ImageVAE, "ladder": LadderVAE}
"""Models of images by name; each takes the shape of an image and an `ImageConfig`."""
CONDITIONAL: dict[str, type[ConditionalImageVAE]] = {"vae": ConditionalImageVAE, "ladder": ConditionalLadderVAE}
"""The same that are told classes; each also takes their number."""


def image_model(shape: Sequence[int], config: ImageConfig, classes: int = 0) -> ImageVAE:
    """Return a model of images, with weights from torch's global generator.

    Args:
        shape: Channels c, rows h and columns w of an image.
        config: Its settings; `model` names it.
        classes: Classes that it is told; 0 for a model of p(x).
    """
    if classes:
        return CONDITIONAL[config.model](shape, config, classes)
    return IMAGE_FAMILIES[config.model](shape, config)
