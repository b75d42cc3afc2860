"""Templates and cleaning: from a row's fields to the one text that training and serving both encode.

Whole columns are cleaned and filled by the same rules as single texts, only faster. This module knows no tables, files
or encoders.
"""

from __future__ import annotations

import html
import re
import string
import unicodedata
from collections.abc import Mapping
from typing import Any, TypeAlias

import polars as pl

from llmrec_ray.errors import ConfigError

__all__ = ["TextTemplate", "clean_column", "clean_text"]

Piece: TypeAlias = tuple[str, str | None]
"""Literal text, and the field that follows it; None at the end."""

MOST_ESCAPES = 4
LONGEST_TAG = 500

_SPACE = re.compile(r"\s+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_INLINE = re.compile(
    rf"</?(?:a|b|big|em|font|i|s|small|span|strong|sub|sup|u)(?:[\s/][^<>]{{0,{LONGEST_TAG}}})?>", re.IGNORECASE
)
_BLOCK = re.compile(
    r"</?(?:blockquote|body|br|center|dd|div|dl|dt|h[1-6]|hr|html|iframe|img|li|ol|p|pre|script|style|table|tbody|td|tfoot"
    rf"|th|thead|tr|ul|wbr)(?:[\s/][^<>]{{0,{LONGEST_TAG}}})?>", re.IGNORECASE,
)
_PLAIN = r"\A[!-%'-;=?-~]+(?: [!-%'-;=?-~]+)*\z"
"""Printable ASCII without &, < and >, words parted by single spaces: what cleaning leaves as it is."""
_PLACE = re.compile("\0([^\0]+)\0")


def clean_text(text: str) -> str:
    """Text as people read it: no HTML tags and entities, control or invisible characters; white space folded; NFC.

    Only entities that end in a semicolon count, and only tags that HTML knows, so that `AT&T`, `<3` and `a < b` stay;
    text that was escaped several times, as in `&amp;quot;`, is read too. No case, accent or punctuation is lost.
    """
    for _ in range(MOST_ESCAPES):
        before, text = text, _clean_once(text)
        if text == before or not ("&" in text or "<" in text):
            break
    return text


def clean_column(column: pl.Series) -> pl.Series:
    """`clean_text` of every value, String; null stays null. A million values take a second, plain ones far less."""
    is_plain = column.str.contains(_PLAIN).fill_null(True)
    if is_plain.all():
        return column
    values = [clean_text(value) for value in column.filter(~is_plain)]
    return column.clone().scatter((~is_plain).arg_true(), pl.Series(values, dtype=pl.String))


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
        pieces = self._pieces(frozenset(name for name, value in values.items() if value))
        return "".join(literal + ("" if name is None else values[name]) for literal, name in pieces)

    def fill_frame(self, frame: pl.DataFrame) -> pl.Series:
        """`fill` of every row, String; a column that is not there is empty."""
        values = pl.DataFrame([
            clean_column(_spelt(frame[name])).fill_null("").alias(f"{place}")
            for place, name in enumerate(self.fields) if name in frame.columns
        ])
        present = values.select(pl.all() != "").rename(lambda name: f"has {name}")
        rows = pl.DataFrame([*values, *present, pl.Series("row", range(len(frame)), dtype=pl.Int64)])
        alike = rows.partition_by(present.columns, as_dict=True, include_key=False) if present.width else {}
        texts = [group.select("row", text=self._joined(values.columns, has)) for has, group in alike.items()]
        return pl.concat(texts).sort("row")["text"] if texts else pl.Series([""] * len(frame), dtype=pl.String)

    def _joined(self, columns: list[str], present: tuple[Any, ...]) -> pl.Expr:
        """The texts of rows in which the same fields are empty."""
        has = [column for column, is_present in zip(columns, present, strict=True) if is_present]
        pieces = self._pieces(frozenset(self.fields[int(column)] for column in has))
        parts = [
            part for literal, name in pieces
            for part in (pl.lit(literal), *([] if name is None else [pl.col(f"{self.fields.index(name)}")]))
        ]
        return pl.concat_str(parts) if parts else pl.lit("")

    def _pieces(self, present: frozenset[str]) -> tuple[Piece, ...]:
        """The template without the fields that are not present, its white space folded."""
        if not present:
            return ()
        skeleton = self._skeleton
        for name in self.fields:
            if name not in present:
                skeleton = _without(skeleton, name)
        if len(present) < len(self.fields):
            skeleton = _tidy(skeleton)
        parts = _PLACE.split(_SPACE.sub(" ", skeleton).strip())
        return tuple(zip(parts[::2], [*parts[1::2], None], strict=True))


def _clean_once(text: str) -> str:
    text = _INVISIBLE.sub("", text)
    if "&" in text:
        text = _INVISIBLE.sub("", _ENTITY.sub(lambda entity: html.unescape(entity[0]), text))
    if "<" in text:
        text = _BLOCK.sub(" ", _INLINE.sub("", text))
    return unicodedata.normalize("NFC", " ".join(_CONTROL.sub(" ", text).split()))


def _spelt(column: pl.Series) -> pl.Series:
    """Values as `str` spells them."""
    if column.dtype == pl.String:
        return column
    if column.dtype.is_integer():
        return column.cast(pl.String)
    return pl.Series([None if value is None else str(value) for value in column.to_list()], dtype=pl.String)


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
    return skeleton.strip(" .,;:") + ("." if full_stop else "")
