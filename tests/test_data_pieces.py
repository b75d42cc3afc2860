"""Pieces: however a file is cut, the same records come out, and every byte belongs to one piece."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_ray.config import DataConfig
from llmrec_ray.data.parse import sample_users
from llmrec_ray.data.pieces import cut_pieces, digest, estimated_rows
from llmrec_ray.data.sources import find_sources
from llmrec_ray.data.text_lines import is_broken, read_record, shown, split_lines
from llmrec_ray.errors import DataError
from tests.source_files import log_file, records

KINDS = st.sampled_from(["plain", "quoted", "spanning", "stray", "wild"])
ANY_FILE = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def csv_text(seed: int, kind: str, n_lines: int = 1500) -> bytes:
    """A header and lines of three fields, more or less: quoted, spanning lines, with stray quotes, of any bytes."""
    generator = random.Random(seed)
    lines = [b"a,b,c"]
    for number in range(n_lines):
        word = generator.choice([b"x", b"", b"caf\xc3\xa9", b"y z"])
        line = b"%d,%s,1" % (number, word)
        odd = generator.random()
        if kind == "quoted" or (kind == "spanning" and odd < 0.5):
            line = b'"%d","%s, ""%s""","1"' % (number, word, word)
        if kind == "spanning" and odd > 0.8:
            line = b'"%d","%s%s",1' % (number, b"\n" * generator.randrange(4), b'\n""in""\n' * generator.randrange(40))
        if kind == "stray" and odd < 0.05:
            line = generator.choice([b'%d,"open,1', b'%d,6" disk,1', b'"%d"x,b,1', b'%d,b"', b'"%d']) % number
        if kind == "wild":
            line = bytes(generator.choice(b'ab,,"\r\n\xff1') for _ in range(generator.randrange(12)))
        lines.append(line + (b"\r" if generator.random() < 0.1 else b""))
    return b"\n".join(lines) + generator.choice([b"", b"\n"])


def one_by_one(text: bytes) -> list[tuple]:
    """What the lines of a CSV file with three columns say, read from the first to the last."""
    lines, found, start = split_lines(text), [], 1
    while start < len(lines):
        record = read_record(lines, start, ",")
        raw = "\n".join(lines[start : start + record.n_lines])
        start += record.n_lines
        if not raw:
            continue
        fields = tuple(field or None for field in record.fields or [])
        reason = None if len(fields) == 3 else "too_few_fields" if len(fields) < 3 else "too_many_fields"
        if record.fields is None:
            reason = "bad_encoding" if is_broken(raw) else "malformed"
        found.append((len(found) + 1, reason, shown(raw), None if reason else fields))
    return found


@ANY_FILE
@given(
    seed=st.integers(0, 10**6), kind=KINDS, piece_bytes=st.integers(50, 20_000), block_bytes=st.integers(1_000, 20_000)
)
def test_records_do_not_depend_on_where_text_is_cut(tmp_path, seed, kind, piece_bytes, block_bytes):
    (tmp_path / "log.csv").write_bytes(csv_text(seed, kind))
    source = log_file(tmp_path / "log.csv", format="csv")
    cut = records(source, ["a", "b", "c"], piece_bytes=piece_bytes, block_bytes=block_bytes)
    assert cut == one_by_one((tmp_path / "log.csv").read_bytes())


def test_files_with_quotes_and_lines_in_quotes_are_cut_at_all(tmp_path):
    for kind in ("plain", "quoted", "spanning", "stray"):
        (tmp_path / "log.csv").write_bytes(csv_text(3, kind))
        pieces = cut_pieces([log_file(tmp_path / "log.csv", format="csv")], piece_bytes=5_000)
        assert len(pieces) >= 3, kind


