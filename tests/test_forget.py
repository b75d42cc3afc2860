from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
import yaml
from safetensors.numpy import load_file

from llmrec_ray.artifact import Workspace, file_names
from llmrec_ray.bundle import Bundle
from llmrec_ray.changes import ChangeLog, RemovedItem
from llmrec_ray.cli.main import run as command_line
from llmrec_ray.config import ApiKey, FollowConfig, Recipe
from llmrec_ray.config.data import Cooccurrence, TableConfig
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.data import log as log_module
from llmrec_ray.data.log import Log, LoggedEvents
from llmrec_ray.data.ranges import read_range
from llmrec_ray.errors import (
    ArtifactError,
    ArtifactNotFoundError,
    CorruptArtifactError,
    DataError,
    EventLogError,
    EventViewError,
)
from llmrec_ray.evaluate import evaluate
from llmrec_ray.events import Event, EventLog, EventStore
from llmrec_ray.forget import Forgotten, endpoints, forget
from llmrec_ray.forgotten import Tombstones, forgotten_in, forgotten_uri, remember
from llmrec_ray.recommend import Pipeline, Request
from llmrec_ray.release import Release, current_uri, load_release, rollback
from llmrec_ray.serve import ServeArgs
from llmrec_ray.serve.forgetting import forgotten_beside
from llmrec_ray.serve.keys import hash_key
from tests.boards import board_recipe, write_board
from tests.killed_ingest import forge
from tests.local_endpoint import local_endpoint
from tests.local_http import served
from tests.redis_server import RedisServer
from tests.searching import found_in
from tests.tiny_release import publish_tiny_release

WHO = "person-4711@example.org"


def write_log(folder: Path, **names: str) -> None:
    """A checkerboard some of whose users are called otherwise, with a bad row of each."""
    write_board(folder)
    log = pl.read_csv(folder / "log.csv").with_columns(pl.col("who").replace(names))
    bad = pl.DataFrame([{"who": user, "what": "i001", "when": ""} for user in (*names.values(), "u001")])
    pl.concat([log.cast(pl.String), bad]).write_csv(folder / "log.csv")


@pytest.fixture
def recipe(tmp_path, tiny_encoder) -> Recipe:
    write_log(tmp_path, u006=WHO)
    recipe = board_recipe(tmp_path, encoder={"model": str(tiny_encoder)}, model={"user_embedding": True})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_bad_ratio": 0.1})})


@pytest.fixture
def workspace(recipe) -> Workspace:
    return Workspace(recipe.workspace)


@pytest.fixture
def release(recipe, workspace) -> Release:
    return publish_tiny_release(recipe, workspace)


def run(recipe: Recipe, workspace: Workspace, user_id: str = WHO) -> Forgotten:
    return forget(recipe, user_id, workspace, Path(workspace.uri) / "raw")


def answers(workspace: Workspace, users: list[str]) -> list[tuple]:
    pipeline = Pipeline.of_release(load_release(current_uri(workspace)))
    found = pipeline.recommend([Request(user_id=user, k=20, explain=True) for user in users])
    return [[(item.item_id, item.score, item.shares) for item in answer.items] for answer in found]


def test_nothing_holds_the_person_afterwards_but_the_owners_files(recipe, workspace, release):
    assert found_in(Path(workspace.uri), WHO)
    forgotten = run(recipe, workspace)
    assert found_in(Path(workspace.uri), WHO) == []
    [(file, rows)] = forgotten.left.items()
    assert file.endswith("log.csv")
    assert rows == 20
    assert forgotten.release == load_release(current_uri(workspace)).id != release.id
    assert {release.dataset.uri, release.bundle.uri, release.index.uri} <= set(forgotten.replaced)


def test_everybody_else_gets_the_same_recommendations_bit_for_bit(recipe, workspace, release):
    others = [user for user in Dataset.open(release.dataset.uri).users if user != WHO]
    before = answers(workspace, others)
    run(recipe, workspace)
    assert answers(workspace, others) == before
    response = Pipeline.of_release(load_release(current_uri(workspace))).recommend([Request(user_id=WHO, k=5)])[0]
    assert response.user == "unknown"


