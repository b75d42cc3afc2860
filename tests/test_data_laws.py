"""Laws of ingest over logs that nobody chose: every row is accounted for, the result is that of a program without any
tricks, rows of ids stay, and neither pieces nor ranges nor tasks nor the number of runs can be seen in it.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import Recipe
from llmrec_ray.config.load import validate_recipe
from llmrec_ray.data import Dataset, ingest, log, parts
from llmrec_ray.data.pieces import cut_pieces
from llmrec_ray.errors import EmptyResultError
from tests.ingest_oracle import Expected, Row, expected, splits

ingest_module = importlib.import_module("llmrec_ray.data.ingest")  # the function has the same name
START = 1_700_000_000
COLUMNS = ("user", "item", "second", "value", "event", "event_id", "session")
NAMES = {
    "user_id": "user", "item_id": "item", "timestamp": "second", "value": "value", "event": "event",
    "event_id": "event_id", "session": "session",
}
SPOILT = ({"user": None}, {"item": None}, {"second": None}, {"second": "soon"}, {"second": "-1"}, {"value": "much"})
FORMATS = ("csv", "jsonl", "parquet")

rows = st.builds(
    Row,
    user=st.sampled_from(["a", "b", "c", "ä", "10", "9"]),
    item=st.sampled_from(["x", "y", "z", "X", "7", "10", "é"]),
    second=st.integers(0, 40).map(lambda step: str(START + 1800 * step)),
    value=st.sampled_from(["1", "2", "0.5", "4"]),
    event=st.sampled_from(["view", "view", "buy", "return"]),
    event_id=st.sampled_from([None, None, "e1", "e2", "e3", "e4"]),
    session=st.sampled_from([None, None, "s1", "s2"]),
)
spoilt_rows = st.builds(
    lambda row, change: Row(**{**vars(row), "event": "view", **change}), rows, st.sampled_from(SPOILT)
)
files_of_rows = st.lists(rows | rows | rows | rows | rows | spoilt_rows, min_size=1, max_size=30)
logs = st.lists(files_of_rows, min_size=1, max_size=4)


def maybe(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


earlier, later = (
    st.integers(first, first + 10).map(lambda hour: f"2023-11-15T{hour:02}:00:00") for first in (0, 11)
)
sections = st.builds(
    lambda log_fields, windows, robots, others: {
        **others, "interactions": {"columns": NAMES, **log_fields}, "window": windows, "robots": robots,
        "max_bad_ratio": 1.0,
    },
    maybe(
        event_weights=st.sampled_from([{"view": 1.0, "buy": 4.0}, {"buy": 0.5}]), min_value=st.just(1.0),
        missing_value=st.just(2.0),
    ),
    maybe(since=earlier, until=later, days=st.sampled_from([0.25, 0.5]), max_events_per_user=st.integers(3, 6)),
    maybe(max_events=st.integers(8, 20), max_events_per_hour=st.integers(2, 5), max_repeats=st.integers(2, 4)),
    st.fixed_dictionaries(
        {"min_user_interactions": st.integers(3, 4), "min_item_interactions": st.integers(1, 3)},
        optional={
            "repeats": st.sampled_from(["first", "last", "sum", "max"]),
            "session_gap_s": st.sampled_from([1800.0, 4000.0]),
        },
    ),
)
many = partial(settings, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def write(folder: Path, files: list[list[Row]], file_format: str, *, first: int = 0) -> None:
    """One file per list of rows, in the order of their names; every column is text."""
    folder.mkdir(exist_ok=True)
    for number, records in enumerate(files, start=first):
        frame = pl.DataFrame([vars(row) for row in records], schema=dict.fromkeys(COLUMNS, pl.String))
        file = folder / f"log-{number}.{file_format}"
        {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[file_format](file)


def recipe_of(data: dict[str, Any], file_format: str) -> Recipe:
    log_section = {**data["interactions"], "format": file_format, "paths": [f"{{raw}}/log-*.{file_format}"]}
    tree = {"name": "laws", "data": {**data, "interactions": log_section}, "fusion": {"item_vector": "id"}}
    return validate_recipe(tree, "the recipe of a law")


def made(recipe: Recipe, folder: Path, workspace: Path | None = None, **options: Any) -> Dataset | None:
    """The Dataset, or None when nothing is left of the log."""
    try:
        return Dataset.open(ingest(recipe, folder, Workspace(str(workspace or folder / "work")), **options).uri)
    except EmptyResultError:
        return None


@contextmanager
def cut_small(*, piece_bytes: int, piece_rows: int, range_rows: int, part_rows: int) -> Iterator[None]:
    """Limits so small that a handful of rows becomes many pieces, ranges and parts."""
    with ExitStack() as stack:
        cut = partial(cut_pieces, piece_bytes=piece_bytes, piece_rows=piece_rows)
        stack.enter_context(mock.patch.object(ingest_module, "cut_pieces", cut))
        stack.enter_context(mock.patch.object(log, "RANGE_ROWS", range_rows))
        stack.enter_context(mock.patch.object(parts, "PART_ROWS", part_rows))
        yield


def events_of(dataset: Dataset) -> list[tuple[Any, ...]]:
    """Every event by the outside world's ids, in the Dataset's order."""
    frame = dataset.interactions
    users, items = dataset.users.ids(frame["user_row"]), dataset.items.ids(frame["item_row"])
    moments_s = frame["timestamp"].dt.epoch("s").to_list()
    sessions = frame["session"].to_list() if "session" in frame.columns else [None] * len(frame)
    return list(zip(
        users, items, moments_s, frame["value"].to_list(), frame["split"].cast(pl.String).to_list(), sessions,
        strict=True,
    ))


def check(dataset: Dataset | None, want: Expected, n_rows: int) -> None:
    if dataset is None:
        assert not want.events
        return
    told = [(e.user, e.item, e.second, e.value, e.session) for e in want.events]
    assert events_of(dataset) == [
        (*event[:4], split, event[4]) for event, split in zip(told, splits(want.events), strict=True)
    ]
    assert list(dataset.users) == sorted({e.user for e in want.events}, key=str.encode)
    assert list(dataset.items) == sorted({e.item for e in want.events}, key=str.encode)
    bad = dataset.quarantine.select("file", "position", "reason").rows()
    assert bad == [(f"log-{number}.{bad[0][0].rpartition('.')[2]}", *at) for number, *at in want.quarantined]
    law = dataset.artifact.manifest.metrics
    dropped = {name: count for name, count in law["rows_dropped_by_filter"].items() if count}
    assert dropped == {name: count for name, count in want.dropped.items() if count}
    assert law["rows_read"] == n_rows
    assert law["rows_read"] == law["rows_kept"] + law["rows_quarantined"] + sum(dropped.values())


@many(max_examples=60)
@given(files=logs, data=sections, file_format=st.sampled_from(FORMATS))
def test_every_row_ends_where_a_program_without_tricks_puts_it(files, data, file_format):
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), files, file_format)
        dataset = made(recipe_of(data, file_format), Path(folder))
        check(dataset, expected(files, data), sum(map(len, files)))


cuts = st.fixed_dictionaries({
    "piece_bytes": st.integers(40, 400), "piece_rows": st.integers(1, 20), "range_rows": st.integers(1, 30),
    "part_rows": st.integers(1, 30),
})


@many(max_examples=40)
@given(files=logs, data=sections, file_format=st.sampled_from(FORMATS), limits=cuts)
def test_pieces_ranges_and_parts_cannot_be_seen_in_the_result(files, data, file_format, limits):
    with tempfile.TemporaryDirectory() as name:
        folder, recipe = Path(name), recipe_of(data, file_format)
        write(folder, files, file_format)
        with cut_small(**limits):
            check(made(recipe, folder), expected(files, data), sum(map(len, files)))


@many(max_examples=25)
@given(files=logs, data=sections, limits=cuts, others=cuts)
def test_ranges_and_pieces_change_no_byte_of_the_dataset(files, data, limits, others):
    with tempfile.TemporaryDirectory() as name:
        folder, recipe = Path(name), recipe_of(data, "jsonl")
        write(folder, files, "jsonl")
        with cut_small(**limits):
            one = made(recipe, folder)
        with cut_small(**{**others, "part_rows": limits["part_rows"]}):
            other = made(recipe, folder, folder / "other")
        assert contents(one) == contents(other)


def contents(dataset: Dataset | None) -> dict[str, str] | None:
    return None if dataset is None else {
        name: entry.sha256 for name, entry in dataset.artifact.manifest.files.items()
    }


@many(max_examples=30)
@given(files=st.lists(files_of_rows, min_size=2, max_size=5), data=sections, file_format=st.sampled_from(FORMATS),
       limits=cuts, first=st.integers(1, 4))
def test_days_that_come_later_give_what_all_at_once_gives_and_ids_keep_their_rows(
    files, data, file_format, limits, first
):
    with tempfile.TemporaryDirectory() as name, cut_small(**limits):
        folder, recipe = Path(name), recipe_of(data, file_format)
        days = [files[:first], *([file] for file in files[first:])]
        there, before = 0, None
        for day in days:
            write(folder, day, file_format, first=there)
            there += len(day)
            now = made(recipe, folder, extend=True)
            check_rows_stay(before, now)
            before = now or before
        whole = made(recipe, folder, folder / "whole")
        assert now is None if whole is None else told(now) == told(whole)


def check_rows_stay(before: Dataset | None, now: Dataset | None) -> None:
    if before is not None and now is not None:
        assert list(now.users)[: len(before.users)] == list(before.users)
        assert list(now.items)[: len(before.items)] == list(before.items)


def told(dataset: Dataset) -> tuple[Any, ...]:
    """All that a Dataset says, but for the rows of ids."""
    law = dataset.artifact.manifest.metrics
    counts = {name: count for name, count in law.items() if name.startswith("rows_")}
    users: dict[str, list[Any]] = {}
    for event in events_of(dataset):
        users.setdefault(event[0], []).append(event)
    return users, dataset.quarantine.rows(), counts


def test_neither_ray_nor_the_number_of_blocks_can_be_seen_in_the_result(tmp_path, ray_session):
    data = {
        "interactions": {"columns": NAMES}, "min_user_interactions": 3, "min_item_interactions": 2,
        "max_bad_ratio": 1.0, "session_gap_s": 3600.0,
    }
    files = [
        [Row(f"u{(7 * n + 3 * day) % 11}", f"i{n * n % 13}", str(START + 600 * n + 86400 * day)) for n in range(60)]
        for day in range(3)
    ]
    write(tmp_path, files, "csv")
    recipe = recipe_of(data, "csv")
    with cut_small(piece_bytes=600, piece_rows=20, range_rows=25, part_rows=30):
        here = made(recipe, tmp_path)
        for blocks in (None, 1, 3):
            there = made(recipe, tmp_path, tmp_path / f"work-{blocks}", use_ray=True, num_blocks=blocks)
            assert contents(there) == contents(here)
            assert there.id == here.id
    check(here, expected(files, data), 180)
