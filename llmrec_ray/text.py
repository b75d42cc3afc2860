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


def clean_text(text: str) -> str:
    """Drop control characters and fold white space; nothing else is changed."""
    return _SPACE.sub(" ", _CONTROL.sub(" ", text)).strip()


class TextTemplate:
    """`"{title} ({year}). Genres: {genres}"`, filled from a mapping of fields.

    A missing or empty field becomes an empty string and the brackets or label left empty go with it, so an
    item with only a title reads `Toy Story` and not `Toy Story (). Genres:`.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ConfigError(f"The text template {template!r} is not valid: {error}.") from None
        self.fields = tuple(dict.fromkeys(name for _, name, _, _ in parts if name is not None))
        if not self.fields or any(not name.isidentifier() for name in self.fields):
            raise ConfigError(
                f"The text template {template!r} must name columns in braces, such as {{title}}, and nothing else "
                "inside the braces."
            )

    def fill(self, fields: Mapping[str, Any]) -> str:
        """The cleaned text; empty when every field is empty."""
        values = {name: "" if fields.get(name) is None else clean_text(str(fields[name])) for name in self.fields}
        if not any(values.values()):
            return ""
        text = self.template
        for name, value in values.items():
            if not value:
                text = re.sub(rf"\(\s*\{{{name}\}}\s*\)|(?:[^\s.{{}}]+:\s*)?\{{{name}\}}", "", text)
        text = clean_text(text.format_map(values))
        return re.sub(r"\s+([.,;])", r"\1", text).strip(" .,;") if "" in values.values() else text
