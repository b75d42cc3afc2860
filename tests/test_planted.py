"""What training the encoder is for: texts whose meaning frozen vectors do not show, learnt, evaluated and served."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.planted import PEOPLE, PLACES, VERBS, PlantedSize, planted_recipe, sentence, write_planted
from llmrec_ray import stages
from llmrec_ray.artifact import Workspace
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.metrics import ndcg_gains, paired_difference
from tests.test_end_to_end import free_port, post
from tests.tiny_encoder import write_tiny_encoder

TINY = PlantedSize(people=6, warm=24, held_out=4, fans=4, verbs=4, places=3)
RATES: dict[str, dict[str, float]] = {  # chosen on the validation split
    "frozen": {},
    "top_layers": {"top_layers": 1, "learning_rate": 1e-3},
    "lora": {"learning_rate": 3e-3},
    "full": {"learning_rate": 1e-3, "layer_decay": 0.3},
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("planted"), TINY)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """Two layers with random weights that know the words, so that all grammar comes from training."""
    words = [" ".join((*PEOPLE, *VERBS, *PLACES, "the was by ."))]
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder"), hidden_size=64, words=words)


def tiny_recipe(planted, encoder: Path, mode: str, sharding: str = "zero2") -> Recipe:
    return planted_recipe(
        planted.folder, mode,
        encoder={"model": str(encoder), "max_batch_tokens": 8192, **RATES[mode]},
        train={
            "batch_size": 4, "epochs": 16, "patience": 16, "learning_rate": 4e-3, "warmup_steps": 40,
            "sharding": sharding,
        },
        serve={"port": free_port()},
    )


def test_nobodys_train_events_hold_a_validation_or_test_item(planted, encoder, tmp_path):
    recipe = tiny_recipe(planted, encoder, "frozen")
    dataset = Dataset(ingest(recipe, Path(), Workspace(str(tmp_path)), use_ray=False))
    warm, validation, test = set(dataset.histories("train").item_rows), *map(
        set, (dataset.targets("validation"), dataset.targets("test"))
    )
    assert len(dataset.users) == TINY.people * TINY.fans
    assert (len(warm), len(validation), len(test)) == tuple(
        TINY.people * count for count in (TINY.warm, TINY.held_out, TINY.held_out)
    )
    assert not (warm & validation or warm & test or validation & test)
    assert len(set(dataset.item_texts)) == len(dataset.items) == TINY.items


def test_users_like_the_doer_and_neither_word_order_nor_voice_tells_who_that_is(planted):
    items = {row["what"]: row["sentence"] for row in pl.read_csv(planted.folder / "items.csv").iter_rows(named=True)}
    for user, item, _ in pl.read_csv(planted.folder / "log.csv").iter_rows():
        assert planted.doers[item] == planted.likes[user]
    first = [planted.doers[item] == text.split()[1] for item, text in items.items()]
    assert np.mean(first) == 0.5
    assert set(planted.doers.values()) == set(PEOPLE[: TINY.people])
    assert sentence("nurse", "warned", "pilot", "at noon", "passive") == "The pilot was warned by the nurse at noon."


@dataclass(frozen=True)
class Trained:
    """A trained and indexed Bundle, and each test user's gain of NDCG@10 by the served pipeline."""

    recipe: Recipe
    bundle_uri: str
    index_uri: str
    gains: pl.DataFrame


@pytest.fixture(scope="module")
def trained(planted, encoder, ray_session):
    """(tuning mode, sharding) -> what two processes made of it, once."""
    done: dict[tuple[str, str], Trained] = {}

    def train(mode: str, sharding: str = "zero2") -> Trained:
        if (mode, sharding) not in done:
            recipe = tiny_recipe(planted, encoder, mode, sharding)
            if not done:
                stages.ingest_stage(recipe)
            bundle, index = stages.train_stage(recipe), stages.index_stage(recipe)
            ranks = pl.read_parquet(f"{stages.evaluate_stage(recipe).uri}/ranks.parquet")
            gains = ranks.select("user_id", gain=pl.Series(ndcg_gains(ranks["model"].to_numpy(), 10)))
            done[mode, sharding] = Trained(recipe, bundle.uri, index.uri, gains)
        return done[mode, sharding]

    return train


@pytest.mark.drill
@pytest.mark.parametrize(("mode", "sharding"), [
    ("top_layers", "zero2"), ("lora", "zero2"), ("full", "zero2"),
    ("top_layers", "zero3"), ("lora", "zero3"), ("full", "zero3"),
])
def test_a_tuned_encoder_ranks_items_nobody_has_seen_better_than_frozen_vectors_do(trained, mode, sharding):
    pairs = trained(mode, sharding).gains.join(trained("frozen").gains, on="user_id", suffix="_frozen", validate="1:1")
    assert len(pairs) == TINY.people * TINY.fans
    difference = paired_difference(pairs["gain"].to_numpy(), pairs["gain_frozen"].to_numpy())
    assert difference["low"] > 0, f"{difference}, frozen {pairs['gain_frozen'].mean()}"


@pytest.mark.drill
def test_the_tuned_bundle_is_served_and_answers_a_new_sentence_by_who_did_it(trained, planted):
    tuned = trained("top_layers")
    stages.publish_stage(tuned.recipe, bundle_uri=tuned.bundle_uri, index_uri=tuned.index_uri)
    with stages.serve_stage(tuned.recipe) as endpoint:

        def doers(**body: object) -> list[str]:
            answer = post(f"{endpoint.url}/v1/recommend", endpoint.api_key, {"k": 10, **body})
            assert answer["degraded"] == []
            return [planted.doers[item["item_id"]] for item in answer["items"]]

        by_query, by_user = [], []
        for doer, other in itertools.pairwise(PEOPLE[: TINY.people + 1]):
            asked = sentence(doer, "warned", other, "at the fair", "passive")
            by_query += [doer == found for found in doers(query=asked)]
            fan = next(user for user, liked in planted.likes.items() if liked == doer)
            by_user += [doer == found for found in doers(user_id=fan, k=5)]
    assert np.mean(by_query) > 0.6  # by its words alone one in two, by chance one in six
    assert np.mean(by_user) > 0.6
