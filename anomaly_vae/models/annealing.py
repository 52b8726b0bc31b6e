r"""Annealed importance sampling of codes: samples that walk from the encoder's posterior towards the true one.

Where codes come in layers (`ladder`) no normal distribution is near the posterior, and of thousands of the encoder's
samples a few decide. Seen as noise e the encoder's samples are standard normal, and their log weights w(e) say how the
posterior differs from that. A walk goes through densities in between, for b from 0 to 1,

.. math:: \pi_b(e) \propto \mathcal N(e; 0, I)\, e^{b\, w(e)}, \qquad
    \log W = \sum_t (b_{t+1} - b_t)\, w(e_t)

with a step of Hamiltonian Monte Carlo at each, and :math:`E\,W = p(x)` however few the steps and however often a move
is refused: W takes the place of an importance weight. Its log varies the less the more steps there are.

The normal part of the dynamics is solved exactly, it is a rotation of noise and momentum; w gives kicks before and
after. So the length of a step need not shrink with the number of codes. The momentum is renewed in part only, and is
turned round where a move is refused (Horowitz 1991).

Shapes: k samples, n rows, l latent width.

References:
    Neal (2001), Annealed importance sampling, arXiv:physics/9803008.
    Wu, Burda, Salakhutdinov & Grosse (2017), On the quantitative analysis of decoder-based generative models,
        arXiv:1611.04273.
    Shahbaba, Lan, Johnson & Neal (2014), Split Hamiltonian Monte Carlo, arXiv:1106.5941.
    Horowitz (1991), A generalized guided Monte Carlo algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import bounds
from .family import Model

ANGLE = 0.65
"""Of the rotation in a step, radians."""
KEPT = 0.6
"""What is kept of the momentum from step to step."""


@dataclass(frozen=True)
class _Place:
    """Where k walks of n rows are: noise (k, n, l), log weights (k, n) and their gradients (k, n, l)."""

    noise: Tensor
    log_w: Tensor
    slope: Tensor

    def energy(self, momentum: Tensor, b: float) -> Tensor:
        """Return minus the log density of noise and momentum, (k, n), but for a constant."""
        return 0.5 * (self.noise.square().sum(-1) + momentum.square().sum(-1)) - b * self.log_w

    def if_accepted(self, accepted: Tensor, before: _Place) -> _Place:
        """Return this place where the move to it is accepted, (k, n), or else the one before."""
        return _Place(
            torch.where(accepted[..., None], self.noise, before.noise),
            torch.where(accepted, self.log_w, before.log_w),
            torch.where(accepted[..., None], self.slope, before.slope),
        )


def annealed(model: Model, x: Tensor, *, samples: int, steps: int, generator: torch.Generator) -> Tensor:
    """Return the log weights of annealed samples, (k, n), float64; their mean weight estimates p(x).

    Args:
        model: Trained model in eval mode.
        x: Encoded rows, (n, m).
        samples: k.
        steps: Of each walk, at least 1; with one they are importance weights of the encoder's samples. Each costs a
            pass of the decoder and its gradient.
        generator: Of the noise, which all rows share.
    """
    with torch.inference_mode(False), torch.no_grad():
        x = x.clone()  # tensors of inference mode take no part in differentiation, their copies do
        posterior = model.encoded(model.input(x))

        def at(noise: Tensor) -> _Place:
            with torch.enable_grad():
                noise = noise.requires_grad_()
                log_w = bounds.terms(model, x, noise, posterior=posterior).log_weights
                (slope,) = torch.autograd.grad(log_w.sum(), noise)
            return _Place(noise.detach(), log_w.detach(), slope)

        def draw() -> Tensor:
            one = torch.randn(samples, 1, model.latent, generator=generator)
            return one.to(posterior[0]).expand(-1, len(x), -1)

        here, momentum = at(draw().clone()), draw()
        log_weights = here.log_w.double() / steps
        for step in range(1, steps):
            momentum = KEPT * momentum + math.sqrt(1 - KEPT**2) * draw()
            dared = torch.rand(samples, 1, generator=generator).log().to(momentum)
            here, momentum = _moved(at, here, momentum, step / steps, dared)
            log_weights += here.log_w.double() / steps
    return log_weights


def _moved(
    at: Callable[[Tensor], _Place], here: _Place, momentum: Tensor, b: float, dared: Tensor
) -> tuple[_Place, Tensor]:
    """Return where a step at b leads, and the momentum there; it is refused if the energy rises by more than -dared."""
    kicked = momentum + 0.5 * ANGLE * b * here.slope
    there = at(math.cos(ANGLE) * here.noise + math.sin(ANGLE) * kicked)
    arrived = math.cos(ANGLE) * kicked - math.sin(ANGLE) * here.noise + 0.5 * ANGLE * b * there.slope
    accepted = dared < here.energy(momentum, b) - there.energy(arrived, b)  # not if that is NaN
    return there.if_accepted(accepted, here), torch.where(accepted[..., None], arrived, -momentum)
