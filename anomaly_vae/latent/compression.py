r"""Rows packed into a file of codes and back, lossily, with the rate stated.

A code is rounded to whole numbers of steps, one step a posterior standard deviation of its dimension: finer would store
what the posterior does not know. Whole numbers are stored as Parquet columns under zstd. The model is needed to read
the file, and the file says which.

Shapes: n rows, m columns, l latent width.
"""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..detection.draws import refuse_classes
from ..errors import ArtifactError, ConfigError
from .space import LatentSpace

FORMAT = 1
FACTS = b"anomaly_vae"
"""Key of the facts in the file's metadata."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What a compression cost and kept.

    Attributes:
        rows: Rows n.
        bytes: Of the file.
        bits_per_row: 8 bytes / n.
        bits_per_dimension: The same by column or pixel.
        entropy: Bits a row that an ideal coder of the rounded codes would need, each dimension by itself.
        raw_bytes: Of the rows as a zstd Parquet file, or of the images' levels under zstd.
        ratio: raw_bytes / bytes.
        kept_dimensions: Latent dimensions stored; the others are the same for all rows.
    """

    rows: int
    bytes: int
    bits_per_row: float
    bits_per_dimension: float
    entropy: float
    raw_bytes: int
    ratio: float
    kept_dimensions: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return dataclasses.asdict(self)


def compress(space: LatentSpace, frame: pd.DataFrame, *, step: float = 1.0) -> tuple[bytes, Rate]:
    """Return rows as the bytes of a file of codes, and what they cost.

    Args:
        space: The latent space of the model.
        frame: Rows of the model, n >= 1.
        step: Width of a step, in mean posterior standard deviations of each dimension.

    Raises:
        ConfigError: The step is not positive, there is no row, or the model is told classes, which codes do not hold.
        SchemaError: The rows are not of the model.
    """
    refuse_classes(space.schema, "a file of codes")
    if not step > 0 or not len(frame):
        raise ConfigError(f"rows must be at least 1 and a step above 0, got {len(frame)} and {step!r}. Use step=1.")
    mean, log_scale = space.posterior(frame)
    width = np.maximum(step * np.exp(log_scale.astype(np.float64)).mean(0), 1e-6)
    whole = np.clip(np.round(mean / width), -(2**31), 2**31 - 1).astype(np.int32)
    kept = [j for j in range(whole.shape[1]) if (whole[:, j] != whole[0, j]).any()]
    facts = {"format": FORMAT, "digest": space.detector.digest, "width": width.tolist(), "first": whole[0].tolist()}
    columns = {f"z{j}": pa.array(_narrowest(whole[:, j])) for j in kept}
    table = pa.table(columns or {"rows": pa.array(np.zeros(len(whole), dtype=np.int8))})
    packed = _parquet(table.replace_schema_metadata({FACTS: json.dumps(facts).encode()}))
    raw = len(_parquet(_raw(space, frame)))
    bits = 8 * len(packed) / len(frame)
    rate = Rate(
        rows=len(frame), bytes=len(packed), bits_per_row=bits, bits_per_dimension=bits / space.model.columns,
        entropy=sum(_entropy(whole[:, j]) for j in kept), raw_bytes=raw, ratio=raw / len(packed),
        kept_dimensions=len(kept),
    )  # fmt: skip
    return packed, rate


def decompress(space: LatentSpace, source: bytes | str | Path) -> pd.DataFrame:
    """Return the rows of a file that `compress` made, as the model decodes them.

    Raises:
        ArtifactError: It is no such file, or was made by another model.
    """
    try:
        table = pq.read_table(io.BytesIO(source) if isinstance(source, bytes) else Path(source))
        facts = json.loads((table.schema.metadata or {})[FACTS])
        width, first = np.array(facts["width"], dtype=np.float64), np.array(facts["first"], dtype=np.int64)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"a file of codes must be one that compressing wrote, got another ({type(error).__name__}). Check the path."
        ) from error
    if facts["format"] != FORMAT or facts["digest"] != space.detector.digest or len(width) != space.width:
        raise ArtifactError(
            f"a file of codes must be read by the model that wrote it, {facts['digest'][:12]}, got "
            f"{space.detector.digest[:12]}. Load that version.",
            digest=facts["digest"],
        )
    codes = np.tile(first.astype(np.float64), (table.num_rows, 1))
    for name in table.column_names:
        if name.startswith("z"):
            codes[:, int(name[1:])] = table[name].to_numpy()
    return space.decode((codes * width).astype(np.float32))


def _narrowest(values: np.ndarray) -> np.ndarray:
    for kind in (np.int8, np.int16):
        if np.iinfo(kind).min <= values.min() and values.max() <= np.iinfo(kind).max:
            return values.astype(kind)
    return values


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", compression_level=19)
    return file.getvalue()


def _raw(space: LatentSpace, frame: pd.DataFrame) -> pa.Table:
    if space.images:
        levels = space.detector.encode(frame).numpy()
        return pa.table({"image": pa.array([row.tobytes() for row in levels])})
    names = [name for name in frame.columns if str(name) in space.schema.names]
    return pa.Table.from_pandas(frame[names], preserve_index=False)


def _entropy(values: np.ndarray) -> float:
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(shares * np.log2(shares)).sum())
