"""From what pydantic found wrong with a request to one sentence that names the field, what came, and the remedy.

Knows neither HTTP nor the models; a kind of error that has no sentence here keeps pydantic's own words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["explain"]

Error = Mapping[str, Any]
MAX_SHOWN_CHARS = 40
KINDS = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of at most 4300 digits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list in [ ]",
    "tuple_type": "a list in [ ]",
    "dict_type": "an object in { }",
    "model_type": "an object in { }",
    "model_attributes_type": "an object in { }",
    "literal_error": "one of {expected}",
    "string_unicode": "text that can be written as UTF-8",
}
SENTENCES = {
    "missing": "{field} is missing: send it.",
    "extra_forbidden": "{field} is not known here: leave it out, or see /docs for the names that are.",
    "greater_than": "{field} is {value}; it must be above {gt}.",
    "greater_than_equal": "{field} is {value}; it must be at least {ge}.",
    "less_than": "{field} is {value}; it must be below {lt}.",
    "less_than_equal": "{field} is {value}; it must be at most {le}.",
    "string_too_short": "{field} has {length} characters; at least {min_length} must be sent.",
    "string_too_long": "{field} has {length} characters; at most {max_length} are taken: shorten it.",
    "too_short": "{field} has {length} entries; at least {min_length} must be sent.",
    "too_long": "{field} has {length} entries; at most {max_length} are taken: send fewer.",
    "string_pattern_mismatch": "{field} is {value}; it must match {pattern}.",
    "value_error": "{field}: {error}.",
}


def explain(errors: Sequence[Error], sent: object) -> tuple[str, str]:
    """The first field that is wrong, dotted, and what to do about it.

    sent: what the errors are about: a body as it was parsed, or the parameters of a path or a query.
    """
    fields = [_field(error, sent) for error in errors]
    field = fields[0]
    about_it = [error for error, name in zip(errors, fields, strict=True) if name == field]
    kinds = list(dict.fromkeys(_kind(error) for error in about_it if error["type"] in KINDS))
    if kinds and about_it[0]["type"] in KINDS:
        return field, f"{field} is {_shown(about_it[0]['input'])}; it must be {' or '.join(kinds)}."
    return field, _sentence(field, about_it[0])


def _field(error: Error, sent: object) -> str:
    """The place of an error without the parts that name branches of a union, as these were not sent."""
    where, *parts = error["loc"]
    path = []
    for part in parts:
        if _holds(sent, part):
            sent = sent[part]  # type: ignore[index]
            path.append(str(part))
    if error["type"] == "missing" and parts:
        path.append(str(parts[-1]))
    return ".".join(path) or str(where)


def _holds(sent: object, part: object) -> bool:
    if isinstance(sent, Mapping):
        return part in sent
    return isinstance(sent, list) and isinstance(part, int) and part < len(sent)


def _kind(error: Error) -> str:
    return KINDS[error["type"]].replace("{expected}", str(error.get("ctx", {}).get("expected", "")))


def _sentence(field: str, error: Error) -> str:
    template = SENTENCES.get(error["type"], "{field}: {message}.")
    value = error.get("input")
    known = {"length": len(value) if isinstance(value, (str, list, dict)) else 0, **error.get("ctx", {})}
    return template.format(**{**known, "field": field, "value": _shown(value), "message": error["msg"]})


def _shown(value: object) -> str:
    """A value as JSON writes it, short enough for a sentence."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, default=str, ensure_ascii=True)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"
