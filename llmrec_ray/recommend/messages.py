"""What a caller sends and receives, in the outside world's ids; the HTTP contract is made of these."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmrec_ray.config import SignalName

__all__ = [
    "About",
    "Facet",
    "FacetValue",
    "Filters",
    "NamedItem",
    "PastItem",
    "Range",
    "RecommendedItem",
    "Request",
    "Response",
    "SimilarItem",
    "SimilarResponse",
    "UserHistory",
    "UserSummary",
]

Id = Annotated[str, Field(min_length=1, max_length=256)]
Weight = Annotated[float, Field(ge=0.0, le=1000.0)]
AttributeValue = str | bool | int | float
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Message(BaseModel):
    """Base of every message: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Range(Message):
    """From the least to the greatest number that passes, both included."""

    min: Finite | None = None
    """No less than this."""
    max: Finite | None = None
    """No more than this."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a range has neither min nor max: give one of them")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}, so that nothing passes: exchange them")
        return self


class Filters(Message):
    """Which items may be shown; an item must pass all of them."""

    attributes: dict[str, AttributeValue | list[AttributeValue]] = {}
    """Attribute name to the value, or any of the values, that the item must have, in upper or lower case. A text
    attribute of several words, such as genres, also matches on any one of its words."""
    ranges: dict[str, Range] = {}
    """Name of a numeric attribute to the numbers that pass; an item without a number does not."""
    allow: list[Id] | None = None
    """Only these items."""
    deny: list[Id] = []
    """None of these items."""

    @property
    def is_empty(self) -> bool:
        """Whether every item passes."""
        return not (self.attributes or self.ranges or self.deny) and self.allow is None


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


class NamedItem(Message):
    """An item of the catalogue."""

    item_id: str
    title: str


class UserSummary(Message):
    """A user of the Release."""

    user_id: str
    events: int
    """Items in the history that the Release knows."""


class UserHistory(Message):
    """What is known of a user, later events included."""

    user_id: str
    known: bool
    """Whether the Release knows this user; later events count either way."""
    items: list[NamedItem]
    """Newest first."""
    total: int
    """How many items there are; `items` may hold fewer."""


class FacetValue(Message):
    """A value that items have."""

    value: str
    items: int
    """How many."""


class Facet(Message):
    """An attribute to filter by: a range of numbers, or texts."""

    name: str
    minimum: float | None = None
    """Of a column of numbers."""
    maximum: float | None = None
    """Of a column of numbers."""
    values: list[FacetValue] = []
    """Of a column of texts, the most common first; single words where a text is made of a few of these."""
    more: bool = False
    """Whether there are more values than are listed."""


class About(Message):
    """What is served, and what requests may ask of it."""

    release: str
    name: str
    """Of the recipe that the Release was made with."""
    published_at: str
    """ISO 8601, UTC."""
    users: int
    items: int
    has_encoder: bool
    """Whether queries and profiles can be read."""
    signals: list[str]
    """What a request may weigh."""
    weights: dict[str, float]
    """Those of the Release, for people with a history."""
    max_weight: float
    max_k: int
    max_text_chars: int
    facets: list[Facet]
    """What a request may filter by."""
