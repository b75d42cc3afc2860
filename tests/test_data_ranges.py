"""Ranges of users, rows for ids, parts and the k-core: wherever ranges are cut, what comes of all of them is the same.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.data.kcore import ItemCounts, drop_items, drop_rare_users
from llmrec_ray.data.parts import plan_parts
from llmrec_ray.data.ranges import choose_splitters, read_fragment, read_range, write_fragment
from llmrec_ray.data.rows import number_ids
from llmrec_ray.data.scratch import scratch_folder

IDS = st.text("abcä€😀", min_size=1, max_size=3)


def events_of(users: list[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {"user_id": users, "item_id": [f"i{n}" for n in range(len(users))], "number": range(len(users))},
        schema={"user_id": pl.String, "item_id": pl.String, "number": pl.Int64},
    )


@given(st.lists(IDS, min_size=1, max_size=30), st.lists(IDS, unique=True, max_size=4), st.integers(0, 30))
@settings(deadline=None, max_examples=60)
def test_a_range_gives_back_all_events_of_its_users_in_the_order_of_the_log(tmp_path_factory, users, cuts, half):
    folder = tmp_path_factory.mktemp("fragments")
    splitters = pl.Series(cuts, dtype=pl.String).sort().to_list()
    events = events_of(users)
    paths = [folder / "a.arrow", folder / "b.arrow"]
    for path, share in zip(paths, (events[:half], events[half:]), strict=True):
        write_fragment(share, splitters, path)
    ranges = [pl.DataFrame(pl.from_arrow(read_range(paths, number))) for number in range(len(splitters) + 1)]
    for number, found in enumerate(ranges):
        assert found["number"].is_sorted()
        inside = [sum(cut.encode() <= user.encode() for cut in splitters) for user in found["user_id"]]
        assert set(inside) <= {number}
    assert pl.concat(ranges).sort("number").equals(events)
    assert sorted(n for path in paths for n in read_fragment(path)["number"]) == list(range(len(users)))


def test_splitters_cut_a_skewed_sample_into_equal_ranges_and_a_heavy_user_is_never_cut():
    sample = pl.Series(["heavy"] * 700 + [f"u{n:03}" for n in range(300)])
    splitters = choose_splitters(sample, 10)
    assert splitters == sorted(set(splitters))
    assert splitters[0] == "heavy"
    assert len(splitters) <= 9
    assert choose_splitters(pl.Series([], dtype=pl.String), 5) == choose_splitters(sample, 1) == []


def test_rows_follow_the_order_of_ids_and_those_given_before_stay():
    fresh, rows = number_ids([pl.Series(["a", "c"]), pl.Series(["d"])], pl.Series([], dtype=pl.String))
    assert (fresh.to_list(), [run.tolist() for run in rows]) == (["a", "c", "d"], [[0, 1], [2]])
    later, rows = number_ids([pl.Series(["a", "b"]), pl.Series(["d", "e"])], fresh)
    assert (later.to_list(), [run.tolist() for run in rows]) == (["a", "c", "d", "b", "e"], [[0, 3], [2, 4]])
    none, rows = number_ids([], pl.Series([], dtype=pl.String))
    assert (none.to_list(), rows) == ([], [])


PAIRS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60)


def peeled(pairs: list[tuple[int, int]], n_ranges: int, min_user: int, min_item: int) -> list[tuple[int, int]]:
    """The k-core by rounds over ranges, as ingest runs them."""
    ranges = [np.array([p for p in pairs if p[0] % n_ranges == n] or np.empty((0, 2)), int) for n in range(n_ranges)]
    alive = [drop_rare_users(part[:, 0], np.ones(len(part), bool), 8, min_user) for part in ranges]
    counts = sum(np.bincount(part[kept, 1], minlength=8) for part, kept in zip(ranges, alive, strict=True))
    items = ItemCounts(counts.astype(np.int64), min_item)
    while (dead := items.newly_rare()).any():
        for n, part in enumerate(ranges):
            left = drop_items(part[:, 1], alive[n], dead)
            alive[n] = drop_rare_users(part[:, 0], left, 8, min_user)
            items.lost(*np.unique(part[left & ~alive[n], 1], return_counts=True))
        items.counts[dead] = 0
    kept = [tuple(row) for part, mask in zip(ranges, alive, strict=True) for row in part[mask].tolist()]
    counted = Counter(item for _, item in kept)
    assert items.counts.tolist() == [counted[item] for item in range(8)]
    return sorted(kept)


@given(PAIRS, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
@settings(deadline=None)
def test_peeling_in_rounds_reaches_the_fixpoint_whatever_the_ranges(pairs, n_ranges, min_user, min_item):
    core = list(pairs)
    while True:
        users, items = Counter(u for u, _ in core), Counter(i for _, i in core)
        left = [(u, i) for u, i in core if users[u] >= min_user and items[i] >= min_item]
        if left == core:
            break
        core = left
    assert peeled(pairs, n_ranges, min_user, min_item) == sorted(core)


@given(st.lists(st.integers(0, 2_500_000), max_size=30))
@settings(deadline=None)
def test_parts_hold_whole_users_and_follow_from_the_counts_alone(counts):
    plans = plan_parts(np.array(counts, np.int64), [])
    bounds = [(plan.start, plan.stop) for plan in plans]
    assert [plan.number for plan in plans] == list(range(len(plans)))
    assert bounds[0][0] == 0 and bounds[-1][1] == len(counts)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))
    assert all(sum(counts[start : stop - 1]) <= 1_000_000 for start, stop in bounds if stop > start)


def test_scratch_is_gone_after_the_run_with_the_folders_that_were_made_for_it(tmp_path: Path):
    with scratch_folder(tmp_path / "work" / "scratch") as folder:
        (folder / "file").write_text("data")
    assert not (tmp_path / "work").exists()
    (tmp_path / "work").mkdir()
    with pytest.raises(RuntimeError), scratch_folder(tmp_path / "work" / "scratch"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
