"""Parsing: what counts as an id, a time and a value, whatever type the file gave it."""

from __future__ import annotations

import datetime as dt
import math
import re
from pathlib import Path

import polars as pl
import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.config.load import validate_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.data.parse import ParsedBlock
from llmrec_ray.errors import DataError
from tests.source_files import items_file, log_file, parsed

NOON = dt.datetime(2024, 3, 1, 12, tzinfo=dt.UTC)


def parse(folder: Path, frame: pl.DataFrame, file_format: str = "parquet", **log: object) -> ParsedBlock:
    path = folder / f"log.{file_format}"
    frame.write_parquet(path) if file_format == "parquet" else frame.write_csv(path)
    return parsed(log_file(path, format=file_format, **log))


def log_of(**columns: list) -> pl.DataFrame:
    length = len(next(iter(columns.values())))
    default = {"user_id": ["u"] * length, "item_id": ["i"] * length, "timestamp": [1] * length}
    return pl.DataFrame({**default, **columns}, strict=False)


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("unit", "value"),
    [("s", 1_709_294_400), ("ms", 1_709_294_400_000), ("us", 1_709_294_400_000_000), ("s", 1_709_294_400.0)],
)
def test_numeric_times_have_a_unit(tmp_path, file_format, unit, value):
    parsed = parse(tmp_path, log_of(timestamp=[value]), file_format, timestamp_unit=unit)
    assert parsed.good["timestamp"].to_list() == [NOON]


def test_fractions_of_a_second_are_kept(tmp_path):
    parsed = parse(tmp_path, log_of(timestamp=["1709294400.25"]), "csv")
    assert parsed.good["timestamp"].to_list() == [NOON + dt.timedelta(microseconds=250_000)]


@pytest.mark.parametrize(
    "text",
    ["2024-03-01T12:00:00Z", "2024-03-01 12:00:00", "2024-03-01T12:00", "2024-03-01T14:00:00+02:00",
     "2024-03-01 07:00:00-0500", "2024-03-01T12:00:00.000000Z", " 2024-03-01t12:00:00z ",
     "2024-03-01T12:00Z"],
)
def test_iso_8601_is_read_with_or_without_offset(tmp_path, text):
    parsed = parse(tmp_path, log_of(timestamp=[text]), "csv", timestamp_unit="iso8601")
    assert parsed.good["timestamp"].to_list() == [NOON]


def test_one_file_may_mix_iso_8601_forms(tmp_path):
    texts = ["2024-03-01", "2024-03-01T00:00:00", "2024-02-29T19:00:00-05:00", "01.03.2024"]
    parsed = parse(tmp_path, log_of(timestamp=texts), "csv", timestamp_unit="iso8601")
    assert parsed.good["timestamp"].to_list() == [NOON - dt.timedelta(hours=12)] * 3
    assert parsed.quarantine["reason"].to_list() == ["bad_timestamp"]


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([NOON]),
        pl.Series([NOON]).dt.convert_time_zone("Asia/Tokyo"),
        pl.Series([NOON.replace(tzinfo=None)], dtype=pl.Datetime("ns")),
        pl.Series([NOON.replace(tzinfo=None)], dtype=pl.Datetime("ms")),
    ],
)
def test_typed_times_need_no_unit(tmp_path, times):
    parsed = parse(tmp_path, log_of(timestamp=[0]).with_columns(timestamp=times), timestamp_unit="ms")
    assert parsed.good["timestamp"].to_list() == [NOON]


@pytest.mark.parametrize(
    ("value", "reason"),
    [("", "bad_timestamp"), ("soon", "bad_timestamp"), ("nan", "bad_timestamp"),
     ("-5", "timestamp_out_of_range"),
     ("inf", "timestamp_out_of_range"), ("1709294400000", "timestamp_out_of_range"),
     ("99999999999999999999", "timestamp_out_of_range")],
)
def test_a_time_that_cannot_be_is_quarantined(tmp_path, value, reason):
    parsed = parse(tmp_path, log_of(timestamp=[value]), "csv")
    assert parsed.quarantine["reason"].to_list() == [reason]
    assert parsed.rows == 1


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([7, 42], ["7", "42"]), ([7.0, 42.0], ["7", "42"]), ([7.5, 8.0], ["7.5", "8"]),
     ([" a ", "b"], ["a", "b"])],
)
def test_ids_are_text_whatever_they_were(tmp_path, ids, expected):
    assert parse(tmp_path, log_of(item_id=ids)).good["item_id"].to_list() == expected


