"""Tables of items: one title, text and set of attributes per row, whatever tables and domains they come from."""

from __future__ import annotations

from time import perf_counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.config import TableConfig
from llmrec_ray.data.tables import Descriptions, describe
from llmrec_ray.errors import DataError
from llmrec_ray.text import TextTemplate, clean_text
from llmrec_ray.types import Columns


def table(**settings_: object) -> TableConfig:
    return TableConfig.model_validate({"paths": ["t.csv"], "id": "sku", "template": "{name} ({year})", **settings_})


FILMS = table(title="name", attributes=["year", "genre"])


def described(ids: list[str], *tables: tuple[TableConfig, dict[str, list[object]]], **options: object) -> Descriptions:
    frames = [(config, pl.DataFrame(columns)) for config, columns in tables]
    return describe(pl.Series(ids, dtype=pl.String), Columns.ITEM_ROW, frames, **options)


def test_without_tables_a_title_is_the_id_and_nothing_else_is_known():
    nothing = described(["a", "b"])
    assert nothing.texts.to_dict(as_series=False) == {"item_row": [0, 1], "title": ["a", "b"], "text": ["", ""]}
    assert nothing.attributes.to_dict(as_series=False) == {"item_row": [0, 1]}
    assert (nothing.unused, nothing.without_text) == (0, 2)
    assert len(described([]).texts) == 0


def test_titles_texts_and_attributes_are_cleaned_and_empty_ones_are_unknown():
    made = described(["a", "b", "c"], (FILMS, {
        "sku": ["b", "x", "a"], "name": ["<b>Salt &amp; Pepper</b>", "X", "&nbsp;"], "year": ["1995", "", None],
        "genre": ["Action &amp; Adventure", "", "  "],
    }))
    assert made.texts[Columns.TITLE].to_list() == ["a", "Salt & Pepper", "c"]
    assert made.texts[Columns.TEXT].to_list() == ["", "Salt & Pepper (1995)", ""]
    assert made.attributes.to_dict(as_series=False) == {
        "item_row": [0, 1, 2], "year": [None, 1995, None], "genre": [None, "Action & Adventure", None],
    }
    assert (made.unused, made.without_text) == (1, 2)


def test_columns_that_are_called_as_ours_are_do_not_meet_them():
    config = table(template="{text}", title="title", attributes=["title", "text", "sku"])
    made = described(["a"], (config, {"sku": ["a"], "title": ["T"], "text": ["words"]}))
    assert made.texts.row(0) == (0, "T", "words")
    assert made.attributes.row(0, named=True) == {"item_row": 0, "title": "T", "text": "words", "sku": "a"}


def test_domains_have_attributes_of_their_own_and_one_that_names_them():
    books = table(domain="books", template="{name} by {author}", title="name", attributes=["author", "year"])
    films = table(domain="films", title="name", attributes=["year"])
    made = described(
        ["films:1", "books:1", "games:1", "odd:1", "plain"],
        (books, {"sku": ["books:1"], "name": ["Dune"], "author": ["Herbert"], "year": ["about 1965"]}),
        (films, {"sku": ["films:1", "films:2"], "name": ["Dune", "Alien"], "year": [1984, 1979]}),
        domains=["games", "books"],
    )
    assert made.texts[Columns.TEXT].to_list() == ["Dune (1984)", "Dune by Herbert", "", "", ""]
    assert made.attributes.to_dict(as_series=False) == {
        "item_row": [0, 1, 2, 3, 4], "author": [None, "Herbert", None, None, None],
        "year": ["1984", "about 1965", None, None, None], "domain": ["films", "books", "games", None, None],
    }
    assert made.unused == 1


