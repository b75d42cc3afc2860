"""Sources: which files a recipe means, in which order."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from llmrec_ray.config import DataConfig
from llmrec_ray.data import sources as module
from llmrec_ray.data.sources import SourceFile, find_sources
from llmrec_ray.errors import MissingInputError

FILES = ("2024/b.csv", "2024/a.csv", "2023/z.csv", "2023/.hidden.csv", "2023/deep/y.csv", "2023/notes.txt")


@pytest.fixture
def raw(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def names(raw, *paths: str) -> list[str]:
    data = DataConfig.model_validate({"interactions": {"paths": paths}})
    return [source.name for source in find_sources(data, raw)]


def test_patterns_keep_their_order_and_matches_are_sorted(raw):
    assert names(raw, "{raw}/2024/*.csv", "{raw}/2023/z.csv") == ["2024/a.csv", "2024/b.csv", "2023/z.csv"]
    assert names(raw, "{raw}/*/[az].csv") == ["2023/z.csv", "2024/a.csv"]


def test_a_file_that_two_patterns_match_is_read_once(raw):
    assert names(raw, "{raw}/2024/b.csv", "{raw}/2024/*") == ["2024/b.csv", "2024/a.csv"]


def test_a_star_stays_in_its_folder_and_skips_hidden_files(raw):
    assert names(raw, "{raw}/2023/*.csv") == ["2023/z.csv"]


def test_a_relative_path_is_found_from_here_and_read_from_anywhere(raw, monkeypatch):
    monkeypatch.chdir(raw)
    data = DataConfig.model_validate({"interactions": {"paths": ["2023/z.csv"]}})
    (source,) = find_sources(data, raw / "raw")
    assert (source.uri, source.name) == (f"{raw}/2023/z.csv", "2023/z.csv")


def test_a_packed_file_is_unpacked(raw):
    (raw / "2023" / "z.csv.gz").write_bytes(gzip.compress(b"a,b"))
    (source,) = find_sources(DataConfig.model_validate({"interactions": {"paths": ["{raw}/2023/*.gz"]}}), raw)
    assert source.read() == b"a,b"


def test_uris_work_like_paths(raw):
    (source,) = find_sources(
        DataConfig.model_validate({"interactions": {"paths": [f"file://{raw}/2023/*.csv"]}}), raw
    )
    assert source == SourceFile("interactions", source.config, 0, f"file://{raw}/2023/z.csv", f"file://{raw}/2023/z.csv")
    assert source.read() == b"2023/z.csv"


@pytest.mark.parametrize(
    ("pattern", "pattern_path", "file", "uri"),
    [
        ("s3://logs/2024/*.csv?region=x", "logs/2024/*.csv", "logs/2024/a.csv", "s3://logs/2024/a.csv?region=x"),
        ("s3://key:secret@logs/*.csv", "logs/*.csv", "logs/a.csv", "s3://key:secret@logs/a.csv"),
        ("hdfs://host:8020/logs/*", "/logs/*", "/logs/a", "hdfs://host:8020/logs/a"),
        ("/logs/*.csv", "/logs/*.csv", "/logs/a.csv", "/logs/a.csv"),
    ],
)
def test_a_match_is_a_uri_of_the_same_store(pattern, pattern_path, file, uri):
    assert module._uri(file, pattern, pattern_path) == uri


def test_a_name_carries_no_keys_and_no_options():
    assert module._name("s3://key:secret@logs/a.csv?region=x", Path("/raw")) == "s3://logs/a.csv"


@pytest.mark.parametrize("pattern", ["2025/*.csv", "2023", "2023/none.csv"])
def test_a_pattern_without_a_file_is_named(raw, pattern):
    with pytest.raises(MissingInputError) as missing:
        names(raw, f"{raw}/{pattern}")
    assert str(missing.value) == (
        f"No file matches {raw}/{pattern} (data.interactions.paths): correct the path."
    )


def test_a_uri_nobody_understands_is_named(raw):
    with pytest.raises(MissingInputError, match=r"^The URI nowhere://x/y cannot be used \(.*\): correct it"):
        names(raw, "nowhere://x/y")


def test_a_file_that_went_away_is_named(raw):
    data = DataConfig.model_validate({"interactions": {"paths": [f"{raw}/2023/z.csv"]}})
    (source,) = find_sources(data, raw)
    (raw / "2023" / "z.csv").unlink()
    with pytest.raises(MissingInputError, match=r"^/.*/2023/z\.csv cannot be read \(.*\): restore it\.$"):
        source.read()
