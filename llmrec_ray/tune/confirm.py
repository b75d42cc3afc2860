"""Winner and recipe -> both trained again on seeds that the search has not seen, and the winner's one look at test.

Below `<root>/confirm` each run has a workspace and, once it is finished, a JSON record. So whoever is killed, what was
finished is not run again, and a training that had begun goes on.

    winner-101/, winner-101.json, recipe-101/, …    one training each; checkpoints go when all are finished, and
                                                    encoders take the room of one, see `links`
    test.json                                       which winner looked at the test split, see `look`
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import ray
import ray.exceptions
from pyarrow import fs as pafs
from pydantic import BaseModel, ConfigDict

from llmrec_ray.artifact import Artifact, Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ArtifactMismatchError, CorruptArtifactError, LlmrecError, OutOfMemoryError
from llmrec_ray.evaluate import validation_value
from llmrec_ray.storage import read_json, write_json_atomic
from llmrec_ray.train import open_start, share_cores, smaller, train_bundle
from llmrec_ray.tune.links import share_encoder
from llmrec_ray.tune.look import look_at_test
from llmrec_ray.tune.outcome import Confirmation
from llmrec_ray.tune.room import trials_per_machine
from llmrec_ray.tune.shared import text_of
from llmrec_ray.tune.trial import has_begun, in_a_line
from llmrec_ray.types import FloatArray

__all__ = ["FreshRun", "confirm"]

logger = logging.getLogger(__name__)

Arm: TypeAlias = Literal["winner", "recipe"]
WITHOUT_EFFECT: dict[str, Any] = {
    **dict.fromkeys(("name", "workspace", "seed", "num_cpus", "index", "tune", "serve"), True),
    "train": {
        "num_workers", "min_workers", "use_gpu", "max_failures", "sharding", "offload", "accumulation_steps",
    },
    "encoder": {"num_actors", "max_batch_tokens"}, "evaluate": {"batch_users"},
}
"""Parts of a recipe that make no other winner: names, the seed, on how many machines it is trained, in what pieces."""
HASH_LENGTH = 16


class FreshRun(BaseModel):
    """One training with a fresh seed: its validation value and Bundle, or the reason why there is none.

    identity: hash of the recipe without WITHOUT_EFFECT, the Dataset and the metric. bundle: id of the Bundle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    arm: Arm
    seed: int
    identity: str
    value: float | None = None
    bundle: str | None = None
    reason: str | None = None
    seconds: float = 0.0


def confirm(
    recipe: Recipe, best: Recipe, dataset: Dataset, workspace: Workspace, root: str, *, seeds: Sequence[int],
    metric: str, score_test: bool, concurrent: int,
) -> Confirmation:
    """Train `best` and `recipe` with every seed on the connected Ray, at most `concurrent` at once, and measure each by
    the served pipeline on validation; with `score_test` then the winner of the first seed once on test.

    workspace: has the cache of text vectors and the log of looks at test. root: folder or URI of the campaign. metric:
    `ndcg@10`, … A run that fails does not stop the others: it is named with its reason, and tried again by the next
    call. What winner and recipe have in common is trained once.
    """
    jobs = _plan(recipe, best, dataset, root, seeds, metric)
    runs = {job.name: run for job in jobs if (run := _finished(job)) is not None}
    _say_what_is_left(seeds, len(runs), len(jobs))
    texts = _Texts(dataset, workspace)
    for phase in _phases([job for job in jobs if job.name not in runs]):
        with contextlib.closing(_in_turn(phase, texts, concurrent)) as ended:
            for job, run in ended:
                write_json_atomic(f"{job.uri}.json", run.model_dump(mode="json"))
                if run.bundle is not None:
                    share_encoder(root, _bundle_uri(job, run))
                runs[job.name] = run
                logger.info("%s, seed %d: %s (%d of %d)", job.arm, run.seed, _said(run, metric), len(runs), len(jobs))
    if all(run.reason is None for run in runs.values()):
        _clear(jobs)
    confirmation = _confirmation([runs[job.name] for job in jobs])
    return _with_test(confirmation, jobs, runs, dataset, workspace) if score_test else confirmation


