from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from llmrec_ray.errors import CorruptArtifactError, EventLogError, EventViewError
from llmrec_ray.events import Event, EventLog, EventStore, local
from llmrec_ray.events.log import Span
from tests.full_disk import try_on_small_disk


def event(event_id: str, item_id: str = "i1", user_id: str = "u1", timestamp: float = 1.0) -> Event:
    return Event(event_id=event_id, user_id=user_id, item_id=item_id, timestamp=timestamp)


def logged(store: EventStore) -> list[str]:
    return [event.event_id for file in store.log.files() for event, _ in store.log.read(file)]


def test_newest_events_come_oldest_first_and_by_time_not_by_arrival(tmp_path):
    with EventStore.open(tmp_path) as store:
        store.record([event("a", "late", timestamp=30.0), event("b", "early", timestamp=10.0)])
        store.record([event("c", "middle", timestamp=20.0), event("d", "other", user_id="u2")])
        assert store.newest("u1", 10) == ["early", "middle", "late"]
        assert store.newest("u1", 2) == ["middle", "late"]
        assert store.newest("nobody", 10) == []


def test_events_at_the_same_time_keep_the_order_of_arrival(tmp_path):
    with EventStore.open(tmp_path) as store:
        store.record([event("a", "first"), event("b", "second"), event("c", "third")])
        assert store.newest("u1", 2) == ["second", "third"]


def test_the_same_event_id_counts_once_however_often_it_is_sent(tmp_path):
    with EventStore.open(tmp_path) as store:
        assert store.record([event("a"), event("a"), event("b")]) == 2
        assert store.record([event("a"), event("c")]) == 1
        assert store.newest("u1", 10) == ["i1", "i1", "i1"]
        assert sorted(logged(store)) == ["a", "b", "c"]
    with EventStore.open(tmp_path) as reopened:
        assert reopened.record([event("b")]) == 0


def test_an_event_is_fsynced_before_record_returns(tmp_path, monkeypatch):
    with EventStore.open(tmp_path) as store:
        synced: list[str] = []
        real = os.fsync

        def fsync(descriptor: int) -> None:
            synced.append(str(Path(f"/proc/self/fd/{descriptor}").resolve()))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        store.record([event("a")])
        [file] = store.log.files()
        assert synced == [str(file), str(file.parent)]


