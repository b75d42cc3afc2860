"""What people did a moment ago -> their newest items for an answer, or whatever there is of them in time.

Reading has threads of its own, so that it never waits for those that write events or load a Release, and a deadline: a
disk that hangs must not hold up answers. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from llmrec_ray.errors import EventViewError
from llmrec_ray.serve.rests import Rests

__all__ = ["Readable", "Recent"]

logger = logging.getLogger("ray.serve")
THREADS = 4
WITHOUT = ("events",)


class Readable(Protocol):
    """As much of an EventStore as is needed here."""

    def newest_of(self, user_ids: Sequence[str], n: int) -> dict[str, list[str]]:
        """Item ids of each user's newest n events, oldest first. Raises EventViewError."""


class Recent:
    """Reads the newest `n` events of people, for at most `deadline_s`."""

    def __init__(self, events: Readable, n: int, deadline_s: float, rest_s: float) -> None:
        self._events, self._n, self._deadline_s = events, n, deadline_s
        self._view = Rests("The view of the events", rest_s)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="recent")

    async def of(self, users: Sequence[str]) -> tuple[Mapping[str, list[str]], tuple[str, ...]]:
        """Item ids by user, oldest first, and `events` where these are not all, or none; never fails."""
        if not users:
            return {}, ()
        if not self._view.is_up():
            return {}, WITHOUT
        reading = asyncio.get_running_loop().run_in_executor(self._threads, self._events.newest_of, users, self._n)
        try:
            newest = await asyncio.wait_for(reading, self._deadline_s)
        except EventViewError as error:
            logger.debug("%s", error)  # the store has told when it lost Redis
            return error.newest, WITHOUT
        except Exception as error:
            self._view.failed(error)
            return {}, WITHOUT
        self._view.answered()
        return newest, ()
