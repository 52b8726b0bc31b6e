"""A service's log: one JSON object a line, with the request's id and never a cell of its rows."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def line(level: str, event: str, **facts: Any) -> str:
    """Return one line of the log; facts that are None are left out."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    said = {"time": now, "level": level, "event": event, **{k: v for k, v in facts.items() if v is not None}}
    return json.dumps(said, default=str)


def write(level: str, event: str, **facts: Any) -> None:
    """Write one line to standard error."""
    sys.stderr.write(line(level, event, **facts) + "\n")
    sys.stderr.flush()


def place_of(error: BaseException) -> dict[str, Any]:
    """Return an error's type and where in this package it came from.

    Its text is left out, since it may quote a cell, and so are folders of this machine.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(ROOT)]
    at = [f"{Path(f.filename).relative_to(ROOT.parent)}:{f.lineno}" for f in ours[-4:]]
    return {"error": type(error).__name__, "at": at}


class JsonFormatter(logging.Formatter):
    """Makes what libraries log (starting, stopping, malformed HTTP) lines of the same kind."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; of an error only its type and place."""
        error = record.exc_info[1] if record.exc_info else None
        facts = place_of(error) if error is not None else {}
        text = record.getMessage().splitlines()
        return line(record.levelname.lower(), record.name, message=text[0] if text else "", **facts)


LOG_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": f"{__name__}.JsonFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {"uvicorn.access": {"handlers": [], "propagate": False}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
}
"""For the process of a server."""
