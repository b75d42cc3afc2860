from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from llmrec_ray.artifact import Workspace, file_names
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ArtifactNotFoundError, DataError
from llmrec_ray.events import Event, EventStore
from llmrec_ray.forget import Forgotten, forget
from llmrec_ray.forgotten import Tombstones, forgotten_in
from llmrec_ray.recommend import Pipeline, Request
from llmrec_ray.release import Release, current_uri, load_release, rollback
from tests.boards import board_recipe, write_board
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
        ("datasets/dataset-0123456789abcdef/left.txt", WHO),
    ):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(content)
    run(recipe, workspace)
    assert found_in(root, WHO) == []
    assert [path.name for path in (root / "runs").iterdir()] == ["other"]
    assert not (root / "tune").exists()
