"""The way of a gathered batch through the stages, each with a deadline; what fails or is late is done without.

    Encoder fails    the texts are left out
    Retriever fails  the popular items that the Ingress holds are shown
    Reranker fails   the Retriever's order stands

What was done without is named. A stage that failed is left alone for a while, then one call tries it again, so that
requests do not queue for what is not there. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from llmrec_ray.config import DeadlineConfig
from llmrec_ray.recommend import Encoded, Ranked, RequestBatch, Retrieved, retriever_order
from llmrec_ray.recommend.popular import PopularItems
from llmrec_ray.serve.rests import Rests
from llmrec_ray.types import FloatArray

__all__ = ["Answered", "Stage", "Stages"]

Value = TypeVar("Value")
LOST_REPLICA = (RayActorError,)
TRIES = 3
"""A call that a replica took with it when it died goes to another one."""
READY_S = 10.0
HELD_FRESH_S = 0.5
"""Nobody needs a key to ask whether the endpoint is ready, so however many ask, the stages are asked so often."""
SIMILAR_S = 10.0
"""Nothing can stand in for similar items, so a Retriever that is being replaced is waited for."""


@dataclass(frozen=True)
class Answered:
    """How a batch was answered: `batch` as it was ranked in the end, and the names of what was done without."""

    batch: RequestBatch
    ranked: Ranked
    degraded: tuple[str, ...]


class Stage(Rests):
    """One deployment, as the Ingress sees it."""

    def __init__(self, name: str, handle: DeploymentHandle, deadline_s: float, rest_s: float) -> None:
        super().__init__(name, rest_s)
        self.handle, self.deadline_s = handle, deadline_s


class Stages:
    """The three inner deployments; `encoder` is None for a Release without texts."""

    def __init__(
        self, encoder: DeploymentHandle | None, retriever: DeploymentHandle, reranker: DeploymentHandle,
        deadlines: DeadlineConfig,
    ) -> None:
        rest_s = deadlines.rest_s
        self.encoder = None if encoder is None else Stage("encoder", encoder, deadlines.encoder_s, rest_s)
        self.retriever = Stage("retriever", retriever, deadlines.retriever_s, rest_s)
        self.reranker = Stage("reranker", reranker, deadlines.reranker_s, rest_s)
        self._looking: asyncio.Task[dict[str, list[str]]] | None = None
        self._look_again_at = 0.0

    async def rank(self, batch: RequestBatch, popular: PopularItems) -> Answered:
        """The final order of every request; never fails because a stage does."""
        degraded: tuple[str, ...] = ()
        encoded = None
        if batch.has_text:
            encoded = await self._encode(batch)
            if encoded is None:
                batch, degraded = batch.without_text(), ("encoder",)
        ranked, without = await self._retrieve_and_rank(batch, encoded, popular)
        return Answered(batch, ranked, (*degraded, *without))

    async def similar(self, snapshot_id: str, item_rows: Any, k: int) -> Any:
        """What Retriever.similar gives. Raises what the stage raises, and TimeoutError."""
        for last in _tries():
            try:
                return await _within(self.retriever.handle.similar.remote(snapshot_id, item_rows, k), SIMILAR_S)
            except LOST_REPLICA:
                if last:
                    raise
        raise AssertionError("no try was the last. This is a bug.")

    async def held(self) -> dict[str, list[str]]:
        """Stage -> the snapshots in the memory of one of its replicas, as of a moment ago at most. Raises what a stage
        raises, and TimeoutError."""
        if self._looking is None or (self._looking.done() and monotonic() >= self._look_again_at):
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> dict[str, list[str]]:
        try:
            return await self._held_now()
        finally:
            self._look_again_at = monotonic() + HELD_FRESH_S

    async def _held_now(self) -> dict[str, list[str]]:
        stages = [stage for stage in (self.encoder, self.retriever, self.reranker) if stage is not None]
        held = await asyncio.gather(*(_within(one.handle.held_snapshots.remote(), READY_S) for one in stages))
        return {stage.name: ids for stage, ids in zip(stages, held, strict=True)}

    async def encode_items(self, snapshot_id: str, texts: list[str], deadline_s: float) -> FloatArray:
        """Raw text vectors [n, T] of items. Raises what the stage raises, and TimeoutError."""
        assert self.encoder is not None, "items for a Release without encoder. This is a bug."
        vectors: FloatArray = await _within(self.encoder.handle.encode_items.remote(snapshot_id, texts), deadline_s)
        return vectors

    async def encode(self, snapshot_id: str, queries: list[str], profiles: list[str], deadline_s: float) -> Encoded:
        """Texts as vectors. Raises what the stage raises, and TimeoutError."""
        assert self.encoder is not None, "a text for a Release without encoder. This is a bug."
        response = self.encoder.handle.encode.remote(snapshot_id, queries, profiles)
        encoded: Encoded = await _within(response, deadline_s)
        return encoded

    async def _encode(self, batch: RequestBatch) -> Encoded | None:
        stage = self.encoder
        assert stage is not None, "a text for a Release without encoder. This is a bug."
        if not stage.is_up():
            return None
        for last in _tries():
            try:
                encoded = await self.encode(batch.release_id, batch.queries, batch.profiles, stage.deadline_s)
            except Exception as error:
                if isinstance(error, LOST_REPLICA) and not last:
                    continue
                stage.failed(error)
                return None
            stage.answered()
            return encoded
        return None

    async def _retrieve_and_rank(
        self, batch: RequestBatch, encoded: Encoded | None, popular: PopularItems
    ) -> tuple[Ranked, tuple[str, ...]]:
        if self.retriever.is_up():
            for last in _tries():
                try:
                    return await self._chain(batch, encoded, last=last)
                except LOST_REPLICA as error:
                    if last:
                        self.retriever.failed(error)
                except Exception as error:
                    self.retriever.failed(error)
                    break
        return popular.rank(batch), ("retriever",)

    async def _chain(
        self, batch: RequestBatch, encoded: Encoded | None, *, last: bool
    ) -> tuple[Ranked, tuple[str, ...]]:
        """Both stages, of which the second reads what the first returns without it passing through here.

        Raises what the Retriever raises, and RayActorError where a Reranker died and there is a next try.
        """
        retriever, reranker = self.retriever, self.reranker
        found = retriever.handle.retrieve.remote(batch, encoded)
        wait_s = retriever.deadline_s
        if reranker.is_up():
            try:
                ranked: Ranked = await _within(
                    reranker.handle.rerank.remote(batch, found), retriever.deadline_s + reranker.deadline_s
                )
            except Exception as error:
                wait_s = 0.0 if isinstance(error, TimeoutError) else wait_s
                retrieved = await self._retrieved(found, wait_s)
                if isinstance(error, LOST_REPLICA) and not last:
                    raise
                reranker.failed(error)
                return retriever_order(batch, retrieved), ("reranker", *retrieved.degraded)
            retriever.answered()
            reranker.answered()
            return ranked, ranked.degraded
        retrieved = await self._retrieved(found, wait_s)
        return retriever_order(batch, retrieved), ("reranker", *retrieved.degraded)

    async def _retrieved(self, found: DeploymentResponse[Retrieved], wait_s: float) -> Retrieved:
        retrieved: Retrieved = await _within(found, max(wait_s, 0.05))
        self.retriever.answered()
        return retrieved


async def _within(response: Awaitable[Value], seconds: float) -> Value:
    """The response, or TimeoutError, upon which the call is cancelled."""
    waiting = asyncio.ensure_future(_value(response))
    try:
        await asyncio.wait([waiting], timeout=seconds)
        if waiting.done() and not waiting.cancelled():
            return waiting.result()
    finally:
        if not waiting.done():
            waiting.cancel()
            if isinstance(response, DeploymentResponse):
                response.cancel()
    raise TimeoutError(f"no answer within {seconds:.2f} s")


async def _value(response: Awaitable[Value]) -> Value:
    return await response


def _tries() -> list[bool]:
    """For each try whether it is the last."""
    return [number == TRIES for number in range(1, TRIES + 1)]
