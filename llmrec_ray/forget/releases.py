"""The Releases of a workspace and replaced artifacts -> a Release of the successors, and those that have to go."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence

from llmrec_ray.artifact import Artifact, ArtifactKind, Workspace
from llmrec_ray.errors import ArtifactNotFoundError
from llmrec_ray.forget.storage import remove
from llmrec_ray.release import Release, current_uri, load_release, publish, withdraw
from llmrec_ray.storage import file_names

__all__ = ["Releases"]

POINTER = "current.json"


class Releases:
    """All Releases of a workspace, by URI, and which of them is current."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        root = workspace.root("release")
        names = [name for name in file_names(root) if name.endswith(".json") and name != POINTER]
        self._all = {f"{root}/{name}": load_release(f"{root}/{name}") for name in names}
        try:
            self._current: Release | None = load_release(current_uri(workspace))
        except ArtifactNotFoundError:
            self._current = None

    @property
    def artifacts(self) -> list[tuple[str, ArtifactKind]]:
        """URI and kind of everything that a Release names."""
        return [part for release in self._all.values() for part in _parts(release)]

    @property
    def uris_in_use(self) -> list[str]:
        """URIs of what the current Release names."""
        return [] if self._current is None else [uri for uri, _ in _parts(self._current)]

    def replace(
        self, replaced: Mapping[str, Artifact], holders: Collection[Artifact]
    ) -> tuple[str | None, list[str]]:
        """Publish the current Release with the successors of its parts, when it has any.

        Returns the id of the Release that is current now, and the URIs of those that name what holds the person.
        """
        before = self._current
        if before is not None and any(id_ in replaced for id_ in _ids(before)):
            self._current = self._publish(before, replaced)
        gone = {artifact.id for artifact in holders} | replaced.keys()
        current = None if self._current is None else self._current.id
        return current, [
            uri for uri, release in self._all.items() if release.id != current and gone & {*_ids(release)}
        ]

    def delete(self, uris: Sequence[str]) -> list[str]:
        """Delete Releases and the changes to their items; nothing can be rolled back to them."""
        if uris:
            with contextlib.suppress(ArtifactNotFoundError):  # a first one that was never pointed at
                withdraw(current_uri(self._workspace), uris)
        return [place for uri in uris for place in (uri, _changes(uri)) if remove(place)]

    def _publish(self, before: Release, replaced: Mapping[str, Artifact]) -> Release:
        parts = {
            f"{kind}_uri": replaced[ref.id].uri if ref.id in replaced else ref.uri
            for kind, ref in (("dataset", before.dataset), ("bundle", before.bundle), ("index", before.index))
        }
        return publish(self._workspace, name=before.name, policy=before.policy, changed_as=before.id, **parts)


def _parts(release: Release) -> list[tuple[str, ArtifactKind]]:
    return [(release.dataset.uri, "dataset"), (release.bundle.uri, "bundle"), (release.index.uri, "index")]


def _ids(release: Release) -> tuple[str, str, str]:
    return release.dataset.id, release.bundle.id, release.index.id


def _changes(uri: str) -> str:
    return f"{uri.removesuffix('.json')}.changes"
