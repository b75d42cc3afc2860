"""Several pieces of work at once, each in a lane of its own, up to a deadline: what failed or is late is left out.

A lane whose threads all hang is left out at once until one of them comes back, and holds up no other lane.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

__all__ = ["Lanes"]

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

THREADS_PER_LANE = 4


class Lanes:
    """Threads by name, started when they are first needed."""

    def __init__(self, names: Iterable[str]) -> None:
        self._lanes = {name: _Lane(name) for name in names}

    def run(
        self, work: Mapping[str, Callable[[], Result]], deadline_s: float | None
    ) -> tuple[dict[str, Result], tuple[str, ...]]:
        """Results by name in the order of `work`, and the names of those that failed or took longer than deadline_s.

        Without a deadline all is done in this thread, and an error is raised: nothing is left out.
        """
        if deadline_s is None:
            return {name: do() for name, do in work.items()}, ()
        started = {name: self._lanes[name].start(do) for name, do in work.items()}
        wait([future for future in started.values() if future is not None], deadline_s)
        results, left_out = dict[str, Result](), []
        for name, future in started.items():
            try:
                results[name] = self._lanes[name].result(future)
            except Exception as error:  # a source may fail in any way, and the others must answer
                logger.warning("The source %s is left out: %s", name, error or type(error).__name__)
                left_out.append(name)
        return results, tuple(left_out)


class _Lane:
    """A few threads for one kind of work."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(THREADS_PER_LANE, thread_name_prefix=f"source-{name}")
        self._lock = threading.Lock()
        self._late = 0

    def start(self, do: Callable[[], Result]) -> Future[Result] | None:
        """Begin, unless every thread hangs."""
        return None if self._late >= THREADS_PER_LANE else self._threads.submit(do)

    def result(self, future: Future[Result] | None) -> Result:
        """What was computed by now. Raises TimeoutError when nothing was, or what the work raised."""
        if future is None:
            raise TimeoutError(f"its {THREADS_PER_LANE} threads are all busy with calls that are late")
        if future.done():
            return future.result()
        if not future.cancel():
            self._count(1)
            future.add_done_callback(lambda _: self._count(-1))
        raise TimeoutError("it is late")

    def _count(self, change: int) -> None:
        with self._lock:
            self._late += change
