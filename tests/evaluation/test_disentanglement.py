"""Factors planted in single dimensions, in mixtures of dimensions, and in none."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.errors import ShapeError
from anomaly_vae.evaluation.disentanglement import disentanglement


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
