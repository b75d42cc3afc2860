"""The closed loop: what people do at the endpoint becomes the next Release, which then knows them."""

from __future__ import annotations

import csv
import json
import time
from gzip import compress
from pathlib import Path

import polars as pl
import pytest

from llmrec_ray import stages
from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.events import Event, EventStore
from llmrec_ray.recommend import Pipeline, Request
from tests.boards import board_recipe, write_board
from tests.test_end_to_end import free_port
from tests.test_end_to_end import post as post_json
from tests.tiny_release import publish_tiny_release

NEW_ITEM = "i041"
FIRST_CLICKS = ["i001", "i003", "i005", "i007", NEW_ITEM, "i009"]
LATER_CLICKS = ["i011", "i013"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """The board's files: a history in the columns of the event log, and a white thing that nobody has met."""
    write_board(tmp_path)
    history = pl.read_csv(tmp_path / "log.csv").rename({"who": "user_id", "what": "item_id", "when": "timestamp"})
    history.write_ndjson(tmp_path / "history.jsonl")
    with (tmp_path / "things.csv").open("a", newline="") as things:
        csv.writer(things).writerow([NEW_ITEM, "thing 41", "white"])
    return tmp_path


def recipe_of(folder: Path, encoder: Path, *logs: str, serve: dict | None = None, **train: object) -> Recipe:
    recipe = board_recipe(
        folder, encoder={"model": str(encoder)}, model={"dropout": 0.0}, serve=serve or {},
        train={"num_workers": 1, "sharding": "none", "epochs": 2, **train},
    )
    tree = recipe.model_dump(mode="json")
    tree["data"]["interactions"] = {"paths": [str(folder / log) for log in logs], "format": "jsonl"}
    return Recipe.model_validate(tree)


def click(store: EventStore, user_id: str, items: list[str], start: float) -> int:
    return store.record([
        Event(event_id=f"{user_id} {item}", user_id=user_id, item_id=item, timestamp=start + step, event="click")
        for step, item in enumerate(items)
    ])


def test_events_become_a_dataset_a_warm_started_bundle_and_a_release_whose_answers_know_them(
    folder, tiny_encoder, ray_session
):
    recipe = recipe_of(folder, tiny_encoder, "history.jsonl")
    before = publish_tiny_release(recipe, Workspace(recipe.workspace))
    request = Request(user_id="zoe", k=10)
    [answer] = Pipeline.of_release(before).recommend([request])
    assert answer.user == "unknown"

    with EventStore.open(folder / "node-1") as one, EventStore.open(folder / "node-2") as two:
        assert click(one, "zoe", FIRST_CLICKS, 2_000_000.0) == 6
        assert click(two, "zoe", LATER_CLICKS, 2_000_100.5) == 2
        assert click(two, "u001", [NEW_ITEM], 2_000_200.0) == 1
        assert click(two, "zoe", FIRST_CLICKS[:2], 2_000_300.0) == 2  # at another node without a Redis: logged twice
        assert one.newest("zoe", 3) == ["i007", NEW_ITEM, "i009"]
        torn = folder / "node-1" / "log" / "20260101-killed.jsonl"
        torn.write_text('{"event_id": "never acknowledged", "user_id": "zo')

        recipe = recipe_of(
            folder, tiny_encoder, "history.jsonl", "node-*/log/*.jsonl", warm_start=before.bundle.uri
        )
        dataset = Dataset(stages.ingest_stage(recipe))
        metrics = dataset.artifact.manifest.metrics
        assert (metrics["rows_read"], metrics["rows_quarantined"]) == (800 + 9 + 2 + 1, 1)
        assert metrics["rows_dropped_by_filter"]["repeated_pair"] == 2
        past = dataset.items.ids(dataset.histories("test")[dataset.users.row("zoe")])
        assert past == [*FIRST_CLICKS, *LATER_CLICKS]

    bundle = Bundle(stages.train_stage(recipe))
    assert bundle.artifact.manifest.parents == {"dataset": dataset.id, "bundle": Bundle.open(before.bundle.uri).id}
    stages.index_stage(recipe)
    after = stages.publish_stage(recipe)
    [answer] = Pipeline.of_release(after).recommend([request])
    assert (answer.user, answer.release) == ("known", after.id)
    shown = [item.item_id for item in answer.items]
    assert len(shown) == 10 and not {*shown} & {*FIRST_CLICKS, *LATER_CLICKS}
    assert sum(int(item[1:]) % 2 for item in shown) >= 8, "zoe likes white things"
    assert bundle.items.row(NEW_ITEM) >= 0


@pytest.mark.drill
def test_a_running_endpoint_answers_from_the_release_that_was_made_of_the_events_it_took(
    folder, tiny_encoder, ray_session
):
    recipe = recipe_of(folder, tiny_encoder, "history.jsonl", serve={"port": free_port()})
    before = publish_tiny_release(recipe, Workspace(recipe.workspace))
    events = [{"event_id": item, "user_id": "zoe", "item_id": item} for item in (*FIRST_CLICKS, *LATER_CLICKS)]
    with stages.serve_stage(recipe) as endpoint:
        def post(route: str, body: dict) -> dict:
            return post_json(f"{endpoint.url}/v1/{route}", endpoint.api_key, body)

        assert post("events", {"events": events})["accepted"] == 8
        answer = post("recommend", {"user_id": "zoe"})
        assert (answer["user"], answer["release"]) == ("unknown", before.id)
        recipe = recipe_of(
            folder, tiny_encoder, "history.jsonl", "work/events/log/*.jsonl", warm_start=before.bundle.uri
        )
        for stage in (stages.ingest_stage, stages.train_stage, stages.index_stage):
            stage(recipe)
        after = stages.publish_stage(recipe)
        deadline = time.monotonic() + 60
        while answer["release"] != after.id:
            assert time.monotonic() < deadline, "the endpoint does not follow"
            time.sleep(0.2)
            answer = post("recommend", {"user_id": "zoe"})
        assert answer["user"] == "known"
        assert not {item["item_id"] for item in answer["items"]} & {event["item_id"] for event in events}
        assert answer["degraded"] == []


def test_a_day_that_is_over_can_be_packed_into_an_archive_that_ingest_reads_with_the_running_log(folder, tiny_encoder):
    with EventStore.open(folder / "node") as store:
        click(store, "zoe", FIRST_CLICKS, 2_000_000.0)
        [file] = store.log.files()
        (folder / "archive").mkdir()
        (folder / "archive" / f"{file.name}.gz").write_bytes(compress(file.read_bytes()))
        file.unlink()
        click(store, "zoe", LATER_CLICKS, 2_000_100.0)
        recipe = recipe_of(folder, tiny_encoder, "history.jsonl", "archive/*.jsonl.gz", "node/log/*.jsonl")
        dataset = Dataset(ingest(recipe, folder, Workspace(recipe.workspace), use_ray=False))
        assert store.newest("zoe", 100) == [*FIRST_CLICKS, *LATER_CLICKS]
        assert click(store, "zoe", FIRST_CLICKS, 2_000_000.0) == 0
        assert [json.loads(line)["item_id"] for line in store.log.files()[0].read_text().splitlines()] == LATER_CLICKS
    zoe = dataset.users.row("zoe")
    assert dataset.items.ids(dataset.histories("test")[zoe]) == [*FIRST_CLICKS, *LATER_CLICKS]
