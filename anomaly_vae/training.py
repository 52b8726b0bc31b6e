"""Tensors and a model in, a trained model out.

The whole data set lies on the device as one tensor; a step picks rows by index. An epoch is the interval between
two looks at the validation rows: one pass, but at least 25 steps and at most 250, or 64,000 rows where batches are
small, so that neither a small table is looked at after every step nor a large one hardly ever.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .errors import ConfigError, TrainingError, TrainingWarning
from .models import bounds
from .models.batches import Batch, drawn, prior_without_themselves
from .models.devices import resolve_device
from .models.family import Model
from .models.gradients import written_out
from .models.networks import LANES
from .models.priors import EXEMPLARS, AggregatedPosterior, Exemplars
from .models.steps import CompiledGradient, descend
from .models.team import Team
from .models.threads import threads_worth
from .models.vae import VAE, active_units
from .options import FitConfig, TrainConfig
from .progress import training_progress
from .training_state import Epoch as Epoch
from .training_state import State, fingerprint_of

VALIDATION_SAMPLES = 8
VALIDATION_ROWS = 4096
VALIDATION_BLOCK = 128
"""Validation rows looked at together on a CPU: few enough for its caches."""
LONGEST_EPOCH = 64_000
"""Rows of the longest epoch, unless that would be under 250 steps."""
CHECKPOINT_SECONDS = 2.0
RowWeights = Callable[[Model, Tensor, int, Tensor | None], Tensor]
"""Weights that are found anew before each epoch: of the model as it is, the training rows (n, m), the epoch's number
from 1 and the weights of the epoch before (None at first), the weights of the rows, (n,). It keeps no state and draws
from no shared generator, so that a resumed run finds the same; its `repr` tells one setting from another."""
Optimiser = Callable[..., "tuple[list[Epoch], Tensor | None]"]
"""What takes the steps: called as `optimised`, with which it also agrees in what it does and returns."""
REMEDY = "Lower learning_rate (--set learning_rate=0.0005) or look for cells of extreme size."


@dataclass(frozen=True)
class _Rows:
    """The data, on the device: (n, m) and (v, m)."""

    train: Tensor
    validation: Tensor


@dataclass(frozen=True)
class _Plan:
    """How long to train: steps in all, in epochs of equal length."""

    steps: int
    steps_per_epoch: int

    @classmethod
    def of(cls, n: int, config: FitConfig) -> _Plan:
        one_pass = math.ceil(n / config.batch_size)
        longest = max(250, LONGEST_EPOCH // config.batch_size)
        return cls(config.steps_for(n), min(max(one_pass, 25), longest))

    @property
    def epochs(self) -> int:
        return math.ceil(self.steps / self.steps_per_epoch)


def fit(
    model: Model,
    x: Tensor,
    *,
    validation: Tensor,
    config: FitConfig,
    weights: Tensor | RowWeights | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool = False,
    optimise: Optimiser | None = None,
) -> list[Epoch]:
    """Train a model in place and leave it with the weights of the best validation ELBO, and with its companions.

    Of a table's ensemble the second autoencoder is trained after it, in the same way.

    Args:
        model: Model, freshly made.
        x: Training rows, encoded, shape (n, m).
        validation: Rows that decide when to stop, shape (v, m); empty to train for all steps.
        config: Settings of the objective and the optimiser.
        weights: Weight of each row in the loss, shape (n,), or how to find it before each epoch; the mean is made 1.
        checkpoint: File that holds the state of an unfinished run. If it exists, training goes on from there and
            ends as it would have without the interruption. `second_checkpoint` of it is the second autoencoder's.
        on_epoch: Called after each epoch of the model itself.
        progress: Whether to show a progress bar on standard error.
        optimise: What takes the steps; by default `optimised`, in this process.

    Returns:
        One `Epoch` for each of the model itself, in order.

    Raises:
        TrainingError: The loss became NaN or infinite, or the checkpoint is of another run.
        ConfigError: The device is not there, or all weights are 0.
    """
    take, validation = optimise or optimised, validation[:VALIDATION_ROWS]
    second = model.untrained_second(config) if isinstance(model, VAE) and isinstance(config, TrainConfig) else None
    history, found = take(
        model, x, validation=validation, config=config, weights=weights, checkpoint=checkpoint, on_epoch=on_epoch,
        progress=progress,
    )  # fmt: skip
    model.eval()
    place = next(model.parameters()).device
    model.accompany(x.to(place), held=validation.to(place), config=config, weights=found)  # type: ignore[arg-type]
    if second is not None:
        other, settings = second
        kept = None if checkpoint is None else second_checkpoint(checkpoint)
        take(
            other, x, validation=validation, config=settings, weights=found, checkpoint=kept, on_epoch=None,
            progress="second autoencoder" if progress else False,
        )  # fmt: skip
        model.second = other.eval()  # not before: its parameters are not the first's
    _warn_of_collapse(history)
    return history


def second_checkpoint(checkpoint: Path) -> Path:
    """Return the file of the second autoencoder's unfinished run beside that of the first's."""
    return checkpoint.with_name(f"{checkpoint.stem}.second{checkpoint.suffix}")


def optimised(
    model: Model,
    x: Tensor,
    *,
    validation: Tensor,
    config: FitConfig,
    weights: Tensor | RowWeights | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool | str = False,
    team: Team | None = None,
) -> tuple[list[Epoch], Tensor | None]:
    """Take the steps of `fit`; return the epochs and the weights of the rows, (n,), as they were last.

    Args:
        model: See `fit`, also for the others.
        x: Training rows, (n, m).
        validation: Validation rows, (v, m).
        config: Settings.
        weights: Of the rows.
        checkpoint: A team's is read by all of its processes and written by the first.
        on_epoch: Called after each epoch.
        progress: Whether to show a progress bar, or what it is called.
        team: Processes that share the rows of every batch. Each is to be given the same of everything, and ends with
            the same model.

    Raises:
        ConfigError: See `fit`; or a batch has fewer rows than the team has processes.
    """
    work = config.batch_size * config.train_k * model.largest_product
    device = resolve_device(config.device, work)
    model.to(device).train()
    x, validation = x.to(device), validation.to(device)
    if team is not None and min(config.batch_size, len(x)) < team.size:
        raise ConfigError(
            f"a batch must have a row for each of {team.size} processes, got {min(config.batch_size, len(x))}. "
            "Raise batch_size, or use fewer processes."
        )
    plan, rows = _Plan.of(len(x), config), _Rows(x, validation)
    state = State.fresh(model, config, _normalised(weights, x) if isinstance(weights, Tensor) else None)
    told = weights if callable(weights) else state.weights
    fingerprint = fingerprint_of(x, validation, config, told) if checkpoint else ""
    if checkpoint and checkpoint.exists():
        state.restore(checkpoint, fingerprint)
    earlier = state.history[-1].seconds if state.history else 0.0
    start = saved = time.perf_counter()
    with training_progress(plan.epochs, progress) as advance, threads_worth(work):
        for done in state.history:
            advance(done)
        while not _finished(state.history, plan.epochs, config, early=len(validation) > 0):
            if callable(weights):
                state.weights = _normalised(weights(model, x, len(state.history) + 1, state.weights), x)
            sums = _run_epoch(state, rows, config, plan, team)
            epoch = _summary(state, sums, rows, config, plan, earlier + time.perf_counter() - start)
            if team is not None:
                epoch = replace(epoch, validation_elbo=team.as_first(epoch.validation_elbo))
            if epoch.validation_elbo >= max((e.validation_elbo for e in state.history), default=-math.inf):
                state.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
            state.history.append(epoch)
            written = checkpoint if team is None or team.rank == 0 else None
            if written and (time.perf_counter() - saved > CHECKPOINT_SECONDS or len(state.history) == 1):
                state.save(written, fingerprint)
                saved = time.perf_counter()
            advance(epoch)
            if on_epoch:
                on_epoch(epoch)
    state.flat.release()
    model.load_state_dict(state.best)
    return state.history, state.weights


def _normalised(weights: Tensor, x: Tensor) -> Tensor:
    """Return weights (n,) of mean 1."""
    if not weights.sum() > 0:
        raise ConfigError("sample_weight must be positive for some training row, got zeros. Give other weights.")
    return (weights / weights.mean()).to(device=x.device, dtype=torch.float32)


def _warn_of_collapse(history: list[Epoch]) -> None:
    if max(history, key=lambda e: e.validation_elbo).active_units == 0:
        warnings.warn(
            "the posterior collapsed: no latent dimension is in use, so each column is modelled by itself, by one "
            "plain distribution. If columns depend on each other or have several peaks, raise warmup "
            "(--set warmup=0.5), lower beta, or train longer (--set steps=10000).",
            TrainingWarning,
            stacklevel=3,
        )


def _run_epoch(state: State, rows: _Rows, config: FitConfig, plan: _Plan, team: Team | None) -> Tensor:
    """Take the steps of one epoch; return the means of (loss, ELBO, KL, reconstruction)."""
    model, generator, x, n = state.model, state.generator, rows.train, len(rows.train)
    first = len(state.history) * plan.steps_per_epoch
    steps = min(plan.steps_per_epoch, plan.steps - first)
    size = min(config.batch_size, n)
    passes = math.ceil(steps * size / n)
    order = torch.cat([torch.randperm(n, generator=generator, device=x.device) for _ in range(passes)])
    batches = drawn(model, x, order[: steps * size].split(size), config, generator)
    facts: list[tuple[Tensor, Tensor, Tensor]] = []
    gradient = written_out(model, config.objective, size * config.train_k)
    mine = slice(None) if team is None else team.rows_of(size)
    for i in range(steps):
        beta, rate = schedule(first + i, plan.steps, config)
        batch = next(batches) if team is None else next(batches).part(mine)
        weights = None if state.weights is None else state.weights[batch.chosen]
        if gradient is not None:
            facts.append(gradient(*batch.seen, beta=beta, weights=weights))
        else:
            facts.append(_autograd_step(state, x, batch, weights, beta, config))
        if team is not None:
            team.average(state.flat.gradient, mine, size)
        _step(state, rate, config.clip_norm, compiled=isinstance(gradient, CompiledGradient))
    loss, kl, reconstruction = (torch.stack(part).mean() for part in zip(*facts, strict=True))
    means = torch.stack([loss, reconstruction - kl, kl, reconstruction])
    if team is not None:
        team.average(means, mine, size)
    return means


def _step(state: State, rate: float, norm: float, *, compiled: bool) -> None:
    """Let the optimiser take a step; from its second on without its ceremony, which costs as much as a small batch."""
    (group,), flat = state.optimizer.param_groups, state.flat
    group["lr"] = rate
    slots = state.optimizer.state.get(flat.vector)
    if slots and compiled:
        descend(flat.vector, flat.gradient, slots, group, norm=norm)
        return
    flat.clip(norm)
    if not slots:
        state.optimizer.step()
        return
    beta1, beta2 = group["betas"]
    with torch.no_grad():
        slots["step"] += 1
        torch._fused_adamw_(
            [flat.vector], [flat.gradient], [slots["exp_avg"]], [slots["exp_avg_sq"]], [], [slots["step"]],
            lr=rate, beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
            amsgrad=False, maximize=False,
        )  # fmt: skip


def _autograd_step(
    state: State, x: Tensor, batch: Batch, weights: Tensor | None, beta: float, config: FitConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Set the gradients of a batch's loss; return the loss, the KL and the reconstruction of each row, (b,)."""
    model = state.model
    prior = prior_without_themselves(model, x, batch.chosen, state.generator)
    t = bounds.terms(model, batch.rows, batch.noise, posterior=model.encoded(batch.entered), prior=prior)
    kl, reconstruction = bounds.kl(t), bounds.reconstruction(t)
    if config.objective == "iwae":
        objective = bounds.importance_weighted_bound(t.log_weights)
    else:
        objective = reconstruction - beta * kl
    loss = -(objective if weights is None else objective * weights)
    state.flat.set_gradients(loss.mean())
    return loss.detach(), kl.detach(), reconstruction.detach()


