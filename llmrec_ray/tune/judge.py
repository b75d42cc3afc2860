"""The one who knows a campaign: hands out legs, takes reports, keeps every trial's record and its TensorBoard run.

A plain class, which `campaign` makes a Ray actor; it decides nothing itself, see `schedule` and `suggest`. What it is
told is on the disk before it answers, so that it may be killed at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ray.util.metrics import Gauge

from llmrec_ray.errors import LlmrecError
from llmrec_ray.storage import read_json, write_json_atomic
from llmrec_ray.tune.board import Board
from llmrec_ray.tune.progress import Standing, leg_begins, leg_ends, standing, summary
from llmrec_ray.tune.records import Records, TrialRecord, best_record, values_of
from llmrec_ray.tune.schedule import Leg, Plan, next_leg, stopped_reason
from llmrec_ray.tune.suggest import suggest

__all__ = ["Assignment", "Judge"]


@dataclass(frozen=True)
class Assignment:
    """A leg that somebody is to train: the trial, up to which epoch, and its settings now. said: what people should
    read of it."""

    number: int
    until: int
    settings: Mapping[str, Any]
    said: str | None = None


@dataclass
class _Watch:
    """Wall time of one trial's leg."""

    started: float = field(default_factory=time.monotonic)
    before: float = 0.0

    @property
    def seconds(self) -> float:
        return round(self.before + time.monotonic() - self.started, 3)


