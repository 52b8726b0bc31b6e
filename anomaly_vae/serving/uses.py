"""The latent space of a model put to use on a file: rows made from codes, and codes shown, as tables or pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ..data.images import ImageSchema
from ..data.rows import labels as truths
from ..data.rows import read_table
from ..detection.detector import Detector
from ..detection.draws import told_classes
from ..errors import ConfigError, SchemaError
from ..latent.attributes import attribute_vector, resynthesise, sample_of_class
from ..latent.compression import compress, decompress
from ..latent.maps import cluster, latent_map
from ..latent.space import LatentSpace
from ..options.understanding import GenerateConfig, LatentConfig
from .outputs import OUTPUT_SUFFIXES, appearing, write_tables
from .streams import images_of

if TYPE_CHECKING:
    from ..reporting.grids import Figure

PICTURE = ".png"
ACROSS = 12
DPI = 150


@dataclass(frozen=True, eq=False)
class Made:
    """What a verb made.

    Attributes:
        frame: Its rows.
        facts: What is said of it.
        across: Images of a line of the picture; None where lines mean nothing.
        lines: A word for each line.
        before: Of images, what they were made from, shown above each line of the result.
        figure: A picture of its own, instead of the images.
        packed: The bytes of a file, instead of a table.
    """

    frame: pd.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)
    across: int | None = None
    lines: Sequence[str] = ()
    before: pd.DataFrame | None = None
    figure: Figure | None = None
    packed: bytes | None = None


@dataclass(frozen=True)
class Named:
    """Columns of the data that say something of each row.

    Attributes:
        label: Of classes: which class to draw, or what to colour by.
        wanted: The class to draw; of a model that is told classes also the one that codes are decoded for.
        attribute: True or 1 for rows that have it.
        balance: Another attribute that is to stay as it is.
        remove: Whether the attribute is to be taken away.
        expected: Whether drawn rows are expected ones, without noise.
    """

    label: str | None = None
    wanted: str | None = None
    attribute: str | None = None
    balance: str | None = None
    remove: bool = False
    expected: bool = False


def check_place(output: Path, detector: Detector, what: str) -> None:
    """Refuse an output whose name does not fit what is made.

    Raises:
        ConfigError: Neither a table nor a picture that can be drawn.
    """
    pictures = isinstance(detector.schema, ImageSchema) and what not in ("codes", "clusters", "compress")
    pictures = pictures or what == "map"
    if what == "compress":
        return
    if output.suffix == PICTURE and not pictures:
        raise ConfigError(f"{what} of a table must be written as {', '.join(OUTPUT_SUFFIXES)}, got {output.name!r}.")
    if output.suffix not in (PICTURE, *OUTPUT_SUFFIXES):
        raise ConfigError(f"an output must end in {', '.join((PICTURE, *OUTPUT_SUFFIXES))}, got {output.name!r}.")
    if (
        output.suffix == ".csv"
        and isinstance(detector.schema, ImageSchema)
        and what not in ("codes", "clusters", "map")
    ):
        raise ConfigError(f"images must be written as .png or .parquet, got {output.name!r}. Rename it.")


def rows_of(
    detector: Detector, source: str | Path, beside: Sequence[str | None], *, most: int | None = None, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, pd.Series]]:
    """Return the rows of a file that a model knows, and columns beside them.

    Args:
        detector: The model.
        source: Table, or images.
        beside: Names of further columns; those that are None do not count.
        most: Rows that are kept, drawn by chance, in order.
        seed: Of that draw.

    Raises:
        SchemaError: The rows are not the model's, or a column is absent.
    """
    names = list(dict.fromkeys(name for name in beside if name))
    schema = detector.schema
    if isinstance(schema, ImageSchema):
        if len(names) > 1:
            raise ConfigError(f"images must come with one column of labels, got {', '.join(map(repr, names))}.")
        frame = images_of(source, schema, label=names[0] if names else None).read(schema)
        known = list(schema.names)
    else:
        frame = read_table(source, text={*schema.text_columns, *names})
        known = list(schema.names)
    absent = [name for name in names if name not in frame.columns]
    if absent:
        shown = ", ".join(map(repr, frame.columns[:8]))
        raise SchemaError(f"a named column must be in the data, got {absent[0]!r}. It has {shown}.", column=absent[0])
    if most is not None and len(frame) > most:
        frame = frame.iloc[np.sort(np.random.default_rng(seed).choice(len(frame), most, replace=False))]
    frame = frame.reset_index(drop=True)
    extra = [name for name in frame.columns if str(name) not in known]
    return frame.drop(columns=extra), {name: frame[name] for name in names}


def values_of(column: pd.Series) -> np.ndarray[Any, Any]:
    """Return a column as numbers, if it is one of numbers, else as text: of a CSV file it was read as text."""
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers.to_numpy(dtype=np.float64) if numbers.notna().all() else column.map(str).to_numpy()


def generated(detector: Detector, config: GenerateConfig, source: str | None, named: Named) -> Made:
    """Return rows made from codes.

    Args:
        detector: The model.
        config: What to make.
        source: Rows to make them from; None where they are drawn.
        named: Columns of the source.

    Raises:
        ConfigError: Data or a column is wanted and not given, or the model cannot do that.
        SchemaError: The data are not the model's.
    """
    told = told_classes(detector.schema) is not None
    space, what = LatentSpace(detector, given=named.wanted if told else None), config.what
    if what == "sample" and (told or not named.wanted):
        frame = space.sample(config.rows, seed=config.seed, expected=named.expected)
        of_class = {"class": named.wanted} if named.wanted else {}
        return Made(frame, {"rows": len(frame), **of_class}, across=math.ceil(math.sqrt(len(frame))))
    if what == "sample" and source is None:
        raise ConfigError(
            f"class {named.wanted!r} must be one that the model is told, got a model of p(x). Give labelled rows with "
            "--data and --label, or a model that was trained with --condition."
        )
    if source is None:
        raise ConfigError(f"{what} must have data to start from, got none. Give --data.")
    if what == "decompress":
        return Made(decompress(space, source), across=ACROSS)
    if what == "sample":
        if not named.label:
            raise ConfigError("a class to draw must come with the column it is in, got none. Give --label.")
        frame, beside = rows_of(detector, source, [named.label])
        drawn = sample_of_class(space, frame, beside[named.label], named.wanted, config.rows, seed=config.seed)
        return Made(drawn, {"rows": len(drawn), "class": named.wanted}, across=math.ceil(math.sqrt(len(drawn))))
    if what == "attribute":
        return _with_attribute(space, config, source, named)
    frame, _ = rows_of(detector, source, [], most=config.rows, seed=config.seed)
    if what == "interpolate":
        if len(frame) < 2:
            raise SchemaError(f"interpolation must have at least 2 rows, got {len(frame)}. Give more.")
        first, second = frame.iloc[:-1], frame.iloc[1:]
        return Made(space.interpolate(first, second, steps=config.steps, path=config.path), across=config.steps + 1)
    done = {"reconstruct": space.reconstruct, "denoise": space.denoise, "impute": space.impute}[what](frame)
    facts: dict[str, Any] = {"rows": len(done)}
    if what == "impute":
        facts["filled"] = int(frame.isna().to_numpy().sum() - done.isna().to_numpy().sum())
    return Made(done, facts, before=frame)


def _with_attribute(space: LatentSpace, config: GenerateConfig, source: str, named: Named) -> Made:
    if not named.attribute:
        raise ConfigError("an attribute must be named by its column, got none. Give --attribute.")
    frame, beside = rows_of(space.detector, source, [named.attribute, named.balance])
    has = truths(beside[named.attribute])
    balance = None if named.balance is None else beside[named.balance].map(str).to_numpy()
    vector = attribute_vector(space.encode(frame), has, name=named.attribute, balance=balance)
    rows = np.flatnonzero(has == named.remove)[: config.rows]
    before = frame.iloc[rows].reset_index(drop=True)
    moved = resynthesise(space, before, vector, present=not named.remove, strength=config.strength)
    facts = {"rows": len(moved), "attribute": named.attribute, "separated": vector.accuracy}
    return Made(moved, facts, before=before)


def shown(
    detector: Detector, config: LatentConfig, source: str | None, label: str | None, *, wanted: str | None = None
) -> Made:
    """Return a latent space as a table or a picture.

    Args:
        detector: The model.
        config: What to show.
        source: Rows; manifold and traversals need none.
        label: Column to colour the map by; by default the score.
        wanted: Class that codes are decoded for, of a model that is told classes.

    Raises:
        ConfigError: Data are wanted and not given, or a class.
        SchemaError: The data are not the model's.
    """
    space, what = LatentSpace(detector, given=wanted), config.what
    if what == "manifold":
        return Made(space.manifold(size=config.size), across=config.size)
    if what == "traversals":
        start = None if source is None else rows_of(detector, source, [])[0].iloc[:1]
        frame = space.traversals(start, steps=config.steps, reach=config.reach)
        lines = [f"z{d}" for d in frame.index.get_level_values("dimension").unique()]
        return Made(frame, {"dimensions": len(lines)}, across=config.steps, lines=lines)
    if source is None:
        raise ConfigError(f"{what} must have data to show, got none. Give --data.")
    frame, beside = rows_of(detector, source, [label])
    if what == "codes":
        mean, log_scale = space.posterior(frame)
        columns = {f"z{j}": mean[:, j] for j in range(space.width)}
        return Made(pd.DataFrame({**columns, **{f"sd{j}": np.exp(log_scale[:, j]) for j in range(space.width)}}))
    if what == "clusters":
        found = cluster(space, frame, clusters=config.clusters, seed=config.seed)
        return Made(pd.DataFrame({"row": np.arange(len(frame)), "cluster": found.labels}), found.to_dict())
    if what == "compress":
        packed, rate = compress(space, frame, step=config.step)
        return Made(frame, rate.to_dict(), packed=packed)
    return _map(space, frame, beside.get(label) if label else None)


def _map(space: LatentSpace, frame: pd.DataFrame, label: pd.Series | None) -> Made:
    from ..reporting.grids import map_figure

    places = latent_map(space, frame)
    share = places.attrs["explained"]
    colour: Any = places["anomaly_score"].to_numpy()
    name = "anomaly score, nats"
    if label is not None:
        values = values_of(label)
        continuous = values.dtype != object and len(np.unique(values)) > ACROSS
        colour, name = values if continuous else label.map(str).to_numpy(), str(label.name)
        places = places.assign(**{str(label.name): label.to_numpy()})
    title = f"{len(places):,} rows; {share:.0%} of the codes' variance lies in this plane"
    figure = map_figure(places["x"].to_numpy(), places["y"].to_numpy(), colour, name=name, title=title)
    return Made(places, {"rows": len(places), "explained": share}, figure=figure)


def write_made(made: Made, output: Path, detector: Detector) -> None:
    """Write what was made: a table, a picture, or packed bytes; the file appears when it is whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if made.packed is not None:
        with appearing(output) as aside:
            aside.write_bytes(made.packed)
        return
    if output.suffix == PICTURE:
        figure = made.figure or _grid(made, detector)
        with appearing(output) as aside:
            figure.savefig(aside, dpi=DPI, format="png")
        return
    frame = made.frame
    if frame.index.names != [None]:
        frame = frame.reset_index()
    columns = {name: _storable(frame[name]) for name in frame.columns}
    table = pa.Table.from_pandas(pd.DataFrame(columns), preserve_index=False)
    with appearing(output) as aside:
        write_tables([table], aside, output.suffix if output.suffix == ".csv" else ".parquet", lambda _: None)


def _storable(column: pd.Series) -> pd.Series:
    """Return a column of one type: text where cells differ in type."""
    if column.dtype != object:
        return column
    kinds = {type(cell) for cell in column if cell is not None and cell is not pd.NA}
    return column if len(kinds) <= 1 else column.map(lambda cell: None if cell is None else str(cell))


def _grid(made: Made, detector: Detector) -> Figure:
    from ..reporting.grids import image_grid

    images = detector.pixels(made.frame)
    if made.before is None:
        return image_grid(images, across=made.across or ACROSS, labels=made.lines)
    before = detector.pixels(made.before)
    lines = [part[i : i + ACROSS] for i in range(0, len(images), ACROSS) for part in (before, images)]
    blank = np.full((ACROSS, *images.shape[1:]), 255, dtype=np.uint8)
    full = [np.concatenate([line, blank[: ACROSS - len(line)]]) for line in lines]
    return image_grid(np.concatenate(full), across=ACROSS, labels=["data", "made"] * (len(lines) // 2))
