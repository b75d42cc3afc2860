"""Whether the endpoint is ready may be asked by anybody, so that asking must cost the stages nothing."""

from __future__ import annotations

import asyncio

import pytest

from llmrec_ray.config import DeadlineConfig
from llmrec_ray.serve import stages as module
from llmrec_ray.serve.stages import Stages


class Handle:
    """A stage of which only what it holds is asked."""

    def __init__(self, *held: str) -> None:
        self.held, self.calls, self.held_snapshots = [*held], 0, self

    def remote(self):
        self.calls += 1
        return asyncio.ensure_future(self._answer())

    async def _answer(self) -> list[str]:
        await asyncio.sleep(0.01)
        if not self.held:
            raise RuntimeError("nothing is held")
        return self.held


def stages_of(*handles: Handle) -> Stages:
    return Stages(None, *handles, DeadlineConfig())


def test_many_who_ask_at_once_are_told_what_one_call_of_each_stage_said(monkeypatch):
    monkeypatch.setattr(module, "HELD_FRESH_S", 60.0)
    handles = Handle("a", "b"), Handle("a")

    async def scene() -> None:
        stages = stages_of(*handles)
        answers = await asyncio.gather(*(stages.held() for _ in range(100)))
        answers.append(await stages.held())
        assert all(answer == {"retriever": ["a", "b"], "reranker": ["a"]} for answer in answers)

    asyncio.run(scene())
    assert [handle.calls for handle in handles] == [1, 1]


def test_who_stops_waiting_does_not_stop_the_others_and_failures_are_kept_for_as_long(monkeypatch):
    monkeypatch.setattr(module, "HELD_FRESH_S", 0.1)
    broken = Handle()

    async def scene() -> None:
        stages = stages_of(Handle("a"), broken)
        gone, waiting = (asyncio.ensure_future(stages.held()) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        for asked in (waiting, stages.held()):
            with pytest.raises(RuntimeError, match="nothing is held"):
                await asked
        assert broken.calls == 1
        broken.held = ["a"]
        await asyncio.sleep(0.15)
        assert (await stages.held())["reranker"] == ["a"]

    asyncio.run(scene())
