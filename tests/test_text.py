"""Text templates: what every row reads like, whatever is missing from it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.errors import ConfigError
from llmrec_ray.text import TextTemplate, clean_text

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


@settings(deadline=None)
@given(st.text())
def test_cleaning_twice_changes_nothing_more(text):
    assert clean_text(clean_text(text)) == clean_text(text)


@settings(deadline=None)
@given(st.fixed_dictionaries({name: st.text(max_size=8) for name in FILM.fields}))
def test_every_cleaned_value_stands_in_the_text(fields):
    text = FILM.fill(fields)
    assert all(clean_text(value) in text for value in fields.values())
    assert text == clean_text(text)
