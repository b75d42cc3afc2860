"""Records: four formats, whole files and damaged ones, and nothing lost in between."""

from __future__ import annotations

import datetime as dt
import io

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.data.records import RECORD, read_records
from llmrec_ray.errors import DataError, MissingInputError

FIELD = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6)


def read(payload: bytes | str, file_format: str = "csv", columns: tuple[str, ...] = ("a", "b")):
    return read_records(payload.encode() if isinstance(payload, str) else payload, file_format, columns, "f")


def rows(records) -> list[tuple]:
    return records.frame.rows()


@pytest.mark.parametrize("damage", ["", "x,y,z,too many\n"])
def test_quotes_line_ends_and_marks_at_the_start_are_understood(damage):
    text = 'a,b\r\n1,"x, ""y"""\r\n"2\nand more",\r\n\r\n3\r\n'
    records = read("\ufeff" + text + damage)
    assert rows(records) == [(1, "1", 'x, "y"'), (2, "2\nand more", None), (4, "3", None)]
    assert list(records.unreadable) == ([5] if damage else [])


def test_only_the_line_with_an_open_quote_is_lost():
    records = read('a,b\n1,x\n2,"y\n3,z\n4,w\n')
    assert rows(records) == [(1, "1", "x"), (3, "3", "z"), (4, "4", "w")]
    assert records.unreadable == {2: '2,"y'}


def test_text_in_another_encoding_is_shown_as_well_as_can_be():
    records = read(b"a,b\n1,x\n2,caf\xe9\n")
    assert rows(records) == [(1, "1", "x")]
    assert records.unreadable == {2: "2,caf\ufffd"}


def test_columns_are_found_by_name_wherever_they_stand():
    assert rows(read("c\tb\ta\n1\t2\t3\n", "tsv")) == [(1, "3", "2")]


def test_a_record_can_be_shown_again_as_it_stood():
    assert read("a,c,b\n1,2,3\n4,,\n").raw([2, 1]) == ["4,,", "1,2,3"]
    assert read('a,c,b\n1,2,3\n4,,"\n').raw([1]) == ["1,2,3"]
    assert read('{"a": 1, "b": 2}\n\n{"a":3}\n', "jsonl").raw([2]) == ['{"a":3}']
    assert read(parquet(a=[1, 2], b=["é", None]), "parquet").raw([2, 1]) == [
        '{"a": 2, "b": null}', '{"a": 1, "b": "é"}'
    ]


def parquet(**columns: list) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", ["", "not json\n", "[1]\n", '{"a": \n', "7\n"])
def test_json_lines_become_text_whatever_the_types(damage):
    text = '{"a": 1, "b": 2.5}\n\n{"b": "x", "a": null, "c": [1]}\n{"a": true, "b": {"k": 1}}\n'
    records = read(text + damage, "jsonl")
    assert rows(records) == [(1, "1", "2.5"), (2, None, "x"), (3, "true", '{"k": 1}')]
    assert records.unreadable == ({4: damage.rstrip("\n")} if damage else {})


def test_broken_unicode_spoils_one_json_line():
    records = read(b'{"a": 1, "b": 2}\n{"a": "\xff", "b": 3}\n', "jsonl")
    assert rows(records) == [(1, "1", "2")]
    assert records.unreadable == {2: '{"a": "\ufffd", "b": 3}'}


def test_a_field_no_json_record_has_is_named():
    with pytest.raises(MissingInputError) as missing:
        read('{"a": 1}\n', "jsonl")
    assert str(missing.value) == "No record of f has a field 'b': correct the recipe's columns."


@pytest.mark.parametrize("file_format", ["csv", "tsv", "parquet"])
def test_a_missing_column_is_named_beside_those_that_exist(file_format):
    payload = {"csv": b"a,c\n1,2\n", "tsv": b"a\tc\n1\t2\n", "parquet": parquet(a=[1], c=[2])}[file_format]
    with pytest.raises(MissingInputError) as missing:
        read(payload, file_format)
    assert str(missing.value) == "f has no column 'b', only a, c: correct the recipe's columns."


def test_something_that_is_no_parquet_file_is_refused():
    with pytest.raises(DataError, match=r"^f is not a Parquet file \(.*\): correct `format`, or restore"):
        read("a,b\n1,2\n", "parquet")


def test_a_table_without_a_header_is_refused():
    with pytest.raises(DataError) as refusal:
        read("")
    assert str(refusal.value) == "f has no readable header: its first line must name the columns."


@pytest.mark.parametrize("file_format", ["csv", "jsonl"])
def test_a_file_without_records_gives_none(file_format):
    records = read({"csv": "a,b\n", "jsonl": "\n"}[file_format], file_format)
    assert rows(records) == []
    assert records.frame.columns == [RECORD, "a", "b"]


def test_parquet_keeps_its_types():
    moment = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    records = read(parquet(b=[moment], a=[1.5]), "parquet")
    assert rows(records) == [(1, 1.5, moment)]


@settings(deadline=None)
@given(st.lists(st.tuples(FIELD, FIELD), min_size=1))
def test_what_polars_reads_is_what_is_read_record_by_record(pairs):
    whole = pl.DataFrame(pairs, schema=["a", "b"], orient="row").write_csv(quote_style="always")
    expected = [(number, a or None, b or None) for number, (a, b) in enumerate(pairs, start=1) if a or b]
    assert rows(read(whole)) == expected
    assert rows(read(whole + "1,2,3\n")) == expected
