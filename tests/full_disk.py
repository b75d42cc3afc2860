"""A real disk that is full: a small tmpfs in a mount namespace of its own, and what is tried on it there.

Run as a program it does what is tried, inside that namespace; Ray's processes, started there, see the same disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from llmrec_ray.artifact import create_artifact
from llmrec_ray.errors import EventViewError, LlmrecError
from llmrec_ray.events import Event, EventStore
from llmrec_ray.storage import read_json, write_json_atomic

ROOT = Path(__file__).parents[1]


def try_on_small_disk(name: str, folder: Path, *, size_kb: int, timeout_s: float = 60) -> dict[str, Any]:
    """What the function `name` of this module reports about a disk of `size_kb`; skips where mounting is forbidden."""
    need_namespaces()
    shell = f"mount -t tmpfs -o size={size_kb}k tmpfs '{folder}' && exec '{sys.executable}' -m tests.full_disk {name}"
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f"{shell} '{folder}'"], cwd=ROOT, text=True, capture_output=True,
        timeout=timeout_s, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-5000:]
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report | {"stderr": done.stderr}


def need_namespaces() -> None:
    """Skip where no user may mount a disk of their own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("this machine lets no user mount a disk of their own")


def save_artifacts(disk: Path) -> dict[str, Any]:
    """Large files by three libraries into an artifact, and a pointer when nothing at all is free."""
    values = np.random.default_rng(0).normal(size=200_000)
    writers: dict[str, Callable[[Path], object]] = {
        "polars": lambda folder: pl.DataFrame({"x": values}).write_parquet(folder / "a.parquet"),
        "safetensors": lambda folder: save_file({"x": values}, folder / "a.safetensors"),
        "python": lambda folder: (folder / "a.bin").write_bytes(values.tobytes()),
    }
    said = {
        name: said_of(partial(create_artifact, str(disk / "bundles"), "bundle", write, config={}))
        for name, write in writers.items()
    }
    left = listing(disk)
    write_json_atomic(str(disk / "latest" / "bundle.json"), {"uri": "old"})
    fill(disk)
    said["pointer"] = said_of(lambda: write_json_atomic(str(disk / "latest" / "bundle.json"), {"uri": "n" * 5000}))
    return {"said": said, "left": left, "after": listing(disk), "pointer": read_json(f"{disk}/latest/bundle.json")}


def save_shard(disk: Path) -> dict[str, Any]:
    """A worker's shard, when the disk of its temporary files is full."""
    from llmrec_ray.train.reports import Reports
    from tests.train_boards import ALONE

    def write(folder: Path) -> None:
        save_file({"x": np.zeros(1_000_000)}, folder / "shard.safetensors")

    tempfile.tempdir = str(disk)
    return {"said": said_of(lambda: Reports("/", ALONE, 7)({"step": 12}, write)), "left": listing(disk)}


def train(disk: Path) -> dict[str, Any]:
    """Runs that find the disk full before they start, between two checkpoints, and while one is written."""
    from llmrec_ray.cluster import connected
    from llmrec_ray.train import run_training
    from tests.test_train_errors import BlindToFreeSpace, FillAfter
    from tests.train_boards import deterministic_recipe, inputs_of_board

    recipe = deterministic_recipe(epochs=5, patience=9, max_failures=2)
    blind = BlindToFreeSpace(**vars(inputs_of_board()))
    report: dict[str, Any] = {}
    with connected(num_cpus=4):
        filler = fill(disk, leave_bytes=800_000)
        report["at once"] = said_of(lambda: run_training(recipe, inputs_of_board(), f"{disk}/a"))
        filler.unlink()
        for name, inputs in (("foreseen", inputs_of_board()), ("unforeseen", blind)):
            run = partial(run_training, recipe, inputs, f"{disk}/{name}", callbacks=[FillAfter(2, disk)])
            report[name] = said_of(run)
            report[f"{name} left"] = [path for path in listing(disk / name) if "/state.json" in path]
            (disk / "filler").unlink()
        trained = run_training(recipe, inputs_of_board(), f"{disk}/unforeseen", resume=True)
        report["losses"] = [epoch["loss"] for epoch in trained.epochs]
    return report


