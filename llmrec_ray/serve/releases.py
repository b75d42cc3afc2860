"""The deployment that decides which snapshot is served: it follows the pointer, verifies, and lets replicas switch.

It has one replica and stands beside the way of requests: without it everything that is held goes on. It is the only
writer of the log of changes to items. What to do when is in `switch`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from time import monotonic
from typing import Any

import numpy as np

from llmrec_ray.changes import AddedItem, ChangeLog, Changes, ItemChange, NewItem, RemovedItem
from llmrec_ray.config import FollowConfig
from llmrec_ray.errors import ArtifactError, ArtifactMismatchError, ArtifactNotFoundError, LlmrecError, RequestError
from llmrec_ray.index import measured_recall
from llmrec_ray.recommend import Encoder, Pipeline, Request
from llmrec_ray.recommend.snapshot import Snapshot
from llmrec_ray.release import Release, load_release, point_at, rollback_pointer
from llmrec_ray.serve.replicas import open_snapshot
from llmrec_ray.serve.switch import Orders, Report, SnapshotKey, Switch
from llmrec_ray.types import FloatArray

__all__ = ["Releases"]

logger = logging.getLogger("ray.serve")

SETTLE_ROUNDS = 3
SWITCH_TIMEOUT_S = 120.0
POLL_S = 0.1


class Releases:
    """See the module. `stages`: names of the deployments that must hold a snapshot before it is switched to."""

    def __init__(self, release_uri: str, follow: FollowConfig, stages: Collection[str]) -> None:
        self._uri, self._follow_config, self._stages = release_uri, follow, frozenset(stages)
        self._switch: Switch | None = None
        self._snapshot: Snapshot | None = None
        self._first_report_s: float | None = None
        self._tried = ""
        self._pointer_error: str | None = None
        self._changing = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None

    async def report(self, report: Report) -> Orders:
        """What a replica says about itself -> what it should hold."""
        if self._following is None:
            self._following = asyncio.get_running_loop().create_task(self._follow())
        switch = await self._settled(report)
        return switch.report(report, monotonic())

    async def status(self) -> dict[str, Any]:
        """What is served, what is on its way, what was refused and why, and who holds what."""
        switch = self._switch
        if switch is None:
            return {"active": None, "pending": None, "refused": {}, "replicas": {}, "pointer_error": None}
        replicas: dict[str, list[list[str]]] = {}
        for report in switch.replicas():
            replicas.setdefault(report.stage, []).append(sorted(report.held))
        return {
            "active": switch.active.id,
            "pending": None if switch.pending is None else switch.pending.id,
            "refused": dict(switch.refused),
            "replicas": replicas,
            "pointer_error": self._pointer_error,
        }

    async def publish(self, release_id: str | None) -> dict[str, Any]:
        """Point at a Release of the same folder, None for the one before the current, and wait until it is served.

        Raises RequestError when there is no such Release, or it is refused; the pointer then leads to what is served.
        """
        release = await asyncio.to_thread(self._point, release_id)
        self._tried = ""
        await self._look()
        await self._wait(lambda key: key.release.id == release.id)
        switch = self._switch
        assert switch is not None, "a Release without a switch. This is a bug."
        if switch.active.release.id != release.id:
            refused = {name.partition("+")[0]: reason for name, reason in switch.refused.items()}
            late = f"not every replica held it within {SWITCH_TIMEOUT_S:.0f} s"
            reason = refused.get(release.id, self._pointer_error or late)
            await asyncio.to_thread(point_at, self._uri, switch.active.release.id)
            raise RequestError(f"Release {release.id} is not served: {reason}.", field="release_id", code="refused")
        return await self.status()

    def _point(self, release_id: str | None) -> Release:
        try:
            return rollback_pointer(self._uri) if release_id is None else point_at(self._uri, release_id)
        except ArtifactNotFoundError as error:
            logger.warning("%s", error)
            which = "before the current one" if release_id is None else release_id
            raise RequestError(
                f"There is no Release {which}: `llmrec publish` makes one.", field="release_id", code="not_found"
            ) from None
        except ArtifactError as error:
            logger.warning("%s", error)
            raise RequestError(
                f"Release {release_id} cannot be read: publish it again.", field="release_id", code="refused"
            ) from None

    async def check_additions(self, items: Sequence[NewItem]) -> str:
        """Id of the snapshot whose Encoder should read the texts. Raises RequestError."""
        snapshot = await self._active_snapshot()
        snapshot.check_additions(items)
        return snapshot.id

    async def add_items(self, items: Sequence[NewItem], vectors: FloatArray, read_by: str) -> str:
        """Keep new items with their raw text vectors [n, T]; the snapshot's id, once every replica has them.

        read_by: id of the snapshot whose Encoder made the vectors. Raises RequestError for items that cannot be added.
        """
        async with self._changing:
            snapshot = await self._newest_snapshot()
            if read_by.partition("+")[0] != snapshot.release.id:
                raise RequestError(
                    f"Release {snapshot.release.id} has come to be served while the texts were read: send the items "
                    "again.", field="items", code="conflict",
                )
            snapshot.check_additions(items)
            added = [AddedItem.of(item, vector) for item, vector in zip(items, vectors, strict=True)]
            return await self._change(snapshot, added)

    async def remove_items(self, item_ids: Sequence[str]) -> str:
        """Never show items again; returns once every replica knows, with the snapshot's id. Raises RequestError."""
        async with self._changing:
            snapshot = await self._newest_snapshot()
            snapshot.catalogue.check_removals(item_ids)
            return await self._change(snapshot, [RemovedItem(item_id=item_id) for item_id in item_ids])

    def check_health(self) -> None:
        """Asked by Serve; raises when the replica should be replaced."""
        if self._following is not None and self._following.done():
            raise RuntimeError("Releases has stopped following the pointer.")

    async def _settled(self, report: Report) -> Switch:
        """The switch; after a restart it begins with what the Ingress replicas answer with, else with the pointer."""
        now = monotonic()
        if self._first_report_s is None:
            self._first_report_s = now
        while self._switch is None:
            if report.active:
                key = await asyncio.to_thread(self._key_of, report.active)
                self._begin(key, await asyncio.to_thread(self._newest_version, key.release))
            elif monotonic() - self._first_report_s > SETTLE_ROUNDS * self._follow_config.sync_s:
                release = await asyncio.to_thread(load_release, self._uri)
                version = await asyncio.to_thread(self._newest_version, release)
                self._begin(SnapshotKey(release, version), version)
            else:
                await asyncio.sleep(self._follow_config.sync_s / 2)
        return self._switch

    def _begin(self, key: SnapshotKey, newest_version: int) -> None:
        """With what is answered with; changes of its items that were kept but are not served yet come next."""
        if self._switch is None:
            self._switch, self._tried = Switch(key, self._stages), key.release.id
            if newest_version > key.version:
                self._switch.propose(SnapshotKey(key.release, newest_version), monotonic())

    def _key_of(self, snapshot_id: str) -> SnapshotKey:
        release_id, _, version = snapshot_id.partition("+")
        current = load_release(self._uri)
        folder = self._uri.rpartition("/")[0]
        release = current if current.id == release_id else load_release(f"{folder}/{release_id}.json")
        return SnapshotKey(release, int(version or 0))

    def _newest_version(self, release: Release) -> int:
        return ChangeLog.of(self._uri, release.id).version()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._follow_config.pointer_s)
            if self._switch is not None:
                self._switch.tick(monotonic())
                await self._look()

    async def _look(self) -> None:
        """Propose what the pointer names, once, when it is another Release than the last that was tried."""
        assert self._switch is not None, "nothing to switch from. This is a bug."
        async with self._changing:
            try:
                release = await asyncio.to_thread(load_release, self._uri)
            except (LlmrecError, OSError) as error:
                if self._pointer_error is None:
                    logger.error("The pointer to the current Release cannot be followed: %s", error)
                self._pointer_error = str(error)
                return
            self._pointer_error = None
            if release.id != self._tried:
                self._tried = release.id
                await self._propose(release)

    async def _propose(self, release: Release) -> None:
        switch = self._switch
        assert switch is not None, "nothing to switch from. This is a bug."
        if release.id == switch.active.release.id:
            switch.propose(switch.active, monotonic())
            return
        try:
            before = (await self._newest_snapshot()).changes
            version = await asyncio.to_thread(self._verify, release, before)
        except OSError as error:  # storage that fails for a moment; the next look begins again
            logger.warning("Release %s could not be read yet: %s", release.id, error)
            self._tried = ""
            return
        except Exception as error:
            switch.refuse(release.id, f"{type(error).__name__}: {error}")
            return
        switch.propose(SnapshotKey(release, version), monotonic())
        await self._wait(lambda key: key.release.id == release.id)

    def _verify(self, release: Release, before: Changes) -> int:
        """Open everything with its hashes, carry changes over and answer a request; the newest version of changes."""
        log = ChangeLog.of(self._uri, release.id)
        version = log.version()
        snapshot = open_snapshot(self._uri, SnapshotKey(release, version), None)
        if carried := _carried_over(before, snapshot):
            version = log.append(carried, after=version)
        _check_answers(open_snapshot(self._uri, SnapshotKey(release, version), snapshot))
        return version

    async def _active_snapshot(self) -> Snapshot:
        assert self._switch is not None, "nothing is active. This is a bug."
        key = self._switch.active
        if self._snapshot is None or self._snapshot.id != key.id:
            base = self._snapshot if self._snapshot and self._snapshot.release.id == key.release.id else None
            self._snapshot = await asyncio.to_thread(open_snapshot, self._uri, key, base)
        return self._snapshot

    async def _newest_snapshot(self) -> Snapshot:
        """Of the active Release, with every change of its items that was kept, served already or not."""
        snapshot = await self._active_snapshot()
        version = await asyncio.to_thread(self._newest_version, snapshot.release)
        return await asyncio.to_thread(open_snapshot, self._uri, SnapshotKey(snapshot.release, version), snapshot)

    async def _change(self, snapshot: Snapshot, changes: Sequence[ItemChange]) -> str:
        switch = self._switch
        assert switch is not None, "nothing is active. This is a bug."
        if switch.pending is not None and switch.pending.release.id != snapshot.release.id:
            raise RequestError(
                f"Release {switch.pending.release.id} is being loaded and would lack this change: send it again when "
                "GET /v1/admin/status names nothing pending.", field="items", code="conflict",
            )
        await asyncio.to_thread(_check_opens, snapshot, changes)
        log = ChangeLog.of(self._uri, snapshot.release.id)
        version = await asyncio.to_thread(lambda: log.append(changes, after=snapshot.changes.version))
        key = SnapshotKey(snapshot.release, version)
        switch.propose(key, monotonic())
        if not await self._wait(lambda active: active.id == key.id):
            reason = switch.refused.get(key.id, f"not every replica had it within {SWITCH_TIMEOUT_S:.0f} s")
            raise RequestError(f"The items were kept, but are not served yet: {reason}.", field="items", code="refused")
        return key.id

    async def _wait(self, reached: Any) -> bool:
        """Whether the active snapshot becomes what is wanted before nothing is pending any more, or time is up.

        Every replica that is alive answers with it then.
        """
        switch = self._switch
        assert switch is not None, "nothing is active. This is a bug."
        deadline = monotonic() + SWITCH_TIMEOUT_S
        while not reached(switch.active) and switch.pending is not None and monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        while reached(switch.active) and not switch.is_everywhere() and monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        return bool(reached(switch.active))


