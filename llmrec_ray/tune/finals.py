"""The best trials of a search -> the one whose mean over several seeds is best, and its fusion mode.

Trials are compared by one seed each, so the best of many is partly the luckiest. Below `<root>/finals` is what `fresh`
keeps of each run: trial-3-11.json, …; what was trained goes when it is measured. A run that failed is not tried again:
what chose a winner stays as it is.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import Choice, FusionMode, Recipe, with_settings
from llmrec_ray.data import Dataset
from llmrec_ray.policy import choose_mode
from llmrec_ray.storage import delete_folder, write_json_atomic
from llmrec_ray.tune.fresh import FreshJob, FreshRun, Texts, identity_of, recorded, run_jobs
from llmrec_ray.tune.outcome import Finalist, Finals, in_words
from llmrec_ray.tune.records import TrialRecord, best_epoch, best_records, values_of
from llmrec_ray.tune.space import split_levels

__all__ = ["choose_finalist", "searched_modes"]

logger = logging.getLogger(__name__)


def choose_finalist(
    recipe: Recipe, metric: str, records: Sequence[TrialRecord], dataset: Dataset, workspace: Workspace, root: str, *,
    concurrent: int,
) -> Finals | None:
    """Train the `tune.finalists` best trials with every seed of `tune.finalist_seeds` on the connected Ray, at most
    `concurrent` at once, and measure each by the served pipeline on validation, with every fusion mode that is
    searched.

    metric: of the trials' epochs. workspace: has the cache of text vectors. root: folder or URI of the campaign. A
    finalist of which a run fails cannot win. None where there are no seeds, or nothing to choose from. Raises
    DiskFullError, and ClusterError when there is no room for a training or its processes are lost again and again: the
    next call goes on.
    """
    seeds, modes = recipe.tune.finalist_seeds, searched_modes(recipe)
    best = _different(best_records(records, metric), metric)[:recipe.tune.finalists]
    if not seeds or len(best) * len(modes) < 2:
        return None
    plans = {record.number: _plan(recipe, record, metric, dataset, root, modes) for record in best}
    jobs = [plan[n] for n in range(len(seeds)) for plan in plans.values()]
    runs = _run(jobs, recipe, [record.number for record in best], dataset, workspace, concurrent)
    finalists = [
        _finalist(record, metric, modes, [runs[job.name] for job in plans[record.number]]) for record in best
    ]
    finals = _decide(recipe, seeds, finalists)
    logger.info("%s", _said(finals))
    return finals


def searched_modes(recipe: Recipe) -> tuple[FusionMode, ...]:
    """The fusion modes that the search names, or the recipe's own."""
    domain = split_levels(recipe)[1].get("fusion.mode")
    return (*domain.choice,) if isinstance(domain, Choice) else (recipe.fusion.mode,)


def _different(records: Sequence[TrialRecord], metric: str) -> list[TrialRecord]:
    """Without those that another one before them was trained like at its best epoch."""
    kept: list[TrialRecord] = []
    for record in records:
        settings = record.settings_at(best_epoch(record, metric))
        if all(settings != each.settings_at(best_epoch(each, metric)) for each in kept):
            kept.append(record)
    return kept


def _plan(
    recipe: Recipe, record: TrialRecord, metric: str, dataset: Dataset, root: str, modes: tuple[FusionMode, ...]
) -> list[FreshJob]:
    """A job for each seed."""
    changed = with_settings(recipe, record.settings_at(best_epoch(record, metric)))
    identity, folder = identity_of(changed, dataset, recipe.tune.metric, modes), f"{root}/finals"
    return [
        FreshJob(
            f"trial-{record.number}", changed.model_copy(update={"seed": seed}), dataset.uri, identity, folder,
            recipe.tune.metric, run_dir=f"{folder}/trial-{record.number}-{seed}/runs/train", modes=modes,
        )
        for seed in recipe.tune.finalist_seeds
    ]


def _run(
    jobs: Sequence[FreshJob], recipe: Recipe, numbers: Sequence[int], dataset: Dataset, workspace: Workspace,
    concurrent: int,
) -> Mapping[str, FreshRun]:
    """What came of each job, by its name."""
    runs = {job.name: run for job in jobs if (run := recorded(job)) is not None}
    for job in jobs:
        if job.name in runs:
            delete_folder(job.uri)  # of a process that was killed before it could
    if len(runs) < len(jobs):
        logger.info(
            "finals: trial %s again, with seed %s; the best mean wins (%d of %d done)",
            in_words(numbers), in_words(recipe.tune.finalist_seeds), len(runs), len(jobs),
        )
    left = [job for job in jobs if job.name not in runs]
    with contextlib.closing(run_jobs(left, Texts(dataset, workspace), concurrent, judges=True)) as ended:
        for job, run in ended:
            write_json_atomic(f"{job.uri}.json", run.model_dump(mode="json"))
            runs[job.name] = run
            delete_folder(job.uri)
            said = f"failed, {run.reason}" if run.reason is not None else _values(run.modes, recipe.tune.metric)
            logger.info("%s, seed %d: %s (%d of %d)", job.arm.replace("-", " "), run.seed, said, len(runs), len(jobs))
    return runs


def _finalist(record: TrialRecord, metric: str, modes: Sequence[FusionMode], runs: Sequence[FreshRun]) -> Finalist:
    """Modes in the order that they are named in, which records do not keep."""
    values = {mode: {run.seed: run.modes[mode] for run in runs if mode in run.modes} for mode in modes}
    failed = {run.seed: run.reason for run in runs if run.reason is not None}
    left_out = {mode: run.left_out[mode] for mode in modes for run in runs if mode in run.left_out}
    measured = {mode: by_seed for mode, by_seed in values.items() if by_seed}
    return Finalist(record.number, max(values_of(record, metric)), measured, failed, left_out)


def _decide(recipe: Recipe, seeds: tuple[int, ...], finalists: Sequence[Finalist]) -> Finals:
    """Each in the mode that the policy search would choose for it; the best mean of these wins, the earlier one of
    equals."""
    modes = {
        each.trial: choose_mode(each.means, recipe, recipe.tune.policy_tolerance) for each in finalists if each.means
    }
    if not modes:
        return Finals(seeds, (*finalists,), finalists[0].trial, None)
    order = sorted(finalists, key=lambda each: -each.means[modes[each.trial]] if each.means else 0.0)
    return Finals(seeds, (*order,), order[0].trial, modes[order[0].trial], modes)


def _said(finals: Finals) -> str:
    if finals.mode is None or finals.mean is None:
        return "every finalist failed with some seed, so the best trial of the search is the winner"
    said = [
        f"trial {each.trial} failed" if (mode := finals.modes.get(each.trial)) is None
        else f"trial {each.trial} {each.means[mode]:.4f} ({mode})"
        for each in finals.finalists
    ]
    return f"trial {finals.trial} is the winner, with the best mean over {finals.seeds_in_words}: {', '.join(said)}"


def _values(modes: Mapping[FusionMode, float], metric: str) -> str:
    return f"validation {metric} {', '.join(f'{mode} {value:.4f}' for mode, value in modes.items())}"
