"""What goes wrong in training ends soon, in one clean sentence, and leaves nothing half-written."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray.cloudpickle
import ray.train

from llmrec_ray.errors import CorruptArtifactError, ModelSourceError, TrainingError
from llmrec_ray.model import Windows
from llmrec_ray.train import TrainingInputs, run_training
from tests.full_disk import fill, try_on_small_disk
from tests.train_boards import deterministic_recipe, inputs_of_board, train_here

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import tests
MOST_SECONDS = 60


@dataclass(frozen=True)
class FaultInOneWorker(TrainingInputs):
    """Inputs that only rank 1 cannot read, while rank 0 waits for it."""

    fault: Exception | None = None

    def windows(self, recipe) -> Windows:
        if ray.train.get_context().get_world_rank() == 1:
            raise self.fault
        return super().windows(recipe)


@dataclass(frozen=True)
class BlindToFreeSpace(TrainingInputs):
    """Inputs whose workers do not look for room before they write, as when another program takes it meanwhile."""

    def windows(self, recipe) -> Windows:
        from llmrec_ray.train.reports import Reports

        Reports.check_room = lambda *_: None
        return super().windows(recipe)


class FillAfter(ray.train.UserCallback):
    """Takes all room of a disk after so many epochs."""

    def __init__(self, epochs: int, disk: Path) -> None:
        self.epochs, self.disk = epochs, disk

    def after_report(self, run_context, metrics, checkpoint) -> None:
        if metrics[0].get("epoch") == self.epochs:
            fill(self.disk)


@pytest.mark.parametrize(("fault", "raised", "said"), [
    (ModelSourceError("There is no folder /models/e5."), ModelSourceError, r"^There is no folder /models/e5\.$"),
    (ZeroDivisionError("division by zero"), TrainingError,
     r"^Training failed after 0 restarts \(train\.max_failures\): worker 1: ZeroDivisionError: division by zero\. "
     r"What was done is kept in .*/run: go on with --resume\.$"),
], ids=["explained", "unexpected"])
def test_an_error_in_one_worker_ends_all_while_another_waits_for_it(tmp_path, ray_session, fault, raised, said):
    failures = 3 if raised is ModelSourceError else 0
    started = time.monotonic()
    with pytest.raises(raised, match=said):
        run_training(deterministic_recipe(max_failures=failures),
                     FaultInOneWorker(**vars(inputs_of_board()), fault=fault), str(tmp_path / "run"))
    assert time.monotonic() - started < MOST_SECONDS


def test_artifacts_on_a_full_disk_are_refused_by_folder_and_leave_nothing(tmp_path):
    report = try_on_small_disk("save_artifacts", tmp_path, size_kb=1000)
    for name in ("polars", "safetensors", "python"):
        assert re.fullmatch(
            rf"DiskFullError: The bundle could not be saved, since the disk of {tmp_path}/bundles is full \(\d\.\d MB "
            r"are free\): make room there, or set workspace to a larger disk, and run the same command again\.",
            report["said"][name],
        ), name
    assert report["said"]["pointer"].startswith(
        f"DiskFullError: bundle.json could not be saved, since the disk of {tmp_path}/latest is full (0.0 MB are free)"
    )
    assert report["left"] == [] and report["after"] == ["filler", "latest/bundle.json"]
    assert report["pointer"] == {"uri": "old"}, "the old pointer stays"


def test_a_workers_own_disk_that_is_full_is_named_with_the_last_good_checkpoint(tmp_path):
    report = try_on_small_disk("save_shard", tmp_path, size_kb=1000)
    assert re.fullmatch(
        rf"TrainingError: The checkpoint of step 12 could not be saved: {tmp_path}/\S+ has \d\.\d MB free, which was "
        r"not enough\. Last good checkpoint: step 7\. Make room there and go on with --resume, or point TMPDIR to a "
        r"larger disk\.", report["said"],
    )
    assert report["left"] == []


def test_a_damaged_record_of_checkpoints_is_refused_before_resuming(tmp_path, ray_session):
    recipe, run = deterministic_recipe(sharding="none", num_workers=1, epochs=1), tmp_path / "run"
    run_training(recipe, inputs_of_board(), str(run))
    record = run / "checkpoint_manager_snapshot.json"
    record.write_text(record.read_text()[:50])
    with pytest.raises(CorruptArtifactError) as caught:
        run_training(recipe, inputs_of_board(), str(run), resume=True)
    assert str(caught.value) == (
        f"{record}, the record of the run's checkpoints, is damaged: train anew without --resume."
    )


@pytest.mark.drill
def test_a_disk_that_fills_up_ends_training_with_its_checkpoints_whole(tmp_path):
    report = try_on_small_disk("train", tmp_path, size_kb=3000, timeout_s=200)
    assert re.fullmatch(
        rf"TrainingError: The checkpoint of step 0 could not be saved: {tmp_path}/a has 0\.\d MB free, which needs "
        r"1\.\d MB\. Last good checkpoint: none\. Make room there and go on with --resume, or set workspace to a "
        r"larger disk\.", report["at once"],
    )
    for name, need in (("foreseen", r"which needs 1\.\d MB"), ("unforeseen", "which was not enough")):
        assert re.fullmatch(
            rf"TrainingError: The checkpoint of step 15 could not be saved: {tmp_path}/{name} has 0\.0 MB free, "
            rf"{need}\. Last good checkpoint: step 10\. Make room there and go on with --resume, or set workspace to a "
            r"larger disk\.", report[name],
        ), report[name]
        assert 1 <= len(report[f"{name} left"]) <= 2, "the best and the newest"
    whole = train_here(deterministic_recipe(sharding="none", num_workers=1, epochs=5, patience=9))
    assert report["losses"] == pytest.approx(whole, rel=2e-5)
    assert "Traceback" not in report["stderr"]
