"""Splits: laws that hold for any log, hand-made logs with known answers, and the text of every refusal."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import DataConfig, load_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.data.splits import SplitCounts, SplitPlan, TimeCuts, count_times, item_fold, plan_splits
from llmrec_ray.errors import ConfigError, DataError
from tests.boards import board_recipe, write_board

START = datetime(2024, 3, 1, tzinfo=UTC)
FOLD_OF = {item: int(hashlib.sha256(f"i{item}".encode()).hexdigest(), 16) % 10 for item in range(60)}
COLD = next(item for item, fold in FOLD_OF.items() if fold == 0)
MOMENTS = st.integers(0, 7_258_118_399_999_999) | st.integers(10**15, 10**15 + 9)
UNSEEN = next(item for item, fold in FOLD_OF.items() if fold == 1)
WARM = [item for item, fold in FOLD_OF.items() if fold > 1]


unhurried = settings(max_examples=50, deadline=None)


def events(*users: list[tuple[int, float]]) -> pl.DataFrame:
    """One frame in the order that splits expect; a user is a list of (item, hour)."""
    rows = [(row, f"i{item}", START + timedelta(hours=hour)) for row, user in enumerate(users) for item, hour in user]
    schema = {"user_row": pl.Int64, "item_id": pl.String, "timestamp": pl.Datetime("us", "UTC")}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.with_columns(item_row=pl.col("item_id").rank("dense").cast(pl.Int64) - 1)


def moments_us(frame: pl.DataFrame) -> np.ndarray:
    return frame["timestamp"].dt.epoch("us").to_numpy()


def found_cuts(parts: list[pl.DataFrame], validation: float, test: float) -> tuple[datetime, datetime]:
    cuts = TimeCuts(sum(len(part) for part in parts), validation, test)
    rounds = 0
    while not cuts.done:
        edges, rounds = cuts.edges(), rounds + 1
        for part in parts:
            cuts.add(count_times(moments_us(part), edges))
    assert rounds <= 5
    return cuts.cuts


def plan_for(parts: list[pl.DataFrame], **data: object) -> SplitPlan:
    config = DataConfig.model_validate({"interactions": {"paths": ["log"]}} | data)
    cuts = found_cuts(parts, *config.time_shares) if config.split == "global_time" else None
    return plan_splits(config, pl.concat(parts)["item_id"].unique().sort().to_list(), cuts)


def split(frame: pl.DataFrame, **data: object) -> pl.DataFrame:
    """The frame marked as a log of its own; raises DataError when the split does not fit."""
    plan = plan_for([frame], **data)
    marked = plan.mark(frame)
    plan.check(plan.count(marked))
    return marked


def leave_one_out(frame: pl.DataFrame) -> pl.DataFrame:
    return split(frame)


def cold_items(frame: pl.DataFrame, fold: int) -> pl.DataFrame:
    return split(frame, split="cold_items", cold_fold=fold)


def global_time(frame: pl.DataFrame, *shares: float) -> pl.DataFrame:
    return split(frame, split="global_time", time_shares=shares)


def splits(frame: pl.DataFrame) -> list[list[str]]:
    return frame.group_by("user_row", maintain_order=True).agg("split")["split"].to_list()


@st.composite
def logs(draw, least: int = 1):
    """Users with distinct items at whole hours, oldest first; several events may share an hour."""
    users = []
    for _ in range(draw(st.integers(1, 6))):
        items = draw(st.lists(st.integers(0, 59), min_size=least, max_size=9, unique=True))
        hours = sorted(draw(st.lists(st.integers(0, 30), min_size=len(items), max_size=len(items))))
        users.append(list(zip(items, hours, strict=True)))
    return events(*users)


@unhurried
@given(logs(least=3))
def test_leave_one_out_holds_out_the_last_two_events_of_everybody(log):
    for own in splits(leave_one_out(log)):
        assert own == ["train"] * (len(own) - 2) + ["validation", "test"]


@unhurried
@given(logs(), st.sampled_from([0, 2, 5]))
def test_cold_items_hold_out_whole_items_and_split_the_rest_as_without_them(log, fold):
    try:
        marked = cold_items(log, fold)
    except DataError:
        assume(False)
    assert marked.drop("split").equals(log)
    folds = marked["item_id"].map_elements(item_fold, return_dtype=pl.Int64)
    assert ((marked["split"] == "cold_test") == (folds == fold)).all()
    assert ((marked["split"] == "cold_validation") == (folds == 1)).all()
    rest = marked.filter(~pl.col("split").cast(pl.String).str.starts_with("cold_"))
    for own in splits(rest):
        assert own == (["train"] * (len(own) - 2) + ["validation", "test"] if len(own) > 2 else ["train"] * len(own))


@unhurried
@given(logs(), st.sampled_from([(0.1, 0.1), (0.3, 0.2), (0.2, 0.4)]))
def test_global_time_never_puts_an_event_before_one_of_an_earlier_split(log, shares):
    try:
        marked = global_time(log, *shares)
    except DataError:
        assume(False)
    train, validation, test = (
        marked.filter(pl.col("split") == name)["timestamp"] for name in ("train", "validation", "test")
    )
    assert train.max() < validation.min() <= validation.max() < test.min()
    assert len(test) <= shares[1] * len(log) + 1e-9
    assert len(validation) + len(test) <= sum(shares) * len(log) + 1e-9


def test_global_time_takes_the_newest_shares_of_all_events():
    hours = [[(item, 2 * item + user) for item in range(5)] for user in range(2)]
    marked = global_time(events(*hours), 0.2, 0.1)
    assert splits(marked) == [["train"] * 4 + ["validation"], ["train"] * 3 + ["validation", "test"]]


def test_of_events_of_one_moment_the_order_of_the_log_decides():
    log = events([(3, 5), (1, 5), (2, 5)])
    assert splits(leave_one_out(log)) == [["train", "validation", "test"]]


def test_a_fold_is_the_hash_of_the_id_modulo_ten():
    assert item_fold("242") == int(hashlib.sha256(b"242").hexdigest(), 16) % 10
    assert {item_fold(f"i{item}") for item in range(60)} == set(range(10))


def test_the_recipe_names_the_split():
    frame = events([(COLD, 0), (UNSEEN, 1), *((item, 2 + item) for item in WARM[:4])])
    assert splits(split(frame)) == [["train"] * 4 + ["validation", "test"]]
    assert splits(cold_items(frame, 0)) == [["cold_test", "cold_validation", "train", "train", "validation", "test"]]
    assert splits(global_time(frame, 0.3, 0.2)) == [["train"] * 3 + ["validation"] * 2 + ["test"]]


@unhurried
@given(logs(), st.sampled_from(["leave_one_out", "cold_items", "global_time"]), st.lists(st.integers(1, 5), max_size=3))
def test_users_are_split_apart_as_they_are_together(log, name, cuts):
    edges = sorted({0, *cuts, 6})
    users = pl.col("user_row")
    parts = [log.filter((users >= start) & (users < stop)) for start, stop in pairwise(edges)]
    plan = plan_for(parts, split=name)
    marked = [plan.mark(part) for part in parts]
    together = plan.mark(log)
    assert pl.concat(marked).equals(together)
    assert reduce(add, map(plan.count, marked), SplitCounts()) == plan.count(together)


@unhurried
@given(st.lists(st.lists(MOMENTS, max_size=20), max_size=5), st.sampled_from([(0.1, 0.1), (0.3, 0.2), (0.45, 0.45)]))
def test_cuts_are_exact_to_the_microsecond_whatever_the_parts(parts, shares):
    moments = sorted(moment for part in parts for moment in part)
    assume(moments)
    newest = [int(len(moments) * share + 1e-9) for share in (sum(shares), shares[1])]
    wanted = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=moments[-1 - number]) for number in newest]
    frames = [pl.DataFrame({"timestamp": pl.Series(part, dtype=pl.Datetime("us", "UTC"))}) for part in parts]
    assert list(found_cuts(frames, *shares)) == wanted


def test_cuts_cannot_be_had_before_every_event_was_counted():
    cuts = TimeCuts(3, 0.1, 0.1)
    cuts.add(count_times(np.array([5, 6]), cuts.edges()))
    assert not cuts.done
    with pytest.raises(AssertionError, match="A round did not count every event once"):
        cuts.edges()
    with pytest.raises(AssertionError, match="asked for before they were known"):
        _ = cuts.cuts


def refusal(cut, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        cut(*arguments)
    return str(caught.value)


def test_one_event_per_user_leaves_nothing_out():
    assert refusal(leave_one_out, events([(1, 1)], [(2, 2)])) == (
        "A user has only 1 events, but data.split leave_one_out needs 3 (train, validation, test): raise "
        "data.min_user_interactions to 3 or more."
    )


def test_a_fold_without_an_item_is_named():
    assert refusal(cold_items, events([(item, item) for item in (*WARM[:3], UNSEEN)]), 0) == (
        "None of the 4 items with events is in fold 0 of 10, which data.split cold_items holds out as cold_test: "
        "choose another data.cold_fold, or give more items."
    )
    assert "is in fold 1 of 10, which data.split cold_items holds out as cold_validation" in refusal(
        cold_items, events([(item, item) for item in (*WARM[:3], COLD)]), 0
    )


def test_cold_items_without_three_other_events_of_anybody_are_refused():
    assert refusal(cold_items, events([(COLD, 0), (UNSEEN, 1), (WARM[0], 2), (WARM[1], 3)]), 0) == (
        "No user has 3 events of items outside the held-out folds, so data.split cold_items leaves no validation or "
        "test event: give longer histories."
    )


def test_a_log_of_one_moment_has_no_time_to_split_by():
    assert refusal(global_time, events([(item, 7) for item in range(20)]), 0.1, 0.1) == (
        "data.split global_time with data.time_shares 0.1 and 0.1 leaves validation and test without an event: 20 of "
        "20 events happened at 2024-03-01T07:00:00Z, where it cuts. Give events with times, other data.time_shares, or "
        "set data.split to leave_one_out."
    )


def test_nobody_with_a_past_is_nothing_to_predict_from():
    assert refusal(global_time, events(*[[(user, user)] for user in range(10)]), 0.1, 0.1) == (
        "None of the 1 users with an event in validation has an earlier one, so data.split global_time has nothing to "
        "predict from: give users with longer histories, or other data.time_shares."
    )


@pytest.mark.parametrize(("overrides", "message"), [
    (["data.cold_fold=2"], "cold_fold is 2, but it has no effect with split leave_one_out: set data.split"),
    (["data.split=cold_items", "data.cold_fold=1"], "which is the fold that settings are chosen on: set"),
    (["data.split=cold_items", "data.cold_fold=10"], "data.cold_fold: Input should be less than 10 (got 10)"),
    (["data.time_shares=[0.2, 0.1]"], "has no effect with split leave_one_out: set data.split to global_time"),
    (["data.split=global_time", "data.time_shares=[0.7, 0.4]"], "add up to 1.1, so that nothing is left to train on"),
])
def test_a_split_that_cannot_work_is_refused_at_load_time(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe("movielens-100k", overrides=overrides)
    assert message in str(caught.value)


def test_few_events_per_user_suit_the_other_splits():
    recipe = load_recipe("movielens-100k", overrides=["data.split=global_time", "data.min_user_interactions=1"])
    assert recipe.data.time_shares == (0.1, 0.1)


@pytest.fixture(scope="module")
def board(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("splits")
    write_board(folder)
    pl.DataFrame({"who": [f"u{u:03}" for u in range(39)], "age": range(39), "club": ["chess"] * 39}).write_csv(
        folder / "people.csv"
    )
    return folder


def made(board: Path, **data: object) -> Dataset:
    recipe = board_recipe(board)
    users = {"paths": [str(board / "people.csv")], "format": "csv", "id": "who", "template": "{age}",
             "attributes": ["age", "club"]}
    tree = recipe.model_dump(mode="json")
    changed = type(recipe).model_validate(tree | {"data": tree["data"] | {"users": users} | data})
    return Dataset.open(ingest(changed, board, Workspace(str(board / "work")), use_ray=False).uri)


def test_a_dataset_of_cold_items_gives_pairs_and_histories_without_them(board):
    dataset = made(board, split="cold_items", cold_fold=2)
    assert dataset.split == "cold_items"
    folds = np.array([item_fold(item_id) for item_id in dataset.items])
    for split, fold in (("test", 2), ("validation", 1)):
        users, items = dataset.cold_pairs(split)
        assert users.dtype == items.dtype == np.int64
        assert set(folds[items]) == {fold}
        assert len(users) == (folds[dataset.histories("test").item_rows] == fold).sum()
        assert (np.diff(users) >= 0).all()
        warm = dataset.cold_histories(split)
        assert not np.isin(folds[warm.item_rows], (1, 2)).any()
    assert np.array_equal(dataset.cold_histories("validation").item_rows, dataset.histories("train").item_rows)
    known = dataset.cold_histories("test")
    for user in range(len(dataset.users)):
        assert known[user].tolist() == [i for i in dataset.histories("test")[user] if folds[i] not in (1, 2)]
        assert known[user][-2:].tolist() == [dataset.targets("validation")[user], dataset.targets("test")[user]]


def test_other_splits_have_no_cold_pairs(board):
    dataset = made(board)
    assert dataset.split == "leave_one_out"
    assert [len(rows) for rows in dataset.cold_pairs("test")] == [0, 0]


def test_times_stand_beside_the_histories_and_targets(board):
    dataset = made(board)
    for split in ("train", "validation", "test"):
        assert len(dataset.history_times(split)) == len(dataset.histories(split).item_rows)
    times = dataset.history_times("test").reshape(40, 20)
    assert (np.diff(times, axis=1) == 60).all()
    assert dataset.target_times("test").tolist() == times[:, -1].tolist() == [1_000_000 + 60 * 19] * 40
    assert dataset.target_times("validation").dtype == np.int64


def write_staggered(folder: Path) -> Path:
    """Five early users of ten events at hours 0 to 9, one who comes at hour 8, and one who left at hour 3."""
    folder.mkdir()
    rows = [(f"u{user}", f"i{hour}", hour) for user in range(5) for hour in range(10)]
    rows += [("u5", f"i{hour}", hour) for hour in (8, 9)] + [("u6", f"i{hour}", hour) for hour in range(4)]
    frame = pl.DataFrame(rows, schema=["who", "what", "hour"], orient="row")
    frame.select("who", "what", when=1_000_000 + 3600 * pl.col("hour")).write_csv(folder / "log.csv")
    return folder


def test_a_global_time_target_is_the_first_event_of_its_window_and_some_have_none(tmp_path):
    board = write_staggered(tmp_path / "staggered")
    recipe = board_recipe(board, data={
        "interactions": board_recipe(board).data.interactions[0].model_dump(mode="json"), "items": None,
        "split": "global_time", "time_shares": (0.25, 0.25), "min_user_interactions": 1,
    }, fusion={"item_vector": "id"})
    dataset = Dataset.open(ingest(recipe, board, Workspace(str(tmp_path / "work")), use_ray=False).uri)
    assert dataset.items.ids(dataset.targets("validation")[:5]) == ["i5"] * 5
    assert dataset.items.ids(dataset.targets("test")[:6]) == ["i8"] * 6
    assert dataset.targets("validation")[5:].tolist() == [-1, -1]
    assert dataset.targets("test")[6] == -1
    assert dataset.target_times("test")[5:].tolist() == [1_000_000 + 3600 * 8, -1]
    known = dataset.histories("validation")
    assert dataset.items.ids(known[0]) == [f"i{hour}" for hour in range(8)]
    assert known.lengths[5:].tolist() == [0, 4]
    assert dataset.histories("test").lengths.tolist() == [10] * 5 + [2, 4]


def test_what_the_recipe_keeps_of_users_stands_in_row_order(board):
    attributes = made(board).user_attributes
    assert attributes.columns == ["age", "club"]
    assert attributes["age"].to_list() == [*range(39), None]
