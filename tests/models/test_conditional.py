"""Models of rows given their class: they use it, leave it out of the likelihood, and train by the ordinary loop."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from anomaly_vae import ImageConfig, TrainConfig, training
from anomaly_vae.data.schema import Schema
from anomaly_vae.models import bounds
from anomaly_vae.models.conditional import ConditionalImageVAE, ConditionalVAE, with_classes
from anomaly_vae.models.vae import VAE


def two_clouds(n: int) -> tuple[torch.Tensor, torch.Tensor, Schema]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, n)
    shared = rng.normal(size=n)  # something for the code to say that the class does not
    frame = pd.DataFrame({"a": 4.0 * y + shared, "b": shared - 4.0 * y}) + 0.3 * rng.normal(size=(n, 2))
    schema = Schema.fit(frame)
    return torch.from_numpy(schema.encode(frame)), torch.from_numpy(y), schema


def test_knowing_the_class_is_worth_its_nats() -> None:
    x, y, schema = two_clouds(600)
    config = TrainConfig(steps=400, hidden=(16,), latent=1, companions=(), continuous="gaussian", learning_rate=0.01)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain, conditional = VAE(schema.modelled, config), ConditionalVAE(schema.modelled, config, 2)
    rows = with_classes(x, y)
    training.fit(plain, x, validation=x[:100], config=config)
    training.fit(conditional, rows, validation=rows[:100], config=config)
    noise = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bound = lambda model, r: bounds.importance_weighted_bound(bounds.terms(model, r, noise).log_weights)  # noqa: E731
        own, without = bound(conditional, rows).mean(), bound(plain, x).mean()
        wrong = bound(conditional, with_classes(x, 1 - y)).mean()
        unknown = bound(conditional, with_classes(x, torch.full((600,), torch.nan))).mean()
    # the clouds are apart, so the class is worth H(y) = log 2 nats: log p(x) = log p(x|y) - log 2
    assert 0.4 < float(own - without) < 1.2
    assert float(own - wrong) > 5
    assert wrong < unknown < own


def test_the_class_has_no_part_in_the_likelihood() -> None:
    x, y, schema = two_clouds(32)
    model = ConditionalVAE(schema.modelled, TrainConfig(latent=2, hidden=(8,)), 3)
    log_px = model.log_px_given_z(with_classes(x, y), torch.randn(5, 32, 2))
    assert log_px.shape == (5, 32, 3)
    assert (log_px[..., -1] == 0).all()
    fused, plain = (
        model.scorer(),
        bounds.terms(model, with_classes(x, y), torch.randn(4, 2, generator=torch.Generator().manual_seed(1))),
    )
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fused.log_densities(fused.rows(with_classes(x, y)), noise)[1], plain.log_weights)


def test_images_of_a_class() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (256,), generator=generator)
    tilt = torch.linspace(-1, 1, 64) * torch.randn(256, 1, generator=generator)  # something left for the code to say
    noise = 10 * torch.randn(256, 64, generator=generator)
    x = (torch.where(y[:, None] == 1, 180.0, 70.0) + 40 * tilt + noise).clamp(0, 255).round()
    config = ImageConfig(steps=100, latent=2, channels=16, batch_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ConditionalImageVAE((1, 8, 8), config, 2)
    rows = with_classes(x, y)
    training.fit(model, rows, validation=rows[:32], config=config)
    with torch.no_grad():
        log_px = model.log_px_given_z(rows, torch.zeros(1, 256, 2))
        of_class = [torch.tensor([[0.0] * 64 + [c]]) for c in (0, 1)]
        dark, bright = (float(model.reconstruct_given(torch.zeros(1, 2), row).mean()) for row in of_class)
    assert (log_px[..., -1] == 0).all()
    assert bright > dark + 50
