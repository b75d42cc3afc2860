"""Evaluation at growing numbers of users: seconds and peak memory, one table, one JSON line.

    python benchmarks/evaluate_scale.py [--users 5000 10000 20000] [--items 20000] [--workers 1]

Each number of users runs in a process of its own, over planted histories and one dot-product system, by the pool that
`llmrec evaluate` uses. Seconds should grow with the users, and memory here by what the histories, targets and ranks
hold: 8 bytes x (events + targets x (systems + 4)), while a worker's memory does not depend on the users.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec_ray.cluster import connected
from llmrec_ray.evaluate.protocol import Task
from llmrec_ray.evaluate.spread import Worker, pool
from llmrec_ray.evaluate.systems import Ranked, RawScores
from llmrec_ray.signals.base import history_matrix
from llmrec_ray.types import FloatArray, Histories

EVENTS = 50
WIDTH = 64
KS = (10,)
BATCH_USERS = 256
MB = 1e6


def main() -> None:
    """Print the table, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, nargs="+", default=[5_000, 10_000, 20_000])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one, arguments.items, arguments.workers)))
        return
    rows = [measure_apart(users, arguments.items, arguments.workers) for users in arguments.users]
    print(f"{'users':>8}{'seconds':>10}{'users/s':>10}{'peak here':>12}{'of it input':>13}{'peak worker':>13}")
    for row in rows:
        print(
            f"{row['users']:>8}{row['seconds']:>10.1f}{row['users'] / row['seconds']:>10.0f}{row['peak_mb']:>9.0f} MB"
            f"{row['input_mb']:>10.1f} MB{row['worker_peak_mb']:>10.0f} MB"
        )
    print(json.dumps({
        "items": arguments.items, "workers": arguments.workers, "batch_users": BATCH_USERS, "rows": rows,
        "machine": platform.processor() or platform.machine(),
    }))


def measure_apart(users: int, items: int, workers: int) -> dict[str, Any]:
    """`measure` in a fresh process, whose peak is then its own."""
    command = [sys.executable, __file__, "--one", str(users), "--items", str(items), "--workers", str(workers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(users: int, items: int, workers: int) -> dict[str, Any]:
    """Seconds of ranking all users, and peak memory of this process and of the largest worker."""
    task = planted_task(users, items)
    with connected(workers) if workers > 1 else contextlib.nullcontext(), pool(Opener(items), workers) as ranking:
        ranking.rank("dot", task.piece(0, BATCH_USERS * workers), BATCH_USERS, lambda n: None)
        start = time.perf_counter()
        found = ranking.rank("dot", task, BATCH_USERS, lambda n: None)
        seconds = time.perf_counter() - start
    size = task.histories.item_rows.nbytes + task.histories.indptr.nbytes + 2 * task.targets.nbytes
    return {
        "users": users, "seconds": seconds, "peak_mb": peak_mb(), "input_mb": size / MB,
        "worker_peak_mb": float(found["peak"].ranks.max()),
    }


def planted_task(users: int, items: int) -> Task:
    """Random histories of EVENTS items, and a target each that is not among them."""
    generator = np.random.default_rng(0)
    rows = (generator.integers(items, size=(users, 1)) + np.arange(EVENTS + 1) * 7) % items
    return Task(
        Histories(np.arange(users), np.arange(users + 1) * EVENTS, np.ascontiguousarray(rows[:, :-1]).ravel()),
        np.ascontiguousarray(rows[:, -1]), items,
    )


@dataclass(frozen=True)
class Opener:
    """Makes in each worker what a real one loads."""

    items: int

    def __call__(self) -> Worker:
        vectors = np.random.default_rng(1).normal(size=(self.items, WIDTH)).astype(np.float32)
        return Worker({"dot": WithPeak(DotProduct(vectors))}, KS, self.items)


@dataclass(frozen=True)
class DotProduct:
    """The mean of a history's vectors, times all vectors."""

    vectors: FloatArray

    def __call__(self, histories: Histories) -> dict[str, FloatArray]:
        users = history_matrix(histories, len(self.vectors), None) @ self.vectors
        return {"dot": np.asarray(users @ self.vectors.T, np.float32)}


class WithPeak:
    """A system that also reports the peak memory of the process it runs in, in MB, as if it were a rank."""

    def __init__(self, score: DotProduct) -> None:
        self._system = RawScores(score, lambda histories, rows: {}, max(KS))

    def rank(self, task: Task) -> Iterator[tuple[str, Ranked]]:
        """Both rankings."""
        yield from self._system.rank(task)
        yield "peak", Ranked(np.full(len(task), peak_mb()))


def peak_mb() -> float:
    """Most memory that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


if __name__ == "__main__":
    main()
