"""Recipes -> trained anew with given seeds, several at once, each measured by the served pipeline on validation.

Each run has a workspace `<folder>/<arm>-<seed>` and, once it is finished, a JSON record beside it. So what was finished
is not run again, whoever is killed, and a training that had begun goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.exceptions
from pydantic import BaseModel, ConfigDict

from llmrec_ray.artifact import Artifact, Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import FusionMode, Recipe, with_settings
from llmrec_ray.data import Dataset
from llmrec_ray.errors import (
    ArtifactMismatchError,
    ClusterError,
    ConfigError,
    CorruptArtifactError,
    DataError,
    DiskFullError,
    OutOfMemoryError,
    TrainingError,
)
from llmrec_ray.evaluate import validation_value
from llmrec_ray.policy import mode_values
from llmrec_ray.storage import read_json
from llmrec_ray.train import fit_modes, open_start, share_cores, smaller, train_bundle
from llmrec_ray.tune.room import trials_per_machine
from llmrec_ray.tune.shared import READ, text_of
from llmrec_ray.tune.trial import has_begun, in_a_line, with_late_fusion
from llmrec_ray.types import FloatArray

__all__ = ["FreshJob", "FreshRun", "Texts", "bundle_uri", "finished", "identity_of", "recorded", "run_jobs"]

WITHOUT_EFFECT: dict[str, Any] = {
    **dict.fromkeys(("name", "workspace", "seed", "num_cpus", "index", "tune", "serve"), True),
    "train": {
        "num_workers", "min_workers", "use_gpu", "max_failures", "sharding", "offload", "accumulation_steps",
    },
    "encoder": {"num_actors", "max_batch_tokens"}, "evaluate": {"batch_users"},
}
"""Parts of a recipe that make no other winner: names, the seed, on how many machines it is trained, in what pieces."""
HASH_LENGTH = 16
TRAINED: tuple[FusionMode, ...] = ("gated", "learned")
"""Modes that are fitted to a second training, see `train.fusing`."""


class FreshRun(BaseModel):
    """One training with a fresh seed: its validation value and Bundle, or the reason why there is none.

    identity: see `identity_of`. value: with the recipe's own fusion mode, or the best of `modes`, which are the values
    of those that were asked for; left_out: those that have none, and why. bundle: id of the Bundle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    arm: str
    seed: int
    identity: str
    value: float | None = None
    modes: dict[FusionMode, float] = {}
    left_out: dict[FusionMode, str] = {}
    bundle: str | None = None
    reason: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class FreshJob:
    """One training.

    arm: what is trained, in names of files. recipe: with the seed. folder: of its workspace and record. run_dir: where
    it keeps its checkpoints. modes: fusion modes that are fitted to what was trained, and measured instead of the
    recipe's own.
    """

    arm: str
    recipe: Recipe
    dataset_uri: str
    identity: str
    folder: str
    metric: str
    run_dir: str
    modes: tuple[FusionMode, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.recipe.seed}"

    @property
    def uri(self) -> str:
        """Its workspace; the record stands beside it."""
        return f"{self.folder}/{self.name}"


