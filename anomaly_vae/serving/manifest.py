"""The folder that a job writes into, and what it remembers of the job: enough to go on after any interruption.

=================  ===========================================================================================
_manifest.json     what decides the output: model, settings, input parts; written before the first part
_done.jsonl        a line for each part that is finished, appended after the part has its name
_errors.*          rows that could not be scored: file, row and reason; written at the end, if there are any
_summary.json      the whole job's counts; written last, so that it says that the output is whole
.lock, .work/      who is at work; what is not finished
=================  ===========================================================================================

One process alone gives files their names and writes the two records, under the lock; others only fill temporary files.
A part counts as finished if its line is there and its file has the size that the line says.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..data.sources import inside
from ..errors import ConfigError, OutputExistsError
from .lock import held
from .outputs import publish

MANIFEST, JOURNAL, SUMMARY, LOCK, WORK = "_manifest.json", "_done.jsonl", "_summary.json", ".lock", ".work"
FORMAT_VERSION = 1
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Planned:
    """An input part as it was when the job began, and where its scores go, below the output folder."""

    name: str
    size: int
    stamp: str
    output: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """What decides a job's output.

    Attributes:
        model: Of the model: its URI, digest and schema's digest, and this package's version.
        settings: Those that change the output.
        parts: Input parts, in order.
    """

    model: Mapping[str, str]
    settings: Mapping[str, Any]
    parts: tuple[Planned, ...]

    def differences(self, old: Job) -> list[str]:
        """Say how an older job differs from this one, a line for each fact."""
        found = []
        for kind, mine, theirs in (("model's", self.model, old.model), ("setting", self.settings, old.settings)):
            for name in sorted({*mine, *theirs}):
                if mine.get(name) != theirs.get(name):
                    found.append(f"{kind} {name}: {_brief(theirs.get(name))} before, {_brief(mine.get(name))} now")
        before, now = ({part.name: part for part in job.parts} for job in (old, self))
        found += [f"input {name!r} is new" for name in now if name not in before]
        found += [f"input {name!r} is gone" for name in before if name not in now]
        found += [f"input {name!r} was changed" for name in now if name in before and now[name] != before[name]]
        return found

    def to_json(self) -> str:
        """Return it as JSON; `from_json` is the inverse."""
        facts = {"format_version": FORMAT_VERSION, "model": dict(self.model), "settings": dict(self.settings)}
        return json.dumps({**facts, "parts": [asdict(part) for part in self.parts]}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, folder: Path) -> Job:
        """Read what `to_json` wrote about a folder.

        Raises:
            OutputExistsError: It is something else, or names files outside the folder.
        """
        try:
            facts = json.loads(text)
            if facts["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {facts['format_version']!r}")
            parts = tuple(Planned(**part) for part in facts["parts"])
            for part in parts:
                if not part.output or not inside(folder / part.output, folder):
                    raise ValueError(f"{part.output!r} lies outside")
            return cls(model=dict(facts["model"]), settings=dict(facts["settings"]), parts=parts)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise OutputExistsError(
                f"{MANIFEST} must be as a job of this version wrote it, got another in {str(folder)!r} ({error}). "
                "Choose another output folder, or remove this one.",
                path=folder,
            ) from error


@dataclass(frozen=True, kw_only=True)
class PartDone:
    """What came of one part.

    Attributes:
        part: Its position among the job's parts.
        turn: 1, or 2 for the pass that sets flags under a false discovery rate.
        rows: Rows scored.
        flagged: Of these flagged.
        unreliable: See `batch.ScoredFile`.
        unreached: See `batch.ScoredFile`.
        errors: Rows, or the whole file (one), that could not be scored.
        bytes: Size of its output; None: it has none, since no row could be scored.
        seconds: Time it took.
    """

    part: int
    turn: int
    rows: int
    flagged: int
    unreliable: int
    unreached: int
    errors: int
    bytes: int | None
    seconds: float


class OutputFolder:
    """An output folder that this process holds; made by `opened`."""

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job
        self.work = path / WORK
        self._records: dict[tuple[int, int], PartDone] = {}
        self.notes: dict[str, Any] = {}
        """What the job remembers besides parts, by name."""

    def temporary(self) -> Path:
        """A new name for a file that is not finished."""
        return self.work / f"{uuid.uuid4().hex}.tmp"

    def place(self, part: int, turn: int, *, last: int) -> Path:
        """Where what a pass makes of a part belongs: the output if it is the last pass."""
        return self.path / self.job.parts[part].output if turn == last else self.work / f"scored-{part}.parquet"

    def errors_of(self, part: int) -> Path:
        """Where the list of a part's rows that could not be scored is kept until the end."""
        return self.work / f"errors-{part}.parquet"

    def done(self, part: int, turn: int, *, last: int) -> PartDone | None:
        """What came of a part in a pass, if it is finished and its files are there."""
        record = self._records.get((part, turn))
        if record is None:
            return None
        whole = record.bytes is None or _size(self.place(part, turn, last=last)) == record.bytes
        listed = record.errors == 0 or self.summary is not None or self.errors_of(part).exists()
        return record if whole and listed else None

    def settle(self, record: PartDone, aside: Path | None, errors: Path | None, *, last: int) -> None:
        """Give a finished part, and the list of its errors, their names, then note that it is finished."""
        listed = self.errors_of(record.part)
        if errors is not None:
            publish(errors, listed)
        elif record.turn == 1:
            listed.unlink(missing_ok=True)
        if aside is not None:
            output = self.place(record.part, record.turn, last=last)
            output.parent.mkdir(parents=True, exist_ok=True)
            publish(aside, output)
        self._append(asdict(record))
        self._records[record.part, record.turn] = record

    def note(self, name: str, value: Any) -> None:
        """Remember a fact of the whole job."""
        self._append({"note": name, "value": value})
        self.notes[name] = value

    @property
    def summary(self) -> dict[str, Any] | None:
        """What a job that is whole came to; None: it is not."""
        try:
            facts = json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return facts if isinstance(facts, dict) else None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and remove what only served the work."""
        self._write(SUMMARY, json.dumps(dict(summary), indent=1, allow_nan=False))
        shutil.rmtree(self.work, ignore_errors=True)

    def reopen(self) -> None:
        """Take the summary away: the output is not whole, or will not be."""
        self.work.mkdir(exist_ok=True)
        (self.path / SUMMARY).unlink(missing_ok=True)

    def _is_bare(self, old: Job) -> bool:
        """Whether an older job has left no part."""
        return not _size(self.path / JOURNAL) and not any((self.path / part.output).exists() for part in old.parts)

    def _begin(self) -> None:
        self.work.mkdir(exist_ok=True)
        self._write(MANIFEST, self.job.to_json())

    def _take_up(self) -> None:
        """Read what is finished; remove what is not."""
        if self.work.is_dir():
            for left in self.work.glob("*.tmp"):
                left.unlink(missing_ok=True)
        journal = self.path / JOURNAL
        if not journal.exists():
            return
        content = journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a line that was being written when the power failed
            os.truncate(journal, len(whole))
        for line in whole.splitlines():
            try:
                facts = json.loads(line)
                if "note" in facts:
                    self.notes[facts["note"]] = facts["value"]
                else:
                    record = PartDone(**facts)
                    self._records[record.part, record.turn] = record
            except (ValueError, TypeError, KeyError):
                continue  # the part counts as not finished

    def _wipe(self, old: Job) -> None:
        """Remove what an older job left: first the record that anything is finished, the parts after that."""
        for name in (JOURNAL, SUMMARY):
            (self.path / name).unlink(missing_ok=True)
        for part in old.parts:
            output = self.path / part.output
            output.unlink(missing_ok=True)
            for folder in output.relative_to(self.path).parents:
                with contextlib.suppress(OSError):  # not empty, or this very folder
                    if folder != Path():
                        (self.path / folder).rmdir()
        for listed in self.path.glob("_errors.*"):
            listed.unlink()
        shutil.rmtree(self.work, ignore_errors=True)

    def _append(self, facts: Mapping[str, Any]) -> None:
        with (self.path / JOURNAL).open("ab") as file:
            file.write(json.dumps(facts, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _write(self, name: str, text: str) -> None:
        aside = self.temporary()
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        publish(aside, self.path / name)


@contextlib.contextmanager
def opened(path: Path, job: Job, *, overwrite: bool) -> Iterator[OutputFolder]:
    """Hold an output folder for a job: a new or empty one, or one in which the same job was begun.

    Args:
        path: The folder; its parent must exist.
        job: What is to be done.
        overwrite: Remove what another job, or this one, left there, and begin anew.

    Raises:
        ConfigError: The folder's parent does not exist, or it is a file.
        OutputExistsError: It holds another job's output, or files of no job.
        LockedError: Another process is at work in it.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"an output's folder must be in one that exists, got {str(path)!r}. Make that first.")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"an output for several parts must be a folder, got the file {str(path)!r}. Name another.")
    _refuse_foreign(path)
    path.mkdir(exist_ok=True)
    with held(path / LOCK, "an output folder"):
        _refuse_foreign(path)
        folder = OutputFolder(path, job)
        manifest = path / MANIFEST
        old = Job.from_json(manifest.read_text(encoding="utf-8"), path) if manifest.exists() else None
        if old is not None and not overwrite and folder._is_bare(old):
            old = None  # a job that failed before its first part was finished: there is nothing to mix
        if old is not None and overwrite:
            folder._wipe(old)
        elif old is not None and (changes := job.differences(old)):
            raise OutputExistsError(
                f"an output folder must be of the same job, got {str(path)!r} of another: {'; '.join(changes[:SHOWN])}"
                f"{'; ...' if len(changes) > SHOWN else ''}. Name another folder, or begin anew with --overwrite.",
                path=path,
                changes=changes,
            )
        if old is None or overwrite:
            folder._begin()
        folder._take_up()
        yield folder


def _refuse_foreign(path: Path) -> None:
    """Refuse a folder that has files but no manifest: nothing tells whose they are."""
    if not path.is_dir() or (path / MANIFEST).exists():
        return
    names = sorted(p.name for p in path.iterdir() if p.name not in (LOCK, WORK))
    if names:
        raise OutputExistsError(
            f"an output folder must be new, empty, or of an earlier job, got {str(path)!r} with {names[0]!r} and no "
            f"{MANIFEST}. Name another folder.",
            path=path,
        )


def output_name(name: str, suffix: str) -> str:
    """Return the name of a part's output: the part's own, with the format's ending added where it has another.

    Example:
        >>> output_name("a/day.parquet", ".parquet"), output_name("a/day.csv", ".parquet")
        ('a/day.parquet', 'a/day.csv.parquet')
    """
    path = PurePosixPath(name)
    return str(path if path.suffix.lower() == suffix else path.with_name(path.name + suffix))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _brief(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else text[:21] + "..."
