"""A lock on a folder that a process holds for as long as it lives, and not longer."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import LockedError


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock inside; the kernel lets go of it when the process ends, however it ends.

    Processes that this one starts do not inherit it (the file is closed in them), so that none can hold it for a
    parent that is dead. The file stays: removing it would let two processes lock two files of one name.

    Args:
        path: File of the lock, made if it is absent; not on a network file system that knows no locks.
        what: What is locked, for messages.

    Raises:
        LockedError: Another process has it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode("ascii", errors="replace").strip() or "another process"
            raise LockedError(
                f"{what} must be used by one process at a time, got {str(path.parent)!r}, which process {owner} is at "
                "work on. Wait until it is done, or stop it.",
                path=path,
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
