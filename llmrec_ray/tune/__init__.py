"""Campaigns: many short trainings through Ray Tune, one winner."""

from llmrec_ray.tune.campaign import best_overrides, tune

__all__ = ["best_overrides", "tune"]
