"""From scores to ranks and lists: masking what was seen, ties, top-k, the rank of a held-out item.

Shapes: B = users, N = items in the catalogue, k = list length. A score of -inf means "may not be
recommended", NaN means "no opinion". This module does not know where the scores came from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["list_ranks", "mask_seen", "take_items", "target_ranks", "top_k"]

NO_OPINION = np.finfo(np.float32).min
GROUPS_PER_ITEM = 4
MAX_GROUP = 64


def mask_seen(scores: FloatArray, histories: Histories) -> FloatArray:
    """A copy of scores [B, N] with -inf at every item of each user's history."""
    masked = scores.copy()
    masked[np.repeat(np.arange(len(histories)), histories.lengths), histories.item_rows] = -np.inf
    return masked


def top_k(scores: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """The best of scores [B, N]: rows and scores, both [B, min(k, N)], best first, ties to the lower row.

    Items that score -inf or NaN are not listed: row -1 and score -inf stand at the end in their place.
    """
    width = min(k, scores.shape[1])
    rows = np.full((len(scores), width), -1, np.int64)
    best = np.full((len(scores), width), -np.inf, np.float32)
    floors = _floors(scores, width) if scores.size and width else np.empty(0, np.float32)
    for user, (user_scores, floor) in enumerate(zip(scores, floors, strict=False)):
        chosen = np.flatnonzero((user_scores >= floor) & (user_scores > -np.inf))
        found = user_scores[chosen]
        order = np.argsort(-found, kind="stable")[:width]
        rows[user, : len(order)] = chosen[order]
        best[user, : len(order)] = found[order]
    return rows, best


def target_ranks(scores: FloatArray, targets: IntArray) -> NDArray[np.float64]:
    """Rank of each user's target [B] in scores [B, N]: 1 + number scored higher + half the ties; float64 [B].

    Items at -inf never tie. Items without an opinion (NaN) rank below all others and tie among themselves.
    """
    known = np.where(np.isnan(scores), NO_OPINION, scores)
    own = known[np.arange(len(known)), targets][:, None]
    higher = (known > own).sum(axis=1)
    ties = ((known == own) & (known > -np.inf)).sum(axis=1) - (own[:, 0] > -np.inf)
    return np.asarray(1.0 + higher + 0.5 * ties, dtype=np.float64)


def list_ranks(rows: IntArray, targets: IntArray, n_candidates: IntArray) -> NDArray[np.float64]:
    """Rank of each target [B] in ordered lists rows [B, k] (-1 = empty place), float64 [B].

    A target that is not listed shares the places after the list with everything else that is not, out of
    n_candidates [B] items that could have been: the middle of those places, as ties go.
    """
    found = rows == targets[:, None]
    listed = (rows >= 0).sum(axis=1)
    beyond = 1.0 + listed + 0.5 * np.maximum(n_candidates - listed - 1, 0)
    return np.asarray(np.where(found.any(axis=1), found.argmax(axis=1) + 1.0, beyond), np.float64)


def take_items(scores: FloatArray, item_rows: IntArray) -> FloatArray:
    """Scores [B, C] float32 of item_rows [B, C] out of scores [B, N]; NaN where the row is -1."""
    taken = np.take_along_axis(scores, np.maximum(item_rows, 0), axis=1)
    return np.where(item_rows >= 0, taken, np.nan).astype(np.float32)


def _floors(scores: FloatArray, k: int) -> FloatArray:
    """[B] such that at least k of each user's scores, and few more, are no lower; -inf where there are fewer than k.

    Of M > k groups of items, k have a best item that is no lower than the k-th best of these: one pass over the scores
    instead of a partition of all of them, several times as fast.
    """
    groups = scores.shape[1] // min(MAX_GROUP, max(scores.shape[1] // (GROUPS_PER_ITEM * k), 1))
    size = scores.shape[1] // groups
    best = np.fmax.reduce(scores[:, : size * groups].reshape(len(scores), size, groups), axis=1)
    best = np.where(np.isnan(best), -np.inf, best)
    return np.asarray(np.partition(best, groups - k, axis=1)[:, groups - k])
