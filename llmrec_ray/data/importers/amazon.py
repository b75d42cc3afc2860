"""A folder of Amazon Reviews 2023 -> the `data` section that reads reviews and item metadata of every category in it.

As amazon-reviews-2023.github.io describes them: `Books.jsonl.gz` holds reviews, `meta_Books.jsonl.gz` the items;
`Books.csv.gz` (user_id, parent_asin, rating, timestamp) is the small form of the reviews. Both refer to an item by its
parent_asin, which stands for all its colours and sizes, and times are in milliseconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llmrec_ray.data.importers.original import Found, files_below, first_lines, first_record, nothing_found, pattern_of
from llmrec_ray.errors import DataError

__all__ = ["find_amazon"]

NAME = re.compile(r"(meta_)?([A-Za-z0-9_]+)\.(?:jsonl|csv)(?:\.gz)?")
REVIEW_FIELDS = {"user_id", "parent_asin", "rating", "timestamp"}
ITEM_FIELDS = {"parent_asin", "title"}
TEXT = "{title}. Store: {store}. Categories: {categories}. Features: {features}. Description: {description}"
LOG_COLUMNS = {"user_id": "user_id", "item_id": "parent_asin", "timestamp": "timestamp", "value": "rating"}


def find_amazon(folder: Path) -> Found:
    """The categories in a folder and below it; each is a domain of its own where there are several.

    Raises MissingInputError naming what is there instead, DataError for files of another edition or two of one kind.
    """
    reviews: dict[str, Path] = {}
    items: dict[str, Path] = {}
    for path in files_below(folder):
        named = NAME.fullmatch(path.name)
        if named:
            _put(items if named[1] else reviews, named[2], path)
    if not reviews:
        raise nothing_found("Amazon Reviews 2023", "such as Books.jsonl.gz and meta_Books.jsonl.gz", folder)
    data: dict[str, Any] = {"interactions": [_reviews(path) | _domain(name, reviews) for name, path in reviews.items()]}
    tables = [_items(items[name]) | _domain(name, reviews) for name in reviews if name in items]
    name = f"amazon-{next(iter(reviews)).lower().replace('_', '-')}" if len(reviews) == 1 else "amazon-reviews"
    return Found(name, "Amazon Reviews 2023", data | ({"items": tables} if tables else {}))


def _put(files: dict[str, Path], category: str, path: Path) -> None:
    """With their texts or without, the reviews are the same, so the small form is taken where both are there."""
    other = files.get(category)
    if other and _is_small(other) == _is_small(path):
        raise DataError(f"There are two files of {category}, {other} and {path}: name the folder of one of them.")
    if not other or _is_small(path):
        files[category] = path


def _is_small(path: Path) -> bool:
    return ".csv" in path.suffixes


def _domain(category: str, categories: dict[str, Path]) -> dict[str, Any]:
    return {"domain": category[:32]} if len(categories) > 1 else {}


def _reviews(path: Path) -> dict[str, Any]:
    delimited = _is_small(path)
    fields = next(iter(first_lines(path)), "").split(",") if delimited else first_record(path)
    _check(path, set(fields), REVIEW_FIELDS)
    return {
        "paths": [pattern_of(path)], "format": "csv" if delimited else "jsonl", "columns": LOG_COLUMNS,
        "timestamp_unit": "ms",
    }


def _items(path: Path) -> dict[str, Any]:
    _check(path, set(first_record(path)), ITEM_FIELDS)
    return {
        "paths": [pattern_of(path)], "format": "jsonl", "id": "parent_asin", "title": "title", "template": TEXT,
        "attributes": ["main_category", "categories", "store"],
    }


def _check(path: Path, fields: set[str], wanted: set[str]) -> None:
    if lacking := sorted(wanted - fields):
        raise DataError(
            f"{path} has no {', '.join(lacking)}, only {', '.join(sorted(fields))}: it is none of Amazon Reviews 2023; "
            "fetch that edition, or describe these files in a recipe of your own."
        )
