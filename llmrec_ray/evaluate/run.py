"""Rank what a Dataset holds out by the served pipeline, its signals and the baselines; keep and log the result.

Users are streamed in blocks, by as many Ray actors as `evaluate.num_workers` says; see `spread` for the memory needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tqdm import tqdm

from llmrec_ray.artifact import Artifact, Workspace, create_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import EvaluateConfig, Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.errors import DataError
from llmrec_ray.evaluate.baselines import fit_baseline, usable_baselines
from llmrec_ray.evaluate.cold import ColdSystem, ColdTask, chance, cold_figures
from llmrec_ray.evaluate.details import with_details
from llmrec_ray.evaluate.examples import Example, make_examples
from llmrec_ray.evaluate.html import write_report
from llmrec_ray.evaluate.leakage import check_bundle, check_split, warn_of_suspicious
from llmrec_ray.evaluate.opened import COLD, SCALE_OFF, SIGNALS, Uris, make_worker
from llmrec_ray.evaluate.protocol import Protocol, Task
from llmrec_ray.evaluate.report import Evaluation
from llmrec_ray.evaluate.scoring_log import log_scoring
from llmrec_ray.evaluate.spread import Pool, Ranker, Worker, pool
from llmrec_ray.evaluate.systems import Ranking, items_of, of_signal
from llmrec_ray.metrics import ndcg_gains, paired_difference
from llmrec_ray.recommend import Pipeline
from llmrec_ray.signals import Ease, Signal
from llmrec_ray.types import Columns

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)

Bar: TypeAlias = "tqdm[Any]"


def evaluate(
    recipe: Recipe, dataset: Dataset, bundle: Bundle, pipeline: Pipeline, workspace: Workspace, *,
    log: Workspace | None = None,
) -> Evaluation:
    """Score the test split once, save an `evaluation` artifact, append to the test log, and show the table.

    log: the workspace whose test log it is, when it is another than the one that keeps the artifact. With more than one
    worker Ray must be connected. Raises ArtifactMismatchError when the Bundle was trained on another Dataset,
    LeakageError when what is measured has seen what it is measured by, ConfigError for a baseline that is too large for
    the catalogue, and ClusterError when a worker is lost.
    """
    check_bundle(dataset, bundle)
    check_split(dataset)
    found = _rank(recipe, dataset, bundle, pipeline)
    warn_of_suspicious({name: ranking.ranks for name, ranking in found.rankings.items()})
    evaluation = _summarise(recipe, dataset, bundle, found)
    artifact = _save(recipe, dataset, bundle, pipeline, found, evaluation, workspace)
    log_scoring(log or workspace, evaluation, artifact)
    logger.info("%s", evaluation.table())
    logger.info("The report is %s/report.html", artifact.uri)
    return evaluation.model_copy(update={"uri": artifact.uri})


@dataclass(frozen=True)
class _Found:
    """Every ranking by system, as the columns of `ranks.parquet` are named; of cold pairs only with cold_items."""

    protocol: Protocol
    task: Task
    cold_task: ColdTask
    rankings: dict[str, Ranking] = field(default_factory=dict)
    cold: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def of_kind(self, kind: str) -> dict[str, Ranking]:
        """Rankings of all signals, or of all baselines, by their own names."""
        prefix = f"{kind}:"
        return {n.removeprefix(prefix): ranking for n, ranking in self.rankings.items() if n.startswith(prefix)}


def _rank(recipe: Recipe, dataset: Dataset, bundle: Bundle, pipeline: Pipeline) -> _Found:
    settings = recipe.evaluate
    names = usable_baselines(settings.baselines, dataset, bundle.text_vectors)
    if {"ease", "ease_recency"} & set(names):
        Ease.check_size(len(dataset.items))
    negatives = settings.sampled_negatives if settings.candidates == "sampled" else None
    task = Task.of(dataset, negatives=negatives)
    if not len(task):
        raise DataError(f"No user of {dataset.uri} has a test event, so there is nothing to rank: ingest longer logs.")
    found = _Found(Protocol(dataset.split_settings, negatives), task, ColdTask.of(dataset))
    with (
        pool(_opener(settings, dataset, bundle, pipeline), settings.num_workers) as workers,
        tqdm(total=_work(found, len(names)), desc="evaluate", unit="user", disable=None) as bar,
    ):
        passes = _Passes(found, workers, settings.batch_users, bar)
        passes.rank_opened()
        for name in names:
            baseline = fit_baseline(name, dataset, recipe, text_vectors=bundle.text_vectors)
            passes.rank_baseline(name, baseline, max(settings.ks))
    return found


def _opener(settings: EvaluateConfig, dataset: Dataset, bundle: Bundle, pipeline: Pipeline) -> Callable[[], Worker]:
    if settings.num_workers == 1:
        return partial(make_worker, dataset, bundle, pipeline, settings.ks)
    return Uris.of(dataset, bundle, pipeline, settings.ks)


def _work(found: _Found, n_baselines: int) -> int:
    """Users of all passes together."""
    cold = len(found.cold_task)
    return (2 + n_baselines + (cold > 0)) * len(found.task) + (len(COLD) + n_baselines) * cold


@dataclass(frozen=True)
class _Passes:
    """One pass over the users per system; results are put into `found`."""

    found: _Found
    workers: Pool
    batch_users: int
    bar: Bar

    def rank_opened(self) -> None:
        """The pipeline, with the cold scale off where items are held out, and the signals."""
        is_cold = len(self.found.cold_task) > 0
        for system in ("model", *([SCALE_OFF] if is_cold else []), SIGNALS):
            self._warm(system, system)
        for system in COLD if is_cold else ():
            self._cold(system, system)

    def rank_baseline(self, name: str, baseline: Signal, k: int) -> None:
        """One baseline by lists of k."""
        self._warm(name, of_signal(baseline, f"baseline:{name}", k))
        if len(self.found.cold_task):
            self._cold(name, ColdSystem(items_of(baseline, f"baseline:{name}"), "fold"))

    def _warm(self, name: str, system: str | Ranker) -> None:
        self.bar.set_postfix_str(name)
        rankings = self.workers.rank(system, self.found.task, self.batch_users, self.bar.update)
        self.found.rankings.update(rankings)

    def _cold(self, name: str, system: str | Ranker) -> None:
        self.bar.set_postfix_str(name)
        rankings = self.workers.rank(system, self.found.cold_task, self.batch_users, self.bar.update)
        self.found.cold.update({name: ranking.ranks for name, ranking in rankings.items()})


def _summarise(recipe: Recipe, dataset: Dataset, bundle: Bundle, found: _Found) -> Evaluation:
    task, ks = found.task, recipe.evaluate.ks
    main_k = 10 if 10 in ks else max(ks)
    train = dataset.histories("train")
    popularity = np.bincount(train.item_rows, minlength=task.n_items)
    n_users = int((train.lengths > 0).sum())
    served = ndcg_gains(found.rankings["model"].ranks, main_k)

    def figures(ranking: Ranking) -> dict[str, float]:
        return ranking.metrics(task, ks, popularity, n_users)

    def beside(ranking: Ranking) -> dict[str, float]:
        lead = paired_difference(served, ndcg_gains(ranking.ranks, main_k))
        return figures(ranking) | {"lead": lead["mean"], "lead_low": lead["low"], "lead_high": lead["high"]}

    evaluation = Evaluation(
        protocol=str(found.protocol), protocol_hash=found.protocol.hash(dataset), split="test", recipe=recipe.name,
        seed=recipe.seed, dataset=dataset.id, bundle=bundle.id, users=len(task), items=task.n_items, main_k=main_k,
        model=figures(found.rankings["model"]),
        signals={name: beside(ranking) for name, ranking in found.of_kind("signal").items()},
        baselines={name: beside(ranking) for name, ranking in found.of_kind("baseline").items()},
        cold=_cold(found, ks),
    )
    return with_details(
        evaluation, {name: ranking.ranks for name, ranking in found.rankings.items()},
        history_lengths=task.histories.lengths, target_rows=task.targets, popularity=popularity,
        trained=bundle.artifact.manifest.metrics,
    )


def _cold(found: _Found, ks: Sequence[int]) -> dict[str, dict[str, float]]:
    """Figures of held-out items, and of the warm ranking by the same weights; nothing without held-out items."""
    if not found.cold:
        return {}
    users = found.cold_task.users
    fused = {name: cold_figures(ranks, ks, users) for name, ranks in found.cold.items() if ":" not in name}
    alone = {f"cold_only:{name}": cold_figures(ranks, ks, users) for name, ranks in found.cold.items() if ":" in name}
    warm = {
        name: cold_figures(found.rankings[system].ranks, ks)
        for name, system in (("warm", "model"), ("warm_scale_off", SCALE_OFF))
    }
    return fused | warm | alone | {"cold_only:chance": chance(found.cold_task.n_candidates, ks)}


def _save(
    recipe: Recipe, dataset: Dataset, bundle: Bundle, pipeline: Pipeline, found: _Found, evaluation: Evaluation,
    workspace: Workspace,
) -> Artifact:
    def write(folder: Path) -> None:
        (folder / "evaluation.json").write_text(evaluation.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (folder / "table.txt").write_text(evaluation.table() + "\n", encoding="utf-8")
        _ranks_table(dataset, found).write_parquet(folder / "ranks.parquet")
        if found.cold:
            _cold_table(dataset, found).write_parquet(folder / "cold_ranks.parquet")
        write_report(folder, evaluation, _examples(dataset, pipeline, found, evaluation.main_k))

    artifact = create_artifact(
        workspace.root("evaluation"), "evaluation", write,
        config={"evaluate": recipe.evaluate.model_dump(mode="json"), "policy": pipeline.policy.model_dump()},
        parents={"dataset": dataset.id, "bundle": bundle.id},
        metrics=evaluation.model,
    )
    workspace.set_latest("evaluation", artifact.uri)
    return artifact


def _examples(dataset: Dataset, pipeline: Pipeline, found: _Found, k: int) -> list[Example]:
    """Users of the report; none with sampled candidates, whose ranks are not those of what is shown."""
    task = found.task
    if task.negatives is not None:
        return []
    return make_examples(dataset, pipeline, task.histories, task.targets, found.rankings["model"].ranks, k)


def _ranks_table(dataset: Dataset, found: _Found) -> pl.DataFrame:
    """Each target and its rank by every system: what paired tests between runs need."""
    task = found.task
    counts = np.bincount(dataset.histories("train").item_rows, minlength=task.n_items)
    return pl.DataFrame({
        Columns.USER_ID: dataset.users.ids(task.histories.user_rows),
        Columns.ITEM_ID: dataset.items.ids(task.targets),
        "history_length": task.histories.lengths,
        "item_count": counts[task.targets],
        **{name: ranking.ranks for name, ranking in found.rankings.items()},
    })


def _cold_table(dataset: Dataset, found: _Found) -> pl.DataFrame:
    """Each held-out pair and its rank by every system."""
    pairs = found.cold_task.pairs
    return pl.DataFrame({
        Columns.USER_ID: dataset.users.ids(found.cold_task.users),
        Columns.ITEM_ID: dataset.items.ids(pairs.item_rows),
        **found.cold,
    })