def test_rows_stay_where_they_are_and_the_persons_row_says_nothing(recipe, workspace, release):
    before = Dataset.open(release.dataset.uri)
    row, events, ids, texts = before.users.row(WHO), before.interactions, list(before.users), before.item_texts
    forgotten = run(recipe, workspace)
    after = Dataset.open(load_release(current_uri(workspace)).dataset.uri)
    assert list(after.users) == [forgotten.tombstone if id_ == WHO else id_ for id_ in ids]
    assert after.interactions.equals(events.filter(pl.col("user_row") != row))
    assert after.item_texts == texts
    metrics = after.artifact.manifest.metrics
    assert metrics["rows_dropped_by_filter"]["forgotten_user"] == 20
    dropped = sum(metrics["rows_dropped_by_filter"].values())
    assert metrics["rows_read"] == metrics["rows_kept"] + metrics["rows_quarantined"] + dropped
    assert "forgotten" in after.quarantine["raw"].to_list()
    assert any("u001" in raw for raw in after.quarantine["raw"])


def test_what_the_model_knew_of_the_person_is_as_of_somebody_new(recipe, workspace, release):
    bundle = Bundle.open(release.bundle.uri)
    row, name = bundle.users.row(WHO), "users.users.weight"
    before = load_file(bundle.artifact.path / "model.safetensors")
    run(recipe, workspace)
    after = load_file(Bundle.open(load_release(current_uri(workspace)).bundle.uri).artifact.path / "model.safetensors")
    assert not after[name][row].any()
    others = np.arange(len(before[name])) != row
    assert all(np.array_equal(before[key], after[key]) for key in before if key != name)
    assert np.array_equal(before[name][others], after[name][others])


def test_nobody_who_asks_again_or_was_never_there_changes_anything(recipe, workspace, release):
    with pytest.raises(DataError, match=r"names the user 'nobody', so nothing was changed: give the id as the log"):
        run(recipe, workspace, "nobody")
    assert len(forgotten_in(workspace)) == 0
    first = run(recipe, workspace)
    again = run(recipe, workspace)
    assert again == Forgotten(first.tombstone, {}, [], 0, first.release, first.left)


def test_there_is_no_way_back_to_a_release_that_holds_the_person(recipe, workspace, release):
    run(recipe, workspace)
    with pytest.raises(ArtifactNotFoundError, match="has never pointed at another Release"):
        rollback(workspace)
    assert len(file_names(workspace.root("release"))) == 2  # the new one and the pointer


def test_the_tombstone_knows_the_person_and_names_nobody(recipe, workspace, release):
    run(recipe, workspace)
    tombstones = forgotten_in(workspace)
    assert tombstones.is_forgotten(pl.Series("who", ["u001", WHO, None, WHO])).to_list() == [False, True, False, True]
    assert Tombstones().is_forgotten(pl.Series(["u001"])).to_list() == [False]
    assert WHO not in (Path(workspace.uri) / "forgotten.json").read_text()


def test_events_of_the_person_go_and_those_of_others_stay_in_their_place(recipe, workspace, release):
    folder = workspace.local_folder("events")
    with EventStore.open(folder) as store:
        store.record([event("a", "u001"), event("b", WHO), event("c", "u001", "i002"), event("d", WHO, "i002")])
        [file] = store.log.files()
        lines = file.read_bytes().splitlines(keepends=True)
        assert run(recipe, workspace).event_lines == 2
        assert found_in(folder, WHO) == []
        after = file.read_bytes().splitlines(keepends=True)
        assert [len(line) for line in after] == [len(line) for line in lines]
        assert [after[0], after[2]] == [lines[0], lines[2]]
        assert store.newest_of(["u001", WHO], 10) == {"u001": ["i001", "i002"], WHO: []}
        assert store.record([event("e", WHO), event("f", "u001", "i003")]) == 1
        assert store.newest("u001", 10) == ["i001", "i002", "i003"]
        assert found_in(folder, WHO) == []
    for place in folder.glob("view.sqlite*"):
        place.unlink()
    with EventStore.open(folder) as store:
        assert store.newest_of(["u001", WHO], 10) == {"u001": ["i001", "i002", "i003"], WHO: []}


def event(event_id: str, user_id: str, item_id: str = "i001") -> Event:
    return Event(event_id=event_id, user_id=user_id, item_id=item_id, timestamp=float(item_id[1:]))


