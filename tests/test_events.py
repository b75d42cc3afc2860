from __future__ import annotations

import json
import multiprocessing
import os
import resource
from pathlib import Path

import pytest
from pydantic import ValidationError

from llmrec_ray.errors import CorruptArtifactError, EventLogError
from llmrec_ray.events import Event, EventLog, EventStore


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
        assert logged(store) == ["a", "d"]


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


@pytest.mark.parametrize("wrong", [
    {"event_id": ""}, {"user_id": "x" * 257}, {"timestamp": -1.0}, {"timestamp": float("nan")}, {"timestamp": 1.7e12},
    {"colour": "red"},
])
def test_an_event_with_a_wrong_field_is_refused(wrong):
    with pytest.raises(ValidationError):
        Event.model_validate({"event_id": "a", "user_id": "u", "item_id": "i"} | wrong)
