"""The HTTP side: authorises, resolves ids, calls the stages in order, keeps feedback. Holds no vectors.

A request without text never touches the Encoder, and what one stage returns goes to the next without being
waited for here. Serve copies the class the moment it is decorated, so whatever it calls must stand above it.
"""

import asyncio
import logging
import uuid
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.handle import DeploymentHandle

from llmrec_ray.errors import RequestError
from llmrec_ray.events import Event, EventStore
from llmrec_ray.recommend import (
    Ranked,
    Request,
    RequestBatch,
    Resolver,
    Response,
    SimilarResponse,
    open_dataset,
    signal_names,
)
from llmrec_ray.release import Release
from llmrec_ray.serve.args import ServeArgs
from llmrec_ray.serve.guard import Guard, Guarded
from llmrec_ray.serve.problems import Problem, UnavailableError, add_problem_handlers, unavailable

__all__ = ["Ingress", "app"]

logger = logging.getLogger("ray.serve")


class EventsRequest(BaseModel):
    """Feedback to keep."""

    model_config = ConfigDict(extra="forbid")
    events: Annotated[list[Event], Field(min_length=1)]


class EventsResponse(BaseModel):
    """What was kept; it is on disk when this is sent."""

    accepted: int
    duplicates: int
    """Events whose event_id had been kept before."""
    unknown_items: list[str]
    """Item ids that this Release does not know: kept, but without influence on its answers."""
    release: str
    request_id: str


class Status(BaseModel):
    """Answer of the health routes."""

    status: str
    release: str


def _replica() -> Guarded:
    ingress: Guarded = serve.get_replica_context().servable_object
    return ingress


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (401, 404, 413, 422, 500, 503)
}
app = FastAPI(title="llmrec_ray", version="1", summary="Recommendations with explanations, and feedback.")
app.add_middleware(Guard, settings=_replica)
add_problem_handlers(app)
# The guard has checked the key before a route is looked up; here the scheme only enters the documentation.
guarded: dict[str, Any] = {"dependencies": [Depends(HTTPBearer(auto_error=False))], "responses": PROBLEMS}


@serve.ingress(app)
class Ingress:
    """One replica of the HTTP side; `encoder` is None for a Release without texts."""

    def __init__(
        self,
        release: Release,
        args: ServeArgs,
        key_hash: str,
        encoder: DeploymentHandle | None,
        retriever: DeploymentHandle,
        reranker: DeploymentHandle,
    ) -> None:
        self.key_hash, self.max_body_bytes = key_hash, args.limits.max_body_bytes
        self._release = release
        self._limits = args.limits
        self._encoder, self._retriever, self._reranker = encoder, retriever, reranker
        self._events = EventStore(Path(args.events_folder))
        self._resolver = Resolver(
            open_dataset(release), release.id, signals=signal_names(release), has_encoder=encoder is not None,
            limits=args.limits,
        )

    @app.post("/v1/recommend", **guarded)
    async def recommend(self, request: Request) -> Response:
        """Items for a user, a session, a query, a profile, or any combination of them."""
        start = perf_counter()
        batch = self._resolver.resolve([request], await self._recent(request))
        used, ranked = await self._ranked(batch)
        degraded = ["encoder"] if batch.has_text and not used.has_text else []
        timings = {**ranked.timings_ms, "total": (perf_counter() - start) * 1000}
        return self._resolver.respond([request], used, ranked, timings, degraded)[0]

    @app.get("/v1/similar/{item_id:path}", **guarded)
    async def similar(self, item_id: str, k: int = 10) -> SimilarResponse:
        """Items like one item."""
        start = perf_counter()
        self._resolver.check_k(k)
        row = self._resolver.item_row(item_id)
        try:
            rows, scores = await self._retriever.similar.remote(np.array([row]), k)
        except Exception as error:
            raise unavailable(error) from error
        return SimilarResponse(
            item_id=item_id,
            items=self._resolver.similar_items(rows[0], scores[0]),
            release=self._release.id,
            request_id=uuid.uuid4().hex,
            timings_ms={"total": round((perf_counter() - start) * 1000, 3)},
        )

    @app.post("/v1/events", **guarded)
    async def events(self, request: EventsRequest) -> EventsResponse:
        """Keep feedback; it is on disk, and counts in the user's next answer, before this is answered."""
        events, limit = request.events, self._limits.max_events
        if len(events) > limit:
            message = f"There are {len(events)} events; at most {limit} are taken at once: send fewer."
            raise RequestError(message, field="events")
        accepted = await asyncio.to_thread(self._events.record, events)
        return EventsResponse(
            accepted=accepted,
            duplicates=len(events) - accepted,
            unknown_items=self._resolver.unknown_items(event.item_id for event in events),
            release=self._release.id,
            request_id=uuid.uuid4().hex,
        )

    @app.get("/healthz")
    async def healthz(self) -> Status:
        """This process answers."""
        return Status(status="ok", release=self._release.id)

    @app.get("/readyz", responses={503: {"model": Problem}})
    async def readyz(self) -> Status:
        """Every stage answers, with this Release in memory."""
        stages = [stage for stage in (self._encoder, self._retriever, self._reranker) if stage is not None]
        try:
            held = await asyncio.gather(*(stage.held_release.remote() for stage in stages))
        except Exception as error:
            raise unavailable(error) from error
        if set(held) != {self._release.id}:
            raise UnavailableError(f"The stages hold releases {sorted(set(held))}, not {self._release.id}.")
        return Status(status="ready", release=self._release.id)

    async def _recent(self, request: Request) -> dict[str, list[str]]:
        if request.user_id is None:
            return {}
        newest = await asyncio.to_thread(self._events.newest, request.user_id, self._limits.max_history)
        return {request.user_id: newest}

    async def _ranked(self, batch: RequestBatch) -> tuple[RequestBatch, Ranked]:
        """The final order and what it was made of: without the texts when the way through the Encoder fails."""
        if batch.has_text:
            try:
                return batch, await self._chain(batch)
            except Exception:
                logger.exception("Answering without the texts, since the way through the Encoder failed.")
        without = batch.without_text()
        try:
            return without, await self._chain(without)
        except Exception as error:
            raise unavailable(error) from error

    async def _chain(self, batch: RequestBatch) -> Ranked:
        encoded = None
        if batch.has_text:
            assert self._encoder is not None, "a text for a Release without encoder. This is a bug."
            encoded = self._encoder.encode.remote(batch.queries, batch.profiles)
        retrieved = self._retriever.retrieve.remote(batch, encoded)
        ranked: Ranked = await self._reranker.rerank.remote(batch, retrieved)
        return ranked
