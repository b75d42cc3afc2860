"""Requests that arrive one by one -> calls for many at once: a hop costs the same for one as for sixty-four.

While calls are on their way, what arrives waits and leaves together with the next; nobody waits for company when the
way is free. Knows nothing of HTTP, Ray or recommending.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Generic, TypeVar

__all__ = ["Gatherer", "OverloadedError"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")
SMOOTHING = 0.2


class OverloadedError(Exception):
    """Too many wait already; `retry_after_s`: when it is worth trying again."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(
            f"The endpoint is busy: {waiting} requests wait already. Send the request again in {retry_after_s} s."
        )
        self.retry_after_s = retry_after_s


class Gatherer(Generic[Item, Answer]):
    """Calls `run` with what has gathered, at most `max_batch` items, at most `max_in_flight` times at once.

    `run` answers for each of its items, in order; when it raises, all of them get the exception.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]], *, max_batch: int, max_in_flight: int,
        max_waiting: int,
    ) -> None:
        self._run = run
        self._max_batch, self._max_in_flight, self._max_waiting = max_batch, max_in_flight, max_waiting
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._call_s = 0.0

    @property
    def waiting(self) -> int:
        """Items that no call has taken yet."""
        return len(self._waiting)

    async def submit(self, item: Item) -> Answer:
        """The item's answer. Raises OverloadedError at once, before any work, when too many wait."""
        if len(self._waiting) >= self._max_waiting:
            raise OverloadedError(len(self._waiting), self._retry_after_s())
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((item, answer))
        if not self._scheduled:  # later, so that what arrived in the same turn of the loop goes together
            self._scheduled = True
            loop.call_soon(self._dispatch)
        return await answer

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._calls) < self._max_in_flight:
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
            wanted = [(item, answer) for item, answer in taken if not answer.done()]  # done: the client has gone
            if wanted:
                call = asyncio.get_running_loop().create_task(self._call(wanted))
                self._calls.add(call)
                call.add_done_callback(self._returned)

    def _returned(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._dispatch()

    async def _call(self, wanted: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> None:
        start = perf_counter()
        try:
            answers = await self._run([item for item, _ in wanted])
            for (_, answer), value in zip(wanted, answers, strict=True):
                if not answer.done():
                    answer.set_result(value)
        except Exception as error:
            for _, answer in wanted:
                if not answer.done():
                    answer.set_exception(error)
        self._call_s += SMOOTHING * (perf_counter() - start - self._call_s)

    def _retry_after_s(self) -> int:
        rounds = len(self._waiting) / (self._max_batch * self._max_in_flight)
        return max(1, math.ceil(rounds * self._call_s))
