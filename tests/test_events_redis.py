"""Several nodes that see each other's events through a real Redis, which is killed, emptied and frozen."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_ray.config import EventsConfig
from llmrec_ray.errors import ConfigError, EventViewError
from llmrec_ray.events import Event, EventLog, EventStore, shared
from tests.redis_server import RedisServer


@pytest.fixture
def server(tmp_path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def nodes(tmp_path, server) -> Iterator[list[EventStore]]:
    """Two machines: two folders, one Redis."""
    with (
        EventStore.open(tmp_path / "one", server.url, max_history=100_000) as one,
        EventStore.open(tmp_path / "two", server.url, max_history=100_000) as two,
    ):
        yield [one, two]


def event(event_id: str, item_id: str = "i1", user_id: str = "u1", timestamp: float = 1.0) -> Event:
    return Event(event_id=event_id, user_id=user_id, item_id=item_id, timestamp=timestamp)


def logged(*folders: Path) -> list[str]:
    files = [file for folder in folders for file in sorted((folder / "log").glob("*.jsonl"))]
    return [json.loads(line)["event_id"] for file in files for line in file.read_text().splitlines()]


def read_when_up(store: EventStore, user_id: str = "u1", within_s: float = 8.0) -> list[str]:
    deadline = time.monotonic() + within_s
    while True:
        try:
            return store.newest(user_id, 100_000)
        except EventViewError:
            assert time.monotonic() < deadline, "the view does not come back"
            time.sleep(0.02)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def try_to_read(store: EventStore) -> list[str] | None:
    try:
        return store.newest("u1", 100_000)
    except EventViewError:
        return None


def test_what_one_node_recorded_is_in_the_very_next_read_of_another(nodes):
    one, two = nodes
    for number in range(30):
        one.record([event(f"a{number}", f"x{number}", timestamp=2.0 * number)])
        assert two.newest("u1", 1) == [f"x{number}"]
        two.record([event(f"b{number}", f"y{number}", timestamp=2.0 * number + 1)])
        assert one.newest_of(["u1", "nobody"], 2) == {"u1": [f"x{number}", f"y{number}"], "nobody": []}
    assert one.newest("u1", 0) == []


def test_an_event_that_is_sent_to_two_nodes_counts_once_also_after_all_were_restarted(tmp_path, server, nodes):
    one, two = nodes
    assert one.record([event("a", "x"), event("b", "y", timestamp=2.0)]) == 2
    assert two.record([event("a", "x"), event("c", "z", timestamp=3.0)]) == 1
    assert two.newest("u1", 10) == ["x", "y", "z"]
    for store in nodes:
        store.close()
    with EventStore.open(tmp_path / "two", server.url) as two:
        assert two.record([event("a", "other", timestamp=9.0), event("c")]) == 0
        assert two.newest("u1", 10) == ["x", "y", "z"]
    assert sorted(logged(tmp_path / "one", tmp_path / "two")) == ["a", "b", "c"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.lists(st.tuples(
    st.integers(0, 30), st.sampled_from(["u", "v ü"]), st.sampled_from(["x", "y:0", "ß"]),
    st.sampled_from([0, 5, 5.0004, 7.5]),
), min_size=1, max_size=8), max_size=8))
def test_both_views_keep_the_same_newest_events_in_the_same_order(tmp_path_factory, server, calls):
    folder = tmp_path_factory.mktemp("agree")
    with server.client() as client:
        client.flushall()
    with (
        EventStore.open(folder / "alone", max_history=6) as alone,
        EventStore.open(folder / "shared", server.url, max_history=6) as together,
    ):
        for call in calls:
            events = [event(str(number), item, user, when) for number, user, item, when in call]
            assert alone.record(events) == together.record(events)
        for n in (1, 4, 100):
            assert alone.newest_of(["u", "v ü"], n) == together.newest_of(["u", "v ü"], n)


def test_redis_holds_no_more_than_the_newest_events_of_each_user(tmp_path, server):
    with EventStore.open(tmp_path / "one", server.url, max_history=10) as store, server.client() as client:
        store.record([event(str(number), f"i{number}", timestamp=float(number)) for number in range(50)])
        assert store.newest("u1", 1000) == [f"i{number}" for number in range(40, 50)]
        assert client.zcard("llmrec:events:user:u1") == 10
        assert store.record([event("3", "i3", timestamp=99.0)]) == 0
        assert store.newest("u1", 1000) == [f"i{number}" for number in range(40, 50)]
        assert 6.9 * 86_400 < client.ttl(b"llmrec:events:id:" + event("3").digest) <= 7 * 86_400


def test_a_redis_that_was_killed_and_comes_back_empty_is_filled_from_the_logs_of_all_nodes(tmp_path, server, nodes):
    one, two = nodes
    one.record([event("a", "x")])
    two.record([event("b", "y", timestamp=2.0)])
    server.kill()
    with pytest.raises(EventViewError) as caught:
        one.newest_of(["u1", "u2"], 10)
    assert caught.value.newest == {"u1": ["x"], "u2": []}
    assert str(caught.value).startswith(
        f"The events of all nodes cannot be read from Redis at redis://127.0.0.1:{server.port}/0 now (ConnectionError: "
    )
    assert str(caught.value).endswith("): until it is back and filled again, answers use those of this node alone.")
    assert one.record([event("c", "z", timestamp=3.0), event("a")]) == 1
    server.start()
    assert read_when_up(one) == read_when_up(two) == ["x", "y", "z"]
    assert two.record([event("c", "z")]) == 0


def test_a_redis_that_is_emptied_while_it_runs_never_passes_for_complete(server, nodes):
    one, two = nodes
    one.record([event("a", "x")])
    two.record([event("b", "y", timestamp=2.0)])
    assert one.newest("u1", 10) == ["x", "y"]
    with server.client() as client:
        client.flushall()
    assert try_to_read(one) in (None, ["x", "y"])
    assert read_when_up(one) == read_when_up(two) == ["x", "y"]


def test_a_redis_that_comes_back_with_an_old_snapshot_is_brought_up_to_date(server, nodes):
    one, two = nodes
    one.record([event("a", "x")])
    assert two.newest("u1", 10) == ["x"]
    with server.client() as client:
        client.save()
    one.record([event("b", "y", timestamp=2.0)])
    two.record([event("c", "z", timestamp=3.0)])
    server.kill()
    server.start()
    assert try_to_read(two) in (None, ["x", "y", "z"])
    assert read_when_up(two) == read_when_up(one) == ["x", "y", "z"]


def test_other_data_in_redis_is_left_alone_and_data_in_the_way_takes_only_the_view_down(tmp_path, server):
    with server.client() as client:
        client.set("somebody", "else")
        client.set("llmrec:events:user:u1", "in the way")
        with EventStore.open(tmp_path / "one", server.url) as store:
            assert store.record([event("a", "x"), event("b", "y", "u2")]) == 2
            with pytest.raises(EventViewError, match="WRONGTYPE") as caught:
                store.newest("u1", 10)
            assert caught.value.newest == {"u1": ["x"]}
            client.delete("llmrec:events:user:u1")
            assert read_when_up(store) == ["x"]
            assert store.newest("u2", 10) == ["y"]
        assert client.get("somebody") == b"else"


def test_a_redis_that_does_not_answer_holds_up_one_call_for_the_timeout_and_no_other(tmp_path, server):
    with EventStore.open(tmp_path / "one", server.url, redis_timeout_s=0.3) as store:
        store.record([event("a", "x")])
        server.freeze()
        assert seconds(lambda: store.record([event("b", "y", timestamp=2.0)])) < 1.0
        for number in range(20):
            assert seconds(lambda: try_to_read(store)) < 0.1
            assert seconds(lambda n=number: store.record([event(f"c{n}", "z", timestamp=3.0 + n)])) < 0.8
        server.thaw()
        assert read_when_up(store) == ["x", "y"] + ["z"] * 20


def test_without_redis_at_the_start_events_are_taken_and_shown_to_others_when_it_comes(tmp_path, server):
    server.kill()
    folder = tmp_path / "one"
    opened = []
    assert seconds(lambda: opened.append(EventStore.open(folder, server.url))) < 1.0
    [one] = opened
    assert one.record([event("a", "x")]) == 1
    with pytest.raises(EventViewError):
        one.newest("u1", 10)
    server.start()
    with EventStore.open(tmp_path / "two", server.url) as two:
        assert read_when_up(one) == ["x"]
        assert read_when_up(two) == ["x"]
    one.close()


def test_what_a_process_logged_before_it_died_is_shown_to_others_by_the_next(tmp_path, server):
    with EventStore.open(tmp_path / "one") as alone:
        alone.record([event("a", "x")])
    EventLog(tmp_path / "one" / "log").append([event("b", "y", timestamp=2.0)])
    with EventStore.open(tmp_path / "one", server.url), EventStore.open(tmp_path / "two", server.url) as two:
        assert read_when_up(two) == ["x", "y"]


def test_a_node_that_is_gone_for_good_is_waited_for_only_a_while(tmp_path, server, nodes, monkeypatch):
    monkeypatch.setattr(shared, "SETTLE_S", 1.0)
    one, two = nodes
    two.record([event("a", "x")])
    one.record([event("b", "y", timestamp=2.0)])
    assert one.newest("u1", 10) == ["x", "y"]
    two.close()
    server.kill()
    server.start()
    assert seconds(lambda: read_when_up(one)) > 0.5
    assert one.newest("u1", 10) == ["y"]
    with EventStore.open(tmp_path / "two", server.url):
        assert read_when_up(one) == ["x", "y"]


def test_a_file_that_was_moved_to_an_archive_keeps_nobody_waiting(tmp_path, server, nodes):
    one, _ = nodes
    one.record([event("a", "x", "old")])
    [file] = one.log.files()
    file.rename(tmp_path / "archived.jsonl")
    one.record([event("b", "y", "new")])
    server.kill()
    server.start()
    assert read_when_up(one, "new") == ["y"]
    assert one.newest("old", 10) == []


def test_a_password_does_not_get_into_messages(tmp_path, caplog):
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder, password="s3cret")
    try:
        with EventStore.open(tmp_path / "one", server.url) as store:
            store.record([event("a", "x")])
            assert store.newest("u1", 10) == ["x"]
            server.kill()
            with pytest.raises(EventViewError) as caught:
                store.newest("u1", 10)
    finally:
        server.kill()
    assert "s3cret" not in str(caught.value) + caplog.text
    assert f"redis://127.0.0.1:{server.port}/0" in caplog.text


def test_redis_may_be_named_by_the_environment(tmp_path, server, nodes, monkeypatch):
    nodes[0].record([event("a", "x")])
    monkeypatch.setenv("LLMREC_REDIS_URL", server.url)
    with EventStore.open(tmp_path / "three") as three:
        assert three.newest("u1", 10) == ["x"]


def test_redis_without_its_python_package_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError) as caught:
        EventStore.open(tmp_path, "redis://127.0.0.1:1/0")
    assert str(caught.value) == (
        "serve.events.redis_url is set, but the Python package redis is not there: install llmrec_ray[serve]."
    )


@pytest.mark.parametrize("url", ["127.0.0.1:6379", "http://127.0.0.1"])
def test_a_url_that_is_not_of_redis_is_refused(url):
    with pytest.raises(ValueError, match="redis_url"):
        EventsConfig(redis_url=url)


def test_nothing_acknowledged_is_lost_or_counted_twice_when_redis_is_killed_in_mid_traffic(server, nodes):
    """Whatever a node acknowledged while its view was up is in every later read of any node, or the read says no."""
    stop, numbers, problems = threading.Event(), itertools.count(), []
    acknowledged: list[str] = []
    shown: list[str] = []
    latest_s = [0.0]

    def record(store: EventStore) -> None:
        while not stop.is_set():
            number = next(numbers)
            item = f"i{number}"
            latest_s[0] = max(latest_s[0], seconds(partial(store.record, [event(item, item, timestamp=number)])))
            acknowledged.append(item)
            if store._shared.down_because is None:
                shown.append(item)

    def read(store: EventStore) -> None:
        while not stop.is_set():
            before = [*shown]
            found = try_to_read(store)
            if found is not None and not set(found) >= set(before):
                problems.append(set(before) - set(found))
            time.sleep(0.005)

    threads = [threading.Thread(target=work, args=(node,)) for node in nodes for work in (record, record, read)]
    for thread in threads:
        thread.start()
    for way in ("empty", "flush", "empty"):
        time.sleep(0.7)
        if way == "flush":
            with server.client() as client:
                client.flushall()
        else:
            server.kill()
            time.sleep(0.3)
            server.start()
    time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join()
    found = [sorted(read_when_up(node)) for node in nodes]
    assert problems == []
    assert len(acknowledged) > 50
    assert found[0] == found[1] == sorted(acknowledged)
    assert latest_s[0] < 1.5


def _record_all(folder: Path, url: str, start: int) -> None:
    with EventStore.open(folder, url) as store:
        for number in range(start, start + 60):
            store.record([event(f"e{number}", f"i{number}", timestamp=float(number))])


def test_processes_of_two_nodes_with_overlapping_events_end_with_each_counted_once(tmp_path, server):
    context = multiprocessing.get_context("spawn")
    jobs = [("one", 0), ("one", 30), ("two", 60), ("two", 90)]
    processes = [
        context.Process(target=_record_all, args=(tmp_path / folder, server.url, start)) for folder, start in jobs
    ]
    for process in processes:
        process.start()
    time.sleep(1.0)
    server.kill()
    server.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    with EventStore.open(tmp_path / "one", server.url) as one, EventStore.open(tmp_path / "two", server.url) as two:
        assert read_when_up(one) == read_when_up(two) == [f"i{number}" for number in range(150)]
    for folder in ("one", "two"):
        assert len(logged(tmp_path / folder)) == len(set(logged(tmp_path / folder)))


RECORD_FOREVER = """
import itertools, sys
from pathlib import Path
from llmrec_ray.events import Event, EventStore
store = EventStore.open(Path(sys.argv[1]), sys.argv[2], max_history=100_000)
for n in itertools.count():
    store.record([Event(event_id=f"{sys.argv[3]}{n}", user_id="u1", item_id=f"{sys.argv[3]}{n}", timestamp=n)])
    print(f"{sys.argv[3]}{n}", flush=True)
"""


def test_what_processes_acknowledged_before_they_were_killed_is_kept_and_seen_everywhere(tmp_path, server):
    def begin(folder: str, name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RECORD_FOREVER, str(tmp_path / folder), server.url, name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    processes = [begin("one", "a"), begin("one", "b"), begin("two", "c")]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline()
    time.sleep(0.3)
    acknowledged = []
    for process in processes:
        process.kill()
        acknowledged += process.communicate()[0].split()
    assert len(acknowledged) > 20
    with (
        EventStore.open(tmp_path / "one", server.url, max_history=100_000) as one,
        EventStore.open(tmp_path / "two", server.url, max_history=100_000) as two,
    ):
        shown = read_when_up(one)
        assert shown == read_when_up(two) and len(shown) == len(set(shown))
        assert {*shown} >= {*acknowledged}
        assert {*logged(tmp_path / "one", tmp_path / "two")} >= {*acknowledged}
        assert two.record([event(acknowledged[-1])]) == 0
