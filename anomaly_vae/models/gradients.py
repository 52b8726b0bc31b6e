r"""The gradient of the negative beta-ELBO, written out, for the common model: all columns continuous, normal prior.

With batches of a few dozen rows a step costs what its operations cost to call, and automatic differentiation calls
several times as many. `bounds.beta_elbo` under autograd is the plain form, the tests' oracle, and what all other models
and objectives are trained by.

Shapes: k posterior samples, b rows of a batch, m columns, d encoder input, l latent width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .bounds import HALF_LOG_2PI
from .likelihoods import DEGREES, LOG_T, NOISE_FLOOR, FixedGaussian, Gaussian, StudentT
from .networks import MLP
from .priors import StandardNormal
from .vae import LOG_SCALE_BOUND, VAE

silu_backward = torch.ops.aten.silu_backward


class _Network:
    """Forward and backward pass of an `MLP`; gradients go into the parameters' `grad`, which must be there.

    Weights and gradients are looked up once: they must stay where they are in memory.
    """

    def __init__(self, network: MLP) -> None:
        self.linear = _Layer(network.linear)
        self.layers = [_Layer(layer) for layer in network.layers if isinstance(layer, nn.Linear)]
        self.out = None if network.out is None else _Layer(network.out)
        self.entered: list[Tensor] = []  # the input of each layer, then that of the last
        self.sums: list[Tensor] = []  # what each layer's activation was given

    def forward(self, x: Tensor) -> Tensor:
        """Map (h, width_in) to (h, w)."""
        y = torch.addmm(self.linear.bias, x, self.linear.transposed)
        self.entered, self.sums = [x], []
        for layer in self.layers:
            x = torch.addmm(layer.bias, x, layer.transposed)
            self.sums.append(x)
            x = nn.functional.silu(x)
            self.entered.append(x)
        return y if self.out is None else y.addmm_(x, self.out.transposed)

    def backward(self, dy: Tensor, *, wanted: bool) -> Tensor | None:
        """Set the parameters' gradients from that of the output; return that of the input if it is wanted."""
        self.linear.set_gradients(dy, self.entered[0])
        dx = dy @ self.linear.weight if wanted else None
        if self.out is None:
            return dx
        self.out.set_gradients(dy, self.entered[-1])
        dh = dy @ self.out.weight
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            da = silu_backward(dh, self.sums[i])
            layer.set_gradients(da, self.entered[i])
            if i:
                dh = da @ layer.weight
            elif dx is not None:
                dx.addmm_(da, layer.weight)
        return dx


class _Layer:
    def __init__(self, layer: nn.Linear) -> None:
        self.weight = layer.weight.detach()
        self.transposed = self.weight.t()
        self.weight_gradient = _gradient(layer.weight)
        self.biased = layer.bias is not None
        if self.biased:
            self.bias, self.bias_gradient = layer.bias.detach(), _gradient(layer.bias)

    def set_gradients(self, dy: Tensor, x: Tensor) -> None:
        torch.mm(dy.t(), x, out=self.weight_gradient)
        if self.biased:
            torch.sum(dy, 0, out=self.bias_gradient)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


