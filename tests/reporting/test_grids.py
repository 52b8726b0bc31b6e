"""Grids of images and maps of codes: what is drawn where, for few groups and for very many."""

from __future__ import annotations

import io

import numpy as np
import pytest

from anomaly_vae.errors import ShapeError
from anomaly_vae.reporting.grids import MOST_GROUPS, OTHERS, image_grid, map_figure


def test_a_grid_has_each_image_in_its_place() -> None:
    images = (np.arange(5, dtype=np.uint8) * 40)[:, None, None, None] * np.ones((1, 4, 3, 1), dtype=np.uint8)
    figure = image_grid(images, across=2, labels=["one", "two", "three"], title="five")
    sheet = figure.axes[0].images[0].get_array()
    assert sheet.shape == (14, 7)  # a line of one pixel between images
    assert [int(sheet[5 * (i // 2), 4 * (i % 2)]) for i in range(6)] == [0, 40, 80, 120, 160, 255]
    assert (sheet[4] == 255).all()
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["one", "two", "three"]
    for wrong in (np.zeros((0, 4, 4, 1), dtype=np.uint8), np.zeros((3, 4, 4), dtype=np.uint8)):
        with pytest.raises(ShapeError, match="a grid must be"):
            image_grid(wrong, across=2)


def test_a_map_of_numbers_has_a_scale_and_one_of_groups_a_legend() -> None:
    x = np.arange(40.0)
    numbers = map_figure(x, x, x * 2, name="anomaly score, nats")
    assert numbers.axes[1].get_ylabel() == "anomaly score, nats"
    groups = map_figure(x, x, np.array(["$a_1$", "_hidden"] * 20), name="site")
    texts = {text.get_text().strip() for text in groups.axes[0].get_legend().get_texts()}
    assert texts == {r"\$a_1\$", "_hidden"}
    groups.savefig(io.BytesIO(), format="png")


def test_very_many_groups_share_a_colour() -> None:
    x = np.arange(20_000.0)
    figure = map_figure(x, x, np.concatenate([np.arange(15_000).astype(str), np.repeat("many", 5000)]), name="customer")
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(texts) == MOST_GROUPS
    assert texts[0] == "many"
    assert texts[-1] == OTHERS
    with pytest.raises(ShapeError, match="one colour a row"):
        map_figure(x, x, ["a"], name="customer")