@dataclass(frozen=True)
class _Job:
    """One training: recipe has the seed, run_dir is where it keeps its checkpoints."""

    arm: Arm
    recipe: Recipe
    dataset_uri: str
    identity: str
    root: str
    metric: str
    run_dir: str

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.recipe.seed}"

    @property
    def uri(self) -> str:
        """Its workspace; the record stands beside it."""
        return f"{self.root}/confirm/{self.name}"


def _plan(
    recipe: Recipe, best: Recipe, dataset: Dataset, root: str, seeds: Sequence[int], metric: str
) -> list[_Job]:
    """Winner and recipe of one seed after the other; no recipe when it is the winner."""
    identities = {arm: _identity(each, dataset, metric) for arm, each in (("winner", best), ("recipe", recipe))}
    arms: dict[Arm, Recipe] = {"winner": best}
    if identities["recipe"] != identities["winner"]:
        arms["recipe"] = recipe
    trained_by: dict[Arm, Arm] = {"winner": "winner", "recipe": "winner" if _trains_alike(recipe, best) else "recipe"}
    return [
        _Job(
            arm, each.model_copy(update={"seed": seed}), dataset.uri, identities[arm], root, metric,
            run_dir=f"{root}/confirm/{trained_by[arm]}-{seed}/runs/train",
        )
        for seed in seeds for arm, each in arms.items()
    ]


def _say_what_is_left(seeds: Sequence[int], done: int, jobs: int) -> None:
    named = ", ".join(map(str, seeds))
    if done == jobs:
        logger.info("winner and recipe were trained again with the seeds %s before; that is shown again", named)
    else:
        logger.info("winner and recipe are trained again with the seeds %s, which the search has not seen (%d of %d "
                    "done)", named, done, jobs)