def search(disk: Path) -> dict[str, Any]:
    """Campaigns whose disk fills up after two epochs of their first trial, at once or but for what a record takes; and
    again when there is room."""
    from llmrec_ray.cluster import connected
    from llmrec_ray.config import override_recipe
    from llmrec_ray.stages import tune_stage
    from llmrec_ray.tune.records import Records
    from tests.tune_campaigns import slow_board

    recipe, report = slow_board(disk), {}
    with connected(num_cpus=2):
        for name, left in (("full", 0), ("nearly", 200_000)):
            named = override_recipe(recipe, [f"tune.name={name}", "tune.trials=2"])
            records = Records(f"{recipe.workspace}/tune/{name}")
            threading.Thread(target=_fill_in_mid_training, args=(disk, left, records), daemon=True).start()
            said = said_of(partial(tune_stage, named))
            failed = [record.reason for record in records.load() if record.status == "failed"]
            (disk / "filler").unlink()
            later = said_of(partial(tune_stage, named, resume=name))
            statuses = [record.status for record in records.load()]
            report[name] = {"said": said, "failed": failed, "later": later, "statuses": statuses}
    return report


def _fill_in_mid_training(disk: Path, leave_bytes: int, records: Any) -> None:
    while not any(len(record.epochs) >= 2 for record in records.load()):
        time.sleep(0.02)
    fill(disk, leave_bytes)


def record_events(disk: Path) -> dict[str, Any]:
    """Feedback until nothing is free, and again when there is room."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(300_000))
    with EventStore.open(disk / "events", max_history=100_000) as store:
        acknowledged = 0
        while (refused := said_of(partial(store.record, [_event(acknowledged)]))) == "nothing":
            acknowledged += 1
        try:
            read_while_full = store.newest("u", 100_000)
        except EventViewError as error:
            read_while_full = error.newest["u"]
        ballast.unlink()
        return {
            "refused": refused, "acknowledged": acknowledged, "read_while_full": len(read_while_full),
            "later": store.record([_event(acknowledged)]), "read_later": len(store.newest("u", 100_000)),
            "logged": sum(len(list(store.log.read(file))) for file in store.log.files()),
        }


def ingest_log(disk: Path) -> dict[str, Any]:
    """Ingests of ever larger logs until one finds the disk full, at ever later moments; then one with room."""
    from llmrec_ray.artifact import Workspace
    from llmrec_ray.data import Dataset
    from tests.test_data_kill import RECIPE, write_days

    workspace, raw = Workspace(f"{disk}/work"), disk / "raw"
    raw.mkdir()

    def run() -> str:
        return _ingest(RECIPE, raw, workspace)

    write_days(raw, range(1))
    report: dict[str, Any] = {"first": run(), "said": {}, "left": {}}
    before, there = workspace.latest("dataset", made_by="ingest"), listing(disk / "work")
    write_days(raw, range(1, 12))
    for kilobytes in (0, 4, 16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 512, 1024):
        filler = fill(disk, leave_bytes=1024 * kilobytes)
        report["said"][kilobytes] = run()
        filler.unlink()
        report["left"][kilobytes] = sorted(set(listing(disk / "work")) ^ set(there))
        Dataset.open(before).interactions  # noqa: B018  read, which raises when it is not whole
        if report["said"][kilobytes] == "nothing":
            break
    return report | {"later": run(), "changed": workspace.latest("dataset", made_by="ingest") != before}


def ingest_where_nothing_may_be_written(disk: Path) -> dict[str, Any]:
    """An ingest into a disk that is mounted for reading only, with a Dataset and without."""
    from llmrec_ray.artifact import Workspace
    from tests.test_data_kill import RECIPE, write_days

    raw = disk / "raw"
    raw.mkdir()
    write_days(raw, range(1))
    first = _ingest(RECIPE, raw, Workspace(f"{disk}/work"))
    write_days(raw, range(1, 2))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return {"first": first, "said": [_ingest(RECIPE, raw, Workspace(f"{disk}/{name}")) for name in ("work", "other")]}


def _ingest(recipe: dict[str, Any], raw: Path, workspace: Any) -> str:
    from llmrec_ray.config.load import validate_recipe
    from llmrec_ray.data import ingest

    return said_of(partial(ingest, validate_recipe(recipe, "the recipe"), raw, workspace, use_ray=False))


def _event(number: int) -> Event:
    return Event(event_id=f"e{number}", user_id="u", item_id="x" * 200, timestamp=number)


def said_of(action: Callable[[], object]) -> str:
    """The kind and text of the error for people that an action ends with."""
    try:
        action()
    except LlmrecError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def fill(disk: Path, leave_bytes: int = 0) -> Path:
    """Take all room but some."""
    filler = disk / "filler"
    size = shutil.disk_usage(disk).free - leave_bytes
    with filler.open("wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, size)
    return filler


def listing(folder: Path) -> list[str]:
    """Files below a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.stdout.write(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))) + "\n")
