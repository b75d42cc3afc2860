"""What all trials of a campaign read: histories, text vectors, tokens, the other signals' scores; made once.

A Ray actor, `campaign` makes it, keeps them in the object store, from which each node takes one copy that its trials
share. Recipes that differ in what they read, such as another encoder, get their own, when first asked for; the last few
are kept, since scores of all validation users are large.
Shapes: B users, N items.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.embed import embed
from llmrec_ray.policy import search_weights, validation_users
from llmrec_ray.signals import Calibration, Ease, Popularity, Signal, TextCosine, fuse
from llmrec_ray.train import LateFusion, TextSpace, TrainingInputs, center_of, open_start, with_encoder_of
from llmrec_ray.types import FloatArray

__all__ = ["SharedInputs", "fuses", "text_of"]

READ_BY_NONE = {"name", "seed", "num_cpus", "retrieval", "index", "evaluate", "tune", "serve"}
"""Sections that decide nothing of what a trial reads."""
READ = {
    "train": {"positive_value", "warm_start"}, "model": {"context"}, "fusion": {"item_vector", "signals"},
    "encoder": {
        "model", "pooling", "item_prompt", "bidirectional", "max_tokens", "runtime", "precision", "tuning",
        "top_layers", "cached_states_gb",
    },
}
"""Of these sections only these keys do."""
MODE = "fusion.mode"
KEPT = 4


class SharedInputs:
    """Inputs by what they follow from. metrics, selection: as `TrainingInputs` has them."""

    def __init__(self, dataset_uri: str, workspace: str, metrics: tuple[str, ...], selection: str) -> None:
        self._dataset, self._workspace = Dataset.open(dataset_uri), Workspace(workspace)
        self._metrics, self._selection = metrics, selection
        self._made: dict[str, ray.ObjectRef] = {}

    def get(self, recipe_json: str) -> list[ray.ObjectRef]:
        """[a reference to the TrainingInputs of this recipe]; in a list, so that Ray does not fetch them."""
        recipe = Recipe.model_validate_json(recipe_json)
        key = _key(recipe)
        made = self._made.pop(key, None) or ray.put(self._make(recipe))
        self._made[key] = made
        if len(self._made) > KEPT:
            del self._made[next(iter(self._made))]  # trials that still read it hold it
        return [made]

    def _make(self, recipe: Recipe) -> TrainingInputs:
        start = open_start(recipe)
        raw = text_of(recipe, self._dataset, self._workspace, start)
        text = None if raw is None else TextSpace.of(raw, center_of(recipe, start))
        vectors, center = (None, None) if text is None else (text.vectors, text.center)
        late = _partners(recipe, self._dataset, vectors) if fuses(recipe) else None
        inputs = TrainingInputs.of(
            with_encoder_of(recipe, start), self._dataset, vectors, center, late=late, start=start
        )
        return replace(inputs, metrics=self._metrics, selection=self._selection)


def text_of(recipe: Recipe, dataset: Dataset, workspace: Workspace, start: Bundle | None) -> FloatArray | None:
    """[N, T] raw vectors of the items' texts by the encoder that training starts with, cached; None without texts."""
    if not recipe.data.items:
        return None
    encoder = with_encoder_of(recipe, start).encoder
    if encoder.precision == "int8":
        encoder = encoder.model_copy(update={"precision": "fp32"})
    return embed(dataset.item_texts, encoder, workspace, ids=[*dataset.items])


def fuses(recipe: Recipe) -> bool:
    """Whether a trial is judged with partners of the neural signal; not where this alone will rank."""
    if recipe.tune.objective == "neural" or (recipe.fusion.mode == "feature" and MODE not in recipe.tune.search):
        return False
    named = {*recipe.fusion.signals} - ({"text"} if not recipe.data.items else set())
    return "neural" in named and bool(named & {"item_item", "text", "popularity"})


def _key(recipe: Recipe) -> str:
    tree: dict[str, Any] = recipe.model_dump(mode="json", exclude=READ_BY_NONE)
    for section, kept in READ.items():
        tree[section] = {name: value for name, value in tree[section].items() if name in kept}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _partners(recipe: Recipe, dataset: Dataset, text_vectors: FloatArray | None) -> LateFusion:
    """The other signals as one, by the weights that suit them best among themselves."""
    users = validation_users(recipe, dataset)
    seen, targets = dataset.histories("train").select(users), dataset.targets("validation")[users]
    scores = {name: signal.score(seen) for name, signal in _signals(recipe, dataset, text_vectors).items()}
    if len(scores) == 1:
        return LateFusion(users, np.nan_to_num(next(iter(scores.values()))))
    calibration = Calibration.fit(scores, seen)
    fused, _ = fuse(scores, calibration, search_weights(scores, targets, seen, calibration).weights)
    return LateFusion(users, fused)


def _signals(recipe: Recipe, dataset: Dataset, text_vectors: FloatArray | None) -> dict[str, Signal]:
    train, named = dataset.histories("train"), {*recipe.fusion.signals}
    signals: dict[str, Signal] = {}
    if "item_item" in named:
        signals["item_item"] = Ease(recipe.item_item.l2, recipe.item_item.recency).fit(train, len(dataset.items))
    if "popularity" in named:
        signals["popularity"] = Popularity().fit(train, len(dataset.items))
    if "text" in named and text_vectors is not None:
        signals["text"] = TextCosine(text_vectors)
    return signals

