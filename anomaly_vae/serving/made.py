"""What the verbs of understanding write: comparisons, scorecards, rows and pictures, each whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.formulas import harmless
from ..errors import ConfigError, OutputExistsError
from .outputs import appearing

if TYPE_CHECKING:
    from ..comparison.results import ModelComparison


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
