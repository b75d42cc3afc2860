"""The stages of `recommend` as Serve replicas: each makes its part of every snapshot that it is told to hold.

A call names the snapshot that it is meant for and gets that one's objects, whatever has become active since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

import ray
from ray.serve.handle import DeploymentHandle

from llmrec_ray.changes import ChangeLog
from llmrec_ray.recommend import (
    Encoded,
    Encoder,
    Ranked,
    RequestBatch,
    Reranker,
    Retrieved,
    Retriever,
)
from llmrec_ray.recommend.snapshot import Snapshot
from llmrec_ray.serve.args import ServeArgs
from llmrec_ray.serve.held import Held
from llmrec_ray.serve.metrics import StageMetrics
from llmrec_ray.serve.switch import SnapshotKey
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["EncoderReplica", "Part", "RerankerReplica", "RetrieverReplica", "make_encoder", "open_snapshot"]

Stage = TypeVar("Stage")


@dataclass(frozen=True)
class Part(Generic[Stage]):
    """A snapshot, and what a replica made of it."""

    snapshot: Snapshot
    stage: Stage


def open_snapshot(release_uri: str, key: SnapshotKey, base: Snapshot | None) -> Snapshot:
    """A snapshot of the Releases beside `release_uri`, from an earlier one of the same Release where there is one."""
    snapshot = Snapshot.open(key.release) if base is None or base.changes.version > key.version else base
    if key.version == snapshot.changes.version:
        return snapshot
    return snapshot.changed(ChangeLog.of(release_uri, key.release.id).read(key.version, since=snapshot.changes))


def make_encoder(snapshot: Snapshot, before: Encoder | None, looked_up: Callable[[bool], None]) -> Encoder:
    """The Encoder of a snapshot, on the GPU where the deployment reserves one; changes to items leave it as it is."""
    return before or Encoder(snapshot.texts, "cuda" if ray.get_gpu_ids() else "cpu", looked_up=looked_up)


class _Replica(Generic[Stage]):
    """Holds snapshots, and measures calls."""

    def __init__(
        self, name: str, args: ServeArgs, releases: DeploymentHandle,
        make: Callable[[Snapshot, Stage | None], Stage],
    ) -> None:
        def load(key: SnapshotKey, base: Part[Stage] | None) -> Part[Stage]:
            snapshot = open_snapshot(args.release_uri, key, None if base is None else base.snapshot)
            return Part(snapshot, make(snapshot, None if base is None else base.stage))

        self.metrics = StageMetrics(name)
        self.held = Held(name, releases, load, args.follow.sync_s, self.metrics.release)

    def held_snapshots(self) -> list[str]:
        """Ids of the snapshots in memory."""
        return self.held.ids

    def check_health(self) -> None:
        """Asked by Serve; raises when the replica should be replaced."""
        self.held.check_health()


class EncoderReplica(_Replica[Encoder]):
    """Text → vector."""

    async def __init__(self, args: ServeArgs, releases: DeploymentHandle) -> None:  # type: ignore[misc]
        super().__init__(
            "encoder", args, releases, lambda snapshot, before: make_encoder(snapshot, before, self.metrics.cache)
        )
        await self.held.start()

    def encode(self, snapshot_id: str, queries: Sequence[str], profiles: Sequence[str]) -> Encoded:
        """See `Encoder.encode`."""
        start = perf_counter()
        encoded = self.held.get(snapshot_id).stage.encode(queries, profiles)
        self.metrics.observe(perf_counter() - start, len(queries))
        return encoded

    def encode_items(self, snapshot_id: str, texts: Sequence[str]) -> FloatArray:
        """See `Encoder.encode_items`."""
        return self.held.get(snapshot_id).stage.encode_items(texts)


class RetrieverReplica(_Replica[Retriever]):
    """User vector and sources → candidates."""

    async def __init__(self, args: ServeArgs, releases: DeploymentHandle) -> None:  # type: ignore[misc]
        def make(snapshot: Snapshot, _: Retriever | None) -> Retriever:
            return Retriever(
                snapshot.bundle, snapshot.index, snapshot.attributes, snapshot.policy, snapshot.id,
                hidden=snapshot.hidden_rows, deadline_s=args.deadlines.source_s,
            )

        super().__init__("retriever", args, releases, make)
        await self.held.start()

    def retrieve(self, batch: RequestBatch, encoded: Encoded | None) -> Retrieved:
        """See `Retriever.retrieve`."""
        start = perf_counter()
        retrieved = self.held.get(batch.release_id).stage.retrieve(batch, encoded)
        self.metrics.observe(perf_counter() - start, len(batch))
        for source, marks in retrieved.candidates.sources.items():
            self.metrics.candidates(source, int(marks.sum()) // max(len(batch), 1))
        return retrieved

    def similar(self, snapshot_id: str, item_rows: IntArray, k: int) -> tuple[IntArray, FloatArray]:
        """See `Retriever.similar`."""
        return self.held.get(snapshot_id).stage.similar(item_rows, k)


class RerankerReplica(_Replica[Reranker]):
    """Candidates → final order."""

    async def __init__(self, args: ServeArgs, releases: DeploymentHandle) -> None:  # type: ignore[misc]
        super().__init__(
            "reranker", args, releases,
            lambda snapshot, _: Reranker(snapshot.bundle, snapshot.policy, snapshot.id),
        )
        await self.held.start()

    def rerank(self, batch: RequestBatch, retrieved: Retrieved) -> Ranked:
        """See `Reranker.rerank`."""
        start = perf_counter()
        ranked = self.held.get(batch.release_id).stage.rerank(batch, retrieved)
        self.metrics.observe(perf_counter() - start, len(batch))
        return ranked
