"""A Release -> the opened artifacts that it names, each verified to be what was published."""

from __future__ import annotations

from llmrec_ray.artifact import Artifact, open_artifact
from llmrec_ray.bundle import Bundle, read_signal_names
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.index import Index
from llmrec_ray.release import ArtifactRef, Release

__all__ = ["open_bundle", "open_dataset", "open_index", "signal_names"]


def open_dataset(release: Release) -> Dataset:
    """The Dataset of a Release. Raises ArtifactError when it is not what was published."""
    dataset = Dataset.open(release.dataset.uri)
    _check(dataset.artifact, release.dataset, release)
    return dataset


def open_bundle(release: Release) -> Bundle:
    """The Bundle of a Release. Raises ArtifactError when it is not what was published."""
    bundle = Bundle.open(release.bundle.uri)
    _check(bundle.artifact, release.bundle, release)
    return bundle


def open_index(release: Release) -> Index:
    """The Index of a Release. Raises ArtifactError when it is not what was published."""
    index = Index.load(release.index.uri)
    _check(index.artifact, release.index, release)
    return index


def signal_names(release: Release) -> list[str]:
    """Signals that requests to a Release may weigh, without loading its Bundle. Raises ArtifactError."""
    artifact = open_artifact(release.bundle.uri, "bundle", verify=False)
    _check(artifact, release.bundle, release)
    return read_signal_names(artifact)


def _check(artifact: Artifact, published: ArtifactRef, release: Release) -> None:
    if artifact.id != published.id:
        raise ArtifactMismatchError(
            f"Release {release.id} was published with {artifact.manifest.kind} {published.id}, but "
            f"{published.uri} now holds {artifact.id}: restore it, or publish again."
        )
