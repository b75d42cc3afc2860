"""Catalogue texts -> vectors, by Ray Data actors, cached by content."""

from llmrec_ray.embed.vectors import embed

__all__ = ["embed"]
