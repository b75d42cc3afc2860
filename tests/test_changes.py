"""The log of added and removed items: what it adds up to, and damage that it notices."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from llmrec_ray.changes import AddedItem, ChangeLog, Changes, NewItem, RemovedItem, _hash
from llmrec_ray.errors import ArtifactNotFoundError, ChangeConflictError, CorruptArtifactError, DiskFullError

REMEDY = "restore the folder from a copy, or publish a Release that has these changes in its Dataset"


def added(item_id: str) -> AddedItem:
    vector = np.random.default_rng(len(item_id)).normal(size=5).astype(np.float32)
    return AddedItem.of(NewItem(item_id=item_id, text=f"story of {item_id}", attributes={"year": 1995}), vector)


def removed(item_id: str) -> RemovedItem:
    return RemovedItem(item_id=item_id)


@pytest.fixture
def log(tmp_path) -> ChangeLog:
    log = ChangeLog.of(f"{tmp_path}/releases/current.json", "abc")
    log.append([added("new"), removed("old")], after=0)
    log.append([added("newer")], after=1)
    log.append([removed("new")], after=2)
    return log


def state(changes: Changes) -> tuple[object, ...]:
    return changes.version, [item.item_id for item in changes.added], set(changes.withdrawn), set(changes.removed)


def test_nothing_was_changed_in_a_log_that_is_not_there(tmp_path):
    log = ChangeLog(str(tmp_path / "none"))
    assert log.version() == 0
    assert state(log.read()) == state(Changes.none()) == (0, [], set(), set())


def test_every_version_can_be_read_again_after_any_number_of_restarts(log, tmp_path):
    again = ChangeLog.of(f"{tmp_path}/releases/abc.json", "abc")
    assert again.uri == log.uri and again.version() == 3
    assert state(again.read(1)) == (1, ["new"], set(), {"old"})
    assert state(again.read(2)) == (2, ["new", "newer"], set(), {"old"})
    assert state(again.read()) == (3, ["new", "newer"], {0}, {"old"})


def test_what_is_read_on_from_an_earlier_version_is_what_is_read_from_the_start(log):
    assert state(log.read(since=log.read(1))) == state(log.read())
    assert state(log.read(3, since=log.read())) == state(log.read())


def test_an_item_that_was_removed_and_added_again_has_a_new_row(log):
    log.append([added("new"), added("old")], after=3)
    assert state(log.read()) == (4, ["new", "newer", "new", "old"], {0}, {"old"})
    log.append([removed("new"), removed("old")], after=4)
    assert state(log.read()) == (5, ["new", "newer", "new", "old"], {0, 2, 3}, {"old"})


def test_text_vectors_come_back_bit_by_bit(log):
    item = log.read().added[0]
    np.testing.assert_array_equal(item.vector, added("new").vector)
    assert item.vector.dtype == np.float32
    assert (item.text, item.title, item.attributes) == ("story of new", None, {"year": 1995})


def test_of_writers_at_the_same_moment_one_wins_and_the_others_are_told(log):
    outcomes: list[object] = []

    def write(item_id: str) -> None:
        try:
            outcomes.append(log.append([added(item_id)], after=3))
        except ChangeConflictError as error:
            outcomes.append(str(error))

    writers = [threading.Thread(target=write, args=(f"item {number}",)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    refused = (
        f"Somebody else has made change 4 in {log.uri} since version 3 was read: look at the items again, then repeat "
        "the change."
    )
    assert sorted(outcomes, key=str) == [4, *[refused] * 7]
    assert log.version() == 4
    assert len(list(Path(log.uri).iterdir())) == 4


def test_a_version_that_is_not_there_is_refused(log):
    with pytest.raises(ArtifactNotFoundError) as caught:
        log.read(7)
    assert str(caught.value) == f"There is no version 4 of the items in {log.uri}: ask for an earlier one."


def test_a_missing_set_of_changes_is_named(log):
    (Path(log.uri) / "00000002.json").unlink()
    with pytest.raises(CorruptArtifactError) as caught:
        log.read()
    assert str(caught.value) == f"The changes in {log.uri} lack 00000002.json: {REMEDY}."


def test_a_changed_set_of_changes_is_named(log):
    file = Path(log.uri) / "00000002.json"
    file.write_text(file.read_text().replace("newer", "older"))
    with pytest.raises(CorruptArtifactError) as caught:
        log.read()
    assert str(caught.value) == f"{file} is not what was written: {REMEDY}."
    with pytest.raises(CorruptArtifactError, match="is not what was written"):
        log.append([added("more")], after=2)


def test_a_set_of_changes_that_is_cut_short_is_named(log):
    file = Path(log.uri) / "00000003.json"
    file.write_text(file.read_text()[:50])
    with pytest.raises(CorruptArtifactError, match=r"00000003\.json is not valid JSON"):
        log.read()


def test_a_set_of_changes_out_of_another_log_is_noticed(log, tmp_path):
    other = ChangeLog(str(tmp_path / "other"))
    other.append([added("elsewhere")], after=0)
    (Path(log.uri) / "00000001.json").write_bytes((Path(other.uri) / "00000001.json").read_bytes())
    with pytest.raises(CorruptArtifactError) as caught:
        log.read()
    assert str(caught.value) == f"{log.uri}/00000002.json does not follow the set of changes before it: {REMEDY}."


def test_changes_that_a_later_version_wrote_are_refused(log):
    file = Path(log.uri) / "00000003.json"
    entry = json.loads(file.read_text().replace('"remove"', '"move"'))
    del entry["sha256"]
    file.write_text(json.dumps(entry | {"sha256": _hash(entry)}))
    with pytest.raises(CorruptArtifactError) as caught:
        log.read()
    assert str(caught.value).startswith(f"{file} holds changes that this version cannot read (Input tag 'move'")
    assert str(caught.value).endswith("): update the program.")


def test_a_disk_without_room_keeps_nothing_of_a_change(log, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmrec_ray.storage._write_durably", full)
    with pytest.raises(DiskFullError, match="could not be saved, since the disk"):
        log.append([added("more")], after=3)
    assert log.version() == 3


@pytest.mark.parametrize("fields", [
    {"item_id": ""}, {"item_id": "x" * 257}, {"item_id": "a", "text": None}, {"item_id": "a", "colour": "red"},
    {"item_id": "a", "attributes": {"year": float("nan")}}, {"item_id": "a", "attributes": {"year": None}},
])
def test_an_item_that_is_no_item_is_refused(fields):
    with pytest.raises(ValidationError):
        NewItem(**{"text": "a thing", **fields})


def test_a_set_of_changes_is_a_small_readable_file(log):
    entry = json.loads((Path(log.uri) / "00000001.json").read_text())
    assert entry.keys() == {"version", "previous", "changes", "sha256"}
    assert [change["kind"] for change in entry["changes"]] == ["add", "remove"]
