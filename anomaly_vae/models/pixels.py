r"""Likelihoods p(x | z) of pixels.

Pixels are levels 0 to 255. Each family reads the decoder's maps and gives every channel of every pixel its log density
in nats of levels: densities over [0, 1] carry the Jacobian, log 255. No density exceeds one per level: a sharper one
would speak of differences that 256 levels cannot show, and nothing would bound it.

========================  ===================================================  ======================
name                      a pixel is                                           maps per channel
========================  ===================================================  ======================
`continuous_bernoulli`    continuous on [0, 255], between dark and bright      1
`bernoulli`               dark or bright: above or below half                  1
`discretized_logistic`    one of 256 levels, a mixture of logistics            3 `COMPONENTS`
`gaussian`                real, with a mean and a variance of its own          2
========================  ===================================================  ======================

Shapes: n images of c channels, h rows and w columns of pixels, m = c h w.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .bounds import HALF_LOG_2PI

LEVELS = 256
BRIGHTEST = LEVELS - 1.0
LARGEST_ETA = BRIGHTEST
"""Bound on a continuous Bernoulli's natural parameter: at it a black pixel has a density of one per level."""
SERIES_BELOW = 0.3
"""Natural parameters nearer to 0 than this are served by a series, others by the closed form."""
COMPONENTS = 5
"""Logistics in the mixture of a pixel."""
NARROWEST_LOGISTIC = -7.0
"""Least log scale of a logistic over [-1, 1], as PixelCNN++ has it: a ninth of a level."""
WIDEST_LOGISTIC = 5.0
"""Largest log scale of a logistic: all levels between the outer two are equally likely then, to float32's precision."""
NOISE_FLOOR = 1.0
"""Least standard deviation of a Gaussian pixel, levels."""
FIRST_NOISE = 32.0
"""Standard deviation of a Gaussian pixel before training, levels."""


class PixelLikelihood(Protocol):
    """A family of distributions of pixels.

    Attributes:
        width: Maps it wants from the decoder.
    """

    width: int

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return nats of each pixel, (..., m), for maps (..., width, h, w) and images (n, c, h, w) of levels."""

    def best(self, x: Tensor) -> Tensor:
        """Return the most that the family can give each pixel of images (n, c, h, w), (n, m)."""

    def mean(self, params: Tensor) -> Tensor:
        """Return expected levels, (..., m), for maps (..., width, h, w)."""

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """Draw levels, (..., m), for maps (..., width, h, w)."""


def _flat(pixels: Tensor) -> Tensor:
    return pixels.flatten(-3)


def log_sinhc(a: Tensor) -> Tensor:
    r"""Return :math:`\log(\sinh(a) / a)` for any a, to float32's precision at 0 as elsewhere.

    Example:
        >>> [float(f"{v:.6g}") for v in log_sinhc(torch.tensor([0.0, 1e-3, 200.0]))]
        [0.0, 1.66667e-07, 194.009]
    """
    size = 2 * a.abs()
    far = size.clamp(min=SERIES_BELOW)
    closed = 0.5 * far + torch.log(-torch.expm1(-far) / far)
    square = size.square()
    return torch.where(size < SERIES_BELOW, square * (1 / 24 - square * (1 / 2880 - square / 181_440)), closed)


class ContinuousBernoulli(nn.Module):
    r"""Densities :math:`\propto e^{\eta v}` of :math:`v = x / 255` in [0, 1].

    .. math:: \log p(x) = \eta (v - \tfrac12) - \log \frac{\sinh(\eta / 2)}{\eta / 2} - \log 255

    DIFF: the natural parameter is bounded, smoothly, by `LARGEST_ETA`; else black and white have no largest density.

    Args:
        channels: Channels c of the images.

    References:
        Loaiza-Ganem & Cunningham (2019), The continuous Bernoulli, arXiv:1907.06845.
    """

    largest: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = channels
        self.register_buffer("largest", _largest_continuous_bernoulli(), persistent=False)

    @staticmethod
    def natural(params: Tensor) -> Tensor:
        """Return the natural parameters, within the bound, for maps of any shape."""
        return params * torch.rsqrt(1 + (params / LARGEST_ETA).square())

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return nats of each pixel, (..., m), for maps (..., c, h, w) and images (n, c, h, w) of levels."""
        eta = self.natural(params)
        return _flat(eta * (x / BRIGHTEST - 0.5) - log_sinhc(0.5 * eta) - math.log(BRIGHTEST))

    def best(self, x: Tensor) -> Tensor:
        """Return the most that any natural parameter gives each pixel, (n, m); levels are rounded to whole ones."""
        return _flat(self.largest[x.round().clamp(0, BRIGHTEST).long()])

    def mean(self, params: Tensor) -> Tensor:
        """Return expected levels, (..., m): of v they are 1 / (1 - exp(-eta)) - 1 / eta."""
        eta = self.natural(params)
        far = torch.where(eta.abs() < SERIES_BELOW, SERIES_BELOW, eta)
        closed = -1 / torch.expm1(-far) - 1 / far
        near = 0.5 + eta / 12 * (1 - eta.square() / 60)
        return _flat(BRIGHTEST * torch.where(eta.abs() < SERIES_BELOW, near, closed))

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """Draw levels, not rounded, (..., m), by the inverse of the distribution function."""
        eta = self.natural(params)
        u = torch.rand(eta.shape, generator=generator)
        down = -eta.abs().clamp(min=1e-4)  # of the mirrored pixel where bright is likelier: no exponential overflows
        v = torch.log1p(u * torch.expm1(down)) / down
        return _flat(BRIGHTEST * torch.where(eta > 0, 1 - v, v).clamp(0, 1))


