"""What people did as text: the newest titles first, of the split that was asked for, and learnt from as a profile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import BehaviourConfig, Recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.data.behaviour import tell_behaviour
from llmrec_ray.errors import ConfigError
from llmrec_ray.text import TextTemplate
from llmrec_ray.train.newcomers import profile_map
from llmrec_ray.types import Columns, Histories
from tests.boards import board_recipe
from tests.tiny_release import write_tiny_bundle

LIKED = BehaviourConfig()


def told(pasts: list[list[int]], profiles: list[str], config: BehaviourConfig = LIKED) -> list[str]:
    return tell_behaviour(Histories.from_lists(pasts), ["Alien", "Heat", None, "Dune"], profiles, config)


def test_the_newest_titles_come_first_beside_the_profile():
    assert told([[0, 1, 3], [2], [], [], [1]], ["24 years old", "a clerk", "new here", "", ""]) == [
        "24 years old; liked: Dune, Heat, Alien", "a clerk", "new here", "", "liked: Heat",
    ]
    assert told([], []) == []


def test_only_so_many_items_are_told_in_the_words_of_the_recipe():
    config = BehaviourConfig(items=2, template="Seen: {history}", separator=" | ")
    assert told([[0, 1, 3], [0, 2]], ["a", "b"], config) == ["Seen: Dune | Heat", "Seen: Alien"]


def test_of_everybody_as_many_items_are_told_as_asked_for():
    histories = Histories.from_lists([[0, 1, 3], [0, 1, 3], [0]])
    texts = tell_behaviour(histories, ["Alien", "Heat", None, "Dune"], ["", "", ""], LIKED, np.array([1, 2, 3]))
    assert texts == ["liked: Dune", "liked: Dune, Heat", "liked: Alien"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=6), st.integers(1, 4))
def test_a_text_is_what_the_template_gives_of_profile_and_titles(pasts, items):
    titles, profiles = ["Alien", "Heat", None, "Dune"], [f"p{place}" for place in range(len(pasts))]
    config = BehaviourConfig(items=items)
    newest = [[titles[item] for item in past[::-1][:items] if titles[item]] for past in pasts]
    assert told(pasts, profiles, config) == [
        TextTemplate(config.template).fill({"profile": profile, "history": ", ".join(names)})
        for profile, names in zip(profiles, newest, strict=True)
    ]


@pytest.mark.parametrize("template", ["{profile}", "{history} {age}", "{history!r}"])
def test_a_template_without_history_or_with_other_fields_is_refused(template):
    with pytest.raises(ConfigError) as refusal:
        board_recipe(Path("/nowhere"), data={"behaviour": {"template": template}})
    assert (
        f"the template {template!r} must have {{history}} in it, and beside it only {{profile}}: correct "
        "data.behaviour.template" in str(refusal.value)
    )


def test_behaviour_without_titles_is_refused():
    with pytest.raises(ConfigError) as refusal:
        board_recipe(Path("/nowhere"), data={"behaviour": {}, "items": None})
    assert (
        "behaviour tells what people did by the titles of items, but no table of items has a title: set "
        "data.items.title, or leave data.behaviour out" in str(refusal.value)
    )


@pytest.fixture(scope="module")
def recipe(board_folder, tiny_encoder) -> Recipe:
    """The checkerboard, each thing called by its colour, and nothing known of people but what they did."""
    plain = board_recipe(board_folder)
    items = plain.data.items[0].model_dump() | {"title": "colour"}
    return board_recipe(
        board_folder, encoder={"model": str(tiny_encoder), "max_tokens": 64}, data={"items": items, "behaviour": {}}
    )


@pytest.fixture(scope="module")
def dataset(recipe, tmp_path_factory) -> Dataset:
    return Dataset(ingest(recipe, Path(), Workspace(str(tmp_path_factory.mktemp("behaviour"))), use_ray=False))


def test_held_out_events_are_told_only_where_they_are_asked_for(dataset):
    history = dataset.histories("train")[0]
    told_of = {split: dataset.behaviour_texts(split)[0] for split in ("train", "validation", "test")}
    lengths = {split: len(text.split(", ")) for split, text in told_of.items()}
    assert lengths == {"train": len(history), "validation": len(history) + 1, "test": len(history) + 2}
    assert told_of["train"].startswith("liked: ")


def test_nothing_learnt_from_behaviour_depends_on_held_out_events(recipe, dataset, tmp_path):
    bundle = Bundle(write_tiny_bundle(recipe, dataset, str(tmp_path)))
    other = Dataset(dataset.artifact)
    item, is_known = pl.col(Columns.ITEM_ROW), pl.col(Columns.SPLIT) == "train"
    other.interactions = dataset.interactions.with_columns(pl.when(is_known).then(item).otherwise(39 - item))
    assert other.behaviour_texts("train") == dataset.behaviour_texts("train")
    assert other.behaviour_texts("test") != dataset.behaviour_texts("test")
    one, same = (profile_map(data, bundle, bundle.load_encoder()) for data in (dataset, other))
    assert one is not None and same is not None
    np.testing.assert_array_equal(one.weights, same.weights)


def test_a_profile_map_reads_what_people_say_and_short_and_long_tellings_of_the_train_split(
    recipe, dataset, tmp_path, monkeypatch
):
    bundle = Bundle(write_tiny_bundle(recipe, dataset, str(tmp_path)))
    monkeypatch.setattr(dataset, "user_texts", [f"person {row}" if row < 5 else "" for row in range(40)])
    said: list[str] = []
    encoder = bundle.load_encoder()
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts, **options: said.extend(texts) or encode(texts, **options))
    assert profile_map(dataset, bundle, encoder) is not None
    assert said[:5] == [f"person {row}" for row in range(5)]
    assert said[5:9] == [
        "person 0; liked: black", "person 1; liked: white, white", "person 2; liked: black, black, black",
        "person 3; liked: white, white, white, white",
    ]
    assert max(text.count(",") + 1 for text in said) == len(dataset.histories("train")[0])


def test_what_somebody_says_that_they_like_is_read_as_what_others_did(recipe, dataset, tmp_path):
    bundle = Bundle(write_tiny_bundle(recipe, dataset, str(tmp_path)))
    encoder = bundle.load_encoder()
    learnt = profile_map(dataset, bundle, encoder)
    assert learnt is not None
    users = bundle.user_vectors(dataset.histories("train"))[:, :-1]
    means = {colour: users[side::2].mean(axis=0) for side, colour in enumerate(("black", "white"))}
    for colour, other in (("black", "white"), ("white", "black")):
        [said] = learnt.users(encoder.encode(["liked: " + ", ".join([colour] * 5)], as_query=True))
        assert np.linalg.norm(said - means[colour]) < np.linalg.norm(said - means[other])