@pytest.mark.parametrize("ids", [["a", None, " "], [1.0, None, math.nan]])
def test_a_gap_is_not_an_id(tmp_path, ids):
    parsed = parse(tmp_path, log_of(item_id=ids))
    assert parsed.quarantine["position"].to_list() == [2, 3]
    assert parsed.quarantine["reason"].to_list() == ["missing_item_id"] * 2


@pytest.mark.parametrize("value", ["", "many", "nan", "inf", "1e99"])
def test_a_value_that_is_no_number_is_quarantined(tmp_path, value):
    columns = {"user_id": "user_id", "item_id": "item_id", "timestamp": "timestamp", "value": "stars"}
    parsed = parse(tmp_path, log_of(stars=["3.5", value]), "csv", columns=columns)
    assert parsed.good["value"].to_list() == [3.5]
    assert parsed.quarantine.select("reason", "raw").rows() == [("bad_value", "u,i,1," + (value or '""'))]


def test_a_column_of_lists_is_refused(tmp_path):
    with pytest.raises(DataError) as refusal:
        parse(tmp_path, pl.DataFrame({"user_id": [["a"]], "item_id": ["i"], "timestamp": [1]}))
    assert str(refusal.value).endswith(
        "log.parquet holds List(String), not one value a row: flatten it first."
    )


def test_a_column_may_be_called_position_or_reason(tmp_path):
    columns = {"user_id": "position", "item_id": "reason", "timestamp": "file"}
    frame = pl.DataFrame({"position": ["u"], "reason": ["i"], "file": [5], "raw": ["x"]})
    assert parse(tmp_path, frame, "csv", columns=columns).good.row(0)[:2] == ("u", "i")


@pytest.mark.parametrize(
    ("form", "text"),
    [("%d/%m/%Y %H:%M", "01/03/2024 13:00"), ("%d.%m.%y %I:%M:%S.%f %p", "01.03.24 01:00:00.0 PM"),
     ("%Y%m%d%H%M", "202403011300"), ("%a %b %d %Y %H:%M:%S %z", "Fri Mar 01 2024 07:00:00 -0500")],
)
def test_times_may_have_a_form_of_their_own(tmp_path, form, text):
    found = parse(tmp_path, log_of(timestamp=[text, "soon"]), "csv", timestamp_format=form, timezone="Europe/Berlin")
    assert found.good["timestamp"].to_list() == [NOON]
    assert found.quarantine["reason"].to_list() == ["bad_timestamp"]


def test_a_form_without_time_is_midnight(tmp_path):
    found = parse(tmp_path, log_of(timestamp=["01/03/2024"]), "csv", timestamp_format="%d/%m/%Y")
    assert found.good["timestamp"].to_list() == [NOON - dt.timedelta(hours=12)]


def test_a_form_that_makes_no_sense_is_named(tmp_path):
    with pytest.raises(DataError, match=r"^The timestamps of .*log\.csv cannot be read as '%d %H' \(.*\): correct "):
        parse(tmp_path, log_of(timestamp=["01 12"]), "csv", timestamp_format="%d %H")


def test_a_zone_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read as 'Factory' \(.*\): correct timezone\.$"):
        parse(tmp_path, log_of(timestamp=["2024-03-01T12:00:00"]), timestamp_unit="iso8601", timezone="Factory")


def test_a_form_counts_for_numbers_too(tmp_path):
    found = parse(tmp_path, log_of(timestamp=[20240301, 20249999]), timestamp_format="%Y%m%d")
    assert found.good["timestamp"].to_list() == [NOON - dt.timedelta(hours=12)]
    assert found.quarantine["reason"].to_list() == ["bad_timestamp"]


