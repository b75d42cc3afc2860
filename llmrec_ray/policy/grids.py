"""A domain of the recipe -> the few values of it that a search without training tries."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmrec_ray.config import Choice, Domain, IntRange, LogUniform, Uniform

__all__ = ["grid"]

STEPS = 9


def grid(domain: Domain) -> list[Any]:
    """Every choice; of a range some values with both bounds, of whole and log-uniform numbers as many times apart."""
    if isinstance(domain, Choice):
        return list(domain.choice)
    if isinstance(domain, IntRange):
        low, high = domain.int
        spaced = np.geomspace(low, high, STEPS) if low > 0 else np.linspace(low, high, STEPS)
        return [int(value) for value in np.unique(np.rint(spaced))]
    if isinstance(domain, LogUniform):
        return [float(f"{value:.4g}") for value in np.geomspace(*domain.loguniform, STEPS)]
    assert isinstance(domain, Uniform), f"a domain of another kind: {domain!r}. This is a bug."
    return [float(f"{value:.4g}") for value in np.linspace(*domain.uniform, STEPS)]
