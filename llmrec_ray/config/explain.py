"""What pydantic found wrong with a recipe -> lines for a person, with keys as the person wrote them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from llmrec_ray.config.recipe import Recipe

__all__ = ["explain", "near_keys"]

OF_KEY = "[key]"
"""Where pydantic finds a mapping's key wrong, not its value."""


def explain(error: ValidationError, tree: dict[str, Any]) -> list[str]:
    """One line for each problem: key, what is wrong, the value or the remedy. tree: what was validated."""
    lines = []
    for problem in error.errors():
        is_key = problem["type"] == "literal_error" and problem["loc"][-1] == OF_KEY
        path = _as_written(problem["loc"][:-1] if is_key else problem["loc"], tree)
        key = ".".join(path) or "recipe"
        if is_key or problem["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key{near_keys(path)}")
        elif problem["type"] == "value_error":
            lines.append(f"{key}: {problem['ctx']['error']}")
        elif isinstance(problem["input"], (list, dict)):
            lines.append(f"{key}: {problem['msg']}")
        else:
            lines.append(f"{key}: {problem['msg']} (got {problem['input']!r})")
    return lines


def near_keys(path: Sequence[str]) -> str:
    """What an unknown key may have been meant to be, as the end of a sentence."""
    known = _keys_at(path[:-1])
    if close := difflib.get_close_matches(path[-1], known, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; known keys: {', '.join(known)}" if known else ""


def _as_written(location: Sequence[str | int], tree: Any) -> list[str]:
    """Without the place in a list where one section was written instead of the list."""
    path, node = [], tree
    for part in location:
        if isinstance(part, int) and isinstance(node, dict):
            continue
        path.append(str(part))
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            node = None
    return path


def _keys_at(parents: Iterable[str]) -> list[str]:
    """Fields of the section there, or the names that a mapping takes; none where any would do."""
    kind: Any = Recipe
    for part in parents:
        if part.isdigit():
            continue
        field = kind.model_fields.get(part) if _is_model(kind) else None
        candidates = [] if field is None else [field.annotation, *get_args(field.annotation)]
        kind = next((one for one in candidates if _is_model(one) or get_origin(one) is dict), None)
    if _is_model(kind):
        return sorted(kind.model_fields)
    names = get_args(get_args(kind)[0]) if get_origin(kind) is dict else ()
    return sorted(str(name) for name in names)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
