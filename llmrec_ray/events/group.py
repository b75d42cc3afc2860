"""Group commit: calls that come while one is being written wait, and the first of them writes for all.

Follows the group commit of databases (DeWitt et al. 1984): as many calls as arrive during one fsync share the next.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

from llmrec_ray.events.event import Event

__all__ = ["GroupCommit"]

MAX_EVENTS = 2000  # in one write: a view takes some ten microseconds for each, and others wait meanwhile


class GroupCommit:
    """Gathers the calls of threads.

    write: takes events of many calls, in order of arrival, and returns the ids of those that were new.
    """

    def __init__(self, write: Callable[[list[Event]], set[str]]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._waiting: list[_Ticket] = []
        self._is_writing = False

    def record(self, events: Sequence[Event]) -> int:
        """How many of the events were new, once they are written. Raises what went wrong with the write."""
        ticket = _Ticket(events)
        with self._lock:
            self._waiting.append(ticket)
            must_wait, self._is_writing = self._is_writing, True
        if must_wait:
            ticket.turn.wait()
        if not ticket.is_done:
            self._write_all()
        return ticket.result()

    def _write_all(self) -> None:
        with self._lock:
            tickets = self._take()
        _fill(tickets, self._write)
        with self._lock:
            self._is_writing = bool(self._waiting)
            woken = [*tickets, *self._waiting[:1]]
        for ticket in woken:
            ticket.turn.set()


    def _take(self) -> list[_Ticket]:
        """The calls that waited longest, up to the one with which they have MAX_EVENTS."""
        sizes = itertools.accumulate(len(ticket.events) for ticket in self._waiting)
        n = next((place for place, size in enumerate(sizes, start=1) if size >= MAX_EVENTS), len(self._waiting))
        taken, self._waiting = self._waiting[:n], self._waiting[n:]
        return taken


class _Ticket:
    """What one call waits for: its turn to write, or that another has written for it."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.turn = threading.Event()
        self.is_done = False
        self.accepted = 0
        self.error: BaseException | None = None

    def result(self) -> int:
        if self.error is not None:
            raise self.error
        return self.accepted


def _fill(tickets: list[_Ticket], write: Callable[[list[Event]], set[str]]) -> None:
    """Write, and give each ticket its part of the outcome; an event sent by two calls counts for the first."""
    try:
        new = write([event for ticket in tickets for event in ticket.events])
        for ticket in tickets:
            mine = new & {event.event_id for event in ticket.events}
            new -= mine
            ticket.accepted = len(mine)
    except BaseException as error:  # whatever ends the one that writes must not leave the others waiting
        for ticket in tickets:
            ticket.error = error
    for ticket in tickets:
        ticket.is_done = True
