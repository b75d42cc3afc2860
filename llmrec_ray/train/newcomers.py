"""People whom training did not see: a map from their profiles to user vectors, learnt on the train split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrec_ray.bundle import Scorer
from llmrec_ray.data import Dataset
from llmrec_ray.model.encoder import TextEncoder
from llmrec_ray.signals import MIN_PROFILES, ProfileMap
from llmrec_ray.types import Histories, IntArray

__all__ = ["profile_map"]

MAX_PROFILES = 20_000


def profile_map(dataset: Dataset, scorer: Scorer, encoder: TextEncoder) -> ProfileMap | None:
    """From the texts of people of the train split; None when there are hardly any.

    With `data.behaviour` also from what they did there, told of their newest 1, 2, 3, … items in turn, since somebody
    who describes themselves names few. Of either kind at most MAX_PROFILES texts are read.
    """
    train, kinds = dataset.histories("train"), [dataset.user_texts]
    if dataset.behaviour is not None:
        kinds.append(dataset.behaviour_texts("train", 1 + np.arange(len(train)) % dataset.behaviour.items))
    chosen = [_described(texts, train) for texts in kinds]
    people = np.concatenate(chosen)
    said = [texts[row] for texts, rows in zip(kinds, chosen, strict=True) for row in rows]
    if len(people) < MIN_PROFILES:
        return None
    distinct = {text: place for place, text in enumerate(dict.fromkeys(said))}
    raw = encoder.encode(list(distinct), as_query=True)[[distinct[text] for text in said]]
    users = scorer.user_vectors(train.select(people))
    return ProfileMap.fit(raw, users[:, :-1])


def _described(texts: Sequence[str], train: Histories) -> IntArray:
    """Rows of some of the people who have a text and did something, sorted."""
    described = np.array([row for row, text in enumerate(texts) if text and len(train[row])], np.int64)
    return np.sort(np.random.default_rng(0).permutation(described)[:MAX_PROFILES])
