"""The log-likelihood of a VAE of statically binarised MNIST, by importance sampling.

Trains for some minutes on the training images, chooses among the weights on the way by the validation images' ELBO, and
looks at the test images once, at the end. A killed run goes on from its checkpoint. Minutes are the processor's, summed
over threads, so that what else the machine does changes nothing; on a GPU (`--device cuda`) they are the clock's.

What k = 5,000 samples say of 10,000 images costs fifty million passes of the decoder. The estimate is therefore taken
in two parts, whose sum has the same expectation: `FEW` samples of every test image, plus what 5,000 add to `FEW`, which
varies little from image to image, on some of them. `--reference-rows 10000` spends the fifty million; with
`--judge-on cuda` that takes minutes, wherever the model was trained.

Data: `binarized_mnist.npz` with `train`, `valid` and `test`, bits as `numpy.packbits(axis=1)` packs them.

References:
    Salakhutdinov & Murray (2008), On the quantitative analysis of deep belief networks.
    Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519.
    Norouzi, Fleet & Norouzi (2020), Exemplar VAE, arXiv:2004.04795.

Example:
    python pipelines/binarized.py --data binarized_mnist/ --model vae --minutes 30
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from stated import kept
from torch import Tensor, nn

from anomaly_vae.models import bounds
from anomaly_vae.models.conv import ImageVAE
from anomaly_vae.models.devices import exact_convolutions
from anomaly_vae.models.ladder import LadderVAE
from anomaly_vae.models.priors import Exemplars, StandardNormal
from anomaly_vae.options import ImageConfig

KEPT_AT = Path(__file__).resolve().parent.parent / "mlruns"
SHAPE = (1, 28, 28)
MANY, FEW = 5_000, 50
"""Samples of the estimate, and of its first part."""
CHUNK = {"cpu": 1_000, "cuda": 20_000}
"""Images times samples decoded at once: few enough for caches, or for memory."""
KEPT_EXEMPLARS = 4_096
LAST_EXEMPLARS = 20_000
"""Exemplars of the prior that is judged on the test images: the more, the narrower it may be."""
NARROWER = (0.0, -0.05, -0.1, -0.15, -0.2)
"""What is tried to be added to its log scales."""
STEP_EXEMPLARS = 1_024
CHOSEN_BY = 2_000
"""Validation images that choose among weights."""
LOOK_SECONDS, LOOKS = 90.0, 20
"""Between looks at the validation images, and at least so many looks in a run."""


@dataclass(frozen=True)
class Settings:
    """How a run trains; a checkpoint of other settings is refused.

    Attributes:
        model: "vae" or "ladder".
        minutes: Of the processor.
        channels, blocks, latent: As of `ImageConfig`.
        batch: Images of a step.
        learning_rate: Of AdamW, rising over 200 steps and falling to a hundredth along a cosine.
        flips: Share of bits that the encoder sees wrong.
        seed: Of weights, batches and noise.
        device: Where to compute.
        averaging: Decay of the average of the weights.
        anchored: Share of the run under the standard normal, before the exemplars are the prior: they say nothing of
            where codes lie.
        warmup: Share of the run over which the KL term comes in.
        weight_decay: Of matrices and kernels.
    """

    model: str
    minutes: float
    channels: int
    blocks: int
    latent: int
    batch: int
    learning_rate: float
    flips: float
    seed: int
    device: str = "cpu"
    averaging: float = 0.999
    anchored: float = 0.3
    warmup: float = 0.1
    weight_decay: float = 1e-3


@dataclass
class Run:
    """The state of a run.

    Attributes:
        model: What is trained.
        averaged: The same with an exponential average of the weights, which is what is judged.
        bank: Latest posterior mean of each training image, (N, l); of none where the prior has no exemplars.
        seconds: Of the processor, trained so far.
        best: Largest validation ELBO so far, and the averaged weights then.
    """

    model: ImageVAE
    averaged: ImageVAE
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    bank: Tensor
    step: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path, settings: Settings) -> None:
        """Write everything that a resumed run must find as it was, under another name first."""
        tensors = {"generator": self.generator.get_state(), "bank": self.bank}
        for prefix, part in (("model", self.model.state_dict()), ("averaged", self.averaged.state_dict())):
            tensors |= {f"{prefix}.{name}": value for name, value in part.items()}
        tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
        for i, slot in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in slot.items()}
        facts = {
            "settings": json.dumps(asdict(settings)),
            "progress": json.dumps([self.step, self.seconds, self.best]),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        save_file({name: value.detach().clone() for name, value in tensors.items()}, aside, metadata=facts)
        aside.replace(path)

    def restore(self, path: Path, settings: Settings) -> None:
        """Go on from a checkpoint.

        Raises:
            click.ClickException: It is of other settings.
        """
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if json.loads(facts["settings"]) != asdict(settings):
            raise click.ClickException(f"{path} must be of the same settings, got {facts['settings']}. Delete it.")
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "averaged": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            prefix, _, rest = name.partition(".")
            if prefix in parts:
                parts[prefix][rest] = value
        self.model.load_state_dict(parts["model"])
        self.averaged.load_state_dict(parts["averaged"])
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, _, key = name.partition(".")
            slots.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        self.generator.set_state(tensors["generator"])
        self.bank, self.best_weights = tensors["bank"].to(self.bank.device), parts["best"]
        self.step, self.seconds, self.best = json.loads(facts["progress"])


def read(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Return the splits as levels 0 and 255, uint8, (n, 784), on a device."""
    with np.load(folder / "binarized_mnist.npz") as file:
        bits = {name: np.unpackbits(file[name], axis=1)[:, : math.prod(SHAPE)] for name in ("train", "valid", "test")}
    return {name: torch.from_numpy(255 * part).to(device) for name, part in bits.items()}


