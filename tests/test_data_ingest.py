"""Ingest: whatever the log looks like, every row is accounted for and the Dataset is the same on any machine.
"""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_ray.artifact import Artifact, Workspace
from llmrec_ray.config import Recipe
from llmrec_ray.config.load import validate_recipe
from llmrec_ray.data import Dataset, ingest, needs_ray
from llmrec_ray.errors import BadRowsError, ConfigError, DataError, EmptyResultError, MissingInputError
from llmrec_ray.events import Event, EventLog

START = datetime(2024, 3, 1, 12, tzinfo=UTC)
DAYS = ("2024-03-01", "2024-03-02", "2024-03-03")
CATALOGUE = {f"sku-{i}": f"Lamp {i}" for i in range(12)}


def shop_rows() -> list[dict[str, str]]:
    """A web shop's log: eight visitors look at six things each, one an hour, told in three files by day."""
    generator = random.Random(3)
    visits = [
        (visitor, sku, START + timedelta(hours=8 * step, minutes=visitor))
        for visitor in range(8)
        for step, sku in enumerate(generator.sample(sorted(CATALOGUE), 6))
    ]
    return [
        {"when": f"{moment:%Y-%m-%dT%H:%M:%SZ}", "visitor": f"v{visitor}", "kind": "view", "sku": sku}
        for visitor, sku, moment in sorted(visits, key=lambda visit: visit[2])
    ]


def write_shop(folder: Path, *, extra: tuple[str, ...] = ()) -> Path:
    """`log/<day>.csv` and `products.csv`; `extra` lines go to the end of the last day's file."""
    (folder / "log").mkdir(parents=True, exist_ok=True)
    for day in DAYS:
        rows = [",".join(row.values()) for row in shop_rows() if row["when"].startswith(day)]
        lines = ["when,visitor,kind,sku", *rows, *(extra if day == DAYS[-1] else ())]
        (folder / "log" / f"{day}.csv").write_text("\n".join(lines) + "\n")
    products = [f'{sku},"{name}, standing",{10 + i}\n' for i, (sku, name) in enumerate(CATALOGUE.items())]
    (folder / "products.csv").write_text("sku,name,price\n" + "".join(products))
    return folder


SHOP_COLUMNS = {"user_id": "visitor", "item_id": "sku", "timestamp": "when"}


def shop_recipe(**data: object) -> Recipe:
    """The second recipe: other column names, ISO 8601 times, several files, no table of users."""
    log = {
        "paths": ["{raw}/log/*.csv"],
        "format": "csv",
        "columns": SHOP_COLUMNS,
        "timestamp_unit": "iso8601",
    }
    items = {
        "paths": ["{raw}/products.csv"], "format": "csv", "id": "sku", "title": "name",
        "template": "{name} for {price} euros", "attributes": ["price"],
    }
    log |= data.pop("interactions", {})
    items |= data.pop("items", {})
    tree = {"name": "shop", "data": {"interactions": log, "items": items, **data}}
    return validate_recipe(tree, "the shop recipe")


def made(folder: Path, recipe: Recipe | None = None, **options: object) -> Dataset:
    return Dataset.open(run(folder, recipe, **options).uri)


def run(folder: Path, recipe: Recipe | None = None, **options: object) -> Artifact:
    workspace = Workspace(str(folder / "work"))
    return ingest(recipe or shop_recipe(), folder, workspace, **{"use_ray": False, **options})


def law(dataset: Dataset) -> tuple[int, int, int, dict[str, int]]:
    """Rows read, kept, quarantined and dropped by filter; read must be the sum of the others."""
    metrics = dataset.artifact.manifest.metrics
    dropped = metrics["rows_dropped_by_filter"]
    assert metrics["rows_read"] == metrics["rows_kept"] + metrics["rows_quarantined"] + sum(dropped.values())
    return metrics["rows_read"], metrics["rows_kept"], metrics["rows_quarantined"], dropped


