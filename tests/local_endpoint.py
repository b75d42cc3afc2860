"""The endpoint's own Ingress, stages and Releases in one process behind uvicorn: real HTTP, no Ray."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

from ray.exceptions import RayTaskError

from llmrec_ray.errors import RequestError
from llmrec_ray.serve import ServeArgs
from llmrec_ray.serve.ingress import Ingress, app
from llmrec_ray.serve.keys import resolve_keys
from llmrec_ray.serve.releases import Releases
from llmrec_ray.serve.replicas import EncoderReplica, RerankerReplica, RetrieverReplica
from tests.local_http import served


class Handle:
    """What a Serve handle does, with an object of this process."""

    def __init__(self, stage) -> None:
        self._stage = stage

    def __getattr__(self, name: str):
        method = getattr(self._stage, name)
        return SimpleNamespace(remote=lambda *arguments: asyncio.ensure_future(_called(method, arguments)))


class ReleasesHandle(Handle):
    """The parts of this process are one replica of each stage."""

    def __getattr__(self, name: str):
        handle = super().__getattr__(name)
        if name != "report":
            return handle
        return SimpleNamespace(remote=lambda report: handle.remote(replace(report, replica=report.stage)))


@contextlib.contextmanager
def local_endpoint(args: ServeArgs) -> Iterator[str]:
    """The URL of an endpoint; its Release needs a text encoder."""
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="local"), servable_object=None)
    with (
        mock.patch("ray.serve.get_replica_context", lambda: context),
        mock.patch("ray.get_gpu_ids", list),  # it would start Ray
        served(_Started(args, context), lifespan="on") as url,
    ):
        yield url


class _Started:
    """Makes the Ingress when the server starts, in the server's own loop, and then is the application."""

    def __init__(self, args: ServeArgs, context: SimpleNamespace) -> None:
        self._args, self._context = args, context

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        await receive()
        self._context.servable_object = await _ingress(self._args)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def _ingress(args: ServeArgs):
    releases = ReleasesHandle(Releases(args.release_uri, args.follow, ("ingress", "encoder", "retriever", "reranker")))
    classes = (EncoderReplica, RetrieverReplica, RerankerReplica)
    stages = await asyncio.gather(*(_made(replica, args, releases) for replica in classes))
    plain = Ingress.__mro__[1]  # as it was before Serve wrapped it
    return await _made(plain, args, resolve_keys(args.keys), releases, *(Handle(stage) for stage in stages))


async def _made(cls, *arguments):
    """Serve awaits constructors; Python alone does not."""
    instance = cls.__new__(cls)
    await cls.__init__(instance, *arguments)
    return instance


async def _called(method, arguments):
    values = [await value if inspect.isawaitable(value) else value for value in arguments]
    try:
        if inspect.iscoroutinefunction(method):
            return await method(*values)
        return await asyncio.to_thread(method, *values)
    except RequestError as error:
        raise RayTaskError("method", "traceback", error) from None
