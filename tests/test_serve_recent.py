"""Events that cannot be read in time are done without and named; nobody waits for what hangs."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from llmrec_ray.errors import EventViewError
from llmrec_ray.serve.recent import Recent


class Events:
    """Answers by what it is told to do."""

    def __init__(self, do) -> None:
        self.do, self.asked = do, []

    def newest_of(self, user_ids, n):
        self.asked.append((user_ids, n))
        return self.do()


def fails():
    raise OSError(5, "Input/output error")


def ask(recent: Recent, *users: str):
    return asyncio.run(recent.of(users))


def test_what_people_did_is_read_and_nothing_is_where_nobody_is_named():
    events = Events(lambda: {"u": ["i"]})
    recent = Recent(events, 7, deadline_s=1.0, rest_s=1.0)
    assert ask(recent) == ({}, ())
    assert ask(recent, "u") == ({"u": ["i"]}, ())
    assert events.asked == [(("u",), 7)]


def test_of_a_view_that_is_away_what_this_machine_knows_is_taken_and_it_is_asked_again_at_once():
    def away():
        raise EventViewError("Redis is away", {"u": ["mine"]})

    events = Events(away)
    recent = Recent(events, 7, deadline_s=1.0, rest_s=60.0)
    for _ in range(2):
        assert ask(recent, "u") == ({"u": ["mine"]}, ("events",))
    assert len(events.asked) == 2


@pytest.mark.parametrize("rest_s", [60.0, 0.01])
def test_a_view_that_fails_is_done_without_and_left_alone_for_a_while(rest_s, caplog):
    events = Events(fails)
    recent = Recent(events, 7, deadline_s=1.0, rest_s=rest_s)
    assert ask(recent, "u") == ({}, ("events",))
    time.sleep(0.02)
    events.do = lambda: {"u": ["i"]}
    assert ask(recent, "u") == (({}, ("events",)) if rest_s == 60.0 else ({"u": ["i"]}, ()))


def test_a_disk_that_hangs_holds_an_answer_up_for_no_longer_than_the_deadline():
    go_on = threading.Event()

    async def scene() -> None:
        recent = Recent(Events(lambda: go_on.wait(10)), 7, deadline_s=0.1, rest_s=60.0)
        start = time.monotonic()
        assert await recent.of(["u"]) == ({}, ("events",))
        assert await recent.of(["u"]) == ({}, ("events",))
        assert time.monotonic() - start < 1.0
        go_on.set()

    asyncio.run(scene())
