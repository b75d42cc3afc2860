"""The explorer page at `/`, and what it asks for beside recommendations: the Release, its users, their histories.

The page is one file without data; everything it shows it fetches with the key that a person gives it. Its scripts and
styles are named by their hashes in the Content-Security-Policy, so that nothing else runs in it.

No `from __future__ import annotations`: Serve copies the routes to the replicas, where names of types mean nothing.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Path, Query
from fastapi.responses import HTMLResponse

from llmrec_ray.recommend import About, Resolver, UserHistory, UserSummary
from llmrec_ray.release import Release

__all__ = ["Explored", "explorer", "page_headers", "read_page"]

UserId = Annotated[str, Path(min_length=1, max_length=256, description="Of a user, known or not.")]
Prefix = Annotated[str, Query(max_length=256, description="What the user's id begins with.")]
Some = Annotated[int, Query(ge=1, le=100, description="How many.")]


class Explored(Protocol):
    """What an Ingress replica lends to the routes; asked at every request, since it changes with the Release."""

    @property
    def explored_release(self) -> Release:
        """What is served."""

    @property
    def explored_resolver(self) -> Resolver:
        """Of what is served."""

    async def newest_of(self, user_id: str) -> list[str]:
        """Item ids of a user's events after the Dataset, oldest first."""


def explorer(replica: Callable[[], Explored], guarded: Mapping[str, Any]) -> APIRouter:
    """The routes; `guarded` are settings of those that need the API key, all but the page itself."""
    router = APIRouter()
    page, headers = read_page(), page_headers(read_page())

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def explore() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @router.get("/v1/about", **guarded)
    async def about() -> About:
        """What is served, and what requests may ask of it."""
        source = replica()
        release = source.explored_release
        return source.explored_resolver.about(release.name, release.created_at, release.policy)

    @router.get("/v1/users", **guarded)
    async def users(prefix: Prefix = "", n: Some = 20) -> list[UserSummary]:
        """Users of the Release in the order of their ids."""
        return replica().explored_resolver.users(prefix, n)

    @router.get("/v1/users/{user_id:path}/history", **guarded)
    async def history(user_id: UserId, n: Some = 100) -> UserHistory:
        """The newest items of a user, later events included. An unknown user is no error and has none."""
        source = replica()
        return source.explored_resolver.history(user_id, await source.newest_of(user_id), n)

    return router


def read_page() -> str:
    """The page as it is sent."""
    return (resources.files("llmrec_ray.serve") / "page" / "index.html").read_text(encoding="utf-8")


def page_headers(page: str) -> dict[str, str]:
    """What may run and load in the page: its own script and styles, and this endpoint."""
    policy = (
        "default-src 'none'", f"script-src {_hashes('script', page)}", f"style-src {_hashes('style', page)}",
        "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    )
    return {"Content-Security-Policy": "; ".join(policy)}


def _hashes(tag: str, page: str) -> str:
    inline = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
