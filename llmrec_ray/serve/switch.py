"""What each replica should hold, and when all move to another snapshot: the rules, without Ray, files or clocks.

A snapshot is a Release with the first n changes to its items. Replicas report what they hold and are told what to
hold. A new snapshot is held beside the active one; when every replica that is alive holds it, it becomes active; the
old one is kept until no Ingress works with it any more. A snapshot that a replica cannot load is refused, and the
active one stays. A response is made by one snapshot alone, since its id travels with every request.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from llmrec_ray.release import Release

__all__ = ["Orders", "Report", "SnapshotKey", "Switch"]

logger = logging.getLogger("ray.serve")

ALIVE_S = 10.0
"""A replica that has not reported for so long is gone."""
GRACE_S = 2.0
"""How long the old snapshot is kept at least, for calls on their way to stages."""
PATIENCE_S = 300.0
"""A snapshot that some replica does not hold after so long is refused."""


@dataclass(frozen=True)
class SnapshotKey:
    """A Release and how many changes to its items are in."""

    release: Release
    version: int = 0

    @property
    def id(self) -> str:
        """Names the snapshot in requests and responses."""
        return self.release.id if self.version == 0 else f"{self.release.id}+{self.version}"


@dataclass(frozen=True)
class Report:
    """What one replica says about itself.

    held: ids of loaded snapshots. active: the one that new requests are answered with. using: that, and those that
    earlier requests are still being answered with. failed: ids that could not be loaded, and why.
    """

    replica: str
    stage: str
    held: tuple[str, ...] = ()
    active: str = ""
    using: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Orders:
    """What a replica should hold, and the snapshot to answer new requests with."""

    hold: tuple[SnapshotKey, ...]
    active: str


class Switch:
    """Decides for a set of stages, each of which must have a replica before anything is switched."""

    def __init__(self, active: SnapshotKey, stages: Collection[str]) -> None:
        self.active = active
        self.pending: SnapshotKey | None = None
        self.refused: dict[str, str] = {}
        self._old: dict[str, tuple[SnapshotKey, float]] = {}
        self._stages = frozenset(stages)
        self._reports: dict[str, tuple[Report, float]] = {}
        self._since = 0.0

    def propose(self, key: SnapshotKey, now: float) -> None:
        """Have a verified snapshot loaded beside the active one, in place of one that was still pending."""
        if key.id == self.active.id:
            self.pending = None
            return
        self.refused.pop(key.id, None)
        self._forget_failures(key.id)
        self.pending, self._since = key, now

    def refuse(self, snapshot_id: str, reason: str) -> None:
        """Go on with the active one; `reason` is shown to administrators."""
        logger.error("Snapshot %s is refused, and %s stays: %s", snapshot_id, self.active.id, reason)
        self.refused[snapshot_id] = reason
        if self.pending is not None and self.pending.id == snapshot_id:
            self.pending = None

    def report(self, report: Report, now: float) -> Orders:
        """Take note of a replica, switch if all is ready, and answer what it should hold."""
        self._reports[report.replica] = (report, now)
        self.tick(now)
        kept = (self.active, self.pending, *(key for key, _ in self._old.values()))
        return Orders(tuple(key for key in kept if key is not None), self.active.id)

    def tick(self, now: float) -> None:
        """What time alone brings about."""
        self._reports = {
            name: (report, seen) for name, (report, seen) in self._reports.items() if now - seen < ALIVE_S
        }
        if self.pending is not None:
            self._decide(self.pending, now)
        self._old = {
            name: (key, left) for name, (key, left) in self._old.items() if now - left < GRACE_S or self._uses(name)
        }

    def is_everywhere(self) -> bool:
        """Whether every replica that is alive answers new requests with the active snapshot."""
        return all(report.active == self.active.id for report in self.replicas())

    def replicas(self) -> list[Report]:
        """The newest report of every replica that is alive."""
        return [report for report, _ in self._reports.values()]

    def _decide(self, pending: SnapshotKey, now: float) -> None:
        live = self.replicas()
        failure = next((report for report in live if pending.id in report.failed), None)
        if failure is not None:
            self.refuse(pending.id, f"{failure.stage}: {failure.failed[pending.id]}")
        elif {report.stage for report in live} >= self._stages and all(pending.id in one.held for one in live):
            logger.info("Snapshot %s is active now, after %s.", pending.id, self.active.id)
            self._old[self.active.id] = (self.active, now)
            self._old.pop(pending.id, None)
            self.active, self.pending, self._since = pending, None, now
        elif now - self._since > PATIENCE_S:
            holding = sum(pending.id in report.held for report in live)
            self.refuse(pending.id, f"after {PATIENCE_S:.0f} s only {holding} of {len(live)} replicas held it")

    def _uses(self, snapshot_id: str) -> bool:
        return any(snapshot_id in report.using for report in self.replicas())

    def _forget_failures(self, snapshot_id: str) -> None:
        for name, (report, seen) in self._reports.items():
            failed = {key: reason for key, reason in report.failed.items() if key != snapshot_id}
            self._reports[name] = (replace(report, failed=failed), seen)
