"""Training through real Ray Train workers: resuming, trained encoder layers, and what goes wrong."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from llmrec_ray.errors import ArtifactMismatchError, ArtifactNotFoundError, ClusterError, TrainingError
from llmrec_ray.model.encoder import TextEncoder
from llmrec_ray.signals import center, to_text_space
from llmrec_ray.train import run_training
from llmrec_ray.train.checkpoint import load_weights
from llmrec_ray.train.run_folder import begin_run, resume_run
from tests.boards import board_recipe
from tests.train_boards import (
    Job,
    board_texts,
    deterministic_recipe,
    inputs_of_board,
    inputs_with_texts,
    train_here,
    train_in_processes,
)

pytestmark = pytest.mark.usefixtures("ray_session")


def test_two_zero2_workers_learn_the_board_and_keep_the_best_weights(tmp_path):
    recipe = board_recipe(Path("/nowhere"), train={"epochs": 10, "batch_size": 8})
    trained = run_training(recipe, inputs_of_board(), str(tmp_path / "run"))
    scores = [epoch["ndcg@10"] for epoch in trained.epochs]
    assert trained.best_epoch == int(np.argmax(scores)) + 1 and max(scores) > 0.8
    assert len(trained.epochs) == 10 and trained.encoder_state == {}
    kept = sorted((tmp_path / "run").glob("checkpoint_2*"))
    assert 1 <= len(kept) <= 2, "the best and the newest"
    assert any(_holds(load_weights(folder), trained.model_state) for folder in kept)


def test_a_stopped_run_resumes_with_one_worker_where_two_began(tmp_path):
    whole = train_here(deterministic_recipe(sharding="none", num_workers=1, epochs=4))
    run = str(tmp_path / "run")
    stop = _StopAfter(run, checkpoints=2)
    with stop, pytest.raises(TrainingError, match=r"Training failed after 0 restarts .* go on with --resume"):
        run_training(deterministic_recipe(sharding="zero2", epochs=4, max_failures=0, patience=9),
                     inputs_of_board(), run)
    one = deterministic_recipe(sharding="none", num_workers=1, epochs=4)
    trained = run_training(one, inputs_of_board(), run, resume=True)
    assert [epoch["loss"] for epoch in trained.epochs] == pytest.approx(whole, rel=2e-5)
    again = run_training(one, inputs_of_board(), run, resume=True)
    assert (again.epochs, again.best_epoch) == (trained.epochs, trained.best_epoch), "it was finished"


def test_ctrl_c_stops_training_as_an_interrupt_and_keeps_its_meaning(tmp_path, caplog):
    recipe = deterministic_recipe(sharding="none", num_workers=1, epochs=200, patience=200)
    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=_interrupt_after_a_checkpoint, args=(tmp_path / "run",), daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_training(recipe, inputs_of_board(), str(tmp_path / "run"))
    assert signal.getsignal(signal.SIGINT) is before
    assert f"--resume goes on from the last checkpoint in {tmp_path / 'run'}, if there is one." in caplog.text
    assert list((tmp_path / "run").glob("checkpoint_2*"))


def test_top_layers_of_the_encoder_train_under_zero2(tmp_path, tiny_encoder):
    recipe = board_recipe(
        Path("/nowhere"), train={"epochs": 2},
        encoder={"model": str(tiny_encoder), "tuning": "top_layers", "top_layers": 1, "learning_rate": 1e-3},
    )
    encoder = TextEncoder.load(tiny_encoder, recipe.encoder)
    raw = encoder.encode(board_texts())
    middle = center(raw)
    inputs = inputs_with_texts(inputs_of_board(), to_text_space(raw, middle), middle)
    trained = run_training(recipe, inputs, str(tmp_path / "run"))
    before = encoder.backbone.state_dict()
    after = trained.encoder_state
    assert after and all(name.startswith("encoder.layer.1.") for name in after)
    assert any(not before[name].equal(value) for name, value in after.items())
    assert [epoch["epoch"] for epoch in trained.epochs] == [1, 2]


def test_a_loss_that_is_not_finite_is_reported_without_a_restart(tmp_path):
    recipe = deterministic_recipe(sharding="none", num_workers=1, learning_rate=1e30, gradient_clip=1e30)
    with pytest.raises(TrainingError, match=r"^The loss was not finite at step 2 \(epoch 1\), in a batch with"):
        run_training(recipe, inputs_of_board(), str(tmp_path / "run"))


def test_resuming_needs_a_run_and_the_same_run(tmp_path):
    recipe, inputs, run = deterministic_recipe(), inputs_of_board(), tmp_path / "run"
    with pytest.raises(ArtifactNotFoundError) as nothing:
        run_training(recipe, inputs, str(run), resume=True)
    assert str(nothing.value) == (
        f"There is no training run to resume in {run}: run `llmrec train` without --resume."
    )
    run.mkdir()
    (run / "run.json").write_text('{"recipe": {"seed": 1}, "dataset": "", "text_vectors": ""}')
    with pytest.raises(ArtifactMismatchError) as other:
        run_training(recipe, inputs, str(run), resume=True)
    assert "cannot be resumed, since " in str(other.value) and "seed" in str(other.value)
    assert str(other.value).endswith("data it was started with, or train anew without --resume.")


def test_a_run_without_a_complete_checkpoint_says_that_it_begins_anew(tmp_path, caplog):
    begin_run(str(tmp_path / "run"), {"recipe": {"seed": 0}, "selection": "ndcg@10"})
    told = {"recipe": {"seed": 0}, "selection": "ndcg@10"}
    assert resume_run(str(tmp_path / "run"), told, deterministic_recipe()) is None
    assert caplog.messages == [
        f"The run in {tmp_path / 'run'} was stopped before its first checkpoint was complete: it begins anew."
    ]


def test_a_cluster_that_is_too_small_is_refused_before_waiting_for_it(tmp_path):
    recipe = deterministic_recipe(num_workers=64, batch_size=64)
    with pytest.raises(ClusterError) as caught:
        run_training(recipe, inputs_of_board(), str(tmp_path / "run"))
    assert str(caught.value) == (
        "train.num_workers is 64, which needs 64 CPUs, but Ray has 8: set train.num_workers lower, "
        "or join a larger cluster."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.drill
@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_a_worker_killed_within_an_epoch_costs_the_steps_since_the_last_checkpoint(sharding, tmp_path, caplog):
    caplog.set_level("INFO")
    recipe = deterministic_recipe(epochs=4, patience=4, checkpoint_steps=1, sharding=sharding)
    [whole] = train_in_processes(2, [Job(recipe)])
    stop = _StopAfter(str(tmp_path / "run"), checkpoints=7)
    with stop:
        trained = run_training(recipe, inputs_of_board(), str(tmp_path / "run"))
    last_of_epoch = [loss for step, loss in enumerate(whole, start=1) if step % 5 == 0]
    assert [epoch["loss"] for epoch in trained.epochs] == pytest.approx(last_of_epoch, rel=2e-5)
    [resumed] = [int(step) for step in re.findall(r"from step (\d+)", caplog.text)]
    assert resumed >= 4, "seven checkpoints had been seen; Ray Train commits the newest few a poll later"


def _holds(weights: dict[str, torch.Tensor], model_state: dict[str, torch.Tensor]) -> bool:
    return all(weights[f"model.{name}"].equal(value) for name, value in model_state.items())


def _interrupt_after_a_checkpoint(run: Path) -> None:
    while not list(run.glob("checkpoint_2*")):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


class _StopAfter:
    """kill -9 of one training worker once so many epochs are reported."""

    def __init__(self, run: str, *, checkpoints: int) -> None:
        self._run, self._checkpoints = Path(run), checkpoints
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.killed: int | None = None

    def __enter__(self) -> _StopAfter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(timeout=60)
        assert self.killed is not None, "no worker was killed"

    def _watch(self) -> None:
        seen: set[str] = set()
        while len(seen) < self._checkpoints:
            seen |= {folder.name for folder in self._run.glob("checkpoint_2*")}
            time.sleep(0.01)
        victim = next(p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in _command(p))
        self.killed = victim.pid
        os.kill(victim.pid, signal.SIGKILL)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
