"""Object stores: logs in S3 are read like those on disk, over HTTP, with keys from the environment alone."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import polars as pl
import pytest

from llmrec_ray.config import DataConfig
from llmrec_ray.data.pieces import cut_pieces, digest
from llmrec_ray.data.sources import find_sources
from llmrec_ray.errors import DataError, MissingInputError
from tests.source_files import log_file, parsed

N_ROWS = 3000
EVENTS = pl.DataFrame({
    "user_id": [f"u{number % 50}" for number in range(N_ROWS)], "item_id": range(N_ROWS), "timestamp": range(N_ROWS),
    "note": ["x"] * N_ROWS,
})


@pytest.fixture(scope="session")
def store():
    """A bucket `logs` behind a real S3 server, and what its URIs must say."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3", endpoint_url=f"http://{host}:{port}", region_name="eu-central-1", aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="logs", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    for name, payload in _files().items():
        client.put_object(Bucket="logs", Key=name, Body=payload)
    yield f"scheme=http&endpoint_override={host}:{port}&region=eu-central-1"
    server.stop()


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def _files() -> dict[str, bytes]:
    csv, lines, parquet = EVENTS.write_csv().encode(), EVENTS.write_ndjson().encode(), io.BytesIO()
    EVENTS.write_parquet(parquet, row_group_size=1000)
    return {
        "day=2026-01-01/a.csv": csv, "day=2026-01-02/b.csv": csv, "packed/a.csv.gz": gzip.compress(csv),
        "packed/cut.csv.gz": gzip.compress(csv)[:-20], "lines/a.jsonl": lines, "rows/a.parquet": parquet.getvalue(),
        "rows/_SUCCESS": b"", "cut/a.parquet": parquet.getvalue()[:-100],
        "bad/a.parquet": parquet.getvalue().replace(b"PAR1", b"PAR1", 1)[:4] + b"\xff" * 300 + parquet.getvalue()[304:],
    }


def test_folders_globs_and_partitions_are_found(store):
    data = DataConfig.model_validate({"interactions": {
        "paths": [f"s3://logs/day=*?{store}", f"s3://logs/packed/a.csv.gz?{store}"], "format": "csv",
        "columns": {"context": ["day"]},
    }})
    (first, second, third) = find_sources(data, Path("/nowhere"))
    assert [source.name for source in (first, second, third)] == [
        "s3://logs/day=2026-01-01/a.csv", "s3://logs/day=2026-01-02/b.csv", "s3://logs/packed/a.csv.gz"
    ]
    assert parsed(second).good["day"].unique().to_list() == ["2026-01-02"]


@pytest.mark.parametrize("name", ["day=2026-01-01/a.csv", "packed/a.csv.gz", "lines/a.jsonl", "rows"])
def test_every_format_is_read_like_a_file_of_this_machine(store, name):
    kind = {"a.csv": "csv", "a.csv.gz": "csv", "a.jsonl": "jsonl", "rows": "parquet"}[name.rpartition("/")[2]]
    source = log_file(f"s3://logs/{name}?{store}", format=kind)
    block = parsed(source, piece_bytes=10_000, piece_rows=1000)
    assert block.rows == N_ROWS
    assert block.good["item_id"].to_list() == [str(number) for number in range(N_ROWS)]
    assert len({digest(piece) for piece in cut_pieces([source], piece_rows=1000)}) == (3 if kind == "parquet" else 1)


def test_bad_rows_in_a_store_are_shown_whole(store):
    source = log_file(f"s3://logs/rows?{store}", timestamp_unit="iso8601")
    assert parsed(source, piece_rows=1000).quarantine.row(N_ROWS - 1, named=True) == {
        "table": "interactions", "file": "s3://logs/rows/a.parquet", "position": N_ROWS, "reason": "bad_timestamp",
        "raw": '{"user_id": "u49", "item_id": 2999, "timestamp": 2999, "note": "x"}',
    }


def test_what_is_not_there_is_named(store):
    with pytest.raises(MissingInputError) as missing:
        log_file(f"s3://logs/none.csv?{store}")
    assert str(missing.value) == (
        f"No file matches s3://logs/none.csv?{store} (data.interactions.paths): correct the path."
    )


def test_what_is_cut_off_or_damaged_is_named(store):
    with pytest.raises(MissingInputError, match=r"^s3://logs/packed/cut\.csv\.gz cannot be read \(.*\): restore it\.$"):
        parsed(log_file(f"s3://logs/packed/cut.csv.gz?{store}", format="csv"))
    with pytest.raises(DataError, match=r"^s3://logs/cut/a\.parquet is not a Parquet file"):
        parsed(log_file(f"s3://logs/cut/a.parquet?{store}"))
    with pytest.raises(DataError, match=r"^s3://logs/bad/a\.parquet is damaged \(.*; row groups 1 to 3\): restore it"):
        parsed(log_file(f"s3://logs/bad/a.parquet?{store}"))