@ANY_FILE
@given(seed=st.integers(0, 10**6), piece_bytes=st.integers(20, 5_000), block_bytes=st.integers(300, 5_000))
def test_json_lines_do_not_depend_on_where_they_are_cut(tmp_path, seed, piece_bytes, block_bytes):
    generator = random.Random(seed)
    good = ['{"a": %d, "b": "x"}', '{"a": %d.5}', '{"a": "%d", "b": ["y", 2]}', '{"b": %d}']
    bad = ["oops", '{"a": "', '{"a": NaN}', "[%d]", '{"a": 1} {"a": 2}', '{"a": "\xff"}']
    weights = [50, 5, 5, 5, *[generator.choice([0, 1])] * 8]
    forms = generator.choices([*good, *bad, "  ", ""], weights, k=400)
    lines = [form % number if "%" in form else form for number, form in enumerate(forms)]
    (tmp_path / "log.jsonl").write_bytes("\n".join(['{"a": 0, "b": 0}', *lines]).encode("latin-1"))
    source = log_file(tmp_path / "log.jsonl", format="jsonl")
    once = records(source, ["a", "b"])
    assert records(source, ["a", "b"], piece_bytes=piece_bytes, block_bytes=block_bytes) == once
    assert len(once) == 1 + sum(bool(line.strip()) for line in lines)
    assert sum(reason is None for _, reason, _, _ in once) == 1 + sum(form in good for form in forms)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "cp1252"])
@pytest.mark.parametrize("block_bytes", [7, 100, 10_000])
def test_other_encodings_are_read_in_blocks_too(tmp_path, encoding, block_bytes):
    text = "a,b\n" + "".join(f"{number},café\n" for number in range(300))
    (tmp_path / "log.csv").write_bytes(text.encode(encoding))
    source = log_file(tmp_path / "log.csv", format="csv", encoding=encoding)
    found = records(source, ["a", "b"], piece_bytes=500, block_bytes=block_bytes)
    assert [fields for *_, fields in found] == [(str(number), "café") for number in range(300)]
    assert len(cut_pieces([source], piece_bytes=500)) == (1 if encoding == "utf-16" else 2)


def row_groups(path: Path, *sizes: int) -> Path:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, pl.DataFrame({"a": [1], "b": ["x"]}).to_arrow().schema) as writer:
        first = 0
        for size in sizes:
            rows = pl.DataFrame({"a": range(first, first + size), "b": ["x"] * size}, schema_overrides={"a": pl.Int64})
            writer.write_table(rows.to_arrow())
            first += size
    return path


@pytest.mark.parametrize(("piece_rows", "pieces"), [(1, 3), (10, 3), (15, 2), (100, 1)])
def test_parquet_is_cut_between_row_groups(tmp_path, piece_rows, pieces):
    source = log_file(row_groups(tmp_path / "log.parquet", 10, 5, 8))
    cut = cut_pieces([source], piece_rows=piece_rows)
    assert len(cut) == pieces
    assert sum(estimated_rows(piece) for piece in cut) == 23
    found = records(source, ["b", "a"], piece_rows=piece_rows, block_rows=4)
    assert [fields for *_, fields in found] == [("x", number) for number in range(23)]


def test_a_parquet_file_without_rows_is_one_piece_without_records(tmp_path):
    pl.DataFrame(schema={"a": pl.Int64, "b": pl.String}).write_parquet(tmp_path / "log.parquet")
    source = log_file(tmp_path / "log.parquet")
    assert len(cut_pieces([source])) == 1
    assert records(source, ["a"]) == []


