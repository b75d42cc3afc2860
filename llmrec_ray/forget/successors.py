"""The artifacts of a workspace and a person -> which of them hold the person, and successors of those that are used.

An artifact that is made from one that was replaced is replaced too, since its manifest names its parents.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmrec_ray.artifact import Artifact, ArtifactKind, Workspace, create_artifact, open_artifact
from llmrec_ray.errors import ArtifactNotFoundError
from llmrec_ray.forget.person import Person, link_or_copy
from llmrec_ray.forget.recount import is_counted, recount
from llmrec_ray.forget.storage import folders

__all__ = ["KINDS", "Successors", "artifacts_in", "holds"]

KINDS: tuple[ArtifactKind, ...] = ("log", "dataset", "bundle", "index", "evaluation")
"""Those that hold people or are made from such; in this order none comes before what it is made from, but for Bundles
that go on from Bundles."""
CARD = "model_card.md"
KEPT = {"dataset": "rows_kept", "log": "rows_valid"}
DROPPED, THEIRS = "rows_dropped_by_filter", "forgotten_user"
FILES = "files"


def artifacts_in(workspace: Workspace, others: Iterable[tuple[str, ArtifactKind]] = ()) -> list[Artifact]:
    """Every artifact of these kinds in a workspace, and others by URI and kind, in order of kinds."""
    found: dict[str, Artifact] = {}
    for kind in KINDS:
        for uri in folders(workspace.root(kind)):
            _add(found, uri, kind)
    for uri, kind in others:
        _add(found, uri, kind)
    return sorted(found.values(), key=lambda artifact: KINDS.index(artifact.manifest.kind))


def holds(artifact: Artifact, user_id: str) -> bool:
    """Whether an artifact names a person."""
    person = Person(user_id)
    return any(person.is_named_in(artifact.path / name) for name in artifact.manifest.files)


@dataclass
class Successors:
    """What takes the place of what.

    resized: sizes before and now, in bytes, of input files that were packed anew, by name. replaced: id of an artifact
    -> its successor.
    """

    person: Person
    artifacts: list[Artifact]
    resized: dict[str, tuple[int, int]] = field(default_factory=dict)
    replaced: dict[str, Artifact] = field(default_factory=dict)

    def used(self, uris: Collection[str]) -> list[Artifact]:
        """The artifacts at these URIs, and what they are made from, as far as it is there."""
        by_id = {artifact.id: artifact for artifact in self.artifacts}
        waiting = [artifact for artifact in self.artifacts if artifact.uri in {*uris}]
        used: dict[str, Artifact] = {}
        while waiting:
            artifact = waiting.pop()
            if artifact.id not in used:
                used[artifact.id] = artifact
                waiting += [by_id[id_] for id_ in artifact.manifest.parents.values() if id_ in by_id]
        return [artifact for artifact in self.artifacts if artifact.id in used]

    def by_uri(self) -> dict[str, str]:
        """URI of every artifact that was replaced -> URI of its successor."""
        return {a.uri: self.replaced[a.id].uri for a in self.artifacts if a.id in self.replaced}

    def write(self, artifacts: Mapping[str, Artifact], holders: Collection[Artifact]) -> None:
        """Replace those, by id, that hold the person, have read a file that was packed anew, or are made from replaced
        ones. Raises ArtifactError."""
        theirs = {artifact.id for artifact in holders}
        for artifact in _parents_first(artifacts.values()):
            outdated = artifact.manifest.kind != "evaluation" and any(
                id_ in self.replaced for id_ in artifact.manifest.parents.values()
            )
            config = artifact.manifest.config
            if artifact.id in theirs or outdated or _config(config, self.resized) != config:
                self.replaced[artifact.id] = self._successor(artifact)

    def _successor(self, artifact: Artifact) -> Artifact:
        manifest = open_artifact(artifact.uri, artifact.manifest.kind).manifest  # verified: damage is not passed on
        parents = {name: self._now(id_) for name, id_ in manifest.parents.items()}
        row, person = self.person.row_in(artifact.path), self._person_in(artifact)

        counted = {name for name in manifest.files if is_counted(name) and row is not None}

        def write(folder: Path) -> None:
            for name in manifest.files.keys() - counted:
                if name == CARD:
                    _write_card(artifact.path / name, folder / name, self._renamed())
                else:
                    person.write_without(artifact.path / name, folder / name, row)
            if counted:
                recount(folder, manifest.config["data"], manifest.metrics["items"])

        return create_artifact(
            artifact.uri.rpartition("/")[0], manifest.kind, write,
            config=_config(manifest.config, self.resized), parents=parents, metrics=_metrics(person, artifact, row),
        )

    def _person_in(self, artifact: Artifact) -> Person:
        """The person with what a Log needs to be cut elsewhere, the same for all Logs."""
        if artifact.manifest.kind != "log" or not self.person.is_named_in(artifact.path / "ranges.json"):
            return self.person
        logs = [other.path for other in self.artifacts if other.manifest.kind == "log"]
        found = [self.person.greatest_before(file) for log in logs for file in (log / "events").glob("*.arrow")]
        return replace(self.person, before=max((id_ for id_ in found if id_ is not None), default=None))

    def _now(self, id_: str) -> str:
        return self.replaced[id_].id if id_ in self.replaced else id_

    def _renamed(self) -> dict[str, str]:
        return {before: artifact.id for before, artifact in self.replaced.items()}


def _parents_first(artifacts: Collection[Artifact]) -> list[Artifact]:
    """Bundles that go on from others come after these."""
    waiting, done, ordered = list(artifacts), set[str](), list[Artifact]()
    ids = {artifact.id for artifact in artifacts}
    while waiting:
        ready = [a for a in waiting if not (({*a.manifest.parents.values()} & ids) - done - {a.id})]
        assert ready, "artifacts that are made from each other. This is a bug."
        ordered += ready
        done |= {artifact.id for artifact in ready}
        waiting = [artifact for artifact in waiting if artifact.id not in done]
    return ordered


def _add(found: dict[str, Artifact], uri: str, kind: ArtifactKind) -> None:
    if uri in found or not uri.rpartition("/")[2].startswith(f"{kind}-"):
        return
    try:
        found[uri] = open_artifact(uri, kind, verify=False)
    except ArtifactNotFoundError:  # half deleted, by a run that was killed; what is left of it goes with the others
        return


def _config(config: Mapping[str, Any], resized: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """With the sizes that packed files have now, where a Log says how far each of its files was read.

    A file that had another size before has more to read than a Log has: that is for an ingest to tell of.
    """
    if FILES not in config:
        return dict(config)
    now = {name: after for name, (before, after) in resized.items() if config[FILES].get(name) == before}
    return {**config, FILES: {**config[FILES], **now}}


def _metrics(person: Person, artifact: Artifact, row: int | None) -> dict[str, Any]:
    """Counts of a Log or a Dataset in which the person's events were dropped instead of kept."""
    metrics, kept = artifact.manifest.metrics, KEPT.get(artifact.manifest.kind)
    if kept is None or (artifact.manifest.kind == "dataset" and row is None):
        return dict(metrics)
    events = person.events_in(artifact.path, row)
    dropped = dict(metrics[DROPPED])
    dropped[THEIRS] = dropped.get(THEIRS, 0) + events
    return {**metrics, kept: metrics[kept] - events, DROPPED: dropped}


def _write_card(file: Path, target: Path, renamed: Mapping[str, str]) -> None:
    card = file.read_text(encoding="utf-8")
    if not any(before in card for before in renamed):
        link_or_copy(file, target)
        return
    for before, now in renamed.items():
        card = card.replace(before, now)
    target.write_text(card, encoding="utf-8")