def made(settings: Settings) -> ImageVAE:
    """Return a fresh model."""
    torch.manual_seed(settings.seed)
    config = ImageConfig(latent=settings.latent, channels=settings.channels, blocks=settings.blocks, pixels="bernoulli")
    if settings.model == "ladder":
        return LadderVAE(SHAPE, config)
    model = ImageVAE(SHAPE, config)
    model.prior = Exemplars(settings.latent, KEPT_EXEMPLARS)
    return model


def started(settings: Settings, images: int) -> Run:
    """Return a run that has not trained yet."""
    model = made(settings).to(settings.device)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return Run(
        model.train(),
        copy.deepcopy(model).eval(),
        torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=True),
        torch.Generator(settings.device).manual_seed(settings.seed),
        torch.zeros(images if isinstance(model.prior, Exemplars) else 0, model.latent, device=settings.device),
    )


def loss(run: Run, train: Tensor, chosen: Tensor, settings: Settings, share: float) -> Tensor:
    """Return the loss of a batch, and remember its posterior means.

    The mixture is around this batch's means and many of the bank, which have no gradient.
    """
    model, rows, g = run.model, train[chosen], run.generator
    entered = model.input(rows)
    if settings.flips:
        wrong = torch.rand(entered.shape, generator=g, device=entered.device) < settings.flips
        entered = torch.where(wrong, -entered, entered)
    posterior = model.encoded(entered)
    mean = posterior[0]
    prior: bounds.Prior | None = None
    if isinstance(model.prior, Exemplars) and share < settings.anchored:
        run.bank[chosen] = mean.detach()
        prior = StandardNormal(model.latent)
    elif isinstance(model.prior, Exemplars):
        run.bank[chosen] = mean.detach()
        others = torch.randint(len(train), (STEP_EXEMPLARS - len(chosen),), generator=g, device=g.device)
        exemplars = torch.cat([chosen, others])
        prior = model.prior.around(torch.cat([mean, run.bank[others]]), chosen[:, None] == exemplars)
    beta = min(1.0, share / settings.warmup)
    noise = torch.randn(1, len(rows), model.latent, generator=g, device=g.device)
    return -bounds.beta_elbo(bounds.terms(model, rows, noise, posterior=posterior, prior=prior), beta).mean()


