"""Training inputs with a known answer, and the loop run in one process or in several without Ray."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import llmrec_ray.train.optimizer
import llmrec_ray.train.sharding
from llmrec_ray.config import Recipe
from llmrec_ray.model.encoder import TextEncoder
from llmrec_ray.signals import center, to_text_space
from llmrec_ray.train.inputs import TrainingInputs
from llmrec_ray.train.loop import train_epochs
from llmrec_ray.train.optimizer import EPSILON
from llmrec_ray.train.workers import Workers
from llmrec_ray.types import FloatArray, Histories
from tests.boards import COLOURS, board_recipe

N_USERS, N_ITEMS, TEXT_SIZE = 40, 40, 12
ALONE = Workers(local_world_size=64)
"""One process with one thread: matrices are tiny, and threads wait for each other on a busy machine."""


def inputs_of_board(*, seed: int = 0) -> TrainingInputs:
    """Every user likes the items of one colour; text vectors say the colour, with noise."""
    generator = np.random.default_rng(seed)
    pasts = [generator.permutation(np.arange(user % 2, N_ITEMS, 2)) for user in range(N_USERS)]
    return TrainingInputs(
        histories=Histories.from_lists([past[:-2] for past in pasts], list(range(N_USERS))),
        targets=np.array([past[-2] for past in pasts]),
        n_items=N_ITEMS,
        text_vectors=_text_vectors(generator),
    )


def inputs_with_texts(inputs: TrainingInputs, vectors: FloatArray, center: FloatArray) -> TrainingInputs:
    """The same board with real texts, for an encoder that trains."""
    return TrainingInputs(
        inputs.histories, inputs.targets, inputs.n_items, vectors, center, item_texts=board_texts()
    )


def board_texts() -> list[str]:
    """A text per item; one item has none."""
    return ["" if item == 7 else f"thing {item}, painted {COLOURS[item % 2]}" for item in range(N_ITEMS)]


def deterministic_recipe(**train: object) -> Recipe:
    """The board's recipe without dropout, so that the split over workers changes rounding only."""
    return board_recipe(Path("/nowhere"), model={"dropout": 0.0}, train={"epochs": 3, **train})


class Recorder:
    """A report function that keeps metrics, and the checkpoint of every step that has one in `folder/<step>`."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.reports: list[dict[str, float]] = []

    def __call__(self, metrics, write) -> None:
        self.reports.append(metrics)
        if self.folder is not None:
            target = self.folder / str(int(metrics["step"]))
            target.mkdir(parents=True, exist_ok=True)
            write(target)

    @property
    def epochs(self) -> list[dict[str, float]]:
        return [metrics for metrics in self.reports if "epoch" in metrics]

    @property
    def losses(self) -> list[float]:
        return [metrics["loss"] for metrics in self.reports]


@dataclass(frozen=True)
class Job:
    """One training run: checkpoints go to `folder`."""

    recipe: Recipe
    folder: Path | None = None
    resume_from: Path | None = None

    def run(self, workers: Workers) -> list[float]:
        """What every report gave as its loss."""
        recorder = Recorder(self.folder)
        train_epochs(self.recipe, inputs_for(self.recipe), workers, recorder, self.resume_from)
        return recorder.losses


def inputs_for(recipe: Recipe) -> TrainingInputs:
    """The board's inputs; with the encoder's own text vectors when the recipe trains one."""
    if recipe.encoder.tuning == "frozen":
        return inputs_of_board()
    encoder = TextEncoder.load(Path(recipe.encoder.model), recipe.encoder)
    raw = encoder.encode(board_texts())
    middle = center(raw)
    return inputs_with_texts(inputs_of_board(), to_text_space(raw, middle), middle)


def train_here(recipe: Recipe, folder: Path | None = None, resume_from: Path | None = None) -> list[float]:
    """Losses of every report of one plain process."""
    return Job(recipe, folder, resume_from).run(ALONE)


def train_in_processes(n: int, jobs: Sequence[Job], epsilon: float = EPSILON) -> list[list[float]]:
    """Each job's losses, run one after the other by the same `n` real processes over gloo, without Ray.

    epsilon: AdamW's.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = json.dumps([
        [job.recipe.model_dump_json(), job.folder and str(job.folder), job.resume_from and str(job.resume_from)]
        for job in jobs
    ])
    environment = {
        **os.environ, "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train_boards", told, str(epsilon)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(n)
    ]
    outputs = [process.communicate(timeout=120 + 40 * len(jobs))[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    losses: list[list[float]] = json.loads(outputs[0].strip().splitlines()[-1])
    return losses


def _text_vectors(generator: np.random.Generator) -> FloatArray:
    colour = np.where(np.arange(N_ITEMS) % 2, 1.0, -1.0)[:, None] * np.eye(1, TEXT_SIZE)
    vectors = colour + 0.5 * generator.normal(size=(N_ITEMS, TEXT_SIZE))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _main() -> None:
    torch.distributed.init_process_group("gloo")
    llmrec_ray.train.optimizer.EPSILON = float(sys.argv[2])
    llmrec_ray.train.sharding.WHOLE_BELOW_NUMBERS = 0  # tiny weights are sharded too, as large ones would be
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    losses = [
        Job(Recipe.model_validate_json(recipe), folder and Path(folder), resume_from and Path(resume_from)).run(
            Workers(rank, size, size)
        )
        for recipe, folder, resume_from in json.loads(sys.argv[1])
    ]
    torch.distributed.destroy_process_group()
    sys.stdout.write(json.dumps(losses) + "\n")
    sys.stdout.flush()
    os._exit(0)  # as Ray ends a worker: in Python's own teardown the thread of torch's store aborts rank 0, very rarely


if __name__ == "__main__":
    _main()
