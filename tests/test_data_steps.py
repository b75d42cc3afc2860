"""Steps of ingest that run again, since a machine was lost before it answered, or on machines with other cores; and the
folder that they share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import DataConfig, validate_recipe
from llmrec_ray.data import ingest
from llmrec_ray.data.scratch import scratch_folder
from llmrec_ray.data.spread import Spread

T = TypeVar("T")
R = TypeVar("R")


def test_a_scratch_folder_of_ones_own_stays(tmp_path: Path):
    with scratch_folder(tmp_path, keep_parent=True) as folder:
        assert folder.parent == tmp_path
    assert tmp_path.exists()


class Twice(Spread):
    """As where machines are lost: every call runs twice, and the first answer gets lost."""

    def map(self, function: Callable[[T], R], calls: Sequence[T], description: str = "ingest") -> list[R]:
        super().map(function, calls, description)
        return super().map(function, calls, description)


def test_steps_that_run_again_give_the_same_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmrec_ray.data.log.RANGE_ROWS", 10)
    chain = [(f"u{n:02}", f"i{n + step:02}") for n in range(20) for step in range(3)]  # peels from its ends, in rounds
    core = [(user, item) for user in "abc" for item in "xyz"]
    rows = [f"{user},{item},{n}" for n, (user, item) in enumerate([*chain, *core])]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    data = {
        "interactions": {"paths": ["{raw}/log.csv"], "format": "csv"}, "cooccurrence": {},
        "min_user_interactions": 3, "min_item_interactions": 3,
    }
    tree = {"name": "chain", "data": data, "fusion": {"item_vector": "id"}}
    recipe = validate_recipe(tree, "the recipe")
    once = ingest(recipe, tmp_path, Workspace(str(tmp_path / "once")))
    monkeypatch.setattr(Spread, "here", lambda max_memory_gb: Twice(use_ray=False))
    again = ingest(recipe, tmp_path, Workspace(str(tmp_path / "again")))
    assert again.manifest.metrics["rows_kept"] == 9
    assert again.manifest.metrics["rows_dropped_by_filter"]["rare_item"] > 4
    assert (again.id, again.manifest.metrics) == (once.id, once.manifest.metrics)


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
import polars as pl
from llmrec_ray.artifact import Workspace
from llmrec_ray.config import validate_recipe
from llmrec_ray.data import ingest, log
log.RANGE_ROWS = 100_000
folder = Path(sys.argv[1])
generator, n = np.random.default_rng(0), 300_000
users, items = (pl.Series(generator.integers(0, most, n)) for most in (5_000, 9_000))
frame = pl.DataFrame({"user_id": users.cast(str), "item_id": items, "timestamp": range(n)})
frame.write_parquet(folder / "log.parquet")
data = {"interactions": {"paths": ["{raw}/log.parquet"]}, "cooccurrence": {}}
recipe = validate_recipe({"name": "cores", "data": data, "fusion": {"item_vector": "id"}}, "the recipe")
print(ingest(recipe, folder, Workspace(str(folder / "work"))).id)
"""


def id_made_with(threads: int, folder: Path) -> str:
    folder.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(threads)}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_cores_of_a_machine_cannot_be_seen_in_the_bytes(tmp_path: Path):
    assert id_made_with(1, tmp_path / "one") == id_made_with(8, tmp_path / "eight")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"scratch": "s3://bucket/scratch"},
         "s3://bucket/scratch is a URI, but intermediate files are mapped into memory: name a folder, such as one on a "
         "shared disk"),
        ({"window": {"since": "2026-02-01", "until": "2026-01-01"}},
         "since is 2026-02-01T00:00:00+00:00, which is not before until, 2026-01-01T00:00:00+00:00, so that nothing "
         "counts: correct one of them"),
    ],
)
def test_what_cannot_work_is_refused_at_load_time(section: dict[str, object], message: str):
    with pytest.raises(ValueError) as refusal:
        DataConfig.model_validate({"interactions": {"paths": ["log.csv"]}, **section})
    assert message in str(refusal.value)
