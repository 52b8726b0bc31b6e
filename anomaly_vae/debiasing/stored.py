"""A weigher as JSON and arrays, and back: what an artifact holds of it.

The weights and guards of the rows that it was fitted to are not in it; what weighs further rows alike is. A density of
neighbours and the guards work by comparison with rows: their references are codes of training rows, and of the guards
the rows themselves, as the encoder sees them (`Weigher.rows_held`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError, ConfigError
from ..options import ResampleConfig
from .density import ClusterMasses, CodeDensity, FewGaussians, MarginalHistograms, MixtureDensity
from .neighbours import Isolation, LabelDisagreement, NeighbourDensity
from .resampling import ClassReport, GuardReport, ResampleReport, Tempering, Weighing
from .spaces import Space, of_columns
from .strata import Strata
from .weigher import Weigher

Arrays = dict[str, NDArray[Any]]

KINDS: dict[str, type[Any]] = {
    "neighbours": NeighbourDensity,
    "mixture": MixtureDensity,
    "gaussians": FewGaussians,
    "clusters": ClusterMasses,
    "marginals": MarginalHistograms,
    "isolation": Isolation,
    "disagreement": LabelDisagreement,
}
"""Parts of a weigher that are dataclasses of arrays, numbers and texts."""
NAMES = {kind: name for name, kind in KINDS.items()}


def described(weigher: Weigher) -> tuple[dict[str, Any], Arrays]:
    """Return a weigher as JSON-able facts and arrays by name.

    Raises:
        ConfigError: A class label is neither text, nor a number, nor a boolean.
    """
    odd = [value for value in weigher.strata.values if not isinstance(value, (str, int, float))]
    if odd:
        raise ConfigError(
            f"class labels must be text, numbers or booleans to be saved, got {type(odd[0]).__name__}. Convert them.",
            value=odd[0],
        )
    arrays: Arrays = {}
    facts: dict[str, Any] = {
        "config": weigher.config.to_dict(),
        "strata": dataclasses.asdict(weigher.strata),
        "within": dataclasses.asdict(weigher.density.strata),
        "notes": list(weigher.density.notes),
        "space": _space(weigher.space, "space", arrays),
        "surface": _space(weigher.surface, "surface", arrays),
        "parts": [_part(part, f"density.{i}", arrays) for i, part in enumerate(weigher.density.parts)],
        "isolation": _part(weigher.isolation, "isolation", arrays),
        "disagreement": _part(weigher.disagreement, "disagreement", arrays),
        "fence": weigher.fence,
        "report": weigher.weighing.report.to_dict(),
    }
    temperings = [dataclasses.astuple(tempering) for tempering in weigher.weighing.temperings]
    arrays["temperings"] = np.array(temperings, dtype=np.float64).reshape(len(temperings), len(_TEMPERING))
    arrays["scale"] = np.array([weigher.weighing.scale], dtype=np.float64)
    return facts, arrays


def restored(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Weigher:
    """Return the weigher of facts and arrays.

    Raises:
        ArtifactError: They do not fit together; other errors of Python, where they are of other types.
    """
    strata, within = (_strata(facts[name]) for name in ("strata", "within"))
    parts = tuple(_joined(part, f"density.{i}", arrays) for i, part in enumerate(facts["parts"]))
    temperings = tuple(Tempering(*map(float, row)) for row in arrays["temperings"])
    if len(parts) != len(within.names) or len(temperings) != len(strata.names):
        raise ArtifactError(
            f"a resampler must have a density and a tempering for each class, got {len(parts)} and "
            f"{len(temperings)} for {len(strata.names)}. Restore the artifact."
        )
    nothing = np.zeros(0)
    density = CodeDensity(within, parts, nothing, nothing.astype(np.intp), tuple(facts["notes"]))
    return Weigher(
        config=ResampleConfig.from_mapping(facts["config"]),
        strata=strata,
        space=_space_of(facts["space"], "space", arrays),
        density=density,
        surface=_space_of(facts["surface"], "surface", arrays),
        isolation=_joined(facts["isolation"], "isolation", arrays),
        disagreement=_joined(facts["disagreement"], "disagreement", arrays),
        fence=None if facts["fence"] is None else float(facts["fence"]),
        weighing=Weighing(nothing, temperings, float(arrays["scale"][0]), _report(facts["report"])),
    )


_TEMPERING = tuple(field.name for field in dataclasses.fields(Tempering))


def _space(space: Space, name: str, arrays: Arrays) -> dict[str, Any]:
    if space.kept is not None:  # its axes are columns of the identity
        arrays[f"{name}.kept"] = space.kept.astype(np.int64)
        return {"kind": space.kind, "width": len(space.centre), "columns": True}
    arrays[f"{name}.centre"], arrays[f"{name}.axes"] = space.centre, space.axes
    return {"kind": space.kind, "width": len(space.centre), "columns": False}


def _space_of(facts: Mapping[str, Any], name: str, arrays: Mapping[str, NDArray[Any]]) -> Space:
    if not facts["columns"]:
        return Space(facts["kind"], arrays[f"{name}.centre"], arrays[f"{name}.axes"])
    kept, width = arrays[f"{name}.kept"].astype(np.intp), facts["width"]
    if len(kept) and not 0 <= kept.min() <= kept.max() < width <= 1 << 24:
        raise ArtifactError(f"a space must have some of its {width} columns, got others. Restore the artifact.")
    return of_columns(facts["kind"], kept, width)


def _part(part: Any, name: str, arrays: Arrays) -> dict[str, Any] | None:
    """Put the arrays and numbers of a dataclass among the arrays, the rest into its description."""
    if part is None:
        return None
    out: dict[str, Any] = {"kind": NAMES[type(part)]}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, np.ndarray):
            arrays[f"{name}.{field.name}"] = value
        elif isinstance(value, float):  # which may be infinite, what JSON has no word for
            arrays[f"{name}.{field.name}"] = np.array([value])
        elif isinstance(value, tuple) and value and isinstance(value[0], np.ndarray):
            arrays |= {f"{name}.{field.name}.{i}": array for i, array in enumerate(value)}
        else:
            out[field.name] = list(value) if isinstance(value, tuple) else value
    return out


def _joined(facts: Mapping[str, Any] | None, name: str, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if facts is None:
        return None
    kind, fields = KINDS[facts["kind"]], {}
    for field in dataclasses.fields(kind):
        key = f"{name}.{field.name}"
        if field.name in facts:
            value = facts[field.name]
            fields[field.name] = tuple(value) if isinstance(value, list) else value
        elif field.type == "float":
            fields[field.name] = float(arrays[key][0])
        elif key in arrays:
            fields[field.name] = arrays[key]
        else:
            found: list[NDArray[Any]] = []
            while f"{key}.{len(found)}" in arrays:
                found.append(arrays[f"{key}.{len(found)}"])
            fields[field.name] = tuple(found)
    return kind(**fields)


def _strata(facts: Mapping[str, Any]) -> Strata:
    return Strata(facts["kind"], *(tuple(facts[name]) for name in ("names", "values", "edges")))


def _report(facts: Mapping[str, Any]) -> ResampleReport:
    classes = tuple(ClassReport(**part) for part in facts["classes"])
    guards = tuple(GuardReport(**{k: v for k, v in part.items() if k != "moved"}) for part in facts["guards"])
    return ResampleReport(**{**facts, "classes": classes, "guards": guards, "notes": tuple(facts["notes"])})
