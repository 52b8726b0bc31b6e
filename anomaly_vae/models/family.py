"""The models that can be trained, scored and saved."""

from __future__ import annotations

from .conv import ImageVAE
from .vae import VAE

Model = VAE | ImageVAE
"""A VAE of the columns of a table, or one of images."""
