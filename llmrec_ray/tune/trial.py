"""What runs inside one Ray Tune trial: one leg of a trial, a Ray Train run that reports to the judge and to Tune.

It keeps nothing. A leg that is run again, after whatever was killed, goes on from the newest checkpoint of its folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import ray
import ray.train
from ray.actor import ActorHandle
from ray.tune.integration.ray_train import TuneReportCallback

from llmrec_ray.config import Recipe, with_settings
from llmrec_ray.errors import ClusterError, DiskFullError, LlmrecError, OutOfMemoryError
from llmrec_ray.storage import read_json
from llmrec_ray.train import TrainedModel, open_start, run_training, smaller, with_encoder_of
from llmrec_ray.tune.records import TrialRecord
from llmrec_ray.tune.room import trials_per_machine

__all__ = ["has_begun", "in_a_line", "run_folder", "run_leg", "trial_recipe", "with_late_fusion"]

logger = logging.getLogger(__name__)

LEG_SETTINGS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""It would be one more process to start in every leg, to tell workers that their machine will go: a leg goes on from
its last checkpoint anyway."""


def run_leg(
    config: Mapping[str, Any], *, recipe_json: str, root: str, data_id: str, judge: ActorHandle, shared: ActorHandle
) -> None:
    """The function that Ray Tune calls. config: `trial`, `until`, and the settings, which are shown by Tune.

    A trial that fails is told to the judge with its reason and ends like any other, so that the campaign goes on. What
    would meet every other trial too, a full disk or too small a cluster, ends the campaign instead.
    """
    for name, value in LEG_SETTINGS.items():
        os.environ.setdefault(name, value)
    number = int(config["trial"])
    record: TrialRecord = ray.get(judge.record.remote(number))
    if record.status != "running" or record.until != config["until"]:
        return  # a process that was lost after it had told the judge
    leg = _Leg(Recipe.model_validate_json(recipe_json), root, data_id, judge, shared, record)
    try:
        leg.run()
    except (LlmrecError, ray.exceptions.RayTaskError) as error:
        _tell(judge, number, _told_in_a_task(error))
    else:
        ray.get(judge.end_leg.remote(number))


