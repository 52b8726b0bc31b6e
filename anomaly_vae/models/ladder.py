r"""A variational autoencoder of images whose codes come in layers, from the whole image to its details.

.. math::
    p(x, z) = p(x \mid z) \, p(z_1) \prod_{i > 1} p(z_i \mid z_{<i}), \qquad
    q(z \mid x) = q(z_1 \mid x) \prod_{i > 1} q(z_i \mid z_{<i}, x)

The first layer is a vector, as in `conv.ImageVAE`; each further one is a map at one of the smallest sizes, twice as
fine as the one before. One pass upwards finds features of the image at each size, without chance; one pass downwards
computes each layer's prior and, from the features as well, its posterior, which is stated relative to the prior: where
it says nothing it costs nothing.

With the prior's location and scale, mu and s, and the posterior's d and t relative to them, noise e picks

.. math:: u = d + t e, \quad z_i = \mu + s u, \quad
    \log p = \log N(u; 0, 1) - \log s, \quad \log q = \log N(e; 0, 1) - \log t - \log s

Shapes: as in `conv`; l is the width of all layers together, which lie side by side in noise and codes.

References:
    Sønderby et al. (2016), Ladder variational autoencoders, arXiv:1602.02282.
    Kingma et al. (2016), Improved variational inference with inverse autoregressive flow, arXiv:1606.04934, section 5.
    Vahdat & Kautz (2020), NVAE, arXiv:2007.03898, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..errors import ConfigError
from ..options import ImageConfig
from .bounds import HALF_LOG_2PI, Prior, Terms
from .conv import LAST, GivenClasses, ImageVAE, Residual, Scorer, convolution, halvings, normed, wide
from .fused import Rows
from .pixels import BRIGHTEST

MAPS = 3
"""Layers that are maps, at most: at the smallest sizes."""
MAP_CODES = 4
"""Codes of a map in each of its cells."""
SOFT_BOUND = 5.0
"""Log scales, of priors and relative to them, lie within this bound of 0."""


def soft(log_scale: Tensor) -> Tensor:
    """Return log scales within the bound, with a gradient everywhere."""
    return SOFT_BOUND * torch.tanh(log_scale / SOFT_BOUND)


def log_normal(u: Tensor, log_scale: Tensor) -> Tensor:
    """Return the log densities (n,) of Gaussians with these log scales at standardised codes u, (n, ...)."""
    return -(0.5 * u.square() + log_scale + HALF_LOG_2PI).flatten(1).sum(-1)


class Found(NamedTuple):
    """What a pass upwards finds.

    Attributes:
        above: The vector's posterior means and log scales, side by side, (n, 2 coded).
        features: Of the sizes that have layers, channels innermost, flat and side by side, (n, f).
    """

    above: Tensor
    features: Tensor


@dataclass
class Descent:
    """A pass downwards as far as it has come, of r = k n rows.

    Attributes:
        h: Features, (r, ., ., .).
        noise: What is left of the noise, or of codes that are given, (r, .).
        log_pz, log_qz: Of the codes so far, (r,).
        z, mean, log_scale: Codes so far and their posteriors' means and log scales, each (r, .).
    """

    h: Tensor
    noise: Tensor
    log_pz: Tensor
    log_qz: Tensor
    z: list[Tensor] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)
    log_scale: list[Tensor] = field(default_factory=list)

    def next(self, width: int) -> Tensor:
        """Take so much of the noise, (r, width)."""
        taken, self.noise = self.noise[:, :width], self.noise[:, width:]
        return taken

    def add(self, z: Tensor, mean: Tensor, log_scale: Tensor) -> None:
        """Note a layer's codes, posterior means and log scales."""
        for known, new in ((self.z, z), (self.mean, mean), (self.log_scale, log_scale)):
            known.append(new.flatten(1))


