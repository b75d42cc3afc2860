"""All stages in one process: what evaluation measures, tests call, and the endpoint spreads over replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Self

import numpy as np

from llmrec_ray.bundle import Bundle
from llmrec_ray.config import RequestLimits
from llmrec_ray.data import Dataset
from llmrec_ray.index import Index
from llmrec_ray.recommend.batch import Encoded, Ranked, RequestBatch
from llmrec_ray.recommend.catalogue import Catalogue
from llmrec_ray.recommend.encoder import Encoder
from llmrec_ray.recommend.messages import Request, Response, SimilarItem
from llmrec_ray.recommend.reranker import Reranker
from llmrec_ray.recommend.resolver import Resolver
from llmrec_ray.recommend.retriever import Retriever
from llmrec_ray.recommend.snapshot import Snapshot
from llmrec_ray.release import Release
from llmrec_ray.signals import FusionPolicy
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Pipeline"]


class Pipeline:
    """Resolve, encode when there is a text, retrieve, rerank, respond."""

    def __init__(
        self,
        dataset: Dataset | Catalogue,
        bundle: Bundle,
        index: Index,
        *,
        policy: FusionPolicy | None = None,
        release_id: str = "unpublished",
        limits: RequestLimits | None = None,
        encoder: Encoder | None = None,
        with_encoder: bool = True,
        hidden: IntArray | None = None,
    ) -> None:
        """dataset: or the catalogue made of it. encoder: the Bundle's, when it has been loaded already. with_encoder:
        load it, else requests may carry no text. hidden: rows of items that nobody is shown."""
        policy = policy or bundle.policy
        self.policy = policy
        catalogue = Catalogue.of(dataset) if isinstance(dataset, Dataset) else dataset
        hidden = np.empty(0, np.int64) if hidden is None else hidden
        self._catalogue, self._bundle, self._index, self._hidden = catalogue, bundle, index, hidden
        self._release_id, self._limits = release_id, limits
        has_encoder = bundle.has_encoder and (with_encoder or encoder is not None)
        self.resolver = Resolver(
            catalogue, release_id, signals=bundle.signal_names, has_encoder=has_encoder,
            limits=limits or RequestLimits(),
        )
        self.encoder = encoder or (Encoder(bundle.texts) if has_encoder else None)
        self.retriever = Retriever(bundle, index, catalogue.attributes, policy, release_id, hidden=hidden)
        self.reranker = Reranker(bundle, policy, release_id)

    @classmethod
    def of_release(cls, release: Release, *, limits: RequestLimits | None = None) -> Self:
        """Load and verify everything a Release names."""
        return cls.of_snapshot(Snapshot.open(release), limits=limits)

    @classmethod
    def of_snapshot(
        cls, snapshot: Snapshot, *, limits: RequestLimits | None = None, with_encoder: bool = True
    ) -> Self:
        """A Release with changes to its items."""
        return cls(
            snapshot.catalogue, snapshot.bundle, snapshot.index, policy=snapshot.policy, release_id=snapshot.id,
            limits=limits, with_encoder=with_encoder, hidden=snapshot.hidden_rows,
        )

    def recommend(
        self, requests: Sequence[Request], recent: Mapping[str, Sequence[str]] | None = None
    ) -> list[Response]:
        """One Response per Request; all are computed together and share the timings.

        recent: item ids of events that came after the Dataset, by user id, oldest first. Raises RequestError.
        """
        if not requests:
            return []
        start = perf_counter()
        batch = self.resolver.resolve(requests, recent or {})
        encoded = None
        if self.encoder is not None and batch.has_text:
            encoded = self.encoder.encode(batch.queries, batch.profiles)
        ranked = self._rank(batch, encoded)
        timings = {**ranked.timings_ms, "total": (perf_counter() - start) * 1000}
        return self.resolver.respond(requests, batch, ranked, timings)

    def recommend_rows(self, histories: Histories, k: int) -> IntArray:
        """Item rows [B, k] for users given as histories, best first, without seen items; -1 after these."""
        rows = self._rank(RequestBatch.of_histories(self._release_id, histories, k), None).item_rows
        missing = k - rows.shape[1]
        return np.pad(rows, ((0, 0), (0, missing)), constant_values=-1) if missing > 0 else rows

    def list_length(self, least: int) -> int:
        """The longest list for which no source proposes more than its policy says, but `least` anyway: `cold` apart,
        every source proposes as many items as are asked for."""
        proposed = [n for source, n in self.policy.candidates.items() if source != "cold"]
        return max(least, min(proposed, default=least))

    def score_rows(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Fused scores [B, C] float32 of given item rows, as a request would be ranked; NaN where the row is -1."""
        return self.reranker.score(histories, item_rows)

    @property
    def index_uri(self) -> str:
        """Where its Index is kept."""
        return self._index.uri

    def with_policy(self, policy: FusionPolicy) -> Pipeline:
        """The same artifacts under another policy; nothing is loaded again."""
        return Pipeline(
            self._catalogue, self._bundle, self._index, policy=policy, release_id=self._release_id,
            limits=self._limits, encoder=self.encoder, with_encoder=self.encoder is not None, hidden=self._hidden,
        )

    def rank_histories(self, histories: Histories, k: int) -> Ranked:
        """What `recommend_rows` gives, with scores and what each signal and source has to do with every item."""
        return self._rank(RequestBatch.of_histories(self._release_id, histories, k, explain=True), None)

    def similar(self, item_id: str, k: int = 10) -> list[SimilarItem]:
        """The k items most like one item. Raises RequestError when the item is unknown."""
        self.resolver.check_k(k)
        rows, scores = self.retriever.similar(np.array([self.resolver.item_row(item_id)]), k)
        return self.resolver.similar_items(rows[0], scores[0])

    def _rank(self, batch: RequestBatch, encoded: Encoded | None) -> Ranked:
        return self.reranker.rerank(batch, self.retriever.retrieve(batch, encoded))
