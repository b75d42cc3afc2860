"""Columns of tables by the recipe's names: renamed, cut out of others, lists spelt out."""

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from llmrec_ray.config import TableColumn, TableConfig
from llmrec_ray.data.table_columns import file_columns, named_columns
from llmrec_ray.errors import ConfigError

FILMS = pl.DataFrame({
    "record": [1, 2, 3, 4],
    "movieId": [1, 2, 3, 4],
    "title": ["Toy Story (1995) ", "Dekalog (1989)  ", "Untitled", None],
    "genres": ["Animation|Children's", "(no genres listed)", "|Drama| ", "|"],
})


def films(**columns: object) -> TableConfig:
    return TableConfig(
        paths=["movies.csv"], id="movieId", title="title", template="{title} ({year}). {genres}", attributes=["year"],
        columns=columns,
    )


def test_without_columns_the_file_is_taken_as_it_is():
    table = TableConfig(paths=["movies.csv"], id="movieId", title="title", template="{genres}", attributes=["title"])
    assert file_columns(table) == ["movieId", "title", "genres"]
    assert_frame_equal(named_columns(FILMS, table), FILMS)


def test_a_year_is_cut_out_of_a_title_and_genres_are_spelt_out():
    table = films(
        title={"column": "title", "pattern": r"^(.*?)\s*(?:\(\d{4}\))?$"},
        year={"column": "title", "pattern": r"\((\d{4})\)$"},
        genres={"column": "genres", "separator": "|", "values": {"(no genres listed)": ""}},
    )
    assert file_columns(table) == ["movieId", "title", "genres"]
    assert_frame_equal(named_columns(FILMS, table), pl.DataFrame({
        "record": [1, 2, 3, 4],
        "movieId": [1, 2, 3, 4],
        "title": ["Toy Story", "Dekalog", "Untitled", None],
        "year": ["1995", "1989", None, None],
        "genres": ["Animation, Children's", None, "Drama", None],
    }))


def test_a_renamed_column_keeps_its_type_and_leaves_its_old_name():
    table = TableConfig(
        paths=["ml.item"], id="id", template="{name}", attributes=["price"],
        columns={"id": "item_id:token", "name": "title:token_seq", "price": "price:float"},
    )
    assert table.columns["id"] == TableColumn(column="item_id:token")
    frame = pl.DataFrame({"price:float": [1.5], "title:token_seq": ["Emma"], "item_id:token": ["i1"]})
    assert_frame_equal(
        named_columns(frame, table), pl.DataFrame({"id": ["i1"], "name": ["Emma"], "price": [1.5]})
    )


def test_codes_become_words_one_by_one_in_a_list():
    table = TableConfig(
        paths=["users.dat"], id="id", template="{job}, {likes}",
        columns={"job": {"column": "code", "values": {"0": "", "4": "student"}},
                 "likes": {"column": "letters", "separator": " ", "values": {"a": "art", "x": ""}}},
    )
    frame = pl.DataFrame({"id": [1, 2, 3, 4], "code": [0, 4, 7, None], "letters": ["a b", "x", None, "x a a"]})
    assert_frame_equal(named_columns(frame, table), pl.DataFrame({
        "id": [1, 2, 3, 4], "job": [None, "student", "7", None], "likes": ["art, b", None, None, "art, art"],
    }))


def test_columns_that_say_yes_or_no_become_the_names_that_apply():
    table = TableConfig(
        paths=["u.item"], id="id", template="{genres}",
        columns={"genres": {"flags": ["unknown", "Action", "Drama"], "values": {"unknown": "", "Drama": "drama"}}},
    )
    assert file_columns(table) == ["id", "unknown", "Action", "Drama"]
    frame = pl.DataFrame({
        "id": [1, 2, 3], "unknown": ["0", "1", "0"], "Action": [1, 0, 0], "Drama": [True, False, None],
    })
    assert_frame_equal(
        named_columns(frame, table), pl.DataFrame({"id": [1, 2, 3], "genres": ["Action, drama", None, None]})
    )


@pytest.mark.parametrize(("column", "said"), [
    ({}, "give column or flags, not both"),
    ({"column": "genres", "flags": ["Action"]}, "give column or flags, not both"),
    ({"flags": ["Action"], "separator": "|"}, "flags hold no text: leave pattern and separator out"),
])
def test_a_column_has_one_source(column, said):
    with pytest.raises(ValueError, match=said):
        TableColumn(**column)


@pytest.mark.parametrize(("pattern", "said"), [
    ("(", "the pattern '(' is no regular expression (missing ), unterminated subpattern at position 0): correct it"),
    (r"\d{4}", "the pattern '\\\\d{4}' has 0 groups: put round brackets around the one part that counts, and write "
               "(?:...) for others"),
])
def test_a_pattern_needs_one_group(pattern, said):
    with pytest.raises(ValueError, match="validation error") as refusal:
        TableColumn(column="title", pattern=pattern)
    assert said in str(refusal.value)


def test_a_pattern_that_only_python_knows_is_refused_when_it_is_used():
    table = films(year={"column": "title", "pattern": r"(?<=\()(\d{4})"})
    with pytest.raises(ConfigError) as refusal:
        named_columns(FILMS, table)
    assert str(refusal.value).startswith("A pattern of columns ('(?<=\\\\()(\\\\d{4})') cannot be used (")
    assert str(refusal.value).endswith("): write it without look-around and without references back.")
