"""What stands before every route: key, rate and size are checked before a byte of the body is read.

Whatever is not listed in OPEN needs a key, so a route that is added later is closed until someone opens it;
everything below ADMIN needs an admin key. What leaves gets the headers that browsers heed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmrec_ray.config import RequestLimits
from llmrec_ray.serve.keys import ADMIN_KEY_VARIABLE, Keyring
from llmrec_ray.serve.problems import SECURITY_HEADERS, problem_response

__all__ = ["Guard", "Guarded"]

OPEN = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json"})
ADMIN = "/v1/admin/"
DOCS_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/; "
    "style-src 'unsafe-inline' https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/; "
    "img-src data: https://fastapi.tiangolo.com/img/; connect-src 'self'; frame-ancestors 'none'"
)


class Guarded(Protocol):
    """What the guard needs to know; asked at every request, since the app exists before the replica."""

    keyring: Keyring
    limits: RequestLimits


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Callable[[], Guarded]) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, 403, 413 or 429, or let the request through with a body that neither grows nor waits too long."""
        if scope["type"] != "http":
            await _close(scope, send)
            return
        settings, send = self._settings(), _with_headers(send, _path(scope))
        if refusal := _refusal(scope, settings):
            await refusal(scope, receive, send)
        else:
            await self._app(scope, _limited(receive, settings.limits), send)


async def _close(scope: Scope, send: Send) -> None:
    """No route speaks WebSocket; a lifespan has nothing to begin or end."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})


def _refusal(scope: Scope, settings: Guarded) -> Response | None:
    path, headers = _path(scope), Headers(scope=scope)
    if path not in OPEN and (response := _key_refusal(path, headers, settings.keyring)):
        return response
    limit = settings.limits.max_body_bytes
    return problem_response("too_large", _too_large(limit), "body") if _length(headers) > limit else None


def _key_refusal(path: str, headers: Headers, keyring: Keyring) -> Response | None:
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return problem_response("unauthorized", "Send the API key in the header `Authorization: Bearer KEY`.")
    key = keyring.find(sent.strip())
    if key is None:
        return problem_response("unauthorized", "The API key is wrong.")
    if wait_s := keyring.wait_s(key):
        message = f"This key has asked too often: send the request again in {wait_s} s."
        return problem_response("too_many_requests", message, retry_after_s=wait_s)
    if _is_admin(path) and not key.admin:
        return problem_response("forbidden", _needs_admin(keyring))
    return None


def _is_admin(path: str) -> bool:
    return f"{path}/".startswith(ADMIN)


def _needs_admin(keyring: Keyring) -> str:
    if keyring.has_admin:
        return "This needs an admin key, and the key that was sent is none."
    return f"This needs an admin key, and the endpoint has none: set {ADMIN_KEY_VARIABLE}, or a key with admin: true."


def _length(headers: Headers) -> int:
    declared = headers.get("content-length", "")
    return int(declared) if declared.isdecimal() and len(declared) < 20 else 0


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _with_headers(send: Send, path: str) -> Send:
    """A route that sets one of these headers itself, such as the page its policy, knows better."""
    headers_for = {**SECURITY_HEADERS, "Content-Security-Policy": DOCS_POLICY} if path == "/docs" else SECURITY_HEADERS

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in headers_for.items():
                headers.setdefault(name, value)
        await send(message)

    return sending


def _limited(receive: Receive, limits: RequestLimits) -> Receive:
    """For bodies that do not say how long they are, or lie, or never end."""
    received, ended = 0, False
    deadline = asyncio.get_running_loop().time() + limits.body_timeout_s

    async def limited() -> Message:
        nonlocal received, ended
        if ended:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, _too_slow(limits.body_timeout_s)) from None
        received += len(message.get("body", b""))
        ended = not message.get("more_body", False)
        if received > limits.max_body_bytes:
            raise HTTPException(413, _too_large(limits.max_body_bytes))
        return message

    return limited


def _too_large(limit: int) -> str:
    return f"The body is larger than {limit} bytes: send less at once."


def _too_slow(limit_s: float) -> str:
    return f"The body had not arrived after {limit_s:g} s: send it faster, or less at once."
