"""What is known of each trial, one JSON file per trial: all that the search follows from, whoever is killed.

Files are replaced whole, on disks and object stores alike, so a reader sees the last report that was complete.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from llmrec_ray.errors import CorruptArtifactError
from llmrec_ray.storage import file_names, read_json, write_json_atomic

__all__ = [
    "Part",
    "Records",
    "Status",
    "TrialRecord",
    "best_epoch",
    "best_record",
    "best_records",
    "value_at",
    "values_of",
]

Status: TypeAlias = Literal["running", "paused", "finished", "stopped", "failed"]
"""`running` also when whoever ran it was killed; `paused` between two legs; `stopped` when others were better."""


class Part(BaseModel):
    """From an epoch on a trial of population-based training goes on with weights of a better one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    after_epoch: int
    """The epoch after which it took over."""
    taken_from: int
    """Number of the trial whose weights it took."""
    checkpoint: str
    """Where they are."""
    settings: dict[str, Any]
    """All its settings from then on."""
    reason: str


class TrialRecord(BaseModel):
    """One trial: what was tried, what came of it epoch by epoch, and how it ended."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    number: int
    """From 0; trial 0 is the recipe as it is."""
    settings: dict[str, Any]
    """Dotted key of the recipe -> value, as the trial began."""
    until: int
    """Epochs that are done when its leg, the last or the present one, ends."""
    status: Status = "running"
    reason: str | None = None
    """Why it failed, or was stopped, in words."""
    epochs: list[dict[str, Any]] = []
    """Metrics of every epoch, oldest first: epoch, loss, the metric, train_s, epoch_s, checkpoint."""
    parts: list[Part] = []
    """What it took over from other trials, oldest first."""
    started_at: str
    """ISO 8601, UTC."""
    seconds: float = 0.0
    """Wall time of the trial, resumed parts added up."""
    training_s: float = 0.0
    """That of its epochs."""
    retried: str | None = None
    """Why it was trained again in smaller pieces, after it ran out of memory."""

    @property
    def done(self) -> int:
        """Epochs that are done."""
        return int(self.epochs[-1]["epoch"]) if self.epochs else 0

    def settings_at(self, epoch: int) -> dict[str, Any]:
        """Its settings in an epoch, from 1."""
        return next((part.settings for part in reversed(self.parts) if part.after_epoch < epoch), self.settings)


def values_of(record: TrialRecord, metric: str) -> list[float]:
    """The metric of every epoch that has it, oldest first; NaN, of a training that diverged, is none."""
    return [float(entry[metric]) for entry in record.epochs if _has(entry, metric)]


def value_at(record: TrialRecord, metric: str, epoch: int) -> float | None:
    """The best value up to an epoch, or None before it was reached."""
    reached = [entry for entry in record.epochs if entry["epoch"] <= epoch]
    if not any(entry["epoch"] == epoch for entry in reached):
        return None
    return max((float(entry[metric]) for entry in reached if _has(entry, metric)), default=None)


def best_records(records: Sequence[TrialRecord], metric: str) -> list[TrialRecord]:
    """Those with a value, by the best of any epoch, the earlier one of equals first; failed trials do not count."""
    scored = [record for record in records if record.status != "failed" and values_of(record, metric)]
    return sorted(scored, key=lambda record: (-max(values_of(record, metric)), record.number))


def best_record(records: Sequence[TrialRecord], metric: str) -> TrialRecord | None:
    """The first of `best_records`."""
    return next(iter(best_records(records, metric)), None)


def _has(entry: Mapping[str, Any], metric: str) -> bool:
    value = entry.get(metric)
    return value is not None and math.isfinite(value)


def best_epoch(record: TrialRecord, metric: str) -> int:
    """The first epoch with the best value."""
    scored = [entry for entry in record.epochs if _has(entry, metric)]
    return int(max(scored, key=lambda entry: (entry[metric], -entry["epoch"]))["epoch"])


class Records:
    """The records of a campaign below `<root>/records`."""

    def __init__(self, root: str) -> None:
        self._folder = f"{root}/records"

    def load(self) -> list[TrialRecord]:
        """All of them, by number. Raises CorruptArtifactError for a file that is damaged."""
        names = [name for name in file_names(self._folder) if name.endswith(".json") and not name.startswith(".")]
        return [_read(f"{self._folder}/{name}") for name in names]

    def save(self, record: TrialRecord) -> None:
        """Write one record over its last state."""
        write_json_atomic(f"{self._folder}/{record.number:05d}.json", record.model_dump(mode="json"))


def _read(uri: str) -> TrialRecord:
    try:
        return TrialRecord.model_validate(read_json(uri))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise CorruptArtifactError(
            f"{uri} is not the record of a trial ({where}: {problem['msg']}): restore it, or start another campaign."
        ) from None
