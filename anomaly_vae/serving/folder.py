"""Many parts in, as many scored parts out: a job that can be killed at any moment and goes on where it stood."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.image_parts import ImagePart, image_parts
from ..data.images import ImageSchema
from ..data.schema import Schema
from ..data.sources import TableFile, fixed_part, inside, is_url, parts_of, plain
from ..detection.calibration import discovery_cutoff
from ..detection.detector import Detector
from ..errors import ConfigError, DataWarning, UnreadableDataError, redacted
from ..options import BatchConfig
from . import crew
from .batch import Scorer, flagged, score_fields, written
from .manifest import Job, OutputFolder, PartDone, Planned, opened, output_name
from .outputs import OUTPUT_SUFFIXES, check_keys, publish, write_tables
from .parts import Order, PartScored, score_part

SETTINGS = ("alpha", "fdr", "k", "explain", "mc_se", "key", "group", "allow_missing", "format")
"""Settings that change what is written. `on_error` does not: parts without errors are the same either way."""
Part = TableFile | ImagePart
COUNTS = ("rows", "flagged", "unreliable", "unreached", "errors")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is.

    Attributes:
        turn: 1, or 2 while flags under a false discovery rate are set.
        done: Parts finished, those of earlier runs included.
        parts: Parts in all.
        rows: Rows scored in this run.
        share: Share of the input's bytes that is done, or about.
    """

    turn: int
    done: int
    parts: int
    rows: int
    share: float


@dataclass(frozen=True, kw_only=True)
class ScoredFolder:
    """What a job came to, earlier runs of it included.

    Attributes:
        path: The output folder.
        parts: Parts of the input.
        resumed: Of these, parts that an earlier run had finished.
        rows: Rows scored.
        flagged: Rows flagged as anomalous.
        unreliable: See `batch.ScoredFile`.
        unreached: See `batch.ScoredFile`.
        errors: Rows, and whole files, that could not be scored.
        listed: The file that lists them, if there are any.
        seconds: Wall time of this run.
        rows_now: Rows scored in this run.
        peak_bytes: Most memory that a process of this run had.
    """

    path: Path
    parts: int
    resumed: int
    rows: int
    flagged: int
    unreliable: int
    unreached: int
    errors: int
    listed: Path | None
    seconds: float
    rows_now: int
    peak_bytes: int


def is_folder(output: str | Path) -> bool:
    """Whether an output names a folder: it has no ending, ends in a slash, or is one."""
    text, path = str(output), Path(output)
    if path.suffix.lower() in OUTPUT_SUFFIXES:
        return False
    return text.endswith(("/", "\\")) or path.suffix == "" or path.is_dir()


def score_folder(
    scorer: Scorer,
    source: str | Path,
    output: str | Path,
    config: BatchConfig | None = None,
    *,
    model_version: str = "",
    schema: Schema | ImageSchema | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    others: crew.Crew | None = None,
) -> ScoredFolder:
    """Score each part of a source into a part of a folder, in constant memory.

    A folder of image files has parts of some thousands of them (`data.image_parts`); images that cannot be read are
    listed, whatever `on_error` says.

    Repeated after an interruption, it goes on with the parts that are not finished; after the end it only tells what
    was done. An output part has the part's name and row number, or the keys, and the columns that `batch.score_file`
    writes.

    Args:
        scorer: The model; a `Detector` if there are to be several processes.
        source: See `data.sources.parts_of`; for a model of images `data.image_parts`.
        output: A folder, new, empty or of the same job.
        config: How to score; by default `BatchConfig()`.
        model_version: Written beside every row.
        schema: The model's columns.
        on_progress: Called as rows are done.
        others: Who scores the parts; by default processes of this machine, or this very process.

    Raises:
        OutputExistsError: The folder is of another job (model, settings or input differ), or of none.
        LockedError: Another process is at work in it.
        ConfigError: The output's place or a key cannot be used.
        SchemaError: Rows do not fit the model, and are not to be set aside; or none does.
        UnreadableDataError: There is nothing to read, or a file was changed during the job.
        RuntimeError: A process ended.
    """
    config = config or BatchConfig()
    source, output = plain(source), Path(output)
    if isinstance(schema, ImageSchema):
        config = replace(config, on_error="quarantine")
    others = _crew(scorer, config, others)
    check_keys(config.key, {name for name, _ in score_fields(config)})
    files: Sequence[Part] = image_parts(source) if isinstance(schema, ImageSchema) else parts_of(source)
    _refuse_overlap(files, source, output)
    started = time.perf_counter()
    with opened(output, _job(scorer, files, config, model_version, schema), overwrite=config.overwrite) as folder:
        meter = _Meter(files, on_progress or (lambda progress: None))
        run = _Run(folder, files, config, scorer, model_version, schema, meter, others)
        resumed = len(files) - len(run.missing(run.last))
        if resumed < len(files) or folder.summary is None:
            folder.reopen()
            run.score()
            if config.fdr is not None:
                run.flag()
            run.finish(source)
        counts = run.counts()
        listed = output / f"_errors.{config.format}"
        if not counts["rows"] and counts["errors"]:
            raise UnreadableDataError(f"some row must be one that can be scored, got none. {str(listed)!r} says why.")
        return ScoredFolder(
            path=output, parts=len(files), resumed=resumed, **counts, listed=listed if counts["errors"] else None,
            seconds=time.perf_counter() - started, rows_now=meter.rows, peak_bytes=run.peak_bytes,
        )  # fmt: skip


