"""The judge of a campaign: what it is told is on the disk before it answers, and a new one goes on from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec_ray.errors import DiskFullError
from llmrec_ray.storage import read_json, write_json_atomic
from llmrec_ray.tune import judge as judges
from llmrec_ray.tune.judge import Judge
from llmrec_ray.tune.records import Records
from llmrec_ray.tune.schedule import Plan
from tests.test_tune_schedule import METRIC, plan_of


def judge_of(folder: Path, **tune) -> tuple[Judge, Plan]:
    plan = plan_of(folder, epochs=4, **{"algorithm": "random", "scheduler": "none", "trials": 2, **tune})
    return Judge(str(folder / "campaign"), plan), plan


def report(judge: Judge, number: int, epoch: int, value: float) -> None:
    judge.report(number, {"epoch": epoch, METRIC: value, "loss": 1.0 / epoch, "epoch_s": 0.5}, f"checkpoint_{epoch}")


def full(*_: object) -> None:
    raise DiskFullError("The disk is full.")


def test_the_first_trial_is_the_recipe_and_the_next_is_drawn(tmp_path):
    judge, plan = judge_of(tmp_path)
    first, second = judge.next_assignment(), judge.next_assignment()
    assert first is not None and second is not None
    assert first.settings["train.learning_rate"] == plan.recipe.train.learning_rate
    assert second.settings["train.learning_rate"] != plan.recipe.train.learning_rate
    assert (first.number, second.number, first.until) == (0, 1, 4)
    assert judge.next_assignment() is None and not judge.is_over()


def test_a_new_judge_goes_on_with_what_the_killed_one_knew(tmp_path):
    judge, plan = judge_of(tmp_path)
    given = judge.next_assignment()
    report(judge, 0, 1, 0.1)
    report(judge, 0, 2, 0.2)
    other = Judge(str(tmp_path / "campaign"), plan)
    assert other.next_assignment() == given
    report(other, 0, 2, 0.25)
    report(other, 0, 3, 0.3)
    assert [entry[METRIC] for entry in other.record(0).epochs] == [0.1, 0.25, 0.3]
    assert other.record(0).training_s == 1.5
    assert other.seconds() >= judge.record(0).seconds


def test_a_failed_trial_keeps_its_reason_and_the_campaign_goes_on(tmp_path):
    judge, _ = judge_of(tmp_path)
    judge.next_assignment()
    judge.fail(0, "The loss was not finite at step 3.")
    assert judge.next_assignment() is not None
    for epoch in range(1, 5):
        report(judge, 1, epoch, 0.1)
    judge.end_leg(1)
    assert judge.is_over()
    first, second = judge.close()
    assert (first.status, first.reason, second.status) == ("failed", "The loss was not finite at step 3.", "finished")
    assert [record.status for record in Records(str(tmp_path / "campaign")).load()] == ["failed", "finished"]


def test_a_campaign_that_is_made_larger_takes_stopped_trials_up_again(tmp_path):
    judge, _ = judge_of(tmp_path, scheduler="asha", grace_epochs=1, trials=2)
    for number in (0, 1):
        judge.next_assignment()
        report(judge, number, 1, 0.1 + number / 10)
        judge.end_leg(number)
    while (leg := judge.next_assignment()) is not None:
        for epoch in range(2, leg.until + 1):
            report(judge, leg.number, epoch, 0.2 + epoch / 100)
        judge.end_leg(leg.number)
    records = judge.close()
    assert [record.status for record in records] == ["stopped", "finished"]
    assert records[0].reason == "epoch 1: 0.1000 is 2nd of 2 trials; the best half have 0.2000 or more"
    larger, _ = judge_of(tmp_path, scheduler="asha", grace_epochs=1, trials=3)
    assert larger.record(0).status == "paused" and not larger.is_over()


def test_a_campaign_that_is_only_shown_again_takes_no_time(tmp_path):
    judge, _ = judge_of(tmp_path, scheduler="asha", grace_epochs=1)
    while (leg := judge.next_assignment()) is not None:
        for epoch in range(1, leg.until + 1):
            report(judge, leg.number, epoch, leg.number + epoch / 10)
        judge.end_leg(leg.number)
    judge.close()
    again, _ = judge_of(tmp_path, scheduler="asha", grace_epochs=1)
    assert again.is_over() and [record.status for record in again.close()] == ["stopped", "finished"]
    clock = read_json(str(tmp_path / "campaign" / "clock.json"))
    assert 0 < judge.seconds() == again.seconds() == clock["seconds"]


def test_no_trial_starts_when_the_time_is_up_that_of_earlier_parts_included(tmp_path):
    write_json_atomic(str(tmp_path / "campaign" / "clock.json"), {"seconds": 60.0})
    judge, _ = judge_of(tmp_path, time_budget_s=60.0)
    assert judge.next_assignment() is None and judge.is_over()


def test_a_disk_that_fills_up_ends_the_campaign_with_the_reason(tmp_path, monkeypatch):
    judge, _ = judge_of(tmp_path)
    judge.next_assignment()
    monkeypatch.setattr(judges, "write_json_atomic", full)
    report(judge, 0, 1, 0.1)
    judge.end_leg(0)
    assert judge.is_over()
    with pytest.raises(DiskFullError, match=r"The disk is full\."):
        judge.close()


def test_a_leg_that_cannot_be_written_down_is_handed_to_nobody(tmp_path, monkeypatch):
    judge, _ = judge_of(tmp_path)
    monkeypatch.setattr(Records, "save", full)
    assert judge.next_assignment() is None and judge.is_over()
    with pytest.raises(DiskFullError):
        judge.close()


def test_seconds_are_written_down_with_every_report(tmp_path):
    judge, _ = judge_of(tmp_path)
    judge.next_assignment()
    report(judge, 0, 1, 0.1)
    assert 0 < read_json(str(tmp_path / "campaign" / "clock.json"))["seconds"] <= judge.seconds()
