"""A Release: one small JSON file naming a Dataset, a Bundle and an Index that fit, and a fusion policy.

    <workspace>/releases/<id>.json       immutable
    <workspace>/releases/current.json    the pointer, replaced atomically; remembers what it pointed to before

Publishing checks every hash and that the three belong together. Nothing is loaded here: no torch, no vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from llmrec_ray.artifact import Artifact, Workspace, open_artifact
from llmrec_ray.changes import ChangeLog
from llmrec_ray.errors import ArtifactMismatchError, ArtifactNotFoundError, CorruptArtifactError
from llmrec_ray.signals import FusionPolicy
from llmrec_ray.storage import read_json, write_json_atomic

__all__ = [
    "ArtifactRef",
    "Release",
    "current_uri",
    "load_release",
    "point_at",
    "publish",
    "rollback",
    "rollback_pointer",
    "withdraw",
]


KEPT_PREVIOUS = 100
"""To how many earlier Releases one can roll back; the pointer is read every few seconds and must stay small."""


class ArtifactRef(BaseModel):
    """Where an artifact is and which content it must have."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    uri: str
    id: str


class Release(BaseModel):
    """What an endpoint serves. `id` hashes the three artifacts and the policy, not name or time."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    name: str
    created_at: str
    dataset: ArtifactRef
    bundle: ArtifactRef
    index: ArtifactRef
    policy: FusionPolicy


class Pointer(BaseModel):
    """What `current.json` holds: the URI of the current Release, and of those before it, newest last."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    uri: str
    previous: tuple[str, ...] = ()


def publish(
    workspace: Workspace,
    *,
    name: str,
    dataset_uri: str,
    bundle_uri: str,
    index_uri: str,
    policy: FusionPolicy,
    changed_as: str | None = None,
) -> Release:
    """Verify every file of the three artifacts, write the Release and point `current.json` at it.

    A Release with the same content that is already there is returned as it is, unless it is damaged or names
    places where the artifacts no longer are; then it is written again.
    changed_as: id of a Release of the same folder with the same items, whose changes to its items are taken over.
    Raises CorruptArtifactError for a changed file and ArtifactMismatchError when the artifacts do not belong
    together; the pointer then stays where it was.
    """
    dataset = open_artifact(dataset_uri, "dataset")
    bundle = open_artifact(bundle_uri, "bundle")
    index = open_artifact(index_uri, "index")
    _check_parent(bundle, "dataset", dataset, remedy="run `llmrec train` on this Dataset")
    _check_parent(index, "bundle", bundle, remedy="run `llmrec index` on this Bundle")
    release = _new_release(name, dataset, bundle, index, policy)
    uri = f"{workspace.root('release')}/{release.id}.json"
    published = _published(uri)
    if published is None or _places(published) != _places(release):
        write_json_atomic(uri, release.model_dump(mode="json"))
        published = release
    if changed_as is not None:
        ChangeLog.of(uri, changed_as).copy_to(ChangeLog.of(uri, release.id))
    _move(current_uri(workspace), uri)
    return published


def current_uri(workspace: Workspace) -> str:
    """URI of the pointer; `load_release` follows it."""
    return f"{workspace.root('release')}/current.json"


def load_release(uri: str) -> Release:
    """Read a Release, or the one that a pointer names.

    Raises ArtifactNotFoundError and CorruptArtifactError.
    """
    value = _read(uri)
    if "uri" in value:
        value = _read(_pointer(uri).uri)
    try:
        release = Release.model_validate(value)
    except ValidationError as error:
        raise CorruptArtifactError(f"{uri} is not a Release ({_first(error)}): publish again.") from None
    # The policy as it is in the file: one that an earlier version wrote may lack fields that have defaults now.
    if release.id != (expected := _content_id([release.dataset, release.bundle, release.index], value["policy"])):
        raise CorruptArtifactError(
            f"{uri} was changed after it was published: its content is that of release {expected}, not {release.id}: "
            "publish again."
        )
    return release


