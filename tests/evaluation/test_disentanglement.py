"""Factors planted in single dimensions, in mixtures of dimensions, and in none."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.errors import ShapeError
from anomaly_vae.evaluation.disentanglement import disentanglement, factor_vae_score


def planted(n: int = 800) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    z = np.random.default_rng(0).normal(size=(n, 3))
    return z, {"kind": np.digitize(z[:, 0], [-0.5, 0.5]), "size": z[:, 1], "name": np.where(z[:, 2] > 0, "x", "y")}


def test_one_dimension_a_factor_is_found() -> None:
    found = disentanglement(*planted())
    assert found.mig > 0.75
    assert found.disentanglement > 0.9
    assert found.completeness > 0.9
    assert found.informativeness > 0.9
    assert found.dimension == {"kind": 0, "size": 1, "name": 2}
    assert min(found.correlation.values()) > 0.8


def test_turned_codes_say_as_much_and_are_not_disentangled() -> None:
    z, factors = planted()
    turn = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3  # each lies in two dimensions, alike in both
    plain, turned = disentanglement(z, factors), disentanglement(z @ turn, factors)
    assert turned.mig < 0.3 < plain.mig
    assert turned.disentanglement < 0.5
    assert turned.completeness < 0.5
    assert turned.informativeness > 0.6


def test_codes_of_nothing_say_nothing() -> None:
    _, factors = planted()
    found = disentanglement(np.random.default_rng(2).normal(size=(800, 3)), factors)
    assert found.mig < 0.05
    assert found.informativeness < 0.15
    assert max(found.correlation.values()) < 0.15


def test_attributes_of_one_class_are_left_out_or_refused() -> None:
    z, factors = planted(200)
    assert set(disentanglement(z, {**factors, "same": np.ones(200)}).mig_of) == set(factors)
    with pytest.raises(ShapeError, match="nothing to be told apart by"):
        disentanglement(z, {"same": np.ones(200)})
    with pytest.raises(ShapeError, match="n >= 20"):
        disentanglement(z[:2], {"kind": factors["kind"][:2]})
    assert disentanglement(z, {"many": np.arange(200).astype(str)}).rows == 200  # a name of its own for each row


def independent(n: int = 3000, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Codes that are the factors themselves: three classes, a quantity, two classes, four classes."""
    rng = np.random.default_rng(seed)
    z = np.stack([rng.integers(3, size=n), rng.normal(size=n), rng.integers(2, size=n), rng.integers(4, size=n)], 1)
    return z, {"kind": z[:, 0], "size": z[:, 1], "side": z[:, 2], "step": z[:, 3]}


def test_codes_that_are_the_factors_win_every_vote() -> None:
    z, factors = independent()
    found = factor_vae_score(z, factors)
    assert (found.value, found.se, found.chance, found.votes) == (1.0, 0.0, 0.25, 800)
    assert found.dimension == {"kind": 0, "size": 1, "side": 2, "step": 3}
    swapped = factor_vae_score(z[:, [2, 3, 0, 1]] * [1, -5, 0.5, 100], factors)  # neither order, sign nor unit counts
    assert swapped.value == 1.0
    assert swapped.dimension == {"kind": 2, "size": 3, "side": 0, "step": 1}
    assert disentanglement(z, factors).factor_vae == found


@pytest.mark.parametrize("n", [300, 3000])
def test_codes_of_nothing_vote_by_chance(n: int) -> None:
    _, factors = independent(n)
    values = [
        factor_vae_score(np.random.default_rng(seed).normal(size=(n, 6)), factors, seed=seed).value
        for seed in range(10)
    ]
    assert np.mean(values) == pytest.approx(0.25, abs=0.035)
    assert max(values) < 0.35


def test_factors_in_one_dimension_cannot_be_told_apart_by_it() -> None:
    z, factors = independent()
    rng = np.random.default_rng(1)
    both = np.stack([z[:, 0] + 3 * z[:, 2], rng.normal(size=len(z))], 1)
    found = factor_vae_score(both, {"kind": factors["kind"], "side": factors["side"]})
    assert found.value == pytest.approx(0.5, abs=0.06)
    turn = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    turned = factor_vae_score(standard(z) @ turn, factors)  # a fixed factor takes a quarter from each, alike
    assert turned.value == pytest.approx(0.25, abs=0.06)


def standard(z: np.ndarray) -> np.ndarray:
    return (z - z.mean(0)) / z.std(0)


def test_dimensions_out_of_use_have_no_vote() -> None:
    z, factors = independent()
    faint = 1e-3 * z[:, [0, 1, 2, 3]]
    noise = np.random.default_rng(3).normal(size=(len(z), 2))
    assert factor_vae_score(np.hstack([faint, noise]), factors).value < 0.35
    nothing = factor_vae_score(faint, factors)
    assert (nothing.value, nothing.dimension) == (0.25, {})


def test_votes_of_too_few_rows_are_refused() -> None:
    z, factors = independent(24)
    with pytest.raises(ShapeError, match="at least 10 rows each, got none such"):
        factor_vae_score(z, {"size": factors["size"]})
    assert disentanglement(z, {"size": factors["size"]}).factor_vae is None
    with pytest.raises(ShapeError, match="at least 2, got 1 of 64"):
        factor_vae_score(z, {"side": factors["side"]}, votes=1)
