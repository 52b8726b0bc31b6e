"""Training is reproducible, resumes exactly, and says what went wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_vae import training
from anomaly_vae.data.schema import Schema
from anomaly_vae.errors import ConfigError, TrainingError, TrainingWarning
from anomaly_vae.models.vae import VAE
from anomaly_vae.options import TrainConfig
from tests.conftest import mixed_frame

CONFIG = TrainConfig(steps=250, hidden=(16,), latent=2, patience=100)


def fresh(config: TrainConfig = CONFIG, rows: int = 300) -> tuple[VAE, torch.Tensor, torch.Tensor]:
    frame = mixed_frame(rows)
    schema = Schema.fit(frame)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = VAE(schema.modelled, config)
    x = torch.from_numpy(schema.encode(frame))
    return model, x[: rows - 50], x[rows - 50 :]


def facts(history):
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in history]


def same_weights(a: VAE, b: VAE) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_training_raises_the_validation_elbo_and_is_deterministic():
    runs = []
    for _ in range(2):
        model, x, held = fresh()
        history = training.fit(model, x, validation=held, config=CONFIG)
        runs.append((model, history))
    assert facts(runs[0][1]) == facts(runs[1][1])
    assert same_weights(runs[0][0], runs[1][0])
    first, best = runs[0][1][0], max(e.validation_elbo for e in runs[0][1])
    assert best > first.validation_elbo + 0.5
    assert [e.step for e in runs[0][1]] == [25 * (i + 1) for i in range(10)]


def test_global_randomness_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    model, x, held = fresh()
    training.fit(model, x, validation=held, config=CONFIG)
    assert torch.equal(before, torch.random.get_rng_state())


class InterruptionError(Exception):
    pass


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    whole, x, held = fresh()
    expected = training.fit(whole, x, validation=held, config=CONFIG)
    checkpoint = tmp_path / "run.safetensors"

    def stop_after_five(epoch):
        if epoch.epoch == 5:
            raise InterruptionError

    model, x, held = fresh()
    with pytest.raises(InterruptionError):
        training.fit(model, x, validation=held, config=CONFIG, checkpoint=checkpoint, on_epoch=stop_after_five)
    seen = []
    resumed, x, held = fresh()
    history = training.fit(resumed, x, validation=held, config=CONFIG, checkpoint=checkpoint, on_epoch=seen.append)
    assert [e.epoch for e in seen] == [6, 7, 8, 9, 10]
    assert facts(history) == facts(expected)
    assert same_weights(resumed, whole)


def test_the_second_autoencoder_leaves_the_first_as_it_is():
    with_it, x, held = fresh()
    training.fit(with_it, x, validation=held, config=CONFIG)
    without, x, held = fresh()
    training.fit(without, x, validation=held, config=dataclasses.replace(CONFIG, second_beta=0.0))
    second, with_it.second = with_it.second, None
    assert without.second is None
    assert same_weights(with_it, without)
    alone, x, held = fresh()
    training.fit(alone, x, validation=held, config=dataclasses.replace(CONFIG, beta=0.5, companions=()))
    assert same_weights(second, alone), "it is what training with that weight of the KL term gives"
    assert not torch.equal(second.decoder.linear.weight, with_it.decoder.linear.weight)


def test_a_run_resumed_in_the_second_autoencoder_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    whole, x, held = fresh()
    training.fit(whole, x, validation=held, config=CONFIG)
    checkpoint, optimised = tmp_path / "run.safetensors", training.optimised

    def stop(epoch):
        if epoch.epoch == 3:
            raise InterruptionError

    def interrupted(model, x, *, config, **options):
        return optimised(model, x, config=config, **(options if config.beta == 1.0 else options | {"on_epoch": stop}))

    model, x, held = fresh()
    monkeypatch.setattr(training, "optimised", interrupted)
    with pytest.raises(InterruptionError):
        training.fit(model, x, validation=held, config=CONFIG, checkpoint=checkpoint)
    monkeypatch.setattr(training, "optimised", optimised)
    assert training.second_checkpoint(checkpoint).exists()
    assert model.second is None
    seen = []
    resumed, x, held = fresh()
    training.fit(resumed, x, validation=held, config=CONFIG, checkpoint=checkpoint, on_epoch=seen.append)
    assert seen == [], "the first one had ended"
    assert same_weights(resumed, whole)


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    model, x, held = fresh()
    training.fit(model, x, validation=held, config=CONFIG, checkpoint=checkpoint)
    with pytest.raises(TrainingError, match="must be of the same data and settings"):
        training.fit(model, x + 1, validation=held, config=CONFIG, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(TrainingError, match="must be readable"):
        training.fit(model, x, validation=held, config=CONFIG, checkpoint=checkpoint)


def test_early_stopping_keeps_the_best_weights():
    config = dataclasses.replace(CONFIG, steps=3000, patience=4, learning_rate=0.02, hidden=(64,))
    model, x, held = fresh(config, rows=110)
    history = training.fit(model, x, validation=held, config=config)
    best = max(history, key=lambda e: e.validation_elbo)
    assert len(history) < 120
    assert history[-1].epoch == best.epoch + 4
    noise = torch.randn(training.VALIDATION_SAMPLES, 2, generator=torch.Generator().manual_seed(config.seed))
    from anomaly_vae.models import bounds

    with torch.no_grad():
        now = bounds.elbo(bounds.terms(model, held, noise).log_weights).mean().item()
    assert now == pytest.approx(best.validation_elbo, rel=1e-5)


def test_warm_up_and_annealing():
    config = TrainConfig(warmup=0.5, beta=2.0, learning_rate=1.0)
    betas, rates = zip(*(training.schedule(s, 100, config) for s in range(100)), strict=True)
    assert betas[0] == pytest.approx(0.04)
    assert betas[49] == betas[99] == 2.0
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.05)
    assert list(rates) == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    "change",
    [{"objective": "iwae", "train_k": 5}, {"beta": 4.0, "continuous": "gaussian"}, {"continuous": "fixed_gaussian"}],
)
def test_other_objectives_train(change):
    config = dataclasses.replace(CONFIG, **change)
    model, x, held = fresh(config)
    history = training.fit(model, x, validation=held, config=config)
    assert max(e.validation_elbo for e in history) > history[0].validation_elbo


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.TrainingWarning")
def test_a_larger_beta_gives_a_smaller_kl():
    kl = []
    for beta in (0.2, 5.0):
        config = dataclasses.replace(CONFIG, beta=beta, warmup=0.0, steps=500)
        model, x, held = fresh(config)
        kl.append(training.fit(model, x, validation=held, config=config)[-1].kl)
    assert kl[1] < 0.5 * kl[0]


def test_row_weights_move_the_density():
    x = torch.cat([torch.randn(200, 1) - 3, torch.randn(200, 1) + 3])
    schema = Schema.fit(pd.DataFrame({"a": x[:, 0].numpy()}))
    scores = []
    for heavy in (0, 1):
        torch.manual_seed(0)
        model = VAE(schema.modelled, CONFIG)
        weights = torch.ones(400)
        weights[heavy * 200 : heavy * 200 + 200] = 20.0
        rows = torch.from_numpy(schema.encode(pd.DataFrame({"a": x[:, 0].numpy()})))
        training.fit(model, rows, validation=rows[:0], config=CONFIG, weights=weights)
        from anomaly_vae.detection.scores import score_rows

        scores.append(score_rows(model, rows, noise=torch.randn(16, 2)).value)
    assert scores[0][:200].mean() < scores[1][:200].mean()
    assert scores[0][200:].mean() > scores[1][200:].mean()


def test_a_loss_that_is_not_finite_is_an_error_with_a_remedy():
    config = dataclasses.replace(CONFIG, learning_rate=1e30)
    model, x, held = fresh(config)
    with pytest.raises(TrainingError, match=r"must be finite, got .* in epoch \d+\. Lower learning_rate"):
        training.fit(model, x, validation=held, config=config)


def test_a_collapsed_posterior_is_said():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(400, 3)), columns=list("abc"))
    schema = Schema.fit(frame)
    config = dataclasses.replace(CONFIG, beta=20.0, warmup=0.0)
    model = VAE(schema.modelled, config)
    x = torch.from_numpy(schema.encode(frame))
    with pytest.warns(TrainingWarning, match="the posterior collapsed"):
        training.fit(model, x, validation=x[:100], config=config)


def test_devices():
    assert training.resolve_device("cpu").type == "cpu"
    assert training.resolve_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device must be one that is present, got 'cuda'"):
            training.resolve_device("cuda")


def test_a_gpu_that_is_there_takes_large_steps_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    default, model = TrainConfig(), fresh(TrainConfig())[0]
    step = default.batch_size * model.largest_product
    assert training.resolve_device("auto", step).type == "cpu"
    assert training.resolve_device("auto", 16 * step).type == "cuda"
    assert training.resolve_device("auto").type == "cuda"
    assert training.resolve_device("cuda", step).type == "cuda"
