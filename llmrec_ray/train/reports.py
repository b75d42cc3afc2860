"""A worker's part of a checkpoint -> Ray Train, which puts the parts of all workers into one folder of the run.

Room is looked for before the first step and before every upload, so that a disk that is about to fill up ends the run
while its checkpoints and Ray Train's record of them are still whole.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch

from llmrec_ray.errors import DiskFullError, TrainingError
from llmrec_ray.storage import free_space, is_disk_full
from llmrec_ray.train.workers import Workers

__all__ = ["Reports"]

RESERVE_BYTES = 1_000_000
"""Left free for Ray Train's record of checkpoints, which it writes over."""


class Reports:
    """Reports one worker's metrics and checkpoints, by being called with them.

    run_dir: the run's folder. last_step: of the checkpoint that training goes on from, None without one.
    Raises DiskFullError when there is no room; it names the folder and the last good checkpoint.
    """

    def __init__(self, run_dir: str, workers: Workers, last_step: int | None) -> None:
        self._run_dir = run_dir
        self._workers = workers
        self._last_step = last_step

    def __call__(self, metrics: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Let `write(folder)` write this worker's part, and hand it over; all workers must call it."""
        step = int(metrics["step"])
        with tempfile.TemporaryDirectory() as folder:
            self._try(step, folder, lambda: write(Path(folder)))
            mine = sum(path.stat().st_size for path in Path(folder).iterdir())
            self.check_room(int(self._workers.sum(torch.tensor(mine, dtype=torch.float64))), step)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            self._try(step, self._run_dir, lambda: ray.train.report(
                metrics, checkpoint=checkpoint, checkpoint_upload_fn=_upload
            ))
        self._last_step = step

    def check_room(self, size_bytes: int, step: int = 0) -> None:
        """Raise unless the run's folder is on this machine, and has room for a checkpoint of this size.

        One worker looks for room, before any writes.
        """
        if "://" in self._run_dir:
            return
        if not Path(self._run_dir).is_dir():
            raise TrainingError(
                f"There is no folder {self._run_dir} on {platform.node()}, where a worker runs: set workspace to a "
                "folder or bucket that all machines share."
            )
        needed = size_bytes + RESERVE_BYTES
        if self._workers.is_first and shutil.disk_usage(self._run_dir).free < needed:
            raise self._no_room(step, self._run_dir, f"which needs {needed / 1e6:,.1f} MB")

    def _try(self, step: int, folder: str, save: Callable[[], None]) -> None:
        try:
            save()
        except Exception as error:
            if is_disk_full(error):
                raise self._no_room(step, folder, "which was not enough") from error
            raise

    def _no_room(self, step: int, folder: str, need: str) -> DiskFullError:
        kept = "none" if self._last_step is None else f"step {self._last_step}"
        where = "point TMPDIR" if folder != self._run_dir else "set workspace"
        return DiskFullError(
            f"The checkpoint of step {step} could not be saved: {folder} has {free_space(folder)} free, {need}. Last "
            f"good checkpoint: {kept}. Make room there and go on with --resume, or {where} to a larger disk."
        )


def _upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Ray Train's own copying, but a part that could not be copied takes no room afterwards."""
    storage = ray.train.get_context().get_storage()
    try:
        return storage.persist_current_checkpoint(checkpoint, name)
    except OSError:
        with contextlib.suppress(OSError):
            storage.storage_filesystem.delete_dir(storage.build_checkpoint_path_from_name(name))
        raise
