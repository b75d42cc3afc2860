"""Attributes of items -> what a person may filter by: the values of a text column, the range of a column of numbers."""

from __future__ import annotations

from collections import Counter

import polars as pl

from llmrec_ray.recommend.messages import Facet, FacetValue

__all__ = ["facets_of"]

MAX_VALUES = 100


def facets_of(attributes: pl.DataFrame) -> list[Facet]:
    """One per column that filters can read, in order; a column without any value is left out."""
    facets = [_facet(attributes[name].drop_nulls()) for name in attributes.columns]
    return [facet for facet in facets if facet is not None]


def _facet(column: pl.Series) -> Facet | None:
    if column.dtype.is_numeric():
        finite = column.cast(pl.Float64).drop_nans()
        if not len(finite):
            return None
        least, most = float(finite.min()), float(finite.max())  # type: ignore[arg-type]
        return Facet(name=column.name, minimum=least, maximum=most)
    if column.dtype != pl.String or not len(column):
        return None
    values = [FacetValue(value=value, items=items) for value, items in _common(column.to_list())]
    return Facet(name=column.name, values=values[:MAX_VALUES], more=len(values) > MAX_VALUES)


def _common(texts: list[str]) -> list[tuple[str, int]]:
    """Whole values, or their words where these are fewer, as with genres; the most common first."""
    whole = Counter(texts)
    words = Counter(word for text in texts for word in dict.fromkeys(text.split()))
    counts = words if len(words) < len(whole) else whole
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
