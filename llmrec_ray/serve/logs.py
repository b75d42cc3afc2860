"""One JSON line for every answer: request id, route, status, milliseconds, Release and what was done without.

Lines go through Serve's own logger, which adds replica and deployment and writes, in batches, to
`logs/serve/` of Ray's session on every node. Ids of people, keys and texts never enter a line: a route is
written as its pattern, and nothing of a body is.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmrec_ray.serve.metrics import HttpMetrics

__all__ = ["LOGGING", "AccessLog", "note", "request_id"]

LOGGING: dict[str, Any] = {"encoding": "JSON", "log_level": "INFO", "enable_access_log": False}
"""`logging_config` of every deployment; Serve's own access log would write each line a second time."""
UNMATCHED = "none"
FLUSH_S = 1.0
"""Serve keeps up to 1,000 lines in memory; none waits longer than this."""
READABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
logger = logging.getLogger("ray.serve")


@dataclass
class Notes:
    """What is known about the request that is being answered."""

    request_id: str
    status: int = 500
    release: str | None = None
    degraded: Sequence[str] = ()


_notes: ContextVar[Notes | None] = ContextVar("llmrec_notes", default=None)


def request_id() -> str:
    """Names the request in answers and logs: the header `X-Request-ID`, which Serve sets where the caller did not."""
    notes = _notes.get()
    return uuid.uuid4().hex if notes is None else notes.request_id


def note(*, release: str, degraded: Sequence[str] = ()) -> None:
    """Say for the line of the request that is being answered which Release answers it, and without what."""
    notes = _notes.get()
    if notes is not None:
        notes.release, notes.degraded = release, degraded


class AccessLog:
    """ASGI middleware, the outermost, so that refusals are logged and counted too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._metrics = HttpMetrics()
        self._flushing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, then write and count what came of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = perf_counter()
        notes = Notes(_given_id(scope))
        token = _notes.set(notes)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                notes.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            _notes.reset(token)
            seconds = perf_counter() - start
            self._metrics.answered(_route(scope), notes.status, seconds)
            _write(scope, notes, seconds)
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        for handler in logger.handlers:
            handler.flush()


def _given_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if READABLE_ID.fullmatch(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", UNMATCHED))


def _write(scope: Scope, notes: Notes, seconds: float) -> None:
    logger.info("answered", extra={
        "request_id": notes.request_id,
        "http_route": _route(scope),
        "status": notes.status,
        "ms": round(seconds * 1000, 3),
        "release": notes.release,
        "degraded": list(notes.degraded),
    })