def test_a_log_of_another_shape_becomes_a_dataset(tmp_path):
    dataset = made(write_shop(tmp_path))
    assert law(dataset) == (48, 48, 0, {"repeated_pair": 0, "rare_user": 0, "rare_item": 0})
    assert list(dataset.users) == [f"v{i}" for i in range(8)]
    assert list(dataset.items) == sorted(CATALOGUE)
    row = dataset.items.row("sku-3")
    assert dataset.item_texts[row] == "Lamp 3, standing for 13 euros"
    assert dataset.item_titles[row] == "Lamp 3, standing"
    assert dataset.item_attributes.to_dict(as_series=False) == {"price": [10, 11, 20, 21, *range(12, 20)]}
    assert dataset.user_texts == [""] * 8
    assert dataset.artifact.manifest.parents.keys() == {"log 1", *(f"log/{day}.csv" for day in DAYS), "products.csv"}


def test_histories_are_oldest_first_and_the_last_two_events_are_held_out(tmp_path):
    dataset = made(write_shop(tmp_path))
    for user_row, user_id in enumerate(dataset.users):
        seen = dataset.items.rows([row["sku"] for row in shop_rows() if row["visitor"] == user_id]).tolist()
        assert dataset.histories("train")[user_row].tolist() == seen[:-2]
        assert dataset.histories("validation")[user_row].tolist() == seen[:-1]
        assert dataset.histories("test")[user_row].tolist() == seen
        assert dataset.targets("validation")[user_row] == seen[-2]
        assert dataset.targets("test")[user_row] == seen[-1]
    assert dataset.histories("train").user_rows.tolist() == list(range(8))


def test_times_are_read_in_utc(tmp_path):
    dataset = made(write_shop(tmp_path))
    first = dataset.interactions.filter(pl.col("user_row") == 0).row(0, named=True)
    assert first["timestamp"] == START
    assert first["value"] == 1.0
    assert first["split"] == "train"


def test_events_of_one_moment_keep_the_order_of_files_and_rows(tmp_path):
    moment = "2024-03-01T00:00:00Z"
    (tmp_path / "log").mkdir()
    for name, skus in {"b": ["x", "w"], "a": ["z", "y"]}.items():
        lines = [f"{moment},v,view,{sku}" for sku in skus]
        (tmp_path / "log" / f"{name}.csv").write_text("\n".join(["when,visitor,kind,sku", *lines]))
    (tmp_path / "products.csv").write_text("sku,name,price\nx,X,1\n")
    dataset = made(tmp_path, shop_recipe(min_user_interactions=4))
    assert dataset.items.ids(dataset.histories("test")[0]) == ["z", "y", "x", "w"]


def test_ray_and_any_number_of_blocks_give_the_same_bytes(tmp_path, ray_session):
    write_shop(tmp_path, extra=("never,v1,view,sku-1",))
    recipe = shop_recipe(max_bad_ratio=0.1)
    here = run(tmp_path, recipe)
    for num_blocks in (None, 1, 2, 9):
        there = ingest(
            recipe, tmp_path, Workspace(str(tmp_path / f"work{num_blocks}")), use_ray=True, num_blocks=num_blocks
        )
        assert there.manifest.files == here.manifest.files
        assert there.id == here.id


def test_a_wrong_template_is_named_on_ray_too(tmp_path, ray_session):
    write_shop(tmp_path)
    with pytest.raises(ConfigError, match=r"^The text template '\{name!r\}' must name columns in braces"):
        run(tmp_path, shop_recipe(items={"template": "{name!r}"}), use_ray=True)


def test_errors_on_ray_read_like_errors_here(tmp_path, ray_session):
    write_shop(tmp_path)
    (tmp_path / "log" / f"{DAYS[1]}.csv").write_text("when,visitor,sku_id\n")
    for use_ray in (False, True):
        with pytest.raises(MissingInputError) as missing:
            run(tmp_path, use_ray=use_ray)
        assert str(missing.value) == (
            f"log/{DAYS[1]}.csv has no column 'sku', only when, visitor, sku_id: correct the recipe's "
            "columns."
        )


