"""What the verbs of understanding write: comparisons, scorecards, rows and pictures, each whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.formulas import harmless
from ..errors import ConfigError, OutputExistsError, SchemaError, UnreadableDataError
from .outputs import appearing

if TYPE_CHECKING:
    from ..comparison.results import ModelComparison
    from ..scorecard import Scorecard

MOST_BYTES = 16_000_000
"""A scorecard is some kilobytes: what is larger is none, and is not read."""


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists and may not be replaced, or whose place is no folder.

    Raises:
        OutputExistsError: It exists.
        ConfigError: Its folder is a file, or it is a folder.
    """
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
        raise ConfigError(f"an output must be a file in a folder, got {str(path)!r}. Name another.", path=path)
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"an output must not exist yet, got {str(path)!r}. Use --overwrite to replace it.", path=path
        )


def write_json(value: dict[str, Any], path: Path) -> None:
    """Write facts as a JSON file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_scorecard(path: Path, *, model: str = "") -> Scorecard:
    """Read what `anomaly-vae scorecard --out` wrote.

    Args:
        path: The file.
        model: URI of the model that it must be of; one that names none, as `Scorecard.to_dict` returns it, is taken.

    Raises:
        UnreadableDataError: It cannot be read, or is not JSON.
        SchemaError: It is not a scorecard, or another model's.
    """
    from ..scorecard import Scorecard

    rule = f"a scorecard must be JSON that `anomaly-vae scorecard --out` wrote, got {path.name!r}"
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            what = "no such file" if not path.exists() else "not a file" if not path.is_file() else "far too large"
            raise UnreadableDataError(f"{rule}: {what}. Name another.", path=path)
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UnreadableDataError):
            raise
        raise UnreadableDataError(f"{rule}: it cannot be read as JSON. Name another.", path=path) from error
    try:
        card = Scorecard.from_dict(facts)
    except SchemaError as error:
        raise SchemaError(f"{rule}: {error}", path=path) from error
    by = facts.get("model")
    if model and by and by != model:
        raise SchemaError(f"a scorecard must be this model's, {model!r}, got one of {str(by)[:120]!r}. Make one of it.")
    return card


def write_comparison(found: ModelComparison, folder: Path) -> None:
    """Write comparison.json, with everything, and comparison.csv, one line a model."""
    facts = found.to_dict()
    write_json(facts, folder / "comparison.json")
    names = _columns(facts)
    with appearing(folder / "comparison.csv") as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "title", *names, "sentence"])
        for rung in facts["rungs"]:
            figures = rung["figures"] or {}
            cells = ["" if figures.get(name) is None else figures[name] for name in names]
            writer.writerow([rung["name"], rung["title"], *cells, harmless(rung["sentence"])])


def _columns(facts: dict[str, Any]) -> list[str]:
    """Return the names of all figures, in order."""
    return list(dict.fromkeys(name for rung in facts["rungs"] for name in rung["figures"] or {}))
