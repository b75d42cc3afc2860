"""Records: every format, whole files and damaged ones, and nothing lost in between."""

from __future__ import annotations

import datetime as dt
import gzip
import random
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_ray.data import json_lines
from llmrec_ray.errors import DataError, LlmrecError, MissingInputError
from tests.source_files import log_file, parsed, records

FIELD = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6)
IN_A_FOLDER = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def read(tmp_path):
    def read(payload: bytes | str, file_format: str = "csv", columns: tuple[str, ...] = ("a", "b"), **log: object):
        (tmp_path / "f").write_bytes(payload.encode() if isinstance(payload, str) else payload)
        return records(log_file(tmp_path / "f", format=file_format, **log), columns)

    return read


def fields(found: list[tuple]) -> list[tuple]:
    return [values for _, reason, _, values in found if reason is None]


def reasons(found: list[tuple]) -> dict[int, str]:
    return {number: reason for number, reason, _, _ in found if reason is not None}


@pytest.mark.parametrize("damage", ["", "x,y,too many\n"])
def test_quotes_line_ends_and_marks_at_the_start_are_understood(read, damage):
    found = read('\ufeffa,b\r\n1,"x, ""y"""\r\n"2\nand more",\r\n\r\n3,\r\n' + damage)
    assert fields(found) == [("1", 'x, "y"'), ("2\nand more", None), ("3", None)]
    assert reasons(found) == ({4: "too_many_fields"} if damage else {})


def test_ragged_rows_say_so(read):
    found = read("a,b,c\n1,x,y\n2\n3,x,y,z\n4,,\n5,x\n")
    assert fields(found) == [("1", "x"), ("4", None)]
    assert reasons(found) == {2: "too_few_fields", 3: "too_many_fields", 5: "too_few_fields"}
    assert [raw for _, _, raw, _ in found] == ["1,x,y", "2", "3,x,y,z", "4,,", "5,x"]


def test_blank_lines_are_no_records_and_rows_of_empty_fields_are(read):
    assert read("a,b\n\n1,x\n\r\n\n,\n") == [(1, None, "1,x", ("1", "x")), (2, None, ",", (None, None))]
    assert fields(read("a\nx\n\ny\n", columns=("a",))) == [("x",), ("y",)]


def test_only_the_line_with_an_open_quote_is_lost(read):
    found = read('a,b\n1,x\n2,"y\n3,z\n4,w\n')
    assert found == [(1, None, "1,x", ("1", "x")), (2, "malformed", '2,"y', None), (3, None, "3,z", ("3", "z")),
                     (4, None, "4,w", ("4", "w"))]


def test_a_quote_inside_of_a_field_is_a_letter(read):
    assert fields(read('a,b\n1,6" disk\n2,x\n')) == [("1", '6" disk'), ("2", "x")]


def test_without_quotes_a_quote_is_a_letter_everywhere(read):
    assert fields(read('a,b\n1,"x\n2,"y"\n', quotes=False)) == [("1", '"x'), ("2", '"y"')]


@pytest.mark.parametrize(
    ("separator", "line"),
    [(";", '1;"x;y";z'), ("|", "1|x;y|z"), ("::", "1::x;y::z"), ("§", "1§x;y§z"), ("\t", "1\tx;y\tz"),
     (" ", "1 x;y z")],
)
def test_fields_may_stand_between_anything(read, separator, line):
    assert read(f"{line}\n", columns=("b", "a"), separator=separator, header=("a", "b", "c")) == [
        (1, None, line, ("x;y", "1"))
    ]


def test_with_a_separator_of_several_characters_quotes_are_letters(read):
    found = read('7::"Great" Cats::Musical\n8::"Open::Drama\n9::Short\n', separator="::", header=("a", "b", "c"))
    assert fields(found) == [("7", '"Great" Cats'), ("8", '"Open')]
    assert reasons(found) == {3: "too_few_fields"}


def test_every_control_character_may_stand_in_text(read):
    letters = "".join(map(chr, [*range(1, 9), *range(11, 13), *range(14, 32)]))
    assert fields(read(f"1::{letters}\n", separator="::", header=("a", "b"))) == [("1", letters)]


