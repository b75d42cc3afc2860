"""How the parts of a request's score are weighed, given what is known about the person who asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.config import SignalName
from llmrec_ray.recommend.batch import RequestBatch
from llmrec_ray.signals import FusionPolicy

__all__ = ["Plan", "is_cold", "plans"]

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """One way to score: `past` times the fused score of the history, plus the weighted signals of `everywhere`.

    newcomer: the history is short, and read with weights of its own. Requests with equal plans are scored together.
    """

    past: float
    newcomer: bool
    everywhere: tuple[tuple[str, float], ...]


def is_cold(batch: RequestBatch) -> Mask:
    """[B] True where there is neither a history nor a text."""
    texts = zip(batch.queries, batch.profiles, strict=True)
    has_text = np.array([bool(query or profile) for query, profile in texts], np.bool_)
    return np.asarray((batch.histories.lengths == 0) & ~has_text)


def plans(batch: RequestBatch, policy: FusionPolicy, wanted: Mask, by_profile: Mask) -> list[Plan]:
    """One per request: its own weights, or the policy's for what is known.

    wanted: [B] where a text says what is wanted. by_profile: [B] where the user vector comes from a profile.
    """
    known = zip(batch.weights, batch.histories.lengths.tolist(), wanted.tolist(), by_profile.tolist(), strict=True)
    return [
        Plan(0.0, False, _sum((own, 1.0))) if own is not None
        else _policy_plan(policy, events, query=query, profile=profile)
        for own, events, query, profile in known
    ]


def _policy_plan(policy: FusionPolicy, n_events: int, *, query: bool, profile: bool) -> Plan:
    if not (n_events or query or profile):
        return Plan(0.0, False, _sum((policy.unknown_weights, 1.0)))
    asked = 0.0 if not query else policy.query_share if n_events or profile else 1.0
    described = 1.0 - asked if profile else 0.0
    newcomer = 0 < n_events < policy.newcomer_events
    parts = _sum((policy.query_weights, asked), (policy.profile_weights, described))
    return Plan(1.0 - asked - described if n_events else 0.0, newcomer, parts)


def _sum(*parts: tuple[Mapping[SignalName, float], float]) -> tuple[tuple[str, float], ...]:
    total: dict[str, float] = {}
    for weights, share in parts:
        for name, weight in weights.items():
            total[name] = total.get(name, 0.0) + share * weight
    return tuple(sorted((name, weight) for name, weight in total.items() if weight))
