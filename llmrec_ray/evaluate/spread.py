"""Ranking a task by many processes: blocks of users go to a pool of Ray actors, or are ranked here one after another.

Each worker opens the artifacts once. What comes back is a rank per target and system, and sums over the lists that
do not grow with the users, so memory is bounded:

    here        8 bytes x (events + targets x (systems + 4)), and one baseline
    a worker    the artifacts, batch_users x items x (4 x signals + 24) bytes, 8 bytes x items x systems x cut-offs, and
                50,000 text vectors where items are held out

Blocks are the same whatever the number of workers, and each is ranked by one thread, since two round otherwise than
one; so the figures are the same too, bit by bit. Other batch_users change scores by rounding, which can only part items
that are equal but for it. Systems and tasks are known by their methods only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.errors import ClusterError, LlmrecError
from llmrec_ray.evaluate.systems import Ranked, Ranking
from llmrec_ray.metrics import ListSums
from llmrec_ray.types import FloatArray

__all__ = ["Pool", "Worker", "pool"]

logger = logging.getLogger(__name__)

Ranks: TypeAlias = NDArray[np.float64]
BLOCKS_IN_FLIGHT = 2


class Block(Protocol):
    """Something that can be cut into pieces of users."""

    def __len__(self) -> int: ...

    def piece(self, start: int, stop: int) -> Self:
        """The part for the users at these places."""


class Ranker(Protocol):
    """A system for some kind of block."""

    def rank(self, task: Any) -> Iterator[tuple[str, Ranked]]:
        """Name and result of every ranking."""


class Worker:
    """Ranks blocks by systems that were opened here or are handed over, and sums up their lists.

    vectors: [N, d] of items, for the diversity of lists, or None.
    """

    def __init__(
        self, systems: Mapping[str, Ranker], ks: Sequence[int], n_items: int, vectors: FloatArray | None = None
    ) -> None:
        self._systems, self._ks, self._n_items, self._vectors = systems, tuple(ks), n_items, vectors
        self._sums: dict[str, dict[int, ListSums]] = {}

    def rank(self, system: str | Ranker, task: Block, start: int, stop: int) -> dict[str, Ranks]:
        """Ranks of the block's targets by each ranking of a system, an opened one by name."""
        ranker = self._systems[system] if isinstance(system, str) else system
        ranks = {}
        for name, ranked in ranker.rank(task.piece(start, stop)):
            ranks[name] = ranked.ranks
            if ranked.lists is not None:
                found = {k: ListSums.of(ranked.lists[:, :k], self._n_items, self._vectors) for k in self._ks}
                self._sums[name] = _added(self._sums.get(name, {}), found)
        return ranks

    def take_sums(self) -> dict[str, dict[int, ListSums]]:
        """The sums of all lists since the last call."""
        sums, self._sums = self._sums, {}
        return sums


class Pool(Protocol):
    """Workers that rank all blocks of a task."""

    def rank(
        self, system: str | Ranker, task: Block, batch_users: int, advance: Callable[[int], object]
    ) -> dict[str, Ranking]:
        """Every ranking of a system, in the order of the users; `advance` hears of users that are done."""


@contextmanager
def pool(open_worker: Callable[[], Worker], num_workers: int) -> Iterator[Pool]:
    """`num_workers` workers for the length of the block; one is this process.

    open_worker: opens the artifacts; it travels to the workers. More workers need the Ray that is connected, and are
    as many as it has CPUs at most. Raises ClusterError when one is lost.
    """
    if num_workers == 1:
        yield _Here(open_worker())
        return
    actors = _OnRay(open_worker, num_workers)
    try:
        yield actors
    finally:
        actors.stop()


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


class _Here:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def rank(
        self, system: str | Ranker, task: Block, batch_users: int, advance: Callable[[int], object]
    ) -> dict[str, Ranking]:
        done = []
        with _one_thread():
            for start, stop in _blocks(len(task), batch_users):
                done.append(self._worker.rank(system, task, start, stop))
                advance(stop - start)
            return _joined(done, [self._worker.take_sums()])


class _OnRay:
    def __init__(self, open_worker: Callable[[], Worker], num_workers: int) -> None:
        import ray

        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        if cpus < num_workers:
            logger.info("evaluate.num_workers is %d, but Ray has %d CPUs: %d workers", num_workers, cpus, cpus)
        actor = ray.remote(num_cpus=1)(_Remote)
        self._actors = [actor.remote(open_worker) for _ in range(min(num_workers, cpus))]

    def rank(
        self, system: str | Ranker, task: Block, batch_users: int, advance: Callable[[int], object]
    ) -> dict[str, Ranking]:
        import ray

        shared, ranker = ray.put(task), system if isinstance(system, str) else ray.put(system)
        with _told():
            waiting = list(enumerate(_blocks(len(task), batch_users)))[::-1]
            done: dict[int, dict[str, Ranks]] = {}
            running: dict[Any, tuple[Any, int, int]] = {}
            free = [actor for actor in self._actors for _ in range(BLOCKS_IN_FLIGHT)]
            while waiting or running:
                while waiting and free:
                    actor, (number, (start, stop)) = free.pop(0), waiting.pop()
                    running[actor.rank.remote(ranker, shared, start, stop)] = actor, number, stop - start
                [ready], _ = ray.wait(list(running), num_returns=1)
                actor, number, users = running.pop(ready)
                done[number] = ray.get(ready)
                free.append(actor)
                advance(users)
            sums = ray.get([actor.take_sums.remote() for actor in self._actors])
        return _joined([done[number] for number in sorted(done)], sums)

    def stop(self) -> None:
        """End the actors."""
        import ray

        for actor in self._actors:
            ray.kill(actor)


class _Remote:
    """What a Ray actor runs: a Worker over artifacts that it opens itself.

    It opens them at the first call: an error while an actor is made would reach nobody as what it is.
    """

    def __init__(self, open_worker: Callable[[], Worker]) -> None:
        self._open = open_worker
        self._opened: Worker | None = None

    def rank(self, system: str | Ranker, task: Block, start: int, stop: int) -> dict[str, Ranks]:
        with _one_thread():
            return self._worker.rank(system, task, start, stop)

    def take_sums(self) -> dict[str, dict[int, ListSums]]:
        with _one_thread():
            return self._worker.take_sums()

    @property
    def _worker(self) -> Worker:
        self._opened = self._opened or self._open()
        return self._opened


@contextmanager
def _told() -> Iterator[None]:
    """Errors of workers as errors for people."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, LlmrecError):
            raise cause from None
        if isinstance(error, ray.exceptions.RayTaskError):
            raise
        raise ClusterError(
            f"A worker of the evaluation was lost ({' '.join(str(error).split())[:200]}): if it ran out of memory, "
            "lower evaluate.batch_users or evaluate.num_workers."
        ) from error


def _blocks(n: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def _joined(blocks: Sequence[dict[str, Ranks]], sums: Sequence[dict[str, dict[int, ListSums]]]) -> dict[str, Ranking]:
    names = list(dict.fromkeys(name for block in blocks for name in block))
    total: dict[str, dict[int, ListSums]] = {name: {} for name in names}
    for each in sums:
        for name, found in each.items():
            total[name] = _added(total[name], found)
    return {name: Ranking(np.concatenate([block[name] for block in blocks]), total[name]) for name in names}


def _added(some: Mapping[int, ListSums], others: Mapping[int, ListSums]) -> dict[int, ListSums]:
    return {k: sums if k not in some else some[k] + sums for k, sums in others.items()} if others else dict(some)