def test_folders_that_are_made_for_the_log_are_fsynced_into_their_parents(tmp_path, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").resolve()))
    EventLog(tmp_path / "events" / "log")
    assert {tmp_path, tmp_path / "events"} == {*synced}
    synced.clear()
    EventLog(tmp_path / "events" / "log")
    assert synced == []


def test_a_file_whose_folder_cannot_be_synced_is_never_written_again(tmp_path, monkeypatch):
    log, real = EventLog(tmp_path), os.fsync

    def no_folder(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve() == tmp_path:
            raise OSError(5, "Input/output error")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_folder)
        with pytest.raises(EventLogError, match="Input/output error"):
            log.append([event("a")])
    [failed] = log.files()
    assert not failed.stat().st_size
    assert log.append([event("b")]).file != failed


def test_a_failed_write_leaves_nothing_and_does_not_count(tmp_path, monkeypatch):
    with EventStore.open(tmp_path) as store:
        store.record([event("a")])

        def full_disk(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_disk)
            with pytest.raises(EventLogError) as caught:
                store.record([event("b")])
        assert str(caught.value) == (
            f"The event log {tmp_path}/log cannot be written (No space left on device), so the events were not taken: "
            "free space or make the folder writable, then send them again."
        )
        assert logged(store) == ["a"]
        assert len(store.newest("u1", 10)) == 1
        assert store.record([event("b")]) == 1


def test_a_write_that_the_disk_takes_only_half_of_leaves_nothing_and_the_log_stays_readable(tmp_path):
    with EventStore.open(tmp_path) as store:
        store.record([event("a")])
        [file] = store.log.files()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, hard))
        try:
            with pytest.raises(EventLogError, match="File too large"):
                store.log.append([event("b"), event("c")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert logged(store) == ["a"]
        assert store.record([event("d")]) == 1
        assert sorted(logged(store)) == ["a", "d"]


@pytest.mark.parametrize("while_open", [False, True])
def test_a_lost_view_is_built_again_from_the_log(tmp_path, while_open):
    store = EventStore.open(tmp_path)
    store.record([event("a", "x", timestamp=1.0), event("b", "y", timestamp=2.0)])
    if not while_open:
        store.close()
    for file in tmp_path.glob("view.sqlite*"):
        file.unlink()
    if not while_open:
        store = EventStore.open(tmp_path)
    assert store.newest("u1", 10) == ["x", "y"]
    assert store.record([event("b")]) == 0
    store.close()


def test_a_damaged_view_is_built_again_from_the_log(tmp_path):
    with EventStore.open(tmp_path) as store:
        store.record([event("a", "x")])
    for file in tmp_path.glob("view.sqlite-*"):
        file.unlink()
    (tmp_path / "view.sqlite").write_bytes(b"this is no database" * 100)
    with EventStore.open(tmp_path) as store:
        assert store.newest("u1", 10) == ["x"]


def test_events_that_were_logged_but_not_yet_viewed_appear_when_the_store_is_opened(tmp_path):
    with EventStore.open(tmp_path) as store:
        store.record([event("a", "x")])
    EventLog(tmp_path / "log").append([event("b", "y", timestamp=2.0)])
    with EventStore.open(tmp_path) as store:
        assert store.newest("u1", 10) == ["x", "y"]


def test_a_line_cut_off_by_a_crash_is_ignored(tmp_path):
    with EventStore.open(tmp_path) as store:
        store.record([event("a", "x")])
        [file] = store.log.files()
    with file.open("ab") as handle:
        handle.write(b'{"event_id": "b", "user_')
    for view in tmp_path.glob("view.sqlite*"):
        view.unlink()
    with EventStore.open(tmp_path) as store:
        assert store.newest("u1", 10) == ["x"]
        assert store.record([event("b", "y", timestamp=2.0)]) == 1
        assert store.newest("u1", 10) == ["x", "y"]


def test_a_damaged_line_is_named_by_file_and_position(tmp_path):
    log = EventLog(tmp_path)
    file = log.append([event("a")]).file
    position = file.stat().st_size
    with file.open("ab") as handle:
        handle.write(b"rubbish\n")
    with pytest.raises(CorruptArtifactError) as caught:
        list(log.read(file))
    assert str(caught.value) == (
        f"The event log {file} is damaged at byte {position}: restore the file, or take the line out."
    )


def test_one_process_sees_at_once_what_another_recorded(tmp_path):
    with EventStore.open(tmp_path) as one, EventStore(tmp_path) as other:
        one.record([event("a", "x")])
        assert other.newest("u1", 10) == ["x"]
        assert other.record([event("a", "x")]) == 0
        assert len(one.log.files()) == 1


def _record_all(folder: Path, start: int) -> None:
    with EventStore.open(folder) as store:
        for number in range(start, start + 40):
            store.record([event(f"e{number}", f"i{number}", timestamp=float(number))])


def test_processes_that_record_overlapping_events_at_once_log_each_exactly_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_record_all, args=(tmp_path, start)) for start in (0, 20, 40)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    with EventStore.open(tmp_path) as store:
        assert sorted(logged(store)) == sorted(f"e{number}" for number in range(80))
        assert store.newest("u1", 1000) == [f"i{number}" for number in range(80)]


def test_the_log_is_json_lines_with_the_columns_of_every_other_log(tmp_path):
    with EventStore.open(tmp_path) as store:
        store.record([Event(event_id="a", user_id="u", item_id="i", timestamp=2.5, event="rating", value=4.0)])
        [file] = store.log.files()
    assert json.loads(file.read_text()) == {
        "event_id": "a", "user_id": "u", "item_id": "i", "timestamp": 2.5, "event": "rating", "value": 4.0,
    }


def test_threads_that_record_at_once_share_an_fsync(tmp_path, monkeypatch):
    real, synced = os.fsync, []

    def slow_disk(descriptor: int) -> None:
        synced.append(descriptor)
        time.sleep(0.02)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow_disk)
    with EventStore.open(tmp_path) as store:
        accepted: list[int] = []

        def record(thread: int) -> None:
            accepted.extend(store.record([event(f"{thread} {n}"), event(f"shared {n}")]) for n in range(4))

        threads = [threading.Thread(target=record, args=(thread,)) for thread in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(accepted) == 16 * 4 + 4 == len(logged(store)) == len(set(logged(store)))
        assert len(synced) < 16
        assert len(store.newest("u1", 1000)) == 68


def test_large_calls_are_not_all_written_in_one_piece(tmp_path, monkeypatch):
    with EventStore.open(tmp_path) as store:
        sizes, real = [], store.log.append

        def slow(events: list[Event]) -> Span:
            sizes.append(len(events))
            time.sleep(0.05)
            return real(events)

        monkeypatch.setattr(store.log, "append", slow)
        calls = [[event(f"{thread} {n}") for n in range(900)] for thread in range(8)]
        threads = [threading.Thread(target=store.record, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(sizes) == 8 * 900 and max(sizes) <= 2700


def test_when_one_shared_write_fails_every_thread_that_waited_for_it_is_told(tmp_path, monkeypatch):
    with EventStore.open(tmp_path) as store:
        store.record([event("first")])
        told: list[str] = []

        def full_disk(_: int) -> None:
            time.sleep(0.05)
            raise OSError(28, "No space left on device")

        def record(number: int) -> None:
            try:
                store.record([event(str(number))])
            except EventLogError as error:
                told.append(str(error))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_disk)
            threads = [threading.Thread(target=record, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(told) == 8 and "No space left on device" in told[0]
        assert logged(store) == ["first"]
        assert store.record([event("0")]) == 1


def test_a_read_does_not_wait_for_an_fsync(tmp_path, monkeypatch):
    with EventStore.open(tmp_path) as store:
        store.record([event("a", "x")])
        begun, go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(os, "fsync", lambda _: (begun.set(), go_on.wait(10)))
        thread = threading.Thread(target=store.record, args=([event("b", "y", timestamp=2.0)],))
        thread.start()
        assert begun.wait(10)
        assert store.newest("u1", 10) == ["x"]
        go_on.set()
        thread.join()
        assert store.newest("u1", 10) == ["x", "y"]


def test_the_view_holds_no_more_than_the_newest_events_of_each_user_and_still_knows_every_id(tmp_path):
    with EventStore.open(tmp_path, max_history=10) as store:
        store.record([event(str(number), f"i{number}", timestamp=float(number)) for number in range(25)])
        store.record([event("late", "long ago", timestamp=0.0), event("other", user_id="u2")])
        assert store.newest("u1", 1000) == [f"i{number}" for number in range(15, 25)]
        assert store.record([event("3", "i3", timestamp=99.0)]) == 0
        with sqlite3.connect(tmp_path / "view.sqlite") as view:
            assert view.execute("SELECT count(*) FROM newest").fetchone() == (11,)
        view.close()
    with EventStore.open(tmp_path, max_history=20) as store:
        assert store.newest("u1", 1000) == [f"i{number}" for number in range(5, 25)]


def test_a_view_that_fails_refuses_no_event_and_is_opened_again(tmp_path, monkeypatch, caplog):
    def full_disk(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with EventStore.open(tmp_path) as store:
        store.record([event("a", "x")])
        with monkeypatch.context() as patched:
            patched.setattr(local.Writing, "add", full_disk)
            assert store.record([event("b", "y", timestamp=2.0)]) == 1
        assert store.newest("u1", 10) == ["x", "y"]
        with monkeypatch.context() as patched:
            patched.setattr(local, "_open_view", full_disk)
            store._reader.drop()
            store._writer.drop()
            assert store.record([event("c", "z", timestamp=3.0)]) == 1
            with pytest.raises(EventViewError) as caught:
                store.newest("u1", 10)
        assert caught.value.newest == {"u1": ["x", "y"]}
        assert str(caught.value) == (
            f"The view of the event log {tmp_path}/view.sqlite cannot be read (database or disk is full): see whether "
            "its disk is full or read-only. The events themselves are safe in the log."
        )
        assert store.newest("u1", 10) == ["x", "y", "z"]
        assert store.record([event("c")]) == 0
    assert "view.sqlite failed and is opened again" in caplog.text


def test_a_view_that_is_overwritten_while_it_is_open_is_built_again(tmp_path):
    with EventStore.open(tmp_path) as store:
        store.record([event(str(number), f"i{number}", timestamp=float(number)) for number in range(2000)])
        with sqlite3.connect(tmp_path / "view.sqlite") as view:
            view.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        view.close()
        with (tmp_path / "view.sqlite").open("r+b") as handle:
            handle.seek(4096)
            handle.write(b"rubbish" * 20_000)
        store._reader.drop()
        store._writer.drop()
        assert store.record([event("7"), event("new", "i2000", timestamp=2000.0)]) in (1, 2)
        assert store.newest("u1", 2) == ["i1999", "i2000"]


def test_a_view_of_an_earlier_version_is_built_again(tmp_path):
    with EventStore.open(tmp_path) as store:
        store.record([event("a", "x")])
    for file in tmp_path.glob("view.sqlite*"):
        file.unlink()
    with sqlite3.connect(tmp_path / "view.sqlite") as view:
        view.execute("CREATE TABLE events (event_id TEXT PRIMARY KEY)")
    view.close()
    with EventStore.open(tmp_path) as store:
        assert store.newest("u1", 10) == ["x"]


def test_nothing_follows_a_failed_write_in_its_file(tmp_path, monkeypatch):
    log = EventLog(tmp_path)
    first = log.append([event("a")]).file

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        patched.setattr(os, "truncate", broken)
        with pytest.raises(EventLogError, match="Input/output error"):
            log.append([event("b")])
    assert log.append([event("c")]).file != first


def test_a_folder_that_cannot_be_made_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EventLogError) as caught:
        EventStore.open(tmp_path / "file")
    assert str(caught.value) == (
        f"The event log {tmp_path}/file/log cannot be written (Not a directory), so the events were not taken: free "
        "space or make the folder writable, then send them again."
    )


def test_a_file_moved_to_an_archive_leaves_the_view_as_it_is(tmp_path):
    with EventStore.open(tmp_path) as store:
        store.record([event("a", "x")])
        [file] = store.log.files()
        file.rename(tmp_path / "archived.jsonl")
    with EventStore.open(tmp_path) as store:
        assert store.newest("u1", 10) == ["x"]
        assert store.record([event("a"), event("b", "y", timestamp=2.0)]) == 1
        assert store.newest("u1", 10) == ["x", "y"]


def test_on_a_disk_that_is_full_events_are_refused_until_there_is_room_and_the_log_stays_whole(tmp_path):
    report = try_on_small_disk("record_events", tmp_path, size_kb=8000)
    log = tmp_path / "events" / "log"
    assert report["refused"] == (
        f"EventLogError: The event log {log} cannot be written (No space left on device), so the events were not "
        "taken: free space or make the folder writable, then send them again."
    )
    assert report["acknowledged"] > 500
    assert 0.5 * report["acknowledged"] < report["read_while_full"] <= report["acknowledged"]
    assert report["later"] == 1
    assert report["read_later"] == report["logged"] == report["acknowledged"] + 1


@pytest.mark.parametrize("wrong", [
    {"event_id": ""}, {"user_id": "x" * 257}, {"timestamp": -1.0}, {"timestamp": float("nan")}, {"timestamp": 1.7e12},
    {"colour": "red"},
])
def test_an_event_with_a_wrong_field_is_refused(wrong):
    with pytest.raises(ValidationError):
        Event.model_validate({"event_id": "a", "user_id": "u", "item_id": "i"} | wrong)
