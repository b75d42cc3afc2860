"""Winner and recipe -> both trained again on seeds that the search has not seen, and the winner's one look at test.

Below `<root>/confirm` is what `fresh` keeps of each run, and what was seen of the test split:

    winner-101/, winner-101.json, recipe-101/, …    one training each; checkpoints go when all are finished, and
                                                    encoders take the room of one, see `links`
    test.json                                       which winner looked at the test split, see `look`
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.errors import LlmrecError
from llmrec_ray.storage import delete_folder, write_json_atomic
from llmrec_ray.tune.fresh import FreshJob, FreshRun, Texts, bundle_uri, finished, identity_of, run_jobs
from llmrec_ray.tune.links import share_encoder
from llmrec_ray.tune.look import look_at_test
from llmrec_ray.tune.outcome import Confirmation

__all__ = ["confirm"]

logger = logging.getLogger(__name__)

Arm: TypeAlias = Literal["winner", "recipe"]


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
    runs = {job.name: run for job in jobs if (run := finished(job)) is not None}
    _say_what_is_left(seeds, len(runs), len(jobs))
    texts = Texts(dataset, workspace)
    for phase in _phases([job for job in jobs if job.name not in runs]):
        with contextlib.closing(run_jobs(phase, texts, concurrent)) as ended:
            for job, run in ended:
                write_json_atomic(f"{job.uri}.json", run.model_dump(mode="json"))
                if run.bundle is not None:
                    share_encoder(root, bundle_uri(job, run))
                runs[job.name] = run
                logger.info("%s, seed %d: %s (%d of %d)", job.arm, run.seed, _said(run, metric), len(runs), len(jobs))
    if all(run.reason is None for run in runs.values()):
        for job in jobs:
            delete_folder(job.run_dir)  # checkpoints, which nobody needs any more
    confirmation = _confirmation([runs[job.name] for job in jobs])
    return _with_test(confirmation, jobs, runs, dataset, workspace) if score_test else confirmation


def _plan(
    recipe: Recipe, best: Recipe, dataset: Dataset, root: str, seeds: Sequence[int], metric: str
) -> list[FreshJob]:
    """Winner and recipe of one seed after the other; no recipe when it is the winner."""
    identities = {arm: identity_of(each, dataset, metric) for arm, each in (("winner", best), ("recipe", recipe))}
    arms: dict[Arm, Recipe] = {"winner": best}
    if identities["recipe"] != identities["winner"]:
        arms["recipe"] = recipe
    trained_by: dict[Arm, Arm] = {"winner": "winner", "recipe": "winner" if _trains_alike(recipe, best) else "recipe"}
    return [
        FreshJob(
            arm, each.model_copy(update={"seed": seed}), dataset.uri, identities[arm], f"{root}/confirm", metric,
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


def _trains_alike(recipe: Recipe, best: Recipe) -> bool:
    """Whether they differ only in what is done with a trained model."""
    ours, theirs = (
        (each.model_dump(mode="json", include={"data", "encoder", "model", "train"}), each.fusion.item_vector)
        for each in (recipe, best)
    )
    return ours == theirs


def _phases(jobs: list[FreshJob]) -> list[list[FreshJob]]:
    """Jobs that may run at once; those that take over what another trains come after it."""
    first = [job for job in jobs if job.run_dir.startswith(f"{job.uri}/")]
    return [first, [job for job in jobs if job not in first]]


def _said(run: FreshRun, metric: str) -> str:
    return f"validation {metric} {run.value:.4f}" if run.value is not None else f"failed, {run.reason}"


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
    confirmation: Confirmation, jobs: Sequence[FreshJob], runs: Mapping[str, FreshRun], dataset: Dataset,
    workspace: Workspace,
) -> Confirmation:
    """By the first seed of which there is a winner."""
    trained = [job for job in jobs if job.arm == "winner" and runs[job.name].bundle is not None]
    if not trained:
        return confirmation
    job = trained[0]
    own = Workspace(job.uri)
    try:
        bundle = Bundle.open(bundle_uri(job, runs[job.name]))
        look = look_at_test(job.recipe, dataset, bundle, own, job.metric, winner=job.identity, log=workspace)
    except LlmrecError as error:
        return replace(confirmation, failed=confirmation.failed | {"test": str(error)})
    return replace(confirmation, test=look.value, test_seed=look.seed, test_uri=look.uri, looks=look.looks)
