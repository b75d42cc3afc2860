"""Ingest that is killed, or finds its disk full or locked: the Dataset before stays whole, and a rerun succeeds."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ArtifactNotFoundError
from tests.full_disk import listing, try_on_small_disk
from tests.killed_ingest import Forge, forge

DAYS = 3
RECIPE: dict[str, Any] = {
    "name": "killed", "fusion": {"item_vector": "id"},
    "data": {
        "interactions": {
            "paths": ["{raw}/log-*.csv"], "format": "csv",
            "columns": {"user_id": "user", "item_id": "item", "timestamp": "second"},
        },
        "min_user_interactions": 3, "min_item_interactions": 2, "max_bad_ratio": 0.5, "cooccurrence": {"top": 3},
    },
}
NEVER = 0


def write_days(folder: Path, days: range) -> None:
    for day in days:
        rows = [f"u{(7 * n + 3 * day) % 11},i{n * n % 13},{1_700_000_000 + 600 * n + 86_400 * day}" for n in range(60)]
        (folder / f"log-{day}.csv").write_text("\n".join(["user,item,second", *rows, "nobody,,"]) + "\n")


@pytest.fixture(scope="module")
def processes() -> Iterator[Forge]:
    with forge() as started:
        yield started


class Interrupted:
    """A workspace with the Dataset of some days, and what an ingest of all days makes of it when nobody kills it."""

    def __init__(self, folder: Path, processes: Forge, *, days_before: int, extend: bool) -> None:
        self._folder, self._processes, self._options = folder, processes, {"extend": extend}
        self._raw, self._before = folder / "raw", folder / "before"
        self._raw.mkdir()
        self._before.mkdir()
        if days_before:
            write_days(self._raw, range(days_before))
            assert self._run(self._before)[0] == "done"
        write_days(self._raw, range(days_before, DAYS))
        self.id_before = latest_id(self._before)
        self.steps, self.id_after, self.files_after = self._undisturbed()

    def check_kill_at(self, step: int) -> None:
        work = self._copy()
        assert self._run(work, kill_at=step)[0] in {"killed", "done"}  # threads may leave a step or two to others
        assert latest_id(work) in {self.id_before, self.id_after}
        assert self._run(work)[0] == "done"
        assert (latest_id(work), files(work)) == (self.id_after, self.files_after)
        shutil.rmtree(work)

    def _undisturbed(self) -> tuple[int, str | None, list[str]]:
        work = self._copy()
        ended, steps = self._run(work)
        assert ended == "done"
        return steps, latest_id(work), files(work)

    def _copy(self) -> Path:
        work = self._folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self._before, work)
        return work

    def _run(self, work: Path, *, kill_at: int = NEVER) -> tuple[str, int]:
        return self._processes.run(
            recipe=RECIPE, raw=str(self._raw), workspace=str(work), options=self._options, kill_at=kill_at
        )


def latest_id(work: Path) -> str | None:
    """The id of the newest Dataset, every file of which is as it was hashed and can be read; None without one."""
    try:
        dataset = Dataset.open(Workspace(str(work)).latest("dataset", made_by="ingest"), verify=True)
    except ArtifactNotFoundError:
        return None
    assert len(dataset.interactions) == dataset.artifact.manifest.metrics["rows_kept"]
    return dataset.id


def files(work: Path) -> list[str]:
    """All files but pointers that were about to be replaced: a few bytes, which a pointer's next writer cannot tell
    from those of another process."""
    return [name for name in listing(work) if not name.startswith("latest/.")]


@pytest.mark.parametrize(("days_before", "extend"), [(0, False), (2, False), (2, True)])
def test_a_kill_at_some_steps_leaves_the_dataset_before_and_a_rerun_succeeds(tmp_path, processes, days_before, extend):
    interrupted = Interrupted(tmp_path, processes, days_before=days_before, extend=extend)
    assert interrupted.id_before != interrupted.id_after
    for step in random.Random(days_before).sample(range(1, interrupted.steps + 1), 8):
        interrupted.check_kill_at(step)


@pytest.mark.drill
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("days_before", "extend"), [(0, False), (2, False), (2, True)])
def test_a_kill_at_most_steps_leaves_the_dataset_before_and_a_rerun_succeeds(tmp_path, processes, days_before, extend):
    interrupted = Interrupted(tmp_path, processes, days_before=days_before, extend=extend)
    for step in range(1, interrupted.steps + 1, 3):
        interrupted.check_kill_at(step)


def test_a_full_disk_is_named_whenever_it_is_found_and_nothing_is_left(tmp_path):
    report = try_on_small_disk("ingest_log", tmp_path, size_kb=2000)
    assert report["first"] == "nothing"
    *full, with_room = report["said"].values()
    assert with_room == "nothing"
    found_when = {said.partition(" could not be saved, since the disk of ")[0] for said in full}
    assert {f"DiskFullError: {what}" for what in ("Intermediate files of the ingest", "The dataset")} <= found_when
    for said in full:
        assert said.endswith("make room there, or set workspace to a larger disk, and run the same command again.")
    *left, _ = report["left"].values()
    assert {name.split("/")[0] for names in left for name in names} <= {"logs"}  # a Log is whole before the Dataset is
    assert (report["later"], report["changed"]) == ("nothing", True)


def test_a_workspace_that_may_not_be_written_is_named(tmp_path):
    report = try_on_small_disk("ingest_where_nothing_may_be_written", tmp_path, size_kb=2000)
    assert report["first"] == "nothing"
    for said in report["said"]:
        assert "may not be written" in said