def test_checkpoints_and_what_killed_stages_left_go_too(recipe, workspace, release):
    root = Path(workspace.uri)
    for name, content in (
        ("runs/train/run.json", json.dumps({"dataset": release.dataset.id})),
        ("runs/other/run.json", json.dumps({"dataset": "of somewhere else"})),
        ("tune/trials/1/run.json", "{}"),
        ("datasets/.staging-dataset-1/part.txt", WHO),
        ("datasets/.staging-dataset-2.in-use", ""),
        ("datasets/.staging-dataset-2/part.txt", WHO),
        ("scratch/.ingest-3.in-use", ""),
        ("scratch/.ingest-3/log/events.txt", WHO),
        ("datasets/dataset-0123456789abcdef/left.txt", WHO),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    run(recipe, workspace)
    assert found_in(root, WHO) == []
    assert [path.name for path in (root / "runs").iterdir()] == ["other"]
    assert not (root / "tune").exists()


def test_an_endpoint_follows_without_a_failed_request_and_keeps_everybody_elses_events(
    recipe, workspace, release, monkeypatch
):
    monkeypatch.setattr(endpoints, "GRACE_S", 0.5)  # one replica of each stage, in one process
    with serving(workspace) as url, httpx.Client(base_url=url, headers=ADMIN, timeout=30, trust_env=False) as http:
        assert ask(http, WHO)["user"] == "known"
        with writers(url, n=3) as written:
            send(http, "first", WHO)
            forgotten = forget(recipe, WHO, workspace, Path(workspace.uri) / "raw", endpoints=[url])
            time.sleep(0.3)
        assert ask(http, "u001")["release"] == forgotten.release != release.id
        assert ask(http, WHO)["user"] == "unknown"
        answer = send(http, "later", WHO)
        assert (answer["accepted"], answer["duplicates"], answer["forgotten"]) == (0, 0, 1)
        assert len(written) > 20
        log = EventLog(workspace.local_folder("events") / "log")
        kept = [event.event_id for file in log.files() for event, _ in log.read(file) if event is not None]
        assert sorted(kept) == sorted(written)
        assert found_in(Path(workspace.uri), WHO) == []


def test_an_administrator_can_have_a_running_endpoint_forget_at_once(workspace, release):
    with serving(workspace) as url, httpx.Client(base_url=url, headers=ADMIN, timeout=30, trust_env=False) as http:
        send(http, "a", WHO)
        send(http, "b", "u001")
        answer = http.delete(f"/v1/admin/users/{WHO}").json()
        assert answer["events"] == 1
        assert answer["release"] == release.id
        assert ask(http, WHO)["user"] == "unknown"
        assert ask(http, WHO)["cold"] is True
        assert ask(http, "u001")["user"] == "known"
        assert http.get("/v1/users", params={"prefix": "person"}).json() == []
        assert found_in(workspace.local_folder("events"), WHO) == []
        assert http.delete(f"/v1/admin/users/{WHO}").json()["events"] == 0
    assert WHO in forgotten_in(workspace)


def test_whoever_was_forgotten_while_an_endpoint_was_down_is_gone_when_it_answers(recipe, workspace, release):
    with EventStore.open(workspace.local_folder("events")) as store:
        store.record([event("a", WHO), event("b", "u001")])
    remember(forgotten_uri(workspace), WHO, done=False)
    with serving(workspace) as url, httpx.Client(base_url=url, headers=ADMIN, timeout=30, trust_env=False) as http:
        assert ask(http, WHO)["user"] == "unknown"
        assert found_in(workspace.local_folder("events"), WHO) == []


def test_the_list_lies_in_the_workspace_of_a_release_or_beside_it():
    assert forgotten_beside("s3://bucket/work/releases/current.json") == "s3://bucket/work/forgotten.json"
    assert forgotten_beside("/somewhere/release.json") == "/somewhere/forgotten.json"


def test_what_redis_has_of_the_person_goes_and_does_not_come_back(recipe, workspace, release, tmp_path, monkeypatch):
    server = RedisServer(tmp_path)
    monkeypatch.setenv("LLMREC_REDIS_URL", server.url)
    try:
        with (
            EventStore.open(workspace.local_folder("events"), server.url) as here,
            EventStore.open(tmp_path / "elsewhere", server.url) as elsewhere,
        ):
            here.record([event("a", WHO), event("b", "u001")])
            elsewhere.record([event("c", WHO, "i002"), event("d", "u002", "i002")])
            assert here.newest(WHO, 5) == ["i001", "i002"]
            run(recipe, workspace)
            assert keys_with(server, WHO) == []
            elsewhere.forget(forgotten_in(workspace))  # as its endpoint does when it sees the list
            server.client().flushall()
            wait_for(lambda: here.newest_of([WHO, "u001", "u002"], 5) == {WHO: [], "u001": ["i001"], "u002": ["i002"]})
            assert keys_with(server, WHO) == []
            assert found_in(tmp_path / "elsewhere", WHO) == []
            server.kill()
            with pytest.raises(EventLogError, match=f"The events of '{WHO}' in Redis cannot be removed now"):
                run(recipe, workspace)
            server.start()
            run(recipe, workspace)
    finally:
        server.kill()


def keys_with(server: RedisServer, word: str) -> list[bytes]:
    client = server.client()
    found = [key for key in client.scan_iter() if word.encode() in key]
    client.close()
    return found


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(EventViewError):
            if is_so():
                return
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.05)


