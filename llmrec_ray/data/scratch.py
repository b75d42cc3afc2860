"""A folder for intermediate files that is gone when its run is over, be it killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["scratch_folder"]

LOCK = "lock"


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder below `parent` for the length of the block; first those of runs that were killed are removed."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    name = uuid.uuid4().hex
    made, folder = parent / f".{name}", parent / f"ingest-{name}"
    made.mkdir()
    with (made / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made.rename(folder)  # nobody ever sees it without its lock
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                parent.rmdir()


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob("ingest-*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
