"""How the parts of a request's score are weighed, given what is known about the person who asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.config import SignalName
from llmrec_ray.recommend.batch import RequestBatch
from llmrec_ray.signals import FusionPolicy

__all__ = ["Plan", "is_cold", "make_plan", "plans"]

Weights = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Plan:
    """One way to score: `past` times the fused score of the history, plus the weighted signals of `everywhere`.

    Requests with equal plans are scored together.
    """

    past: float
    everywhere: Weights


def is_cold(batch: RequestBatch) -> NDArray[np.bool_]:
    """[B] True where there is neither a history nor a text."""
    has_text = np.array([bool(texts) for texts in batch.texts], np.bool_)
    return np.asarray((batch.histories.lengths == 0) & ~has_text)


def plans(batch: RequestBatch, policy: FusionPolicy) -> list[Plan]:
    """One per request: its own weights, or the policy's for a history, a text, both, or neither."""
    lengths = batch.histories.lengths.tolist()
    return [
        make_plan(policy, has_history=length > 0, has_text=bool(texts)) if own is None else Plan(0.0, _sorted(own))
        for own, length, texts in zip(batch.weights, lengths, batch.texts, strict=True)
    ]


def make_plan(policy: FusionPolicy, *, has_history: bool, has_text: bool) -> Plan:
    """What the policy says for a history, a text, both, or neither."""
    if not has_text:
        return Plan(1.0, ()) if has_history else Plan(0.0, _sorted(policy.unknown_weights))
    share = policy.query_share if has_history else 1.0
    return Plan(1.0 - share, _sorted(policy.query_weights, share))


def _sorted(weights: Mapping[SignalName, float], share: float = 1.0) -> Weights:
    return tuple(sorted((str(name), share * weight) for name, weight in weights.items() if weight))
