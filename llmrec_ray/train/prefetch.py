"""An iterator that works ahead in a thread, so that making and copying a batch overlaps the step before it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

__all__ = ["prefetched"]

T = TypeVar("T")
POLL_S = 0.1


def prefetched(source: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order; up to `depth` are made ahead. What the source raises is raised here."""
    made: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(maxsize=depth)
    closed = threading.Event()
    threading.Thread(target=_work, args=(source, made, closed), daemon=True).start()
    try:
        while True:
            more, item = made.get()
            if isinstance(item, BaseException):
                raise item
            if not more:
                return
            yield item  # type: ignore[misc]
    finally:
        closed.set()


def _work(
    source: Iterator[T], made: queue.Queue[tuple[bool, T | BaseException | None]], closed: threading.Event
) -> None:
    def put(more: bool, item: T | BaseException | None) -> bool:
        while not closed.is_set():
            try:
                made.put((more, item), timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False

    try:
        for item in source:
            if not put(True, item):
                return
    except BaseException as error:
        put(False, error)
        return
    put(False, None)
