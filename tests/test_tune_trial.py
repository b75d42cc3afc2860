"""A leg of a trial, by a judge in this process and a training that is only told of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmrec_ray.errors import LlmrecError, TrainingError
from llmrec_ray.storage import write_json_atomic
from llmrec_ray.train import TrainedModel
from llmrec_ray.train.checkpoint import load_state
from llmrec_ray.train.failures import explain
from llmrec_ray.train.memory import explain_memory
from llmrec_ray.train.run_folder import resume_run
from llmrec_ray.tune import trial
from llmrec_ray.tune.judge import Judge
from tests.boards import board_recipe
from tests.test_tune_judge import judge_of, report
from tests.test_tune_schedule import METRIC


class Here:
    """An actor in this process."""

    def __init__(self, it: object) -> None:
        self._it = it

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self._it, name))


def trained_to(last: int) -> TrainedModel:
    """All epochs of a run, of which two checkpoints are kept."""
    epochs = [{"epoch": epoch, METRIC: epoch / 10, "loss": 1.0 / epoch, "epoch_s": 0.5} for epoch in range(1, last + 1)]
    return TrainedModel({}, {}, epochs, last, 1.0, {1: "checkpoint_1", last: f"checkpoint_{last}"})


@pytest.fixture
def run_leg(tmp_path, monkeypatch) -> Any:
    """Runs the first leg of a judge, with a training that is over."""
    def run(judge: Judge, folder: Path) -> None:
        trial.run_leg(
            {"trial": 0, "until": 4}, recipe_json=judge._plan.recipe.model_dump_json(), root=str(folder), data_id="",
            judge=Here(judge), shared=Here(SimpleNamespace(get=lambda recipe_json: [None])),
        )

    monkeypatch.setattr(trial.ray, "get", lambda answer: answer)
    monkeypatch.setattr(trial, "run_training", lambda *_, **__: trained_to(4))
    monkeypatch.setattr(trial, "trials_per_machine", lambda recipe: 1)
    monkeypatch.setattr(trial, "_ToTune", lambda: None)
    return run


@pytest.mark.parametrize("lost", [2, 4])
def test_an_epoch_that_was_kept_but_not_told_of_is_told_of_by_the_next_process(tmp_path, run_leg, lost):
    judge, _ = judge_of(tmp_path)
    judge.next_assignment()
    for epoch in {1, 2, 3, 4} - {lost}:
        report(judge, 0, epoch, epoch / 10)
    run_leg(judge, tmp_path)
    record = judge.record(0)
    assert (record.status, record.done) == ("finished", 4)
    assert [(entry["epoch"], entry[METRIC]) for entry in record.epochs] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert record.epochs[0]["checkpoint"] == "checkpoint_1"
    assert record.epochs[-1]["checkpoint"] == f"{tmp_path}/trials/00000/checkpoint_4"


def test_a_leg_that_was_told_of_in_full_is_told_of_once(tmp_path, run_leg):
    judge, _ = judge_of(tmp_path)
    judge.next_assignment()
    for epoch in range(1, 5):
        report(judge, 0, epoch, epoch / 10)
    run_leg(judge, tmp_path)
    assert [entry["checkpoint"] for entry in judge.record(0).epochs] == [f"checkpoint_{epoch}" for epoch in range(1, 5)]


def workers_failed(folder: Path) -> None:
    failed = SimpleNamespace(worker_failures={0: ValueError("It broke.")})
    raise explain(failed, f"{folder}/run", board_recipe(folder, train={"max_failures": 2}))


def had_no_memory(folder: Path) -> None:
    raise explain_memory(1, MemoryError("no more"), board_recipe(folder), f"{folder}/run")


def lost_its_state(folder: Path) -> None:
    load_state(folder / "checkpoint")


def is_another_run(folder: Path) -> None:
    write_json_atomic(f"{folder}/run/run.json", {"recipe": {"seed": 1}})
    resume_run(f"{folder}/run", {"recipe": {"seed": 2}}, board_recipe(folder))


def diverged(folder: Path) -> None:
    raise TrainingError("The loss was not finite at step 3; last good checkpoint: none. Lower train.learning_rate.")


@pytest.mark.parametrize(("failure", "said"), [
    (workers_failed, "2 restarts (train.max_failures): worker 0: ValueError: It broke.. What was done is kept in "
                     "{folder}/run."),
    (had_no_memory, "or use machines with more memory. What was done is kept in {folder}/run."),
    (lost_its_state, "No such file or directory: '{folder}/checkpoint/state.json')."),
    (is_another_run, "The run in {folder}/run cannot be resumed, since seed, selection changed."),
    (diverged, "last good checkpoint: none. Lower train.learning_rate."),
])
def test_a_failed_trial_tells_no_remedy_that_it_does_not_have(tmp_path, monkeypatch, run_leg, failure, said):
    with pytest.raises(LlmrecError) as raised:
        failure(tmp_path)
    assert ("--resume" in str(raised.value)) is (failure is not diverged)
    judge, _ = judge_of(tmp_path)
    judge.next_assignment()
    monkeypatch.setattr(trial, "run_training", lambda *_, **__: failure(tmp_path))
    run_leg(judge, tmp_path)
    record = judge.record(0)
    assert record.status == "failed" and "--resume" not in f"{record.reason} {record.retried}"
    assert record.reason.endswith(said.format(folder=tmp_path))
    assert (record.retried is not None) is (failure is had_no_memory)