def _largest_continuous_bernoulli() -> Tensor:
    """Return the largest log density of each of the 256 levels, by bisection for the natural parameter."""
    v = torch.arange(LEVELS, dtype=torch.float64) / BRIGHTEST
    low, high = (torch.full_like(v, sign * LARGEST_ETA) for sign in (-1, 1))
    for _ in range(80):
        eta = 0.5 * (low + high) + 1e-12
        too_low = -1 / torch.expm1(-eta) - 1 / eta < v
        low, high = torch.where(too_low, eta, low), torch.where(too_low, high, eta)
    eta = 0.5 * (low + high)
    return (eta * (v - 0.5) - log_sinhc(0.5 * eta) - math.log(BRIGHTEST)).float()


class Bernoulli(nn.Module):
    """Probabilities of bright pixels, of at least half the brightest level, against dark ones.

    What is modelled is the image of two levels, so that the probabilities of all images sum to 1; exponentials of the
    cross-entropies of grey levels would not.

    Args:
        channels: Channels c of the images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = channels

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return nats of each pixel, (..., m), for logits (..., c, h, w) and images (n, c, h, w) of levels."""
        return _flat(F.logsigmoid(torch.where(x > 0.5 * BRIGHTEST, params, -params)))

    def best(self, x: Tensor) -> Tensor:
        """Return zeros, (n, m): certainty."""
        return torch.zeros(x.shape, device=x.device).flatten(-3)

    def mean(self, params: Tensor) -> Tensor:
        """Return expected levels, (..., m)."""
        return _flat(BRIGHTEST * params.sigmoid())

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """Draw black and white, (..., m)."""
        return _flat(BRIGHTEST * torch.bernoulli(params.sigmoid(), generator=generator))