@pytest.fixture
def fed(recipe, workspace, tmp_path) -> Recipe:
    """The recipe with feedback: the endpoint's own events, and an archive that is packed."""
    archive = tmp_path / "archive"
    archive.mkdir()
    lines = [event(f"x{n}", user, "i003").model_dump_json() + "\n" for n, user in enumerate([WHO, "u001", "u002", WHO])]
    with gzip.open(archive / "20200101-old.jsonl.gz", "wt") as packed:
        packed.writelines(lines)
    with EventStore.open(workspace.local_folder("events")) as store:
        store.record([event("a", WHO), event("b", "u001", "i002")])
    data = recipe.data.model_copy(update={"feedback": ("{events}", str(archive)), "repeats": "last"})
    return recipe.model_copy(update={"data": data})


def test_archives_of_event_logs_lose_the_person_and_an_incremental_ingest_goes_on(fed, workspace, tmp_path):
    raw = Path(workspace.uri) / "raw"
    before = Dataset(ingest(fed, raw, workspace))
    assert run(fed, workspace).event_lines == 3
    assert found_in(Path(workspace.uri), WHO) == []
    assert found_in(tmp_path / "archive", WHO) == []
    assert ingest(fed, raw, workspace, extend=True).uri == workspace.latest("dataset", made_by="ingest") != before.uri
    with EventStore.open(workspace.local_folder("events")) as store:
        store.record([event("new", "u003", "i004")])
    extended = Dataset(ingest(fed, raw, workspace, extend=True))
    anew = Dataset(ingest(fed, raw, workspace))
    assert found_in(Path(workspace.uri), WHO) == []
    assert anew.artifact.manifest.metrics["rows_dropped_by_filter"]["forgotten_user"] == 20
    assert [events_of(dataset, "u003") for dataset in (extended, anew)] == [events_of(extended, "u003")] * 2
    assert len(anew.users) == len(extended.users) - 1


def events_of(dataset: Dataset, user_id: str) -> list[str]:
    rows = dataset.interactions.filter(pl.col("user_row") == dataset.users.row(user_id))
    return dataset.items.ids(rows["item_row"])


def test_a_cut_between_ranges_of_users_at_the_persons_id_moves_where_nobody_is(recipe, workspace, monkeypatch):
    monkeypatch.setattr(log_module, "RANGE_ROWS", 30)
    for _ in range(3):
        dataset = Dataset(ingest(recipe, Path(workspace.uri) / "raw", workspace))
        who = log_of(dataset, workspace).splitters[1]
        before = dataset.interactions.filter(pl.col("user_row") != dataset.users.row(who))
        run(recipe, workspace, who)
        now = Dataset.open(workspace.latest("dataset", made_by="ingest"))
        events = log_of(now, workspace)
        assert who not in events.splitters
        assert events.splitters == sorted(events.splitters)
        assert now.interactions.equals(before)
        for number in range(len(events.splitters) + 1):
            users = read_range(events.fragments, number)["user_id"]
            assert all(number == sum(cut <= user for cut in events.splitters) for user in users)


def log_of(dataset: Dataset, workspace: Workspace) -> LoggedEvents:
    [log_id] = dataset.log_ids
    return Log.open(f"{workspace.root('log')}/log-{log_id}").events


