"""The sources of candidates: what is known about B requests -> the best items, of those that each may be shown.

Each source knows one way to find items and nothing about the others or about merging.
Shapes: B requests, N items, n items proposed per request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmrec_ray.bundle import Bundle
from llmrec_ray.index import Index
from llmrec_ray.ranking import top_k
from llmrec_ray.recommend.allowed import Allowed, Columns, Mask
from llmrec_ray.signals import FusionPolicy
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Asked", "ColdSource", "NearestSource", "PopularSource", "Proposed", "SignalSource", "Source"]

MAX_EXTRA = 4  # fetch at most this many times n beyond n, to make up for items that may not be shown
SCANNED_SHARE = 8  # a filter that leaves fewer than 1/8 of the items is faster without the index


@dataclass(frozen=True)
class Asked:
    """What the sources go by.

    users: [B, d + 1] user vectors. text: [B, T] in text space, zero rows without one, or None. k: longest list.
    """

    histories: Histories
    users: FloatArray
    text: FloatArray | None
    allowed: Allowed
    k: int


@dataclass(frozen=True)
class Proposed:
    """rows: [B, n] int64 best first, -1 after the last. scores: [B, n] float32 of the source, -inf there.

    every: [B, N] float32 scores of all items that may be shown, where the source has made them all; of the items of
    `columns` only, when given.
    """

    rows: IntArray
    scores: FloatArray
    every: FloatArray | None = None
    columns: Columns | None = None

    def scores_of(self, item_rows: IntArray) -> FloatArray | None:
        """Scores [B, C] of item_rows [B, C], NaN where the source says nothing; None when it has not scored all."""
        if self.every is None or not self.every.shape[1]:
            return None
        places = item_rows if self.columns is None else np.where(item_rows < 0, -1, self.columns.places[item_rows])
        taken = np.take_along_axis(self.every, np.maximum(places, 0), axis=1)
        return np.where(places < 0, np.float32(np.nan), taken)


class Source(Protocol):
    """One way to find items."""

    def propose(self, asked: Asked) -> Proposed:
        """The best items that may be shown, best first, ties to the lower row."""


class NearestSource:
    """`neural`: the items nearest to the user vector."""

    def __init__(self, index: Index, n: int) -> None:
        self._index, self._n = index, n

    def propose(self, asked: Asked) -> Proposed:
        """The n nearest allowed items; where filters leave too few of those fetched, all that pass are looked at."""
        n = min(max(self._n, asked.k), len(self._index))
        best = _nothing(len(asked.users), n)
        counts = asked.allowed.counts
        searched = np.flatnonzero(SCANNED_SHARE * counts >= len(self._index))
        if len(searched):
            extra = min(int((len(self._index) - counts[searched]).max()), MAX_EXTRA * n)
            rows, scores = self._index.search(asked.users[searched], n + extra)
            first = _first(Proposed(rows, scores), asked.allowed.passes(searched, rows), n)
            best.rows[searched], best.scores[searched] = first.rows, first.scores
        for request in np.flatnonzero((best.rows >= 0).sum(axis=1) < np.minimum(n, counts)):
            passing = asked.allowed.rows(int(request))
            found, scores = self._index.search_among(asked.users[request], passing, n)
            best.rows[request, : len(found)], best.scores[request, : len(found)] = found, scores
        return best


class SignalSource:
    """`item_item`, `text`: the items that score best by one signal of the Bundle."""

    def __init__(self, bundle: Bundle, name: str, n: int) -> None:
        self._bundle, self._name, self._n = bundle, name, n

    def propose(self, asked: Asked) -> Proposed:
        """The n best allowed items; none for a request on which the signal has no opinion."""
        scores = asked.allowed.hide(self._bundle.score_signal(self._name, asked.histories, asked.text))
        return Proposed(*top_k(scores, max(self._n, asked.k)), scores)


class PopularSource:
    """`popularity`: the same items for everybody, so that they are sorted once."""

    def __init__(self, bundle: Bundle, n: int) -> None:
        scores = bundle.score_signal("popularity", Histories.from_lists([[]]))
        rows, best = top_k(scores, scores.shape[1])
        n_listed = int((rows >= 0).sum())
        self._rows, self._scores, self._n = rows[0, :n_listed], best[0, :n_listed], n

    def propose(self, asked: Asked) -> Proposed:
        """The n most popular allowed items."""
        allowed, n = asked.allowed, min(max(self._n, asked.k), len(self._rows))
        best = _nothing(len(allowed.counts), n)
        plain = np.array([request for request in range(len(best.rows)) if request not in allowed.masks], np.int64)
        if len(plain):
            width = n + allowed.n_items - int(allowed.counts[plain].min())
            rows = np.tile(self._rows[:width], (len(plain), 1))
            scores = np.tile(self._scores[:width], (len(plain), 1))
            first = _first(Proposed(rows, scores), allowed.passes(plain, rows), n)
            best.rows[plain], best.scores[plain] = first.rows, first.scores
        for request, mask in allowed.masks.items():
            places = np.flatnonzero(mask[self._rows])[:n]
            best.rows[request, : len(places)] = self._rows[places]
            best.scores[request, : len(places)] = self._scores[places]
        return best


class ColdSource:
    """`cold`: items without a train event, for people with a history."""

    def __init__(self, bundle: Bundle, policy: FusionPolicy, n: int) -> None:
        self._bundle, self._policy, self._n = bundle, policy, n
        self._columns = Columns.of(bundle.cold.rows, len(bundle.items))

    def propose(self, asked: Asked) -> Proposed:
        """The n best allowed items without a train event."""
        scores = self._bundle.blend_cold(asked.histories, asked.users, self._policy)
        scores = asked.allowed.hide(scores, self._columns)
        scores[asked.histories.lengths == 0] = -np.inf
        places, best = top_k(scores, self._n)
        rows = np.where(places >= 0, self._columns.rows[np.maximum(places, 0)], -1)
        return Proposed(rows, best, scores, self._columns)


def _nothing(n_requests: int, n: int) -> Proposed:
    return Proposed(np.full((n_requests, n), -1, np.int64), np.full((n_requests, n), -np.inf, np.float32))


def _first(found: Proposed, passing: Mask, n: int) -> Proposed:
    """The first n of each request's items that pass, [B, n] filled up with -1."""
    places = np.argsort(~passing, axis=1, kind="stable")[:, :n]
    kept = np.take_along_axis(passing, places, axis=1)
    best = _nothing(len(passing), n)
    best.rows[:, : places.shape[1]] = np.where(kept, np.take_along_axis(found.rows, places, axis=1), -1)
    best.scores[:, : places.shape[1]] = np.where(kept, np.take_along_axis(found.scores, places, axis=1), -np.inf)
    return best
