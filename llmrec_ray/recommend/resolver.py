"""The border: requests with outside ids become rows, and ranked rows become responses with ids and titles."""

from __future__ import annotations

import time
import uuid
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice, takewhile
from typing import Any

import numpy as np

from llmrec_ray.config import RequestLimits, SignalName
from llmrec_ray.errors import RequestError
from llmrec_ray.forgotten import PREFIX
from llmrec_ray.recommend.batch import Ranked, RequestBatch
from llmrec_ray.recommend.catalogue import Catalogue
from llmrec_ray.recommend.facets import facets_of
from llmrec_ray.recommend.filters import check_filters
from llmrec_ray.recommend.listing import listed
from llmrec_ray.recommend.messages import (
    About,
    Facet,
    NamedItem,
    Request,
    Response,
    SimilarItem,
    UserHistory,
    UserSummary,
)
from llmrec_ray.recommend.weights import is_cold
from llmrec_ray.signals import FusionPolicy
from llmrec_ray.text import clean_text
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Resolver"]

UNKNOWN = -1
_NOTHING = np.empty(0, np.int64)


class Resolver:
    """Knows ids, titles, the names of attributes and signals, and everyone's history; no vectors or scores."""

    def __init__(
        self,
        catalogue: Catalogue,
        release_id: str,
        *,
        signals: Collection[str],
        has_encoder: bool,
        limits: RequestLimits,
        is_forgotten: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """is_forgotten: tells of a user id whether it is to be taken for an unknown one."""
        self.release_id = release_id
        self._is_forgotten = is_forgotten
        self._catalogue = catalogue
        self._users, self._items, self._titles = catalogue.users, catalogue.items, catalogue.titles
        self._attributes = catalogue.attributes
        self._signals = signals
        self._has_encoder = has_encoder
        self._limits = limits

    def check(self, request: Request) -> None:
        """Raises RequestError naming the field that is wrong."""
        if all(given is None for given in (request.user_id, request.history, request.query, request.profile)):
            raise RequestError(
                "The request says nothing about who asks or what for: give at least one of user_id, history, "
                "query and profile.", field="user_id",
            )
        self.check_k(request.k)
        n_history, limit = len(request.history or ()), self._limits.max_history
        if n_history > limit:
            message = f"history has {n_history} items; at most {limit} are read: send the newest."
            raise RequestError(message, field="history")
        for field, text in (("query", request.query), ("profile", request.profile)):
            if text is not None:
                self._check_text(field, text)
        check_filters(request.filters, self._attributes)
        if request.weights is not None:
            self._check_weights(request.weights)

    def resolve(self, requests: Sequence[Request], recent: Mapping[str, Sequence[str]]) -> RequestBatch:
        """Rows for B requests; `recent` maps a user id to item ids of events after the Dataset, oldest first.

        Raises RequestError naming the offending field.
        """
        for request in requests:
            self.check(request)
        rows = np.array([self._user_row(request.user_id or "") for request in requests], np.int64)
        pasts = [self._past(request, int(row), recent) for request, row in zip(requests, rows, strict=True)]
        return RequestBatch(
            release_id=self.release_id,
            histories=Histories.from_lists(pasts, rows.tolist(), np.full(len(requests), int(time.time()), np.int64)),
            queries=[clean_text(request.query) if request.query else "" for request in requests],
            profiles=[clean_text(request.profile) if request.profile else "" for request in requests],
            k=np.array([request.k for request in requests], np.int64),
            exclude_seen=np.array([request.exclude_seen for request in requests], np.bool_),
            filters=[request.filters for request in requests],
            weights=[r.weights for r in requests],
            explain=np.array([request.explain for request in requests], np.bool_),
        )

    def respond(
        self,
        requests: Sequence[Request],
        batch: RequestBatch,
        ranked: Ranked,
        timings_ms: Mapping[str, float],
        degraded: Sequence[str] = (),
    ) -> list[Response]:
        """One Response per request, in order."""
        answers = self.answers(requests, batch, ranked, timings_ms, degraded)
        return [Response.model_validate(answer) for answer in answers]

    def answers(
        self,
        requests: Sequence[Request],
        batch: RequestBatch,
        ranked: Ranked,
        timings_ms: Mapping[str, float],
        degraded: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """What `respond` gives, as values that JSON can hold and nobody shares: many times as fast to make and send.

        Fields that a request did not ask for are left out.
        """
        cold, known = is_cold(batch).tolist(), (batch.histories.user_rows >= 0).tolist()
        timings = {stage: round(elapsed, 3) for stage, elapsed in timings_ms.items()}
        lists = listed(ranked, self._items, self._titles)
        return [
            {
                "items": items,
                "user": "anonymous" if request.user_id is None else "known" if is_known else "unknown",
                "cold": nothing,
                "ignored_items": self.unknown_items(request.history) if request.history else [],
                "notes": _notes(request, known=is_known, cold=nothing, shown=len(items)),
                "release": self.release_id,
                "request_id": uuid.uuid4().hex,
                "timings_ms": dict(timings),
                "degraded": list(degraded),
            }
            for request, items, is_known, nothing in zip(requests, lists, known, cold, strict=True)
        ]

    def users(self, prefix: str, n: int) -> list[UserSummary]:
        """The first n users whose id begins with `prefix`, in the order of their ids."""
        start = bisect_left(self._sorted_users, prefix)
        found = takewhile(lambda user_id: user_id.startswith(prefix), islice(self._sorted_users, start, start + n))
        return [
            UserSummary(user_id=user, events=len(self._catalogue.history(self._users.row(user))))
            for user in found if not self._is_forgotten(user)
        ]

    def history(self, user_id: str, recent: Sequence[str], n: int) -> UserHistory:
        """The newest n items of a user, with those of events after the Dataset, which come oldest first."""
        row = self._user_row(user_id)
        past = self._past(Request(user_id=user_id), row, {user_id: recent})
        newest = [int(item) for item in past[::-1][:n]]
        items = [NamedItem(item_id=self._items.id(item), title=self._titles[item]) for item in newest]
        return UserHistory(user_id=user_id, known=row >= 0, items=items, total=len(past))

    def about(self, name: str, published_at: str, policy: FusionPolicy) -> About:
        """What is served, and what requests may ask of it."""
        return About(
            release=self.release_id, name=name, published_at=published_at, users=len(self._users),
            items=len(self._items), has_encoder=self._has_encoder, signals=sorted(self._signals),
            weights={str(signal): weight for signal, weight in policy.weights.items()},
            max_weight=self._limits.max_weight, max_k=self._limits.max_k,
            max_text_chars=self._limits.max_text_chars, facets=self._facets,
        )

    @cached_property
    def _facets(self) -> list[Facet]:
        return facets_of(self._attributes)

    @cached_property
    def _sorted_users(self) -> list[str]:
        return sorted(user_id for user_id in self._users if not user_id.startswith(PREFIX))

    def _user_row(self, user_id: str) -> int:
        row = self._users.row(user_id)
        return UNKNOWN if row != UNKNOWN and self._is_forgotten(user_id) else row

    def item_row(self, item_id: str) -> int:
        """Row of an item. Raises RequestError with the code `not_found`."""
        row = self._catalogue.shown(item_id)
        if row < 0:
            message = f"There is no item {item_id!r} in release {self.release_id}."
            raise RequestError(message, field="item_id", code="not_found")
        return row

    def check_k(self, k: int) -> None:
        """Raises RequestError when more items are asked for than the limit."""
        if not 1 <= k <= self._limits.max_k:
            raise RequestError(f"k is {k}; it must be between 1 and {self._limits.max_k}.", field="k")

    def unknown_items(self, item_ids: Iterable[str]) -> list[str]:
        """Distinct ids that are not in the catalogue, in order."""
        return [item_id for item_id in dict.fromkeys(item_ids) if item_id not in self._items]

    def similar_items(self, rows: IntArray, scores: FloatArray) -> list[SimilarItem]:
        """Ids and titles of rows [k] with their scores [k]."""
        return [
            SimilarItem(item_id=self._items.id(int(row)), title=self._titles[row], score=float(score))
            for row, score in zip(rows, scores, strict=True)
            if row >= 0
        ]

    def _past(self, request: Request, user_row: int, recent: Mapping[str, Sequence[str]]) -> IntArray | list[int]:
        """Stored history, then later events, then the request's own items; a repeated item where it is newest.

        The histories of training hold no item twice, and events that were ingested since are in the log too.
        """
        stored = self._catalogue.history(user_row) if user_row >= 0 else _NOTHING
        later = recent.get(request.user_id, ()) if request.user_id is not None else ()
        if not later and not request.history:
            return stored
        past = [*stored.tolist(), *self._items.known_rows([*later, *(request.history or ())]).tolist()]
        return list(dict.fromkeys(reversed(past)))[::-1]

    def _check_text(self, field: str, text: str) -> None:
        if not clean_text(text):
            raise RequestError(f"{field} is empty: send some text, or leave the field out.", field=field)
        limit = self._limits.max_text_chars
        if len(text) > limit:
            message = f"{field} has {len(text)} characters; at most {limit} are read: shorten it."
            raise RequestError(message, field=field)
        if not self._has_encoder:
            raise RequestError(
                f"Release {self.release_id} has no text encoder, so {field} cannot be used: leave it out.",
                field=field, code="not_supported",
            )

    def _check_weights(self, weights: Mapping[SignalName, float]) -> None:
        if not any(weights.values()):
            message = "Every weight is 0, so nothing would rank the items: give one signal a weight."
            raise RequestError(message, field="weights")
        most = self._limits.max_weight
        for name, weight in weights.items():
            if weight > most:
                message = f"The weight of {name} is {weight:g}; at most {most:g} is taken: only proportions matter."
                raise RequestError(message, field=f"weights.{name}")
        missing = [name for name in weights if name not in self._signals]
        if missing:
            raise RequestError(
                f"Release {self.release_id} has no signal {' or '.join(missing)}; it has "
                f"{', '.join(sorted(self._signals))}: weigh only these.",
                field="weights",
            )


def _notes(request: Request, *, known: bool, cold: bool, shown: int) -> list[str]:
    notes = []
    if request.user_id is not None and not known:
        notes.append(f"user_id {request.user_id!r} is not known to this release.")
    if cold:
        notes.append("There is nothing to go by, so the most popular items are shown.")
    unseen = "unseen " if request.exclude_seen else ""
    if shown == 0:
        notes.append(f"No {unseen}item passes the filters.")
    elif shown < request.k:
        notes.append(f"Fewer than {request.k} {unseen}items pass the filters.")
    return notes
