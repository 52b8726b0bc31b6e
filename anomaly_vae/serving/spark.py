"""The same scoring on a Spark cluster: parts of a folder job as tasks, and tables of Spark as tables of scores.

A folder job keeps its manifest, its journal and its layout: Spark hands out the parts, and gives those of a lost worker
to others. All machines must see the input and the output under the same paths, and have this package installed.

Training by several processes (`Trainers`) is the same training, too: see `distributed`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
from pyspark.sql.types import StructType
from torch import Tensor

from ..data.images import ImageSchema
from ..data.schema import Schema
from ..detection.detector import Detector
from ..errors import AnomalyVaeError, ConfigError
from ..models.family import Model
from ..models.threads import threads_worth
from ..options import BatchConfig, Config, ScoreConfig
from ..training import Epoch, Optimiser, RowWeights
from .batch import Scorer, score_fields, score_frames, tables_of
from .crew import Task, Work, peak_bytes, sendable
from .distributed import failure, read_result, take_part, write_job
from .folder import Progress, ScoredFolder, score_folder

if TYPE_CHECKING:
    from ..row_weigher import RowWeigher
    from .parts import Order, PartScored

LEAST_JOBS = 2
"""Parts handed out at once, at least; otherwise two for each core, so that none waits for the next."""


def session(master: str | None = None) -> SparkSession:
    """Return the session there is, or begin one.

    Args:
        master: The cluster's URL; by default this machine's cores.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    builder = SparkSession.builder.appName("anomaly_vae").master(master or "local[*]")
    builder = builder.config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
    made = builder.getOrCreate()
    if "PYSPARK_PYTHON" not in os.environ:
        made.sparkContext.pythonExec = sys.executable  # the setting spark.pyspark.python is read by spark-submit alone
    return made