def test_of_two_tables_about_one_item_each_value_comes_from_the_last_that_gives_it():
    more = table(template="{name}: {tags}", title="name", attributes=["tags", "year"])
    made = described(
        ["a", "b"],
        (FILMS, {"sku": ["a", "b"], "name": ["Old A", "B"], "year": [1, 2], "genre": ["G", None]}),
        (more, {"sku": ["a", "a", "c"], "name": ["A", None, "C"], "tags": ["x", "y", "z"], "year": [None, None, 9]}),
    )
    assert made.texts[Columns.TITLE].to_list() == ["Old A", "B"]
    assert made.texts[Columns.TEXT].to_list() == ["y", "B (2)"]
    assert made.attributes.drop("item_row").to_dict(as_series=False) == {
        "year": [1, 2], "genre": ["G", None], "tags": ["y", None],
    }
    assert made.unused == 1


def test_a_table_about_other_things_is_named_by_its_place():
    columns = {"sku": ["a"], "name": ["A"], "year": [1], "genre": ["G"]}
    with pytest.raises(DataError) as refusal:
        described(["a"], (FILMS, columns), (FILMS, columns | {"sku": ["z"]}))
    assert str(refusal.value) == (
        "None of the 1 ids in data.items[1] occurs in the log: the table has ids such as 'z', the log such as 'a'. "
        "Correct data.items[1].id, or the log's column names."
    )


def test_a_table_whose_rows_are_all_quarantined_describes_nothing():
    empty = pl.DataFrame(schema={"sku": pl.String, "name": pl.String, "year": pl.String, "genre": pl.String})
    made = describe(pl.Series(["a"]), Columns.USER_ROW, [(FILMS, empty)])
    assert made.texts.row(0) == (0, "a", "")
    assert made.attributes.columns == ["user_row", "year", "genre"]


WORDS = st.none() | st.text(alphabet="a &;<>b\u00e9\n", max_size=6)
ROWS = st.lists(st.fixed_dictionaries({
    "sku": st.sampled_from("abcdef"), "name": WORDS, "year": st.none() | st.integers(1900, 2030), "genre": WORDS,
}))


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_a_text_is_what_the_template_gives_of_the_last_row_of_an_id(rows):
    frame = pl.DataFrame([*rows, {"sku": "a"}], schema={"sku": pl.String, "name": pl.String, "year": pl.Int64,
                                                       "genre": pl.String})
    made = describe(pl.Series([*"abcxyz"]), Columns.ITEM_ROW, [(FILMS, frame)])
    last = {row["sku"]: row for row in frame.iter_rows(named=True)}
    for id_, title, text in zip("abcxyz", made.texts[Columns.TITLE], made.texts[Columns.TEXT], strict=True):
        row = last.get(id_, {})
        assert text == TextTemplate(FILMS.template).fill(row)
        assert title == (clean_text(row.get("name") or "") or id_)


def test_a_hundred_thousand_items_are_described_in_seconds():
    n = 100_000
    frame = pl.DataFrame({
        "sku": [f"i{i}" for i in range(n)], "name": [f"Caf\u00e9 &amp; thing {i}" for i in range(n)],
        "year": [1900 + i % 99 if i % 3 else None for i in range(n)], "genre": [f"g{i % 7}" for i in range(n)],
    })
    start = perf_counter()
    made = describe(frame["sku"], Columns.ITEM_ROW, [(FILMS, frame)])
    assert perf_counter() - start < 10
    assert made.texts[Columns.TEXT][4] == "Caf\u00e9 & thing 4 (1904)"


def test_decimals_are_numbers_to_filter_by_and_stay_as_they_are_written_in_texts():
    config = TableConfig(paths=("t",), id="id", template="{a}|{b}", attributes=("a", "b", "c"))
    columns = {"a": ["1.50", "2", ""], "b": ["05.5", "1", "2"], "c": ["1.5", "n/a", "2"]}
    frame = pl.DataFrame({"id": ["1", "2", "3"], **columns})
    described = describe(pl.Series(["1", "2", "3"]), "item_row", [(config, frame)])
    assert described.attributes["a"].to_list() == [1.5, 2.0, None]
    assert described.attributes["b"].to_list() == ["05.5", "1", "2"]
    assert described.attributes["c"].to_list() == ["1.5", "n/a", "2"]
    assert described.texts["text"][0] == "1.50|05.5"
