"""What stands before every route: the API key is checked and the body's size limited before a byte is parsed.

Whatever is not listed in OPEN needs the key, so a route that is added later is closed until someone opens it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmrec_ray.serve.args import key_matches
from llmrec_ray.serve.problems import problem_response

__all__ = ["Guard", "Guarded"]

OPEN = frozenset({"/healthz", "/readyz", "/docs", "/redoc", "/openapi.json"})


class Guarded(Protocol):
    """What the guard needs to know; asked at every request, since the app exists before the replica."""

    key_hash: str
    max_body_bytes: int


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Callable[[], Guarded]) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 413, or let the request through with a body that cannot grow beyond the limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        settings, headers = self._settings(), Headers(scope=scope)
        limit = settings.max_body_bytes
        if _path(scope) not in OPEN and (refusal := _refusal(headers, settings.key_hash)):
            await problem_response("unauthorized", refusal)(scope, receive, send)
        elif _length(headers) > limit:
            await problem_response("too_large", _too_large(limit), "body")(scope, receive, send)
        else:
            await self._app(scope, _limited(receive, limit), send)


def _length(headers: Headers) -> int:
    declared = headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else 0


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _refusal(headers: Headers, key_hash: str) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return "Send the API key in the header `Authorization: Bearer KEY`."
    return None if key_matches(key.strip(), key_hash) else "The API key is wrong."


def _limited(receive: Receive, limit: int) -> Receive:
    """For bodies that do not say how long they are, or lie."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return limited


def _too_large(limit: int) -> str:
    return f"The body is larger than {limit} bytes: send less at once."