def score_on_spark(
    detector: Detector,
    source: str | Path,
    output: str | Path,
    config: BatchConfig | None = None,
    *,
    model_version: str = "",
    master: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ScoredFolder:
    """Score a folder job on a cluster; see `folder.score_folder`, of which this is another engine.

    Args:
        detector: The model.
        source: See `data.sources.parts_of`; the cluster's machines must see it too.
        output: The folder; the cluster's machines must be able to write into it.
        config: How to score; how many processes there are is the cluster's matter.
        model_version: Written beside every row.
        master: The cluster's URL; by default the session there is, or this machine's cores.
        on_progress: Called as parts are done.

    Raises:
        ConfigError: Processes or threads were asked for.
    """
    config = config or BatchConfig()
    if config.processes > 1 or config.workers is not None:
        raise ConfigError("processes and workers must be left to Spark, got a number of them. Drop the option.")
    before = SparkSession.getActiveSession()
    spark = session(master)
    try:
        return score_folder(
            detector,
            source if "://" in str(source) else Path(source).absolute(),
            Path(output).absolute(),
            config,
            model_version=model_version,
            schema=detector.schema,
            on_progress=on_progress,
            others=Cluster(spark),
        )
    finally:
        if before is None:
            spark.stop()


@dataclass(frozen=True)
class Cluster:
    """A crew of Spark's workers."""

    spark: SparkSession

    def carry_out(
        self, orders: Sequence[Order], task: Task, *, on_rows: Callable[[Order, int, int | None], None]
    ) -> Iterator[tuple[Order, PartScored, int]]:
        """Yield each order, with the files that were written, what came of it, and the peak memory, bytes.

        A part is a job of one task, so that each is noted as soon as it is done. Spark repeats a task whose worker is
        lost. A task that is taken for lost may live on: every attempt has files of its own.
        """
        context = self.spark.sparkContext
        at_once = max(LEAST_JOBS, 2 * context.defaultParallelism)
        left, group = iter(orders), uuid.uuid4().hex

        def run(order: Order) -> tuple[Order, PartScored, int]:
            context.setJobGroup(group, "anomaly-vae score", interruptOnCancel=True)  # of this thread
            mine, scored, peak = context.parallelize([order], 1).map(partial(_scored, task)).first()
            if isinstance(scored, Exception):
                raise scored
            return mine, scored, peak

        with ThreadPoolExecutor(at_once) as pool:
            waiting: set[Future[tuple[Order, PartScored, int]]] = set()
            try:
                while True:
                    while len(waiting) < at_once and (order := next(left, None)) is not None:
                        waiting.add(pool.submit(run, order))
                    if not waiting:
                        return
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            finally:
                for future in waiting:
                    future.cancel()
                if waiting:
                    context.cancelJobGroup(group)


def _scored(task: Task, order: Order) -> tuple[Order, PartScored | Exception, int]:
    """Score a part on a worker, into files of this attempt.

    A fault of the data is returned and not raised: Spark would try it again, and wrap its text.
    """
    mark = uuid.uuid4().hex
    mine = replace(order, aside=_marked(order.aside, mark), errors=_marked(order.errors, mark))
    try:
        scored = Work(task, _loaded(task.digest, str(task.model))).score(mine, lambda rows, total: None)
    except AnomalyVaeError as error:
        return mine, sendable(error), peak_bytes()
    return mine, scored, peak_bytes()


def _marked(path: Path, mark: str) -> Path:
    return path.absolute().with_name(f"{path.stem}-{mark}{path.suffix}")


@lru_cache(maxsize=1)
def _loaded(digest: str, model: str) -> Detector:
    """The last model that this worker has read: Spark keeps a worker for many parts, and jobs."""
    return Detector.load(model)


def score_table(
    table: DataFrame,
    scorer: Scorer | RowWeigher,
    config: ScoreConfig | None = None,
    *,
    columns: pa.Schema | None = None,
    model_version: str = "",
) -> DataFrame:
    """Return the scores of a Spark table as another, lazily, whatever it is read from or written to.

    Args:
        table: Rows with the training columns, in any order.
        scorer: A `Detector`; or, with `columns`, anything whose `score_frame(frame)` returns a row for each, such as a
            `RowWeigher`. It is then sent to the workers as Spark sends functions.
        config: How to score. The keys are all that tells rows apart, since a table of Spark has no order. A false
            discovery rate needs all p-values: score first, then see `flag_table`.
        columns: Names and types of what a scorer that is no detector returns.
        model_version: Written beside every row.

    Returns:
        A table of the keys and the columns that `batch.score_file` writes.

    Raises:
        ConfigError: A false discovery rate is asked for.
    """
    config = config or ScoreConfig()
    if config.fdr is not None:
        raise ConfigError("a false discovery rate must be set after scoring, got fdr. Drop it and use flag_table.")
    kinds = from_arrow_schema(pa.schema(score_fields(config)) if columns is None else columns)
    fields = StructType([*(table.schema[name] for name in config.key), *kinds.fields])
    context = table.sparkSession.sparkContext
    sent = context.broadcast(_files(scorer) if isinstance(scorer, Detector) else scorer)
    types = to_arrow_schema(fields)
    schema = scorer.schema if isinstance(scorer, Detector) and isinstance(scorer.schema, Schema) else None
    settings = replace(config, workers=1)

    def scored(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        one = _received(sent.value)
        # As the local engine reads Parquet: as floats, whole numbers over 2^53 would lose digits.
        frames = (batch.to_pandas(integer_object_nulls=True) for batch in batches if batch.num_rows)
        with threads_worth(0):
            if columns is None:
                found = score_frames(one, frames, settings, model_version=model_version, schema=schema)
            else:
                found = (pd.concat([frame[list(config.key)], one.score_frame(frame)], axis=1) for frame in frames)
            for frame in found:
                yield from _columns_of(frame, types)

    return table.mapInArrow(scored, fields)


def flag_table(scored: DataFrame, scorer: Scorer, fdr: float, *, k: int | None = None) -> DataFrame:
    """Return a table of scores with the flags of a false discovery rate over all of it.

    Args:
        scored: From `score_table`; it is gone through twice, so write or cache it first.
        scorer: The model.
        fdr: The rate.
        k: Posterior samples that the rows were scored with.
    """
    from pyspark.sql import functions as F  # noqa: N812 - its usual name

    from ..detection.calibration import discovery_cutoff

    counts = [(row["p_value"], row["count"]) for row in scored.groupBy("p_value").count().collect()]
    last = discovery_cutoff([p for p, _ in counts], [n for _, n in counts], q=fdr) if counts else 0.0
    threshold = scorer.threshold(last, k=k) if last else None
    flagged = scored.withColumn("is_anomaly", F.col("p_value") <= F.lit(last))
    return flagged.withColumn("threshold", F.lit(threshold).cast("double"))


def _columns_of(frame: pd.DataFrame, types: pa.Schema) -> list[pa.RecordBatch]:
    (table,) = tables_of([frame], {field.name: field.type for field in types}, ())
    batches: list[pa.RecordBatch] = table.to_batches()
    return batches


def _files(detector: Detector) -> dict[str, bytes]:
    """The artifact's files: data, not code."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "detector"
        detector.save(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


_RECEIVED: dict[bytes, Detector] = {}
"""The last model that this worker has read, by its facts: Spark keeps a worker for many batches."""


def _received(sent: Any) -> Any:
    if not isinstance(sent, dict):
        return sent
    facts = sent["config.json"]
    if facts not in _RECEIVED:
        with TemporaryDirectory() as scratch:
            for name, content in sent.items():
                (Path(scratch) / name).write_bytes(content)
            detector = Detector.load(scratch)
        _RECEIVED.clear()
        _RECEIVED[facts] = detector
    return _RECEIVED[facts]


@dataclass(frozen=True)
class Trainers:
    """Processes of a cluster that train one model together, for `fit_detector(..., elsewhere=)`.

    Each holds all rows and takes its share of every batch, on its machine's CPU. What comes of it is what one process
    comes to, but for the order in which floats are added.

    Attributes:
        processes: How many; the cluster must have as many free cores at once.
        folder: Where the job is put; all machines must see it under the same path.
        master: The cluster's URL; by default the session there is, or this machine's cores.
    """

    processes: int
    folder: Path
    master: str | None = None

    def __call__(self, schema: Schema | ImageSchema) -> Optimiser:
        """Return what trains models of a schema."""
        return partial(self._optimised, schema)

    def _optimised(
        self,
        schema: Schema | ImageSchema,
        model: Model,
        x: Tensor,
        *,
        validation: Tensor,
        config: Config,
        weights: Tensor | RowWeights | None,
        checkpoint: Path | None,
        on_epoch: Callable[[Epoch], None] | None,
        progress: bool | str,
    ) -> tuple[list[Epoch], Tensor | None]:
        """Take the steps, see `training.optimised`; epochs are told at the end, and progress is not shown.

        Raises:
            ConfigError: Weights are to be found anew before each epoch, or there are too few cores.
            TrainingError: See `training.fit`.
        """
        if callable(weights):
            raise ConfigError("weights must be fixed for several processes, got a rule. Train in one process.")
        before = SparkSession.getActiveSession()
        spark = session(self.master)
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = None if checkpoint is None else str(checkpoint.absolute())
        try:
            cores = spark.sparkContext.defaultParallelism
            if spark.sparkContext.master.startswith("local") and cores < self.processes:
                raise ConfigError(
                    f"processes must be at most the master's {cores} cores, got {self.processes}. Use fewer."
                )
            with TemporaryDirectory(dir=self.folder.absolute(), prefix="training-") as shared:
                job = Path(shared)
                write_job(job, schema, model, x, validation=validation, config=config, weights=weights)
                distributor = TorchDistributor(num_processes=self.processes, local_mode=False, use_gpu=False)
                try:
                    with contextlib.redirect_stdout(sys.stderr):  # it repeats there what the processes say
                        distributor.run(take_part, shared, checkpoint=kept)
                except Exception as error:
                    if (said := failure(job)) is not None:
                        raise said from error
                    raise
                history, found = read_result(job, model)
        finally:
            if before is None:
                spark.stop()
        if on_epoch is not None:
            for epoch in history:
                on_epoch(epoch)
        return history, found


__all__ = ["Cluster", "Trainers", "flag_table", "score_on_spark", "score_table", "session"]
