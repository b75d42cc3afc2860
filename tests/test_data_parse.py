"""Parsing: what counts as an id, a time and a value, whatever type the file gave it."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path

import polars as pl
import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import DataConfig
from llmrec_ray.config.load import validate_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.data.parse import ParsedBlock, parse_piece
from llmrec_ray.data.pieces import cut_pieces
from llmrec_ray.data.sources import SourceFile
from llmrec_ray.errors import DataError

NOON = dt.datetime(2024, 3, 1, 12, tzinfo=dt.UTC)


def parse(folder: Path, frame: pl.DataFrame, file_format: str = "parquet", **log: object) -> ParsedBlock:
    path = folder / f"log.{file_format}"
    if file_format == "parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path)
    data = DataConfig.model_validate({"interactions": {"paths": [str(path)], "format": file_format, **log}})
    source = SourceFile("interactions", data.interactions[0], 0, str(path), "log", path.stat().st_size)
    [block] = [block for piece in cut_pieces([source]) for block in parse_piece(piece)]
    return block


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
    assert str(refusal.value) == (
        "The column 'user_id' of log holds List(String), not one value a row: flatten it first."
    )


def test_a_column_may_be_called_position_or_reason(tmp_path):
    columns = {"user_id": "position", "item_id": "reason", "timestamp": "file"}
    frame = pl.DataFrame({"position": ["u"], "reason": ["i"], "file": [5], "raw": ["x"]})
    assert parse(tmp_path, frame, "csv", columns=columns).good.row(0)[:2] == ("u", "i")


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