def _identity(recipe: Recipe, dataset: Dataset, metric: str) -> str:
    tree = recipe.model_dump(mode="json", exclude=WITHOUT_EFFECT)
    return hashlib.sha256(json.dumps([tree, dataset.id, metric], sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]


def _trains_alike(recipe: Recipe, best: Recipe) -> bool:
    """Whether they differ only in what is done with a trained model."""
    ours, theirs = (
        (each.model_dump(mode="json", include={"data", "encoder", "model", "train"}), each.fusion.item_vector)
        for each in (recipe, best)
    )
    return ours == theirs


def _finished(job: _Job) -> FreshRun | None:
    """The record of the same run, when it has a value."""
    try:
        run = FreshRun.model_validate(read_json(f"{job.uri}.json"))
    except FileNotFoundError:
        return None
    return run if run.identity == job.identity and run.value is not None else None


def _phases(jobs: list[_Job]) -> list[list[_Job]]:
    """Jobs that may run at once; those that take over what another trains come after it."""
    first = [job for job in jobs if job.run_dir.startswith(f"{job.uri}/")]
    return [first, [job for job in jobs if job not in first]]


def _in_turn(jobs: Sequence[_Job], texts: _Texts, concurrent: int) -> Generator[tuple[_Job, FreshRun]]:
    """Each job and what came of it, as they end; closed before, it cancels those that run."""
    waiting, running = [*jobs], dict[ray.ObjectRef, _Job]()
    task = ray.remote(num_cpus=0)(_train_and_measure)  # it only waits for its workers, which ask for CPUs of their own
    try:
        while waiting or running:
            while waiting and len(running) < max(concurrent, 1):
                job = waiting.pop(0)
                running[task.remote(job, texts.of(job.recipe))] = job
            [done], _ = ray.wait([*running])
            job = running.pop(done)
            yield job, _result(done, job)
    finally:
        for unfinished in running:
            ray.cancel(unfinished)


class _Texts:
    """Text vectors in the object store, by the encoder that makes them."""

    def __init__(self, dataset: Dataset, workspace: Workspace) -> None:
        self._dataset, self._workspace, self._made = dataset, workspace, dict[str, ray.ObjectRef]()

    def of(self, recipe: Recipe) -> ray.ObjectRef:
        key = recipe.model_dump_json(include={"encoder", "fusion", "train"})
        if key not in self._made:
            raw = text_of(recipe, self._dataset, self._workspace, open_start(recipe))
            self._made[key] = ray.put(raw)
        return self._made[key]


def _result(done: ray.ObjectRef, job: _Job) -> FreshRun:
    try:
        run: FreshRun = ray.get(done)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        return FreshRun(arm=job.arm, seed=job.recipe.seed, identity=job.identity, reason=in_a_line(cause))
    return run


def _train_and_measure(job: _Job, raw_text: FloatArray | None) -> FreshRun:
    """What a Ray task runs, again when its process was lost."""
    started = time.monotonic()
    share_cores(trials_per_machine(job.recipe))  # fusion is fitted in this process, beside those of the other tasks
    dataset = Dataset.open(job.dataset_uri, verify=False)
    bundle = Bundle.open(_train(job, dataset, raw_text).uri, verify=False)
    return FreshRun(
        arm=job.arm, seed=job.recipe.seed, identity=job.identity, bundle=bundle.id,
        value=validation_value(job.recipe, dataset, bundle, job.metric), seconds=round(time.monotonic() - started, 1),
    )


def _train(job: _Job, dataset: Dataset, raw_text: FloatArray | None) -> Artifact:
    """As a trial is trained: once more in smaller pieces when memory was not enough."""
    try:
        return _go_on_or_begin(job, job.recipe, dataset, raw_text)
    except OutOfMemoryError:
        if (less := smaller(job.recipe)) is None:
            raise
    return _go_on_or_begin(job, less, dataset, raw_text)


def _go_on_or_begin(job: _Job, recipe: Recipe, dataset: Dataset, raw_text: FloatArray | None) -> Artifact:
    """Anew when what was begun was another recipe, or is damaged."""
    train = partial(
        train_bundle, recipe, dataset, raw_text, Workspace(job.uri), start=open_start(recipe), run_dir=job.run_dir,
        show_progress=False, neighbours=trials_per_machine(recipe),
    )
    if has_begun(job.run_dir):
        with contextlib.suppress(ArtifactMismatchError, CorruptArtifactError):
            return train(resume=True)
    return train()


def _bundle_uri(job: _Job, run: FreshRun) -> str:
    return f"{Workspace(job.uri).root('bundle')}/bundle-{run.bundle}"


def _said(run: FreshRun, metric: str) -> str:
    return f"validation {metric} {run.value:.4f}" if run.value is not None else f"failed, {run.reason}"


def _clear(jobs: Sequence[_Job]) -> None:
    """Delete checkpoints, which nobody needs any more."""
    for job in jobs:
        if "://" not in job.run_dir:
            shutil.rmtree(job.run_dir, ignore_errors=True)
            continue
        filesystem, path = pafs.FileSystem.from_uri(job.run_dir)
        if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
            filesystem.delete_dir(path)


def _confirmation(runs: Sequence[FreshRun]) -> Confirmation:
    winner, recipe = (
        {run.seed: run.value for run in runs if run.arm == arm and run.value is not None}
        for arm in ("winner", "recipe")
    )
    same = all(run.arm == "winner" for run in runs)
    return Confirmation(
        winner, winner if same else recipe, same=same,
        failed={f"{run.arm}-{run.seed}": run.reason for run in runs if run.reason is not None},
    )


def _with_test(
    confirmation: Confirmation, jobs: Sequence[_Job], runs: Mapping[str, FreshRun], dataset: Dataset,
    workspace: Workspace,
) -> Confirmation:
    """By the first seed of which there is a winner."""
    trained = [job for job in jobs if job.arm == "winner" and runs[job.name].bundle is not None]
    if not trained:
        return confirmation
    job = trained[0]
    own = Workspace(job.uri)
    try:
        bundle = Bundle.open(_bundle_uri(job, runs[job.name]))
        look = look_at_test(job.recipe, dataset, bundle, own, job.metric, winner=job.identity, log=workspace)
    except LlmrecError as error:
        return replace(confirmation, failed=confirmation.failed | {"test": str(error)})
    return replace(confirmation, test=look.value, test_seed=look.seed, test_uri=look.uri, looks=look.looks)
