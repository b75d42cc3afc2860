"""Text templates: what every row reads like, whatever is missing from it."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.errors import ConfigError
from llmrec_ray.text import TextTemplate, clean_column, clean_text

FILM = TextTemplate("{title} ({year}). Genres: {genres}")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"title": "Toy Story", "year": 1995, "genres": "Animation Comedy"},
         "Toy Story (1995). Genres: Animation Comedy"),
        ({"title": "Toy Story"}, "Toy Story"),
        ({"title": "Toy Story", "year": "", "genres": None}, "Toy Story"),
        ({"title": "Toy Story", "year": 1995}, "Toy Story (1995)"),
        ({"title": "Toy Story", "genres": "Comedy"}, "Toy Story. Genres: Comedy"),
        ({"genres": "Comedy"}, "Genres: Comedy"),
        ({"year": 1995}, "(1995)"),
        ({"title": "Monsters, Inc."}, "Monsters, Inc."),
        ({}, ""),
        ({"title": " \n", "year": None}, ""),
        ({"title": " Toy \t\n Story\x00", "year": 1995, "genres": "a  b"}, "Toy Story (1995). Genres: a b"),
    ],
)
def test_a_missing_field_takes_its_brackets_or_label_with_it(fields, text):
    assert FILM.fill(fields) == text


def test_a_missing_middle_field_leaves_one_comma():
    profile = TextTemplate("{age} years old, {gender}, {occupation}.")
    assert profile.fill({"age": 24, "occupation": "writer"}) == "24 years old, writer."
    assert profile.fill({"age": 24}) == "24 years old."


def test_values_that_look_like_templates_are_left_alone():
    text = FILM.fill({"title": "{year} {{x}}", "year": 7, "genres": "a, , b"})
    assert text == "{year} {{x}} (7). Genres: a, , b"


def test_a_column_name_may_hold_spaces_and_dots():
    template = TextTemplate("{product title}: {spec.size}")
    assert template.fill({"product title": "Lamp", "spec.size": 3}) == "Lamp: 3"


def test_a_template_names_its_fields_once_in_order():
    assert TextTemplate("{b} {a} {b} {{c}}").fields == ("b", "a")
    assert TextTemplate("{b} {a} {b} {{c}}").fill({"a": 1, "b": 2}) == "2 1 2 {c}"


@pytest.mark.parametrize("template", ["no fields at all", "{}", "{title!r}", "{year:>8}"])
def test_a_template_without_plain_fields_is_refused(template):
    with pytest.raises(ConfigError) as refusal:
        TextTemplate(template)
    assert str(refusal.value) == (
        f"The text template {template!r} must name columns in braces, such as {{title}}, and nothing else "
        "inside the braces."
    )


def test_a_template_with_an_open_brace_is_refused():
    with pytest.raises(ConfigError, match=r"The text template '\{title' is not valid: expected '}'"):
        TextTemplate("{title")


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("Salt &amp;amp;amp; Pepper", "Salt & Pepper"),
        ("it&#39;s &quot;new&quot;&hellip;&#x21;", "it's \"new\"…!"),
        ("<p>H<sub>2</sub>O<br/>and <a href='x'>more</a></p>", "H2O and more"),
        ("&lt;b&gt;bold&lt;/b&gt; lamp", "bold lamp"),
        ("one&nbsp;two\u2003three", "one two three"),
        ("Fu\u00dfball&shy;schuhe\ufeff\u200b", "Fu\u00dfballschuhe"),
        ("Cafe\u0301 \x85 \x9f au lait", "Caf\u00e9 au lait"),
        ("AT&T, R&B &co; <3 a < b > c <bolt> {x}", "AT&T, R&B &co; <3 a < b > c <bolt> {x}"),
        ("日本語 👩\u200d🚀", "日本語 👩\u200d🚀"),
        ("<br><hr/>&nbsp;", ""),
    ],
)
def test_texts_are_what_people_read_of_them(raw, clean):
    assert clean_text(raw) == clean
    assert clean_column(pl.Series("c", [None, raw, "x"])).to_list() == [None, clean, "x"]


PARTS = ["&amp;", "&lt;", "&gt;", "b>", "<b", "<", ">", "&", "amp;", "#39;", "\u200b", "e\u0301", " ", "x", "\0"]
MARKUP = st.lists(st.sampled_from(PARTS)).map("".join)


@settings(deadline=None)
@given(st.text() | st.lists(MARKUP, max_size=3).map("".join))
def test_cleaning_folds_white_space_and_leaves_no_control_characters(text):
    clean = clean_text(text)
    assert clean == " ".join(clean.split())
    assert clean.isprintable() or not any(ord(character) < 32 for character in clean)


@settings(deadline=None)
@given(st.text())
def test_cleaning_twice_changes_nothing_more(text):
    assert clean_text(clean_text(text)) == clean_text(text)


@settings(deadline=None)
@given(st.lists(st.none() | st.text() | MARKUP))
def test_a_column_is_cleaned_as_its_texts_are(values):
    column = pl.Series("c", values, dtype=pl.String)
    assert clean_column(column).to_list() == [None if value is None else clean_text(value) for value in values]
    assert column.to_list() == values


@settings(deadline=None)
@given(st.fixed_dictionaries({name: st.text(max_size=8) for name in FILM.fields}))
def test_every_cleaned_value_stands_in_the_text(fields):
    text = FILM.fill(fields)
    assert all(clean_text(value) in text for value in fields.values())
    assert text == " ".join(text.split())


FIELDS = {
    "title": st.none() | st.text(max_size=8) | MARKUP, "year": st.none() | st.integers(-(2**63), 2**63 - 1),
    "price": st.none() | st.floats(), "new": st.none() | st.booleans(), "day": st.none() | st.dates(),
}
SCHEMA = {"title": pl.String, "year": pl.Int64, "price": pl.Float64, "new": pl.Boolean, "day": pl.Date}
TEMPLATES = [
    FILM.template, "{title}", "{title}{year} {title}", " {year} ({title}), {price}. New: {new}; {day} .",
    "{{x}} [{missing}] {title}  {new}", "{missing}",
]


@settings(deadline=None)
@given(st.sampled_from(TEMPLATES), st.lists(st.fixed_dictionaries(FIELDS), max_size=6))
def test_a_frame_is_filled_as_its_rows_are(template, rows):
    frame = pl.DataFrame(rows, schema=SCHEMA)
    filled = TextTemplate(template).fill_frame(frame)
    assert filled.dtype == pl.String
    assert filled.to_list() == [TextTemplate(template).fill(row) for row in frame.iter_rows(named=True)]