def test_text_in_another_encoding_is_shown_as_well_as_can_be(read):
    found = read(b"a,b\n1,x\n2,caf\xe9\n3,y\n")
    assert found == [
        (1, None, "1,x", ("1", "x")), (2, "bad_encoding", "2,caf\ufffd", None), (3, None, "3,y", ("3", "y"))
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_the_encoding_can_be_told(read, encoding):
    assert fields(read("a,b\n1,café\n".encode(encoding), encoding=encoding)) == [("1", "café")]
    assert fields(read('{"a": 1, "b": "café"}'.encode(encoding), "jsonl", encoding=encoding)) == [("1", "café")]


def test_bytes_that_a_code_page_lacks_spoil_their_line(read):
    assert reasons(read(b"a,b\n1,x\n2,\x81\n", encoding="cp1252")) == {2: "bad_encoding"}


def test_utf_16_that_ends_within_a_letter_is_refused(read):
    with pytest.raises(DataError, match=r"f is not utf-16 text \(.*\): correct `encoding`, or restore it\.$"):
        read("a,b\n1,x\n".encode("utf-16")[:-1], encoding="utf-16")


def test_utf_16_without_being_told_is_recognised(read):
    with pytest.raises(DataError) as refusal:
        read("a,b\n1,x\n".encode("utf-16"))
    assert str(refusal.value).endswith(
        "f is not utf-8 text; it looks like utf-16: set `encoding`, or `format` if it is no text at all."
    )


def test_columns_are_found_by_name_wherever_they_stand(read):
    assert fields(read("c\tb\ta\n1\t2\t3\n", "tsv")) == [("3", "2")]


@pytest.mark.parametrize(
    ("name", "separator"), [("a;b\n1;2\n", ";"), ("a\tb\n", "\t"), ('"a"|"b"\n', "|"), ("a::b\n", "::")]
)
def test_a_wrong_separator_is_recognised(read, name, separator):
    with pytest.raises(MissingInputError) as missing:
        read(name)
    assert str(missing.value).endswith(f"its fields look separated by {separator!r}, so set separator: {separator!r}.")


def test_a_wrong_separator_is_recognised_without_a_header(read):
    with pytest.raises(DataError) as refusal:
        read("1|2\n3|4\n", header=("a", "b"))
    assert str(refusal.value).endswith(
        "f has 1 field instead of 2 with the separator ',', and 2 with '|': set separator: '|'."
    )


def test_lines_that_end_in_carriage_returns_alone_are_named(read):
    with pytest.raises(DataError, match="end in carriage returns alone, as on old Macintoshes: convert them"):
        read("a,b\r1,2\r3,4\r")


def parquet(folder: Path, **columns: list) -> bytes:
    pl.DataFrame(columns).write_parquet(folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


def test_a_record_can_be_shown_again_as_it_stood(read, tmp_path):
    assert [raw for _, _, raw, _ in read('a,c,b\n1,2,3\n4,,\n"5","\n",6\n')] == ["1,2,3", "4,,", '"5","\n",6']
    assert [raw for _, _, raw, _ in read('{"a": 1, "b": 2}\n\n{"a":3}\n', "jsonl")] == ['{"a": 1, "b": 2}', '{"a":3}']
    shown = [raw for _, _, raw, _ in read(parquet(tmp_path, a=[1, 2], b=["é", None], c=[0.5, 1]), "parquet")]
    assert shown == ['{"a": 1, "b": "é", "c": 0.5}', '{"a": 2, "b": null, "c": 1.0}']


@pytest.mark.parametrize(
    "damage", ["", "not json\n", "[1]\n", '{"a": \n', "7\n", '{"a": 1}{"a": 2}\n', '{"a": NaN}\n']
)
def test_json_lines_become_text_whatever_the_types(read, damage):
    text = '{"a": 1, "b": 2.5}\n\n{"b": "x", "a": null, "c": [1]}\n   \n{"a": true, "b": {"k": 1}}\n'
    found = read(text + damage, "jsonl")
    assert fields(found) == [("1", "2.5"), (None, "x"), ("true", '{"k": 1}')]
    assert reasons(found) == ({4: "malformed"} if damage else {})


def test_broken_unicode_spoils_one_json_line(read):
    found = read(b'\xef\xbb\xbf{"a": 1, "b": 2}\n{"a": "\xff", "b": 3}\n', "jsonl")
    assert found == [(1, None, '{"a": 1, "b": 2}', ("1", "2")), (2, "bad_encoding", '{"a": "\ufffd", "b": 3}', None)]


def test_lists_of_values_become_text_where_they_are_wanted(tmp_path):
    lines = ['{"a": ["x, y", "z", null, 1, true]}', '{"a": "[x]"}', '{"a": []}', '{"a": [["x"]]}',
             '{"a": {"k": ["v"]}}']
    (tmp_path / "f").write_text("\n".join(lines))
    source = log_file(tmp_path / "f", format="jsonl")
    joined = [("x, y, z, 1, true",), ("[x]",), (None,), ('[["x"]]',), ('{"k": ["v"]}',)]
    assert fields(records(source, ["a"], join_lists=True)) == joined
    (tmp_path / "f").write_text("\n".join([*lines, "oops"]))
    assert fields(records(log_file(tmp_path / "f", format="jsonl"), ["a"], join_lists=True)) == joined


def test_a_field_no_json_record_has_is_named(read):
    with pytest.raises(MissingInputError, match=r"^No record of .*f has a field 'b': correct the recipe's columns\.$"):
        read('{"a": 1}\n', "jsonl")


@pytest.mark.parametrize("rows", ['{"a": 1, "b": null}\n', '{"a": 1, "b": null}\n' + '{"a": 1}\n' * 3])
def test_a_field_that_is_always_empty_is_not_absent(read, rows):
    assert {values[1] for values in fields(read(rows, "jsonl"))} == {None}


def test_a_field_may_turn_up_in_a_later_block(tmp_path):
    (tmp_path / "f").write_text('{"a": 1}\n' * 200 + '{"a": 2, "b": 3}\n')
    found = records(log_file(tmp_path / "f", format="jsonl"), ["a", "b"], block_bytes=500)
    assert fields(found)[-1] == ("2", "3")


@pytest.mark.parametrize("file_format", ["csv", "tsv", "parquet"])
def test_a_missing_column_is_named_beside_those_that_exist(read, tmp_path, file_format):
    payload = {"csv": b"a,c\n1,2\n", "tsv": b"a\tc\n1\t2\n", "parquet": parquet(tmp_path, a=[1], c=[2])}[file_format]
    with pytest.raises(MissingInputError) as missing:
        read(payload, file_format)
    assert str(missing.value).endswith("f has no column 'b', only a, c: correct the recipe's columns.")


@pytest.mark.parametrize("payload", ["", "\n\n"])
def test_a_table_without_a_header_is_refused(read, payload):
    with pytest.raises(DataError) as refusal:
        read(payload)
    assert str(refusal.value).endswith("f has no readable header: its first line must name the columns.")


def test_a_header_with_an_open_quote_is_refused(read):
    with pytest.raises(DataError) as refusal:
        read('"a,b\n1,2\n')
    assert str(refusal.value).endswith("f has no readable header, its first line is '\"a,b': correct the line.")


@pytest.mark.parametrize(("file_format", "payload"), [("csv", "a,b\n"), ("csv", "a,b"), ("jsonl", "\n"), ("jsonl", "")])
def test_a_file_without_records_gives_none(read, file_format, payload):
    assert read(payload, file_format) == []


def test_parquet_keeps_its_types(read, tmp_path):
    moment = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    assert fields(read(parquet(tmp_path, b=[moment], a=[1.5]), "parquet")) == [(1.5, moment)]


def test_damage_within_parquet_is_named(tmp_path):
    pl.DataFrame({"a": range(100_000)}).write_parquet(tmp_path / "f", compression="uncompressed")
    content = bytearray((tmp_path / "f").read_bytes())
    content[4:40] = b"\xff" * 36
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DataError, match=r"f is damaged \(.*; row groups 1 to 1\): restore it\.$"):
        records(log_file(tmp_path / "f"), ["a"])


@pytest.mark.parametrize("codec", ["gz", "bz2", "zst", "lz4"])
def test_compressed_files_are_unpacked_and_cut_off_ones_named(tmp_path, codec):
    path = tmp_path / f"f.csv.{codec}"
    with pa.output_stream(path, compression={"gz": "gzip", "zst": "zstd"}.get(codec, codec)) as stream:
        stream.write(b"a,b\n" + b"".join(b"%d,x\n" % random.randrange(10**9) for _ in range(5000)))
    assert len(records(log_file(path, format="csv"), ["a", "b"], piece_bytes=1000, block_bytes=5000)) == 5000
    content = path.read_bytes()
    for damaged in (content[:-10], content[: len(content) // 2], content + b"garbage"):
        path.write_bytes(damaged)
        with pytest.raises(MissingInputError, match=rf"f\.csv\.{codec} cannot be read \(.*\): restore it\.$"):
            records(log_file(path, format="csv"), ["a", "b"])


def test_a_compressed_file_of_several_members_is_read_to_its_end(tmp_path):
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress(b"a,b\n1,x\n") + gzip.compress(b"2,y\n"))
    assert fields(records(log_file(tmp_path / "f.csv.gz", format="csv"), ["a", "b"])) == [("1", "x"), ("2", "y")]


def test_lines_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("llmrec_ray.data.blocks.LONGEST_RECORD_BYTES", 1 << 20)
    (tmp_path / "f").write_bytes(b"a,b\n" + b"x" * (5 << 20))
    with pytest.raises(DataError, match=r"f has records of more than 1 MiB: correct `format`, or write one record"):
        records(log_file(tmp_path / "f", format="csv"), ["a"], block_bytes=1 << 20)


@IN_A_FOLDER
@given(pairs=st.lists(st.tuples(FIELD, FIELD), min_size=1))
def test_what_polars_reads_is_what_is_read_record_by_record(tmp_path, pairs):
    whole = pl.DataFrame(pairs, schema=["a", "b"], orient="row").write_csv(quote_style="always")
    expected = [(a or None, b or None) for a, b in pairs]
    for text, odd in ((whole, 0), (whole + "1,2,3\n", 1)):
        (tmp_path / "f").write_text(text)
        found = records(log_file(tmp_path / "f", format="csv"), ["a", "b"])
        assert fields(found) == expected
        assert len(reasons(found)) == odd


SCRAPS = (
    b"user_id,item_id,timestamp\n", b"u,i,1\n", b'"u","i', b'"\n', b",", b"\n", b"\r\n", b"\xff", b"[]", b"\x00",
    b"1e400", b'{"user_id": "u", "item_id": 1, "timestamp": 5}\n',
    b'{"user_id": ', b"\xef\xbb\xbf", b"\xff\xfe", b"PAR1",
    b'"\\ud800"', b"}",
)


@IN_A_FOLDER
@given(
    payload=st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(SCRAPS), max_size=30).map(b"".join)),
    file_format=st.sampled_from(["csv", "tsv", "jsonl", "parquet"]),
    encoding=st.sampled_from(["utf-8", "latin-1", "cp1252", "utf-16"]),
    suffix=st.sampled_from(["", ".gz"]),
    header=st.sampled_from([(), ("user_id", "item_id", "timestamp")]),
    separator=st.sampled_from([None, "::", ";"]),
)
def test_no_bytes_whatsoever_end_in_a_traceback(tmp_path, payload, file_format, encoding, suffix, header, separator):
    path = tmp_path / f"f{suffix}"
    path.write_bytes(gzip.compress(payload)[: None if header else -3] if suffix else payload)
    text = {"header": header, "separator": separator} if file_format in {"csv", "tsv"} else {}
    text |= {"encoding": encoding} if file_format != "parquet" else {}
    try:
        parsed(log_file(path, format=file_format, **text), piece_bytes=50)
    except LlmrecError as error:
        assert str(path) in str(error)
    except ValueError as error:  # a file without a record has no blocks to put under each other
        assert "cannot concat empty list" in str(error)


BROKEN = st.builds(
    lambda line, places, letters: "".join(
        letters[place % len(letters)] if place % 7 == 0 else letter for place, letter in zip(places, line, strict=False)
    ),
    st.sampled_from([
        '{"a": 1.5, "b": "x\\n", "c": [1, {"d": null}]}', '{"a": -0.1e+5, "b": "\\u00e9"}', '{"a": {"b": []}}'
    ]),
    st.lists(st.integers(0, 10**6), min_size=50, max_size=50),
    st.text('{}[]",:0123456789.eE+-ntf\\u \t\x0b\x7fé/', min_size=1, max_size=5),
)


@settings(max_examples=500, deadline=None)
@given(line=BROKEN)
def test_a_line_that_the_quick_look_refuses_is_refused_by_polars_too(line):
    assert not json_lines._is_read(line) or json_lines._looks_good(line)
