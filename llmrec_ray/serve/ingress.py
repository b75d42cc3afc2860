"""The HTTP side: checks requests, gathers them, sends them through the stages, keeps feedback. Holds no vectors.

A request without text never touches the Encoder and is gathered apart from those with one. Serve copies the class the
moment it is decorated, so whatever it calls must stand above it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Protocol

import numpy as np
from fastapi import Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from llmrec_ray.changes import NewItem
from llmrec_ray.config import ApiKey
from llmrec_ray.errors import EventLogError, RequestError
from llmrec_ray.events import Event, EventStore
from llmrec_ray.events.event import Id
from llmrec_ray.recommend import Request, Resolver, Response, SimilarResponse
from llmrec_ray.recommend.popular import PopularItems
from llmrec_ray.recommend.snapshot import Snapshot
from llmrec_ray.release import Release
from llmrec_ray.serve.args import ServeArgs
from llmrec_ray.serve.explore import Explored, explorer
from llmrec_ray.serve.forgetting import Forgetting, forgotten_beside
from llmrec_ray.serve.gather import Gatherer, OverloadedError
from llmrec_ray.serve.guard import Guard, Guarded
from llmrec_ray.serve.held import Held
from llmrec_ray.serve.keys import Keyring
from llmrec_ray.serve.logs import AccessLog, note, request_id
from llmrec_ray.serve.metrics import StageMetrics
from llmrec_ray.serve.problems import (
    UnavailableError,
    add_problem_handlers,
    problem_response,
    responses,
    unavailable,
)
from llmrec_ray.serve.recent import Recent
from llmrec_ray.serve.replicas import open_snapshot
from llmrec_ray.serve.stages import Stages
from llmrec_ray.serve.switch import SnapshotKey

__all__ = ["Ingress", "app"]

ENCODE_ITEMS_S = 60.0


class EventsRequest(BaseModel):
    """Feedback to keep."""

    model_config = ConfigDict(extra="forbid")
    events: Annotated[list[Event], Field(min_length=1)]


class EventsResponse(BaseModel):
    """What was kept; it is on disk when this is sent."""

    accepted: int
    duplicates: int
    """Events whose event_id had been kept before."""
    forgotten: int
    """Events of people who were forgotten: nothing is kept of them."""
    unknown_items: list[str]
    """Item ids that this Release does not know: kept, but without influence on its answers."""
    release: str
    request_id: str


class NewItems(BaseModel):
    """Items to recommend from now on."""

    model_config = ConfigDict(extra="forbid")
    items: Annotated[list[NewItem], Field(min_length=1, max_length=1000)]


class ItemIds(BaseModel):
    """Items never to show again."""

    model_config = ConfigDict(extra="forbid")
    item_ids: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1, max_length=1000)]


class ItemsResponse(BaseModel):
    """The snapshot that every replica answers with now."""

    release: str
    items: int
    """How many were added or removed."""
    request_id: str


class ForgottenResponse(BaseModel):
    """What was removed; nothing of the person is kept from now on."""

    events: int
    """Lines of the event log of the machine that answered; others follow within seconds."""
    release: str
    request_id: str


class PublishRequest(BaseModel):
    """Which Release to serve."""

    model_config = ConfigDict(extra="forbid")
    release_id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")] | None = None
    """A Release of the same folder; none for the one before the current."""


class AdminStatus(BaseModel):
    """What is served, and what became of what should be."""

    active: str | None
    """Id of the Release that answers, and after a `+` the number of changes to its items."""
    pending: str | None
    """A snapshot that replicas are loading."""
    refused: dict[str, str]
    """Releases that were not switched to, and why."""
    replicas: dict[str, list[list[str]]]
    """Stage → for each of its replicas the snapshots in its memory."""
    pointer_error: str | None
    """Why the pointer to the current Release cannot be followed."""


class Status(BaseModel):
    """Answer of the health routes."""

    status: str
    release: str


@dataclass(frozen=True)
class Serving:
    """What an Ingress replica makes of a snapshot."""

    snapshot: Snapshot
    resolver: Resolver
    popular: PopularItems


class Replica(Guarded, Explored, Protocol):
    """What the guard and the explorer page want of an Ingress."""


def _replica() -> Replica:
    ingress: Replica = serve.get_replica_context().servable_object
    return ingress


async def _overloaded(_: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, OverloadedError)
    return problem_response("unavailable", str(error), retry_after_s=error.retry_after_s)


async def _remote(method: Any, *arguments: Any) -> Any:
    """What a deployment answers; a RequestError of it is raised as such, anything else as UnavailableError."""
    try:
        return await method.remote(*arguments)
    except Exception as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, RequestError):
            raise cause from None
        raise unavailable(error) from error


PROBLEMS = responses(
    "unauthorized", "not_found", "too_slow", "too_large", "invalid_request", "too_many_requests", "internal",
    "unavailable",
)
app = FastAPI(
    title="llmrec_ray", version="1", summary="Recommendations with explanations, and feedback.", redoc_url=None
)
app.add_middleware(Guard, settings=_replica)
app.add_middleware(AccessLog)  # the last is the outermost, so refusals are logged too
add_problem_handlers(app)
app.add_exception_handler(OverloadedError, _overloaded)
# The guard has checked the key before a route is looked up; here the scheme only enters the documentation.
guarded: dict[str, Any] = {"dependencies": [Depends(HTTPBearer(auto_error=False))], "responses": PROBLEMS}
admin: dict[str, Any] = guarded | {"responses": PROBLEMS | responses("forbidden", "refused")}

app.include_router(explorer(_replica, guarded))


@serve.ingress(app)
class Ingress:
    """One replica of the HTTP side; `encoder` is None where the application was built for a Release without texts."""

    async def __init__(  # type: ignore[misc]
        self,
        args: ServeArgs,
        keys: list[ApiKey],
        releases: DeploymentHandle,
        encoder: DeploymentHandle | None,
        retriever: DeploymentHandle,
        reranker: DeploymentHandle,
    ) -> None:
        self.keyring, self.limits = Keyring(keys), args.limits
        self._args, self._releases = args, releases
        self._stages = Stages(encoder, retriever, reranker, args.deadlines)
        self._metrics = StageMetrics("ingress")
        self._held = Held("ingress", releases, self._load, args.follow.sync_s, self._metrics.release)
        gather = args.gather.model_dump()
        self._plain = Gatherer(self._answer, **gather)
        self._with_text = Gatherer(self._answer, **gather)
        self._events = EventStore.open(
            Path(args.events_folder), args.events.redis_url, max_history=args.limits.max_history,
            redis_timeout_s=args.events.redis_timeout_s,
        )
        self._forgetting = Forgetting(self._events, forgotten_beside(args.release_uri), args.follow.pointer_s)
        await self._forgetting.start()
        self._recent = Recent(
            self._events, args.limits.max_history, args.deadlines.events_s, args.deadlines.rest_s
        )
        await self._held.start()

    @app.post("/v1/recommend", response_model=Response, **guarded)
    async def recommend(self, request: Request) -> JSONResponse:
        """Items for a user, a session, a query, a profile, or any combination of them."""
        start = perf_counter()
        with self._held.using() as (_, serving):
            serving.resolver.check(request)
            gatherer = self._with_text if request.query or request.profile else self._plain
            answer = await gatherer.submit((request, serving))
        answer["request_id"] = request_id()
        answer["timings_ms"]["total"] = round((perf_counter() - start) * 1000, 3)
        note(release=answer["release"], degraded=answer["degraded"])
        return JSONResponse(answer)

    @app.get("/v1/similar/{item_id:path}", **guarded)
    async def similar(self, item_id: str, k: int = 10) -> SimilarResponse:
        """Items like one item."""
        start = perf_counter()
        with self._held.using() as (snapshot_id, serving):
            serving.resolver.check_k(k)
            row = serving.resolver.item_row(item_id)
            try:
                rows, scores = await self._stages.similar(snapshot_id, np.array([row]), k)
            except Exception as error:
                raise unavailable(error) from error
            items = serving.resolver.similar_items(rows[0], scores[0])
        note(release=snapshot_id)
        return SimilarResponse(
            item_id=item_id, items=items, release=snapshot_id, request_id=request_id(),
            timings_ms={"total": round((perf_counter() - start) * 1000, 3)},
        )

    @app.post("/v1/events", **guarded)
    async def events(self, request: EventsRequest) -> EventsResponse:
        """Keep feedback; it is on disk, and counts in the user's next answer, before this is answered."""
        events, limit = request.events, self.limits.max_events
        if len(events) > limit:
            message = f"There are {len(events)} events; at most {limit} are taken at once: send fewer."
            raise RequestError(message, field="events")
        try:
            accepted = await asyncio.to_thread(self._events.record, events)
        except EventLogError as error:
            raise unavailable(error, "The events could not be written, so none is kept: send them again.") from error
        unwanted = sum(self._events.is_forgotten(event.user_id) for event in events)
        forgotten = min(unwanted, len(events) - accepted)  # who was kept may be forgotten by now
        snapshot_id, serving = self._held.active
        note(release=snapshot_id)
        return EventsResponse(
            accepted=accepted, duplicates=len(events) - accepted - forgotten, forgotten=forgotten,
            unknown_items=serving.resolver.unknown_items(event.item_id for event in events),
            release=snapshot_id, request_id=request_id(),
        )

    @app.post("/v1/admin/items", **admin)
    async def add_items(self, request: NewItems) -> ItemsResponse:
        """Add items by what they say about themselves; every replica has them when this is answered."""
        snapshot_id = await _remote(self._releases.check_additions, request.items)
        texts = [item.text for item in request.items]
        try:
            vectors = await self._stages.encode_items(snapshot_id, texts, ENCODE_ITEMS_S)
        except Exception as error:
            raise unavailable(error) from error
        snapshot_id = await _remote(self._releases.add_items, request.items, vectors, snapshot_id)
        return ItemsResponse(release=snapshot_id, items=len(texts), request_id=request_id())

    @app.delete("/v1/admin/items", **admin)
    async def remove_items(self, request: ItemIds) -> ItemsResponse:
        """Remove items; no replica shows them any more when this is answered, and later Releases do not either."""
        snapshot_id = await _remote(self._releases.remove_items, request.item_ids)
        return ItemsResponse(release=snapshot_id, items=len(request.item_ids), request_id=request_id())

    @app.delete("/v1/admin/users/{user_id:path}", **admin)
    async def forget_user(self, user_id: Id) -> ForgottenResponse:
        """Forget a person: their events go, new ones are not kept, and they are answered as somebody unknown. What
        training made of them goes with `llmrec forget`, which replaces the Release."""
        try:
            removed = await self._forgetting.forget(user_id)
        except EventLogError as error:
            raise unavailable(error, "Not everything could be removed: send the request again.") from error
        return ForgottenResponse(events=removed, release=self._held.active[0], request_id=request_id())

    @app.post("/v1/admin/publish", **admin)
    async def publish(self, request: PublishRequest) -> AdminStatus:
        """Serve another Release of the same folder, or the one before; answered when every replica has switched."""
        return AdminStatus.model_validate(await _remote(self._releases.publish, request.release_id))

    @app.get("/v1/admin/status", **admin)
    async def status(self) -> AdminStatus:
        """What is served, what is being loaded, what was refused and why."""
        return AdminStatus.model_validate(await _remote(self._releases.status))

    @app.get("/healthz")
    async def healthz(self) -> Status:
        """This process answers."""
        return Status(status="ok", release=self._held.active[0])

    @app.get("/readyz", responses=responses("unavailable"))
    async def readyz(self) -> Status:
        """Every stage answers, with the active snapshot in memory."""
        snapshot_id, _ = self._held.active
        try:
            held = await self._stages.held()
        except Exception as error:
            raise unavailable(error) from error
        missing = [name for name, ids in held.items() if snapshot_id not in ids]
        if missing:
            raise UnavailableError(f"{' and '.join(missing)} do not hold release {snapshot_id} yet.")
        return Status(status="ready", release=snapshot_id)

    @property
    def explored_release(self) -> Release:
        """For the explorer page: what is served."""
        return self._held.active[1].snapshot.release

    @property
    def explored_resolver(self) -> Resolver:
        """For the explorer page: ids, titles and histories of what is served."""
        return self._held.active[1].resolver

    async def newest_of(self, user_id: str) -> list[str]:
        """For the explorer page: item ids of a user's events after the Dataset, oldest first."""
        recent, _ = await self._recent.of([user_id])
        return recent.get(user_id, [])

    def check_health(self) -> None:
        """Asked by Serve; raises when the replica should be replaced."""
        self._held.check_health()

    def _load(self, key: SnapshotKey, base: Serving | None) -> Serving:
        snapshot = open_snapshot(self._args.release_uri, key, None if base is None else base.snapshot)
        catalogue = snapshot.catalogue
        resolver = Resolver(
            catalogue, snapshot.id, signals=snapshot.signal_names,
            has_encoder=snapshot.has_encoder and self._stages.encoder is not None, limits=self.limits,
            is_forgotten=self._events.is_forgotten,
        )
        return Serving(snapshot, resolver, PopularItems(catalogue))

    async def _answer(self, asked: Sequence[tuple[Request, Serving]]) -> list[dict[str, Any]]:
        """Answers to gathered requests, in order; those that came around a switch are split by their snapshots."""
        start = perf_counter()
        self._metrics.queue(self._plain.waiting + self._with_text.waiting)
        users = {request.user_id for request, _ in asked if request.user_id is not None}
        recent, without = await self._recent.of([*users])
        answers: dict[int, dict[str, Any]] = {}
        for serving in {id(serving): serving for _, serving in asked}.values():
            places = [place for place, (_, other) in enumerate(asked) if other is serving]
            requests = [asked[place][0] for place in places]
            batch = serving.resolver.resolve(requests, recent)
            answered = await self._stages.rank(batch, serving.popular)
            degraded = (*answered.degraded, *without)
            answers |= zip(places, serving.resolver.answers(
                requests, answered.batch, answered.ranked, answered.ranked.timings_ms, degraded
            ), strict=True)
            for what in degraded:
                self._metrics.degraded(what)
        self._metrics.observe(perf_counter() - start, len(asked))
        return [answers[place] for place in range(len(asked))]