@pytest.mark.parametrize("typed", [True, False])
def test_times_without_a_zone_are_of_the_zone_that_is_given(tmp_path, typed):
    texts = ["2024-03-01T13:00:00", "2024-03-31T02:30:00", "2024-10-27T02:30:00"]
    times = pl.Series(texts).str.to_datetime(time_unit="ms") if typed else pl.Series(texts)
    found = parse(tmp_path, log_of(timestamp=[0] * 3).with_columns(timestamp=times),
                  timestamp_unit="iso8601", timezone="Europe/Berlin")
    assert found.good["timestamp"].to_list() == [NOON, dt.datetime(2024, 10, 27, 0, 30, tzinfo=dt.UTC)]
    assert found.quarantine["position"].to_list() == [2]  # the clocks skip this half hour


def test_nanoseconds_and_large_numbers_are_exact(tmp_path):
    numbers = [1_709_294_400_123_456_789, 2**63 - 1, -5]
    found = parse(tmp_path, log_of(timestamp=numbers), timestamp_unit="ns")
    assert found.good["timestamp"].dt.epoch("us").to_list() == [1_709_294_400_123_456]
    assert found.quarantine["reason"].to_list() == ["timestamp_out_of_range"] * 2


def test_kinds_of_events_weigh_and_others_are_dropped_before_they_are_judged(tmp_path):
    kinds = ["view", "buy", "search", " view ", None, "buy", "search"]
    items = ["i", "i", None, "i", "i", None, "i"]
    found = parse(tmp_path, log_of(kind=kinds, item_id=items, stars=[2.0, 3, 1, 1, 1, 1, 1]), "csv",
                  columns={"event": "kind", "value": "stars"}, event_weights={"view": 1.0, "buy": 2.5}, min_value=1.5)
    assert found.good.select("event", "value").rows() == [("view", 2.0), ("buy", 7.5)]
    assert found.quarantine.select("position", "reason").rows() == [(5, "missing_event"), (6, "missing_item_id")]
    assert found.dropped == {"other_event": 2, "below_min_value": 1}


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_a_value_that_is_missing_may_have_a_default(tmp_path, file_format):
    found = parse(tmp_path, log_of(stars=[4.0, None]), file_format, columns={"value": "stars"}, missing_value=1.0)
    assert found.good["value"].to_list() == [4.0, 1.0]
    found = parse(tmp_path, log_of(stars=["4", "x"]), columns={"value": "stars"}, missing_value=1.0)
    assert found.quarantine["reason"].to_list() == ["bad_value"]


def test_a_field_that_may_be_missing_need_not_be_there(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"user_id": "u", "item_id": "i", "timestamp": 1}\n')
    source = log_file(tmp_path / "log.jsonl", format="jsonl", columns={"value": "stars"}, missing_value=2.0)
    assert parsed(source).good["value"].to_list() == [2.0]


def test_ids_of_sessions_and_events_and_context_are_kept_as_text(tmp_path):
    columns = {"event_id": "id", "session": "visit", "context": ["device", "shop"]}
    frame = log_of(id=[7, 8], visit=[1.0, None], device=["phone", " "], shop=[True, False])
    assert parse(tmp_path, frame, columns=columns).good.drop("timestamp", "value").rows() == [
        ("u", "i", "7", "1", "phone", "true"), ("u", "i", "8", None, None, "false")
    ]


def test_a_domain_is_part_of_the_ids_of_items(tmp_path):
    assert parse(tmp_path, log_of(item_id=[7, None]), domain="books").good["item_id"].to_list() == ["books:7"]
    pl.DataFrame({"id": [7, None], "name": ["A", "B"]}).write_parquet(tmp_path / "items.parquet")
    found = parsed(items_file(tmp_path / "items.parquet", domain="books"))
    assert found.good.rows() == [("books:7", "A")]
    assert found.quarantine.select("table", "position", "reason").rows() == [("items", 2, "missing_id")]