BAD_LINES = {
    "yesterday,v1,view,sku-1": "bad_timestamp",
    ",v1,view,sku-1": "bad_timestamp",
    "2024-03-03T10:00:00Z, ,view,sku-1": "missing_user_id",
    "2024-03-03T10:00:00Z,v1,view,": "missing_item_id",
    "2024-03-03T10:00:00Z,v1": "too_few_fields",
    "2300-03-03T10:00:00Z,v1,view,sku-1": "timestamp_out_of_range",
    "2024-03-03T10:00:00Z,v1,view,sku-1,what": "too_many_fields",
    '2024-03-03T10:00:00Z,v1,"view,sku-1': "malformed",
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items())
def test_a_bad_row_is_quarantined_with_its_place_and_the_reason(tmp_path, line, reason):
    dataset = made(write_shop(tmp_path, extra=(line,)), shop_recipe(max_bad_ratio=0.1))
    position = (tmp_path / "log" / f"{DAYS[-1]}.csv").read_text().count("\n") - 1
    assert law(dataset)[:3] == (49, 48, 1)
    (row,) = dataset.quarantine.iter_rows(named=True)
    assert {key: row[key] for key in ("table", "file", "position", "reason")} == {
        "table": "interactions", "file": f"log/{DAYS[-1]}.csv", "position": position, "reason": reason,
    }
    assert row["raw"].rstrip(",") == line.rstrip(",")
    assert dataset.artifact.manifest.metrics["rows_quarantined_by_reason"] == {reason: 1}


def test_more_bad_rows_than_allowed_stop_ingest_and_leave_nothing_behind(tmp_path):
    write_shop(tmp_path, extra=tuple(BAD_LINES))
    with pytest.raises(BadRowsError) as refusal:
        run(tmp_path)
    text = str(refusal.value)
    assert text.startswith(
        "8 of 56 rows of data.interactions cannot be used (bad_timestamp 2, malformed 1, missing_item_id 1, "
        "missing_user_id 1, timestamp_out_of_range 1, too_few_fields 1, too_many_fields 1), "
        "more than data.max_bad_ratio 0.01 allows. First: "
        f"log/{DAYS[-1]}.csv record "
    )
    assert "is 'yesterday,v1,view,sku-1' (bad_timestamp); " in text
    assert text.endswith(". Correct the recipe or the rows, or raise data.max_bad_ratio.")
    assert not (tmp_path / "work").exists()


def test_a_table_row_without_an_id_is_quarantined_too(tmp_path):
    write_shop(tmp_path)
    with (tmp_path / "products.csv").open("a") as handle:
        handle.write(",nameless,3\n")
    with pytest.raises(BadRowsError, match=r"^1 of 13 rows of data\.items cannot be used \(missing_id 1\)"):
        run(tmp_path)
    dataset = made(tmp_path, shop_recipe(max_bad_ratio=0.1))
    assert dataset.quarantine.select("table", "file", "position", "reason", "raw").rows() == [
        ("items", "products.csv", 13, "missing_id", ",nameless,3")
    ]
    assert dataset.artifact.manifest.metrics["table_rows_quarantined"] == 1


def test_of_a_repeated_pair_the_first_event_stays(tmp_path):
    first = next(row for row in shop_rows() if row["visitor"] == "v0")
    again = f"2024-03-03T23:00:00Z,v0,view,{first['sku']}"
    dataset = made(write_shop(tmp_path, extra=(again, again)))
    assert law(dataset) == (50, 48, 0, {"repeated_pair": 2, "rare_user": 0, "rare_item": 0})
    assert dataset.items.id(dataset.histories("test")[0][0]) == first["sku"]
    assert dataset.targets("test")[0] != dataset.items.row(first["sku"])


