"""Templates and cleaning: from a row's fields to the one text that training and serving both encode."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from llmrec_ray.errors import ConfigError

__all__ = ["TextTemplate", "clean_text"]

_SPACE = re.compile(r"\s+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_PLACE = re.compile("\0([^\0]+)\0")


def clean_text(text: str) -> str:
    """Drop control characters and fold white space; nothing else is changed."""
    return _SPACE.sub(" ", _CONTROL.sub(" ", text)).strip()


class TextTemplate:
    """`"{title} ({year}). Genres: {genres}"`, filled from a mapping of fields.

    With a missing or empty field go the brackets or the label that would be left empty, so an item with only
    a title reads `Toy Story` and not `Toy Story (). Genres:`. Values are never changed but for `clean_text`.
    Raises ConfigError for a template that is not valid or names no field.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ConfigError(f"The text template {template!r} is not valid: {error}.") from None
        self.fields = tuple(dict.fromkeys(name for _, name, _, _ in parts if name is not None))
        decorated = any(form or conversion for _, _, form, conversion in parts)
        if decorated or not self.fields or not all(self.fields):
            raise ConfigError(
                f"The text template {template!r} must name columns in braces, such as {{title}}, and nothing "
                "else inside the braces."
            )
        self._skeleton = "".join(text + ("" if name is None else _place(name)) for text, name, _, _ in parts)

    def fill(self, fields: Mapping[str, Any]) -> str:
        """The cleaned text; empty when every field is empty."""
        values = {
            name: "" if fields.get(name) is None else clean_text(str(fields[name])) for name in self.fields
        }
        if not any(values.values()):
            return ""
        skeleton = self._skeleton
        for name, value in values.items():
            if not value:
                skeleton = _without(skeleton, name)
        if not all(values.values()):
            skeleton = _tidy(skeleton)
        return clean_text(_PLACE.sub(lambda place: values[place[1]], skeleton))


def _place(name: str) -> str:
    return f"\0{name}\0"


def _without(skeleton: str, name: str) -> str:
    place = re.escape(_place(name))
    return re.sub(rf"\(\s*{place}\s*\)|(?:[^\s.\0]+:\s*)?{place}", "", skeleton)


def _tidy(skeleton: str) -> str:
    """Close the gaps that left-out fields leave between punctuation marks."""
    full_stop = skeleton.endswith(".")
    skeleton = re.sub(r"\s+([.,;])", r"\1", skeleton)
    skeleton = re.sub(r"([.,;])(?:\s*[.,;])+", r"\1", skeleton)
    return skeleton.lstrip(" .,;").rstrip(" .,;") + ("." if full_stop else "")