class Judge:
    """root: the campaign's folder."""

    def __init__(self, root: str, plan: Plan) -> None:
        self._records, self._plan = Records(root), plan
        self._trials = {record.number: _between_legs(record) for record in self._records.load()}
        self._active: dict[int, _Watch] = {}
        self._clock, self._counted = f"{root}/clock.json", _seconds_before(f"{root}/clock.json")
        self._watch = _Watch(before=self._counted)
        self._board = Board(root, plan.metric)
        self._gauges = _Gauges()
        self._problem: LlmrecError | None = None

    def next_assignment(self) -> Assignment | None:
        """The next leg, now being trained by whoever asked; None when there is none now.

        What keeps a leg from being handed out ends the campaign, see `close`.
        """
        leg = self._next_leg()
        if leg is None:
            return None
        assert leg.number not in self._active, f"trial {leg.number} is being trained. This is a bug."
        said = leg_begins(self._plan, leg, self.records())
        try:
            record = self._begin(leg)
        except LlmrecError as error:
            self._problem = error
            return None
        self._active[leg.number] = _Watch(before=record.seconds)
        if not self._keep(record):
            del self._active[leg.number]
            return None
        return Assignment(leg.number, leg.until, record.settings_at(leg.until), said)

    def is_over(self) -> bool:
        """Whether no leg is being trained and none will come."""
        return not self._active and self._next_leg() is None

    def record(self, number: int) -> TrialRecord:
        """What is known of a trial."""
        return self._trials[number].model_copy(deep=True)

    def records(self) -> list[TrialRecord]:
        """All of them, by number."""
        return [self._trials[number] for number in sorted(self._trials)]

    def standing(self) -> Standing:
        """How far the search is."""
        return standing(self._plan, self.records(), may_start=self._may_start)

    def leg_line(self, number: int) -> str:
        """What people should read when a leg of a trial has ended."""
        return leg_ends(self._plan, self.records(), number)

    def summary(self) -> str:
        """What people should read when nothing is trained any more."""
        return summary(self._plan, self.records(), is_over=self._problem is None and self.is_over())

    def report(self, number: int, metrics: dict[str, Any], checkpoint: str | None) -> None:
        """An epoch is over; one that is done again after a failure takes the place of the first."""
        record = self._trials[number]
        entry = metrics | {"checkpoint": checkpoint}
        record.epochs = [*(old for old in record.epochs if old["epoch"] < entry["epoch"]), entry]
        record.training_s = round(sum(float(epoch.get("epoch_s", 0.0)) for epoch in record.epochs), 3)
        if self._keep(record):
            self._board.epoch(number, entry)

    def retry(self, number: int, reason: str) -> None:
        """A trial is trained on in smaller pieces."""
        record = self._trials[number]
        record.retried = reason
        self._keep(record)

    def end_leg(self, number: int) -> None:
        """A leg is over: the trial pauses, or has had all its epochs."""
        record = self._trials[number]
        record.status = "finished" if record.done >= self._plan.epochs else "paused"
        self._end(record)

    def fail(self, number: int, reason: str) -> None:
        """A trial cannot go on."""
        record = self._trials[number]
        record.status, record.reason = "failed", reason
        self._end(record)

    def stop(self, number: int, problem: LlmrecError) -> None:
        """No trial can go on, see `close`; this one stays as its last epoch left it, for --resume."""
        self._problem = problem
        self._active.pop(number, None)

    def is_active(self, number: int) -> bool:
        """Whether a leg of it was handed out and has not ended."""
        return number in self._active

    def close(self) -> list[TrialRecord]:
        """Nothing will be trained any more: trials between two legs are stopped. Returns all records.

        Raises what kept records from being written, or trials from going on.
        """
        if self._problem is not None:
            raise self._problem
        records = self.records()
        for record in records:
            if record.status == "paused":
                record.reason = stopped_reason(self._plan, record, records)
        for record in records:
            if record.status == "paused":
                record.status = "stopped"
                self._keep(record)
        self._board.close(records)
        return records

    def seconds(self) -> float:
        """Of the search so far, without the times when nobody ran it, or nothing was trained any more."""
        return self._counted

    def _next_leg(self) -> Leg | None:
        if self._problem is not None:
            return None
        return next_leg(self._plan, self.records(), self._active, may_start=self._may_start)

    @property
    def _may_start(self) -> bool:
        """Whether there is time for new trials."""
        budget = self._plan.config.time_budget_s
        return budget is None or self._watch.seconds < budget

    def _begin(self, leg: Leg) -> TrialRecord:
        plan = self._plan
        if leg.is_new:
            settings = suggest(
                plan.config, plan.space, plan.recipe.seed, leg.number, self.records(), plan.metric, plan.recipe
            )
            return TrialRecord(
                number=leg.number, settings=settings, until=leg.until,
                started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        record = self._trials[leg.number]
        record.parts += [] if leg.part is None else [leg.part]
        record.until, record.status = leg.until, "running"
        return record

    def _end(self, record: TrialRecord) -> None:
        self._keep(record)
        self._active.pop(record.number, None)

    def _keep(self, record: TrialRecord) -> bool:
        """Write a record down; whether it could be. What keeps it from being written ends the campaign, see `close`."""
        if (watch := self._active.get(record.number)) is not None:
            record.seconds, self._counted = watch.seconds, self._watch.seconds
        self._trials[record.number] = record
        try:
            self._records.save(record)
            write_json_atomic(self._clock, {"seconds": self._counted})
        except LlmrecError as error:
            self._problem = error
            return False
        self._gauges.show(self.records(), self._plan.metric)
        return True


class _Gauges:
    """What Ray exports to Prometheus and its dashboard."""

    def __init__(self) -> None:
        self._trials = Gauge("llmrec_tune_trials", "Trials of the campaign by status.", ("status",))
        self._best = Gauge("llmrec_tune_best", "Best validation value of the campaign so far.")

    def show(self, records: list[TrialRecord], metric: str) -> None:
        """Set them."""
        for status in ("running", "paused", "finished", "stopped", "failed"):
            self._trials.set(sum(record.status == status for record in records), {"status": status})
        if (best := best_record(records, metric)) is not None:
            self._best.set(max(values_of(best, metric)))


def _between_legs(record: TrialRecord) -> TrialRecord:
    """A trial that was stopped may go on when a campaign is made larger."""
    if record.status != "stopped":
        return record
    return record.model_copy(update={"status": "paused", "reason": None})


def _seconds_before(uri: str) -> float:
    try:
        return float(read_json(uri)["seconds"])
    except FileNotFoundError:
        return 0.0