def test_rare_users_and_items_are_peeled_until_nobody_is_rare(tmp_path):
    pairs = [(u, i) for u in "abc" for i in "1234"] + [("d", "1"), ("d", "2"), ("d", "9"), ("e", "1")]
    frame = pl.DataFrame(
        {"user_id": [u for u, _ in pairs], "item_id": [i for _, i in pairs], "timestamp": range(len(pairs))}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    recipe = plain_recipe(min_user_interactions=3, min_item_interactions=2)
    dataset = made(tmp_path, recipe)
    assert law(dataset) == (16, 12, 0, {"repeated_pair": 0, "rare_user": 3, "rare_item": 1})
    assert list(dataset.users) == ["a", "b", "c"]
    assert list(dataset.items) == ["1", "2", "3", "4"]


def plain_recipe(columns: dict | None = None, **data: object) -> Recipe:
    """One Parquet log under the default column names and no descriptions."""
    log = {"paths": ["{raw}/log.parquet"], "columns": columns or {}, **data.pop("interactions", {})}
    tree = {"name": "plain", "data": {"interactions": log, **data}, "fusion": {"item_vector": "id"}}
    return validate_recipe(tree, "the plain recipe")


def test_events_under_the_least_value_are_dropped_first(tmp_path):
    rows = [("a", item, item, 5.0) for item in range(4)] + [("a", 9, 9, 1.5), ("b", 1, 1, 2.0)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "stars"], orient="row").write_parquet(
        tmp_path / "log.parquet"
    )
    recipe = plain_recipe({"value": "stars"}, interactions={"min_value": 2.0}, min_user_interactions=3)
    dataset = made(tmp_path, recipe)
    dropped = {"below_min_value": 1, "repeated_pair": 0, "rare_user": 1, "rare_item": 0}
    assert law(dataset) == (6, 4, 0, dropped)
    assert dataset.interactions["value"].to_list() == [5.0] * 4


def test_a_least_value_without_a_value_column_is_refused_at_load_time():
    with pytest.raises(ConfigError) as refusal:
        plain_recipe(interactions={"min_value": 4})
    assert str(refusal.value).endswith(
        "min_value is 4.0, but no column is named as the value: set columns.value, or leave min_value empty"
    )


def test_an_empty_result_says_which_filter_took_how_many(tmp_path):
    write_shop(tmp_path)
    with pytest.raises(EmptyResultError) as empty:
        run(tmp_path, shop_recipe(min_user_interactions=7))
    assert str(empty.value) == (
        "No event is left of 48 rows: 0 were quarantined, the filters dropped repeated_pair 0, rare_user 48, "
        "rare_item 0. To keep some, lower data.min_user_interactions, or give more rows."
    )
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(("data", "remedy"), [
    ({"interactions": {"columns": SHOP_COLUMNS | {"event": "kind"}, "event_weights": {"View": 1}}},
     "To keep some, spell the kinds of events in event_weights as the log does, or give more rows."),
    ({"window": {"since": "2030-01-01"}}, "To keep some, widen data.window, or give more rows."),
    ({"robots": {"max_events": 2}}, "To keep some, loosen data.robots, or give more rows."),
    ({"min_item_interactions": 30}, "To keep some, lower data.min_item_interactions, or give more rows."),
])
def test_an_empty_result_names_what_would_have_kept_rows(tmp_path, data, remedy):
    with pytest.raises(EmptyResultError) as empty:
        run(write_shop(tmp_path), shop_recipe(**data))
    assert str(empty.value).endswith(remedy)


def test_files_without_rows_are_named(tmp_path):
    write_shop(tmp_path)
    for day in DAYS:
        (tmp_path / "log" / f"{day}.csv").write_text("when,visitor,kind,sku\n")
    with pytest.raises(EmptyResultError) as empty:
        run(tmp_path)
    names = ", ".join(f"log/{day}.csv" for day in DAYS)
    assert str(empty.value) == (
        f"There are no rows in the files of data.interactions ({names}): give files with rows."
    )


