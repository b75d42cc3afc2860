"""The plan of legs: every trial gets what it should, nothing twice, wherever the campaign is cut off."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.config import Recipe
from llmrec_ray.tune.records import TrialRecord, best_record
from llmrec_ray.tune.schedule import Leg, Plan, next_leg, stopped_reason
from llmrec_ray.tune.space import split_levels
from tests.boards import board_recipe

METRIC = "ndcg@10"
Curve = Callable[[int, int], float]
"""(trial, epoch) -> value."""


def plan_of(folder, *, epochs: int = 14, **tune) -> Plan:
    search = {"train.learning_rate": {"loguniform": [1e-4, 1e-1]}, "model.dropout": {"uniform": [0.0, 0.5]}}
    recipe: Recipe = board_recipe(folder, tune={"search": search, **tune})
    return Plan(recipe, split_levels(recipe)[0], epochs, METRIC)


class Simulated:
    """Trains legs in an instant, up to `slots` at once, each of which ends some time after its last epoch was told;
    `cut` ends the process after so many epochs."""

    def __init__(self, plan: Plan, curve: Curve, slots: int = 1) -> None:
        self.plan, self.curve, self.slots = plan, curve, slots
        self.records: dict[int, TrialRecord] = {}
        self.legs: list[Leg] = []
        self.trained: list[tuple[int, int]] = []

    def run(self, cut: float = math.inf) -> None:
        active: list[int] = []
        while True:
            while len(active) < self.slots and (leg := next_leg(self.plan, self.sorted, active)) is not None:
                assert leg.number not in active, "it would be trained by two processes"
                self.begin(leg)
                active.append(leg.number)
            if not active:
                return
            record = self.records[active[0]]
            if record.done >= record.until:
                record.status = "finished" if record.done >= self.plan.epochs else "paused"
                active.remove(record.number)
            elif self.train_epoch(record, cut):
                active.append(active.pop(0))
            else:
                return

    def begin(self, leg: Leg) -> None:
        self.legs.append(leg)
        if leg.is_new:
            assert leg.number not in self.records
            self.records[leg.number] = TrialRecord(
                number=leg.number, settings={"train.learning_rate": 1e-3 * (1 + leg.number)}, until=leg.until,
                started_at="2026-01-01T00:00:00+00:00",
            )
            return
        record = self.records[leg.number]
        record.parts += [] if leg.part is None else [leg.part]
        record.until, record.status = leg.until, "running"

    def train_epoch(self, record: TrialRecord, cut: float) -> bool:
        if len(self.trained) >= cut:
            return False
        epoch = record.done + 1
        self.trained.append((record.number, epoch))
        record.epochs.append({
            "epoch": epoch, METRIC: self.curve(record.number, epoch), "checkpoint": f"{record.number}/{epoch}",
        })
        return True

    @property
    def sorted(self) -> list[TrialRecord]:
        return [self.records[number] for number in sorted(self.records)]


def rising(number: int, epoch: int) -> float:
    """Trial 5 ends best and leads from the first epoch."""
    return (1.0 - abs(number - 5) / 20) * (1 - math.exp(-epoch / 3))


def test_without_a_scheduler_every_trial_is_one_leg_to_the_end(tmp_path):
    simulated = Simulated(plan_of(tmp_path, trials=5, scheduler="none"), rising, slots=2)
    simulated.run()
    assert [leg.number for leg in simulated.legs] == [0, 1, 2, 3, 4]
    assert all(record.done == 14 and record.status == "finished" for record in simulated.sorted)


def test_asha_spends_less_than_two_fifths_of_the_epochs_and_keeps_the_best(tmp_path):
    simulated = Simulated(plan_of(tmp_path, trials=16), rising)
    simulated.run()
    best = best_record(simulated.sorted, METRIC)
    assert best is not None and best.number == 5 and best.status == "finished"
    assert len(simulated.trained) <= 0.4 * 16 * 14
    assert len({*simulated.trained}) == len(simulated.trained)
    assert sum(record.done == 2 for record in simulated.sorted) == 8


def test_with_one_slot_all_start_before_any_goes_on(tmp_path):
    simulated = Simulated(plan_of(tmp_path, trials=6), rising)
    simulated.run()
    assert [leg.is_new for leg in simulated.legs] == [True] * 6 + [False] * (len(simulated.legs) - 6)


def test_fewer_trials_than_the_reduction_factor_still_have_a_winner_with_all_epochs(tmp_path):
    simulated = Simulated(plan_of(tmp_path, trials=2, reduction_factor=3), rising)
    simulated.run()
    assert sorted(record.done for record in simulated.sorted) == [2, 14]


def test_a_trial_that_stays_behind_is_told_why(tmp_path):
    plan = plan_of(tmp_path, trials=6)
    simulated = Simulated(plan, rising)
    simulated.run()
    said = stopped_reason(plan, simulated.records[0], simulated.sorted)
    assert said == "epoch 2: 0.3649 is 6th of 6 trials; the best half have 0.4379 or more"


def test_when_the_best_of_a_rung_fails_the_next_one_goes_on(tmp_path):
    simulated = Simulated(plan_of(tmp_path, trials=3), rising)
    simulated.run(cut=6)
    simulated.records[2].status = "failed"
    simulated.run()
    assert simulated.records[1].done == 14


def test_there_are_no_new_trials_when_time_is_up_but_the_best_go_on(tmp_path):
    plan = plan_of(tmp_path, trials=16)
    simulated = Simulated(plan, rising)
    simulated.run(cut=6)
    assert next_leg(plan, simulated.sorted, (), may_start=False) == Leg(3, 2)
    del simulated.records[3]
    assert next_leg(plan, simulated.sorted, (), may_start=False) == Leg(2, 4)


def test_population_based_training_waits_for_all_and_lets_the_worst_take_over(tmp_path):
    simulated = Simulated(plan_of(tmp_path, trials=4, scheduler="pbt", epochs=6), rising)
    simulated.run()
    assert all(record.done == 6 for record in simulated.sorted)
    assert [(leg.number, leg.until) for leg in simulated.legs[:5]] == [(0, 2), (1, 2), (2, 2), (3, 2), (0, 4)]
    [first, *_] = simulated.records[0].parts
    assert (first.after_epoch, first.taken_from, first.checkpoint) == (2, 3, "3/2")
    assert first.settings != simulated.records[3].settings


@settings(max_examples=60, deadline=None)
@given(
    trials=st.integers(1, 12), slots=st.integers(1, 4), cuts=st.lists(st.integers(1, 40), max_size=4),
    scheduler=st.sampled_from(["none", "asha", "pbt"]), noise=st.randoms(use_true_random=False),
)
def test_a_campaign_that_is_cut_off_anywhere_ends_like_one_that_is_not(
    tmp_path_factory, trials, slots, cuts, scheduler, noise
):
    values = [[noise.random() for _ in range(15)] for _ in range(trials)]
    plan = plan_of(tmp_path_factory.getbasetemp(), trials=trials, scheduler=scheduler)
    simulated = Simulated(plan, lambda number, epoch: values[number][epoch], slots)
    for cut in sorted(cuts):
        simulated.run(cut)
    simulated.run()
    assert len(simulated.records) == trials
    assert all(record.status in {"paused", "finished"} for record in simulated.sorted)
    assert any(record.done == 14 for record in simulated.sorted)
    assert len({*simulated.trained}) == len(simulated.trained)
    if slots == 1:
        whole = Simulated(plan, lambda number, epoch: values[number][epoch])
        whole.run()
        assert {n: r.done for n, r in whole.records.items()} == {n: r.done for n, r in simulated.records.items()}
        assert {n: r.parts for n, r in whole.records.items()} == {n: r.parts for n, r in simulated.records.items()}


def test_values_that_are_not_finite_never_go_on(tmp_path):
    simulated = Simulated(plan_of(tmp_path, trials=6), lambda n, e: math.nan if n == 5 else rising(n, e))
    simulated.run()
    assert simulated.records[5].done == 2
    assert simulated.records[4].done == 14


@pytest.mark.parametrize("scheduler", ["none", "asha", "pbt"])
def test_nothing_is_left_to_do_after_the_end(tmp_path, scheduler):
    plan = plan_of(tmp_path, trials=4, scheduler=scheduler)
    simulated = Simulated(plan, rising, slots=2)
    simulated.run()
    assert next_leg(plan, simulated.sorted, ()) is None
