"""The stages of `recommend` as Serve replicas: each loads its part of the Release and adds nothing else."""

from __future__ import annotations

import ray

from llmrec_ray.recommend import Encoder, Reranker, Retriever, open_bundle, open_dataset, open_index
from llmrec_ray.release import Release

__all__ = ["EncoderReplica", "RerankerReplica", "RetrieverReplica"]


class EncoderReplica(Encoder):
    """Text → vector, on the GPU where the deployment reserves one."""

    def __init__(self, release: Release) -> None:
        super().__init__(open_bundle(release), "cuda" if ray.get_gpu_ids() else "cpu")
        self._release_id = release.id

    def held_release(self) -> str:
        """Id of the Release in memory."""
        return self._release_id


class RetrieverReplica(Retriever):
    """User vector and sources → candidates."""

    def __init__(self, release: Release) -> None:
        attributes = open_dataset(release).item_attributes
        super().__init__(open_bundle(release), open_index(release), attributes, release.policy, release.id)

    def held_release(self) -> str:
        """Id of the Release in memory."""
        return self._release_id


class RerankerReplica(Reranker):
    """Candidates → final order."""

    def __init__(self, release: Release) -> None:
        super().__init__(open_bundle(release), release.policy, release.id)

    def held_release(self) -> str:
        """Id of the Release in memory."""
        return self._release_id
