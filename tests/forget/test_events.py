from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import CorruptArtifactError, DataError, EventLogError, EventViewError
from llmrec_ray.events import EventLog, EventStore, RedisDownError, forget_in_folder
from llmrec_ray.events import forget as forgetting
from llmrec_ray.events.locks import file_lock
from llmrec_ray.forgotten import Tombstones, forgotten_in
from tests.forget.person import WHO, event, run
from tests.redis_server import RedisServer
from tests.searching import found_in


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


def test_an_archive_that_came_after_the_person_was_forgotten_is_cleaned_and_an_incremental_ingest_goes_on(
    fed, workspace, tmp_path
):
    raw = Path(workspace.uri) / "raw"
    run(fed, workspace)
    ingest(fed, raw, workspace)
    pack(tmp_path / "archive" / "late.jsonl.gz", WHO, "u001", "u002")
    extended = ingest(fed, raw, workspace, extend=True)
    forgotten = run(fed, workspace, "u003")
    assert found_in(tmp_path / "archive", WHO) == []
    assert ingest(fed, raw, workspace, extend=True).uri == forgotten.replaced[extended.uri]


def test_forgetting_does_not_hide_that_an_archive_has_more_than_was_read(fed, workspace, tmp_path):
    raw = Path(workspace.uri) / "raw"
    ingest(fed, raw, workspace)
    [file] = (tmp_path / "archive").iterdir()
    pack(file, WHO, "u001", "u002", "u003", "u004")
    run(fed, workspace)
    with pytest.raises(DataError, match=r"old.jsonl.gz has changed since it was read"):
        ingest(fed, raw, workspace, extend=True)


def pack(file: Path, *users: str) -> None:
    with gzip.open(file, "wt") as packed:
        packed.writelines(event(f"{file.stem}{n}", user).model_dump_json() + "\n" for n, user in enumerate(users))


def events_of(dataset: Dataset, user_id: str) -> list[str]:
    rows = dataset.interactions.filter(pl.col("user_row") == dataset.users.row(user_id))
    return dataset.items.ids(rows["item_row"])


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


def test_an_archive_is_looked_at_though_another_is_missing(fed, workspace, tmp_path, caplog):
    data = fed.data.model_copy(update={"feedback": (str(tmp_path / "nowhere"), *fed.data.feedback)})
    assert run(fed.model_copy(update={"data": data}), workspace).event_lines == 3
    assert found_in(tmp_path / "archive", WHO) == []
    assert f"Input files cannot be looked at: No event log (*.jsonl) matches {tmp_path / 'nowhere'}" in caplog.text


def test_an_archive_that_is_cut_off_is_named(fed, workspace, tmp_path):
    [file] = (tmp_path / "archive").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    message = rf"The events in {file} cannot be looked at or removed \(.*\): restore the file, or take it out of"
    with pytest.raises(EventLogError, match=message):
        run(fed, workspace)


def test_a_line_that_is_being_written_while_others_are_removed_stays(tmp_path, monkeypatch):
    log = EventLog(tmp_path / "log")
    log.append([event("a", WHO), event("b", "u001")])
    half = '{"event_id":"c","user'
    real = forgetting.users_in

    def meanwhile(*arguments):
        (log.folder / "20990101-somebody.jsonl").write_text(half)
        return real(*arguments)

    monkeypatch.setattr(forgetting, "users_in", meanwhile)
    assert forget_in_folder(tmp_path, Tombstones().with_user(WHO, done=False)) == 1
    assert (log.folder / "20990101-somebody.jsonl").read_text() == half


def test_nobody_appends_to_a_file_that_is_being_replaced_though_the_list_says_what_it_said_before(tmp_path):
    log, tombstones = EventLog(tmp_path / "log"), Tombstones().with_user(WHO, done=False)
    for _ in range(3):
        files = EventLog(log.folder).remember(tombstones)
        with log.appending():
            assert log.append([event("a", "u001")]).file not in files
    assert len(log.files()) == 3


def test_of_processes_that_want_to_forget_the_same_person_one_does(tmp_path):
    EventLog(tmp_path / "log").append([event("a", WHO)])
    tombstones = Tombstones().with_user(WHO, done=False)
    asked: list[list[str]] = []
    with ThreadPoolExecutor() as pool:
        lines = list(pool.map(lambda _: forget_in_folder(tmp_path, tombstones, asked.append), range(4)))
    assert sorted(lines) == [0, 0, 0, 1]
    assert asked == [[WHO]]


def test_whoever_tries_again_after_redis_was_away_still_knows_of_whom_it_has_something(tmp_path):
    EventLog(tmp_path / "log").append([event("a", WHO)])
    tombstones = Tombstones().with_user(WHO, done=False)

    def away(_: object) -> None:
        raise RedisDownError("no answer")

    with pytest.raises(EventLogError, match=r"are removed yet \(no answer\): run the same command again to go on"):
        forget_in_folder(tmp_path, tombstones, away)
    asked: list[list[str]] = []
    forget_in_folder(tmp_path, tombstones, asked.append)
    assert asked == [[WHO]]


@pytest.mark.parametrize("shared", [False, True])
def test_a_lock_is_held_by_a_handle_that_may_read_and_write_as_nfs_wants_it(tmp_path, monkeypatch, shared):
    handles: list[int] = []
    monkeypatch.setattr(fcntl, "flock", lambda handle, _: handles.append(fcntl.fcntl(handle, fcntl.F_GETFL)))
    with file_lock(tmp_path / "a.lock", shared=shared):
        assert [flags & os.O_ACCMODE for flags in handles] == [os.O_RDWR]
