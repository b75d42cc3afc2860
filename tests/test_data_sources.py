"""Sources: which files a recipe means, in which order, and how their bytes come."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import polars as pl
import pytest

from llmrec_ray.config import DataConfig
from llmrec_ray.data import sources as module
from llmrec_ray.data.sources import FEEDBACK, SourceFile, find_sources
from llmrec_ray.errors import MissingInputError
from tests.source_files import log_file, parsed

FILES = ("2024/b.csv", "2024/a.csv", "2023/z.csv", "2023/.hidden.csv", "2023/deep/y.csv", "2023/notes.txt")


@pytest.fixture
def raw(tmp_path):
    for name in FILES:
        write(tmp_path / name, name)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def names(raw, *paths: str, **data: object) -> list[str]:
    config = DataConfig.model_validate({"interactions": {"paths": paths}, **data})
    return [source.name for source in find_sources(config, raw, raw / "events")]


def content(source: SourceFile) -> bytes:
    return b"".join(source.read_bytes(0, source.size_bytes))


def test_patterns_keep_their_order_and_matches_are_sorted(raw):
    assert names(raw, "{raw}/2024/*.csv", "{raw}/2023/z.csv") == ["2024/a.csv", "2024/b.csv", "2023/z.csv"]
    assert names(raw, "{raw}/*/[az].csv") == ["2023/z.csv", "2024/a.csv"]


def test_a_file_that_two_patterns_match_is_read_once(raw):
    assert names(raw, "{raw}/2024/b.csv", "{raw}/2024/*") == ["2024/b.csv", "2024/a.csv"]


def test_a_star_stays_in_its_folder_and_skips_hidden_files(raw):
    assert names(raw, "{raw}/2023/*.csv") == ["2023/z.csv"]


def test_two_stars_are_any_folders(raw):
    assert names(raw, "{raw}/**/*.csv") == ["2023/deep/y.csv", "2023/z.csv", "2024/a.csv", "2024/b.csv"]
    assert names(raw, "{raw}/2023/**/y.csv") == names(raw, "{raw}/**/deep/*") == ["2023/deep/y.csv"]
    assert names(raw, "{raw}/2023/**") == ["2023/deep/y.csv", "2023/notes.txt", "2023/z.csv"]


def test_a_folder_means_all_its_files_but_those_of_writers(raw):
    write(raw / "2024" / "_SUCCESS", "")
    write(raw / "2024" / "_temporary" / "c.csv", "")
    assert names(raw, "{raw}/2024") == names(raw, "{raw}/2024/") == ["2024/a.csv", "2024/b.csv"]
    assert names(raw, "{raw}/2023") == ["2023/deep/y.csv", "2023/notes.txt", "2023/z.csv"]


def test_a_glob_that_only_folders_fit_means_their_files(raw):
    assert names(raw, "{raw}/20*") == [
        "2023/deep/y.csv", "2023/notes.txt", "2023/z.csv", "2024/a.csv", "2024/b.csv"
    ]


def test_a_relative_path_is_found_from_here_and_read_from_anywhere(raw, monkeypatch):
    monkeypatch.chdir(raw)
    source = log_file("2023/z.csv")
    assert (source.uri, source.name, source.size_bytes) == (f"{raw}/2023/z.csv", "./2023/z.csv", len("2023/z.csv"))


def test_a_packed_file_is_unpacked(raw):
    (raw / "z.csv.gz").write_bytes(gzip.compress(b"a,b"))
    source = log_file(raw / "z.csv.gz")
    assert source.is_compressed
    assert content(source) == b"a,b"
    assert b"".join(source.stored_bytes(0, 2)) == b"\x1f\x8b"


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    write(tmp_path / "run[1]" / "a[b].csv", "x")
    assert names(tmp_path / "run[1]", "{raw}/a[b].csv") == ["a[b].csv"]
    assert names(tmp_path / "run[1]", "{raw}") == ["a[b].csv"]


def test_links_in_circles_lead_to_each_file_once(raw):
    before = names(raw, "{raw}/2023")
    (raw / "2023" / "again").symlink_to(raw / "2023")
    assert names(raw, "{raw}/2023") == before


def test_uris_work_like_paths(raw):
    source = log_file(f"file://{raw}/2023/*.csv")
    uri = f"file://{raw}/2023/z.csv"
    assert source == SourceFile("interactions", source.config, 0, uri, uri, 10)
    assert content(source) == b"2023/z.csv"


def test_sections_of_one_table_follow_each_other(raw):
    sections = [{"paths": ["{raw}/2024/*"]}, {"paths": ["{raw}/2023/*.csv"], "format": "csv"}]
    config = DataConfig.model_validate({"interactions": sections, "items": {
        "paths": ["{raw}/2023/notes.txt"], "id": "id", "template": "{name}"}})
    found = [(source.table, source.number, source.config.format, source.name) for source in find_sources(config, raw)]
    assert found == [
        ("interactions", 0, "parquet", "2024/a.csv"), ("interactions", 1, "parquet", "2024/b.csv"),
        ("interactions", 2, "csv", "2023/z.csv"), ("items", 0, "parquet", "2023/notes.txt"),
    ]


def test_event_logs_of_endpoints_come_after_the_log(raw):
    for name in ("20260101-b.jsonl", "20260101-a.jsonl", "view.sqlite", "log.lock", ".20260101-c.jsonl"):
        write(raw / "events" / name, "{}\n")
    write(raw / "archive" / "20251231-a.jsonl.gz", "")
    feedback = ["{events}", "{raw}/archive"]
    assert names(raw, "{raw}/2023/z.csv", feedback=feedback) == [
        "2023/z.csv", "events/20260101-a.jsonl", "events/20260101-b.jsonl", "archive/20251231-a.jsonl.gz"
    ]
    config = DataConfig.model_validate({"interactions": {"paths": ["{raw}/2023/z.csv"]}, "feedback": feedback})
    found = find_sources(config, raw, raw / "events")
    assert [(source.config is FEEDBACK, source.may_grow) for source in found] == [
        (False, False), (True, True), (True, True), (True, False)
    ]


def test_before_the_first_event_there_is_no_event_log(raw):
    assert names(raw, "{raw}/2023/z.csv", feedback=["{events}", "{events}/*.jsonl"]) == ["2023/z.csv"]


def test_an_archive_without_event_logs_is_named(raw):
    with pytest.raises(MissingInputError) as missing:
        names(raw, "{raw}/2023/z.csv", feedback=["{raw}/2024"])
    assert str(missing.value) == f"No event log (*.jsonl) matches {raw}/2024 (data.feedback): correct the path."


def test_what_an_endpoint_wrote_is_read(tmp_path):
    from llmrec_ray.events import Event, EventLog

    log = EventLog(tmp_path / "events")
    log.append([Event(event_id="1", user_id="u", item_id="i", timestamp=5.25, event="view"),
                Event(event_id="2", user_id="v", item_id="j", timestamp=6, value=2.5)])
    write(tmp_path / "log.csv", "user_id,item_id,timestamp\n")
    config = DataConfig.model_validate({
        "interactions": {"paths": [f"{tmp_path}/log.csv"], "format": "csv"}, "feedback": ["{events}"]})
    block = parsed(find_sources(config, tmp_path, tmp_path / "events")[1])
    assert block.good.drop("timestamp").rows() == [("u", "i", 1.0, "view", "1"), ("v", "j", 2.5, "interaction", "2")]
    assert block.good["timestamp"].dt.epoch("ms").to_list() == [5250, 6000]


def test_columns_in_folder_names_are_columns_of_every_record(tmp_path):
    for day, country in (("2026-01-01", "de"), ("2026-01-02", "__HIVE_DEFAULT_PARTITION__")):
        write(tmp_path / f"day={day}" / f"land%20code={country}" / "part.csv", "user_id,item_id\nu,i\n")
    columns = {"timestamp": "day", "context": ["land code"]}
    config = DataConfig.model_validate({"interactions": {
        "paths": ["{raw}"], "format": "csv", "timestamp_unit": "iso8601", "columns": columns}})
    found = pl.concat(parsed(source).good for source in find_sources(config, tmp_path))
    assert found.select("land code", pl.col("timestamp").dt.to_string("%F")).rows() == [
        ("de", "2026-01-01"), (None, "2026-01-02")
    ]


@pytest.mark.parametrize("value", ["x", 5])
def test_parquet_has_columns_in_folder_names_too(tmp_path, value):
    (tmp_path / "device=phone").mkdir()
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [1], "device": [value]})
    frame.write_parquet(tmp_path / "device=phone" / "part.parquet")
    source = log_file(tmp_path, columns={"context": ["device"]})
    assert parsed(source).good["device"].to_list() == ["phone"]


@pytest.mark.parametrize(
    ("pattern", "pattern_path", "file", "uri"),
    [
        ("s3://logs/2024/*.csv?region=x", "logs/2024/*.csv", "logs/2024/a.csv", "s3://logs/2024/a.csv?region=x"),
        ("s3://key:secret@logs/*.csv", "logs/*.csv", "logs/a.csv", "s3://key:secret@logs/a.csv"),
        ("hdfs://host:8020/logs/*", "/logs/*", "/logs/a", "hdfs://host:8020/logs/a"),
        ("/logs/*.csv", "/logs/*.csv", "/logs/a.csv", "/logs/a.csv"),
        ("s3://logs/2024/", "logs/2024/", "logs/2024/a.csv", "s3://logs/2024/a.csv"),
    ],
)
def test_a_match_is_a_uri_of_the_same_store(pattern, pattern_path, file, uri):
    assert module._uri(file, pattern, pattern_path) == uri


def test_a_name_carries_no_keys_and_no_options():
    assert module._name("s3://key:secret@logs/a.csv?region=x", Path("/raw")) == "s3://logs/a.csv"


@pytest.mark.parametrize("pattern", ["2025/*.csv", "2025", "2023/none.csv", "2025/**", "*/none"])
def test_a_pattern_without_a_file_is_named(raw, pattern):
    with pytest.raises(MissingInputError) as missing:
        names(raw, f"{raw}/{pattern}")
    assert str(missing.value) == (
        f"No file matches {raw}/{pattern} (data.interactions.paths): correct the path."
    )


def test_what_is_neither_file_nor_folder_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(MissingInputError) as missing:
        names(tmp_path, "{raw}/pipe.csv")
    assert str(missing.value).startswith(f"{tmp_path}/pipe.csv cannot be looked at (")
    assert str(missing.value).endswith("): correct the path, or let this user read it.")


def test_a_uri_nobody_understands_is_named(raw):
    with pytest.raises(MissingInputError, match=r"^The URI nowhere://x/y cannot be used \(.*\): correct it"):
        names(raw, "nowhere://x/y")


def test_a_file_that_went_away_is_named(raw):
    source = log_file(raw / "2023" / "z.csv")
    (raw / "2023" / "z.csv").unlink()
    with pytest.raises(MissingInputError, match=r"^/.*/2023/z\.csv cannot be read \(.*\): restore it\.$"):
        content(source)


def test_a_file_that_became_shorter_is_named(raw):
    source = log_file(raw / "2023" / "z.csv")
    (raw / "2023" / "z.csv").write_text("2023")
    with pytest.raises(MissingInputError, match=r"z\.csv cannot be read \(it ends at byte 4, 6 bytes early\): re"):
        content(source)
