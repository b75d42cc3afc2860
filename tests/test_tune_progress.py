"""What people read while a campaign searches: a bar that only goes up and ends full, and a line per leg."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_ray.tune import search
from llmrec_ray.tune.judge import Judge
from llmrec_ray.tune.progress import leg_begins, leg_ends, standing, summary
from llmrec_ray.tune.records import Part
from llmrec_ray.tune.schedule import Leg, next_leg, planned_epochs
from tests.test_tune_judge import judge_of, report
from tests.test_tune_schedule import METRIC, Simulated, plan_of, rising
from tests.test_tune_trial import Here

LINES = {0: "train.learning_rate 0.001", 1: "train.learning_rate 0.002", 2: "train.learning_rate 0.003"}


def after(folder, cut: float = math.inf, **tune) -> Simulated:
    """A search of which so many epochs were trained."""
    simulated = Simulated(plan_of(folder, **tune), rising)
    simulated.run(cut)
    return simulated


def shown(simulated: Simulated):
    return standing(simulated.plan, simulated.sorted, may_start=True)


@pytest.mark.parametrize("scheduler", ["none", "asha", "pbt"])
def test_the_bar_goes_up_and_is_full_when_nothing_is_left(tmp_path, scheduler):
    whole = after(tmp_path, trials=6, scheduler=scheduler)
    seen = []
    for cut in range(len(whole.trained) + 1):
        now = shown(after(tmp_path, cut, trials=6, scheduler=scheduler))
        assert now.done == cut <= now.planned
        seen.append(now.done / now.planned)
    assert seen == sorted(seen) and (seen[0], seen[-1]) == (0.0, 1.0)


def test_most_of_the_bar_is_not_left_for_the_end_where_most_trials_are_stopped(tmp_path):
    simulated = after(tmp_path, trials=16)
    assert len(simulated.trained) < 0.4 * 16 * 14
    assert shown(after(tmp_path, 0, trials=16)).planned == len(simulated.trained)


@given(data=st.data(), scheduler=st.sampled_from(["none", "asha", "pbt"]), trials=st.integers(1, 9),
       slots=st.integers(1, 4), budget=st.integers(0, 40))
def test_what_was_planned_is_never_less_than_what_was_trained_and_in_the_end_the_same(
    tmp_path_factory, data, scheduler, trials, slots, budget
):
    """Whatever fails or diverges, and whenever time is up for new trials."""
    plan = plan_of(tmp_path_factory.getbasetemp(), trials=trials, scheduler=scheduler)
    draw = data.draw(st.randoms(use_true_random=False))
    simulated = Simulated(plan, lambda *_: draw.choice([draw.random(), math.nan]))
    active: list[int] = []
    while True:
        may_start = len(simulated.trained) < budget
        while len(active) < slots and (
            leg := next_leg(plan, simulated.sorted, active, may_start=may_start)
        ) is not None:
            simulated.begin(leg)
            active.append(leg.number)
        planned = planned_epochs(plan, simulated.sorted, may_start=may_start)
        assert len(simulated.trained) <= planned
        if not active:
            break
        record = simulated.records[draw.choice(active)]
        if fails := draw.random() < 0.1:
            record.status = "failed"
        else:
            simulated.train_epoch(record, math.inf)
        if fails or record.done >= record.until:
            active.remove(record.number)
            if not fails:
                record.status = "finished" if record.done >= plan.epochs else "paused"
    assert len(simulated.trained) == planned


def test_the_bar_tells_how_many_trials_are_where(tmp_path):
    assert shown(after(tmp_path, 0, trials=3)).text == "1 of 3 trials begun, 1 running"
    simulated = after(tmp_path, 7, trials=3)
    simulated.records[0].status = "failed"
    assert shown(simulated).text == "3 of 3 trials begun, 1 running, 1 waiting, 1 failed, best 0.5373"


def test_a_trial_at_a_rung_is_said_to_wait_and_to_go_on_but_not_to_be_stopped(tmp_path):
    simulated = after(tmp_path, 6, trials=3)
    best = simulated.records[2]
    best.until, best.status = 2, "paused"
    assert leg_ends(simulated.plan, simulated.sorted, 0) == (
        f"trial 0 waits at epoch 2, place 3 of 3: 0.3649 with {LINES[0]}; best so far trial 2, 0.4136"
    )
    assert leg_ends(simulated.plan, simulated.sorted, 2) == (
        f"trial 2 waits at epoch 2, place 1 of 3: 0.4136 with {LINES[2]} — the best so far"
    )
    assert leg_begins(simulated.plan, Leg(2, 4), simulated.sorted) == (
        "trial 2 goes on to epoch 4: place 1 of 3 at epoch 2"
    )
    assert leg_begins(simulated.plan, Leg(1, 2), simulated.sorted) is None
    assert leg_begins(simulated.plan, Leg(3, 2, is_new=True), simulated.sorted) is None


def test_a_trial_without_a_number_waits_behind_the_others(tmp_path):
    simulated = after(tmp_path, 6, trials=3)
    for entry in simulated.records[1].epochs:
        entry[METRIC] = math.nan
    assert leg_ends(simulated.plan, simulated.sorted, 1) == (
        f"trial 1 waits at epoch 2, behind 2 with a finite value: no finite value with {LINES[1]}; best so far trial "
        "2, 0.4136"
    )


def test_a_trial_that_takes_over_anothers_weights_says_whose_and_why(tmp_path):
    simulated = after(tmp_path, 10, trials=2, scheduler="pbt", pbt={"every_epochs": 2})
    plan = simulated.plan
    part = Part(after_epoch=2, taken_from=1, checkpoint="x", settings={"model.dropout": 0.25}, reason=(
        "epoch 2: 0.3649 is among the worst 1 of 2 trials; goes on from trial 1 with 0.3893"
    ))
    first, _ = simulated.sorted
    first.until, first.status = 2, "paused"
    assert leg_begins(plan, Leg(0, 4, part), simulated.sorted) == (
        "trial 0, epoch 2: 0.3649 is among the worst 1 of 2 trials; goes on from trial 1 with 0.3893; now with "
        "model.dropout 0.25"
    )
    assert leg_begins(plan, Leg(0, 4), simulated.sorted) is None


def test_trials_that_end_are_told_from_those_that_fail(tmp_path):
    simulated = after(tmp_path, trials=2, scheduler="none")
    assert leg_ends(simulated.plan, simulated.sorted, 0).startswith("trial 0 finished, epoch 14: 0.7429 with ")
    failed = simulated.records[0]
    failed.status, failed.reason = "failed", "It broke."
    assert leg_ends(simulated.plan, simulated.sorted, 0) == f"trial 0 failed after epoch 14: It broke. ({LINES[0]})"


def test_one_line_sums_the_search_up_whether_it_is_over_or_was_stopped(tmp_path):
    simulated = after(tmp_path, trials=6)
    simulated.records[0].status = "failed"
    assert summary(simulated.plan, simulated.sorted, is_over=True) == (
        "search over: 6 trials, 1 finished, 4 stopped, 1 failed; 28 of their 84 epochs trained; best trial 5, 0.9906"
    )
    cut = after(tmp_path, 3, trials=6)
    assert summary(cut.plan, cut.sorted, is_over=False) == (
        "search so far: 2 of 6 trials, 1 interrupted, 1 waiting; 3 of their 28 epochs trained; best trial 0, 0.3649"
    )


def test_the_judge_tells_what_a_leg_begins_and_ends_with(tmp_path):
    judge, _ = judge_of(tmp_path, scheduler="asha", grace_epochs=1, trials=2)
    assert judge.standing().text == "0 of 2 trials begun"
    for number in (0, 1):
        assert judge.next_assignment().said is None
        report(judge, number, 1, 0.1 + number / 10)
        judge.end_leg(number)
    assert judge.leg_line(0).startswith("trial 0 waits at epoch 1, place 2 of 2: 0.1000 with ")
    assert judge.next_assignment().said == "trial 1 goes on to epoch 2: place 1 of 2 at epoch 1"
    assert judge.summary().startswith("search so far: 2 trials, 1 interrupted, 1 waiting; 2 of their 8 epochs trained")
    assert (judge.standing().done, judge.standing().planned) == (2, 5)


def test_the_bar_of_a_resumed_campaign_begins_where_it_was_and_never_goes_back(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(search.ray, "get", lambda answer: answer)
    judge, plan = judge_of(tmp_path, trials=2)
    judge.next_assignment()
    for epoch in (1, 2):
        report(judge, 0, epoch, epoch / 10)
    resumed = Judge(str(tmp_path / "campaign"), plan)
    resumed.next_assignment()
    bars, leg = search._Progress(Here(resumed)), SimpleNamespace(config={"trial": 0, "until": 4})
    bars.setup()
    assert (bars._bar.initial, bars._bar.n, bars._bar.total) == (2, 2, 8)
    report(resumed, 0, 1, 0.1)
    bars.on_trial_result(1, [], leg, {})
    assert bars._bar.n == 2
    for epoch in (2, 3, 4):
        report(resumed, 0, epoch, epoch / 10)
    resumed.end_leg(0)
    with caplog.at_level(logging.INFO, logger="llmrec_ray"):
        bars.on_trial_complete(2, [], leg)
        bars.on_experiment_end([])
    assert bars._bar.n == 4 and bars._bar.postfix == "1 of 2 trials begun, 1 finished, best 0.4000"
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("trial 0 finished, epoch 4: 0.4000 with ")
    assert said[1:] == ["search so far: 1 of 2 trials, 1 finished; 4 of their 4 epochs trained; best trial 0, 0.4000"]


def test_what_is_said_of_a_leg_is_logged_when_it_is_handed_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(search.ray, "get", lambda answer: answer)
    judge, plan = judge_of(tmp_path, scheduler="asha", grace_epochs=1, trials=2)
    legs = search._Legs(Here(judge), plan.metric, str(tmp_path))
    with caplog.at_level(logging.INFO, logger="llmrec_ray"):
        for number in (0, 1):
            assert legs.suggest(str(number))["trial"] == number
            report(judge, number, 1, 0.1 + number / 10)
            judge.end_leg(number)
        assert legs.suggest("2")["trial"] == 1
    assert [record.getMessage() for record in caplog.records] == ["trial 1 goes on to epoch 2: place 1 of 2 at epoch 1"]