def test_one_empty_file_among_others_is_no_error(tmp_path):
    write_shop(tmp_path)
    (tmp_path / "log" / "2024-03-04.csv").write_text("when,visitor,kind,sku\n")
    assert law(made(tmp_path))[0] == 48


@pytest.mark.parametrize(
    ("fetch", "remedy"), [(None, ""), ("movielens-100k", "run `llmrec data fetch movielens-100k` first, or ")]
)
def test_a_missing_file_is_named_with_the_remedy(tmp_path, fetch, remedy):
    with pytest.raises(MissingInputError) as missing:
        run(tmp_path, shop_recipe(fetch=fetch))
    assert str(missing.value) == (
        f"No file matches {tmp_path}/log/*.csv (data.interactions.paths): {remedy}"
        "correct the path."
    )


def test_a_template_field_that_is_no_column_is_named(tmp_path):
    write_shop(tmp_path)
    with pytest.raises(MissingInputError) as missing:
        run(tmp_path, shop_recipe(items={"template": "{name} by {maker}"}))
    assert str(missing.value) == (
        "products.csv has no column 'maker', only sku, name, price: correct the recipe's columns."
    )


def test_an_item_without_text_is_kept_and_counted(tmp_path):
    write_shop(tmp_path)
    lines = (tmp_path / "products.csv").read_text().splitlines()
    lines = [line for line in lines if not line.startswith(("sku-3,", "sku-5,"))]
    lines += ["sku-5,,", "sku-77,Sofa,9"]
    (tmp_path / "products.csv").write_text("\n".join(lines))
    dataset = made(tmp_path)
    metrics = dataset.artifact.manifest.metrics
    assert (metrics["items_without_text"], metrics["items_without_events"], metrics["items"]) == (2, 1, 13)
    for sku in ("sku-3", "sku-5"):
        row = dataset.items.row(sku)
        assert (dataset.item_texts[row], dataset.item_titles[row]) == ("", sku)
        assert dataset.item_attributes["price"][row] is None


def test_an_item_that_the_log_never_mentions_follows_those_with_events(tmp_path):
    write_shop(tmp_path)
    with (tmp_path / "products.csv").open("a") as file:
        file.write("\na-new-one,Sofa,9\n")
    dataset = made(tmp_path)
    row = len(dataset.items) - 1
    assert (dataset.items.id(row), dataset.item_titles[row]) == ("a-new-one", "Sofa")
    assert row not in dataset.interactions["item_row"]
    without = made(tmp_path, shop_recipe(new_items=False))
    assert "a-new-one" not in without.items
    assert list(dataset.items)[:-1] == list(without.items)


def test_an_item_that_a_filter_dropped_does_not_come_back_as_a_new_one(tmp_path):
    write_shop(tmp_path)
    counts = made(tmp_path).interactions["item_row"].value_counts()["count"]
    dataset = made(tmp_path, shop_recipe(min_item_interactions=int(counts.min()) + 1, min_user_interactions=3))
    assert 0 < len(dataset.items) < len(counts)
    assert set(range(len(dataset.items))) == set(dataset.interactions["item_row"])


def test_of_two_descriptions_of_one_item_the_last_counts(tmp_path):
    write_shop(tmp_path)
    with (tmp_path / "products.csv").open("a") as handle:
        handle.write("sku-3,Renamed,99\n")
    dataset = made(tmp_path)
    assert dataset.item_texts[dataset.items.row("sku-3")] == "Renamed for 99 euros"


def test_a_table_about_other_things_than_the_log_is_refused(tmp_path):
    write_shop(tmp_path)
    with pytest.raises(DataError) as refusal:
        run(tmp_path, shop_recipe(items={"id": "name", "title": None}))
    assert str(refusal.value) == (
        "None of the 12 ids in data.items occurs in the log: the table has ids such as 'Lamp 0, standing', "
        "the log such as 'sku-0'. Correct data.items.id, or the log's column names."
    )


