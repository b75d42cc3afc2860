"""Run protocol P over the served pipeline, its signals and the baselines; keep and log the result."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from tqdm import tqdm

from llmrec_ray.artifact import Artifact, Workspace, create_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.evaluate.baselines import fit_baseline, usable_baselines
from llmrec_ray.evaluate.protocol import PROTOCOL, Ranking, Task, rank_lists, rank_scores, rank_signal
from llmrec_ray.evaluate.report import Evaluation
from llmrec_ray.evaluate.scoring_log import log_scoring
from llmrec_ray.metrics import ndcg_gains, paired_difference
from llmrec_ray.recommend import Pipeline
from llmrec_ray.types import Columns

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)


def evaluate(
    recipe: Recipe, dataset: Dataset, bundle: Bundle, pipeline: Pipeline, workspace: Workspace
) -> Evaluation:
    """Score the test split once, save an `evaluation` artifact, append to the test log, and show the table.

    Raises ArtifactMismatchError when the Bundle was trained on another Dataset.
    """
    _check_parent(dataset, bundle)
    task = Task.of(dataset)
    rankings = _rank(recipe, dataset, bundle, pipeline, task)
    evaluation = _summarise(recipe, dataset, bundle, task, rankings)
    artifact = _save(recipe, dataset, bundle, task, rankings, evaluation, workspace)
    log_scoring(workspace, evaluation, artifact)
    logger.info("%s", evaluation.table())
    return evaluation.model_copy(update={"uri": artifact.uri})


@dataclass(frozen=True)
class _Rankings:
    model: Ranking
    signals: dict[str, Ranking]
    baselines: dict[str, Ranking]


def _check_parent(dataset: Dataset, bundle: Bundle) -> None:
    trained_on = bundle.artifact.manifest.parents.get("dataset")
    if trained_on != dataset.id:
        raise ArtifactMismatchError(
            f"The bundle {bundle.uri} was trained on dataset {trained_on}, not on {dataset.id} "
            f"({dataset.uri}): evaluate it on its own dataset, or train on this one first."
        )


def _rank(recipe: Recipe, dataset: Dataset, bundle: Bundle, pipeline: Pipeline, task: Task) -> _Rankings:
    names = usable_baselines(recipe.evaluate.baselines, dataset, bundle.text_vectors)
    longest = max(recipe.evaluate.ks)
    with tqdm(total=len(task.targets) * (2 + len(names)), desc="evaluate", unit="user", disable=None) as bar:

        def batches(system: str) -> Iterator[Task]:
            bar.set_postfix_str(system)
            for batch in task.batches(recipe.evaluate.batch_users):
                yield batch
                bar.update(len(batch.targets))

        model = rank_lists(batches("pipeline"), pipeline.recommend_rows, _depth(recipe, bundle))
        signals = rank_scores(batches("signals"), bundle.score_all, longest)
        baselines: dict[str, Ranking] = {}
        for name in names:
            baseline = fit_baseline(name, dataset, recipe, text_vectors=bundle.text_vectors)
            baselines[name] = rank_signal(batches(name), baseline, longest)
    return _Rankings(model, signals, baselines)


def _depth(recipe: Recipe, bundle: Bundle) -> int:
    """As long a list as the pipeline gives without any source proposing more than its policy says."""
    return max(*recipe.evaluate.ks, min(bundle.policy.candidates.values()))


def _summarise(
    recipe: Recipe, dataset: Dataset, bundle: Bundle, task: Task, rankings: _Rankings
) -> Evaluation:
    ks = recipe.evaluate.ks
    main_k = 10 if 10 in ks else max(ks)
    served = ndcg_gains(rankings.model.ranks, main_k)

    def beside(ranking: Ranking) -> dict[str, float]:
        lead = paired_difference(served, ndcg_gains(ranking.ranks, main_k))
        return ranking.metrics(task, ks) | {
            "lead": lead["mean"], "lead_low": lead["low"], "lead_high": lead["high"]
        }

    return Evaluation(
        protocol=PROTOCOL, split="test", recipe=recipe.name, seed=recipe.seed, dataset=dataset.id,
        bundle=bundle.id, users=len(task.targets), items=task.n_items, main_k=main_k,
        model=rankings.model.metrics(task, ks),
        signals={name: beside(ranking) for name, ranking in rankings.signals.items()},
        baselines={name: beside(ranking) for name, ranking in rankings.baselines.items()},
    )


def _save(
    recipe: Recipe, dataset: Dataset, bundle: Bundle, task: Task, rankings: _Rankings, evaluation: Evaluation,
    workspace: Workspace,
) -> Artifact:
    def write(folder: Path) -> None:
        (folder / "evaluation.json").write_text(evaluation.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (folder / "table.txt").write_text(evaluation.table() + "\n", encoding="utf-8")
        _ranks_table(dataset, task, rankings).write_parquet(folder / "ranks.parquet")

    artifact = create_artifact(
        workspace.root("evaluation"), "evaluation", write,
        config={"evaluate": recipe.evaluate.model_dump(mode="json"), "policy": bundle.policy.model_dump()},
        parents={"dataset": dataset.id, "bundle": bundle.id},
        metrics=evaluation.model,
    )
    workspace.set_latest("evaluation", artifact.uri)
    return artifact


def _ranks_table(dataset: Dataset, task: Task, rankings: _Rankings) -> pl.DataFrame:
    """Each user's test item and its rank by every system: what paired tests between runs need."""
    ranks = {"model": rankings.model.ranks}
    ranks |= {f"signal:{name}": ranking.ranks for name, ranking in rankings.signals.items()}
    ranks |= {f"baseline:{name}": ranking.ranks for name, ranking in rankings.baselines.items()}
    return pl.DataFrame({
        Columns.USER_ID: dataset.users.ids(task.histories.user_rows),
        Columns.ITEM_ID: dataset.items.ids(task.targets),
        **ranks,
    })