def test_numbers_of_pieces_go_on_from_file_to_file(tmp_path):
    for name in ("x", "y"):
        (tmp_path / f"{name}.csv").write_bytes(csv_text(1, "plain"))
    data = DataConfig.model_validate({"interactions": {"paths": [f"{tmp_path}/*.csv"], "format": "csv"}})
    pieces = cut_pieces(find_sources(data, tmp_path), piece_bytes=4_000)
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    assert [piece.source.name for piece in pieces] == sorted(piece.source.name for piece in pieces)
    for before, after in itertools.pairwise(pieces):
        assert after.start == (before.stop if after.source is before.source else 0)


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_digests_cover_every_byte_of_a_file_once(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(csv_text(1, "plain")) if name == "log.csv" else row_groups(path, 500, 500, 500)
    pieces = cut_pieces([log_file(path, format=path.suffix[1:])], piece_bytes=3_000, piece_rows=500)
    assert len(pieces) >= 3
    before = [digest(piece) for piece in pieces]
    content = path.read_bytes()
    for place in (4, len(content) // 2, len(content) - 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        changed = [old != new for old, new in zip(before, _digests(pieces), strict=True)]
        assert sum(changed) == 1 or name == "log.parquet"
        path.write_bytes(content)


def _digests(pieces) -> list[str]:
    try:
        return [digest(piece) for piece in pieces]
    except DataError:  # the damage is where Parquet says what it holds
        return [""] * len(pieces)


def test_the_digest_of_a_whole_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"a,b\n1,2\n")
    (piece,) = cut_pieces([log_file(tmp_path / "log.csv", format="csv")])
    assert digest(piece) == hashlib.sha256(b"a,b\n1,2\n").hexdigest()


def events_of(folder: Path) -> list:
    data = DataConfig.model_validate({"interactions": {"paths": [f"{folder}/log.csv"], "format": "csv"},
                                      "feedback": ["{events}"]})
    (folder / "log.csv").write_text("user_id,item_id,timestamp\n")
    return [source for source in find_sources(data, folder, folder / "events") if source.name.endswith(".jsonl")]


def test_an_event_log_ends_with_its_last_whole_line_and_is_read_on_from_there(tmp_path):
    (tmp_path / "events").mkdir()
    log = tmp_path / "events" / "20260101-a.jsonl"
    log.write_bytes(b'{"n": 1}\n{"n": 2}\n{"n"')
    (source,) = events_of(tmp_path)
    (piece,) = cut_pieces([source])
    assert source.may_grow
    assert (piece.start, piece.stop) == (0, 18)
    log.write_bytes(b'{"n": 1}\n{"n": 2}\n{"n": 3}\n')
    (source,) = events_of(tmp_path)
    (piece,) = cut_pieces([source], starts={source.name: 18})
    assert (piece.start, piece.stop) == (18, 27)
    assert cut_pieces([source], starts={source.name: 27}) == []
    log.write_bytes(b'{"n"')
    assert cut_pieces(events_of(tmp_path)) == []


def test_a_sample_of_users_comes_from_where_the_piece_begins(tmp_path):
    frame = pl.DataFrame({"user_id": range(5000), "item_id": range(5000), "timestamp": range(5000)})
    for name, write in (("log.parquet", frame.write_parquet), ("log.csv", frame.write_csv)):
        write(tmp_path / name)
        pieces = cut_pieces([log_file(tmp_path / name, format=name[4:])], piece_bytes=20_000)
        assert sample_users(pieces[0], 10).to_list() == [str(number) for number in range(10)]
    assert int(sample_users(pieces[1], 10)[0]) > 1000
    assert 1000 < sum(estimated_rows(piece) for piece in pieces) < 10_000


def test_a_sample_passes_over_bad_records(tmp_path):
    (tmp_path / "log.csv").write_text('user_id,item_id,timestamp\nu,i,1\n,i,1\n"open\nv,i,oops\nw\n')
    (piece,) = cut_pieces([log_file(tmp_path / "log.csv", format="csv")])
    assert sample_users(piece).to_list() == ["u", "v"]


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "log.parquet").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(DataError, match=r"log\.parquet is not a Parquet file \(.*\): correct `format`, or restore"):
        cut_pieces([log_file(tmp_path / "log.parquet")])


@pytest.mark.parametrize("keep", [0, 3, 100, 400])
def test_a_cut_off_parquet_file_is_refused(tmp_path, keep):
    content = io.BytesIO()
    pl.DataFrame({"a": range(1000)}).write_parquet(content)
    (tmp_path / "log.parquet").write_bytes(content.getvalue()[:keep])
    with pytest.raises(DataError, match=r"log\.parquet is not a Parquet file"):
        cut_pieces([log_file(tmp_path / "log.parquet")])