@pytest.mark.parametrize("shares", [
    (0.15, 0.5, 0.85, 0.97), pytest.param(tuple(np.linspace(0.01, 0.99, 40)), marks=pytest.mark.drill),
])
def test_a_run_that_is_killed_loses_nothing_of_others_and_the_next_one_finishes(fed, workspace, tmp_path, shares):
    release = publish_tiny_release(fed, workspace)
    others = [user for user in Dataset.open(release.dataset.uri).users if user != WHO]
    before = answers(workspace, others)
    order = {"recipe": fed.model_dump(mode="json"), "raw": str(tmp_path / "raw"), "forget": WHO}
    untouched = tmp_path / "untouched"
    for folder in ("work", "archive"):
        shutil.copytree(tmp_path / folder, untouched / folder)
    with forge() as forged:
        ended, steps = forged.run(**order, workspace=workspace.uri)
        assert (ended, found_in(Path(workspace.uri), WHO)) == ("done", [])
        for share in shares:
            for folder in ("work", "archive"):
                shutil.rmtree(tmp_path / folder)
                shutil.copytree(untouched / folder, tmp_path / folder)
            ended, _ = forged.run(**order, workspace=workspace.uri, kill_at=int(share * steps))
            assert ended == "killed"
            assert answers(workspace, others) == before
            ended, _ = forged.run(**order, workspace=workspace.uri)
            assert ended == "done"
            assert found_in(Path(workspace.uri), WHO) == []
            assert found_in(tmp_path / "archive", WHO) == []
            assert answers(workspace, others) == before


def test_tables_that_are_counted_from_events_are_those_of_the_others(recipe, workspace, tmp_path):
    data = recipe.data.model_copy(update={"cooccurrence": Cooccurrence(within=3, top=5), "popularity_days": 0.01})
    recipe = recipe.model_copy(update={"data": data})
    before = Dataset(ingest(recipe, tmp_path / "raw", workspace))
    popularity, companions = before.popularity_over_time, before.cooccurrence
    run(recipe, workspace)
    now = Dataset.open(workspace.latest("dataset", made_by="ingest"))
    log = pl.read_csv(tmp_path / "log.csv", infer_schema=False)
    log.filter(pl.col("who") != WHO).write_csv(tmp_path / "log.csv")
    never = Dataset(ingest(recipe, tmp_path / "raw", Workspace(str(tmp_path / "never"))))
    assert now.popularity_over_time.equals(never.popularity_over_time)
    assert now.cooccurrence.equals(never.cooccurrence)
    assert not popularity.equals(never.popularity_over_time)
    assert not companions.equals(never.cooccurrence)


@pytest.fixture
def package_logging_as_before():
    """The command line points the package's log at stderr, which in a test is closed afterwards."""
    log = logging.getLogger("llmrec_ray")
    before = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = before[0], before[1]
    log.setLevel(before[2])


@pytest.mark.usefixtures("package_logging_as_before")
def test_the_command_says_what_it_did_and_what_is_left(recipe, workspace, release, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = ["forget", "--config", str(tmp_path / "recipe.yaml"), "--json", "--user"]
    assert command_line([*command, "nobody"]) == 1
    assert "names the user 'nobody', so nothing was changed" in capsys.readouterr().err
    assert command_line([*command, WHO]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out.splitlines()[-1])
    assert told["tombstone"].startswith("forgotten:")
    assert told["left"] == {str(tmp_path / "log.csv"): 20}
    assert told["release"] == load_release(current_uri(workspace)).id
    assert f"20 rows of {tmp_path / 'log.csv'}; the next ingest leaves them out." in said.err
    assert WHO not in said.out + said.err


def test_the_files_of_a_release_stay_as_long_as_an_endpoint_answers_with_it(recipe, workspace, release, monkeypatch):
    monkeypatch.setattr(endpoints, "SWITCH_TIMEOUT_S", 0.2)
    with stuck_at(release.id) as url:
        message = f"{url} still answers with release {release.id} after 0 s, so its files were not deleted"
        with pytest.raises(ArtifactError, match=re.escape(message)):
            forget(recipe, WHO, workspace, Path(workspace.uri) / "raw", endpoints=[url])
    assert Dataset.open(release.dataset.uri).users.row(WHO) >= 0
    run(recipe, workspace)
    assert found_in(Path(workspace.uri), WHO) == []


@contextlib.contextmanager
def stuck_at(release_id: str) -> Iterator[str]:
    """An endpoint that never switches."""
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"release": f"{release_id}+3"}).encode()})

    with served(app, lifespan="off") as url:
        yield url


