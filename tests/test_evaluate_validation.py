"""The figure that choices are made by: the served pipeline's on validation, whatever happened in the test split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.evaluate import Task, validation_value
from llmrec_ray.evaluate import validation as under_test
from llmrec_ray.metrics import summarise
from llmrec_ray.ranking import list_ranks
from llmrec_ray.recommend import Pipeline
from llmrec_ray.types import Columns
from tests.boards import board_recipe
from tests.tiny_release import write_tiny_bundle

METRICS = ("ndcg@10", "hr@1", "mrr@20")


def board(folder: Path, tiny_encoder: Path, workspace: Path, split: str) -> tuple[Recipe, Dataset, Bundle]:
    recipe = board_recipe(
        folder, data={**board_recipe(folder).model_dump(mode="json")["data"], "split": split},
        encoder={"model": str(tiny_encoder)}, workspace=str(workspace),
    )
    dataset = Dataset(ingest(recipe, folder, Workspace(recipe.workspace), use_ray=False))
    return recipe, dataset, Bundle(write_tiny_bundle(recipe, dataset, f"{recipe.workspace}/bundles"))


def test_the_value_is_that_of_the_published_pipeline_on_validation_targets(tiny_release, tiny_recipe):
    dataset, bundle = Dataset.open(tiny_release.dataset.uri), Bundle.open(tiny_release.bundle.uri)
    pipeline = Pipeline.of_release(tiny_release)
    users = np.flatnonzero(dataset.targets("validation") >= 0)
    lists = pipeline.recommend_rows(dataset.histories("train").select(users), 20)
    ranks = list_ranks(lists, dataset.targets("validation")[users], Task.of(dataset, "validation").n_candidates)
    for metric in METRICS:
        expected = summarise(ranks, [int(metric.partition("@")[2])])[metric]
        assert 0 < expected < 1
        assert validation_value(tiny_recipe, dataset, bundle, metric) == pytest.approx(expected)


@pytest.mark.parametrize("split", ["leave_one_out", "global_time", "cold_items"])
def test_scrambled_test_events_change_nothing(board_folder, tiny_encoder, tmp_path, split):
    recipe, dataset, bundle = board(board_folder, tiny_encoder, tmp_path, split)
    before = [validation_value(recipe, dataset, bundle, metric) for metric in METRICS]
    for seed in range(3):
        scrambled = with_scrambled_test(dataset, seed)
        assert not scrambled.interactions.equals(dataset.interactions)
        assert [validation_value(recipe, scrambled, bundle, metric) for metric in METRICS] == before


def test_other_validation_targets_change_the_value(board_folder, tiny_encoder, tmp_path):
    recipe, dataset, bundle = board(board_folder, tiny_encoder, tmp_path, "leave_one_out")
    before = validation_value(recipe, dataset, bundle, "ndcg@10")
    assert validation_value(recipe, with_scrambled(dataset, ["validation"], 0), bundle, "ndcg@10") != before


def test_no_test_event_is_asked_for(tiny_release, tiny_recipe, monkeypatch):
    dataset, bundle = Dataset.open(tiny_release.dataset.uri), Bundle.open(tiny_release.bundle.uri)
    asked: list[str] = []
    for name in ("histories", "targets", "cold_pairs", "history_times", "target_times", "cold_histories"):
        original = getattr(Dataset, name)
        monkeypatch.setattr(
            Dataset, name, lambda self, split, original=original: (asked.append(split), original(self, split))[1]
        )
    validation_value(tiny_recipe, dataset, bundle, "ndcg@10")
    assert {*asked} == {"train", "validation"} and "test" not in asked


def test_another_policy_is_measured_without_another_bundle(tiny_release, tiny_recipe):
    dataset, bundle = Dataset.open(tiny_release.dataset.uri), Bundle.open(tiny_release.bundle.uri)
    policy = bundle.policy.model_copy(update={"weights": {"popularity": 1.0}})
    own, other = (
        validation_value(tiny_recipe, dataset, bundle, "ndcg@10", policy=each) for each in (None, policy)
    )
    assert other != own


def test_of_many_users_the_same_ones_are_drawn_whatever_the_seed(tiny_release, tiny_recipe, monkeypatch):
    dataset, bundle = Dataset.open(tiny_release.dataset.uri), Bundle.open(tiny_release.bundle.uri)
    every = validation_value(tiny_recipe, dataset, bundle, "ndcg@10")
    monkeypatch.setattr(under_test, "MAX_USERS", 13)
    some = [
        validation_value(tiny_recipe.model_copy(update={"seed": seed}), dataset, bundle, "ndcg@10")
        for seed in (0, 1, 2)
    ]
    assert len({*some}) == 1 and some[0] != every


def with_scrambled_test(dataset: Dataset, seed: int) -> Dataset:
    return with_scrambled(dataset, ["test", "cold_test"], seed)


def with_scrambled(dataset: Dataset, splits: list[str], seed: int) -> Dataset:
    """The Dataset with the items of some splits' events dealt out anew among these."""
    generator = np.random.default_rng(seed)
    chosen = pl.col(Columns.SPLIT).cast(pl.String).is_in(splits)
    events = dataset.interactions
    for split in splits:
        mask = (events[Columns.SPLIT].cast(pl.String) == split).to_numpy()
        items = events[Columns.ITEM_ROW].to_numpy().copy()
        items[mask] = generator.permutation(items[mask])
        events = events.with_columns(pl.Series(Columns.ITEM_ROW, items, dtype=events.schema[Columns.ITEM_ROW]))
    assert events.filter(chosen).height
    scrambled = Dataset(dataset.artifact)
    scrambled.interactions = events
    return scrambled
