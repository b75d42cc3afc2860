"""What a Log knows of its files: positions, digests and how far each was read, whoever else reads the same file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import Recipe, validate_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.data.log import parse_files
from llmrec_ray.data.pieces import cut_pieces
from llmrec_ray.data.sources import find_sources
from llmrec_ray.data.spread import Spread
from llmrec_ray.errors import BadRowsError, DataError
from llmrec_ray.events import Event, EventLog

CSV = {"format": "csv", "paths": ["{raw}/log.csv"]}


def recipe_of(*sections: dict[str, Any], **data: Any) -> Recipe:
    tree = {"interactions": list(sections), "min_user_interactions": 3, **data}
    return validate_recipe({"name": "log", "data": tree, "fusion": {"item_vector": "id"}}, "the recipe")


def made(folder: Path, recipe: Recipe, **options: Any) -> Dataset:
    return Dataset.open(ingest(recipe, folder, Workspace(str(folder / "work")), **options).uri)


def write_log(folder: Path, *extra: str) -> None:
    """Three users who bought and then watched three things each; the film's id stands in a column of its own."""
    rows = [f"{user},{item},f{item},{n}" for user in "abc" for n, item in enumerate("pqr")]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,film,timestamp", *rows, *extra]) + "\n")


def test_two_sections_can_read_one_file(tmp_path):
    write_log(tmp_path, ",p,fp,9")
    films = {**CSV, "domain": "films", "columns": {"item_id": "film"}}
    dataset = made(tmp_path, recipe_of(CSV, films, max_bad_ratio=0.5))
    assert dataset.artifact.manifest.metrics["rows_read"] == 20
    assert dataset.quarantine.select("file", "position", "reason").rows() == [
        ("log.csv", 10, "missing_user_id"), ("log.csv", 10, "missing_user_id")
    ]
    assert "films:fp" in dataset.items and "p" in dataset.items
    once = made(tmp_path, recipe_of(CSV, max_bad_ratio=0.5))
    digests = [made.artifact.manifest.parents["log.csv"] for made in (dataset, once)]
    assert digests[0] == digests[1]


def test_a_file_read_in_two_ways_has_the_digest_of_each(tmp_path):
    write_log(tmp_path)
    data = recipe_of(CSV, {**CSV, "quotes": False}).data  # without quotes it is short enough to be cut
    pieces = cut_pieces(find_sources(data, tmp_path), piece_bytes=40)
    digests = parse_files(pieces, tmp_path / "scratch", Spread.here(1.0), []).digests
    assert len(pieces) > 2
    assert digests.keys() == {"log.csv", "log.csv (1)"}
    assert digests["log.csv"] == hashlib.sha256((tmp_path / "log.csv").read_bytes()).hexdigest()


def test_a_torn_line_that_was_all_there_was_is_read_when_it_is_whole(tmp_path):
    write_log(tmp_path)
    events = EventLog(tmp_path / "work" / "events" / "log")
    events.append([Event(event_id="1", user_id="eve", item_id="p", timestamp=10)])
    [file] = events.files()
    line = file.read_bytes()
    file.write_bytes(line[:-9])
    recipe = recipe_of(CSV, feedback=["{events}"])
    assert made(tmp_path, recipe).artifact.manifest.metrics["rows_read"] == 9
    file.write_bytes(line)
    law = made(tmp_path, recipe, extend=True).artifact.manifest.metrics
    assert (law["rows_read"], law["rows_quarantined"]) == (10, 0)


def test_a_torn_line_behind_what_was_read_is_read_on_from_there(tmp_path):
    write_log(tmp_path)
    events = EventLog(tmp_path / "work" / "events" / "log")
    events.append([Event(event_id="1", user_id="eve", item_id="p", timestamp=10)])
    [file] = events.files()
    line = file.read_bytes()
    recipe = recipe_of({**CSV, "paths": ["{raw}/*.csv"]}, feedback=["{events}"])
    made(tmp_path, recipe)
    file.write_bytes(line + line[:-9])
    (tmp_path / "more.csv").write_text("user_id,item_id,film,timestamp\na,s,fs,9\n")
    assert made(tmp_path, recipe, extend=True).artifact.manifest.metrics["rows_read"] == 11
    file.write_bytes(line + line)
    law = made(tmp_path, recipe, extend=True).artifact.manifest.metrics
    assert (law["rows_read"], law["rows_quarantined"]) == (12, 0)


def test_a_table_may_have_a_column_called_timestamp(tmp_path):
    write_log(tmp_path)
    (tmp_path / "items.csv").write_text("id,timestamp\np,1999\nq,2001\n")
    items = {"paths": ["{raw}/items.csv"], "format": "csv", "id": "id", "template": "made {timestamp}"}
    assert made(tmp_path, recipe_of(CSV, items=items)).item_texts[:2] == ["made 1999", "made 2001"]


def test_a_long_bad_row_is_cut_in_the_message(tmp_path):
    write_log(tmp_path, "," + "x" * 100_000)
    with pytest.raises(BadRowsError) as refusal:
        made(tmp_path, recipe_of(CSV, max_bad_ratio=0.0))
    assert f"log.csv record 10 is ',{'x' * 299}…' (too_few_fields)" in str(refusal.value)
    assert len(str(refusal.value)) < 1_000


def test_a_file_that_another_section_comes_to_read_is_not_passed_over(tmp_path):
    write_log(tmp_path)
    (tmp_path / "films.csv").write_bytes((tmp_path / "log.csv").read_bytes())
    films = {**CSV, "domain": "films", "columns": {"item_id": "film"}}
    made(tmp_path, recipe_of(CSV, {**films, "paths": ["{raw}/films.csv"]}))
    both = recipe_of(CSV, {**films, "paths": ["{raw}/films.csv", "{raw}/log.csv"]})
    with pytest.raises(DataError, match=r"^data\.interactions reads its files in another way than the Dataset "):
        made(tmp_path, both, extend=True)


def test_a_file_may_be_called_like_a_log(tmp_path):
    write_log(tmp_path)
    for name in ("log 1", "log 2"):
        (tmp_path / name).write_bytes((tmp_path / "log.csv").read_bytes())
    first = made(tmp_path, recipe_of({**CSV, "paths": ["{raw}/log*1", "{raw}/log*2"]}))
    assert len(first.log_ids) == 1
    every = {**CSV, "paths": ["{raw}/log*1", "{raw}/log*2", "{raw}/log.csv"]}
    assert len(made(tmp_path, recipe_of(every), extend=True).log_ids) == 2


def test_files_of_one_name_in_two_folders_are_two_files(tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    write_log(tmp_path)
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "raw", recipe_of({**CSV, "paths": ["log.csv"]}))
    write_log(tmp_path / "raw")
    both = recipe_of({**CSV, "paths": ["log.csv", "{raw}/log.csv"]})
    assert made(tmp_path / "raw", both, extend=True).artifact.manifest.metrics["rows_read"] == 18