def _carried_over(before: Changes, snapshot: Snapshot) -> list[ItemChange]:
    """What makes the items of a Release those that were served before it: what was removed stays so, and what was added
    goes on, also where the Release was served, and changed, at an earlier time.
    """
    catalogue = snapshot.catalogue
    removed = [RemovedItem(item_id=item_id) for item_id in sorted(before.gone) if catalogue.shown(item_id) >= 0]
    added = [
        NewItem(**item.model_dump(include=set(NewItem.model_fields)))
        for item in before.live if catalogue.shown(item.item_id) < 0
    ]
    if not added:
        return [*removed]
    try:
        snapshot.check_additions([])
    except RequestError as error:
        logger.warning("%d added items are not carried over to release %s: %s", len(added), snapshot.id, error)
        return [*removed]
    vectors = Encoder(snapshot.texts).encode_items([item.text for item in added])
    return [*removed, *(AddedItem.of(item, vector) for item, vector in zip(added, vectors, strict=True))]


def _check_opens(snapshot: Snapshot, changes: Sequence[ItemChange]) -> None:
    """Raise what making the next snapshot raises, before a change is kept that no replica could open."""
    changed = snapshot.changed(snapshot.changes.after(list(changes)))
    assert len(changed.index) == len(changed.bundle.item_vectors), "an index of other items. This is a bug."


def _check_answers(snapshot: Snapshot) -> None:
    """Raise ArtifactError for an approximate index that finds too little, and ArtifactMismatchError when a known or an
    unknown user gets no answer, or one that is not finite."""
    if snapshot.index.config.kind == "hnsw":
        measured_recall(snapshot.index, snapshot.bundle, snapshot.index.config)
    pipeline = Pipeline.of_snapshot(snapshot, with_encoder=False)
    users = snapshot.catalogue.users
    known = [Request(user_id=users.id(0), exclude_seen=False)] if len(users) else []
    asked = [*known, Request(history=[])]
    for request, answer in zip(asked, pipeline.recommend(asked), strict=True):
        if not answer.items or not np.isfinite([item.score for item in answer.items]).all():
            who = "a known user" if request.user_id else "an unknown user"
            raise ArtifactMismatchError(f"{who} gets {len(answer.items)} items from release {snapshot.release.id}.")
