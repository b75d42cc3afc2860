"""An Index on disk -> nearest items in memory that all processes of a machine share; items can be added to it.

    vectors.safetensors   [N, D] float32 item vectors (the Bundle's, D = d + 1)
    hnsw.faiss            FAISS HNSW graph, only for kind `hnsw`

Shapes: B users, N items with those added, D vector size, k list length. Knows nothing about histories or fusion.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np

from llmrec_ray.arrays import map_arrays
from llmrec_ray.artifact import Artifact, open_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import IndexConfig
from llmrec_ray.errors import CorruptArtifactError
from llmrec_ray.index.search import ExactSearch, HnswSearch, Searcher, nearest
from llmrec_ray.ranking import top_k
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["Index"]

GATHER_SHARE = 4  # below 1/4 of all rows copying these is cheaper than the dot products of all


class Index:
    """An opened Index: retrieval by dot product over one Bundle's items, and over items that came later.

    kept_vectors: [N0, D] float32, read-only, of the items that were indexed. added_vectors: [N - N0, D] of later ones.
    """

    def __init__(
        self, vectors: FloatArray, searcher: Searcher, config: IndexConfig, bundle_id: str,
        artifact: Artifact | None = None,
    ) -> None:
        self.config, self.bundle_id = config, bundle_id
        self.kept_vectors = vectors
        self.added_vectors: FloatArray = np.empty((0, vectors.shape[1]), np.float32)
        self._searcher, self._artifact = searcher, artifact

    @classmethod
    def load(cls, uri: str, *, verify: bool = True) -> Index:
        """Load from a URI. Raises ArtifactNotFoundError, ArtifactMismatchError, CorruptArtifactError."""
        artifact = open_artifact(uri, "index", verify=verify)
        config = IndexConfig.model_validate(artifact.manifest.config)
        vectors = map_arrays(artifact.path / "vectors.safetensors")["item_vectors"]
        searcher = _load_searcher(artifact.path, vectors, config)
        return cls(vectors, searcher, config, artifact.manifest.parents["bundle"], artifact)

    @classmethod
    def exact(cls, bundle: Bundle) -> Index:
        """Exact search over a Bundle's items that is kept nowhere, for one who only wants to measure the Bundle."""
        vectors = np.ascontiguousarray(bundle.item_vectors, dtype=np.float32)
        return cls(vectors, ExactSearch(vectors), IndexConfig(kind="exact"), bundle.id)

    @property
    def artifact(self) -> Artifact:
        """What it was loaded from; one that was made in memory has none."""
        assert self._artifact is not None, "an Index in memory has no artifact. This is a bug."
        return self._artifact

    @property
    def id(self) -> str:
        """Content hash of the Index."""
        return self.artifact.id

    @property
    def uri(self) -> str:
        """Where the Index is kept."""
        return "in memory" if self._artifact is None else self._artifact.uri

    def __len__(self) -> int:
        return len(self.kept_vectors) + len(self.added_vectors)

    def extended(self, item_vectors: FloatArray) -> Index:
        """This Index with items of vectors [M, D] after its own; they are searched exactly, the rest is shared."""
        assert item_vectors.shape[1:] == self.kept_vectors.shape[1:], "vectors of another size. This is a bug."
        other = copy.copy(self)
        other.added_vectors = np.concatenate([self.added_vectors, item_vectors.astype(np.float32)])
        return other

    def search(self, user_vectors: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """The nearest items of user vectors [B, D]: rows int64 and dot products float32, [B, min(k, N)].

        Best first, ties to the lower row; row -1 and score -inf where an approximate structure found fewer.
        """
        kept = self._searcher.search(user_vectors, k)
        if not len(self.added_vectors):
            return kept
        rows, scores = ExactSearch(self.added_vectors).search(user_vectors, k)
        return nearest(kept, (rows + len(self.kept_vectors), scores), k)

    def search_among(self, user_vector: FloatArray, item_rows: IntArray, k: int) -> tuple[IntArray, FloatArray]:
        """The nearest of item_rows [R], ascending, to one user vector [D]: rows and dot products, [min(k, R)]."""
        scores = self._dot_products(user_vector, item_rows)
        places, best = top_k(scores[None, :], k)
        return item_rows[places[0]], best[0]

    def _dot_products(self, user_vector: FloatArray, item_rows: IntArray) -> FloatArray:
        n_kept = len(self.kept_vectors)
        kept, added = item_rows[item_rows < n_kept], item_rows[item_rows >= n_kept] - n_kept
        if GATHER_SHARE * len(kept) > n_kept:
            first = (self.kept_vectors @ user_vector)[kept]
        else:
            first = self.kept_vectors[kept] @ user_vector
        return np.concatenate([first, self.added_vectors[added] @ user_vector])


def _load_searcher(folder: Path, vectors: FloatArray, config: IndexConfig) -> Searcher:
    if config.kind == "exact":
        return ExactSearch(vectors)
    path = folder / "hnsw.faiss"
    try:
        return HnswSearch.load(vectors, path, config.ef_search)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        message = f"{path} cannot be read ({reason}): restore it or run `llmrec index` again."
        raise CorruptArtifactError(message) from None
