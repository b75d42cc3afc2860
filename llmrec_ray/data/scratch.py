"""A folder for intermediate files that is gone when its run is over, be it killed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from llmrec_ray.storage import temporary_folder

__all__ = ["scratch_folder"]


@contextlib.contextmanager
def scratch_folder(parent: Path, *, keep_parent: bool = False) -> Iterator[Path]:
    """A new folder below `parent` for the length of the block; first those of runs that were killed are removed.

    Folders that were made for it and are empty in the end go too, and `parent` too, which a killed run may have made,
    unless it is to be kept. Raises DiskFullError, and ArtifactError where nothing may be written.
    """
    new = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        with temporary_folder(parent, "ingest", what="Intermediate files of the ingest") as folder:
            yield folder
    finally:
        with contextlib.suppress(OSError):
            for empty in new or ([] if keep_parent else [parent]):
                empty.rmdir()
