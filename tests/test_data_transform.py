"""Transformations: each rule on events written by hand, all of them against a plain loop over generated ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import DataConfig, validate_recipe
from llmrec_ray.config.data import RobotRules
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.data.transform import Transformed, transform

START = datetime(2024, 3, 1, tzinfo=UTC)
TYPES = {
    "user_id": pl.String, "item_id": pl.String, "timestamp": pl.Datetime("us", "UTC"), "value": pl.Float32,
    "event_id": pl.String, "session": pl.String, "place": pl.Int64,
}


def log(*rows: tuple[str, str, float], **more: list[object]) -> pl.DataFrame:
    """Events (user, item, minute) in the order of the log, of value 1, with their place in it."""
    columns = {
        "user_id": [row[0] for row in rows], "item_id": [row[1] for row in rows],
        "timestamp": [START + timedelta(minutes=row[2]) for row in rows], "value": [1.0] * len(rows),
    } | more | {"place": list(range(len(rows)))}
    return pl.DataFrame(columns, schema={name: dtype for name, dtype in TYPES.items() if name in columns})


def config(columns: dict[str, object] | None = None, **data: object) -> DataConfig:
    return DataConfig.model_validate({"interactions": {"paths": ["log"], "columns": columns or {}}} | data)


def done(events: pl.DataFrame, columns: dict[str, object] | None = None, **data: object) -> Transformed:
    return transform(events, config(columns, **data), events["timestamp"].max())


def places(result: Transformed) -> list[int]:
    return result.events["place"].to_list()


def test_events_come_sorted_by_user_then_time_and_equal_times_as_in_the_log():
    events = log(("b", "x", 2), ("a", "y", 5), ("b", "z", 1), ("a", "x", 5), ("a", "z", 0), ("10", "x", 9))
    result = done(events)
    assert places(result) == [5, 4, 1, 3, 2, 0]
    assert result.events.equals(events[[5, 4, 1, 3, 2, 0]])
    assert result.dropped == {"repeated_pair": 0}


def test_of_a_repeated_pair_the_first_stays_or_the_last():
    events = log(("a", "x", 3), ("a", "y", 4), ("a", "x", 1), ("b", "x", 2), ("a", "x", 3))
    assert places(done(events)) == [2, 1, 3]
    assert places(done(events, repeats="last")) == [4, 1, 3]
    assert done(events).dropped == {"repeated_pair": 2}


def test_values_of_a_repeated_pair_are_added_or_the_greatest_stays_at_the_time_of_the_first():
    events = log(
        ("b", "y", 3), ("a", "y", 4), ("a", "x", 1), ("b", "y", 2), ("a", "y", 0), value=[1.5, 2.0, 4.0, 0.25, 0.5]
    )
    for repeats, values in (("sum", [2.5, 4.0, 1.75]), ("max", [2.0, 4.0, 1.5])):
        result = done(events, repeats=repeats)
        assert places(result) == [4, 2, 3]
        assert result.events["value"].to_list() == values
        assert result.events.schema["value"] == pl.Float32


def test_only_what_lies_within_the_window_counts():
    events = log(("a", "v", 0), ("a", "w", 1), ("a", "x", 2), ("a", "y", 3), ("a", "z", 4))
    since, until = (START + timedelta(minutes=minutes) for minutes in (1, 4))
    assert places(done(events, window={"since": since})) == [1, 2, 3, 4]
    assert places(done(events, window={"since": since, "until": until})) == [1, 2, 3]
    both = done(events, window={"since": since, "until": until, "days": 2 / 1440})
    assert places(both) == [2, 3]
    assert both.dropped == {"outside_window": 3, "repeated_pair": 0}


def test_days_count_back_from_the_newest_event_of_the_whole_log():
    events = log(("a", "v", 0), ("a", "w", 1440), ("a", "x", 2880))
    assert places(done(events, window={"days": 1})) == [1, 2]
    later = transform(events, config(window={"days": 1}), START + timedelta(days=3))
    assert places(later) == [2]


def test_the_same_id_of_an_event_counts_once_per_user_and_the_log_has_it_first():
    events = log(
        ("a", "x", 5), ("a", "y", 4), ("b", "x", 3), ("a", "z", 2), ("a", "z", 1), ("a", "w", 0),
        event_id=["1", "1", "1", None, None, "2"],
    )
    result = done(events, {"event_id": "id"})
    assert places(result) == [5, 4, 0, 2]
    assert result.dropped == {"repeated_event": 1, "repeated_pair": 1}
    assert places(done(events, feedback=["events"])) == [5, 4, 0, 2]
    assert done(events.drop("event_id"), feedback=["events"]).dropped["repeated_event"] == 0


def test_users_with_too_many_events_are_robots():
    events = log(("a", "x", 0), ("b", "x", 0), ("a", "y", 1), ("b", "y", 0), ("a", "z", 2))
    result = done(events, robots={"max_events": 2})
    assert places(result) == [1, 3]
    assert result.dropped == {"robot_user": 3, "repeated_pair": 0}


def test_an_hour_ends_before_its_last_second_is_over():
    events = log(*((user, f"i{n}", n * minutes) for user, minutes in (("a", 30), ("b", 29.99)) for n in range(3)))
    assert places(done(events, robots={"max_events_per_hour": 2})) == [0, 1, 2]
    assert places(done(events, robots={"max_events_per_hour": 3})) == [0, 1, 2, 3, 4, 5]


def test_users_who_repeat_an_item_too_often_are_robots():
    events = log(("a", "x", 0), ("a", "x", 1), ("a", "x", 2), ("b", "x", 0), ("b", "x", 1), ("b", "y", 2))
    assert places(done(events, robots={"max_repeats": 2})) == [3, 5]
    assert places(done(events, robots={"max_repeats": 3})) == [0, 3, 5]


def test_a_session_ends_where_nothing_happens_for_long_enough():
    events = log(("a", "v", 0), ("a", "w", 29), ("a", "x", 59), ("b", "v", 60), ("b", "w", 89), ("a", "y", 60))
    result = done(events, session_gap_s=1800)
    assert result.events["session"].to_list() == [0, 0, 1, 1, 0, 0]
    assert result.events.schema["session"] == pl.Int32


def test_sessions_of_the_log_are_numbered_as_they_begin():
    rows = [("a", "v", 0), ("a", "w", 1), ("b", "x", 2), ("a", "x", 3), ("a", "y", 4)]
    events = log(*rows, session=["s9", "s1", "s9", "s9", None])
    assert done(events, {"session": "s"}).events["session"].to_list() == [0, 1, 0, None, 0]
    mixed = done(events, {"session": "s"}, session_gap_s=60)
    assert mixed.events["session"].to_list() == [0, 1, 0, 2, 0]
    assert done(events.drop("session"), {"session": "s"}).events["session"].to_list() == [None] * 5


def test_sessions_are_found_before_repeats_go():
    events = log(("a", "x", 0), ("a", "x", 20), ("a", "y", 40), ("a", "x", 90), ("a", "z", 150))
    assert done(events, session_gap_s=1800).events["session"].to_list() == [0, 0, 2]


def test_only_the_newest_events_of_a_user_count():
    events = log(("a", "v", 0), ("a", "w", 2), ("b", "v", 0), ("a", "x", 1), ("a", "v", 5), ("b", "w", 1))
    result = done(events, window={"max_events_per_user": 2})
    assert places(result) == [3, 1, 2, 5]
    assert result.dropped == {"repeated_pair": 1, "old_event": 1}


def test_no_events_give_no_events():
    everything = {
        "robots": {"max_events": 1, "max_events_per_hour": 1, "max_repeats": 1}, "session_gap_s": 1, "repeats": "sum",
        "window": {"since": START, "days": 1, "max_events_per_user": 1}, "feedback": ["events"],
    }
    result = transform(log(), config(**everything), None)
    assert result.events.is_empty()
    assert list(result.dropped) == ["outside_window", "repeated_event", "robot_user", "repeated_pair", "old_event"]
    assert result.events.schema["session"] == pl.Int32


def test_ids_as_numbers_give_what_ids_as_text_give():
    events = log(("b", "x", 2), ("a", "y", 5), ("b", "x", 1), ("a", "x", 5))
    numbers = events.with_columns(pl.col("user_id", "item_id").rank("dense"))
    assert places(done(numbers, repeats="sum")) == places(done(events, repeats="sum")) == [1, 3, 2]


Row = dict[str, Any]


def plain(events: pl.DataFrame, data: DataConfig) -> tuple[list[int], list[int], list[int]]:
    """Places, sessions, and rows left after each filter, by loops."""
    log_rows, newest, window = events.rows(named=True), events["timestamp"].max(), data.window
    stages = [[row for row in log_rows if newest - row["timestamp"] <= timedelta(days=window.days)]]
    first = {(row["user_id"], row["event_id"]): row["place"] for row in reversed(stages[-1])}
    stages.append([row for row in stages[-1] if first[row["user_id"], row["event_id"]] == row["place"]])
    ordered = sorted(stages[-1], key=lambda row: (row["user_id"], row["timestamp"], row["place"]))
    users = [list(own) for _, own in groupby(ordered, key=itemgetter("user_id"))]
    users = [own for own in users if not is_robot(own, data.robots)]
    stages.append([row for own in users for row in own])
    for own in users:
        number_sessions(own, data.session_gap_s)
    users = [[row for n, row in enumerate(own) if row["item_id"] not in items_of(own[:n])] for own in users]
    stages.append([row for own in users for row in own])
    stages.append([row for own in users for row in own[-window.max_events_per_user :]])
    return [row["place"] for row in stages[-1]], [row["number"] for row in stages[-1]], [len(rows) for rows in stages]


def is_robot(own: list[Row], rules: RobotRules) -> bool:
    times, items = [row["timestamp"] for row in own], items_of(own)
    busiest = max(sum(timedelta() <= other - time < timedelta(hours=1) for other in times) for time in times)
    repeats = max(items.count(item) for item in items)
    return len(own) > rules.max_events or busiest > rules.max_events_per_hour or repeats > rules.max_repeats


def items_of(own: list[Row]) -> list[str]:
    return [row["item_id"] for row in own]


def number_sessions(own: list[Row], gap_s: float) -> None:
    own[0]["number"] = 0
    for before, row in pairwise(own):
        row["number"] = before["number"] + ((row["timestamp"] - before["timestamp"]).total_seconds() >= gap_s)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("uvwxyz"), st.integers(0, 40).map(lambda n: n * 15)),
        min_size=1, max_size=40,
    ),
    ids=st.lists(st.integers(0, 60), min_size=40, max_size=40),
    limits=st.tuples(st.integers(3, 20), st.integers(2, 6), st.integers(1, 5), st.integers(1, 6)),
    days=st.sampled_from([0.1, 0.25, 1.0]),
)
def test_the_rules_together_do_what_loops_do_whoever_is_transformed_beside(rows, ids, limits, days):
    events = log(*rows, event_id=[str(number) for number in ids[: len(rows)]])
    data = config(
        {"event_id": "id"}, session_gap_s=1800, window={"days": days, "max_events_per_user": limits[3]},
        robots={"max_events": limits[0], "max_events_per_hour": limits[1], "max_repeats": limits[2]},
    )
    newest = events["timestamp"].max()
    result = transform(events, data, newest)
    kept, sessions, left = plain(events, data)
    assert places(result) == kept
    assert result.events["session"].to_list() == sessions
    assert list(result.dropped.values()) == [before - after for before, after in pairwise([len(events), *left])]
    assert len(events) == len(result.events) + sum(result.dropped.values())
    apart = [transform(events.filter(user_id=user), data, newest).events for user in sorted(set(events["user_id"]))]
    assert pl.concat(apart).equals(result.events)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.floats(-100, 100, width=32)), min_size=1))
def test_a_sum_does_not_depend_on_what_else_is_in_the_frame(rows):
    events = log(*((user, item, 0) for user, item, _ in rows), value=[value for *_, value in rows])
    together = done(events, repeats="sum").events
    alone = [done(own, repeats="sum").events for _, own in sorted(events.group_by("user_id"), key=lambda pair: pair[0])]
    assert pl.concat(alone).equals(together)
    for user, item, value in together.select("user_id", "item_id", "value").iter_rows():
        total = sum(float(np.float32(v)) for u, i, v in rows if (u, i) == (user, item))
        assert value == np.float32(total)


def test_a_dataset_keeps_sessions_kinds_and_context_and_names_every_filter(tmp_path):
    rows = [(f"u{n}", f"i{item}", 3600 * item + n) for n in range(3) for item in range(4)]
    rows += [("u0", "i0", 60), ("robot", "i1", 5), ("robot", "i1", 6), ("robot", "i1", 7), ("u1", "i3", 99 * 86400)]
    frame = pl.DataFrame(rows, schema=["user", "item", "at"], orient="row")
    frame.with_columns(kind=pl.lit("view"), device=pl.col("user") + "-phone").write_csv(tmp_path / "log.csv")
    columns = {"user_id": "user", "item_id": "item", "timestamp": "at", "event": "kind", "context": ["device"]}
    recipe = validate_recipe({"name": "rules", "fusion": {"item_vector": "id"}, "data": {
        "interactions": {"paths": [str(tmp_path / "log.csv")], "format": "csv", "columns": columns},
        "window": {"until": "1970-03-01"}, "robots": {"max_repeats": 2}, "session_gap_s": 5000, "repeats": "sum",
        "min_user_interactions": 3,
    }}, "the rules")
    dataset = Dataset.open(ingest(recipe, tmp_path, Workspace(str(tmp_path / "work"))).uri)
    assert dataset.artifact.manifest.metrics["rows_dropped_by_filter"] == {
        "outside_window": 1, "robot_user": 3, "repeated_pair": 1, "rare_user": 0, "rare_item": 0
    }
    first = dataset.interactions.filter(user_row=0)
    assert first["value"].to_list() == [2.0, 1.0, 1.0, 1.0]
    assert first["session"].to_list() == [0, 0, 0, 0]
    assert first["event"].to_list() == ["view"] * 4
    assert first["device"].to_list() == ["u0-phone"] * 4
