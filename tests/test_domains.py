"""Two domains with shared people: one Dataset, one model, and answers from one domain informed by the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec_ray import stages
from llmrec_ray.changes import AddedItem, Changes, NewItem
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ConfigError
from llmrec_ray.recommend import Filters, Pipeline, Request
from llmrec_ray.recommend.catalogue import grown_attributes
from tests.boards import COLOURS, board_recipe

N_USERS, N_ITEMS, N_READERS = 40, 24, 10
"""The last N_READERS people only read books."""
DOMAINS = {"books": ("thing", 0), "films": ("story", 1)}
"""What items are called, and by how much the colour of a number is shifted: `books:3` is unlike `films:3`."""


def colour(domain: str, number: int) -> int:
    return (number + DOMAINS[domain][1]) % 2


def write_domains(folder: Path) -> None:
    """Logs of both domains and a table of each, with the same numbers as ids; people like things of one colour."""
    for place, (domain, (noun, _)) in enumerate(DOMAINS.items()):
        rows = [
            {"who": f"u{user:02}", "what": number, "when": 1_000_000 + 10 * (7 * number * (user + 3) % 241) + place}
            for user in range(N_USERS if domain == "books" else N_USERS - N_READERS)
            for number in range(N_ITEMS) if colour(domain, number) == user % 2
        ]
        pl.DataFrame(rows).write_csv(folder / f"{domain}.csv")
        pl.DataFrame({
            "id": range(N_ITEMS), "name": [f"{noun} {number}" for number in range(N_ITEMS)],
            "colour": [COLOURS[colour(domain, number)] for number in range(N_ITEMS)],
        }).write_csv(folder / f"{domain}_table.csv")


def domains_recipe(folder: Path, **sections: dict) -> Recipe:
    columns = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    logs = [
        {"paths": [str(folder / f"{domain}.csv")], "format": "csv", "columns": columns, "domain": domain}
        for domain in DOMAINS
    ]
    items = [
        {"paths": [str(folder / f"{domain}_table.csv")], "format": "csv", "id": "id", "title": "name",
         "template": "{name}, painted {colour}", "attributes": ["colour"], "domain": domain}
        for domain in DOMAINS
    ]
    data = {"interactions": logs, "items": items, **sections.pop("data", {})}
    return board_recipe(folder, data=data, **sections)


@pytest.fixture(scope="module")
def recipe(tiny_encoder, tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("domains")
    write_domains(folder)
    return domains_recipe(folder, encoder={"model": str(tiny_encoder)}, train={"epochs": 1})


@pytest.fixture(scope="module")
def dataset(recipe) -> Dataset:
    return Dataset(stages.ingest_stage(recipe))


@pytest.fixture(scope="module")
def pipeline(recipe, dataset, ray_session) -> Pipeline:
    stages.train_stage(recipe)
    stages.index_stage(recipe)
    return Pipeline.of_release(stages.publish_stage(recipe))


def test_items_of_both_domains_keep_apart_and_people_are_shared(dataset):
    assert len(dataset.users) == N_USERS and len(dataset.items) == 2 * N_ITEMS
    domains = dataset.item_attributes["domain"].to_list()
    assert domains == [id_.split(":")[0] for id_ in dataset.items]
    row = dataset.items.row("films:3")
    assert (dataset.item_titles[row], dataset.item_texts[row]) == ("story 3", "story 3, painted black")
    both = {domains[item] for item in dataset.histories("test")[dataset.users.row("u00")]}
    only = {domains[item] for item in dataset.histories("test")[dataset.users.row("u39")]}
    assert (both, only) == ({"books", "films"}, {"books"})


def liked_share(answers: list, user_colours: list[int], domain: str) -> float:
    """How many of the recommended items have the colour that the asker likes; all must be of the domain."""
    shares = []
    for answer, likes in zip(answers, user_colours, strict=True):
        ids = [item.item_id.split(":") for item in answer.items]
        assert len(ids) == 5 and {name for name, _ in ids} == {domain}
        shares += [colour(domain, int(number)) == likes for _, number in ids]
    return sum(shares) / len(shares)


def test_people_who_only_read_get_films_that_suit_what_they_read(pipeline):
    films = Filters(attributes={"domain": "films"})
    readers = range(N_USERS - N_READERS, N_USERS)
    asked = [Request(user_id=f"u{user:02}", k=5, filters=films) for user in readers]
    assert liked_share(pipeline.recommend(asked), [user % 2 for user in readers], "films") > 0.9


def test_an_unknown_person_is_told_apart_by_a_history_in_the_other_domain(pipeline):
    asked = [
        Request(history=[f"{past}:{2 * number + (side + DOMAINS[past][1]) % 2}" for number in range(5)], k=5,
                filters=Filters(attributes={"domain": wanted}))
        for past, wanted in (("books", "films"), ("films", "books")) for side in (0, 1)
    ]
    answers = pipeline.recommend(asked)
    assert liked_share(answers[:2], [0, 1], "films") > 0.9
    assert liked_share(answers[2:], [0, 1], "books") > 0.9


def test_without_a_filter_all_domains_are_recommended_from(pipeline):
    [answer] = pipeline.recommend([Request(user_id="u00", k=20, exclude_seen=False)])
    assert {item.item_id.split(":")[0] for item in answer.items} == {"books", "films"}


def test_an_item_that_is_added_while_serving_has_the_domain_that_its_id_begins_with(dataset):
    added = [
        AddedItem.of(NewItem(item_id=item_id, text="thing", attributes=attributes), np.zeros(2, np.float32))
        for item_id, attributes in (("books:new", {}), ("games:1", {}), ("plain", {}), ("films:9", {"domain": "books"}))
    ]
    grown = grown_attributes(dataset.item_attributes, Changes().after(added))
    assert grown["domain"].to_list()[-4:] == ["books", None, None, "books"]
    assert grown["colour"].to_list()[-4:] == [None] * 4


def test_the_domain_can_be_context_of_the_model():
    recipe = domains_recipe(Path("/nowhere"), model={"context": {"item_columns": ["domain"]}})
    assert recipe.data.domains == ("books", "films")


def test_people_have_no_domain():
    users = {"paths": ["p.csv"], "format": "csv", "id": "who", "template": "{age}", "domain": "books"}
    with pytest.raises(ConfigError) as refusal:
        domains_recipe(Path("/nowhere"), data={"users": users})
    assert (
        "data.users has a domain, but people belong to all domains: name it in data.interactions and data.items only"
        in str(refusal.value)
    )


def test_an_attribute_that_is_called_domain_is_refused_beside_domains():
    items = {"paths": ["i.csv"], "format": "csv", "id": "id", "template": "{name}", "attributes": ["domain"]}
    with pytest.raises(ConfigError) as refusal:
        domains_recipe(Path("/nowhere"), data={"items": items})
    assert (
        "data.items has an attribute of the name domain, which is what the domains are told apart by: give the column "
        "another name in data.items.columns, or name no domain" in str(refusal.value)
    )
