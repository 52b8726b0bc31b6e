"""What training has come to, after each epoch and in a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import TrainingError
from .models.family import Model
from .models.gradients import FlatParameters
from .options import FitConfig


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; all but beta, counts and seconds in nats a row, in the user's units.

    Training means are those of the batches as trained on, where some cells are hidden (`TrainConfig.hide`) and so add
    nothing; they are not comparable with the validation ELBO to the nat.

    Attributes:
        epoch: Number, from 1.
        step: Optimiser steps so far.
        loss: Mean training loss.
        elbo: Mean training ELBO.
        kl: Mean Monte-Carlo KL.
        reconstruction: Mean expected log p(x|z).
        validation_elbo: Mean ELBO of the validation rows (of the training rows where none are held out).
        active_units: Latent dimensions in use on the validation rows.
        beta: Weight of the KL term.
        seconds: Time since training started.
    """

    epoch: int
    step: int
    loss: float
    elbo: float
    kl: float
    reconstruction: float
    validation_elbo: float
    active_units: int
    beta: float
    seconds: float


@dataclass
class State:
    """Everything that a resumed run must find as it was.

    Attributes:
        model: The model in training.
        flat: Its parameters, as one vector.
        optimizer: What takes the steps.
        generator: Of batches and noise.
        best: Weights of the best epoch.
        history: The epochs.
        weights: Weights of the training rows, (n,).
    """

    model: Model
    flat: FlatParameters
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    best: dict[str, Tensor]
    history: list[Epoch]
    weights: Tensor | None = None

    @classmethod
    def fresh(cls, model: Model, config: FitConfig, weights: Tensor | None) -> State:
        """Return the state before the first step.

        Args:
            model: The model, whose parameters become views of one vector until `FlatParameters.release`.
            config: Settings of the optimiser.
            weights: Weights of the training rows, (n,).
        """
        flat = FlatParameters(list(model.parameters()))
        rate, decay = config.learning_rate, config.weight_decay
        optimizer = torch.optim.AdamW([flat.vector], lr=rate, weight_decay=decay, fused=True)
        generator = torch.Generator(flat.vector.device).manual_seed(config.seed)
        return cls(model, flat, optimizer, generator, {}, [], weights)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write a checkpoint, whole or not at all."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for i, slot in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in slot.items()}
        tensors["generator"] = self.generator.get_state()
        if self.weights is not None:
            tensors["weights"] = self.weights
        facts = {"fingerprint": fingerprint, "history": json.dumps([asdict(e) for e in self.history])}
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        save_file({k: v.detach().cpu().clone() for k, v in tensors.items()}, aside, metadata=facts)
        aside.replace(path)

    def restore(self, path: Path, fingerprint: str) -> None:
        """Become what a checkpoint says.

        Raises:
            TrainingError: It is unreadable, or of another run.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise TrainingError(
                f"checkpoint {path.name!r} must be readable, got an error: {error}. Delete it to start anew."
            ) from error
        if facts.get("fingerprint") != fingerprint:
            raise TrainingError(
                f"checkpoint {path.name!r} must be of the same data and settings, got another run's. "
                "Delete it, or name another checkpoint."
            )
        part = {
            p: {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)}
            for p in ("model.", "best.", "optimizer.")
        }
        self.model.load_state_dict(part["model."])
        self.best = part["best."]
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in part["optimizer."].items():
            index, key = name.split(".", 1)
            slots.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        self.generator.set_state(tensors["generator"])
        if "weights" in tensors:
            self.weights = tensors["weights"].to(next(self.model.parameters()).device)
        self.history = [Epoch(**e) for e in json.loads(facts["history"])]


def fingerprint_of(
    train: Tensor, validation: Tensor, config: FitConfig, weights: Tensor | Callable[..., Tensor] | None
) -> str:
    """Return what tells a run from others: a digest of its rows, its settings and its weights."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    digest.update(repr(weights).encode() if callable(weights) else b"")
    for tensor in (train, validation, weights):
        if isinstance(tensor, Tensor):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
