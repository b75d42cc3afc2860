"""Items that were added while serving -> what a Bundle holds of each item, beside what it holds already.

Where the Bundle keeps how content carries over, added items become cold items like those of training: vector and
item-item column from known items with similar content. Else (mode `feature`) the learned model alone ranks them, by
their texts, with the bias of the least popular items.

Shapes: N items of training, M added items, W known items carried over from, d embedding size, T text vector size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from llmrec_ray.changes import AddedItem
from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.model.reranker import LearnedCorrection
from llmrec_ray.signals import (
    Ease,
    Fusion,
    GrownItemItem,
    Popularity,
    Signal,
    TextCosine,
    load_fusion,
    to_text_space,
)
from llmrec_ray.types import FloatArray

if TYPE_CHECKING:
    from llmrec_ray.bundle.opened import Bundle

__all__ = ["AddedRows", "grown_fusion", "grown_signals"]


@dataclass(frozen=True)
class AddedRows:
    """What was computed for added items, in their order.

    ids, titles: M of each. vectors: [M, d + 1] float32. texts: [M, T] float32 in text space. weights: [W, M] float32 of
    the known items, [0, M] where there is no item-item signal to carry over.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    vectors: FloatArray
    texts: FloatArray
    weights: FloatArray

    @classmethod
    def of(cls, bundle: Bundle, items: Sequence[AddedItem]) -> Self:
        """For a Bundle as it was trained. Raises ArtifactMismatchError when items cannot be added to it."""
        texts = _text_rows(bundle, items)
        vectors, weights = _vectors(bundle, items, texts)
        return cls(
            tuple(item.item_id for item in items), tuple(item.title or item.item_id for item in items), vectors, texts,
            weights,
        )

    @classmethod
    def none(cls, bundle: Bundle) -> Self:
        """No item yet."""
        width = 0 if bundle.text_vectors is None else bundle.text_vectors.shape[1]
        carried = bundle.new_items is not None and bundle.new_items.inverse is not None
        known = len(bundle.new_items.known) if bundle.new_items is not None and carried else 0
        return cls(
            (), (), np.empty((0, bundle.item_vectors.shape[1]), np.float32), np.empty((0, width), np.float32),
            np.empty((known, 0), np.float32),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def and_then(self, more: AddedRows) -> AddedRows:
        """These, followed by more."""
        return AddedRows(
            self.ids + more.ids, self.titles + more.titles, np.concatenate([self.vectors, more.vectors]),
            np.concatenate([self.texts, more.texts]), np.concatenate([self.weights, more.weights], axis=1),
        )


def grown_signals(bundle: Bundle, rows: AddedRows, text_vectors: FloatArray) -> dict[str, Signal]:
    """The signals of a Bundle as it was trained, over its items and the added ones; nobody has taken these yet."""
    signals: dict[str, Signal] = {}
    for name, signal in bundle.signals.items():
        if isinstance(signal, Popularity):
            signals[name] = Popularity.from_arrays({"log_counts": _padded(signal.log_counts, len(rows))})
        elif isinstance(signal, TextCosine):
            signals[name] = TextCosine(text_vectors, signal.recency)
        elif isinstance(signal, Ease) and bundle.new_items is not None:
            signals[name] = GrownItemItem(signal, bundle.new_items.known, rows.weights)
        elif isinstance(signal, Ease):
            nobody = np.empty(0, np.int64)
            signals[name] = GrownItemItem(signal, nobody, np.empty((0, len(rows)), np.float32))
    return signals


def grown_fusion(bundle: Bundle, n_added: int, item_vectors: FloatArray) -> Fusion | None:
    """The fusion of a Bundle's mode with what it knows of items for the added ones too, as of the least popular."""
    fusion = bundle.fusion
    if fusion is None or not fusion.state():
        return fusion
    state = {
        name: np.concatenate([array, _of_unpopular(bundle, array, n_added)]) if _per_item(name) else array
        for name, array in fusion.state().items()
    }

    def correction(settings: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> LearnedCorrection:
        return LearnedCorrection.from_state(settings, arrays, item_vectors)

    return load_fusion(bundle.recipe.fusion.mode, fusion.settings(), state, bundle.calibration, correction)


def _text_rows(bundle: Bundle, items: Sequence[AddedItem]) -> FloatArray:
    center = bundle.text_center
    if center is None:
        raise ArtifactMismatchError(
            f"The Bundle {bundle.uri} has no text encoder, and a new item is recommended by its text: train with item "
            "texts."
        )
    raw = np.stack([item.vector for item in items])
    if raw.shape[1:] != center.shape:
        raise ArtifactMismatchError(
            f"The added items have text vectors of size {raw.shape[1]}, but those of the Bundle {bundle.uri} have size "
            f"{len(center)}: they were made by the encoder of another Bundle; add the items again."
        )
    return to_text_space(raw, center)


def _vectors(bundle: Bundle, items: Sequence[AddedItem], texts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Item vectors [M, d + 1] and weights of the known items [W, M]."""
    new_items = bundle.new_items
    if new_items is None:
        return _learned_vectors(bundle, items, texts), np.empty((0, len(items)), np.float32)
    columns = {name: [item.attributes.get(name) for item in items] for name in new_items.attributes}
    similar = new_items.similarities(texts, columns)
    carried = new_items.inverse is not None
    weights = new_items.weights(similar) if carried else np.empty((0, len(items)), np.float32)
    return new_items.vectors(similar), weights


def _learned_vectors(bundle: Bundle, items: Sequence[AddedItem], texts: FloatArray) -> FloatArray:
    model = bundle.model
    if not model.reads_text:
        raise ArtifactMismatchError(
            f"The Bundle {bundle.uri} keeps nothing by which new items could be told apart: train again with this "
            "version to add items while serving."
        )
    with torch.inference_mode():
        vectors = model.text_item_vectors(torch.from_numpy(texts))
        if model.item_context is not None and bundle.context is not None:
            names = [column.name for column in bundle.context.items]
            columns = {name: [item.attributes.get(name) for item in items] for name in names}
            features = bundle.context.encode_items(pl.DataFrame(columns, strict=False))
            vectors = vectors + model.item_context(torch.from_numpy(features))
    biases = _of_unpopular(bundle, bundle.item_vectors[:, -1:], len(items))
    return np.concatenate([vectors.numpy(), biases], axis=1).astype(np.float32)


def _of_unpopular(bundle: Bundle, values: NDArray[Any], n: int) -> NDArray[Any]:
    """n times the mean of values [N, …] over the least popular items."""
    popularity = bundle.signals["popularity"]
    assert isinstance(popularity, Popularity), "popularity of another kind. This is a bug."
    least = popularity.log_counts == popularity.log_counts.min()
    return np.repeat(values[least].mean(axis=0, keepdims=True), n, axis=0).astype(values.dtype)


def _per_item(name: str) -> bool:
    return name in {"log_counts", "item_features"}


def _padded(values: FloatArray, n: int) -> FloatArray:
    return np.concatenate([values, np.zeros(n, np.float32)])