def take_step(run: Run, train: Tensor, settings: Settings, share: float) -> Tensor:
    """Take one optimiser step, at this share of the run; return the loss, for which a GPU need not be waited."""
    rate = (
        settings.learning_rate * min(1.0, (run.step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    chosen = torch.randint(len(train), (settings.batch,), generator=run.generator, device=run.generator.device)
    value = loss(run, train, chosen, settings, share)
    run.optimizer.zero_grad()
    value.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 50.0)
    run.optimizer.step()
    run.step += 1
    weight = 1 - min(settings.averaging, (1 + run.step) / (10 + run.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(run.averaged.parameters()), list(run.model.parameters()), weight)
    return value.detach()


@torch.no_grad()
def keep_exemplars(model: ImageVAE, train: Tensor, count: int) -> None:
    """Give the prior its exemplars: so many training images at equal distances."""
    if isinstance(model.prior, Exemplars):
        spread = torch.linspace(0, len(train) - 1, min(count, len(train))).long()
        model.prior.keep(torch.cat([model.posterior(part)[0] for part in train[spread].split(512)]))


@torch.inference_mode()
def log_weights(model: ImageVAE, x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return the log weights of k samples of each image, (k, n)."""
    found, at_once = [], max(1, CHUNK[x.device.type] // len(x))
    posterior = model.encoded(model.input(x))
    for first in range(0, k, at_once):
        noise = torch.randn(min(at_once, k - first), len(x), model.latent, generator=generator, device=x.device)
        found.append(bounds.terms(model, x, noise, posterior=posterior).log_weights)
    return torch.cat(found)


def validation_elbo(model: ImageVAE, x: Tensor) -> float:
    """Return the mean ELBO of images, with the same noise each time."""
    generator = torch.Generator(x.device).manual_seed(0)
    return float(torch.cat([bounds.elbo(log_weights(model, part, 1, generator)) for part in x.split(500)]).mean())


@torch.no_grad()
def settle(model: ImageVAE, data: dict[str, Tensor]) -> float:
    """Give the prior its last exemplars, and the width that the validation images like best; return their ELBO."""
    x = data["valid"][:CHOSEN_BY]
    if not isinstance(model.prior, Exemplars):
        return validation_elbo(model, x)
    keep_exemplars(model, data["train"], LAST_EXEMPLARS)
    learned, found = model.prior.log_scale.clone(), []
    for change in NARROWER:
        model.prior.log_scale.copy_(learned + change)
        found.append((validation_elbo(model, x), change))
    best, change = max(found)
    model.prior.log_scale.copy_(learned + change)
    return best


def look(run: Run, data: dict[str, Tensor], recent: list[Tensor]) -> None:
    """Judge the averaged weights, and keep them if they are the best so far."""
    keep_exemplars(run.averaged, data["train"], KEPT_EXEMPLARS)
    elbo = validation_elbo(run.averaged, data["valid"][:CHOSEN_BY])
    if elbo > run.best:
        run.best = elbo
        run.best_weights = {name: value.clone() for name, value in run.averaged.state_dict().items()}
    mean = float(torch.stack(recent).mean())
    click.echo(
        f"{run.seconds / 60:6.1f} min  step {run.step:7d}  loss {mean:7.2f}  validation ELBO {elbo:8.3f}", err=True
    )


def train_for(run: Run, data: dict[str, Tensor], settings: Settings, checkpoint: Path) -> None:
    """Train until the minutes are spent; the run's averaged model has the best weights then."""
    clock = time.process_time if settings.device == "cpu" else time.perf_counter
    total, recent = 60 * settings.minutes, list[Tensor]()
    looked, apart = run.seconds, min(LOOK_SECONDS, total / LOOKS)
    while run.seconds < total:
        begin = clock()
        recent.append(take_step(run, data["train"], settings, run.seconds / total))
        run.seconds += clock() - begin
        if run.seconds - looked > apart or run.seconds >= total:
            begin = clock()
            look(run, data, recent)
            recent.clear()
            run.seconds += clock() - begin
            looked = run.seconds
            run.save(checkpoint, settings)
    run.averaged.load_state_dict(run.best_weights)


@dataclass(frozen=True)
class Estimate:
    """A mean test log-likelihood, nats.

    Attributes:
        value: Estimate of the mean over test images of the bound with `MANY` samples.
        error: Its Monte-Carlo standard error, of both parts.
        spread: Standard error of the mean over images: what another test set of this size would change.
        elbo, few: Means of the ELBO and of the bound with `FEW` samples.
        agreement: Share of the reference images where the two halves of `MANY` samples are within twice the stated
            error of their difference.
        agreement_of_few: Where `FEW` samples are of `MANY`. Their stated error knows the weights that were met, and
            less of the rare large ones that were not; a bound from few samples is also low on average.
        rows: Reference images.
    """

    value: float
    error: float
    spread: float
    elbo: float
    few: float
    agreement: float
    agreement_of_few: float
    rows: int


def _agree(*log_weights_of: Tensor) -> Tensor:
    """Return whether two sets of log weights (k, n) agree on the bound within twice the stated error, (n,)."""
    first, second = (bounds.importance_weighted_bound(w) for w in log_weights_of)
    errors = [bounds.monte_carlo_error(w, "likelihood") for w in log_weights_of]
    return (first - second).abs() <= 2 * torch.hypot(*errors)


def estimate(model: ImageVAE, test: Tensor, *, reference_rows: int, seed: int = 0) -> Estimate:
    """Estimate the mean log-likelihood of the test images.

    Args:
        model: Trained model, in eval mode.
        test: Test images, (n, m).
        reference_rows: Images, at equal distances, that are given `MANY` samples.
        seed: Of the samples.
    """
    generator = torch.Generator(test.device).manual_seed(seed)
    few, elbo, variance = [], [], []
    for part in test.split(200):
        w = log_weights(model, part, FEW, generator)
        few.append(bounds.importance_weighted_bound(w).double())
        elbo.append(bounds.elbo(w).double())
        variance.append(bounds.monte_carlo_error(w, "likelihood").double().square())
    gains, agree, agree_of_few = [], [], []
    spread = torch.linspace(0, len(test) - 1, reference_rows).long()
    for part in test[spread].split(10 if test.device.type == "cpu" else 100):
        w = log_weights(model, part, MANY, generator)
        many = bounds.importance_weighted_bound(w)
        groups = w.unflatten(0, (MANY // FEW, FEW))
        each = torch.stack([bounds.importance_weighted_bound(group) for group in groups])
        gains.append((many - each.mean(0)).double())
        agree.append(_agree(*w.chunk(2)))
        agree_of_few.append(_agree(groups[0], w))
    of_few, gain = torch.cat(few), torch.cat(gains)
    first = float(torch.cat(variance).sum().sqrt()) / len(test)
    second = float(gain.std()) / math.sqrt(len(gain))
    return Estimate(
        value=float(of_few.mean() + gain.mean()),
        error=math.hypot(first, second),
        spread=float(of_few.std()) / math.sqrt(len(test)),
        elbo=float(torch.cat(elbo).mean()),
        few=float(of_few.mean()),
        agreement=float(torch.cat(agree).double().mean()),
        agreement_of_few=float(torch.cat(agree_of_few).double().mean()),
        rows=reference_rows,
    )


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--model", type=click.Choice(["vae", "ladder"]), default="vae", show_default=True)
@click.option("--minutes", type=float, default=30.0, show_default=True, help="training time, of the processor")
@click.option("--checkpoint", type=click.Path(dir_okay=False, path_type=Path), help="by default in mlruns/")
@click.option("--channels", type=int, default=16, show_default=True)
@click.option("--blocks", type=int, default=1, show_default=True)
@click.option("--latent", type=int, default=32, show_default=True)
@click.option("--batch", type=int, default=128, show_default=True)
@click.option("--learning-rate", type=float, default=2e-3, show_default=True)
@click.option("--flips", type=float, default=0.0, show_default=True, help="share of bits the encoder sees wrong")
@click.option("--reference-rows", type=int, default=200, show_default=True, help=f"test images with {MANY} samples")
@click.option("--stated-rows", type=int, default=0, help="of how many test images to judge log p(x) to an error")
@click.option("--mc-se", type=float, default=0.2, show_default=True, help="that error, nats")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--judge-on", type=click.Choice(["cpu", "cuda"]), help="where to judge  [default: where it is trained]")
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    data: Path, checkpoint: Path | None, reference_rows: int, stated_rows: int, mc_se: float, threads: int,
    judge_on: str | None, **chosen: object,
) -> None:  # fmt: skip
    """Train on statically binarised MNIST and print the test log-likelihood as a row of a Markdown table."""
    torch.set_num_threads(threads)
    settings = Settings(**chosen)  # type: ignore[arg-type]
    parts = read(data, settings.device)
    checkpoint = checkpoint or KEPT_AT / f"binarized-{settings.model}.safetensors"
    run = started(settings, len(parts["train"]))
    if checkpoint.exists():
        run.restore(checkpoint, settings)
    train_for(run, parts, settings, checkpoint)
    begin = time.perf_counter()
    place = torch.device(judge_on or settings.device)
    judged, parts = run.averaged.to(place), {name: part.to(place) for name, part in parts.items()}
    with exact_convolutions(place):
        elbo = settle(judged, parts)
        e = estimate(judged, parts["test"], reference_rows=reference_rows)
    click.echo(f"validation ELBO {elbo:.3f}; judged in {(time.perf_counter() - begin) / 60:.1f} min", err=True)
    click.echo(f"| model | minutes | steps | ELBO | k = {FEW} | k = {MANY} | halves agree | k = {FEW} agrees |")
    click.echo("|---|---|---|---|---|---|---|---|")
    agreeing = f"{e.agreement:.0%} of {e.rows} | {e.agreement_of_few:.0%}"
    click.echo(
        f"| {settings.model} | {settings.minutes:g} | {run.step} | {e.elbo:.2f} | {e.few:.2f} "
        f"| **{e.value:.2f}** ± {e.error:.3f} (images: ± {e.spread:.2f}) | {agreeing} |"
    )
    if stated_rows:
        with exact_convolutions(place):
            x = parts["test"][torch.linspace(0, len(parts["test"]) - 1, stated_rows).long()]
            many = log_weights(judged, x, MANY, torch.Generator(place).manual_seed(1))
            click.echo("\n".join(["", *kept(judged, x, many, mc_se=mc_se).lines(mc_se, MANY)]))


if __name__ == "__main__":
    main()
