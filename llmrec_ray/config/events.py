"""The `serve.events` section: where the endpoint finds what people did a moment ago."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat

from llmrec_ray.config.section import Section

__all__ = ["EventsConfig"]


class EventsConfig(Section):
    """Views of the event log. The log itself is always files in the endpoint's events folder."""

    redis_url: Annotated[str, Field(pattern="^(redis|rediss|unix)://")] | None = None
    """Redis that the nodes of a cluster share, as redis://host:6379/0; empty: LLMREC_REDIS_URL of the environment, and
    without it each node sees only its own events."""
    redis_timeout_s: PositiveFloat = 0.2
    """Longest wait for an answer of Redis; then requests go on with this node's events until it is back."""
