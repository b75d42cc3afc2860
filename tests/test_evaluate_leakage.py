"""The leakage check: clean data pass, and every planted leak is found and named."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import LeakageError
from llmrec_ray.evaluate.leakage import check_bundle, check_split, warn_of_suspicious
from llmrec_ray.signals import Ease, Popularity
from llmrec_ray.types import Histories
from tests.tiny_release import publish_tiny_release


@pytest.fixture(scope="module")
def parts(tiny_release) -> tuple[Dataset, Bundle]:
    return Dataset.open(tiny_release.dataset.uri), Bundle.open(tiny_release.bundle.uri)


def with_events(dataset: Dataset, events: pl.DataFrame) -> Dataset:
    changed = Dataset(dataset.artifact)
    changed.interactions = events
    return changed


def leak(check, *arguments) -> str:
    with pytest.raises(LeakageError) as caught:
        check(*arguments)
    return str(caught.value)


def made(tiny_recipe: Recipe, folder: Path, **data: object) -> Dataset:
    tree = tiny_recipe.model_dump(mode="json")
    recipe = Recipe.model_validate(tree | {"data": tree["data"] | data})
    return Dataset(ingest(recipe, Path(), Workspace(str(folder)), use_ray=False))


def test_clean_data_and_an_honest_bundle_pass(parts):
    check_split(parts[0])
    check_bundle(*parts)


def test_clean_cold_items_pass_with_their_bundle(tiny_recipe, tmp_path):
    tree = tiny_recipe.model_dump(mode="json")
    recipe = Recipe.model_validate(tree | {"data": tree["data"] | {"split": "cold_items"}})
    release = publish_tiny_release(recipe, Workspace(str(tmp_path)))
    dataset = Dataset.open(release.dataset.uri)
    check_split(dataset)
    check_bundle(dataset, Bundle.open(release.bundle.uri))


def test_a_target_among_the_training_events_is_found(parts):
    dataset = parts[0]
    planted = dataset.interactions.filter((pl.col("split") == "test") & (pl.col("user_row") == 5))
    item = dataset.items.id(planted["item_row"][0])
    as_train = planted.with_columns(split=pl.lit("train").cast(planted["split"].dtype))
    assert leak(check_split, with_events(dataset, pl.concat([dataset.interactions, as_train]))) == (
        f"1 of 80 held-out events of {dataset.uri} are training events too, the first of user 'u005' and item "
        f"{item!r}; no figure from it could be trusted: ingest again."
    )


def test_a_training_event_newer_than_the_target_is_found(parts):
    dataset = parts[0]
    newest = pl.col("timestamp").max()
    events = dataset.interactions.with_columns(
        timestamp=pl.when((pl.col("user_row") == 7) & (pl.col("split") == "train"))
        .then(newest + pl.duration(days=1)).otherwise("timestamp")
    )
    text = leak(check_split, with_events(dataset, events))
    assert text.startswith(
        f"2 held-out events of {dataset.uri} are older than an event of the same user that is known before them, the "
        "first of user 'u007' and item "
    )


def test_a_cold_item_with_a_training_event_is_found(tiny_recipe, tmp_path):
    dataset = made(tiny_recipe, tmp_path, split="cold_items")
    cold = dataset.interactions.filter(pl.col("split") == "cold_test")
    stranger = next(
        user for user in range(40) if user not in cold.filter(pl.col("item_row") == cold["item_row"][0])["user_row"]
    )
    planted = cold.head(1).with_columns(
        split=pl.lit("train").cast(cold["split"].dtype), user_row=pl.lit(stranger, pl.Int64)
    )
    text = leak(check_split, with_events(dataset, pl.concat([dataset.interactions, planted])))
    n_cold = cold["item_row"].n_unique() + len(np.unique(dataset.cold_pairs("validation")[1]))
    assert text.startswith(f"1 of {n_cold} items that {dataset.uri} holds out as cold have other events, the first of ")


def test_a_training_event_after_the_cut_is_found(tiny_recipe, tmp_path):
    dataset = made(tiny_recipe, tmp_path, split="global_time")
    check_split(dataset)
    newest = dataset.interactions["timestamp"].max()
    late = dataset.interactions.with_columns(
        timestamp=pl.when(pl.int_range(pl.len()) == 0).then(pl.lit(newest)).otherwise("timestamp")
    )
    assert late["split"][0] == "train"
    text = leak(check_split, with_events(dataset, late))
    assert text.startswith(f"A train event of {dataset.uri} is from {newest:%Y-%m-%d %H:%M:%S}, not before the first ")


def changed_bundle(bundle: Bundle, name: str, signal: object) -> Bundle:
    changed = copy.copy(bundle)
    changed.signals = bundle.signals | {name: signal}
    return changed


def test_popularity_that_counted_held_out_events_is_found(parts):
    dataset, bundle = parts
    popularity = Popularity().fit(dataset.histories("test"), 40)
    text = leak(check_bundle, dataset, changed_bundle(bundle, "popularity", popularity))
    assert text.startswith(
        f"The popularity signal of the bundle {bundle.uri} was not counted from the train split of {dataset.uri}: for "
    )
    assert text.endswith(" users instead of " + text.rpartition(" users instead of ")[2])
    assert text.endswith("Train again.")


def test_popularity_that_counted_a_held_out_item_is_found(tiny_recipe, tmp_path):
    tree = tiny_recipe.model_dump(mode="json")
    recipe = Recipe.model_validate(tree | {"data": tree["data"] | {"split": "cold_items"}})
    release = publish_tiny_release(recipe, Workspace(str(tmp_path)))
    dataset, bundle = Dataset.open(release.dataset.uri), Bundle.open(release.bundle.uri)
    row = int(dataset.cold_pairs("test")[1][0])
    popularity = Popularity().fit(dataset.histories("train"), len(dataset.items))
    popularity.log_counts[row] = np.log1p(3)
    assert leak(check_bundle, dataset, changed_bundle(bundle, "popularity", popularity)) == (
        f"The popularity signal of the bundle {bundle.uri} was not counted from the train split of {dataset.uri}: for "
        f"1 items it differs, first for {dataset.items.id(row)!r} with 3 users instead of 0. Train again."
    )


def test_an_item_item_signal_that_saw_one_held_out_event_in_forty_is_found(parts):
    dataset, bundle = parts
    train, known = dataset.histories("train"), dataset.histories("validation")
    pasts = [known[user] if user < 10 else train[user] for user in range(40)]
    ease = Ease(l2=10.0).fit(Histories.from_lists(pasts, list(range(40))), 40)
    text = leak(check_bundle, dataset, changed_bundle(bundle, "item_item", ease))
    assert text.startswith(
        f"The item_item signal of the bundle {bundle.uri} was not learnt from the train split of {dataset.uri}: its "
        "weights belong to co-occurrences that differ by "
    )


def test_a_system_that_finds_nearly_everything_is_suspicious(caplog):
    logger = logging.getLogger("llmrec_ray")
    logger.addHandler(caplog.handler)
    perfect = np.ones(40)
    warn_of_suspicious({"signal:text": perfect, "model": np.where(np.arange(40) < 36, 1.0, 2.0), "few": np.ones(19)})
    logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {
        "signal:text 100%: hardly anything ranks so many targets first that has not seen them. Look for a text, "
        "attribute or id that gives the target away."
    }
