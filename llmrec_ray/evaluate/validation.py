"""A Bundle -> one figure of the served pipeline on the validation split: what choices may be made by.

No event of the test split has an influence: neither as a target, nor as history, nor on what may be recommended.
Shapes: U = users, N = items.
"""

from __future__ import annotations

import numpy as np

from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.data.splits import item_fold
from llmrec_ray.evaluate.protocol import Task, group_by_user
from llmrec_ray.evaluate.systems import Served
from llmrec_ray.index import Index
from llmrec_ray.metrics import summarise
from llmrec_ray.recommend import Catalogue, Pipeline
from llmrec_ray.signals import FusionPolicy
from llmrec_ray.types import IntArray

__all__ = ["validation_value"]

MAX_USERS = 50_000
SAMPLE_SEED = 0


def validation_value(
    recipe: Recipe, dataset: Dataset, bundle: Bundle, metric: str, *, policy: FusionPolicy | None = None
) -> float:
    """The pipeline with exact retrieval on the validation split, all items as candidates.

    Each user's target is the validation item, the history is train. Of more than MAX_USERS users as many are drawn, the
    same ones whatever the recipe's seed, so that values of several seeds can be compared. With cold_items it is the
    ranking of the events of known items; nobody is shown an item of the test fold.
    metric: `ndcg@10`, `hr@5`, `mrr@20`, … policy: another than the Bundle's.
    """
    k = int(metric.partition("@")[2])
    pipeline = Pipeline(
        _catalogue(dataset), bundle, Index.exact(bundle), policy=policy, with_encoder=False, hidden=_test_fold(dataset)
    )
    served = Served("model", pipeline.recommend_rows, pipeline.score_rows, pipeline.list_length(k))
    ranks = [ranked.ranks for part in _task(dataset).batches(recipe.evaluate.batch_users)
             for _, ranked in served.rank(part)]
    return summarise(np.concatenate(ranks), [k])[metric]


def _catalogue(dataset: Dataset) -> Catalogue:
    """As it is served, but with nobody's newer events in the histories."""
    return Catalogue(
        dataset.users, dataset.items, dataset.item_titles, dataset.item_attributes, dataset.histories("train")
    )


def _test_fold(dataset: Dataset) -> IntArray:
    """Item rows of the fold that is held out for test, by the items' ids; none without cold items."""
    if dataset.split != "cold_items":
        return np.empty(0, np.int64)
    fold = dataset.split_settings["cold_fold"]
    return np.flatnonzero([item_fold(item_id) == fold for item_id in dataset.items])


def _task(dataset: Dataset) -> Task:
    targets = dataset.targets("validation")
    users = _some(np.flatnonzero(targets >= 0))
    held_out = group_by_user(*dataset.cold_pairs("validation"), len(dataset.users))
    return Task(
        dataset.histories("train").select(users), targets[users], len(dataset.items),
        held_out.select(users) if len(held_out.item_rows) else None,
    )


def _some(users: IntArray) -> IntArray:
    if len(users) <= MAX_USERS:
        return users
    return np.sort(np.random.default_rng(SAMPLE_SEED).choice(users, MAX_USERS, replace=False))
