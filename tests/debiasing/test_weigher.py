"""What of rows decides where density is measured, and that it is said."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.debiasing.weigher import CodedRows, Weigher
from anomaly_vae.options import ResampleConfig


def images_with_garbage() -> CodedRows:
    """A hundredth of the rows are rare in the codes; as many are garbage of a large surprise, far off in the pixels."""
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(1200, 6)).astype(np.float32)
    pixels = (rng.normal(size=(1200, 40)) * np.geomspace(9, 1, 40)).astype(np.float32)
    surprises = rng.normal(size=1200)
    codes[:12, :4] += 4
    pixels[12:24] += 20
    surprises[12:24] += 30
    return CodedRows(codes, pixels, surprises=surprises, images=True)


def test_garbage_that_a_guard_finds_does_not_decide_where_density_is_measured():
    found = Weigher.fit(images_with_garbage(), ResampleConfig(isolation_guard=None))
    guarded = found.space.parts
    assert guarded["latent"] == 1
    assert guarded["components"] < 0.5
    assert found.weighing.report.facts["space_parts"].startswith("latent 1, components 0.")
    config = ResampleConfig(isolation_guard=None, fence=None)
    unguarded = Weigher.fit(images_with_garbage(), config).space.parts
    assert unguarded["components"] > guarded["components"] + 0.2


@pytest.mark.parametrize("space", ["latent", "pca", "raw"])
def test_other_spaces_have_no_parts_to_tell(space):
    facts = Weigher.fit(images_with_garbage(), ResampleConfig(space=space)).weighing.report.facts
    assert facts["space"] == space
    assert "space_parts" not in facts
