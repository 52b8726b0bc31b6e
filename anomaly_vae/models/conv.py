"""The variational autoencoder of images.

Residual convolutions, and why as they are:

- **Group normalisation**, since batch normalisation would make an image's score depend on its company.
- **Few layers at full size.** Blocks begin after the first halving, where an image has a quarter of the cells; at full
  size there is one convolution inwards and two outwards. Half of the work would lie there otherwise.
- **Channels innermost in memory, and a multiple of 16 of them**, as processors' convolution kernels want it.
- **Residual branches and outputs start at zero**, so that training starts from the mean image, with q(z|x) = N(0, I).
- **Training in bfloat16** where the processor multiplies it faster; what makes nats of it (codes, likelihoods, sums)
  stays float32, and scoring is float32 throughout.

Shapes: k posterior samples, n images of c channels, h rows and w columns of pixels, m = c h w, l latent width. A row of
data is an image's levels, 0 to 255, channel by channel, flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..errors import ShapeError
from ..options import ImageConfig
from .bounds import HALF_LOG_2PI
from .fused import Rows
from .networks import padded
from .pixels import BRIGHTEST, PIXEL_LIKELIHOODS
from .priors import PRIORS, Prior
from .subspace import FEATURES, MOST_ROWS, SubspaceMixture, features_of
from .vae import LOG_SCALE_BOUND

SMALLEST_SIDE = 7
"""Sides are halved until none is longer."""
SPLIT = 64
"""A convolution is many products, each waited for: on small images a second thread gains little, and where cores are
busy it costs a factor of ten. Only images of about 64 pixels a side and more get one."""
WIDEST = 4
"""Channels of small images, as a multiple of those at full size."""
GROUP = 16
"""Channels normalised together: a whole vector of the processor. Fewer cost ten times as much there."""
TOLD = 8.0
"""What a class's vectors are multiplied by, and so how fast they are learned. Knowing the class is worth at most its
entropy, log 2 nats of hundreds for two classes: at the pace of the other weights it would hardly be looked at."""
LAST = torch.channels_last


def multiplies_bfloat16() -> bool:
    """Return whether this processor has instructions for products of bfloat16."""
    facts: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16") or facts.get("amx_tile") or facts.get("arm_bf16"))


def halvings(sides: Sequence[int]) -> int:
    """Return how often to halve the sides.

    Example:
        >>> [halvings(sides) for sides in [(8, 8), (28, 28), (128, 96)]]
        [1, 2, 5]
    """
    longest, count = max(sides), 0
    while longest > SMALLEST_SIDE:
        longest, count = -(-longest // 2), count + 1
    return count


def wide(h: Tensor) -> Tensor:
    """Return values in float32 at least."""
    return h.float() if h.dtype == torch.bfloat16 else h


def normed(channels: int) -> nn.GroupNorm:
    """Return the normalisation of so many channels, a multiple of 16."""
    return nn.GroupNorm(channels // GROUP, channels)


def convolution(inward: int, outward: int, size: int = 3, *, stride: int = 1, zero: bool = False) -> nn.Conv2d:
    """Return a convolution that keeps an image's sides, or halves them at stride 2; with `zero` it starts at 0."""
    layer = nn.Conv2d(inward, outward, size, stride=stride, padding=size // 2)
    if zero:
        nn.init.zeros_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """Two normalised convolutions beside the identity.

    Args:
        channels: Channels in and out.

    References:
        He et al. (2016), Identity mappings in deep residual networks, arXiv:1603.05027.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = normed(channels), normed(channels)
        self.first, self.second = convolution(channels, channels), convolution(channels, channels, zero=True)

    def forward(self, h: Tensor) -> Tensor:
        """Map (n, channels, h, w) to the same."""
        y = self.first(F.silu(self.first_norm(h)))
        return h + self.second(F.silu(self.second_norm(y)))


class Down(nn.Sequential):
    """Halve the sides, then residual blocks."""

    def __init__(self, inward: int, outward: int, blocks: int) -> None:
        super().__init__(convolution(inward, outward, stride=2), *(Residual(outward) for _ in range(blocks)))


class Up(nn.Sequential):
    """Residual blocks, then double the sides: four channels become four neighbours."""

    def __init__(self, inward: int, outward: int, blocks: int) -> None:
        spread = convolution(inward, 4 * outward, 1)
        super().__init__(*(Residual(inward) for _ in range(blocks)), spread, nn.PixelShuffle(2))


class Frame:
    """The sizes of an image on its way through a network.

    Args:
        shape: Channels c, rows h and columns w of an image.
        channels: Channels at full size, rounded up to a multiple of 16.

    Attributes:
        widths: Channels at full size and after each halving.
        margins: Columns and rows of pixels to add on the right and below, so that sides can be halved.
        smallest: Sides after all halvings.
    """

    def __init__(self, shape: Sequence[int], channels: int) -> None:
        c, h, w = shape
        self.shape = (c, h, w)
        count = halvings((h, w))
        self.widths = [padded(channels) * min(2**i, WIDEST) for i in range(count + 1)]
        self.margins = (-w % 2**count, -h % 2**count)
        self.smallest = ((h + self.margins[1]) >> count, (w + self.margins[0]) >> count)
        self.core = self.widths[-1] * self.smallest[0] * self.smallest[1]

    def image(self, flat: Tensor) -> Tensor:
        """Return images (n, c, h', w'), grown by the margins, of flat ones (n, m)."""
        x = flat.view(-1, *self.shape)
        if any(self.margins):
            x = F.pad(x, (0, self.margins[0], 0, self.margins[1]), mode="replicate")
        return x.contiguous(memory_format=LAST)

    def cropped(self, maps: Tensor) -> Tensor:
        """Return maps (n, ., h, w) without the margins."""
        return maps[..., : self.shape[1], : self.shape[2]]

    def largest_product(self) -> int:
        """Return the multiply-adds that count for threads: of the largest convolution, as the small products it is."""
        _, h, w = self.shape
        return 9 * h * w * self.widths[0] ** 2 // SPLIT


class Encoder(nn.Module):
    """Images to features of the smallest size.

    Args:
        frame: Sizes.
        blocks: Residual blocks at each size but the full one.
    """

    def __init__(self, frame: Frame, blocks: int) -> None:
        super().__init__()
        widths = frame.widths
        self.stem = convolution(frame.shape[0], widths[0])
        self.down = nn.ModuleList(Down(a, b, blocks) for a, b in pairwise(widths))
        self.norm = normed(widths[-1])

    def features(self, x: Tensor) -> list[Tensor]:
        """Return features at each size, the full one first, for images (n, c, h', w')."""
        found = [self.stem(x)]
        for stage in self.down:
            found.append(stage(found[-1]))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, core) float32 features of the smallest size for images (n, c, h', w')."""
        return wide(F.silu(self.norm(self.features(x)[-1])).flatten(1))


class Decoder(nn.Module):
    """Features of the smallest size to maps of the full size.

    Args:
        frame: Sizes.
        blocks: Residual blocks at each size but the full one.
        width: Maps.
    """

    def __init__(self, frame: Frame, blocks: int, width: int) -> None:
        super().__init__()
        widths = frame.widths[::-1]
        self.up = nn.ModuleList(Up(a, b, blocks) for a, b in pairwise(widths))
        self.norm = normed(widths[-1])
        self.fine = convolution(widths[-1], widths[-1])
        self.maps = convolution(widths[-1], width, zero=True)

    def forward(self, h: Tensor) -> Tensor:
        """Map (n, widest, ., .) to float32 maps (n, width, h', w')."""
        for stage in self.up:
            h = stage(h)
        return self.finished(h)

    def finished(self, h: Tensor) -> Tensor:
        """Map features of the full size (n, ., h', w') to float32 maps (n, width, h', w')."""
        return wide(self.maps(F.silu(self.fine(F.silu(self.norm(h))))))


class ImageVAE(nn.Module):
    """A VAE of images with one layer of codes.

    Args:
        shape: Channels c, rows h and columns w of an image; any h and w.
        config: Architecture: `latent`, `channels`, `blocks`, `pixels`, `prior`, `mixed_precision`.
        classes: Number of classes of a conditional model; 0 for none. Where none is `given`, such a model answers for
            an unknown one.

    Attributes:
        columns: m.
        companions: Mixtures of Gaussians of the pixels, of their edges and tones; none before training.

    References:
        Kingma & Welling (2014), arXiv:1312.6114; Sohn, Lee & Yan (2015), Learning structured output representation
        using deep conditional generative models.
    """

    precision = "float32"
    described = ()

    def __init__(self, shape: Sequence[int], config: ImageConfig, classes: int = 0) -> None:
        super().__init__()
        self.frame = Frame(shape, config.channels)
        self.shape = self.frame.shape
        self.columns = self.shape[0] * self.shape[1] * self.shape[2]
        self.input_width = self.columns
        self.discrete: list[bool] = []
        self.latent, self.classes = config.latent, classes
        self.coded = config.latent
        self.mixed = config.mixed_precision
        self.largest_product = self.frame.largest_product()
        self.likelihood = PIXEL_LIKELIHOODS[config.pixels](self.shape[0])
        self.encoder = Encoder(self.frame, config.blocks)
        self.decoder = Decoder(self.frame, config.blocks, int(self.likelihood.width))  # type: ignore[arg-type]
        self.to_code = nn.Linear(self.frame.core, padded(2 * self.latent))
        self.from_code = nn.Linear(self.latent, self.frame.core)
        for parameter in self.to_code.parameters():
            nn.init.zeros_(parameter)
        self.embedding = nn.Embedding(classes, 2 * self.frame.core) if classes else None
        if self.embedding is not None:
            nn.init.zeros_(self.embedding.weight)
        self.prior: Prior = PRIORS[config.prior](self.latent)
        self.companions = nn.ModuleDict()

    def given(self, classes: Tensor) -> GivenClasses:
        """Return the model of images of these classes, (n,), one of each row."""
        return GivenClasses(self, classes)

    def levels(self, x: Tensor) -> Tensor:
        """Return the levels of rows, (n, c h w): a model that is told classes has rows that end in one."""
        return x

    def seen(self, x: Tensor) -> Tensor:
        """Return the pixels of rows (n, m) in [-1, 1], (n, c h w)."""
        return self.levels(x).to(self.to_code.weight.dtype) * (2 / BRIGHTEST) - 1

    def input(self, x: Tensor) -> Tensor:
        """Return the encoder's input, (n, m), in [-1, 1], for rows of levels (n, m)."""
        return self.seen(x)

    def posterior(self, x: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean and log standard deviation of q(z|x), each (n, l), for rows of levels (n, m).

        Raises:
            ShapeError: The rows have another number of pixels than the model's images.
        """
        return self.encoded(self.input(self.checked(x)), classes)

    def checked(self, x: Tensor) -> Tensor:
        """Return the rows of levels as they are.

        Raises:
            ShapeError: They have not the shape (n, m).
        """
        if x.dim() != 2 or x.shape[1] != self.columns:
            c, h, w = self.shape
            told = " and a class" if self.columns > c * h * w else ""
            raise ShapeError(
                f"images must be rows of {c} x {h} x {w} = {c * h * w} levels{told}, got shape {tuple(x.shape)}. "
                "Bring them to the model's size and channels first."
            )
        return x

    def encoded(self, entered: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean and log standard deviation of q(z|x), each (n, l), for the network's input (n, m)."""
        with self._cheap(entered):
            h = self.encoder(self.frame.image(entered))
        return self.code(h, classes)

    def code(self, h: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean and log standard deviation of a vector of codes, each (n, .), for features (n, core)."""
        if self.embedding is not None and classes is not None:
            h = h + TOLD * self.embedding(classes)[:, : self.frame.core]
        mean, log_scale = self.to_code(h)[:, : 2 * self.coded].chunk(2, -1)
        return mean, log_scale.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)

    def core(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return where the decoder starts, (r, widest, ., .), for a vector of codes, (..., l), r of them in all."""
        h = self.from_code(z)
        if self.embedding is not None and classes is not None:
            h = h + TOLD * self.embedding(classes)[:, self.frame.core :]
        return h.view(-1, self.frame.widths[-1], *self.frame.smallest).contiguous(memory_format=LAST)

    def decoded(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return the likelihood's maps, (..., width, h, w), for codes (..., l), with classes (..., n, l)."""
        with self._cheap(z):
            maps = self.frame.cropped(self.decoder(self.core(z, classes)))
        return maps.unflatten(0, z.shape[:-1])

    def log_px_given_z(self, x: Tensor, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return log p(x_c|z) of each pixel, (k, n, m), for rows of levels (n, m) and codes (k, n, l)."""
        maps = self.decoded(z, classes)
        return self.likelihood.log_prob(maps, x.to(maps.dtype).view(-1, *self.shape))  # type: ignore[operator]

    def reconstruct(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return expected levels, (..., m), for codes (..., l)."""
        return self.likelihood.mean(self.decoded(z, classes))  # type: ignore[operator]

    def reconstruct_given(self, z: Tensor, x: Tensor) -> Tensor:
        """Return expected levels, (n, c h w), for codes (n, l) of rows (n, m), which say what the model is told."""
        return self.reconstruct(z)

    def best(self, x: Tensor) -> Tensor:
        """Return the most that the likelihood could give each pixel of rows (n, m), (n, c h w)."""
        levels = self.levels(x).to(self.to_code.weight.dtype)
        return self.likelihood.best(levels.view(-1, *self.shape))  # type: ignore[operator]

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, classes: Tensor | None = None) -> Tensor:
        """Return n images drawn from the model, whole levels, (n, m), computed on the CPU."""
        z = self.prior.sample(n, generator)
        drawn = self.likelihood.sample(self.decoded(z, classes), generator)  # type: ignore[operator]
        return drawn.round().clamp(0, BRIGHTEST)

    @torch.no_grad()
    def accompany(self, x: Tensor, *, held: Tensor, config: ImageConfig, weights: Tensor | None = None) -> None:
        """Fit the companions, which the default score also looks at (see `subspace`).

        Args:
            x: Training images, (n, m), levels.
            held: Not used: the density of what the companions say is fitted to these, so they must not have seen them.
            config: The seed of the draw and of the starts.
            weights: Not used.
        """
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(config.seed))[:MOST_ROWS]]
        x = self.levels(x).cpu()
        for name in FEATURES:
            self.companions[name] = SubspaceMixture.fitted(features_of(name, x, self.shape), seed=config.seed)

    def scorer(self, precision: str | None = None) -> Scorer:
        """Return what scores with this model; `precision` is for tables and has no meaning here."""
        return Scorer(self)

    def _cheap(self, like: Tensor) -> AbstractContextManager[object]:
        """Compute layers in bfloat16 inside, in training on a device that is the faster for it."""
        kind = like.device.type
        if self.training and self.mixed and (kind == "cuda" or (kind == "cpu" and multiplies_bfloat16())):
            return torch.autocast(kind, torch.bfloat16)
        return nullcontext()


class GivenClasses:
    """A conditional model with the classes of the rows, (n,): a `bounds.LatentVariableModel` of p(x|class)."""

    def __init__(self, model: ImageVAE, classes: Tensor) -> None:
        self.model, self.classes = model, classes

    @property
    def prior(self) -> Prior:
        """p(z), the same for all classes."""
        return self.model.prior

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `ImageVAE.posterior`."""
        return self.model.posterior(x, self.classes)

    def encoded(self, entered: Tensor) -> tuple[Tensor, Tensor]:
        """See `ImageVAE.encoded`."""
        return self.model.encoded(entered, self.classes)

    def log_px_given_z(self, x: Tensor, z: Tensor) -> Tensor:
        """See `ImageVAE.log_px_given_z`."""
        return self.model.log_px_given_z(x, z, self.classes)

    def reconstruct(self, z: Tensor) -> Tensor:
        """See `ImageVAE.reconstruct`."""
        return self.model.reconstruct(z, self.classes)


class Scorer:
    """What `detection.scores` asks of a model, as `fused.FusedVAE` answers it for tables.

    Args:
        model: Trained model, in eval mode.
    """

    precision = "float32"

    def __init__(self, model: ImageVAE) -> None:
        self.model = model

    def rows(self, x: Tensor, classes: Tensor | None = None) -> Rows:
        """Return rows of levels (n, m), perhaps of classes (n,), with their posteriors."""
        mean, log_scale = self.model.posterior(x, classes)
        return Rows(x, mean, log_scale, log_scale.exp(), log_scale.sum(-1), context=classes)

    def codes(self, rows: Rows, noise: Tensor) -> Tensor:
        """Return the samples (k, n, l) that the noise (k, l) picks."""
        if rows.root is not None:
            return rows.mean + rows.moved(noise)
        return torch.addcmul(rows.mean, rows.scale, noise[:, None, :])

    def log_px(self, rows: Rows, noise: Tensor) -> Tensor:
        """Return log p(x_c|z) of each pixel, (k, n, m), at these samples."""
        return self.model.log_px_given_z(rows.x, self.codes(rows, noise), rows.context)

    def log_densities(self, rows: Rows, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and the log weights, each (k, n), at these samples."""
        z = self.codes(rows, noise)
        log_px = self.model.log_px_given_z(rows.x, z, rows.context).sum(-1)
        log_qz = -(0.5 * noise.square().sum(-1, keepdim=True) + rows.spread + HALF_LOG_2PI * noise.shape[-1])
        return log_px, log_px + self.model.prior.log_prob(z) - log_qz
