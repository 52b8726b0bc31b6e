"""The likelihood of binarised images: its estimate against the plain one, and runs that go on where they stopped."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from anomaly_vae.models import bounds

SCRIPT = Path(__file__).resolve().parents[2] / "pipelines/binarized.py"


@pytest.fixture
def binarized(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("binarized", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "binarized", module)
    spec.loader.exec_module(module)
    for name, value in {
        "MANY": 60,
        "FEW": 6,
        "STEP_EXEMPLARS": 40,
        "KEPT_EXEMPLARS": 15,
        "LAST_EXEMPLARS": 18,
        "LOOK_SECONDS": 0.3,
    }.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    bits = {name: np.packbits(rng.random((20, 784)) < 0.2, axis=1) for name in ("train", "valid", "test")}
    np.savez(tmp_path / "binarized_mnist.npz", **bits)
    return tmp_path


def settings(binarized: ModuleType, model: str, **changes: float) -> object:
    values = {
        "minutes": 0.01,
        "channels": 16,
        "blocks": 1,
        "latent": 4,
        "batch": 16,
        "learning_rate": 2e-3,
        "flips": 0.0,
    }
    return binarized.Settings(**{"model": model, "seed": 0, **values, **changes})


@pytest.mark.parametrize("model", ["vae", "ladder"])
def test_the_estimate_in_two_parts_agrees_with_all_samples_within_its_error(binarized, data, model):
    torch.manual_seed(0)
    vae = binarized.made(settings(binarized, model)).eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.005 * torch.randn(parameter.shape))
    test = binarized.read(data)["test"]
    estimate = binarized.estimate(vae, test, reference_rows=10)
    w = binarized.log_weights(vae, test, 60, torch.Generator().manual_seed(9))
    error = float(bounds.monte_carlo_error(w, "likelihood").square().sum().sqrt()) / len(test)
    reference = float(bounds.importance_weighted_bound(w).mean())
    assert abs(estimate.value - reference) < 4 * math.hypot(estimate.error, error)
    assert estimate.elbo < estimate.few < estimate.value
    assert 0.5 <= estimate.agreement <= 1
    assert 0 <= estimate.agreement_of_few <= 1


@pytest.mark.parametrize("model", ["vae", "ladder"])
def test_a_run_ends_with_its_line_and_is_not_trained_again(binarized, data, tmp_path, model):
    words = ["--data", str(data), "--model", model, "--minutes", "0.01", "--latent", "4", "--batch", "16"]
    words += ["--reference-rows", "2", "--checkpoint", str(tmp_path / "run.safetensors")]
    before = torch.get_num_threads()
    first, again = (CliRunner().invoke(binarized.main, words) for _ in range(2))
    stated = CliRunner().invoke(binarized.main, [*words, "--stated-rows", "2", "--mc-se", "40"])
    other = CliRunner().invoke(binarized.main, [*words, "--seed", "1"])
    torch.set_num_threads(before)
    assert first.exit_code == 0, first.output
    assert first.stdout.splitlines()[-1].startswith(f"| {model} | 0.01 |")
    assert again.stdout == first.stdout
    assert stated.stdout.startswith(first.stdout)
    assert "| to ± 40 | 100% of 2 |" in stated.stdout
    assert "| 60 samples of the encoder's |" in stated.stdout
    assert other.exit_code == 1
    assert "same settings" in other.output


def test_a_run_that_goes_on_has_everything_it_had(binarized, data, tmp_path):
    chosen, train = settings(binarized, "vae"), binarized.read(data)["train"]
    run = binarized.started(chosen, len(train))
    for share in (0.1, 0.6):
        binarized.take_step(run, train, chosen, share)
    run.save(tmp_path / "run.safetensors", chosen)
    later = binarized.started(chosen, len(train))
    later.restore(tmp_path / "run.safetensors", chosen)
    losses = [[binarized.take_step(r, train, chosen, 0.7) for _ in range(3)] for r in (run, later)]
    assert losses[0] == losses[1]
    assert torch.equal(run.bank, later.bank)
    averages = [list(r.averaged.parameters()) for r in (run, later)]
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))
