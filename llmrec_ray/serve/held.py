"""The snapshots that a replica holds: it asks the Releases deployment what to hold, loads that, and drops the rest.

Loading happens in a thread beside the requests. What is held never changes; another snapshot is another object.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ray import serve
from ray.serve.handle import DeploymentHandle

from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.serve.switch import Orders, Report, SnapshotKey

__all__ = ["Held"]

logger = logging.getLogger("ray.serve")
Part = TypeVar("Part")

ORDERS_S = 60.0
"""How long to wait for an answer of the Releases deployment, which may be starting again."""


class Held(Generic[Part]):
    """What one replica of `stage` made of each snapshot, by the snapshot's id.

    load: what the replica makes of a snapshot; runs in a thread. It is given what was made of the newest snapshot of
    the same Release, or None, so that a change of a few items need not load everything again. switched: is told the id
    of every snapshot that becomes active.
    """

    def __init__(
        self, stage: str, releases: DeploymentHandle, load: Callable[[SnapshotKey, Part | None], Part], sync_s: float,
        switched: Callable[[str], None],
    ) -> None:
        self._stage, self._releases, self._load, self._sync_s = stage, releases, load, sync_s
        self._switched = switched
        self._parts: dict[str, Part] = {}
        self._keys: dict[str, SnapshotKey] = {}
        self._failed: dict[str, str] = {}
        self._in_use: Counter[str] = Counter()
        self._active = ""
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what is active, and follow from then on. Raises what loading raises, and TimeoutError."""
        orders = await self._orders()
        self._obey(orders)
        while self._loading:
            await asyncio.wait(self._loading.values(), timeout=self._sync_s)
            orders = await self._orders()
            self._obey(orders)
        if self._active not in self._parts:
            raise RuntimeError(f"{self._stage} could not load {orders.active}: {self._failed.get(orders.active)}")
        self._following = asyncio.get_running_loop().create_task(self._follow())

    @property
    def ids(self) -> list[str]:
        """Ids of all snapshots in memory."""
        return list(self._parts)

    @property
    def active(self) -> tuple[str, Part]:
        """Id of the snapshot for new requests, and what was made of it."""
        return self._active, self._parts[self._active]

    def get(self, snapshot_id: str) -> Part:
        """What was made of a snapshot. Raises ArtifactMismatchError when it is not held."""
        part = self._parts.get(snapshot_id)
        if part is None:
            raise ArtifactMismatchError(f"{self._stage} holds {self.ids}, not {snapshot_id}.")
        return part

    @contextlib.contextmanager
    def using(self) -> Iterator[tuple[str, Part]]:
        """The active snapshot, which stays in memory everywhere as long as the block lasts."""
        active = self._active
        self._in_use[active] += 1
        try:
            yield active, self._parts[active]
        finally:
            self._in_use[active] -= 1
            if not self._in_use[active]:
                del self._in_use[active]

    def check_health(self) -> None:
        """Raise RuntimeError when nothing follows the releases any more."""
        if self._following is not None and self._following.done():
            raise RuntimeError(f"{self._stage} has stopped following the releases.")

    async def _follow(self) -> None:
        following = asyncio.current_task()
        while following is None or not following.cancelling():  # a call may turn that into an error of its own
            await asyncio.sleep(self._sync_s)
            try:
                self._obey(await self._orders())
            except Exception as error:  # the next round may find it back; until then what is held goes on
                logger.warning("%s could not ask which release to hold: %s", self._stage, error)

    async def _orders(self) -> Orders:
        using = tuple(self._in_use)
        report = Report(
            serve.get_replica_context().replica_id.unique_id, self._stage, tuple(self._parts), self._active,
            tuple({*using, self._active} - {""}), dict(self._failed),
        )
        orders: Orders = await asyncio.wait_for(_answer(self._releases, report), ORDERS_S)
        return orders

    def _obey(self, orders: Orders) -> None:
        """Begin to load what is missing, and drop what nobody needs; loading goes on beside the next reports."""
        wanted = {key.id: key for key in orders.hold}
        self._failed = {name: reason for name, reason in self._failed.items() if name in wanted}
        for name, key in wanted.items():
            if name not in self._parts and name not in self._failed and name not in self._loading:
                self._loading[name] = asyncio.get_running_loop().create_task(self._hold(key))
        if orders.active in self._parts and orders.active != self._active:
            self._active = orders.active
            self._switched(self._active)
        for name in {*self._parts} - {*wanted, self._active, *self._in_use}:
            del self._parts[name], self._keys[name]

    async def _hold(self, key: SnapshotKey) -> None:
        related = [held for held, other in self._keys.items() if other.release.id == key.release.id]
        base = self._parts[related[-1]] if related else None
        try:
            self._parts[key.id] = await asyncio.to_thread(self._load, key, base)
            self._keys[key.id] = key
        except OSError as error:  # storage that fails for a moment; the next report begins again
            logger.warning("%s could not read %s yet: %s", self._stage, key.id, error)
        except Exception as error:
            logger.exception("%s could not load %s.", self._stage, key.id)
            self._failed[key.id] = f"{type(error).__name__}: {error}"
        finally:
            del self._loading[key.id]


async def _answer(releases: DeploymentHandle, report: Report) -> Orders:
    orders: Orders = await releases.report.remote(report)
    return orders
