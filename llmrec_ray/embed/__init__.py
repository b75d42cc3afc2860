"""Catalogue texts -> vectors, by Ray Data actors, cached by content."""

from llmrec_ray.embed.states import lower_states
from llmrec_ray.embed.vectors import embed

__all__ = ["embed", "lower_states"]