def schedule(step: int, total: int, config: FitConfig) -> tuple[float, float]:
    """Return beta (linear warm-up) and the learning rate (cosine to a twentieth) at a step."""
    warm = config.warmup * total
    beta = config.beta * min(1.0, (step + 1) / warm) if warm >= 1 else config.beta
    share = min(1.0, step / max(1, total - 1))
    return beta, config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))


def _summary(state: State, sums: Tensor, rows: _Rows, config: FitConfig, plan: _Plan, seconds: float) -> Epoch:
    loss, elbo, kl, reconstruction = sums.tolist()
    number = len(state.history) + 1
    if not math.isfinite(loss):
        raise TrainingError(f"the training loss must be finite, got {loss} in epoch {number}. {REMEDY}", epoch=number)
    model = state.model.eval()
    _keep_exemplars(model, rows.train)
    held = rows.validation if len(rows.validation) else rows.train[:VALIDATION_ROWS]
    validation_elbo, means = _elbo(model, held, config)
    model.train()
    if not math.isfinite(validation_elbo):
        raise TrainingError(
            f"the validation ELBO must be finite, got {validation_elbo} in epoch {number}. {REMEDY}",
            epoch=number,
        )
    step = min(number * plan.steps_per_epoch, plan.steps)
    beta, _ = schedule(step - 1, plan.steps, config)
    return Epoch(
        epoch=number, step=step, loss=loss, elbo=elbo, kl=kl, reconstruction=reconstruction, seconds=seconds,
        validation_elbo=validation_elbo, active_units=active_units(means), beta=beta,
    )  # fmt: skip


