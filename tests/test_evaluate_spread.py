"""Evaluation spread over Ray actors gives the figures of one process, and says what became of a lost worker."""

from __future__ import annotations

import os

import numpy as np
import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ArtifactNotFoundError, ClusterError
from llmrec_ray.evaluate import evaluate
from llmrec_ray.evaluate.opened import Uris
from llmrec_ray.evaluate.protocol import Task
from llmrec_ray.evaluate.spread import Worker, pool
from llmrec_ray.recommend import Pipeline
from tests.tiny_release import publish_tiny_release

LIST_FIGURES = ("coverage", "gini", "novelty", "diversity")


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    tree = tiny_recipe.model_dump(mode="json")
    return Recipe.model_validate(tree | {"data": tree["data"] | {"split": "cold_items"}})


@pytest.fixture(scope="module")
def parts(recipe, tmp_path_factory) -> tuple[Dataset, Bundle, Pipeline]:
    release = publish_tiny_release(recipe, Workspace(str(tmp_path_factory.mktemp("spread"))))
    return Dataset.open(release.dataset.uri), Bundle.open(release.bundle.uri), Pipeline.of_release(release)


def figures(recipe, parts, folder, **settings) -> dict:
    section = {"baselines": ["popularity", "ease"], "ks": [2, 10], **settings}
    changed = Recipe.model_validate(recipe.model_dump(mode="json") | {"evaluate": section})
    return evaluate(changed, *parts, Workspace(str(folder))).to_dict()


def test_any_number_of_workers_gives_the_same_figures_bit_by_bit(recipe, parts, tmp_path, ray_session):
    alone = figures(recipe, parts, tmp_path / "1", batch_users=6)
    assert figures(recipe, parts, tmp_path / "3", batch_users=6, num_workers=3) == alone


def test_any_batch_gives_the_same_ranks(recipe, parts, tmp_path):
    """The board's items tie, and rounding breaks ties within the lists, but not the ranks."""
    first = figures(recipe, parts, tmp_path / "first", batch_users=1)
    second = figures(recipe, parts, tmp_path / "second", batch_users=1000)
    for name in ("intervals", "segments", "cold", "curves", "protocol_hash"):
        assert first[name] == second[name]
    for name, value in first["model"].items():
        assert name.startswith(LIST_FIGURES) or value == second["model"][name]


class Dying:
    """A system whose process ends in the middle."""

    def rank(self, task):
        os._exit(1)


def nothing_opened() -> Worker:
    return Worker({}, (1,), 40)


def test_a_lost_worker_is_told_with_the_remedy(parts, ray_session):
    with pool(nothing_opened, 2) as workers, pytest.raises(ClusterError) as lost:
        workers.rank(Dying(), Task.of(parts[0]), 30, lambda n: None)
    assert str(lost.value).startswith("A worker of the evaluation was lost (")
    assert str(lost.value).endswith(
        "): if it ran out of memory, lower evaluate.batch_users or evaluate.num_workers."
    )


def test_artifacts_that_a_worker_cannot_open_are_named(parts, ray_session, tmp_path):
    dataset, bundle, pipeline = parts
    uris = Uris(dataset.uri, f"{tmp_path}/none", pipeline.index_uri, bundle.policy, (10,))
    with pool(uris, 2) as workers, pytest.raises(ArtifactNotFoundError, match=r"There is no artifact at .*/none"):
        workers.rank("model", Task.of(dataset), 30, lambda n: None)


def test_more_workers_than_cpus_become_as_many_as_there_are(parts, ray_session):
    with pool(nothing_opened, 50) as workers:
        assert len(workers._actors) == 8


def test_one_worker_needs_no_ray(parts):
    with pool(nothing_opened, 1) as here:
        assert here.rank(Silent(), Task.of(parts[0]), 7, lambda n: None) == {}


class Silent:
    def rank(self, task):
        assert len(np.unique(task.targets)) <= 7
        return iter(())
