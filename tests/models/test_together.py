"""Mixtures evaluated as one give what each gives by itself, the same bits for a row in any company."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_vae import Schema
from anomaly_vae.models.mixture import ClassMixture
from anomaly_vae.models.together import CHUNK, Together, background
from tests.conftest import mixed_frame


def fitted(frame: pd.DataFrame, rows: list[int] | None = None) -> tuple[list[ClassMixture], torch.Tensor]:
    """Mixtures of several sizes on plain and bent scales; each bent one with constants of its own if rows are given."""
    schema = Schema.fit(frame)
    numbers = any(column.kind == "continuous" for column in schema.modelled)
    x = torch.from_numpy(schema.encode(frame))
    found = []
    for i, (classes, bent) in enumerate([(2, False), (2, True), (5, True), (1, False), (3, True)]):
        part = x if rows is None else x[: rows[i]]
        found.append(ClassMixture.fitted(schema.modelled, part, classes=classes, seed=i, bent=bent and numbers))
    return found, x


NUMBERS = pd.DataFrame(np.random.default_rng(0).normal(size=(400, 3)), columns=list("abc")).assign(
    d=lambda t: t.a + t.b
)
FRAMES = {
    "mixed, with gaps": mixed_frame(400),
    "numbers alone": NUMBERS,
    "no numbers": mixed_frame(400)[["member", "city", "visits"]],
}


def oracle(mixtures: list[ClassMixture], x: torch.Tensor, marginal_weight: float) -> torch.Tensor:
    mean = torch.stack([m.log_prob(x) for m in mixtures]).mean(0)
    return mean - marginal_weight * background(mixtures).marginals(x).sum(1)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("rows", [None, [400, 300, 200, 400, 150]], ids=["one bend", "bends of their own"])
@pytest.mark.parametrize("marginal_weight", [0.0, 0.3])
def test_they_say_what_each_says(name, rows, marginal_weight):
    mixtures, x = fitted(FRAMES[name], rows)
    wanted = oracle(mixtures, x, marginal_weight)
    got = Together(mixtures, marginal_weight).term(x)
    np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-12)


def test_scales_are_shared_where_they_are_one():
    frame = FRAMES["numbers alone"]
    assert len(Together(fitted(frame)[0]).scales) == 2
    assert len(Together(fitted(frame, [400, 300, 200, 400, 150])[0]).scales) == 4


@pytest.mark.parametrize("name", FRAMES)
def test_a_row_has_the_same_bits_in_any_company(name):
    mixtures, x = fitted(FRAMES[name])
    together = Together(mixtures, 0.3)
    long = torch.cat([x] * (2 * CHUNK // len(x) + 1))
    whole = together.term(long)
    order = torch.randperm(len(long), generator=torch.Generator().manual_seed(0))
    assert torch.equal(together.term(long[order]), whole[order])
    assert torch.equal(torch.cat([together.term(row) for row in x[:40].split(1)]), whole[:40])
    parts = x.split(together.block + 7)
    assert torch.equal(torch.cat([together.term(part) for part in parts]), whole[: len(x)])


def test_threads_may_share_the_work_of_a_caller_that_infers() -> None:
    """Tensors of inference mode may only be written in it, and each thread has a mode of its own."""
    mixtures, x = fitted(NUMBERS)
    x, together = x.repeat(3 * CHUNK // len(x) + 1, 1), Together(mixtures)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            both = together.term(x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(both, torch.cat([together.term(part) for part in x.split(CHUNK)]))


def test_what_is_taken_off_is_bounded():
    """Far cells are those that it must not excuse."""
    mixtures, x = fitted(FRAMES["mixed, with gaps"])
    far = x[:300].repeat(3, 1)
    for i, row in enumerate(far):
        row[i % x.shape[1]] = (1e1, 1e4, 1e8)[i // 300]
    marginals = Together(mixtures, 0.3).marginals
    assert marginals is not None
    off = marginals.log_prob(far.double())
    torch.testing.assert_close(off, background(mixtures).marginals(far).sum(1))
    assert off.min() > -100
    assert mixtures[0].log_prob(far).min() < -1e6


def test_counts_beyond_the_table_cost_what_each_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row has the same bits whether or not another count of its block is looked up; so has one of small blocks."""
    monkeypatch.setattr("anomaly_vae.models.together.MOST_COUNTED", 3)
    mixtures, x = fitted(FRAMES["mixed, with gaps"])
    visits = list(FRAMES["mixed, with gaps"]).index("visits")
    x[::7, visits], x[1::7, visits] = 1e6, -1.0
    together = Together(mixtures, 0.3)
    assert (x[:, visits] > 3).any()
    wanted = oracle(mixtures, x, 0.3)
    got = together.term(x)
    np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-11)
    assert torch.equal(torch.cat([together.term(part) for part in x[:60].split(3)]), got[:60])
    assert together.few is not None