def identity_of(recipe: Recipe, dataset: Dataset, metric: str, modes: Sequence[FusionMode] = ()) -> str:
    """Hash of the recipe without WITHOUT_EFFECT, the Dataset and what is measured."""
    tree = recipe.model_dump(mode="json", exclude=WITHOUT_EFFECT)
    measured = [metric, *modes] if modes else metric
    return hashlib.sha256(json.dumps([tree, dataset.id, measured], sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]


def recorded(job: FreshJob) -> FreshRun | None:
    """What came of the same run before."""
    try:
        run = FreshRun.model_validate(read_json(f"{job.uri}.json"))
    except FileNotFoundError:
        return None
    return run if run.identity == job.identity else None


def finished(job: FreshJob) -> FreshRun | None:
    """The same, when it has a value."""
    run = recorded(job)
    return run if run is not None and run.value is not None else None


def bundle_uri(job: FreshJob, run: FreshRun) -> str:
    """Of what the job trained."""
    return f"{Workspace(job.uri).root('bundle')}/bundle-{run.bundle}"


class Texts:
    """Text vectors in the object store, by the encoder that makes them. workspace: has the cache."""

    def __init__(self, dataset: Dataset, workspace: Workspace) -> None:
        self._dataset, self._workspace, self._made = dataset, workspace, dict[str, ray.ObjectRef]()

    def of(self, recipe: Recipe) -> ray.ObjectRef:
        """Those that a recipe trains with."""
        key = recipe.model_dump_json(include={"encoder": READ["encoder"], "train": {"warm_start"}})
        if key not in self._made:
            raw = text_of(recipe, self._dataset, self._workspace, open_start(recipe))
            self._made[key] = ray.put(raw)
        return self._made[key]


def run_jobs(
    jobs: Sequence[FreshJob], texts: Texts, concurrent: int, *, judges: bool = False
) -> Generator[tuple[FreshJob, FreshRun]]:
    """Each job and what came of it, as they end, at most `concurrent` at once on the connected Ray; closed before, it
    cancels those that run.

    judges: whether something is decided by what comes of them, so that what says nothing of the recipe must not count
    as its failure: DiskFullError and ClusterError are raised then, the latter for processes that are lost again and
    again too.
    """
    waiting, running = [*jobs], dict[ray.ObjectRef, FreshJob]()
    task = ray.remote(num_cpus=0)(_train_and_measure)  # it only waits for its workers, which ask for CPUs of their own
    try:
        while waiting or running:
            while waiting and len(running) < max(concurrent, 1):
                job = waiting.pop(0)
                running[task.remote(job, texts.of(job.recipe))] = job
            [done], _ = ray.wait([*running])
            job = running.pop(done)
            yield job, _result(done, job, judges)
    finally:
        for unfinished in running:
            ray.cancel(unfinished)


def _result(done: ray.ObjectRef, job: FreshJob, judges: bool) -> FreshRun:
    try:
        run: FreshRun = ray.get(done)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        if judges and isinstance(cause, DiskFullError | ClusterError):
            raise cause from None
        if judges and not isinstance(error, ray.exceptions.RayTaskError):
            raise ClusterError(
                f"The process that trained {job.name} was lost again and again ({in_a_line(error)}): look what kills "
                "it, such as too little memory for trials at once."
            ) from None
        return FreshRun(arm=job.arm, seed=job.recipe.seed, identity=job.identity, reason=in_a_line(cause))
    return run


def _train_and_measure(job: FreshJob, raw_text: FloatArray | None) -> FreshRun:
    """What a Ray task runs, again when its process was lost."""
    started = time.monotonic()
    share_cores(trials_per_machine(job.recipe))  # fusion is fitted in this process, beside those of the other tasks
    dataset = Dataset.open(job.dataset_uri, verify=False)
    bundle = Bundle.open(_train(job, dataset, raw_text).uri, verify=False)
    modes, left_out = _values_of_modes(job, dataset, bundle) if job.modes else ({}, {})
    if job.modes and not modes:
        raise TrainingError(f"no fusion.mode could be measured: {'; '.join(left_out.values())}")
    value = max(modes.values()) if modes else validation_value(job.recipe, dataset, bundle, job.metric)
    return FreshRun(
        arm=job.arm, seed=job.recipe.seed, identity=job.identity, bundle=bundle.id, value=value, modes=modes,
        left_out=left_out, seconds=round(time.monotonic() - started, 1),
    )


def _values_of_modes(
    job: FreshJob, dataset: Dataset, bundle: Bundle
) -> tuple[dict[FusionMode, float], dict[FusionMode, str]]:
    """The values of those that go with the recipe and can be fitted, and why the others have none."""
    possible, left_out = list[FusionMode](), dict[FusionMode, str]()
    for mode in job.modes:
        try:
            with_settings(job.recipe, {"fusion.mode": mode})
        except ConfigError as error:
            left_out[mode] = in_a_line(error).strip()
        else:
            possible.append(mode)
    try:
        fitted = fit_modes(job.recipe, dataset, bundle, possible)
    except DataError as error:
        left_out |= {mode: in_a_line(error) for mode in possible if mode in TRAINED}
        fitted = fit_modes(job.recipe, dataset, bundle, [mode for mode in possible if mode not in TRAINED])
    fusions = {mode: each.fusion for mode, each in fitted.items()}
    return mode_values(job.recipe, dataset, bundle, fusions, metric=job.metric) if fusions else {}, left_out


def _train(job: FreshJob, dataset: Dataset, raw_text: FloatArray | None) -> Artifact:
    """As a trial is trained: once more in smaller pieces when memory was not enough."""
    recipe = with_late_fusion(job.recipe) if job.modes else job.recipe
    try:
        return _go_on_or_begin(job, recipe, dataset, raw_text)
    except OutOfMemoryError:
        if (less := smaller(recipe)) is None:
            raise
    return _go_on_or_begin(job, less, dataset, raw_text)


def _go_on_or_begin(job: FreshJob, recipe: Recipe, dataset: Dataset, raw_text: FloatArray | None) -> Artifact:
    """Anew when what was begun was another recipe, or is damaged."""
    train = partial(
        train_bundle, recipe, dataset, raw_text, Workspace(job.uri), start=open_start(recipe), run_dir=job.run_dir,
        show_progress=False, neighbours=trials_per_machine(recipe),
    )
    if has_begun(job.run_dir):
        with contextlib.suppress(ArtifactMismatchError, CorruptArtifactError):
            return train(resume=True)
    return train()