def _crew(scorer: Scorer, config: BatchConfig, others: crew.Crew | None) -> crew.Crew | None:
    """Return who scores the parts, None for this very process, or refuse what they cannot be given."""
    if others is None and config.processes > 1:
        others = crew.Processes(config.processes)
    if others is not None and not isinstance(scorer, Detector):
        raise ConfigError(f"several processes must have a Detector, got {type(scorer).__name__}. Use one process.")
    return others


def _job(
    scorer: Scorer, files: Sequence[Part], config: BatchConfig, model_version: str, schema: Schema | ImageSchema | None
) -> Job:
    facts = json.dumps(schema.to_dict() if schema else None, sort_keys=True)
    settings = config.to_dict()
    outputs = [output_name(file.name, f".{config.format}") for file in files]
    for name, times in Counter(outputs).items():
        if times > 1:
            raise ConfigError(f"output parts must differ in name, got {name!r} twice. Rename one of the input's.")
    return Job(
        model={
            "uri": redacted(model_version),
            "digest": str(getattr(scorer, "digest", "")),
            "schema": hashlib.sha256(facts.encode()).hexdigest(),
            "anomaly_vae": metadata.version("anomaly-vae"),
        },
        settings={name: settings[name] for name in SETTINGS},
        parts=tuple(
            Planned(name=file.name, size=file.size, stamp=file.stamp, output=name)
            for file, name in zip(files, outputs, strict=True)
        ),
    )


def _refuse_overlap(files: Sequence[Part], source: str, output: Path) -> None:
    """Refuse an output that would be read as input, now or when the job is resumed, or would replace it."""
    local = None if is_url(source) else Path(source)
    within = local is not None and local.is_dir() and inside(output, local)
    if local is not None and not local.exists():  # a glob: does it reach into folders below its fixed part?
        root = fixed_part(source)
        deep = len(Path(source).parts) > len(Path(root).parts) + 1 if root != "." else len(Path(source).parts) > 1
        within = inside(output, root) and (deep or output.resolve() == Path(root).resolve())
    if within or any(file.path is not None and inside(file.path, output) for file in files):
        raise ConfigError(f"an output folder must lie outside the input, got {str(output)!r}. Write it somewhere else.")


class _Meter:
    """Counts what is done of a pass, and tells."""

    def __init__(self, files: Sequence[Part], tell: Callable[[Progress], None]) -> None:
        self.sizes = [file.size for file in files]
        self.whole = sum(self.sizes) or 1
        self.tell = tell
        self.rows = 0
        self.begin(1, todo=range(len(files)))

    def begin(self, turn: int, *, todo: Sequence[int]) -> None:
        """Begin a pass over some of the parts."""
        self.turn = turn
        self.done = len(self.sizes) - len(todo)
        self.bytes = float(self.whole - sum(self.sizes[part] for part in todo))
        self.seen: dict[int, tuple[int, float]] = {}

    def at(self, part: int, rows: int, share: float, *, finished: bool = False) -> None:
        """Note the rows done of a part, and their share of it."""
        before = self.seen.get(part, (0, 0.0))
        self.seen[part] = (rows, share)
        self.rows += rows - before[0] if self.turn == 1 else 0
        self.bytes += (share - before[1]) * self.sizes[part]
        self.done += finished
        share = min(1.0, self.bytes / self.whole)
        self.tell(Progress(turn=self.turn, done=self.done, parts=len(self.sizes), rows=self.rows, share=share))


