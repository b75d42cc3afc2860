"""What is known of each trial, one JSON file per trial: the only state of a campaign, whoever is killed.

Files are replaced whole, on disks and object stores alike, so a reader sees the last report that was complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from llmrec_ray.artifact import file_names, read_json, write_json_atomic

__all__ = ["Records", "Status", "TrialRecord", "best_record", "value_at", "values_of"]

Status: TypeAlias = Literal["running", "finished", "stopped", "failed"]
"""`running` also when whoever ran it was killed; `stopped` by the scheduler, with all it had reached."""


class TrialRecord(BaseModel):
    """One trial: what was tried, what came of it epoch by epoch, and how it ended."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    number: int
    """From 0; trial 0 is the recipe as it is."""
    settings: dict[str, Any]
    """Dotted key of the recipe -> value, as the trial began."""
    status: Status = "running"
    reason: str | None = None
    """Why it failed, or was stopped, in words."""
    epochs: list[dict[str, Any]] = []
    """Metrics of every epoch, oldest first: epoch, loss, the metric, train_s, epoch_s, checkpoint, seconds since the
    trial began. With pbt also the `settings` from that epoch on, and the trial they were `taken_from`."""
    started_at: str
    """ISO 8601, UTC."""
    seconds: float = 0.0
    """Wall time of the trial, resumed parts added up."""
    training_s: float = 0.0
    """That of its epochs."""
    retried: str | None = None
    """Why it was trained again in smaller pieces, after it ran out of memory."""


def values_of(record: TrialRecord, metric: str) -> list[float]:
    """The metric of every epoch that has it, oldest first."""
    return [float(epoch[metric]) for epoch in record.epochs if epoch.get(metric) is not None]


def value_at(record: TrialRecord, metric: str, epoch: int) -> float | None:
    """The best value up to an epoch, or None before it was reached."""
    reached = [entry for entry in record.epochs if entry["epoch"] <= epoch]
    if not any(entry["epoch"] == epoch for entry in reached):
        return None
    return max((float(entry[metric]) for entry in reached if entry.get(metric) is not None), default=None)


def best_record(records: Sequence[TrialRecord], metric: str) -> TrialRecord | None:
    """The record with the best value of any epoch, the earlier one of equals; failed trials do not count."""
    scored = [record for record in records if record.status != "failed" and values_of(record, metric)]
    return max(scored, key=lambda record: (max(values_of(record, metric)), -record.number), default=None)


class Records:
    """The records of a campaign below `<root>/records`."""

    def __init__(self, root: str) -> None:
        self._folder = f"{root}/records"

    def load(self) -> list[TrialRecord]:
        """All of them, by number. Raises CorruptArtifactError for a file that is damaged."""
        names = [name for name in file_names(self._folder) if name.endswith(".json") and not name.startswith(".")]
        return [TrialRecord.model_validate(read_json(f"{self._folder}/{name}")) for name in names]

    def save(self, record: TrialRecord) -> None:
        """Write one record over its last state."""
        write_json_atomic(f"{self._folder}/{record.number:05d}.json", record.model_dump(mode="json"))
