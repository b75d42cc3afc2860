"""Popularity over time and items met together: hand-made histories, and the same by loops whatever the parts."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.artifact import Workspace
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.data.aggregates import cut_pairs, merge_pairs, merge_popularity, part_popularity, write_pairs
from tests.boards import board_recipe, write_board

MONDAY = datetime(2024, 3, 4, tzinfo=UTC)
SPLITS = ("train", "validation", "test")


def part(*users: list[int], first_user: int = 0, held_out: int = 0) -> pl.DataFrame:
    """Histories of item rows, an event a day; the newest `held_out` of each are no train events."""
    rows = [
        (first_user + number, item, MONDAY + timedelta(days=day), "train" if day < len(own) - held_out else "test")
        for number, own in enumerate(users) for day, item in enumerate(own)
    ]
    columns = ("user_row", "item_row", "timestamp", "split")
    types = (pl.Int64, pl.Int64, pl.Datetime("us", "UTC"), pl.Enum(SPLITS))
    return pl.DataFrame(rows, schema=dict(zip(columns, types, strict=True)), orient="row")


def together(parts: list[pl.DataFrame], *, within: int, top: int, starts: list[int]) -> pl.DataFrame:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, frame in enumerate(parts):
            write_pairs(frame, within, starts, folder, f"part-{number:05}")
        return pl.concat([merge_pairs(number, folder, top) for number in range(len(starts))])


def test_popularity_counts_train_events_per_period_since_1970():
    frame = part([3, 5, 3], [3, 5, 5], held_out=1)
    weekly = part_popularity(frame, 7.0)
    thursday = datetime(2024, 2, 29, tzinfo=UTC)
    assert weekly.rows() == [(3, thursday, 2), (5, thursday, 2)]
    daily = part_popularity(frame, 1.0)
    assert daily.rows() == [(3, MONDAY, 2), (5, MONDAY + timedelta(days=1), 2)]
    assert daily.schema == {"item_row": pl.Int64, "period_start": pl.Datetime("us", "UTC"), "events": pl.Int64}
    assert part_popularity(frame, 0.25).height == 2


def test_popularity_of_nothing_has_its_columns():
    assert merge_popularity([]).schema == part_popularity(part(), 7.0).schema


def test_popularity_of_many_parts_is_added_up_for_some_items_at_a_time(monkeypatch):
    parts = [part_popularity(part([0, 1, 2], [number % 3, 3]), 1.0) for number in range(20)]
    whole = merge_popularity(iter(parts))
    assert whole["events"].to_list() == [27, 7, 20, 6, 20, 20]
    monkeypatch.setattr("llmrec_ray.data.aggregates.CELLS", 4)
    assert merge_popularity(iter(parts)).equals(whole)


def test_items_are_met_together_within_so_many_steps_of_a_train_history():
    parts = [part([0, 1, 2, 3], [1, 0, 9], held_out=1)]
    assert together(parts, within=1, top=9, starts=[0]).rows() == [(0, 1, 2), (1, 0, 2), (1, 2, 1), (2, 1, 1)]
    assert together(parts, within=2, top=9, starts=[0]).rows() == [
        (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 1), (2, 0, 1), (2, 1, 1)
    ]


def test_the_most_frequent_companions_stay_and_of_equal_ones_the_first_by_row():
    parts = [part([0, 3], [0, 2], [0, 2], [0, 1])]
    assert together(parts, within=5, top=2, starts=[0, 1]).rows() == [
        (0, 2, 2), (0, 1, 1), (1, 0, 1), (2, 0, 2), (3, 0, 1)
    ]


def test_ranges_of_items_have_about_equally_many_pairs():
    starts = cut_pairs(np.full(1000, 2_000), within=5)
    assert starts == [0, 200, 400, 600, 800]
    assert cut_pairs(np.array([0, 1, 2, 3]), within=5) == [0]
    assert cut_pairs(np.array([9_000_000, 0, 1, 9_000_000]), within=5) == [0, 3]


histories = st.lists(st.lists(st.integers(0, 7), max_size=7, unique=True), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(histories, st.sets(st.integers(1, 5)), st.sets(st.integers(1, 7)), st.integers(1, 6), st.integers(1, 4))
def test_neither_parts_nor_ranges_change_what_loops_find(users, cuts, starts, within, top):
    edges = [0, *sorted(cuts), max(6, len(users))]
    parts = [part(*users[a:b], first_user=a, held_out=1) for a, b in itertools.pairwise(edges)]
    counts: Counter[tuple[int, int]] = Counter()
    events: Counter[tuple[int, datetime]] = Counter()
    for own in users:
        train = own[:-1]
        events.update((item, MONDAY + timedelta(days=day)) for day, item in enumerate(train))
        counts.update(
            (one, other) for a, one in enumerate(train) for b, other in enumerate(train) if 0 < abs(a - b) <= within
        )
    wanted = [
        (item, other, counts[item, other]) for item in range(8)
        for other in sorted((b for a, b in counts if a == item), key=lambda row: (-counts[item, row], row))[:top]
    ]
    assert together(parts, within=within, top=top, starts=[0, *sorted(starts)]).rows() == wanted
    found = merge_popularity([part_popularity(frame, 1.0) for frame in parts])
    assert found.rows() == sorted((*key, count) for key, count in events.items())


def test_many_steps_are_counted_in_several_files_alike(monkeypatch):
    parts = [part([0, 1, 2, 3, 4], [4, 2, 0, 1])]
    whole = together(parts, within=4, top=9, starts=[0, 2])
    monkeypatch.setattr("llmrec_ray.data.aggregates.PAIRS_AT_ONCE", 20)
    assert together(parts, within=4, top=9, starts=[0, 2]).equals(whole)


def made(folder: Path, **data: object) -> Dataset:
    recipe = board_recipe(folder, data=data)
    return Dataset.open(ingest(recipe, folder, Workspace(str(folder / "work"))).uri)


def test_a_dataset_keeps_popularity_and_companions_of_its_train_split(tmp_path):
    write_board(tmp_path)
    dataset = made(tmp_path, cooccurrence={"within": 2, "top": 3}, popularity_days=0.01)
    events = dataset.interactions
    assert dataset.popularity_over_time.equals(part_popularity(events, 0.01))
    assert dataset.popularity_over_time["events"].sum() == len(dataset.histories("train").item_rows) == 40 * 18
    assert dataset.cooccurrence.equals(together([events], within=2, top=3, starts=[0]))
    assert dataset.cooccurrence["item_row"].value_counts()["count"].max() == 3
    colours = dataset.item_attributes["colour"].to_numpy()
    same = colours[dataset.cooccurrence["item_row"].to_numpy()] == colours[dataset.cooccurrence["other_row"].to_numpy()]
    assert same.all()


def test_without_the_section_there_are_no_companions(tmp_path):
    write_board(tmp_path)
    dataset = made(tmp_path)
    assert dataset.cooccurrence.is_empty()
    assert dataset.cooccurrence.columns == ["item_row", "other_row", "count"]
    assert not (dataset.artifact.path / "cooccurrence").exists()
    (dataset.artifact.path / "popularity.parquet").unlink()
    assert Dataset(dataset.artifact).popularity_over_time.schema == part_popularity(part(), 7.0).schema
