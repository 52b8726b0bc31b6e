"""What a job has done, in a file that is never half written; and a lock that a dead process does not keep."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anomaly_vae.errors import AnomalyVaeError
from anomaly_vae.serving.outputs import appearing


class BusyError(AnomalyVaeError, RuntimeError):
    """Another process is at work."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file; the system takes it back when the process ends, however it ends.

    Raises:
        BusyError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BusyError(f"one run at a time must be at work, got another, {holder}. Wait for its end.") from error
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        yield


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Ledger:
    """The steps that are done, with what they found and the files they wrote.

    Args:
        path: The file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._steps: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def done(self, step: str) -> dict[str, Any] | None:
        """Return what a step found, or None if it is still to be done, or to be done again: a file is gone."""
        if step not in self._steps:
            return None
        entry = self._steps[step]
        for name, content in entry["files"].items():
            file = self.path.parent / name
            if not file.is_file() or digest(file) != content:
                return None
        facts: dict[str, Any] = entry["facts"]
        return facts

    def record(self, step: str, facts: dict[str, Any], files: Sequence[Path] = ()) -> dict[str, Any]:
        """Write down that a step is done.

        Args:
            step: Its name.
            facts: What it found, JSON-able.
            files: What it wrote, under the ledger's folder.
        """
        folder = self.path.parent
        digests = {file.relative_to(folder).as_posix(): digest(file) for file in files}
        self._steps[step] = {"facts": facts, "files": digests}
        write_json(self.path, self._steps)
        return facts


def write_json(path: Path, value: Any) -> None:
    """Write a value, whole or not at all."""
    with appearing(path) as aside, aside.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
