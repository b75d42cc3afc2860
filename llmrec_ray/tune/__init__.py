"""Campaigns: many trainings through Ray Tune, one winner, and whether it is luck."""

from llmrec_ray.tune.campaign import best_overrides, tune

__all__ = ["best_overrides", "tune"]