def test_changes_to_items_that_were_made_while_serving_go_on(recipe, workspace, release):
    log = ChangeLog.of(current_uri(workspace), release.id)
    log.append([RemovedItem(item_id="i001")], after=0)
    forgotten = run(recipe, workspace)
    assert ChangeLog.of(current_uri(workspace), forgotten.release).read().gone == {"i001"}
    assert not Path(log.uri).exists()


def test_a_damaged_list_of_forgotten_people_is_told_of_and_takes_no_events(workspace, recipe, release):
    with EventStore.open(workspace.local_folder("events")) as store:
        store.record([event("a", WHO)])
        run(recipe, workspace)
        for place in (Path(workspace.uri) / "forgotten.json", store.log.folder / "forgotten.json"):
            place.write_text('{"people": []}')
        with pytest.raises(CorruptArtifactError, match="which says who was forgotten, is damaged: restore it from a"):
            run(recipe, workspace)
        with pytest.raises(EventLogError, match=r"event log: .*forgotten.json, which says who was forgotten, is dam"):
            store.record([event("b", "u001")])


def test_somebody_who_is_only_in_the_owners_files_is_kept_out_of_the_next_ingest(recipe, workspace, tmp_path):
    with pytest.raises(DataError, match="so nothing was changed"):
        run(recipe, workspace, "nobody")
    forgotten = run(recipe, workspace)
    assert (forgotten.replaced, forgotten.deleted, forgotten.left) == ({}, [], {str(tmp_path / "log.csv"): 20})
    assert WHO not in Dataset(ingest(recipe, tmp_path / "raw", workspace)).users


def test_what_is_said_of_the_person_goes_and_what_is_said_of_others_stays(recipe, workspace, tmp_path):
    lines = [f"{who},I am {who},{age}" for age, who in enumerate(["u001", WHO, "u003"])]
    surplus = f"{WHO},a row with too many fields,1,2"
    (tmp_path / "people.csv").write_text("\n".join(["who,about,age", *lines, surplus, ""]))
    table = TableConfig(
        paths=(str(tmp_path / "people.csv"),), format="csv", id="who", template="{about}", attributes=("age",)
    )
    data = recipe.data.model_copy(update={"users": (table,), "max_bad_ratio": 0.5})
    recipe = recipe.model_copy(update={"data": data})
    before = Dataset(ingest(recipe, tmp_path / "raw", workspace))
    row, texts = before.users.row(WHO), before.user_texts
    ages = before.user_attributes["age"].to_list()
    assert (texts[row], ages[row]) == (f"I am {WHO}", 1)
    forgotten = run(recipe, workspace)
    assert {Path(file).name: rows for file, rows in forgotten.left.items()} == {"log.csv": 20, "people.csv": 1}
    now = Dataset.open(workspace.latest("dataset", made_by="ingest"))
    texts[row], ages[row] = "", None
    assert (now.user_texts, now.user_attributes["age"].to_list()) == (texts, ages)
    assert found_in(Path(workspace.uri), WHO) == []
    ingest(recipe, tmp_path / "raw", workspace)
    assert found_in(Path(workspace.uri), WHO) == []


