"""A trained recommender as arrays: catalogue matrix, user matrix and scores of the NCF head.

This is the inference side: numpy in, numpy out, evaluation mode, no gradients. A catalogue row is
`[item vector, bias]` and a user row `[user vector, 1]`, so the neural score is one dot product and fits any
index.
Shapes: N items, B users, C candidates, T text size, D embedding size, H history length.
"""

from __future__ import annotations

import numpy as np
import torch

from llmrec_ray.model.fusion import FusionRecommender
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["catalogue_vectors", "ncf", "user_matrix"]

_BLOCK_ROWS = 4096
_BLOCK_ELEMENTS = 2**23


@torch.inference_mode()
def catalogue_vectors(model: FusionRecommender, text_vectors: FloatArray | None) -> FloatArray:
    """[N, D + 1] float32 item vectors with their biases in the last column."""
    _still(model)
    blocks = torch.split(torch.arange(model.n_items), _BLOCK_ROWS)
    return np.concatenate([_catalogue_block(model, rows, text_vectors) for rows in blocks])


@torch.inference_mode()
def user_matrix(
    model: FusionRecommender,
    catalogue: FloatArray,
    histories: Histories,
    extra_text: FloatArray | None = None,
) -> FloatArray:
    """[B, D + 1] float32 user vectors with a trailing 1; a model that reads the time takes `histories.asked_at`.

    extra_text: [B, T] text-space vectors of queries or profiles; each stands in the history as one newest
    item that has a text and no id. A zero row means none. Ignored by a model that reads no text.
    """
    _still(model)
    starts = range(0, len(histories), _BLOCK_ROWS)
    blocks = [np.empty((0, catalogue.shape[1]), np.float32)]
    for start in starts:
        part = slice(start, start + _BLOCK_ROWS)
        text = None if extra_text is None else extra_text[part]
        blocks.append(_user_block(model, catalogue, histories.select(part), text))
    return np.concatenate(blocks)


@torch.inference_mode()
def ncf(
    model: FusionRecommender, users: FloatArray, catalogue: FloatArray, item_rows: IntArray
) -> FloatArray:
    """[B, C] float32 scores of the NCF head for users [B, D + 1] and item rows [B, C]; NaN where -1."""
    _still(model)
    block = max(1, _BLOCK_ELEMENTS // max(1, item_rows.shape[1] * catalogue.shape[1]))
    scores = np.full(item_rows.shape, np.nan, np.float32)
    for start in range(0, len(users), block):
        part = slice(start, start + block)
        items = torch.from_numpy(catalogue[item_rows[part], :-1])
        scores[part] = model.ncf_scores(torch.from_numpy(users[part, :-1]), items).numpy()
    scores[item_rows < 0] = np.nan
    return scores


def _still(model: FusionRecommender) -> None:
    """Evaluation mode; switching a mode that is on already would cost more than a small request's scores."""
    if model.training:
        model.eval()


def _catalogue_block(
    model: FusionRecommender, rows: torch.Tensor, text_vectors: FloatArray | None
) -> FloatArray:
    text = None
    if model.reads_text:
        assert text_vectors is not None, "this recommender reads text vectors. This is a bug."
        text = torch.from_numpy(np.ascontiguousarray(text_vectors[rows.numpy()], dtype=np.float32))
    biased = torch.cat([model.item_vectors(rows, text), model.item_biases(rows)[:, None]], dim=1)
    return np.asarray(biased.numpy(), dtype=np.float32)


def _user_block(
    model: FusionRecommender, catalogue: FloatArray, histories: Histories, extra_text: FloatArray | None
) -> FloatArray:
    rows, mask = histories.last(model.config.history_length)
    vectors = torch.from_numpy(catalogue[rows, :-1])
    present = torch.from_numpy(mask)
    if extra_text is not None and model.reads_text:
        vectors, present = _append_text(model, vectors, present, extra_text)
    times = None if histories.asked_at is None else torch.from_numpy(histories.asked_at)
    users = model.user_vectors(vectors, present, torch.from_numpy(histories.user_rows), times).numpy()
    return np.concatenate([users, np.ones((len(users), 1), np.float32)], axis=1)


def _append_text(
    model: FusionRecommender, vectors: torch.Tensor, present: torch.Tensor, extra_text: FloatArray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where there is a text, forget the oldest place and put the text's vector in the newest."""
    text = torch.from_numpy(np.ascontiguousarray(extra_text, dtype=np.float32))
    given = text.abs().sum(dim=1) > 0
    newest = model.text_item_vectors(text)[:, None, :]
    shifted = torch.cat([vectors[:, 1:], newest], dim=1)
    shifted_present = torch.cat([present[:, 1:], torch.ones(len(text), 1, dtype=torch.bool)], dim=1)
    return (
        torch.where(given[:, None, None], shifted, vectors),
        torch.where(given[:, None], shifted_present, present),
    )
