"""The shared view: keeps Redis filled from this machine's log, and says at once when it cannot be trusted.

While it is up, Redis holds every event that this machine acknowledged, and all of every other machine's log that was
seen there. The first answer that fails, is late, or shows that Redis lost something takes it down: requests then no
longer wait for Redis. A thread of its own brings what is missing and takes it up again.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from llmrec_ray.events.event import Event
from llmrec_ray.events.locks import file_lock
from llmrec_ray.events.log import EventLog, Span
from llmrec_ray.events.redis_view import RedisDownError, RedisView

__all__ = ["SharedView"]

CHUNK = 500
CHECK_S = 0.5
FULL_CHECK_S = 30.0
SETTLE_S = 10.0
FIRST_CHECK_S = 2.0
logger = logging.getLogger(__name__)


class SharedView:
    """One machine's access to Redis.

    node: this machine's name in Redis. positions: how much of each log file is durable. recording: held by
    whoever appends to the log, so that nothing is added between the last look and taking the view up.
    """

    def __init__(
        self, redis: RedisView, node: str, log: EventLog, positions: Callable[[], dict[str, int]],
        recording: threading.Lock,
    ) -> None:
        self._redis, self._node, self._log, self._positions = redis, node, log, positions
        self._recording = recording
        self._rebuilding = log.folder.parent / "redis.lock"
        self.down_because: str | None = "it has not been reached yet"
        self._nodes = frozenset({node})
        self._settle_until: float | None = None
        self._full_check_at = 0.0
        self._wake, self._checked = threading.Event(), threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._keep, name="events-in-redis", daemon=True)
        self._thread.start()
        self._checked.wait(FIRST_CHECK_S)

    @property
    def place(self) -> str:
        """Where Redis is, without secrets."""
        return self._redis.place

    def newest_of(self, user_ids: Sequence[str], n: int) -> dict[str, list[str]]:
        """Item ids of each user's newest `n` events, oldest first. Raises RedisDownError."""
        if self.down_because is not None:
            raise RedisDownError(self.down_because)
        run_id = self._redis.run_id
        try:
            newest, marks = self._redis.newest_of(user_ids, n)
            self._need_all(marks, run_id)
        except RedisDownError as error:
            self._take_down(str(error))
            raise
        return newest

    def known(self, events: Sequence[Event]) -> set[str]:
        """Ids, of those of the events, that Redis says were recorded; none while it is down."""
        if self.down_because is not None or not events:
            return set()
        try:
            return self._redis.known(events)
        except RedisDownError as error:
            self._take_down(str(error))
            return set()

    def add(self, span: Span, events: Sequence[Event]) -> None:
        """Show a span of the log to everybody; what does not arrive is brought later."""
        if self.down_because is not None:
            return
        try:
            at = self._redis.add(self._node, span.file.name, span.start, span.end, events)
        except RedisDownError as error:
            self._take_down(str(error))
            return
        if at != span.end:
            self._take_down(f"it has {at} bytes of {span.file.name}, which has {span.end}")

    def forget(self, user_ids: Sequence[str]) -> None:
        """Remove all that Redis has of these people. Raises RedisDownError."""
        self._redis.forget(user_ids)

    def close(self) -> None:
        """Stop looking after Redis; what it still lacks is brought by the next who opens the folder."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        self._redis.close()

    def _need_all(self, marks: dict[str, str], run_id: str) -> None:
        """Raise RedisDownError unless all of the log of every node that was ever seen is there."""
        self._nodes = self._nodes.union(marks)
        lacking = [node for node in self._nodes if marks.get(node) != run_id]
        if lacking:
            raise RedisDownError(f"it lacks events of {len(lacking)} of {len(self._nodes)} nodes")

    def _take_down(self, reason: str) -> None:
        if self.down_because != reason:
            logger.warning("The events in Redis at %s cannot be used now: %s.", self.place, reason)
        if self.down_because is None:
            self._settle_until = None
            self.down_because = reason
            self._wake.set()
        self.down_because = reason

    def _keep(self) -> None:
        while not self._closing:
            self._wake.clear()
            try:
                self._check()
            except RedisDownError as error:
                self._take_down(str(error))
            except Exception as error:  # nothing else would ever take the view up again
                self._take_down(f"{type(error).__name__}: {error}")
            self._checked.set()
            self._wake.wait(CHECK_S)

    def _check(self) -> None:
        """Look whether Redis still has everything; if not, bring it. Raises RedisDownError."""
        if self.down_because is None:
            run_id = self._redis.run_id
            self._need_all(self._redis.nodes(), run_id)
            if monotonic() < self._full_check_at:
                return
        with file_lock(self._rebuilding):  # one process of a machine is enough
            self._bring()
        with self._recording:
            self._take_up()

    def _bring(self) -> None:
        """Add what Redis lacks of this machine's log."""
        there = self._redis.positions(self._node)
        for name, size_bytes in self._positions().items():
            if there.get(name, 0) < size_bytes and (self._log.folder / name).exists():
                self._bring_file(self._log.folder / name, there.get(name, 0), size_bytes)

    def _bring_file(self, file: Path, start: int, end: int) -> None:
        while start < end:
            if self._closing:
                raise RedisDownError("the store is being closed")
            with self._log.appending():  # nobody is forgotten between reading and adding
                start = self._bring_chunk(file, start, end)

    def _bring_chunk(self, file: Path, start: int, end: int) -> int:
        lines = itertools.takewhile(lambda line: line[1] <= end, self._log.read(file, start))
        chunk = list(itertools.islice(lines, CHUNK))
        assert chunk, f"nothing between bytes {start} and {end} of {file}. This is a bug."
        events = [event for event, _ in chunk if event is not None]
        return self._redis.add(self._node, file.name, start, chunk[-1][1], events)

    def _take_up(self) -> None:
        run_id = self._redis.run_id
        self._bring()
        self._redis.mark(self._node, run_id)
        self._await_others(run_id)
        if self.down_because is not None:
            logger.info("The events in Redis at %s are complete.", self.place)
        self._full_check_at = monotonic() + FULL_CHECK_S
        self.down_because = None

    def _await_others(self, run_id: str) -> None:
        """Give the other nodes time to bring theirs; but a node may be gone for good, and then its mark goes too."""
        marks = self._redis.nodes()
        try:
            self._need_all(marks, run_id)
        except RedisDownError:
            self._settle_until = self._settle_until or monotonic() + SETTLE_S
            if monotonic() < self._settle_until:
                raise
            gone = [node for node in self._nodes if marks.get(node) != run_id]
            logger.warning("%d nodes do not bring their events to Redis at %s any more.", len(gone), self.place)
            self._redis.unmark(gone)
            self._nodes = self._nodes.difference(gone)
