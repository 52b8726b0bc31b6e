"""Data with a planted rare group that nobody is told of: for training skewed, for testing balanced.

==========  ===========================================================================================================
rotation    MNIST at 14 x 14; 5 % of the training images are rotated by 90 degrees
fashion     Fashion-MNIST at 28 x 28; 5 % are rotated, mirrored or striped (`--plant`)
coloured    MNIST on coloured, cluttered backgrounds; the colour tells the class in 95 % of the images
adult       the census table; women of a high income, of whom few are kept, are the rare group
credit      the table of credit-card clients; likewise, women who defaulted
digits      scikit-learn's digits at 8 x 8; 5 % are rotated
==========  ===========================================================================================================

Some training rows can be spoilt: garbage (noise and scrambled images, with random labels), or flipped labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from adult import load as load_adult
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from anomaly_vae.data.images import frame_of

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]

RARE = 0.05
TRAIN_ROWS = 3000
TEST_ROWS = 2000
"""Test rows of each group, at most."""
SPOILT = 0.02
STRIPES = 4
CLUTTER = 6
SPOILINGS = ("clean", "garbage", "flips")


@dataclass(frozen=True)
class Part:
    """Rows, for training or for testing.

    Attributes:
        frame: The rows, n, as a detector takes them.
        y: Class of each, (n,).
        rare: Whether a row has the attribute that makes it rare, (n,).
        group: Group by which accuracy is judged, (n,), from 0; the last is the rare one.
        spoilt: Whether a row is garbage or has a flipped label, (n,).
    """

    frame: pd.DataFrame
    y: Labels
    rare: Flags
    group: Labels
    spoilt: Flags


@dataclass(frozen=True)
class Planted:
    """A data set with a planted rare group.

    Attributes:
        name: Its name.
        train: Training rows, in which the group is rare.
        test: Test rows, in which the groups are equally many.
        groups: Names of the groups.
    """

    name: str
    train: Part
    test: Part
    groups: tuple[str, ...]

    @property
    def images(self) -> bool:
        """Whether the rows are images."""
        return list(self.train.frame.columns) == ["image"]


def rotated(x: Images, rng: np.random.Generator) -> Images:
    """Rotate by 90 degrees."""
    return np.ascontiguousarray(np.rot90(x, axes=(1, 2)))


def mirrored(x: Images, rng: np.random.Generator) -> Images:
    """Swap left and right."""
    return x[:, :, ::-1].copy()


def striped(x: Images, rng: np.random.Generator) -> Images:
    """Darken every other stripe of some rows."""
    out = x.copy()
    for start in range(0, x.shape[1], 2 * STRIPES):
        out[:, start : start + STRIPES] //= 3
    return out


PLANTS: dict[str, Callable[[Images, np.random.Generator], Images]] = {
    "rotated": rotated,
    "mirrored": mirrored,
    "striped": striped,
}


def halved(x: Images) -> Images:
    """Return images (n, h, w) of half the height and width, each pixel the mean of four."""
    n, h, w = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2).mean((2, 4)).round().astype(np.uint8)


def of_images(
    name: str, x: Images, y: Labels, plant: str, seed: int, *, rows: int = TRAIN_ROWS, test_rows: int = TEST_ROWS
) -> Planted:
    """Plant a rare group of changed images."""
    rng = np.random.default_rng(seed)
    rows, order = min(rows, len(x) * 2 // 3), rng.permutation(len(x))
    few = np.zeros(rows, dtype=bool)
    few[: round(RARE * rows)] = True
    held = order[rows : rows + 2 * test_rows]
    half = np.arange(len(held)) < len(held) // 2
    parts = []
    for chosen, rare in ((order[:rows], few), (held, half)):
        images = x[chosen].copy()
        images[rare] = PLANTS[plant](images[rare], rng)
        parts.append(_part(images, y[chosen], rare))
    return Planted(name, parts[0], parts[1], ("usual", plant))


def coloured(x: Images, y: Labels, seed: int, *, rows: int = TRAIN_ROWS, test_rows: int = TEST_ROWS) -> Planted:
    """Put digits on backgrounds whose colour is their class's, but for a rare group; clutter lies on all."""
    rng = np.random.default_rng(seed)
    rows, order = min(rows, len(x) * 2 // 3), rng.permutation(len(x))
    held = order[rows : rows + 2 * test_rows]
    palette = np.random.default_rng(7).integers(60, 200, (10, 3))
    parts = []
    for chosen, share in ((order[:rows], RARE), (held, 0.5)):
        odd = np.arange(len(chosen)) < round(share * len(chosen))
        colour = np.where(odd, (y[chosen] + rng.integers(1, 10, len(chosen))) % 10, y[chosen])
        parts.append(_part(_cluttered(x[chosen], palette[colour], rng), y[chosen], odd))
    return Planted("coloured", parts[0], parts[1], ("own colour", "other colour"))


def _cluttered(x: Images, colours: NDArray[np.int64], rng: np.random.Generator) -> Images:
    """Return digits (n, h, w) in white on a colour each (n, 3), patches of other colours between, (n, h, w, 3)."""
    n, h, w = x.shape
    out = np.broadcast_to(colours[:, None, None, :], (n, h, w, 3)).astype(np.float64)
    out += rng.normal(0, 12, out.shape)
    for i in range(n):
        for _ in range(CLUTTER):
            top, left = rng.integers(0, h - 4), rng.integers(0, w - 4)
            height, width = rng.integers(3, 9, 2)
            out[i, top : top + height, left : left + width] = rng.integers(0, 256, 3)
    ink = x[..., None] / 255.0
    return np.clip(out * (1 - ink) + 255 * ink, 0, 255).round().astype(np.uint8)


def _part(images: Images, y: Labels, rare: Flags) -> Part:
    y = y.astype(np.int64)
    return Part(frame_of(images), y, rare, rare.astype(np.int64), np.zeros(len(y), dtype=bool))


def of_a_table(name: str, frame: pd.DataFrame, y: Flags, rare: Flags, seed: int, attribute: str) -> Planted:
    """Keep few of the rows that have the attribute and are of the positive class; groups are the four cells."""
    rng = np.random.default_rng(seed)
    cell = 2 * rare.astype(np.int64) + y
    test: list[NDArray[np.int64]] = []
    for c in range(4):
        members = rng.permutation(np.flatnonzero(cell == c))
        test.append(members[: min(TEST_ROWS // 2, len(members) // 2)])
    smallest = min(map(len, test))
    held = np.concatenate([part[:smallest] for part in test])
    left = rng.permutation(np.setdiff1d(np.arange(len(y)), held))
    few, others = left[cell[left] == 3], left[cell[left] != 3]
    few = few[: round(0.01 * TRAIN_ROWS)]
    learnt = rng.permutation(np.concatenate([few, others[: TRAIN_ROWS - len(few)]]))

    def part(rows: NDArray[np.int64]) -> Part:
        table = frame.iloc[rows].reset_index(drop=True)
        return Part(table, y[rows].astype(np.int64), rare[rows], cell[rows], np.zeros(len(rows), dtype=bool))

    names = (
        f"not {attribute}, negative",
        f"not {attribute}, positive",
        f"{attribute}, negative",
        f"{attribute}, positive",
    )
    return Planted(name, part(learnt), part(held), names)


def _adult(folder: Path, seed: int) -> Planted:
    frame = load_adult(folder)
    incomes = []
    for name in ("adult.data", "adult.test"):
        raw = pd.read_csv(folder / name, header=None, skipinitialspace=True, comment="|")
        incomes.append(raw.iloc[:, -1].astype(str).str.startswith(">50K"))
    y = pd.concat(incomes, ignore_index=True).to_numpy()
    return of_a_table("adult", frame.drop(columns="fnlwgt"), y, (frame["sex"] == "Female").to_numpy(), seed, "women")


def _credit(folder: Path, seed: int) -> Planted:
    frame = pd.read_csv(folder / "credit-card-clients.csv")
    y = frame.pop("default payment").to_numpy() == 1
    kinds = dict.fromkeys(("SEX", "EDUCATION", "MARRIAGE"), "str")
    return of_a_table("credit", frame.astype(kinds), y, (frame["SEX"] == 2).to_numpy(), seed, "women")


def _mnist(path: Path) -> tuple[Images, Labels]:
    with np.load(path, allow_pickle=False) as file:
        return file["x_test"], file["y_test"].astype(np.int64)


def _digits() -> tuple[Images, Labels]:
    digits = load_digits()
    return np.round(digits.images * 255 / 16).astype(np.uint8), digits.target.astype(np.int64)


PROTOCOLS = ("rotation", "fashion", "coloured", "adult", "credit", "digits")


def planted(protocol: str, folder: Path | None, seed: int, *, plant: str = "rotated") -> Planted:
    """Return the data of a protocol.

    Args:
        protocol: One of `PROTOCOLS`.
        folder: Holds mnist/mnist.npz, fashion_mnist/fashion_mnist.npz, adult/, credit_default/; None for digits.
        seed: Of the draw of rows.
        plant: What is done to the rare images.

    Raises:
        FileNotFoundError: The data are not there.
    """
    if protocol == "digits":
        return of_images("digits", *_digits(), plant, seed)
    root = folder or Path()
    if protocol == "adult":
        return _adult(root / "adult", seed)
    if protocol == "credit":
        return _credit(root / "credit_default", seed)
    if protocol == "fashion":
        return of_images(f"fashion, {plant}", *_mnist(root / "fashion_mnist/fashion_mnist.npz"), plant, seed)
    x, y = _mnist(root / "mnist/mnist.npz")
    return coloured(x, y, seed) if protocol == "coloured" else of_images("rotation", halved(x), y, plant, seed)


def spoilt(data: Planted, how: str, seed: int) -> Planted:
    """Return the same data, of whose training rows 2 % are made garbage, or given another label.

    Raises:
        ValueError: Garbage is asked for in a table.
    """
    if how == "clean":
        return data
    rng = np.random.default_rng(seed + 1_000_000)
    train = data.train
    usual = np.flatnonzero(~train.rare) if how == "garbage" else np.arange(len(train.y))
    chosen = np.sort(rng.choice(usual, round(SPOILT * len(train.y)), replace=False))
    flags, classes = np.zeros(len(train.y), dtype=bool), np.unique(train.y)
    flags[chosen] = True
    y, frame = train.y.copy(), train.frame
    if how == "flips":
        y[chosen] = (y[chosen] + rng.integers(1, len(classes), len(chosen))) % len(classes)
    elif not data.images:
        raise ValueError("garbage must be images, got a table")
    else:
        y[chosen] = rng.choice(classes, len(chosen))
        images = np.stack(frame["image"].tolist())
        for k, i in enumerate(chosen):
            noise = rng.integers(0, 256, images[i].shape, dtype=np.uint8)
            images[i] = noise if k % 2 else rng.permuted(images[i].ravel()).reshape(images[i].shape)
        frame = frame_of(images)
    return replace(data, train=replace(train, frame=frame, y=y, spoilt=flags))
