"""What goes wrong in training ends soon, in one clean sentence, and leaves nothing half-written."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import ray.cloudpickle
import ray.train
import yaml
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from llmrec_ray.artifact import Workspace
from llmrec_ray.cli.main import run
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.embed import embed
from llmrec_ray.errors import CorruptArtifactError, ModelSourceError, TrainingError
from llmrec_ray.model import TrainingModule, Windows
from llmrec_ray.train import TrainingInputs, run_training
from llmrec_ray.train.reports import Reports
from llmrec_ray.train.run_folder import begin_run, resume_run
from tests.boards import board_recipe
from tests.full_disk import fill, need_namespaces, try_on_small_disk
from tests.tiny_encoder import write_tiny_decoder
from tests.train_boards import ALONE, deterministic_recipe, inputs_of_board, train_here

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import tests
MOST_SECONDS = 60


@dataclass(frozen=True)
class FaultInOneWorker(TrainingInputs):
    """Inputs that make rank 1 fail while rank 0 waits for it: before the first step, or within one."""

    fault: Exception | None = None
    within_a_step: bool = False

    def windows(self, recipe) -> Windows:
        if ray.train.get_context().get_world_rank() == 1:
            if not self.within_a_step:
                raise self.fault
            TrainingModule.forward = self.fail
        return super().windows(recipe)

    def fail(self, *_: object) -> None:
        raise self.fault


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
], ids=["explained, before the first step", "unexpected, within a step"])
def test_an_error_in_one_worker_ends_all_while_another_waits_for_it(tmp_path, ray_session, fault, raised, said):
    explained = raised is ModelSourceError
    inputs = FaultInOneWorker(**vars(inputs_of_board()), fault=fault, within_a_step=not explained)
    started = time.monotonic()
    with pytest.raises(raised, match=said):
        run_training(deterministic_recipe(max_failures=3 if explained else 0), inputs, str(tmp_path / "run"))
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
        rf"DiskFullError: The checkpoint of step 12 could not be saved: {tmp_path}/\S+ has \d\.\d MB free, which was "
        r"not enough\. Last good checkpoint: step 7\. Make room there and go on with --resume, or point TMPDIR to a "
        r"larger disk\.", report["said"],
    )
    assert report["left"] == []


def test_a_folder_that_a_workers_machine_lacks_is_named_with_the_machine():
    with pytest.raises(TrainingError) as caught:
        Reports("/nowhere/run", ALONE, None).check_room(1)
    assert str(caught.value) == (
        f"There is no folder /nowhere/run on {platform.node()}, where a worker runs: set workspace to a folder or "
        "bucket that all machines share."
    )


def test_a_damaged_record_of_checkpoints_is_refused_before_resuming(tmp_path):
    begin_run(str(tmp_path / "run"), {"recipe": {}})
    record = tmp_path / "run" / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    record.write_text('{"ray_version": "2.60.0", "checkpoint_res')
    with pytest.raises(CorruptArtifactError) as caught:
        resume_run(str(tmp_path / "run"), {"recipe": {}}, deterministic_recipe())
    assert str(caught.value) == (
        f"{record}, the record of the run's checkpoints, is damaged: train anew without --resume."
    )


@pytest.mark.drill
def test_a_disk_that_fills_up_ends_training_with_its_checkpoints_whole(tmp_path):
    report = try_on_small_disk("train", tmp_path, size_kb=3000, timeout_s=200)
    assert re.fullmatch(
        rf"DiskFullError: The checkpoint of step 0 could not be saved: {tmp_path}/a has 0\.\d MB free, which needs "
        r"1\.\d MB\. Last good checkpoint: none\. Make room there and go on with --resume, or set workspace to a "
        r"larger disk\.", report["at once"],
    )
    for name, need in (("foreseen", r"which needs 1\.\d MB"), ("unforeseen", "which was not enough")):
        said = re.fullmatch(
            rf"DiskFullError: The checkpoint of step (\d+) could not be saved: {tmp_path}/{name} has 0\.\d MB free, "
            rf"{need}\. Last good checkpoint: step (\d+)\. Make room there and go on with --resume, or set workspace "
            r"to a larger disk\.", report[name],
        )
        assert said is not None, report[name]
        failed, kept = map(int, said.groups())
        assert (failed - kept, kept >= 10) == (5, True), "the disk was filled after step 10, while training went on"
        assert 1 <= len(report[f"{name} left"]) <= 2, "the best and the newest"
    whole = train_here(deterministic_recipe(sharding="none", num_workers=1, epochs=5, patience=9))
    assert report["losses"] == pytest.approx(whole, rel=1e-4)
    assert "Traceback" not in report["stderr"]


@pytest.fixture
def board_file(board_folder, tiny_encoder, tmp_path) -> Path:
    """The board's recipe as a file, with its Dataset ingested."""
    recipe = board_recipe(board_folder, encoder={"model": str(tiny_encoder)}, workspace=str(tmp_path / "work"))
    ingest(recipe, board_folder, Workspace(recipe.workspace), use_ray=False)
    path = tmp_path / "board.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return path