class WrittenOutGradient:
    """Computes the loss of a batch and the gradients of all parameters.

    Args:
        model: The model, every parameter of which has a `grad` to be written into (`FlatParameters`).
    """

    def __init__(self, model: VAE) -> None:
        (head,) = model.likelihood.heads.values()
        assert isinstance(head, Gaussian)
        self.encoder, self.decoder = _Network(model.encoder), _Network(model.decoder)
        self.latent, self.columns = model.latent, model.columns
        self.student = isinstance(head, StudentT)
        self.constant = (LOG_T if self.student else -HALF_LOG_2PI) - head.log_scale
        self.fixed: Tensor | None = None
        if isinstance(head, FixedGaussian):
            self.fixed = dict(head.named_buffers())["noise"]
        else:
            self.noise_log, self.noise_gradient = head.noise_log.detach(), _gradient(head.noise_log)

    @staticmethod
    def serves(model: VAE) -> bool:
        """Return whether the model is of the kind that this gradient is written for."""
        heads = list(model.likelihood.heads.values())
        return isinstance(model.prior, StandardNormal) and len(heads) == 1 and isinstance(heads[0], Gaussian)

    @torch.no_grad()
    def __call__(
        self,
        filled: Tensor,
        observed: Tensor,
        entered: Tensor,
        noise: Tensor,
        *,
        beta: float,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Set the gradients of the mean over rows of -weight * beta-ELBO.

        Args:
            filled: Encoded rows, (b, m), 0 where missing.
            observed: 1 where they are not missing, 0 where they are, (b, m).
            entered: The encoder's input, (b, d).
            noise: Standard normal draws, (k, b, l).
            beta: Weight of the KL term.
            weights: Weight of each row, (b,).

        Returns:
            The loss, the KL and the reconstruction of each row, (b,).
        """
        k, b, latent = noise.shape
        encoded = self.encoder.forward(entered)
        free = encoded[:, latent : 2 * latent]
        log_scale = free.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)
        spread = log_scale.exp() * noise
        z = spread + encoded[:, :latent]
        y = self.decoder.forward(z.view(-1, latent)).view(k, b, -1)
        # what each sample's log weight counts in the loss
        share = -1.0 / (k * b) if weights is None else weights[:, None] * (-1.0 / (k * b))
        log_px, dy = self._likelihood(filled, observed, y, share)
        kl = (z.square() - noise.square()).sum((0, 2)).mul_(0.5 / k).sub_(log_scale.sum(-1))
        dz = self.decoder.backward(dy.view(k * b, -1), wanted=True)
        assert dz is not None
        dz = dz.view(z.shape)
        dz = dz.sub_(z, alpha=beta * share) if isinstance(share, float) else dz.sub_(z * share, alpha=beta)
        dencoded = torch.zeros_like(encoded)
        torch.sum(dz, 0, out=dencoded[:, :latent])
        dscale = spread.mul_(dz).sum(0).add_(beta * k * share)
        torch.mul(dscale, free == log_scale, out=dencoded[:, latent : 2 * latent])
        self.encoder.backward(dencoded, wanted=False)
        reconstruction = log_px.mean(0)
        loss = torch.sub(kl * beta, reconstruction)
        return loss if weights is None else loss.mul_(weights), kl, reconstruction

    def _likelihood(self, filled: Tensor, observed: Tensor, y: Tensor, share: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|z), (k, b), and the loss's gradient in the decoder's output, (k, b, w); set the noise's."""
        k, b, width = y.shape
        m = self.columns
        scale = None if self.fixed is not None else self.noise_log.exp()
        noise = self.fixed if scale is None else scale + NOISE_FLOOR
        assert noise is not None
        inverse = noise.reciprocal()
        r = (filled - y[..., :m]).mul_(observed * inverse)
        square = r.square()
        constant = torch.mv(observed, self.constant - noise.log())
        if self.student:
            log_px = (square / DEGREES).log1p_().sum(-1).mul_(-0.5 * (DEGREES + 1)).add_(constant)
            pull = r.mul(DEGREES + 1).div_(square.add_(DEGREES))
        else:
            log_px, pull = square.sum(-1).mul_(-0.5).add_(constant), r
        dy = y.new_zeros(k, b, width) if width > m else torch.empty_like(y)
        torch.mul(pull, share * inverse, out=dy[..., :m])
        if scale is not None:
            each = (pull * r).sub_(observed)
            total = each.sum((0, 1)).mul_(share) if isinstance(share, float) else each.mul_(share).sum((0, 1))
            torch.mul(total, scale * inverse, out=self.noise_gradient)
        return log_px, dy


class FlatParameters:
    """All parameters of a model as one vector, so that an optimiser's step is one operation, and their gradients.

    Args:
        parameters: The parameters, which become views of the vector until `release`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.vector = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in self.parameters]))
        self.vector.grad = torch.zeros_like(self.vector)
        sizes = [p.numel() for p in self.parameters]
        values, gradients = self.vector.detach().split(sizes), self.vector.grad.split(sizes)
        for p, value, gradient in zip(self.parameters, values, gradients, strict=True):
            p.data = value.view(p.shape)
            p.grad = gradient.view(p.shape)

    def set_gradients(self, loss: Tensor) -> None:
        """Set the gradients to those of a loss."""
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        torch.cat([g.reshape(-1) for g in gradients], out=self.gradient)

    @property
    def gradient(self) -> Tensor:
        """The gradients, as one vector."""
        assert self.vector.grad is not None
        return self.vector.grad

    def clip(self, norm: float) -> None:
        """Scale the gradients down to a norm if theirs is larger."""
        gradient = self.gradient
        gradient.mul_((norm / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp_(max=1.0))

    def release(self) -> None:
        """Give each parameter memory of its own again, without gradient."""
        for p in self.parameters:
            p.data = p.data.clone()
            p.grad = None


def written_out(model: nn.Module, objective: str) -> WrittenOutGradient | None:
    """Return the gradient of a model and an objective, if it is written out here."""
    if type(model) is VAE and objective == "elbo" and WrittenOutGradient.serves(model):  # others compute otherwise
        return WrittenOutGradient(model)
    return None
