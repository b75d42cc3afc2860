"""A lock between the processes of one machine."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

__all__ = ["file_lock"]


@contextlib.contextmanager
def file_lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Only one process at a time, or any number of those that share; the kernel lets go when a process dies.

    NFS shares the lock of a file only with those who may read it, and gives it alone only to those who may write it.
    """
    with path.open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
