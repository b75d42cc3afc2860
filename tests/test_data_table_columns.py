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
        genres={"column": "genres", "separator": "|", "missing": ["(no genres listed)"]},
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