class Layer(nn.Module):
    """A map of codes at one size.

    Args:
        channels: Channels of the features, of both passes.
        blocks: Residual blocks before the codes.
        sides: Rows and columns of the map.
    """

    def __init__(self, channels: int, blocks: int, sides: tuple[int, int]) -> None:
        super().__init__()
        self.codes = (MAP_CODES, *sides)
        self.latent = MAP_CODES * sides[0] * sides[1]
        self.features = (*sides, channels)
        self.blocks = nn.Sequential(*(Residual(channels) for _ in range(blocks)))
        self.norm, self.image_norm = normed(channels), normed(channels)
        self.prior = convolution(channels, 2 * MAP_CODES, 1, zero=True)
        self.from_image, self.from_above = convolution(channels, channels), convolution(channels, channels)
        self.posterior = convolution(channels, 2 * MAP_CODES, zero=True)
        self.into = convolution(MAP_CODES, channels, 1)

    def draw(self, d: Descent, image: Tensor | None) -> None:
        """Take a descent through this layer, with codes from the posterior, or from the prior where there is no image.

        Args:
            d: The descent, of k n rows.
            image: The image's features of this size, (n, f), channels innermost, or None.
        """
        normal, location, log_scale = self._prior(d)
        shift, log_width = self._relative(normal, image) if image is not None else (0 * location, 0 * location)
        noise = d.next(self.latent).unflatten(1, self.codes)
        u = shift + log_width.exp() * noise
        d.log_pz = d.log_pz + log_normal(u, log_scale)
        d.log_qz = d.log_qz + log_normal(noise, log_width + log_scale)
        scale = log_scale.exp()
        z = location + scale * u
        d.add(z, location + scale * shift, log_width + log_scale)
        self._join(d, z)

    def given(self, d: Descent) -> None:
        """Take a descent through this layer by the codes at the front of its noise."""
        _, location, log_scale = self._prior(d)
        z = d.next(self.latent).unflatten(1, self.codes)
        d.log_pz = d.log_pz + log_normal((z - location) * (-log_scale).exp(), log_scale)
        self._join(d, z)

    def _prior(self, d: Descent) -> tuple[Tensor, Tensor, Tensor]:
        """Go to the codes; return the features there, and the prior's location and log scale, each (r, ., ., .)."""
        d.h = self.blocks(d.h)
        normal = F.silu(self.norm(d.h))
        location, log_scale = wide(self.prior(normal)).chunk(2, 1)
        return normal, location, soft(log_scale)

    def _relative(self, normal: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior's location and log scale in units of the prior, each (k n, ., ., .)."""
        seen = image.unflatten(1, self.features).permute(0, 3, 1, 2)
        found = self.from_image(F.silu(self.image_norm(seen)))
        above = self.from_above(normal).unflatten(0, (-1, len(found)))
        both = F.silu((above + found).flatten(0, 1)).contiguous(memory_format=LAST)
        shift, log_width = wide(self.posterior(both)).chunk(2, 1)
        return shift, soft(log_width)

    def _join(self, d: Descent, z: Tensor) -> None:
        d.h = d.h + self.into(z.contiguous(memory_format=LAST))


class LadderVAE(ImageVAE):
    """A VAE of images with a vector of codes above and maps of codes below it.

    It is an `ImageVAE` with layers in its decoder, and answers the same questions. Since a posterior depends on the
    codes above it, `posterior` states it along the path of the means, and `bounds.terms` asks for `terms`. What
    `encoded` returns is for `terms` alone.

    Args:
        shape: As of `ImageVAE`.
        config: As of `ImageVAE`; `latent` is the width of the vector. The prior must be the standard normal.
        classes: As of `ImageVAE`.

    Attributes:
        latent: l, the width of all layers together.
        coded: Width of the vector.

    Raises:
        ConfigError: The prior is another one.
    """

    def __init__(self, shape: Sequence[int], config: ImageConfig, classes: int = 0) -> None:
        if config.prior != "standard_normal":
            raise ConfigError(
                f"prior must be standard_normal for a ladder, whose lower layers learn theirs, got {config.prior!r}. "
                "Change prior, or model to vae.",
                option="prior",
                value=config.prior,
            )
        super().__init__(shape, config, classes)
        widths, (h, w) = self.frame.widths[::-1], self.frame.smallest
        count = min(MAPS, max(1, halvings(self.shape[1:])))
        self.layers = nn.ModuleList(Layer(widths[i], config.blocks, (h << i, w << i)) for i in range(count))
        self.latent = self.coded + sum(layer.latent for layer in self._maps())

    def _maps(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]

    def given(self, classes: Tensor) -> GivenClassesOfLadder:
        """Return the model of images of these classes, (n,), one of each row."""
        return GivenClassesOfLadder(self, classes)

    def encoded(self, entered: Tensor, classes: Tensor | None = None) -> Found:
        """Return what the pass upwards finds, for `terms`, for the network's input (n, m)."""
        with self._cheap(entered):
            features = self.encoder.features(self.frame.image(entered))
            h = wide(F.silu(self.encoder.norm(features[-1])).flatten(1))
        used = features[::-1][: len(self.layers)]
        flat = torch.cat([part.permute(0, 2, 3, 1).flatten(1) for part in used], 1)
        return Found(torch.cat(self.code(h, classes), 1), flat)

    def posterior(self, x: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return means and log standard deviations of all layers, each (n, l), along the path of the means.

        Raises:
            ShapeError: The rows have another number of pixels than the model's images.
        """
        return self.along_means(self.encoded(self.input(self.checked(x)), classes), self.told(x, classes))

    def told(self, x: Tensor, classes: Tensor | None) -> Tensor | None:
        """Return the classes of rows (n, m), (n,): those given beside them."""
        return classes

    def along_means(self, found: Found, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what `posterior` does, for what `encoded` found."""
        noise = found.above.new_zeros(1, len(found.above), self.latent)
        d = self._drawn(found, noise, classes=classes)[0]
        return torch.cat(d.mean, 1), torch.cat(d.log_scale, 1)

    def terms(
        self,
        x: Tensor,
        noise: Tensor,
        *,
        posterior: tuple[Tensor, Tensor] | None = None,
        prior: Prior | None = None,
        classes: Tensor | None = None,
    ) -> Terms:
        """Return the three log densities of rows (n, m) at the samples that the noise picks; see `bounds.terms`.

        Args:
            x: Rows of levels, (n, m).
            noise: Standard normal draws, (k, n, l).
            posterior: What `encoded` found, if known; or means and log scales of all layers, each (n, l), for layers
                that do not depend on each other.
            prior: Of the vector, if not the model's.
            classes: Of a conditional model, (n,).
        """
        if posterior is None or isinstance(posterior, Found):
            found = posterior or self.encoded(self.input(x), classes)
            d, maps = self._drawn(found, noise, prior=prior, classes=classes)
            z, mean, log_qz = torch.cat(d.z, 1).view(noise.shape), torch.cat(d.mean, 1)[: len(x)], d.log_qz
        else:
            mean, log_scale = posterior
            z = mean + log_scale.exp() * noise
            log_qz = log_normal(noise.flatten(0, 1), log_scale.expand(noise.shape).flatten(0, 1))
            d, maps = self._given(z, prior=prior, classes=classes)
        kn = noise.shape[:2]
        images = x.to(maps.dtype).view(-1, *self.shape)
        log_px = self.likelihood.log_prob(maps.unflatten(0, kn), images)  # type: ignore[operator]
        return Terms(log_px, d.log_pz.unflatten(0, kn), log_qz.unflatten(0, kn), z, mean)

    def _through(self, d: Descent, step: Callable[[Layer, int], None]) -> Tensor:
        """Take a descent to its end, by a step at each layer; return the maps, (r, width, h, w)."""
        with self._cheap(d.noise):
            for i, stage in enumerate([*self.decoder.up, nn.Identity()]):
                if i < len(self.layers):
                    step(self._maps()[i], i)
                d.h = stage(d.h)
            return self.frame.cropped(self.decoder.finished(d.h))

    def _drawn(
        self, found: Found, noise: Tensor, *, prior: Prior | None = None, classes: Tensor | None = None
    ) -> tuple[Descent, Tensor]:
        """Return a descent by noise (k, n, l), and its maps."""
        top = noise[..., : self.coded]
        mean, log_scale = found.above.expand(len(noise), -1, -1).chunk(2, -1)
        z = mean + log_scale.exp() * top
        log_pz = (prior or self.prior).log_prob(z).flatten(0, 1)
        log_qz = log_normal(top.flatten(0, 1), log_scale.flatten(0, 1))
        d = Descent(self.core(z, classes), noise[..., self.coded :].flatten(0, 1), log_pz, log_qz)
        d.add(*(part.flatten(0, 1) for part in (z, mean, log_scale)))
        images = found.features.split([math.prod(layer.features) for layer in self._maps()], 1)
        return d, self._through(d, lambda layer, i: layer.draw(d, images[i]))

    def _given(self, z: Tensor, *, prior: Prior | None = None, classes: Tensor | None = None) -> tuple[Descent, Tensor]:
        """Return a descent by codes (..., l), and its maps."""
        top = z[..., : self.coded]
        log_pz = (prior or self.prior).log_prob(top).flatten()
        d = Descent(self.core(top, classes), z.flatten(0, -2)[:, self.coded :], log_pz, torch.zeros_like(log_pz))
        return d, self._through(d, lambda layer, _: layer.given(d))

    def decoded(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return the likelihood's maps, (..., width, h, w), for codes of all layers (..., l)."""
        return self._given(z, classes=classes)[1].unflatten(0, z.shape[:-1])

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, classes: Tensor | None = None) -> Tensor:
        """Return n images drawn from the model, whole levels, (n, m), computed on the CPU."""
        z = self.prior.sample(n, generator)
        noise = torch.randn(n, self.latent - self.coded, generator=generator)
        d = Descent(self.core(z, classes), noise, noise.new_zeros(n), noise.new_zeros(n))
        maps = self._through(d, lambda layer, _: layer.draw(d, None))
        return self.likelihood.sample(maps, generator).round().clamp(0, BRIGHTEST)  # type: ignore[operator]

    def scorer(self, precision: str | None = None) -> LadderScorer:
        """Return what scores with this model; `precision` is for tables and has no meaning here."""
        return LadderScorer(self)


class GivenClassesOfLadder(GivenClasses):
    """A conditional ladder with the classes of the rows, (n,)."""

    model: LadderVAE

    def terms(
        self,
        x: Tensor,
        noise: Tensor,
        *,
        posterior: tuple[Tensor, Tensor] | None = None,
        prior: Prior | None = None,
    ) -> Terms:
        """See `LadderVAE.terms`."""
        return self.model.terms(x, noise, posterior=posterior, prior=prior, classes=self.classes)


class LadderScorer(Scorer):
    """What `detection.scores` asks of a model, answered by a ladder."""

    model: LadderVAE

    def rows(self, x: Tensor, classes: Tensor | None = None) -> Rows:
        """Return rows of levels (n, m), perhaps of classes (n,), with posteriors along the path of the means."""
        found = self.model.encoded(self.model.input(self.model.checked(x)), classes)
        mean, log_scale = self.model.along_means(found, self.model.told(x, classes))
        features = torch.cat(found, 1)
        return Rows(x, mean, log_scale, log_scale.exp(), log_scale.sum(-1), context=classes, features=features)

    def _terms(self, rows: Rows, noise: Tensor) -> Terms:
        assert rows.features is not None
        width = 2 * self.model.coded
        found = Found(rows.features[:, :width], rows.features[:, width:])
        noise = noise[:, None].expand(-1, len(rows.x), -1)
        return self.model.terms(rows.x, noise, posterior=found, classes=rows.context)

    def codes(self, rows: Rows, noise: Tensor) -> Tensor:
        """Return the samples (k, n, l) that the noise (k, l) picks."""
        return self._terms(rows, noise).z

    def log_px(self, rows: Rows, noise: Tensor) -> Tensor:
        """Return log p(x_c|z) of each pixel, (k, n, m), at these samples."""
        return self._terms(rows, noise).log_px

    def log_densities(self, rows: Rows, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and the log weights, each (k, n), at these samples."""
        t = self._terms(rows, noise)
        return t.log_px.sum(-1), t.log_weights
