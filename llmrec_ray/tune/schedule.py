"""Records of trials -> the next leg: which trial goes on, or starts, and up to which epoch.

A trial runs in legs, between which it is only a checkpoint and a record. `none` has one leg; asha one to each rung, at
whose end only the best go on (successive halving by promotion: Li et al. 2018); pbt one of `every_epochs` each, after
which all are compared. Pure: the same records give the same leg, so a campaign that was killed goes on as if nothing
had happened. It knows no Ray and starts nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from llmrec_ray.config import Domain, Recipe, TuneConfig
from llmrec_ray.tune.asha import milestones, place_of, promotable, reason
from llmrec_ray.tune.pbt import next_step
from llmrec_ray.tune.records import Part, TrialRecord, value_at
from llmrec_ray.tune.space import is_possible, trial_count

__all__ = ["Leg", "Plan", "next_leg", "place_at_rung", "planned_epochs", "stopped_reason"]


@dataclass(frozen=True)
class Plan:
    """What a schedule follows from. recipe: what is searched around, by its `tune` section. epochs: of a whole trial.
    metric: key of an epoch's metrics."""

    recipe: Recipe
    space: Mapping[str, Domain]
    epochs: int
    metric: str

    @property
    def config(self) -> TuneConfig:
        """The rules of the campaign."""
        return self.recipe.tune

    @property
    def trials(self) -> int:
        """Trials in all: no more than there are different configurations."""
        return trial_count(self.recipe)


@dataclass(frozen=True)
class Leg:
    """Train trial `number` until so many epochs are done. part: what it takes over first. is_new: it has no settings
    yet."""

    number: int
    until: int
    part: Part | None = None
    is_new: bool = False


def next_leg(
    plan: Plan, records: Sequence[TrialRecord], active: Collection[int], *, may_start: bool = True
) -> Leg | None:
    """The next leg, or None when there is none now: for good if nothing is active.

    active: numbers of trials that are being trained. may_start: whether there is time for new trials.
    """
    for record in records:
        if record.status == "running" and record.number not in active:
            return Leg(record.number, record.until)
    if may_start and len(records) < plan.trials:
        return Leg(len(records), _rungs(plan)[0], is_new=True)
    if plan.config.scheduler == "asha":
        return _promotion(plan, records, active)
    if plan.config.scheduler == "pbt":
        return _next_generation(plan, records, active)
    return None


def planned_epochs(plan: Plan, records: Sequence[TrialRecord], *, may_start: bool = True) -> int:
    """Epochs that will have been trained in the end, those that are done included, as far as records tell now.

    A trial that failed will not have its others. Of asha's rungs as many go on as there are places; that more did,
    since they were among the best when fewer had got there, is counted when they do. When nothing is left to be
    trained it is what was trained.
    """
    sent, begun, planned = plan.trials if may_start else len(records), 0, 0
    for rung in _rungs(plan):
        lost = [record for record in records if record.status == "failed" and record.done < rung == record.until]
        planned += sent * (rung - begun) - sum(rung - record.done for record in lost)
        sent = _going_on(plan, records, rung, sent - len(lost))
        begun = rung
    return planned


def place_at_rung(plan: Plan, record: TrialRecord, records: Sequence[TrialRecord]) -> tuple[int | None, int]:
    """Place of a trial among those that have done as many epochs, from 1, None without a finite value; and how many
    of those have one."""
    values = _values(plan, records, record.done)
    return place_of(record.number, values), len(values)


def stopped_reason(plan: Plan, record: TrialRecord, records: Sequence[TrialRecord]) -> str:
    """Why a trial that is between two legs does not go on, in words."""
    values = _values(plan, records, record.done)
    return reason(record.number, values, plan.config, record.done)


def _rungs(plan: Plan) -> list[int]:
    """Epochs at which a trial's legs end."""
    if plan.config.scheduler == "asha":
        return milestones(plan.config, plan.epochs)
    if plan.config.scheduler == "pbt":
        every = _every(plan)
        return [*range(every, plan.epochs, every), plan.epochs]
    return [plan.epochs]


def _promotion(plan: Plan, records: Sequence[TrialRecord], active: Collection[int]) -> Leg | None:
    """From the highest rung that has somebody to promote. A rung is complete when nobody will join it any more."""
    legs: list[Leg] = []
    failed, complete = [record.number for record in records if record.status == "failed"], True
    for rung, following in zip(rungs := _rungs(plan), rungs[1:], strict=False):
        complete = complete and not any(record.number in active and record.until <= rung for record in records)
        promoted = [record.number for record in records if record.until > rung]
        going = promotable(_values(plan, records, rung), promoted, plan.config, complete=complete, failed=failed)
        waiting = [number for number in going if number not in active]  # its last epoch is told before its leg is over
        legs += [Leg(number, following) for number in waiting[:1]]
        complete = complete and not going
    return legs[-1] if legs else None


def _values(plan: Plan, records: Sequence[TrialRecord], rung: int) -> dict[int, float]:
    values = {record.number: value_at(record, plan.metric, rung) for record in records}
    return {number: value for number, value in values.items() if value is not None}


def _going_on(plan: Plan, records: Sequence[TrialRecord], rung: int, reached: int) -> int:
    """How many go on from a rung that `reached` trials will have reached. A place is given anew when whoever had it
    fails, and those that have gone on are never called back."""
    if plan.config.scheduler != "asha":
        return reached
    values = _values(plan, records, rung)
    rivals = reached - sum(record.done >= rung and record.number not in values for record in records)
    places = max(rivals // plan.config.reduction_factor, min(1, rivals))
    failed = [record for record in records if record.status == "failed" and record.number in values]
    gone = [record for record in records if record.until > rung]
    return max(len(gone), min(places, rivals - len(failed)) + sum(record.until > rung for record in failed))


def _next_generation(plan: Plan, records: Sequence[TrialRecord], active: Collection[int]) -> Leg | None:
    """The trial with the fewest epochs, when all that live have got there."""
    alive = [record for record in records if record.status in {"paused", "running"}]
    waiting = [record for record in alive if record.status == "paused" and record.number not in active]
    if not waiting:
        return None
    record = min(waiting, key=lambda record: (record.done, record.number))
    if any(other.done < record.done for other in alive):
        return None
    until = min(plan.epochs, record.done + _every(plan))
    step = next_step(
        record, record.done, records, plan.config, plan.space, plan.recipe.seed, plan.metric,
        is_possible=partial(is_possible, plan.recipe),
    )
    if step is None:
        return Leg(record.number, until)
    donor = next(other for other in records if other.number == step.donor)
    checkpoint = next(entry["checkpoint"] for entry in donor.epochs if entry["epoch"] == record.done)
    return Leg(record.number, until, Part(
        after_epoch=record.done, taken_from=step.donor, checkpoint=checkpoint, settings=step.settings,
        reason=step.reason,
    ))


def _every(plan: Plan) -> int:
    return plan.config.pbt_rules.every_epochs