def test_lists_of_a_table_become_text_and_other_nested_columns_are_refused(tmp_path):
    frame = pl.DataFrame({"id": ["a", "b"], "name": [["x", None, "y"], []], "year": [[1], [2, 3]]})
    frame.write_parquet(tmp_path / "items.parquet")
    found = parsed(items_file(tmp_path / "items.parquet", template="{name} {year}"))
    assert found.good.rows() == [("a", "x, y", "1"), ("b", None, "2, 3")]
    pl.DataFrame({"id": ["a"], "name": [{"k": 1}]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"^The column 'name' of .* holds Struct.*, not one value a row: flatten it"):
        parsed(items_file(tmp_path / "items.parquet"))


def test_a_table_keeps_numbers_and_makes_all_else_text(tmp_path):
    kinds = pl.Series(["k"], dtype=pl.Categorical)
    frame = pl.DataFrame({"id": [1], "name": ["x"], "born": [NOON.date()], "kind": kinds, "none": [None],
                          "weight": [1.5], "left": [True]})
    frame.write_parquet(tmp_path / "items.parquet")
    found = parsed(items_file(tmp_path / "items.parquet", attributes=["born", "kind", "none", "weight", "left"]))
    assert found.good.row(0) == ("1", "x", "2024-03-01", "k", None, 1.5, True)


def test_a_column_may_change_its_type_midway(tmp_path):
    lines = ["user_id,item_id,timestamp,stars", *["1,2,1709294400,3"] * 500]
    (tmp_path / "log.csv").write_text("\n".join([*lines, "u,i,yesterday,many", "v,x-1,1709294400.0,3e0"]))
    found = parsed(log_file(tmp_path / "log.csv", format="csv", columns={"value": "stars"}))
    assert found.quarantine.select("position", "reason", "raw").rows() == [(501, "bad_timestamp", "u,i,yesterday,many")]
    assert found.good.row(500) == ("v", "x-1", NOON, 3.0)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ({"separator": ";\n", "format": "csv"}, "which cannot stand between fields: give characters other than double"),
        ({"separator": "", "format": "csv"}, "separator is '', which cannot stand between fields"),
        ({"encoding": "latin-1"}, "encoding is latin-1, but Parquet knows its own: leave encoding out, or set format"),
        ({"missing_value": 1.0}, "missing_value is 1.0, but no column is named as the value: set columns.value"),
        ({"columns": {"context": ["value"]}}, "context names the column 'value', a name that Datasets use themselves"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, log, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        log_file(tmp_path, **log)


def catalogue_recipe(folder: Path):
    tree = {
        "name": "catalogue",
        "data": {
            "min_user_interactions": 3,
            "interactions": {"paths": [f"{folder}/log.parquet"]},
            "items": {
                "paths": [f"{folder}/items*.parquet"], "id": "sku", "template": "{name} ({year})",
                "attributes": ["year", "zip", "weight"],
            },
        },
    }
    return validate_recipe(tree, "the catalogue recipe")


def write_catalogue(folder: Path, **columns: object) -> None:
    log_of(item_id=["1", "2", "3"], timestamp=[1, 2, 3]).write_parquet(folder / "log.parquet")
    items = {"sku": [1.0, 2.0, 3.0], "name": ["A", "B", "C"], "year": [1990.0, None, 1992.0],
             "zip": ["01234", "5", "6"], "weight": [1.5, math.nan, 2.0]}
    pl.DataFrame({**items, **columns}).write_parquet(folder / "items.parquet")


def test_whole_numbers_beside_a_gap_do_not_become_fractions_in_texts(tmp_path):
    write_catalogue(tmp_path)
    made = ingest(catalogue_recipe(tmp_path), tmp_path, Workspace(str(tmp_path / "work")), use_ray=False)
    dataset = Dataset.open(made.uri)
    assert dataset.item_texts == ["A (1990)", "B", "C (1992)"]
    assert dataset.item_titles == ["1", "2", "3"]
    assert dataset.item_attributes.to_dict(as_series=False) == {
        "year": [1990, None, 1992], "zip": ["01234", "5", "6"], "weight": [1.5, None, 2.0],
    }


@pytest.mark.parametrize("other", ["c. 1990", NOON.date(), True, 1990.5])
def test_files_may_differ_in_the_type_of_a_column(tmp_path, other):
    write_catalogue(tmp_path)
    items = pl.read_parquet(tmp_path / "items.parquet").head(1)
    items.with_columns(year=pl.lit(other)).write_parquet(tmp_path / "items2.parquet")
    made = ingest(catalogue_recipe(tmp_path), tmp_path, Workspace(str(tmp_path / "work")), use_ray=False)
    texts = Dataset.open(made.uri).item_texts
    assert texts[0] == f"A ({1 if other is True else other})"
    assert texts[1] == "B"
    assert texts[2] in {"C (1992)", "C (1992.0)"}
