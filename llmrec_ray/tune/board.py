"""Epochs of trials -> TensorBoard runs below `<campaign>/tensorboard`, one per trial, with its hyperparameters.

A resumed trial goes on in its run. TensorBoard reads folders and buckets; it is only written where it can be appended
to, on a disk. What cannot be written is only not shown.
"""

from __future__ import annotations

import contextlib
import logging
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from llmrec_ray.tune.records import TrialRecord, values_of

__all__ = ["Board"]

logger = logging.getLogger(__name__)

MOST_WAITING = 1000
"""Events of one file; more than there are, since nobody takes them from the queue once the disk is full."""


class Board:
    """Writers by trial. root: the campaign's folder; nothing is written to a bucket."""

    def __init__(self, root: str, metric: str) -> None:
        self._root, self._metric = (None if "://" in root else Path(root) / "tensorboard"), metric

    def epoch(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Scalars of an epoch."""
        if self._root is None:
            return
        epoch = int(metrics["epoch"])
        with _only_shown(), self._writer(number, f".epoch-{epoch:05d}") as writer:
            for name, value in metrics.items():
                if isinstance(value, numbers.Real) and math.isfinite(value) and name != "epoch":
                    writer.add_scalar(name, float(value), epoch)

    def close(self, records: Sequence[TrialRecord]) -> None:
        """Hyperparameters of every trial beside its best value."""
        if self._root is None:
            return
        for record in records:
            shown = {name: value if isinstance(value, int | float) else str(value)
                     for name, value in record.settings.items()}
            tag = f"best/{self._metric}".replace("@", "_")  # as tags of scalars are written
            values = values_of(record, self._metric)
            best = {tag: max(values)} if values else {}
            with _only_shown(), self._writer(record.number, ".settings") as writer:
                for summary in hparams(shown, best):
                    writer.file_writer.add_summary(summary)
                for name, value in best.items():
                    writer.add_scalar(name, value, record.done)

    def _writer(self, number: int, suffix: str) -> SummaryWriter:
        """Files are named by the second, and one of the same name would be written over: suffixes tell them apart."""
        return SummaryWriter(str(self._run(number)), max_queue=MOST_WAITING, filename_suffix=suffix)

    def _run(self, number: int) -> Path:
        assert self._root is not None, "a TensorBoard run in a bucket. This is a bug."
        return self._root / f"trial-{number:05d}"


@contextlib.contextmanager
def _only_shown() -> Iterator[None]:
    """Within it a file that cannot be written is named in the log."""
    try:
        yield
    except OSError as error:
        logger.warning("TensorBoard will not show all trials: %s", error)
