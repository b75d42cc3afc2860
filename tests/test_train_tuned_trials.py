"""Training as trials of a campaign need it: in legs, from another run's checkpoint, judged with a partner signal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import ray
import ray.cloudpickle

from llmrec_ray.config import override_recipe
from llmrec_ray.errors import ArtifactMismatchError, CorruptArtifactError, TrainingError
from llmrec_ray.train import LateFusion, TrainingInputs, run_training
from llmrec_ray.train.checkpoint import load_state
from llmrec_ray.train.loop import train_epochs
from llmrec_ray.train.progress import progress_bar
from tests.train_boards import ALONE, Recorder, deterministic_recipe, inputs_of_board, train_here

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import tests
SAME = 2e-5


def alone(**train: object):
    return deterministic_recipe(sharding="none", num_workers=1, **train)


def until(last: int) -> Callable[[int], bool]:
    return lambda epoch: epoch >= last


def with_partner(inputs: TrainingInputs) -> TrainingInputs:
    """A partner for every second user, that alone is right for a few of them."""
    users = np.arange(0, len(inputs.targets), 2)
    scores = np.random.default_rng(0).normal(size=(len(users), inputs.n_items)).astype(np.float32)
    scores[:4, inputs.targets[users[:4]]] = 5.0
    return replace(inputs, late=LateFusion(users, scores), selection="fused_hr@10")


def test_a_run_goes_on_leg_by_leg_and_is_over_in_between(tmp_path, ray_session):
    recipe, run = alone(epochs=4, patience=9), str(tmp_path / "run")
    inputs = with_partner(inputs_of_board())
    shared = ray.put(inputs)
    first = run_training(recipe, inputs, run, inputs_ref=shared, verdict=until(2))
    assert [epoch["epoch"] for epoch in first.epochs] == [1, 2]
    assert first.best["fused_hr@10"] == max(epoch["fused_hr@10"] for epoch in first.epochs)

    needs_no_workers = override_recipe(recipe, ["train.num_workers=16", "train.sharding=ddp"])
    elsewhere = inputs_of_board()
    (tmp_path / "run" / "stopped.json").unlink()  # as when the driver is killed before it writes it
    for inputs_now, verdict in ((inputs, until(2)), (elsewhere, None)):
        again = run_training(needs_no_workers, inputs_now, run, resume=True, verdict=verdict)
        assert (again.epochs, again.best_epoch) == (first.epochs, first.best_epoch)

    with pytest.raises(ArtifactMismatchError, match=r"cannot be resumed, since selection changed: "):
        run_training(recipe, elsewhere, run, resume=True, verdict=until(4))
    last = run_training(recipe, inputs, run, resume=True, inputs_ref=shared, verdict=until(4))
    assert [epoch["loss"] for epoch in last.epochs] == pytest.approx(train_here(recipe), rel=SAME)
    other_fusion = override_recipe(recipe, ["fusion.mode=feature"])
    assert run_training(other_fusion, elsewhere, run, resume=True).epochs == last.epochs


def test_a_run_begins_where_another_one_was_with_settings_of_its_own(tmp_path, ray_session):
    recipe, inputs = alone(epochs=3, patience=9), inputs_of_board()
    donor = run_training(recipe, inputs, str(tmp_path / "donor"), keep_all=True)
    kept = {load_state(folder).epoch: folder for folder in (tmp_path / "donor").glob("checkpoint_2*")}
    assert sorted(kept) == [1, 2, 3]
    same = run_training(recipe, inputs, str(tmp_path / "same"), start_from=str(kept[2]))
    assert [(epoch["epoch"], epoch["step"]) for epoch in same.epochs] == [(3, 15)]
    assert same.epochs[0]["loss"] == pytest.approx(donor.epochs[2]["loss"], rel=SAME)
    assert same.best_epoch == 3, "what the other run measured is not its own"
    again = run_training(recipe, inputs, str(tmp_path / "same"), resume=True)
    assert again.epochs == same.epochs, "a run that is over gives what it gave, wherever it began"


def test_what_is_taken_over_is_the_state_and_not_the_settings(tmp_path):
    donor, taker = alone(epochs=3), alone(epochs=3, learning_rate=0.002, batch_size=8, weight_decay=0.5)
    train_here(donor, tmp_path)
    recorder = Recorder(tmp_path / "taker")
    state = train_epochs(taker, inputs_of_board(), ALONE, recorder, tmp_path / "5", of_another_run=True)
    assert [epoch["epoch"] for epoch in state.epochs] == [2, 3] and state.stopping.best_epoch in {2, 3}
    assert state.step == 30, "as far into the schedule as the other run, in steps of its own"


def test_a_run_that_shows_nothing_warns_of_failures_all_the_same_and_needs_no_ray(caplog):
    with progress_bar(3, "ndcg@10", shown=False) as reporter:
        reporter.say("training 9 parameters")
        reporter.after_report(None, [{"epoch": 1}], None)
        reporter.after_exception(None, {0: TrainingError("The loss was not finite.")})
        reporter.after_exception(None, {1: RuntimeError("Connection closed by peer")})
    assert caplog.messages == ["Training workers failed: {1: 'Connection closed by peer'}"]


def test_checkpoints_that_were_removed_are_named(tmp_path, ray_session):
    recipe, run = alone(epochs=1), tmp_path / "run"
    run_training(recipe, inputs_of_board(), str(run))
    [folder] = run.glob("checkpoint_2*")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(CorruptArtifactError) as caught:
        run_training(recipe, inputs_of_board(), str(run), resume=True)
    message = str(caught.value)
    assert message.startswith(f"The checkpoints that {run}/checkpoint_manager_snapshot.json names cannot be used (")
    assert folder.name in message and message.endswith("): train anew without --resume.")
