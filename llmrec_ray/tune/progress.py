"""Records of trials -> what people read while a campaign searches: how far it is, and a line when a leg begins or ends.

How far it is counts epochs, of those that the schedule will have trained in the end: trials that are over would stand
still while asha's wait between two legs, and all epochs of all trials are never reached where most are ended early.
Texts only; it knows no Ray and no terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmrec_ray.tune.records import TrialRecord, best_record, values_of
from llmrec_ray.tune.schedule import Leg, Plan, place_at_rung, planned_epochs

__all__ = ["Standing", "leg_begins", "leg_ends", "standing", "summary"]

IN_WORDS = {"running": "running", "finished": "finished", "paused": "waiting", "stopped": "stopped", "failed": "failed"}


@dataclass(frozen=True)
class Standing:
    """How far a search is. done: epochs that were trained; planned: see `planned_epochs`; text: trials and the best."""

    done: int
    planned: int
    text: str


def standing(plan: Plan, records: Sequence[TrialRecord], *, may_start: bool) -> Standing:
    """may_start: whether there is time for new trials."""
    best = best_record(records, plan.metric)
    begun = f"{len(records)} of {plan.trials} trials begun"
    found = [] if best is None else [f"best {_best_value(plan, best)}"]
    return Standing(
        sum(record.done for record in records), planned_epochs(plan, records, may_start=may_start),
        ", ".join([begun, *_counts(records, IN_WORDS), *found]),
    )


def leg_begins(plan: Plan, leg: Leg, records: Sequence[TrialRecord]) -> str | None:
    """That a trial takes over another's weights, or goes on after it waited at a rung; None for what needs no line."""
    record = next((record for record in records if record.number == leg.number), None)
    if record is None or leg.until <= record.until:
        return None
    if leg.part is not None:
        return f"trial {leg.number}, {leg.part.reason}; now with {_settings(leg.part.settings)}"
    if plan.config.scheduler != "asha":
        return None
    place, rivals = place_at_rung(plan, record, records)
    return f"trial {leg.number} goes on to epoch {leg.until}: place {place} of {rivals} at epoch {record.done}"


def leg_ends(plan: Plan, records: Sequence[TrialRecord], number: int) -> str:
    """How a leg ended. A trial that waits at a rung of asha may go on as long as the search lasts."""
    record = next(record for record in records if record.number == number)
    settings = _settings(record.settings_at(record.until))
    if record.status == "failed":
        return f"trial {number} failed after epoch {record.done}: {record.reason} ({settings})"
    said = f"{_state(plan, record, records)}: {_best_value(plan, record)} with {settings}"
    best = best_record(records, plan.metric)
    if best is None:
        return said
    if best.number == number:
        return f"{said} — the best so far"
    return f"{said}; best so far trial {best.number}, {_best_value(plan, best)}"


def summary(plan: Plan, records: Sequence[TrialRecord], *, is_over: bool) -> str:
    """How trials ended and what was trained. is_over: whether those that wait will not go on."""
    words = IN_WORDS | ({"paused": "stopped"} if is_over else {"running": "interrupted"})
    done, most = sum(record.done for record in records), len(records) * plan.epochs
    trials = f"{len(records)} trials" if len(records) == plan.trials else f"{len(records)} of {plan.trials} trials"
    best = best_record(records, plan.metric)
    found = "no value" if best is None else f"best trial {best.number}, {_best_value(plan, best)}"
    return (
        f"search {'over' if is_over else 'so far'}: {', '.join([trials, *_counts(records, words)])}; {done} of their "
        f"{most} epochs trained; {found}"
    )


def _state(plan: Plan, record: TrialRecord, records: Sequence[TrialRecord]) -> str:
    if record.status == "finished":
        return f"trial {record.number} finished, epoch {record.done}"
    if record.status != "paused" or plan.config.scheduler != "asha":
        return f"trial {record.number}, epoch {record.done}"
    place, rivals = place_at_rung(plan, record, records)
    stands = f"place {place} of {rivals}" if place is not None else f"behind {rivals} with a finite value"
    return f"trial {record.number} waits at epoch {record.done}, {stands}"


def _counts(records: Sequence[TrialRecord], words: Mapping[str, str]) -> list[str]:
    """`2 running`, `1 failed`: of each state that trials are in."""
    states = [words[record.status] for record in records]
    return [f"{states.count(word)} {word}" for word in dict.fromkeys(words.values()) if word in states]


def _best_value(plan: Plan, record: TrialRecord) -> str:
    values = values_of(record, plan.metric)
    return f"{max(values):.4f}" if values else "no finite value"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in settings.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
