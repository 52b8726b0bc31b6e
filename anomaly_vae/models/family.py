"""The models that can be trained, scored and saved."""

from __future__ import annotations

from .conv import ImageVAE
from .ladder import LadderVAE
from .vae import VAE

Model = VAE | ImageVAE
"""A VAE of the columns of a table, or one of images."""

IMAGE_FAMILIES: dict[str, type[ImageVAE]] = {"vae": ImageVAE, "ladder": LadderVAE}
"""Models of images by name; each takes the shape of an image and an `ImageConfig`."""
