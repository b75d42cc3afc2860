"""What events cost: acknowledging them, reading them, and building lost views again.

    python benchmarks/events.py [--quick] [--fsync-ms 5]

Threads record one event a call, as replicas do, into the embedded view and into Redis (a real server on this machine);
then again with an fsync that is made to take as long as on an ordinary disk, which a virtual machine's often does not.
Needs llmrec_ray[dev]. Dated copies of the output belong into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from llmrec_ray.errors import EventViewError
from llmrec_ray.events import Event, EventStore

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.redis_server import RedisServer

USERS = 20_000
READ_USERS = 64
READ_ITEMS = 20


def main() -> None:
    """Print the tables, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 second a row, not 5; 20,000 events, not 100,000")
    parser.add_argument("--fsync-ms", type=float, default=5.0, help="how long an fsync takes on an ordinary disk")
    arguments = parser.parse_args()
    seconds, n_events = (1.0, 20_000) if arguments.quick else (5.0, 100_000)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).absolute()
        server = RedisServer(folder)
        try:
            for view, url in (("embedded", None), ("redis", server.url)):
                with EventStore.open(folder / view, url) as store:
                    figures |= measured(view, store, seconds, arguments.fsync_ms)
            figures |= rebuilt(folder / "log of many", server, n_events)
        finally:
            server.kill()
    sys.stdout.write(json.dumps(figures) + "\n")


def measured(view: str, store: EventStore, seconds: float, fsync_ms: float) -> dict[str, float]:
    """Events acknowledged per second by threads, and times of reads."""
    figures = {}
    print(f"\n{view}: one event a call           events/s   p50 ms   p99 ms   fsyncs/event")
    for wait_ms, threads in itertools.product((0.0, fsync_ms), (1, 8, 32)):
        with fsync_of(wait_ms) as synced:
            times_s = record(store, f"{view} {wait_ms} {threads}", threads, seconds)
        rate, shared = len(times_s) / seconds, len(synced) / len(times_s)
        p50, p99 = np.percentile(times_s, [50, 99]) * 1000
        disk = f"fsync + {wait_ms:g} ms" if wait_ms else "fsync as here"
        print(f"  {disk:16} {threads:3} threads   {rate:12.0f} {p50:8.2f} {p99:8.2f} {shared:14.3f}")
        figures[f"{view}_events_per_s_{'slow_disk_' if wait_ms else ''}{threads}_threads"] = round(rate)
    users = [f"reader {number}" for number in range(READ_USERS)]
    store.record([
        Event(event_id=f"{user} {item}", user_id=user, item_id=f"i{item}") for item in range(50) for user in users
    ])
    for name, read in (
        ("1_user", lambda: store.newest(users[0], READ_ITEMS)), ("64_users", lambda: store.newest_of(users, READ_ITEMS))
    ):
        figures[f"{view}_read_us_{name}"] = took_us = round(median_us(read), 1)
        print(f"  read {name.replace('_', ' ')}, {READ_ITEMS} items each: {took_us} microseconds")
    return figures


@contextmanager
def fsync_of(wait_ms: float) -> Iterator[list[int]]:
    """A list that grows with every fsync, each of which takes longer by `wait_ms`."""
    real, synced = os.fsync, []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        time.sleep(wait_ms / 1000)
        real(descriptor)

    os.fsync = fsync
    try:
        yield synced
    finally:
        os.fsync = real


def record(store: EventStore, name: str, threads: int, seconds: float) -> list[float]:
    """Seconds of every call, by threads that each send the next event when the last is acknowledged."""
    numbers, times_s, until = itertools.count(), [], time.perf_counter() + seconds

    def send() -> None:
        while (start := time.perf_counter()) < until:
            number = next(numbers)
            store.record([Event(event_id=f"{name} {number}", user_id=f"u{number % USERS}", item_id=f"i{number % 997}")])
            times_s.append(time.perf_counter() - start)

    senders = [threading.Thread(target=send) for _ in range(threads)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return times_s


def median_us(action: Callable[[], object], repetitions: int = 500) -> float:
    """Median time of an action in microseconds."""
    times_s = []
    for _ in range(repetitions):
        start = time.perf_counter()
        action()
        times_s.append(time.perf_counter() - start)
    return float(np.median(times_s)) * 1e6


def rebuilt(folder: Path, server: RedisServer, n_events: int) -> dict[str, float]:
    """Seconds until each view has a log of `n_events` again, and what it takes."""
    with EventStore.open(folder) as store:
        for start in range(0, n_events, 1000):
            store.record([
                Event(event_id=str(n), user_id=f"u{n % USERS}", item_id=f"i{n % 997}", timestamp=float(n))
                for n in range(start, start + 1000)
            ])
        log_mb = sum(file.stat().st_size for file in store.log.files()) / 1e6
    for file in folder.glob("view.sqlite*"):
        file.unlink()
    start_s = time.perf_counter()
    EventStore.open(folder).close()
    embedded_s, embedded_mb = time.perf_counter() - start_s, (folder / "view.sqlite").stat().st_size / 1e6
    with server.client() as client:
        client.flushall()
        before = client.info("memory")["used_memory"]
        start_s = time.perf_counter()
        with EventStore.open(folder, server.url) as store:
            wait_for(store)
            redis_s, redis_mb = time.perf_counter() - start_s, (client.info("memory")["used_memory"] - before) / 1e6
    print(f"\na log of {n_events} events ({log_mb:.1f} MB): embedded view {embedded_s:.1f} s, {embedded_mb:.1f} MB; "
          f"Redis {redis_s:.1f} s, {redis_mb:.1f} MB\n")
    return {"rebuild_embedded_s": round(embedded_s, 2), "rebuild_redis_s": round(redis_s, 2),
            "redis_mb": round(redis_mb, 1)}


def wait_for(store: EventStore) -> None:
    """Until the view is complete."""
    while True:
        try:
            store.newest("u0", 1)
        except EventViewError:
            time.sleep(0.01)
        else:
            return


if __name__ == "__main__":
    main()
