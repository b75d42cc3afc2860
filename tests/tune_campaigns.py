"""Campaigns as a person runs them, by `llmrec tune` in processes of their own, and what these leave on disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import Recipe
from llmrec_ray.data import ingest
from llmrec_ray.tune.records import Records, TrialRecord
from tests.boards import board_recipe, write_board

ROOT = Path(__file__).parents[1]
Moment: TypeAlias = Callable[[list[TrialRecord]], bool]
"""Whether the records of a campaign are at the moment that a test waits for."""
EPOCHS, TRIALS = 4, 3
TIMINGS = {"train_s", "epoch_s", "seconds", "seen_per_s"}


def slow_board(folder: Path, **sections: dict[str, Any]) -> Recipe:
    """A board whose epochs take about a second, ingested, with a small campaign that is the same however it is cut:
    chance proposes, nothing is stopped, and nothing is dropped out."""
    write_board(folder, n_users=300, n_items=100)
    tree: dict[str, Any] = {
        "num_cpus": 2, "data": {"items": []}, "fusion": {"item_vector": "id"},
        "model": {"dropout": 0.0, "id_dropout": 0.0},
        "train": {"num_workers": 1, "sharding": "none", "epochs": EPOCHS, "patience": EPOCHS},
        "tune": {
            "trials": TRIALS, "algorithm": "random", "scheduler": "none", "max_concurrent": 1, "fresh_seeds": [],
            "score_test": False, "search": {
                "train.learning_rate": {"loguniform": [1e-3, 3e-2]},
                "train.loss": {"choice": ["sampled_softmax", "full_softmax"]},
            },
        },
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    recipe = board_recipe(folder, **tree)
    ingest(recipe, folder, Workspace(recipe.workspace), use_ray=False)
    return recipe


@dataclass(frozen=True)
class Campaign:
    """One campaign of a recipe file, by its name."""

    config: Path
    name: str

    @classmethod
    def of(cls, recipe: Recipe, folder: Path, name: str) -> Campaign:
        """The recipe as a file of the folder; a name per test, so that many campaigns share one Dataset."""
        config = folder / "recipe.yaml"
        config.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        return cls(config, name)

    @property
    def root(self) -> Path:
        """The campaign's own folder."""
        return Path(yaml.safe_load(self.config.read_text())["workspace"]) / "tune" / self.name

    def command(self, *overrides: str, resume: bool = False) -> list[str]:
        """`llmrec tune`, from the start or with --resume."""
        named = ["--resume", self.name] if resume else []
        overrides = (*overrides,) if resume else (f"tune.name={self.name}", *overrides)
        return [sys.executable, "-m", "llmrec_ray", "tune", "--config", str(self.config), "--json", *named, *overrides]

    def records(self) -> list[TrialRecord]:
        """What is recorded at this moment."""
        return Records(str(self.root)).load()

    def run(self, *overrides: str, resume: bool = False) -> dict[str, Any]:
        """To its end; what --json said."""
        with self.started(*overrides, resume=resume) as running:
            assert running.wait() == 0, running.said()
            return running.result()

    @contextlib.contextmanager
    def started(self, *overrides: str, resume: bool = False) -> Iterator[Running]:
        """In a session of its own; whatever is left of it at the end of the block is killed."""
        stem = f"{self.config.parent}/{self.name}-{time.monotonic_ns()}"
        with Path(f"{stem}.log").open("w") as log, Path(f"{stem}.json").open("w") as out:
            process = subprocess.Popen(
                ["env", "--default-signal=INT", *self.command(*overrides, resume=resume)], cwd=ROOT, stdout=out,
                stderr=log, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        try:
            yield Running(self, process, Path(f"{stem}.log"), Path(f"{stem}.json"))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass(frozen=True)
class Running:
    """One process of a campaign: its log is what people see, its output is for programs."""

    campaign: Campaign
    process: subprocess.Popen[bytes]
    log: Path
    out: Path

    def wait(self, timeout_s: float = 280) -> int:
        """Its exit status."""
        return self.process.wait(timeout_s)

    def wait_for(self, moment: Moment, timeout_s: float = 120) -> list[TrialRecord]:
        """The records at the first time that they are as wanted."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if moment(records := self.campaign.records()):
                return records
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.said()}"
            time.sleep(0.02)
        raise AssertionError(f"that moment never came: {self.said()}")

    def end(self, how: signal.Signals) -> int:
        """Send the driver a signal, and it alone; its exit status."""
        self.process.send_signal(how)
        return self.wait(60)

    def said(self) -> str:
        """The end of what people saw."""
        return self.log.read_text()[-6000:]

    def result(self) -> dict[str, Any]:
        """The last line of its output."""
        found: dict[str, Any] = json.loads(self.out.read_text().splitlines()[-1])
        return found


def first_trial_begins(records: list[TrialRecord]) -> bool:
    """Before its first epoch."""
    return len(records) == 1 and not records[0].epochs


def mid_training(records: list[TrialRecord]) -> bool:
    """One trial is over, and the next has epochs behind it and before it."""
    return any(record.status == "finished" for record in records) and any(
        record.status == "running" and 2 <= len(record.epochs) < EPOCHS for record in records
    )


def two_in_training(records: list[TrialRecord]) -> bool:
    """Two trials at once, one at least with epochs behind it."""
    running = [record for record in records if record.status == "running" and len(record.epochs) < EPOCHS]
    return len(running) >= 2 and any(record.epochs for record in running)


def between_trials(records: list[TrialRecord]) -> bool:
    """Some are over and none runs, though more are to come."""
    return 1 <= len(records) < TRIALS and all(record.status == "finished" for record in records)


def table(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """All that two runs of one campaign have in common: everything but times, and metrics to six digits."""
    return [
        {
            "trial": record.number, "settings": record.settings, "status": record.status,
            "epochs": [{name: _rounded(value) for name, value in epoch.items() if _lasting(name)}
                       for epoch in record.epochs],
        }
        for record in records
    ]


def _lasting(name: str) -> bool:
    return name not in TIMINGS and not name.endswith("_s") and name != "checkpoint"


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def files_of(folder: Path) -> dict[str, int]:
    """Every file below a folder, with the time of its last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def trial_folder(campaign: Campaign, number: int) -> Path:
    """Where a trial's Ray Train run lies."""
    return campaign.root / "trials" / f"{number:05d}"
