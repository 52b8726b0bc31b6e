"""How rows are scored, batches run, requests answered, scores watched, reports made."""

from __future__ import annotations

from dataclasses import dataclass

from ..fields import Options, check, is_integer, is_number, option

ON_ERROR = ("fail", "quarantine")
ENGINES = ("local", "spark")
FORMATS = ("parquet", "csv")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Options):
    """How rows are scored and flagged.

    Example:
        >>> ScoreConfig(alpha=0.01).alpha
        0.01
    """

    alpha: float = option(0.05, "false-alarm rate promised on normal rows")
    fdr: float | None = option(None, "flag the whole job under this false discovery rate instead of alpha")
    k: int | None = option(None, "posterior samples per row, one the model is calibrated for")
    explain: int = option(0, "columns named in each row's attributions; 0 = none")
    mc_se: float | None = option(None, "also estimate log p(x) to within this standard error, nats; by default not")
    key: tuple[str, ...] = option((), "columns copied to the output to tell rows apart; by default the row number")
    group: str | None = option(None, "column of groups that the model is calibrated for: rows are judged within theirs")
    overwrite: bool = option(False, "replace an output that exists")
    allow_missing: bool = option(False, "take a column that is absent for one of missing cells")
    batch_rows: int = option(65_536, "rows read, scored and written at a time")
    workers: int | None = option(None, "threads that score frames; by default one a core, at most 8")
    max_flagged: float | None = option(None, "share of rows (below 1) or number of them (from 1) that may be flagged")

    def __post_init__(self) -> None:
        for name in ("alpha", "fdr"):
            value = getattr(self, name)
            ok = (value is None and name == "fdr") or (is_number(value) and 0 < value < 1)
            check(ok, name, "be a number between 0 and 1", value)
        ok = self.mc_se is None or (is_number(self.mc_se) and self.mc_se > 0)
        check(ok, "mc_se", "be a number above 0", self.mc_se)
        for name in ("k", "workers"):
            value = getattr(self, name)
            check(value is None or is_integer(value), name, "be an integer of at least 1", value)
        check(is_integer(self.explain, 0), "explain", "be an integer of at least 0", self.explain)
        for name in ("overwrite", "allow_missing"):
            check(isinstance(getattr(self, name), bool), name, "be true or false", getattr(self, name))
        check(is_integer(self.batch_rows), "batch_rows", "be an integer of at least 1", self.batch_rows)
        most = self.max_flagged
        check(most is None or (is_number(most) and most >= 0), "max_flagged", "be a number of at least 0", most)

    def too_many(self, flagged: int, rows: int) -> bool:
        """Whether more rows are flagged than `max_flagged` allows."""
        if self.max_flagged is None:
            return False
        return flagged > (self.max_flagged * rows if self.max_flagged < 1 else self.max_flagged)


@dataclass(frozen=True, kw_only=True)
class BatchConfig(ScoreConfig):
    """How a folder of parts is scored into a folder.

    Example:
        >>> BatchConfig(processes=4, on_error="quarantine").format
        'parquet'
    """

    processes: int = option(1, "processes that score parts side by side, each on one thread if more than one")
    on_error: str = option("fail", f"what becomes of rows that cannot be scored: {', '.join(ON_ERROR)}")
    format: str = option("parquet", f"of the output's parts: {', '.join(FORMATS)}")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(is_integer(self.processes), "processes", "be an integer of at least 1", self.processes)
        check(self.on_error in ON_ERROR, "on_error", f"be one of {', '.join(ON_ERROR)}", self.on_error)
        check(self.format in FORMATS, "format", f"be one of {', '.join(FORMATS)}", self.format)
        alone = self.processes == 1 or self.workers is None
        check(alone, "workers", "be left out where there are several processes", self.workers)


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """What a report shows of a data set, and how much.

    Example:
        >>> ReportConfig(top=12).points
        2000
    """

    alpha: float = option(0.05, "false-alarm rate to flag at; of a scored file the flags are its own")
    top: int = option(6, "strangest rows, or images, shown with their reasons, at most 24")
    points: int = option(2000, "points of the latent map at most")
    sample: int = option(20_000, "rows drawn at random for the latent map, the columns' values and the audit")
    seed: int = option(0, "seed of the draw")

    def __post_init__(self) -> None:
        check(is_number(self.alpha) and 0 < self.alpha < 1, "alpha", "be a number between 0 and 1", self.alpha)
        bounds = {"top": (0, 24), "points": (1, 5000), "sample": (1, 100_000), "seed": (0, 2**63 - 1)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            check(is_integer(value, low) and value <= high, name, f"be an integer from {low} to {high}", value)


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Options):
    """How requests are answered over HTTP, and what is refused. All bounds are those of one worker.

    Example:
        >>> ServeConfig(max_rows=1000).host
        '127.0.0.1'
    """

    host: str = option("127.0.0.1", "address to listen on; there is no authentication, so this machine alone")
    port: int = option(5000, "port to listen on")
    workers: int = option(1, "server processes")
    max_bytes: int = option(16 << 20, "bytes of a request's body at most; more is answered 413")
    max_rows: int = option(100_000, "rows of a request at most; more is answered 413")
    timeout_s: float = option(60.0, "seconds that scoring a request may take, waiting included; more is answered 504")
    read_timeout_s: float = option(30.0, "seconds that a client may take to send a request, or to take its answer")
    concurrency: int | None = option(None, "requests scored at once; by default one a core, at most 4")
    queue: int = option(64, "requests that may wait for one of these places; more are answered 503")

    def __post_init__(self) -> None:
        check(isinstance(self.host, str) and self.host.strip() != "", "host", "be an address", self.host)
        ok = is_integer(self.port) and self.port < 65536
        check(ok, "port", "be an integer from 1 to 65535", self.port)
        for name, low in (("workers", 1), ("max_bytes", 1), ("max_rows", 1), ("concurrency", 1), ("queue", 0)):
            value = getattr(self, name)
            ok = is_integer(value, low) or (value is None and name == "concurrency")
            check(ok, name, f"be an integer of at least {low}", value)
        for name in ("timeout_s", "read_timeout_s"):
            value = getattr(self, name)
            check(is_number(value) and value > 0, name, "be a number above 0", value)


@dataclass(frozen=True, kw_only=True)
class MonitorConfig(Options):
    """How scored rows are watched for drift.

    Example:
        >>> MonitorConfig(level=0.05).least_psi
        0.1
    """

    level: float = option(0.01, "share of undisturbed jobs in which anything may be alarmed")
    least_psi: float = option(0.1, "stability indices of a column under this are not worth an alarm, however certain")
    least_missing: float = option(0.05, "changes of a column's share of missing cells under this are not, either")
    seed: int = option(0, "seed of the numbers that smooth p-values")

    def __post_init__(self) -> None:
        check(is_number(self.level) and 0 < self.level < 1, "level", "be a number between 0 and 1", self.level)
        for name in ("least_psi", "least_missing"):
            value = getattr(self, name)
            check(is_number(value) and value >= 0, name, "be a number of at least 0", value)
        check(is_integer(self.seed, 0), "seed", "be an integer of at least 0", self.seed)
