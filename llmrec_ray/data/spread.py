"""Calls of one function -> their results, as tasks of Ray Data or in this process.

The only place in `data` that knows Ray. Large data goes through files of the calls, so that neither the block layout
nor the order of completion can reach the Dataset; what a call returns is small.
"""

from __future__ import annotations

import errno
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from llmrec_ray.errors import ClusterError, LlmrecError
from llmrec_ray.storage import is_disk_full

__all__ = ["Spread"]

T = TypeVar("T")
R = TypeVar("R")
RAY_GB = 1.3  # Ray's own processes and the driver, measured
HERE_GB = 0.3  # this process before it reads anything, measured
TASK_GB = 0.7  # a task over a million rows, measured


@dataclass(frozen=True)
class Spread:
    """Where calls run.

    use_ray: as tasks of Ray Data on the Ray that is connected, else as threads here. max_tasks: so many at once.
    num_blocks: blocks of calls, one per call when None.
    """

    use_ray: bool
    max_tasks: int = 1
    num_blocks: int | None = None

    @classmethod
    def here(cls, max_memory_gb: float) -> Spread:
        """In this process, as many calls at once as its cores and the memory allow."""
        return cls(use_ray=False, max_tasks=max(1, min(os.cpu_count() or 1, int((max_memory_gb - HERE_GB) / TASK_GB))))

    @classmethod
    def on_ray(cls, max_memory_gb: float, num_blocks: int | None = None) -> Spread:
        """On the Ray that is connected, with as many tasks at once as its cores and the memory per machine allow."""
        import ray

        cpus = _cpus([node for node in ray.nodes() if node["Alive"]], ray.get_runtime_context().get_node_id())
        in_memory = int((max_memory_gb - RAY_GB) / TASK_GB)
        tasks = sum(min(n, in_memory) for n in cpus)  # which Ray Data spreads evenly over the machines
        return cls(use_ray=True, max_tasks=max(1, tasks), num_blocks=num_blocks)

    def map(self, function: Callable[[T], R], calls: Sequence[T], description: str = "ingest") -> list[R]:
        """The result of every call, in the order of the calls.

        Functions, calls and results are pickled on their way. The first call that raises an LlmrecError or OSError ends
        it with that error, on Ray once the others are done. Raises ClusterError when a machine does not see the files
        of another. Ray Data runs a task that was killed again.
        """
        if not calls:
            return []
        if not self.use_ray:
            with ThreadPoolExecutor(self.max_tasks) as threads:
                return list(_progress(threads.map(function, calls), len(calls), description))
        rows = list(_progress(self._on_ray(function, calls), len(calls), description))
        return [_result(row) for row in sorted(rows, key=_number)]

    def _on_ray(self, function: Callable[[T], R], calls: Sequence[T]) -> Iterable[dict[str, Any]]:
        import ray.data

        def run(row: dict[str, Any]) -> dict[str, Any]:
            number = int(row["item"])
            result, failed = _outcome(function, calls[number])
            return {"number": number, "result": pickle.dumps(result), "failed": failed}

        blocks = min(self.num_blocks or len(calls), len(calls))
        numbers = ray.data.from_items(list(range(len(calls))), override_num_blocks=blocks)
        numbers.context.enable_progress_bars = False
        rows: Iterable[dict[str, Any]] = numbers.map(run, concurrency=min(self.max_tasks, blocks)).iter_rows()
        return rows


def _cpus(nodes: Sequence[Mapping[str, Any]], here: str) -> list[int]:
    """Of each machine; this one may have been started with more than it has."""
    cores = os.cpu_count() or 1
    cpus = ((node["NodeID"], int(node["Resources"].get("CPU", 0))) for node in nodes)
    return [min(n, cores) if node == here else n for node, n in cpus]


def _progress(calls: Iterable[T], total: int, description: str) -> Iterable[T]:
    return tqdm(calls, total=total, desc=description, disable=None, leave=False)


def _outcome(function: Callable[[T], R], call: T) -> tuple[R | Exception, bool]:
    """What the call returned, or an error that a person must read, which Ray would wrap in a stack of its own."""
    try:
        return function(call), False
    except FileNotFoundError as error:
        return ClusterError(
            f"A task on {socket.gethostname()} does not see {error.filename or error}: the machines of a cluster share "
            "intermediate files, so set data.scratch to a folder that all of them see."
        ), True
    except (LlmrecError, OSError) as error:
        return error, True
    except Exception as error:
        if is_disk_full(error):
            return OSError(errno.ENOSPC, str(error)), True
        raise


def _number(row: dict[str, Any]) -> int:
    return int(row["number"])


def _result(row: dict[str, Any]) -> Any:
    result = pickle.loads(row["result"])  # noqa: S301  from a task of this very run
    if row["failed"]:
        raise result
    return result
