"""Searching an Index: user vectors in, the item rows with the largest dot products out.

    vectors.safetensors   [N, D] float32 item vectors (the Bundle's, D = d + 1)
    hnsw.faiss            FAISS HNSW graph, only for kind `hnsw`

Shapes: B users, N items, D vector size, k list length. Knows nothing about histories or fusion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file

from llmrec_ray.artifact import Artifact, open_artifact
from llmrec_ray.config import IndexConfig
from llmrec_ray.ranking import top_k
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["ExactSearch", "HnswSearch", "Index", "Searcher"]


class Searcher(Protocol):
    """Either structure."""

    def search(self, user_vectors: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """Rows and dot products, both [B, min(k, N)], best first, ties to the lower row."""


class ExactSearch:
    """Every dot product; the oracle of every approximate structure."""

    def __init__(self, item_vectors: FloatArray) -> None:
        self.item_vectors = item_vectors

    def search(self, user_vectors: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """Rows and dot products, both [B, min(k, N)], best first, ties to the lower row."""
        return top_k(user_vectors @ self.item_vectors.T, k)


class HnswSearch:
    """FAISS HNSW over vectors made equally long, so that the largest dot product is the smallest distance.

    A vector x gets one more coordinate, sqrt(M² - |x|²) with M the greatest length, and a query gets 0 there
    (Bachrach et al. 2014). Scores are exact dot products of the rows that the graph found.
    """

    def __init__(self, item_vectors: FloatArray, graph: Any, ef_search: int) -> None:
        self.item_vectors = item_vectors
        self._graph = graph
        self._graph.hnsw.efSearch = ef_search

    @classmethod
    def build(cls, item_vectors: FloatArray, config: IndexConfig) -> HnswSearch:
        """Link the vectors [N, D] into a graph; one thread, so that the same input gives the same graph."""
        import faiss

        lengths = (item_vectors.astype(np.float64) ** 2).sum(axis=1)
        missing = np.sqrt(lengths.max(initial=0.0) - lengths)[:, None]
        augmented = np.hstack([item_vectors, missing]).astype(np.float32)
        graph = faiss.IndexHNSWFlat(augmented.shape[1], config.hnsw_neighbors)
        graph.hnsw.efConstruction = config.ef_construction
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            graph.add(augmented)
        finally:
            faiss.omp_set_num_threads(threads)
        return cls(item_vectors, graph, config.ef_search)

    @classmethod
    def load(cls, item_vectors: FloatArray, path: Path, ef_search: int) -> HnswSearch:
        """Read the graph that `save` wrote."""
        import faiss

        return cls(item_vectors, faiss.read_index(str(path)), ef_search)

    def save(self, path: Path) -> None:
        """Write the graph in FAISS's own format."""
        import faiss

        faiss.write_index(self._graph, str(path))

    def search(self, user_vectors: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """Rows and dot products, both [B, min(k, N)]; row -1 and score -inf where the graph found fewer."""
        k = min(k, len(self.item_vectors))
        queries = np.hstack([user_vectors, np.zeros((len(user_vectors), 1))]).astype(np.float32)
        _, rows = self._graph.search(queries, k)
        scores = np.einsum("bd,bkd->bk", user_vectors, self.item_vectors[np.maximum(rows, 0)])
        scores = np.where(rows >= 0, scores, -np.inf).astype(np.float32)
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


class Index:
    """An opened Index: retrieval by dot product over one Bundle's items."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.config = IndexConfig.model_validate(artifact.manifest.config)
        self.bundle_id = artifact.manifest.parents["bundle"]
        self.item_vectors: FloatArray = load_file(artifact.path / "vectors.safetensors")["item_vectors"]
        self._searcher = self._load_searcher()

    @classmethod
    def load(cls, uri: str, *, verify: bool = True) -> Index:
        """Load from a URI. Raises ArtifactNotFoundError, ArtifactMismatchError, CorruptArtifactError."""
        return cls(open_artifact(uri, "index", verify=verify))

    @property
    def id(self) -> str:
        """Content hash of the Index."""
        return self.artifact.id

    @property
    def uri(self) -> str:
        """Where the Index is kept."""
        return self.artifact.uri

    def __len__(self) -> int:
        return len(self.item_vectors)

    def search(self, user_vectors: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """The nearest items of user vectors [B, D]: rows int64 and dot products float32, [B, min(k, N)].

        Best first, ties to the lower row; row -1 and score -inf where an approximate structure found fewer.
        """
        return self._searcher.search(user_vectors, k)

    def _load_searcher(self) -> Searcher:
        if self.config.kind == "exact":
            return ExactSearch(self.item_vectors)
        return HnswSearch.load(self.item_vectors, self.artifact.path / "hnsw.faiss", self.config.ef_search)
