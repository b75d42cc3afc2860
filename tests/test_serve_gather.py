"""Requests that come while a call is on its way leave together with the next, and too many are refused at once."""

from __future__ import annotations

import asyncio

import pytest

from llmrec_ray.serve.gather import Gatherer, OverloadedError


class Way:
    """A call that takes as long as the test wants, and remembers what it carried."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.at_once = self.most_at_once = 0
        self.open = asyncio.Event()

    async def __call__(self, items):
        self.calls.append(list(items))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.open.wait()
        self.at_once -= 1
        if -1 in items:
            raise ValueError("no")
        return [item * 10 for item in items]


def gatherer(way: Way, **settings: int) -> Gatherer[int, int]:
    return Gatherer(way, **{"max_batch": 4, "max_in_flight": 1, "max_waiting": 100, **settings})


def test_what_arrives_while_a_call_is_on_its_way_leaves_together():
    async def scene():
        way = Way()
        gather = gatherer(way)
        asked = [asyncio.create_task(gather.submit(item)) for item in range(2)]
        await asyncio.sleep(0.01)
        asked += [asyncio.create_task(gather.submit(item)) for item in range(2, 8)]
        await asyncio.sleep(0.01)
        assert gather.waiting == 6
        way.open.set()
        assert await asyncio.gather(*asked) == [item * 10 for item in range(8)]
        assert way.calls == [[0, 1], [2, 3, 4, 5], [6, 7]]
        assert gather.waiting == 0

    asyncio.run(scene())


def test_one_request_does_not_wait_for_company():
    async def scene():
        way = Way()
        way.open.set()
        assert await asyncio.wait_for(gatherer(way).submit(3), 1.0) == 30

    asyncio.run(scene())


def test_no_more_calls_than_allowed_are_on_their_way():
    async def scene():
        way = Way()
        gather = gatherer(way, max_batch=1, max_in_flight=2)
        asked = [asyncio.create_task(gather.submit(item)) for item in range(5)]
        await asyncio.sleep(0.01)
        way.open.set()
        await asyncio.gather(*asked)
        assert way.most_at_once == 2

    asyncio.run(scene())


def test_a_call_that_fails_fails_for_its_own_requests_only():
    async def scene():
        way = Way()
        gather = gatherer(way, max_batch=2)
        asked = [asyncio.create_task(gather.submit(item)) for item in (1, -1, 2)]
        await asyncio.sleep(0.01)
        way.open.set()
        first, second, third = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(first, ValueError)
        assert isinstance(second, ValueError)
        assert third == 20

    asyncio.run(scene())


def test_the_work_of_clients_that_have_gone_is_not_done():
    async def scene():
        way = Way()
        gather = gatherer(way)
        first = asyncio.create_task(gather.submit(1))
        await asyncio.sleep(0.01)
        gone, stayed = asyncio.create_task(gather.submit(2)), asyncio.create_task(gather.submit(3))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0)
        way.open.set()
        assert await asyncio.gather(first, stayed) == [10, 30]
        assert way.calls == [[1], [3]]

    asyncio.run(scene())


def test_more_than_may_wait_are_refused_before_any_work():
    async def scene():
        way = Way()
        gather = gatherer(way, max_waiting=2)
        first = asyncio.create_task(gather.submit(1))
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(gather.submit(item)) for item in (2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError) as refused:
            await gather.submit(4)
        assert str(refused.value) == "The endpoint is busy: 2 requests wait already. Send the request again in 1 s."
        assert refused.value.retry_after_s == 1
        way.open.set()
        await asyncio.gather(first, *waiting)
        assert way.calls == [[1], [2, 3]]

    asyncio.run(scene())