class DiscretizedLogistic(nn.Module):
    r"""Probabilities of 256 levels: what a mixture of logistics has between a level's edges, the outer ones infinite.

    With :math:`\sigma(a) - \sigma(b) = \sigma(a)\, \sigma(-b)\, (1 - e^{b - a})` no difference of nearly equal numbers
    is taken, however far in the tail a level lies.

    DIFF: channels are independent given z; PixelCNN++ lets green depend on red and blue on both.

    Args:
        channels: Channels c of the images.

    References:
        Salimans, Karpathy, Chen & Kingma (2017), PixelCNN++, arXiv:1701.05517, section 2.1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.width = 3 * COMPONENTS * channels
        self.offset = nn.Parameter(torch.linspace(-0.8, 0.8, COMPONENTS)[:, None, None, None].clone())
        """Where components start, so that they are not all the same one."""

    def _mixture(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights, means and log scales over [-1, 1], each (..., COMPONENTS, c, h, w)."""
        parts = params.unflatten(-3, (3, COMPONENTS, self.channels)).unbind(-5)
        log_scales = NARROWEST_LOGISTIC + F.softplus(parts[2] - NARROWEST_LOGISTIC - 2.0)
        log_scales = log_scales.clamp(max=WIDEST_LOGISTIC)
        return torch.log_softmax(parts[0], -4), parts[1] + self.offset, log_scales

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return nats of each pixel, (..., m), for maps (..., width, h, w) and images (n, c, h, w) of levels."""
        log_weights, means, log_scales = self._mixture(params)
        x = x[:, None]
        precision = (-log_scales).exp()
        half = precision / BRIGHTEST
        middle = ((x * (2 / BRIGHTEST) - 1) - means) * precision
        below = torch.where(x > 0, F.logsigmoid(half - middle), 0.0)
        above = torch.where(x < BRIGHTEST, F.logsigmoid(half + middle), 0.0)
        inner = (x > 0) & (x < BRIGHTEST)
        both = torch.where(inner, torch.log(-torch.expm1(-2 * half)), 0.0)
        return _flat(torch.logsumexp(log_weights + below + above + both, -4))

    def best(self, x: Tensor) -> Tensor:
        """Return zeros, (n, m): certainty."""
        return torch.zeros(x.shape, device=x.device).flatten(-3)

    def mean(self, params: Tensor) -> Tensor:
        """Return expected levels, (..., m), to a small part of a level: of the mixture cut off at black and white."""
        log_weights, means, log_scales = self._mixture(params)
        precision = (-log_scales).exp()
        upward = F.softplus((means + 1) * precision) - F.softplus((means - 1) * precision)
        return _flat(0.5 * BRIGHTEST * (log_weights.exp() * upward / precision).sum(-4))

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """Draw whole levels, (..., m)."""
        log_weights, means, log_scales = self._mixture(params)
        gumbel = -torch.log(-torch.log(_inner_uniform(log_weights, generator)))
        chosen = (log_weights + gumbel).argmax(-4, keepdim=True)
        mean, log_scale = (part.gather(-4, chosen).squeeze(-4) for part in (means, log_scales))
        drawn = mean + log_scale.exp() * torch.logit(_inner_uniform(mean, generator))
        return _flat((0.5 * BRIGHTEST * (drawn + 1)).round().clamp(0, BRIGHTEST))


def _inner_uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return uniform draws of this shape, inside (0, 1)."""
    return torch.rand(like.shape, generator=generator).clamp(1e-6, 1 - 1e-6)


class Gaussian(nn.Module):
    """Normal pixels with a mean and a standard deviation of their own, the latter at least `NOISE_FLOOR`.

    Args:
        channels: Channels c of the images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = 2 * channels

    @staticmethod
    def _normal(params: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations, levels, each (..., c, h, w); maps of zeros are middle grey."""
        mean, spread = params.chunk(2, -3)
        return 0.5 * BRIGHTEST * (mean + 1), NOISE_FLOOR + FIRST_NOISE * spread.clamp(max=10.0).exp()

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return nats of each pixel, (..., m), for maps (..., 2 c, h, w) and images (n, c, h, w) of levels."""
        mean, noise = self._normal(params)
        return _flat(-0.5 * ((x - mean) / noise).square() - noise.log() - HALF_LOG_2PI)

    def best(self, x: Tensor) -> Tensor:
        """Return the log density at the mean under the noise floor, (n, m)."""
        return torch.full(x.shape, -HALF_LOG_2PI - math.log(NOISE_FLOOR), device=x.device).flatten(-3)

    def mean(self, params: Tensor) -> Tensor:
        """Return expected levels, (..., m)."""
        return _flat(self._normal(params)[0])

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """Draw levels, not rounded, (..., m)."""
        mean, noise = self._normal(params)
        return _flat(mean + noise * torch.randn(mean.shape, generator=generator))


PIXEL_LIKELIHOODS: dict[str, Callable[[int], nn.Module]] = {
    "continuous_bernoulli": ContinuousBernoulli,
    "bernoulli": Bernoulli,
    "discretized_logistic": DiscretizedLogistic,
    "gaussian": Gaussian,
}
"""Families by name; each takes the number of channels."""
