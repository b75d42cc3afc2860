"""A Release -> the opened artifacts that it names, each verified to be what was published."""

from __future__ import annotations

from llmrec_ray.artifact import Artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.index import Index
from llmrec_ray.release import ArtifactRef, Release

__all__ = ["check_published", "open_bundle", "open_dataset", "open_index"]


def open_dataset(release: Release, *, verify: bool = True) -> Dataset:
    """The Dataset of a Release. Raises ArtifactError when it is not what was published."""
    dataset = Dataset.open(release.dataset.uri, verify=verify)
    check_published(dataset.artifact, release.dataset, release)
    return dataset


def open_bundle(release: Release, *, verify: bool = True) -> Bundle:
    """The Bundle of a Release. Raises ArtifactError when it is not what was published."""
    bundle = Bundle.open(release.bundle.uri, verify=verify)
    check_published(bundle.artifact, release.bundle, release)
    return bundle


def open_index(release: Release, *, verify: bool = True) -> Index:
    """The Index of a Release. Raises ArtifactError when it is not what was published."""
    index = Index.load(release.index.uri, verify=verify)
    check_published(index.artifact, release.index, release)
    return index


def check_published(artifact: Artifact, published: ArtifactRef, release: Release) -> None:
    """Raises ArtifactMismatchError for an artifact that is not the one that was published."""
    if artifact.id != published.id:
        raise ArtifactMismatchError(
            f"Release {release.id} was published with {artifact.manifest.kind} {published.id}, but "
            f"{published.uri} now holds {artifact.id}: restore it, or publish again."
        )
