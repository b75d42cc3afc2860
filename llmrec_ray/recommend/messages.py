"""What a caller sends and receives, in the outside world's ids; the HTTP contract is made of these."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmrec_ray.config import SignalName

__all__ = [
    "Filters",
    "PastItem",
    "RecommendedItem",
    "Request",
    "Response",
    "SimilarItem",
    "SimilarResponse",
]

Id = Annotated[str, Field(min_length=1, max_length=256)]
Weight = Annotated[float, Field(ge=0.0, le=1000.0)]
AttributeValue = str | int | float


class Message(BaseModel):
    """Base of every message: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Filters(Message):
    """Which items may be shown; an item must pass all of them."""

    attributes: dict[str, AttributeValue | list[AttributeValue]] = {}
    """Attribute name to the value, or any of the values, that the item must have. A text attribute of several
    words, such as genres, also matches on any one of its words."""
    allow: list[Id] | None = None
    """Only these items."""
    deny: list[Id] = []
    """None of these items."""


_NO_FILTERS = Filters()
"""One for all requests without filters: nothing is copied, and a batch of them travels as one object."""


class Request(Message):
    """At least one of user_id, history, query and profile, in any combination."""

    user_id: Id | None = None
    """Who; the stored history and later events of this person count."""
    history: list[Id] | None = None
    """Items of this session, oldest first; they follow the stored history."""
    query: str | None = None
    """What is wanted, in words."""
    profile: str | None = None
    """Who this is, in words; counts for a person without a history, in whose place the events speak otherwise."""
    k: Annotated[int, Field(ge=1)] = 10
    """How many items."""
    filters: Filters = Field(default_factory=lambda: _NO_FILTERS)
    """Which items may be shown."""
    exclude_seen: bool = True
    """Leave out items of the history."""
    explain: bool = False
    """Say for every item what each signal contributed, which sources proposed it and what of the history it is like."""
    weights: dict[SignalName, Weight] | None = None
    """Signal weights for this request instead of the Release's."""


class PastItem(Message):
    """An item of the history that speaks for a recommended one."""

    item_id: str
    title: str
    similarity: float
    """Cosine of the two items' fused vectors."""


class RecommendedItem(Message):
    """One item of an answer."""

    item_id: str
    title: str
    score: float
    """Fused score: the weighted sum of calibrated signals; it orders one list and means nothing beyond."""
    shares: dict[str, float] | None = None
    """With `explain`: what each signal adds to the score; they add up to it."""
    sources: list[str] | None = None
    """With `explain`: which sources proposed the item."""
    because: list[PastItem] | None = None
    """With `explain`: the nearest items of the history, at most three, nearest first; empty where none is like it."""


class Response(Message):
    """An answer to one Request."""

    items: list[RecommendedItem]
    user: Literal["known", "unknown", "anonymous"]
    """`unknown`: a user_id that the model has not seen; `anonymous`: no user_id was given."""
    cold: bool
    """True when there was neither a history nor a text to go by, so that popular items are shown."""
    ignored_items: list[str] = []
    """Ids of `history` that are not in the catalogue."""
    notes: list[str] = []
    """Sentences for people about anything unusual in this answer."""
    release: str
    """Id of the Release that answered."""
    request_id: str
    """Names this answer in logs."""
    timings_ms: dict[str, float]
    """Milliseconds per stage and in total."""
    degraded: list[str] = []
    """Stages that failed and were done without; empty when all is well."""


class SimilarItem(Message):
    """One item that is like another."""

    item_id: str
    title: str
    score: float
    """Cosine of the two items' fused vectors."""


class SimilarResponse(Message):
    """Items like one item."""

    item_id: str
    items: list[SimilarItem]
    release: str
    request_id: str
    timings_ms: dict[str, float]
