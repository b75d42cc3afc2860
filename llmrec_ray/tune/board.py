"""Epochs of trials -> TensorBoard runs below `<campaign>/tensorboard`, one per trial, with its hyperparameters.

A resumed trial goes on in its run. TensorBoard reads folders and buckets; it is only written where it can be appended
to, on a disk.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from llmrec_ray.tune.records import TrialRecord, values_of

__all__ = ["Board"]


class Board:
    """Writers by trial. root: the campaign's folder; nothing is written to a bucket."""

    def __init__(self, root: str, metric: str) -> None:
        self._root, self._metric = (None if "://" in root else Path(root) / "tensorboard"), metric

    def epoch(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Scalars of an epoch."""
        if self._root is None:
            return
        with SummaryWriter(str(self._run(number))) as writer:
            for name, value in metrics.items():
                if isinstance(value, numbers.Real) and name != "epoch":
                    writer.add_scalar(name, float(value), int(metrics["epoch"]))

    def close(self, records: Sequence[TrialRecord]) -> None:
        """Hyperparameters of every trial beside its best value."""
        if self._root is None:
            return
        for record in records:
            values = values_of(record, self._metric)
            with SummaryWriter(str(self._run(record.number))) as writer:
                shown = {name: value if isinstance(value, int | float) else str(value)
                         for name, value in record.settings.items()}
                writer.add_hparams(shown, {f"best/{self._metric}": max(values, default=float("nan"))}, name=".")

    def _run(self, number: int) -> Path:
        assert self._root is not None, "a TensorBoard run in a bucket. This is a bug."
        return self._root / f"trial-{number:05d}"
