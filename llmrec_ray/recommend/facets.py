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
    counts = _counts(column)
    common = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    values = [FacetValue(value=value, items=items) for value, items in common[:MAX_VALUES]]
    return Facet(name=column.name, values=values, more=len(common) > MAX_VALUES) if common else None


def _counts(column: pl.Series) -> Counter[str]:
    """Items per whole value, per part between commas or per word, whichever are fewest, as with genres, or per element
    of a list."""
    if column.dtype == pl.String:
        whole = Counter(column.to_list())
        parts = Counter(part for text in column for part in dict.fromkeys(text.split(", ")))
        words = Counter(word.strip(",") for text in column for word in dict.fromkeys(text.split()))
        return min(whole, parts, words, key=len)
    if isinstance(column.dtype, pl.List):
        return Counter(str(element) for elements in column for element in elements.unique().drop_nulls())
    return Counter(str(value).lower() for value in column) if column.dtype == pl.Boolean else Counter()
