"""Which fusion weights a request gets, given what is known about the person who asks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.config import SignalName
from llmrec_ray.recommend.batch import RequestBatch
from llmrec_ray.signals import FusionPolicy

__all__ = ["is_cold", "request_weights"]


def is_cold(batch: RequestBatch) -> NDArray[np.bool_]:
    """[B] True where there is neither a history nor a text."""
    has_text = np.array([bool(texts) for texts in batch.texts], np.bool_)
    return np.asarray((batch.histories.lengths == 0) & ~has_text)


def request_weights(batch: RequestBatch, policy: FusionPolicy) -> list[dict[str, float]]:
    """Signal weights per request: its own, or the policy's for a history, a text, both, or neither."""
    lengths = batch.histories.lengths.tolist()
    return [
        _policy_weights(policy, has_history=length > 0, has_text=bool(texts)) if own is None else _named(own)
        for own, length, texts in zip(batch.weights, lengths, batch.texts, strict=True)
    ]


def _policy_weights(policy: FusionPolicy, *, has_history: bool, has_text: bool) -> dict[str, float]:
    if not has_text:
        return _named(policy.weights if has_history else policy.cold_weights)
    if not has_history:
        return _named(policy.query_weights)
    share = policy.query_share
    past, query = _named(policy.weights), _named(policy.query_weights)
    return {
        name: (1 - share) * past.get(name, 0.0) + share * query.get(name, 0.0) for name in {**past, **query}
    }


def _named(weights: Mapping[SignalName, float]) -> dict[str, float]:
    return {str(name): weight for name, weight in weights.items()}