def test_a_user_without_history_is_left_out_and_counted(tmp_path):
    write_shop(tmp_path)
    pl.DataFrame({"id": ["v1", "ghost"], "age": [30, 40]}).write_csv(tmp_path / "people.tsv", separator="\t")
    users = {"paths": ["{raw}/people.tsv"], "format": "tsv", "id": "id", "template": "{age} years old"}
    dataset = made(tmp_path, shop_recipe(users=users))
    metrics = dataset.artifact.manifest.metrics
    assert "ghost" not in dataset.users
    assert dataset.user_texts == ["", "30 years old", *[""] * 6]
    assert (metrics["users_without_events"], metrics["users_without_text"]) == (1, 7)


def test_the_same_log_in_four_formats_gives_the_same_interactions(tmp_path):
    rows = [
        {"user_id": 100 + u, "item_id": i, "timestamp": 1_700_000_000 + 10 * u + i, "stars": 1 + (u + i) % 5}
        for u in range(3) for i in range(4)
    ]
    frame = pl.DataFrame(rows)
    frame.write_csv(tmp_path / "log.csv")
    frame.write_csv(tmp_path / "log.tsv", separator="\t")
    frame.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for file_format in ("csv", "tsv", "parquet", "jsonl"):
        log = {"paths": [f"{{raw}}/log.{file_format}"], "format": file_format}
        found[file_format] = made(
            tmp_path, plain_recipe({"value": "stars"}, interactions=log, min_user_interactions=3)
        )
    for dataset in found.values():
        assert dataset.interactions.equals(found["csv"].interactions)
        assert list(dataset.users) == ["100", "101", "102"]


def test_the_endpoints_own_event_log_is_a_log_like_any_other(tmp_path):
    log = EventLog(tmp_path / "events")
    log.append([
        Event(event_id=f"{user}{item}", user_id=user, item_id=item, timestamp=1_700_000_000.25 + n)
        for n, (user, item) in enumerate((user, item) for item in "xyz" for user in "ab")
    ])
    paths = {"paths": [f"{tmp_path}/events/*.jsonl"], "format": "jsonl"}
    dataset = made(tmp_path, plain_recipe(interactions=paths, min_user_interactions=3))
    assert dataset.items.ids(dataset.histories("test")[1]) == ["x", "y", "z"]
    assert dataset.interactions["timestamp"][0] == datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("1234567"), st.integers(0, 3)), min_size=12
    ),
    least=st.tuples(st.integers(3, 4), st.integers(1, 3)),
)
def test_the_row_law_holds_for_any_log(tmp_path, pairs, least):
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    pl.DataFrame(pairs, schema=schema, orient="row").write_parquet(tmp_path / "log.parquet")
    recipe = plain_recipe(min_user_interactions=least[0], min_item_interactions=least[1])
    try:
        dataset = made(tmp_path, recipe)
    except EmptyResultError:
        return
    law(dataset)
    events = dataset.interactions
    assert events.group_by("user_row").len()["len"].min() >= least[0]
    assert events.group_by("item_row").len()["len"].min() >= least[1]
    assert events.select("user_row", "item_row").is_unique().all()
    assert events["user_row"].is_sorted()


def test_how_an_ingest_is_made_is_no_part_of_the_dataset(tmp_path):
    write_shop(tmp_path)
    recipes = [shop_recipe(), shop_recipe(max_memory_gb=1.0, use_ray=False, scratch=str(tmp_path / "elsewhere"))]
    assert len({run(tmp_path, recipe).id for recipe in recipes}) == 1
    workspace = Workspace(str(tmp_path / "work"))
    assert [needs_ray(shop_recipe(use_ray=ray).data, tmp_path, workspace) for ray in (None, True)] == [False, True]