def rollback(workspace: Workspace) -> Release:
    """Point back at the Release before the current one. Raises ArtifactNotFoundError when there is none."""
    return rollback_pointer(current_uri(workspace))


def rollback_pointer(uri: str) -> Release:
    """Point back at the Release before the one that the pointer at `uri` names.

    Raises ArtifactNotFoundError when there is none and CorruptArtifactError when `uri` is no pointer.
    """
    pointer = _pointer(uri)
    if not pointer.previous:
        raise ArtifactNotFoundError(
            f"{uri} has never pointed at another Release, so there is none to go back to: publish one."
        )
    *earlier, target = pointer.previous
    release = load_release(target)
    write_json_atomic(uri, Pointer(uri=target, previous=tuple(earlier)).model_dump(mode="json"))
    return release


def point_at(uri: str, release_id: str) -> Release:
    """Point the pointer at `uri` to a Release of the same folder that was published before.

    Raises ArtifactNotFoundError when there is no such Release and CorruptArtifactError when `uri` is no pointer.
    """
    _pointer(uri)
    target = f"{uri.rpartition('/')[0]}/{release_id}.json"
    release = load_release(target)
    _move(uri, target)
    return release


def withdraw(uri: str, removed: Collection[str]) -> None:
    """Take Releases, by their URIs, out of what the pointer at `uri` can be rolled back to.

    Raises CorruptArtifactError when `uri` is no pointer.
    """
    pointer = _pointer(uri)
    assert pointer.uri not in removed, "the current Release cannot be withdrawn. This is a bug."
    previous = tuple(earlier for earlier in pointer.previous if earlier not in removed)
    if previous != pointer.previous:
        write_json_atomic(uri, Pointer(uri=pointer.uri, previous=previous).model_dump(mode="json"))


def _check_parent(child: Artifact, kind: str, parent: Artifact, *, remedy: str) -> None:
    made_from = child.manifest.parents.get(kind)
    if made_from != parent.id:
        raise ArtifactMismatchError(
            f"The {child.manifest.kind} {child.uri} was made from {kind} {made_from}, but {parent.uri} is "
            f"{kind} {parent.id}: {remedy}, or name the {kind} it was made from."
        )


def _new_release(
    name: str, dataset: Artifact, bundle: Artifact, index: Artifact, policy: FusionPolicy
) -> Release:
    parts = [ArtifactRef(uri=artifact.uri, id=artifact.id) for artifact in (dataset, bundle, index)]
    return Release(
        id=_content_id(parts, policy.model_dump(mode="json")),
        name=name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=parts[0], bundle=parts[1], index=parts[2],
        policy=policy,
    )


def _content_id(parts: list[ArtifactRef], policy: object) -> str:
    identity = [*(part.id for part in parts), policy]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _published(uri: str) -> Release | None:
    try:
        return load_release(uri)
    except (ArtifactNotFoundError, CorruptArtifactError):
        return None


def _places(release: Release) -> tuple[ArtifactRef, ...]:
    return (release.dataset, release.bundle, release.index)


def _move(pointer_uri: str, uri: str) -> None:
    try:
        before = _pointer(pointer_uri)
    except ArtifactNotFoundError:
        previous: tuple[str, ...] = ()
    else:
        previous = before.previous if before.uri == uri else (*before.previous, before.uri)[-KEPT_PREVIOUS:]
    write_json_atomic(pointer_uri, Pointer(uri=uri, previous=previous).model_dump(mode="json"))


def _pointer(uri: str) -> Pointer:
    try:
        return Pointer.model_validate(_read(uri))
    except ValidationError as error:
        detail = _first(error)
        message = f"{uri} is not a pointer to a Release ({detail}): publish again."
        raise CorruptArtifactError(message) from None


def _read(uri: str) -> dict[str, object]:
    try:
        return read_json(uri)
    except FileNotFoundError:
        raise ArtifactNotFoundError(f"There is no Release at {uri}: run `llmrec publish` first.") from None


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    return f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}"