@dataclass
class _Run:
    """One run of a job."""

    folder: OutputFolder
    files: Sequence[Part]
    config: BatchConfig
    scorer: Scorer
    model_version: str
    schema: Schema | ImageSchema | None
    meter: _Meter
    others: crew.Crew | None
    peak_bytes: int = 0

    @property
    def last(self) -> int:
        """The pass that writes the output."""
        return 1 if self.config.fdr is None else 2

    def missing(self, turn: int) -> list[int]:
        """Parts that this pass has yet to do; a part whose output is there needs no pass."""
        return [i for i in range(len(self.files)) if not self._good(i, turn) and not self._good(i, self.last)]

    def _good(self, part: int, turn: int) -> bool:
        record = self.folder.done(part, turn, last=self.last)
        return record is not None and (self.config.on_error == "quarantine" or record.errors == 0)

    def score(self) -> None:
        """Score the parts that are not scored yet."""
        todo = self.missing(1)
        if not todo:
            return
        self.meter.begin(1, todo=todo)
        suffix = f".{self.config.format}" if self.last == 1 else ".parquet"
        new = self.folder.temporary
        orders = [Order(part=i, file=self.files[i], aside=new(), errors=new(), suffix=suffix) for i in todo]
        for order, scored in self._carried_out(orders):
            self._settle(order, scored)
            self.meter.at(order.part, scored.rows, 1.0, finished=True)

    def _carried_out(self, orders: Sequence[Order]) -> Iterator[tuple[Order, PartScored]]:
        def on_rows(order: Order, rows: int, total: int | None) -> None:
            self.meter.at(order.part, rows, min(1.0, rows / total) if total else 0.0)

        if self.others is None:
            for order in orders:
                scored = score_part(
                    self.scorer,
                    order,
                    self.config,
                    model_version=self.model_version,
                    schema=self.schema,
                    report=partial(on_rows, order),
                )
                self.peak_bytes = crew.peak_bytes()
                yield order, scored
            return
        assert isinstance(self.scorer, Detector)
        model = self.folder.work / "model"
        shutil.rmtree(model, ignore_errors=True)
        self.scorer.save(model)
        digest, version = self.scorer.digest, self.model_version
        task = crew.Task(model=model.resolve(), digest=digest, config=self.config, model_version=version)
        for order, scored, peak in self.others.carry_out(orders, task, on_rows=on_rows):
            self.peak_bytes = max(self.peak_bytes, peak)
            yield order, scored

    def _settle(self, order: Order, scored: PartScored) -> None:
        for text in scored.warnings:
            warnings.warn(text, DataWarning, stacklevel=2)
        size = order.aside.stat().st_size if scored.written else None
        counts = {name: getattr(scored, name) for name in COUNTS}
        record = PartDone(part=order.part, turn=1, **counts, bytes=size, seconds=scored.seconds)
        errors = order.errors if scored.errors else None
        self.folder.settle(record, order.aside if scored.written else None, errors, last=self.last)

    def flag(self) -> None:
        """Write the flags that the p-values of all rows decide."""
        assert self.config.fdr is not None
        todo = self.missing(2)
        if not todo:
            return
        if "cutoff" not in self.folder.notes:
            last = self._cutoff(self.config.fdr)
            one = last and self.config.group is None  # with groups there are several
            threshold = self.scorer.threshold(last, k=self.config.k) if one else None
            self.folder.note("cutoff", {"p_value": last, "threshold": threshold})
        self.meter.begin(2, todo=todo)
        for part in todo:
            self.meter.at(part, self._flag_part(part, self.folder.notes["cutoff"]), 1.0, finished=True)

    def _cutoff(self, fdr: float) -> float:
        """The largest p-value to flag: only counts of the calibration's n + 1 possible values are kept."""
        counts: Counter[float] = Counter()
        for part in range(len(self.files)):
            place = self.folder.place(part, 1, last=2)
            if not place.exists():  # nothing of it could be scored
                continue
            with pq.ParquetFile(place) as scored:
                for batch in scored.iter_batches(self.config.batch_rows, columns=["p_value"]):
                    values, times = np.unique(batch.column(0).to_numpy(), return_counts=True)
                    counts.update(dict(zip(values.tolist(), times.tolist(), strict=True)))
        return discovery_cutoff(list(counts), list(counts.values()), q=fdr) if counts else 0.0

    def _flag_part(self, part: int, decided: Mapping[str, Any]) -> int:
        before = self.folder.done(part, 1, last=2)
        assert before is not None
        first, aside, started = self.folder.place(part, 1, last=2), self.folder.temporary(), time.perf_counter()
        counts, size = {name: getattr(before, name) for name in COUNTS}, None
        if before.bytes is not None:
            tables: Iterable[pa.Table] = [pq.read_table(first)]
            if before.rows:
                tables = flagged(first, decided["p_value"], decided["threshold"], batch_rows=self.config.batch_rows)
            counts |= vars(written(tables, aside, f".{self.config.format}", lambda rows: None))
            size = aside.stat().st_size
        record = PartDone(part=part, turn=2, **counts, bytes=size, seconds=time.perf_counter() - started)
        self.folder.settle(record, aside if size is not None else None, None, last=2)
        first.unlink(missing_ok=True)
        return before.rows

    def counts(self) -> dict[str, int]:
        """Counts over all parts."""
        records = [self.folder.done(part, self.last, last=self.last) for part in range(len(self.files))]
        return {name: sum(getattr(record, name) for record in records if record) for name in COUNTS}

    def finish(self, source: str) -> None:
        """Gather the errors and say that the output is whole."""
        counts = self.counts()
        listed = self.folder.path / f"_errors.{self.config.format}"
        if counts["errors"]:
            files = [self.folder.errors_of(part) for part in range(len(self.files))]
            aside = self.folder.temporary()
            lists = (pq.read_table(file) for file in files if file.exists())
            write_tables(lists, aside, listed.suffix, lambda table: None)
            publish(aside, listed)
        else:
            listed.unlink(missing_ok=True)
        facts = {"model": self.folder.job.model["uri"], "input": redacted(source), "parts": len(self.files)}
        self.folder.finish({**facts, **counts, **self.folder.notes})