@pytest.fixture
def bucket(monkeypatch, tmp_path) -> Iterator[Any]:
    """A client of a real S3 server with the bucket `work`, which artifacts are kept in too."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("EC2_METADATA_DISABLED", "true"),
                        ("DEFAULT_REGION", "us-east-1"), ("ENDPOINT_URL", url)):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="work")
    yield client
    server.stop()


def test_a_workspace_in_an_object_store_and_what_was_fetched_of_it_lose_the_person(recipe, bucket, tmp_path):
    recipe = recipe.model_copy(update={"workspace": "s3://work/board"})
    workspace = Workspace(recipe.workspace)
    before = publish_tiny_release(recipe, workspace)
    forgotten = forget(recipe, WHO, workspace, tmp_path / "raw")
    assert forgotten.release == load_release(current_uri(workspace)).id != before.id
    for entry in bucket.list_objects_v2(Bucket="work")["Contents"]:
        if not entry["Key"].endswith("/"):
            file = tmp_path / "fetched" / entry["Key"]
            file.parent.mkdir(parents=True, exist_ok=True)
            bucket.download_file("work", entry["Key"], str(file))
    assert (tmp_path / "fetched" / "board" / "forgotten.json").exists()
    assert found_in(tmp_path / "fetched", WHO) == found_in(tmp_path / "cache", WHO) == []


def test_what_was_measured_stays_without_the_person(recipe, workspace, release):
    evaluation = evaluate(
        recipe, Dataset.open(release.dataset.uri), Bundle.open(release.bundle.uri), Pipeline.of_release(release),
        workspace,
    )
    shown = json.loads((Path(evaluation.uri) / "examples.json").read_text())
    who = shown[1]["user_id"]
    before = pl.read_parquet(Path(evaluation.uri) / "ranks.parquet")
    assert f"User {who}" in (Path(evaluation.uri) / "report.html").read_text()
    forgotten = run(recipe, workspace, who)
    now = Path(workspace.latest("evaluation", made_by="evaluate"))
    assert forgotten.replaced[evaluation.uri] == str(now)
    assert pl.read_parquet(now / "ranks.parquet").equals(before.filter(pl.col("user_id") != who))
    assert f"User {shown[0]['user_id']}" in (now / "report.html").read_text()
    assert json.loads((now / "examples.json").read_text()) == [shown[0], *shown[2:]]
    assert found_in(Path(workspace.uri), who) == []
    assert not Path(evaluation.uri).exists()


@pytest.mark.drill
def test_on_ray_two_ingress_replicas_follow_without_a_failed_request(recipe, workspace, release, ray_session):
    from llmrec_ray.config import Replicas, ServeConfig
    from llmrec_ray.serve import start
    from tests.test_serve_http import free_port

    config = ServeConfig(
        port=free_port(), ingress=Replicas(min_replicas=2, max_replicas=2),
        keys=[ApiKey(name="test", sha256=hash_key("the admin key"), admin=True)],
    )
    events = workspace.local_folder("events")
    with (
        start(config, current_uri(workspace), str(events), api_key="the key") as endpoint,
        httpx.Client(base_url=endpoint.url, headers=ADMIN, timeout=30, trust_env=False) as http,
    ):
        assert ask(http, WHO)["user"] == "known"
        with writers(endpoint.url, n=4) as written:
            for number in range(20):
                send(http, f"first-{number}", WHO)
            forgotten = forget(recipe, WHO, workspace, Path(workspace.uri) / "raw", endpoints=[endpoint.url])
            for number in range(20):
                assert send(http, f"later-{number}", WHO)["forgotten"] == 1
                answer = ask(http, WHO)
                assert (answer["user"], answer["release"]) == ("unknown", forgotten.release)
        log = EventLog(events / "log")
        kept = [event.event_id for file in log.files() for event, _ in log.read(file) if event is not None]
        assert sorted(kept) == sorted(written)
        assert len(written) > 100
        assert found_in(Path(workspace.uri), WHO) == []


ADMIN = {"Authorization": "Bearer the admin key"}


@contextlib.contextmanager
def serving(workspace: Workspace) -> Iterator[str]:
    args = ServeArgs(
        release_uri=current_uri(workspace), events_folder=str(workspace.local_folder("events")),
        follow=FollowConfig(sync_s=0.2, pointer_s=0.2),
        keys=[ApiKey(name="test", sha256=hash_key("the admin key"), admin=True)],
    )
    with local_endpoint(args) as url:
        yield url


@contextlib.contextmanager
def writers(url: str, n: int) -> Iterator[list[str]]:
    """People who send events and ask for recommendations all the time; the ids of events that were acknowledged."""
    done, written, failed = threading.Event(), list[str](), list[str]()

    def write(number: int) -> None:
        with httpx.Client(base_url=url, headers=ADMIN, timeout=30, trust_env=False) as http:
            for count in itertools.count():
                if done.is_set():
                    return
                try:
                    assert send(http, f"{number}-{count}", f"u{number:03}", f"i{count % 40:03}")["accepted"] == 1
                    written.append(f"{number}-{count}")
                    assert ask(http, f"u{number:03}")["degraded"] == []
                except Exception as error:
                    failed.append(repr(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    try:
        yield written
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failed == []


def send(http: httpx.Client, event_id: str, user_id: str, item_id: str = "i001") -> dict:
    answer = http.post("/v1/events", json={"events": [{"event_id": event_id, "user_id": user_id, "item_id": item_id}]})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ask(http: httpx.Client, user_id: str) -> dict:
    answer = http.post("/v1/recommend", json={"user_id": user_id, "k": 5})
    assert answer.status_code == 200, answer.text
    return answer.json()
