"""Requests between the stages: rows and arrays only, cheap to send from one process to another.

Shapes: B = requests, C = candidates per request, K = longest list asked for, E = requests to be explained, T = text
vector size, d = embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.config import SignalName
from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.recommend.messages import Filters
from llmrec_ray.types import Candidates, FloatArray, Histories, IntArray

__all__ = ["Because", "Encoded", "Ranked", "RequestBatch", "Retrieved"]


@dataclass(frozen=True)
class RequestBatch:
    """B requests after ids have become rows.

    release_id: the Release whose rows these are; a stage that holds another one must refuse them.
    histories: everything known about each person, oldest first.
    queries, profiles: texts to encode, "" where a request has none.
    k, exclude_seen, filters, weights: as requested; weights None = the Release's policy.
    explain: [B] bool, True where shares, sources and the nearest items of the history are asked for.
    """

    release_id: str
    histories: Histories
    queries: list[str]
    profiles: list[str]
    k: IntArray
    exclude_seen: NDArray[np.bool_]
    filters: list[Filters]
    weights: list[dict[SignalName, float] | None]
    explain: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.histories)

    def check_release(self, held: str) -> None:
        """Raises ArtifactMismatchError when these rows are not those of the Release that a stage holds."""
        if self.release_id != held:
            raise ArtifactMismatchError(
                f"The request was made for release {self.release_id}, but this stage holds {held}: the "
                "endpoint is being switched to another release, so send the request again."
            )

    @property
    def has_text(self) -> bool:
        """Whether any request carries a text, so that the Encoder is needed."""
        return any(self.queries) or any(self.profiles)

    def without_text(self) -> RequestBatch:
        """The same requests as if nobody had given a text."""
        nothing = [""] * len(self)
        return replace(self, queries=nothing, profiles=nothing)

    @classmethod
    def of_histories(
        cls, release_id: str, histories: Histories, k: int, *, explain: bool = False
    ) -> RequestBatch:
        """Plain requests for k unseen items each, as evaluation makes them."""
        n = len(histories)
        return cls(
            release_id=release_id,
            histories=histories,
            queries=[""] * n,
            profiles=[""] * n,
            k=np.full(n, k, np.int64),
            exclude_seen=np.ones(n, np.bool_),
            filters=[Filters()] * n,
            weights=[None] * n,
            explain=np.full(n, explain, np.bool_),
        )


@dataclass(frozen=True)
class Encoded:
    """The requests' texts.

    vectors: [B, T] in text space, of what is wanted; zero rows where a request says nothing about it.
    users: [B, d + 1] user vectors that people with such profiles have; zero rows where there is none.
    """

    vectors: FloatArray
    users: FloatArray
    timings_ms: dict[str, float]


@dataclass(frozen=True)
class Retrieved:
    """Candidates, and what the Reranker would otherwise compute again.

    users: [B, d + 1] user vectors.
    text: [B, T] in text space, zero rows where a request has no text; None when no request has one.
    by_profile: [B] bool, True where the user vector is that of people with such a profile.
    order: [B, C] float32, the higher the better by what the sources say; it only orders one request's candidates.
    degraded: `source:NAME` of every source that was left out because it failed or was late.
    """

    candidates: Candidates
    users: FloatArray
    text: FloatArray | None
    by_profile: NDArray[np.bool_]
    order: FloatArray
    timings_ms: dict[str, float]
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranked:
    """The final order, best first, and why, for those who asked.

    item_rows: [B, K] int64, -1 after the last item. scores: [B, K] float32, -inf there.
    explained: [E] int64 places of the requests that the following speak of, ascending.
    shares: signal -> [E, K] float32; they add up to the score. sources: source -> [E, K] bool.
    because: the items of the history that are nearest to each item; None where nobody asked.
    degraded: what had to be left out.
    """

    item_rows: IntArray
    scores: FloatArray
    shares: dict[str, FloatArray]
    sources: dict[str, NDArray[np.bool_]]
    timings_ms: dict[str, float]
    explained: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    because: Because | None = None
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Because:
    """item_rows: [E, K, n] int64 items of the history, nearest first, -1 where there is none. similarities: [E, K, n]
    float32 cosines of fused vectors, 0 there."""

    item_rows: IntArray
    similarities: FloatArray