@torch.no_grad()
def _keep_exemplars(model: Model, x: Tensor) -> None:
    """Give a prior that is made of training rows (n, m) those it keeps, at equal distances, by the present weights."""
    if not isinstance(model.prior, AggregatedPosterior | Exemplars):
        return
    spread = torch.linspace(0, len(x) - 1, min(EXEMPLARS, len(x)), device=x.device).long()
    posterior = model.posterior(x[spread])
    if isinstance(model.prior, Exemplars):
        model.prior.keep(posterior[0])
    else:
        model.prior.keep(posterior)


@torch.inference_mode()
def _elbo(model: Model, held: Tensor, config: FitConfig) -> tuple[float, Tensor]:
    """Return the mean ELBO of rows (v, m), and their posterior means, (v, l)."""
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(VALIDATION_SAMPLES, model.latent, generator=generator).to(held.device)
    fused, total, means = model.scorer("float32"), 0.0, []
    for part in held.split(VALIDATION_BLOCK if held.device.type == "cpu" else VALIDATION_ROWS):
        rows = fused.rows(torch.cat([part, part.new_zeros(-len(part) % LANES, part.shape[1])]))
        log_weights = fused.log_densities(rows, noise)[1][:, : len(part)]
        total += float(bounds.elbo(log_weights).sum(dtype=torch.float64 if held.device.type != "mps" else None))
        means.append(rows.mean[: len(part)])
    return total / len(held), torch.cat(means)


def _finished(history: list[Epoch], epochs: int, config: FitConfig, *, early: bool) -> bool:
    if len(history) >= epochs:
        return True
    if not early or len(history) <= config.warmup * epochs:
        return False
    best = max(range(len(history)), key=lambda i: history[i].validation_elbo)
    return len(history) - 1 - best >= config.patience