def train_elsewhere(board_file: Path, *overrides: str, mounting: str = "true") -> subprocess.CompletedProcess[str]:
    """`llmrec train` as a process of its own on the session's Ray, after a command in its own mount namespace."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "llmrec_ray", "train", "--config", str(board_file), *overrides]
    return subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f"{mounting} && exec {shlex.join(command)}"], check=False, text=True,
        capture_output=True, timeout=MOST_SECONDS, env={**os.environ, "RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.drill
def test_a_model_that_only_the_drivers_machine_has_is_one_line(board_file, tiny_encoder, tmp_path, ray_session):
    need_namespaces()
    models = tmp_path / "models"
    models.mkdir()
    there = f"mount -t tmpfs tmpfs '{models}' && cp -r '{tiny_encoder}' '{models}/tiny'"
    for overrides in ((), ("encoder.tuning=full",)):
        done = train_elsewhere(board_file, f"encoder.model={models}/tiny", *overrides, mounting=there)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1] == (
            f"llmrec train: There is no folder {models}/tiny, and it is not a Hugging Face name such as "
            "sentence-transformers/all-MiniLM-L6-v2: correct encoder.model."
        )
        embed(Dataset.open(Workspace(str(tmp_path / "work")).latest("dataset", made_by="ingest")).item_texts,
              board_recipe(tmp_path, encoder={"model": str(tiny_encoder)}).encoder, Workspace(str(tmp_path / "work")))


@pytest.mark.parametrize(("model", "said"), [
    ("/nowhere/model", "There is no folder /nowhere/model, and it is not a Hugging Face name such as"),
    ("nobody/nothing", "The model nobody/nothing could not be had. Tried from hub: "),
    ("file:///nowhere/bundle-1/encoder", "There is no artifact at file:///nowhere/bundle-1 (no manifest.json): check"),
])
def test_a_model_that_is_not_there_is_one_line(capsys, board_file, ray_session, model, said):
    assert run(["train", "--config", str(board_file), f"encoder.model={model}"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"llmrec train: {said}")


def test_a_tokenizer_of_another_model_is_one_line(capsys, board_file, tiny_encoder, tmp_path, ray_session):
    write_tiny_decoder(tmp_path / "other", "llama")
    shutil.copytree(tiny_encoder, tmp_path / "mixed", ignore=shutil.ignore_patterns("tokenizer*"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tmp_path / "other" / name, tmp_path / "mixed" / name)
    status = run(["train", "--config", str(board_file), f"encoder.model={tmp_path / 'mixed'}"])
    shown = capsys.readouterr().err
    assert status == 1 and "Traceback" not in shown
    assert shown.splitlines()[-1].startswith("llmrec train: The tokenizer gives token ids up to ")
