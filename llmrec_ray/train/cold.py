"""What items without a train event get from the known ones: vectors, item-item columns, and how to calibrate them.

Shapes: B users, N items, C cold items, T text vector size, d embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.signals import Calibration, ColdItems, Ease, ItemKernel, NewItems, Propagation
from llmrec_ray.signals.base import history_matrix
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["ColdStart", "fit_new_items"]

REHEARSED_SHARE = 0.1
REHEARSAL_SEED = 0


@dataclass(frozen=True)
class ColdStart:
    """The items of a Dataset that training never saw, and how the known ones carry over to them.

    rehearsal: the same for some known items, as if they were new; what is measured on them holds for new items before
    anybody has found these.
    """

    counts: IntArray
    propagation: Propagation
    rehearsal: Propagation

    @classmethod
    def of(cls, dataset: Dataset, text_vectors: FloatArray | None) -> ColdStart:
        """From item texts (text_vectors [N, T] in text space, or None) and attributes.

        Without either there is nothing to tell new items by: they are ranked as known ones that nobody took.
        """
        n_items = len(dataset.items)
        counts = np.bincount(dataset.histories("train").item_rows, minlength=n_items)
        attributes = dataset.item_attributes
        if text_vectors is None and not attributes.width:
            return cls(counts, _nothing(), _nothing())
        vectors = np.zeros((n_items, 1), np.float32) if text_vectors is None else text_vectors
        kernel = ItemKernel(vectors, [column.to_list() for column in attributes.iter_columns()])
        return cls(
            counts, Propagation.fit(kernel, counts, np.flatnonzero(counts == 0)),
            Propagation.fit(kernel, counts, _rehearsed(counts)),
        )

    @classmethod
    def none(cls, dataset: Dataset) -> ColdStart:
        """Nothing is carried over: the learned model alone ranks items without a train event too, by their texts."""
        counts = np.bincount(dataset.histories("train").item_rows, minlength=len(dataset.items))
        return cls(counts, _nothing(), _nothing())

    @property
    def rows(self) -> IntArray:
        """[C] item rows without a train event, when there is something to tell them by."""
        return self.propagation.cold

    def fill(self, item_vectors: FloatArray, ease: Ease | None) -> tuple[FloatArray, Ease | None]:
        """Item vectors [N, d + 1] and the item-item signal with the cold items filled in."""
        return _fill(self.propagation, item_vectors, ease)

    def calibrate(
        self, users: FloatArray, seen: Histories, item_vectors: FloatArray, ease: Ease | None,
        text_vectors: FloatArray | None,
    ) -> Calibration:
        """Mean and deviation of each signal over new items, rehearsed on known ones that a user has not seen.

        users: [B, d + 1] user vectors for the histories `seen`. item_vectors, ease: without cold items filled in.
        """
        rehearsal = self.rehearsal
        filled, item_item = _fill(rehearsal, item_vectors, ease)
        columns = None if item_item is None else item_item.columns(rehearsal.cold)
        items = ColdItems(rehearsal.cold, columns, text_vectors, filled)
        scores = items.score(seen, users)
        known = history_matrix(seen, len(filled), None)[:, rehearsal.cold].toarray() > 0
        return Calibration.fit({
            name: np.where(known, np.nan, values).astype(np.float32) for name, values in scores.items()
        })


def fit_new_items(
    recipe: Recipe, dataset: Dataset, text_vectors: FloatArray | None, item_vectors: FloatArray, *, item_item: bool
) -> NewItems | None:
    """How learned item vectors [N, d + 1] carry over to items that come later, with their item-item columns or without.

    None without texts, and with mode `feature`, where the learned model alone ranks new items.
    """
    if text_vectors is None or recipe.fusion.mode == "feature":
        return None
    counts = np.bincount(dataset.histories("train").item_rows, minlength=len(dataset.items))
    attributes = {name: dataset.item_attributes[name].to_list() for name in dataset.item_attributes.columns}
    nobody = np.empty(0, np.int64)
    return NewItems.fit(text_vectors, attributes, counts, nobody, item_vectors, item_item=item_item)


def _fill(propagation: Propagation, item_vectors: FloatArray, ease: Ease | None) -> tuple[FloatArray, Ease | None]:
    if not len(propagation.cold) or not len(propagation.known):
        return item_vectors, ease
    filled: Ease | None = None
    if ease is not None:
        filled = Ease(ease.l2, ease.recency)
        filled.weights = propagation.fill_item_item(ease.weights)
    return propagation.fill_rows(item_vectors), filled


def _rehearsed(counts: IntArray) -> IntArray:
    """A tenth of the known items, at least one, leaving at least one."""
    known = np.flatnonzero(counts)
    size = min(max(1, round(REHEARSED_SHARE * len(known))), len(known) - 1)
    return np.sort(np.random.default_rng(REHEARSAL_SEED).choice(known, size, replace=False))


def _nothing() -> Propagation:
    return Propagation(np.empty(0, np.int64), np.empty(0, np.int64), np.zeros((0, 0), np.float32))