def trial_recipe(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe that a trial trains: all its epochs, since only the schedule ends it early; and late fusion, since the
    other modes are fitted to what was trained.

    Raises ConfigError for settings that do not go together.
    """
    epochs = recipe.tune.epochs or recipe.train.epochs
    changed = with_settings(recipe, settings)
    train = changed.train.model_copy(update={"epochs": epochs, "patience": epochs, "checkpoint_steps": None})
    return with_late_fusion(changed.model_copy(update={"train": train}))


def with_late_fusion(recipe: Recipe) -> Recipe:
    """Which takes no training of its own."""
    fusion = recipe.fusion.model_copy(update={"mode": "late", "cascade": None})
    return recipe.model_copy(update={"fusion": fusion})


def run_folder(root: str, record: TrialRecord, epoch: int) -> str:
    """Where the checkpoint of a trial's epoch is: it has a folder more each time it takes over another's weights."""
    part = sum(part.after_epoch < epoch for part in record.parts)
    return f"{root}/trials/{record.number:05d}{f'-{part}' if part else ''}"


def has_begun(folder: str) -> bool:
    """Whether there is a training run in a folder that can be resumed."""
    try:
        read_json(f"{folder}/run.json")
    except FileNotFoundError:
        return False
    return True


def in_a_line(error: BaseException) -> str:
    """The last line of an error, which says what happened; of one that is not meant for people, after its name."""
    lines = str(error).strip().splitlines()
    return lines[-1] if isinstance(error, LlmrecError) and lines else f"{type(error).__name__}: {(lines or [''])[-1]}"


@dataclass(frozen=True)
class _Leg:
    recipe: Recipe
    root: str
    data_id: str
    judge: ActorHandle
    shared: ActorHandle
    record: TrialRecord

    def run(self) -> None:
        """Train to the leg's last epoch; once more in smaller pieces when memory was not enough."""
        recipe = trial_recipe(self.recipe, self.record.settings_at(self.record.until))
        if self.record.retried is not None:
            recipe = smaller(recipe) or recipe
        try:
            self._train(recipe)
        except OutOfMemoryError as error:
            less = smaller(recipe)
            if self.record.retried is not None or less is None:
                raise
            ray.get(self.judge.retry.remote(self.record.number, _without_resume(in_a_line(error))))
            self._train(less)

    def _train(self, recipe: Recipe) -> None:
        [inputs_ref] = ray.get(self.shared.get.remote(recipe.model_dump_json()))
        folder = run_folder(self.root, self.record, self.record.until)
        part = self.record.parts[-1] if self.record.parts else None
        trained = run_training(
            with_encoder_of(recipe, open_start(recipe)), ray.get(inputs_ref), folder, data_id=self.data_id,
            resume=has_begun(folder), inputs_ref=inputs_ref, verdict=_Until(self.record.until), show_progress=False,
            callbacks=[_ToJudge(self.judge, self.record.number, folder), _ToTune()],
            neighbours=trials_per_machine(self.recipe),
            start_from=None if part is None else part.checkpoint, keep_all=self.recipe.tune.scheduler == "pbt",
        )
        self._tell_what_was_lost(trained, folder)

    def _tell_what_was_lost(self, trained: TrainedModel, folder: str) -> None:
        """Ray Train keeps a checkpoint before it calls `_ToJudge`: whoever was killed in between has told nobody."""
        number = self.record.number
        told = {entry["epoch"] for entry in ray.get(self.judge.record.remote(number)).epochs}
        lost = min((entry["epoch"] for entry in trained.epochs if entry["epoch"] not in told), default=None)
        for entry in trained.epochs:
            if lost is not None and entry["epoch"] >= lost:
                name = trained.kept.get(entry["epoch"])
                ray.get(self.judge.report.remote(number, entry, None if name is None else f"{folder}/{name}"))


@dataclass(frozen=True)
class _Until:
    """The verdict that ends a leg."""

    epochs: int

    def __call__(self, epoch: int) -> bool:
        return epoch >= self.epochs


@dataclass(frozen=True)
class _ToJudge(ray.train.UserCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller, which waits, so that the judge knows of an epoch before a leg can end."""

    judge: ActorHandle
    number: int
    folder: str

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """An epoch, not a checkpoint within one; Ray's own path of a checkpoint does not say in which store it is."""
        if "epoch" in metrics[0]:
            uri = None if checkpoint is None else f"{self.folder}/{PurePosixPath(checkpoint.path).name}"
            ray.get(self.judge.report.remote(self.number, metrics[0], uri))


class _ToTune(TuneReportCallback):  # type: ignore[misc]
    """Only what Tune can show."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Numbers of an epoch."""
        if "epoch" in metrics[0]:
            numbers = {name: value for name, value in metrics[0].items() if isinstance(value, int | float)}
            super().after_report(run_context, [numbers], None)


def _tell(judge: ActorHandle, number: int, error: Exception) -> None:
    """That a leg ended with an error."""
    if isinstance(error, DiskFullError | ClusterError):
        ray.get(judge.stop.remote(number, error))
    else:
        ray.get(judge.fail.remote(number, _without_resume(in_a_line(error))))


def _without_resume(said: str) -> str:
    """Without the remedy that speaks of `train --resume`, as errors of training have it after a colon or as a sentence:
    a campaign does not take a failed trial up again, and one that is retried goes on by itself."""
    before, resume, after = said.partition("--resume")
    place = max(before.rfind(": "), before.rfind(". "))
    return f"{before[:place]}.{after.partition('.')[2]}" if resume and place >= 0 else said


def _told_in_a_task(error: Exception) -> Exception:
    """The error itself, where Ray's comes with the traceback of another process."""
    while isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    return error
