"""Campaigns: many trainings through Ray Tune, one winner, and whether it is luck."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmrec_ray.tune.begun import begun_campaign
    from llmrec_ray.tune.campaign import best_overrides, tune

__all__ = ["begun_campaign", "best_overrides", "tune"]


def __getattr__(name: str) -> Any:
    """The public names when they are asked for: every process of a trial imports this package, and few need them."""
    if name not in __all__:
        raise AttributeError(name)
    module = "begun" if name == "begun_campaign" else "campaign"
    return getattr(importlib.import_module(f"llmrec_ray.tune.{module}"), name)
