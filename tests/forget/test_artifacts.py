from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from safetensors.numpy import load_file

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.cli.main import run as command_line
from llmrec_ray.config.data import Cooccurrence, TableConfig
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.data import log as log_module
from llmrec_ray.data.log import Log, LoggedEvents
from llmrec_ray.data.ranges import read_range
from llmrec_ray.errors import (
    ArtifactNotFoundError,
    DataError,
)
from llmrec_ray.evaluate import evaluate
from llmrec_ray.forget import Forgotten, forget
from llmrec_ray.forget.person import Person
from llmrec_ray.forgotten import Tombstones, forgotten_in
from llmrec_ray.recommend import Pipeline, Request
from llmrec_ray.release import current_uri, load_release, publish, rollback
from llmrec_ray.storage import file_names
from tests.forget.person import WHO, answers, run, write_log
from tests.killed_ingest import forge
from tests.searching import found_in
from tests.tiny_release import publish_tiny_release


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


def test_a_release_that_was_never_pointed_at_goes_too(recipe, workspace, release):
    (Path(workspace.uri) / "releases" / "current.json").unlink()
    forgotten = run(recipe, workspace)
    assert forgotten.release is None
    assert f"{workspace.root('release')}/{release.id}.json" in forgotten.deleted
    assert found_in(Path(workspace.uri), WHO) == []


def test_artifacts_that_a_release_names_in_another_spelling_are_deleted_once(recipe, workspace, release):
    parts = {f"{kind}_uri": f"file://{getattr(release, kind).uri}" for kind in ("dataset", "bundle", "index")}
    publish(workspace, name="other", policy=release.policy, **parts)
    forgotten = run(recipe, workspace)
    assert forgotten.release == load_release(current_uri(workspace)).id != release.id
    assert found_in(Path(workspace.uri), WHO) == []


@pytest.mark.parametrize("who", ['who "4711"', "4711,4712", "4711|4712", "Ω'4711"])
def test_a_bad_row_is_known_as_the_persons_however_it_writes_their_id(tmp_path, tiny_encoder, workspace, recipe, who):
    write_log(tmp_path, u006=who)
    ingest(recipe, tmp_path / "raw", workspace)
    run(recipe, workspace, who)
    ingest(recipe, tmp_path / "raw", workspace)
    for kind in ("dataset", "log"):
        for file in Path(workspace.root(kind)).rglob("quarantine.parquet"):
            assert sorted(pl.read_parquet(file)["raw"].to_list()) == ["forgotten", 'u001,i001,""']


def test_a_row_of_json_is_known_as_the_persons_however_it_is_escaped():
    names = ['Ω"x', "a\\b", "plain"]
    tombstones = Tombstones()
    for name in names:
        tombstones = tombstones.with_user(name, done=True)
    rows = [json.dumps({"u": name}, ensure_ascii=is_ascii) for name in names for is_ascii in (True, False)]
    assert tombstones.without_mentions(pl.Series([*rows, "other"])).to_list() == ["forgotten"] * 6 + ["other"]
    for name in names:
        theirs = Person(name)._may_be_theirs({})
        assert pl.DataFrame({"raw": rows}).select(theirs).to_series().to_list() == [
            json.loads(row)["u"] == name for row in rows
        ]


def test_the_tombstone_knows_the_person_and_names_nobody(recipe, workspace, release):
    run(recipe, workspace)
    tombstones = forgotten_in(workspace)
    assert tombstones.is_forgotten(pl.Series("who", ["u001", WHO, None, WHO])).to_list() == [False, True, False, True]
    assert Tombstones().is_forgotten(pl.Series(["u001"])).to_list() == [False]
    assert WHO not in (Path(workspace.uri) / "forgotten.json").read_text()


def test_checkpoints_and_what_killed_stages_left_go_too(recipe, workspace, release, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    copies = [tmp_path / "cache" / "artifacts" / name for name in ("bundle-0123", "evaluation-0123", "bundle-4567")]
    for copy in copies:
        copy.mkdir(parents=True)
    root = Path(workspace.uri)
    for name, content in (
        ("runs/train/run.json", json.dumps({"dataset": release.dataset.id})),
        ("runs/other/run.json", json.dumps({"dataset": "of somewhere else"})),
        ("tune/first/trials/00001/run.json", "{}"),
        ("tune/first/winner/bundles/bundle-0123/users.txt", WHO),
        ("tune/first/confirm/winner-101/evaluations/evaluation-0123/examples.txt", WHO),
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
    assert [copy.exists() for copy in copies] == [False, False, True]


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
            users = map(str, read_range(events.fragments, number)["user_id"])
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
