"""Building an Index from a Bundle; an approximate structure is measured against exact search before it is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from llmrec_ray.artifact import Artifact, create_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import IndexConfig
from llmrec_ray.errors import ArtifactError
from llmrec_ray.index.search import ExactSearch, HnswSearch, Searcher
from llmrec_ray.types import FloatArray, Histories

__all__ = ["build_index", "measured_recall", "recall_at"]

RECALL_K = 100
PROBE_USERS = 256
PROBE_HISTORY = 20


def build_index(bundle: Bundle, config: IndexConfig, root: str) -> Artifact:
    """Write an Index over the Bundle's item vectors under `root`.

    An approximate structure is measured against exact search with user vectors of random histories; the
    recall goes into the manifest. Raises ArtifactError, leaving nothing behind, when it is below `min_recall`.
    """
    vectors = np.ascontiguousarray(bundle.item_vectors, dtype=np.float32)
    metrics: dict[str, float] = {"items": float(len(vectors))}
    graph = HnswSearch.build(vectors, config) if config.kind == "hnsw" else None
    if graph is not None:
        metrics[f"recall@{RECALL_K}"] = measured_recall(graph, bundle, config)

    def write(folder: Path) -> None:
        save_file({"item_vectors": vectors}, folder / "vectors.safetensors")
        if graph is not None:
            graph.save(folder / "hnsw.faiss")

    return create_artifact(
        root, "index", write,
        config=config.model_dump(mode="json"), parents={"bundle": bundle.id}, metrics=metrics,
    )


def measured_recall(searcher: Searcher, bundle: Bundle, config: IndexConfig) -> float:
    """Recall@100 of the Bundle's items for people with random histories. Raises ArtifactError below min_recall."""
    users = bundle.user_vectors(_probe_histories(len(bundle.items)))
    recall = recall_at(searcher, bundle.item_vectors, users, RECALL_K)
    if recall < config.min_recall:
        raise ArtifactError(
            f"The HNSW index finds {recall:.3f} of the true {RECALL_K} nearest items, below index.min_recall "
            f"{config.min_recall}: raise index.ef_search or index.hnsw_neighbors, or set index.kind to exact."
        )
    return recall


def recall_at(searcher: Searcher, item_vectors: FloatArray, user_vectors: FloatArray, k: int) -> float:
    """Mean share of the exact k nearest items of user vectors [B, D] that `searcher` finds."""
    expected, _ = ExactSearch(item_vectors).search(user_vectors, k)
    found, _ = searcher.search(user_vectors, k)
    hits = [len(np.intersect1d(one, other)) for one, other in zip(expected, found, strict=True)]
    return float(np.mean(hits) / max(expected.shape[1], 1))


def _probe_histories(n_items: int) -> Histories:
    draws = np.random.default_rng(0).integers(0, n_items, (PROBE_USERS, PROBE_HISTORY))
    return Histories.from_lists(list(draws))
