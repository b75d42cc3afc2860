"""An earlier Bundle -> the first weights of training, when users and items have come and gone since.

A row belongs to an id of the outside world, not to its number. What the Bundle learnt of a user or an item is kept;
a new item starts as its text, with the bias that its popularity gives; a new user starts as an unknown one. Text
vectors are those of the Bundle's encoder around the Bundle's centre, since its item tower was trained on these. It
knows no optimizer and no Ray.

Shapes: N items and U users of the new vocabularies, d embedding size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.signals import Popularity
from llmrec_ray.types import FloatArray, IntArray
from llmrec_ray.vocab import Vocabulary

__all__ = ["center_of", "initial_weights", "open_start", "with_encoder_of"]

ITEM_ROWS, ITEM_BIASES, USER_ROWS = "items.ids.weight", "items.biases.weight", "users.users.weight"
MODEL_FIELDS = (
    "model.embedding_size", "model.user_tower", "model.time_constants", "model.user_embedding", "model.ncf_head",
    "model.ncf_hidden", "model.context", "fusion.item_vector",
)
TRANSFORMER_FIELDS = ("model.transformer_layers", "model.transformer_heads", "model.history_length")
TEXT_FIELDS = ("encoder.model", "encoder.pooling", "encoder.bidirectional", "encoder.item_prompt")


def open_start(recipe: Recipe) -> Bundle | None:
    """The Bundle named by `train.warm_start`, None when training starts anew.

    Raises ArtifactNotFoundError, CorruptArtifactError, and ArtifactMismatchError for another architecture.
    """
    if recipe.train.warm_start is None:
        return None
    start = Bundle.open(recipe.train.warm_start)
    fields = [
        *MODEL_FIELDS, *(TRANSFORMER_FIELDS if recipe.model.user_tower == "transformer" else ()),
        *(TEXT_FIELDS if _reads_text(recipe) else ()),
    ]
    pairs = [(name, _value(start.recipe, name), _value(recipe, name)) for name in fields]
    if differences := [f"{name} is {there!r} there and {here!r} here" for name, there, here in pairs if there != here]:
        raise ArtifactMismatchError(
            f"Training cannot start from {start.uri} (train.warm_start), a Bundle of another architecture: "
            f"{', '.join(differences)}. Set these as they are there, or leave train.warm_start empty to start anew."
        )
    return start


def with_encoder_of(recipe: Recipe, start: Bundle | None) -> Recipe:
    """The recipe with the Bundle's own encoder, tuned or not, where training reads texts."""
    if start is None or not _reads_text(recipe):
        return recipe
    remote = not Workspace(start.uri).is_local
    folder = f"{start.uri}/encoder" if remote else str(start.artifact.path / "encoder")
    return recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"model": folder})})


def center_of(recipe: Recipe, start: Bundle | None) -> FloatArray | None:
    """The Bundle's centre of raw text vectors, [T] float32, where training reads texts; None to take a new one."""
    return None if start is None or not _reads_text(recipe) else start.trained_center


def initial_weights(
    start: Bundle, users: Vocabulary, items: Vocabulary, item_counts: IntArray
) -> dict[str, FloatArray]:
    """Weights of a `FusionRecommender` over the new vocabularies, by name.

    item_counts: [N] int64 train events of every item now. Biases of items that the Bundle never saw in train are the
    log of these, shifted as the Bundle's own biases are on average.
    """
    state = {name: tensor.numpy() for name, tensor in start.model.state_dict().items()}
    item_rows, user_rows = start.items.rows(items), start.users.rows(users)
    state[ITEM_BIASES] = _biases(start, state[ITEM_BIASES], item_rows, item_counts)
    for name, rows in ((ITEM_ROWS, item_rows), (USER_ROWS, user_rows)):
        if name in state:
            state[name] = np.where((rows >= 0)[:, None], state[name][np.maximum(rows, 0)], np.float32(0.0))
    return state


def _biases(start: Bundle, before: FloatArray, rows: IntArray, item_counts: IntArray) -> FloatArray:
    popularity = start.signals["popularity"]
    assert isinstance(popularity, Popularity)
    kept, log_counts = rows >= 0, np.log1p(item_counts)
    old_biases = before[np.maximum(rows, 0)]
    seen = kept & (popularity.log_counts[np.maximum(rows, 0)] > 0)
    both = seen & (item_counts > 0)
    shift = (old_biases - log_counts)[both].mean() if both.any() else -log_counts.mean()
    learnt = seen | (kept & (item_counts == 0))
    return np.where(learnt, old_biases, log_counts + shift).astype(np.float32)


def _reads_text(recipe: Recipe) -> bool:
    return recipe.fusion.item_vector != "id"


def _value(recipe: Recipe, field: str) -> Any:
    section, _, name = field.partition(".")
    value = getattr(getattr(recipe, section), name)
    if field == "encoder.model" and Path(value).is_dir():
        return str(Path(value).resolve())
    return value
