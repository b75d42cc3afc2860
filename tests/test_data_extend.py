"""A new day of logs extends a Dataset: the old files are not read again, rows stay, and nothing tells it from a Dataset
that was made at once but the numbers of rows."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.cli.main import main
from llmrec_ray.config import Recipe, validate_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.data.spread import Spread
from llmrec_ray.errors import BadRowsError, CorruptArtifactError, DataError
from llmrec_ray.events import Event, EventLog

DAY = 86_400


def write_day(folder: Path, day: int, rows: list[tuple[str, str, int]]) -> Path:
    """One file of (user, item, second of that day)."""
    folder.mkdir(exist_ok=True)
    path = folder / f"day-{day}.csv"
    lines = [f"{user},{item},{1_000_000 + day * DAY + second}" for user, item, second in rows]
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    return path


def recipe_of(**data: Any) -> Recipe:
    log = {"paths": ["{raw}/day-*.csv"], "format": "csv", **data.pop("interactions", {})}
    tree = {"interactions": log, "min_user_interactions": 3, **data}
    return validate_recipe({"name": "days", "data": tree, "fusion": {"item_vector": "id"}}, "the recipe")


def made(folder: Path, recipe: Recipe | None = None, work: str = "work", **options: Any) -> Dataset:
    return Dataset.open(ingest(recipe or recipe_of(), folder, Workspace(str(folder / work)), **options).uri)


def events_of(dataset: Dataset) -> list[tuple[Any, ...]]:
    frame = dataset.interactions
    ids = zip(dataset.users.ids(frame["user_row"]), dataset.items.ids(frame["item_row"]), strict=True)
    return sorted((*pair, *row) for pair, row in zip(ids, frame.drop("user_row", "item_row").rows(), strict=True))


MONDAY = [
    *((user, item, n) for user in ("bea", "dan") for n, item in enumerate("pqrs")), ("cy", "p", 9), ("cy", "z", 10),
]
TUESDAY = [
    ("cy", "q", 1),  # cy was rare on Monday
    ("ann", "a", 2), ("ann", "p", 3), ("ann", "q", 4),
    ("bea", "p", 5),  # bea knows p already
    ("bea", "a", -DAY - 1),  # late: it happened before Monday
]


def test_a_day_extends_the_dataset_without_the_old_files_and_equals_one_made_of_both(tmp_path):
    monday = write_day(tmp_path, 0, MONDAY)
    first = made(tmp_path)
    assert list(first.users) == ["bea", "dan"]
    write_day(tmp_path, 1, TUESDAY)
    at_once = made(tmp_path, work="other")
    monday.unlink()
    second = made(tmp_path, extend=True)
    assert list(second.users) == ["bea", "dan", "ann", "cy"]
    assert list(second.items)[: len(first.items)] == list(first.items)
    assert set(second.items) == set(at_once.items)
    assert events_of(second) == events_of(at_once)
    bea = second.items.ids(second.histories("test")[second.users.row("bea")])
    assert bea[0] == "a" and bea.count("p") == 1
    assert second.interactions["user_row"].is_sorted()
    laws = [dataset.artifact.manifest.metrics for dataset in (second, at_once)]
    counts = ("rows_read", "rows_kept", "rows_dropped_by_filter", "users", "items")
    assert [laws[0][name] for name in counts] == [laws[1][name] for name in counts]
    assert second.log_ids[:1] == first.log_ids and len(second.log_ids) == 2
    assert Workspace(str(tmp_path / "work")).latest("dataset", made_by="ingest") == second.uri


def test_days_can_follow_one_another_and_a_day_without_news_changes_nothing(tmp_path):
    write_day(tmp_path, 0, MONDAY)
    first = made(tmp_path, extend=True)
    assert made(tmp_path, extend=True).id == first.id
    write_day(tmp_path, 1, TUESDAY[:1])
    second = made(tmp_path, extend=True)
    write_day(tmp_path, 2, TUESDAY[1:])
    third = made(tmp_path, extend=True)
    at_once = made(tmp_path, work="other")
    assert list(third.users) == ["bea", "dan", "cy", "ann"]
    assert [len(dataset.log_ids) for dataset in (first, second, third)] == [1, 2, 3]
    assert len(third.interactions) == len(at_once.interactions)


def test_items_of_the_table_keep_their_rows_when_the_log_comes_to_know_them(tmp_path):
    write_day(tmp_path, 0, MONDAY)
    (tmp_path / "items.csv").write_text("id,name\na,Anchor\np,Pen\nw,Wheel\n")
    table = {"paths": ["{raw}/items.csv"], "format": "csv", "id": "id", "template": "{name}"}
    recipe = recipe_of(items=table)
    first = made(tmp_path, recipe)
    assert list(first.items) == ["p", "q", "r", "s", "a", "w"]
    write_day(tmp_path, 1, TUESDAY)
    (tmp_path / "items.csv").write_text("id,name\na,Anchor\np,Pen\nw,Wheel\nv,Vase\n")
    second = made(tmp_path, recipe, extend=True)
    assert list(second.items)[:6] == list(first.items)
    assert second.item_texts[second.items.row("a")] == "Anchor"
    assert second.items.row("v") == len(second.items) - 1


def test_without_a_new_file_changes_of_the_recipe_and_of_tables_count_too(tmp_path):
    write_day(tmp_path, 0, MONDAY)
    (tmp_path / "items.csv").write_text("id,name\np,Pen\n")
    table = {"paths": ["{raw}/items.csv"], "format": "csv", "id": "id", "template": "{name}"}
    first = made(tmp_path, recipe_of(items=table))
    (tmp_path / "items.csv").write_text("id,name\np,Pencil\na,Anchor\n")
    second = made(tmp_path, recipe_of(items=table), extend=True)
    assert [*second.items] == ["p", "q", "r", "s", "a"]
    assert second.item_texts[0] == "Pencil"
    assert second.log_ids == first.log_ids
    third = made(tmp_path, recipe_of(items=table, window={"max_events_per_user": 3}), extend=True)
    assert (len(first.interactions), len(third.interactions)) == (8, 6)
    assert [*third.items] == [*second.items]


@pytest.mark.parametrize("ranges", [1, 3])
def test_a_log_that_is_cut_into_other_ranges_is_cut_anew(tmp_path, monkeypatch, ranges):
    monkeypatch.setattr("llmrec_ray.data.log.RANGE_ROWS", 2)
    write_day(tmp_path, 0, MONDAY)
    first = made(tmp_path)
    monkeypatch.setattr("llmrec_ray.data.log.RANGE_ROWS", 100 // ranges)
    write_day(tmp_path, 1, TUESDAY)
    assert events_of(made(tmp_path, extend=True)) == events_of(made(tmp_path, work="other"))
    assert len(first.users) == 2


def test_ranges_that_have_grown_too_large_are_cut_anew(tmp_path, monkeypatch):
    write_day(tmp_path, 0, MONDAY)
    made(tmp_path)
    monkeypatch.setattr("llmrec_ray.data.log.RANGE_ROWS", 3)
    monkeypatch.setattr("llmrec_ray.data.ranges.SAMPLED_EVERY", 2)
    write_day(tmp_path, 1, TUESDAY)
    calls = Counter()
    spread_map = Spread.map

    def counted(spread, function, items, description="ingest"):
        calls[description] += len(items)
        return spread_map(spread, function, items, description)

    monkeypatch.setattr(Spread, "map", counted)
    extended = made(tmp_path, extend=True)
    assert calls["sort"] >= 3 and calls["cut"] == calls["sample"] == 2
    assert events_of(extended) == events_of(made(tmp_path, work="other"))


def test_what_was_read_must_not_have_changed(tmp_path):
    path = write_day(tmp_path, 0, MONDAY)
    first = made(tmp_path)
    before = path.stat().st_size
    path.write_text(path.read_text() + "ann,p,5\n")
    with pytest.raises(DataError) as changed:
        made(tmp_path, extend=True)
    assert str(changed.value) == (
        f"day-0.csv has changed since it was read ({before} bytes then, {before + 8} now): put new events into new "
        "files, or ingest everything again without --extend."
    )
    write_day(tmp_path, 0, MONDAY)
    write_day(tmp_path, 1, TUESDAY)
    with pytest.raises(DataError) as other:
        made(tmp_path, recipe_of(interactions={"timestamp_unit": "ms"}), extend=True)
    assert str(other.value) == (
        f"data.interactions reads its files in another way than the Dataset {first.id} was made in: ingest everything "
        "again without --extend, or take the change back."
    )
    assert Workspace(str(tmp_path / "work")).latest("dataset", made_by="ingest") == first.uri


def test_a_dataset_of_a_version_that_kept_no_log_cannot_be_extended(tmp_path, monkeypatch):
    write_day(tmp_path, 0, MONDAY)
    first = made(tmp_path)
    monkeypatch.setattr(Dataset, "log_ids", [])
    with pytest.raises(DataError) as old:
        made(tmp_path, extend=True)
    assert str(old.value) == (
        f"The Dataset {first.id} was made by an earlier version, which kept no log to extend: ingest once without "
        "--extend."
    )


def test_a_dataset_whose_log_is_gone_cannot_be_extended(tmp_path):
    write_day(tmp_path, 0, MONDAY)
    first = made(tmp_path)
    shutil.rmtree(tmp_path / "work" / "logs")
    with pytest.raises(DataError) as gone:
        made(tmp_path, extend=True)
    assert str(gone.value).startswith(f"A log that the Dataset {first.id} was made of is gone (There is no artifact ")
    assert str(gone.value).endswith("): restore it, or ingest everything again without --extend.")


def test_a_day_without_rows_is_no_error(tmp_path):
    write_day(tmp_path, 0, MONDAY)
    first = made(tmp_path)
    write_day(tmp_path, 1, [])
    second = made(tmp_path, extend=True)
    assert (len(second.log_ids), second.artifact.manifest.metrics["rows_read"]) == (2, 10)
    assert events_of(second) == events_of(first)


def click(log: EventLog, user: str, *items: str) -> None:
    log.append([
        Event(event_id=f"{user} {item}", user_id=user, item_id=item, timestamp=2_000_000 + n)
        for n, item in enumerate(items)
    ])


def test_an_endpoints_event_log_is_read_on_from_where_it_was_read_to(tmp_path):
    write_day(tmp_path, 0, MONDAY)
    recipe = recipe_of(feedback=["{events}"])
    events = EventLog(tmp_path / "work" / "events" / "log")
    click(events, "eve", "p", "q", "r")
    first = made(tmp_path, recipe)
    assert list(first.users) == ["bea", "dan", "eve"]
    [file] = events.files()
    read_to = file.stat().st_size
    click(events, "eve", "p", "s")  # p again, under the same id
    with file.open("a") as handle:
        handle.write('{"event_id": "never acknowl')
    second = made(tmp_path, recipe, extend=True)
    law = second.artifact.manifest.metrics
    assert second.items.ids(second.histories("test")[second.users.row("eve")]) == ["p", "q", "s", "r"]  # s was late
    assert law["rows_read"] == first.artifact.manifest.metrics["rows_read"] + 2
    assert law["rows_dropped_by_filter"]["repeated_event"] == 1
    assert made(tmp_path, recipe, extend=True).id == second.id
    file.write_bytes(file.read_bytes()[: read_to - 5])
    with pytest.raises(DataError, match=f"{file.name} has changed since it was read"):
        made(tmp_path, recipe, extend=True)


def test_the_command_extends_too(tmp_path, capsys):
    write_day(tmp_path, 0, MONDAY)
    config = tmp_path / "days.yaml"
    config.write_text(
        f"name: days\nworkspace: {tmp_path}/work\nfusion: {{item_vector: id}}\ndata:\n  min_user_interactions: 3\n"
        f"  interactions: {{paths: ['{tmp_path}/day-*.csv'], format: csv}}\n"
    )
    for day, rows, users in ((0, MONDAY, 2), (1, TUESDAY, 4)):
        write_day(tmp_path, day, rows)
        with pytest.raises(SystemExit, match="0"):
            main(["ingest", "--extend", "--config", str(config), "--json"])
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]["users"] == users
    with pytest.raises(SystemExit, match="0"):
        main(["ingest", "--extend", "--config", str(config)])
    assert "nothing new: the newest Dataset was made of these files and this recipe" in capsys.readouterr().err


def test_all_old_files_may_be_gone_and_a_small_day_may_have_a_bad_row(tmp_path):
    day = write_day(tmp_path, 0, MONDAY)
    recipe = recipe_of(max_bad_ratio=0.1)
    first = made(tmp_path, recipe)
    day.unlink()
    assert made(tmp_path, recipe, extend=True).id == first.id
    write_day(tmp_path, 1, [("dan", "t", 5), ("", "t", 6)])
    second = made(tmp_path, recipe, extend=True)
    assert second.artifact.manifest.metrics["rows_quarantined"] == 1
    write_day(tmp_path, 2, [("", "t", 6)])
    with pytest.raises(BadRowsError) as bad:
        made(tmp_path, recipe, extend=True)
    assert str(bad.value).startswith("2 of 13 rows of data.interactions cannot be used (missing_user_id 2), more")


def test_a_log_that_was_changed_by_hand_is_refused_by_name(tmp_path):
    write_day(tmp_path, 0, MONDAY)
    first = made(tmp_path)
    [events] = (tmp_path / "work" / "logs" / f"log-{first.log_ids[0]}" / "events").iterdir()
    events.write_bytes(events.read_bytes() + b"x")
    write_day(tmp_path, 1, TUESDAY)
    with pytest.raises(CorruptArtifactError, match=events.name):
        made(tmp_path, extend=True)
