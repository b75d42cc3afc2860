"""A person -> a workspace without them, in an order in which nothing is ever lost and a killed run can be repeated.

    1 the tombstone          from now on nothing takes the person in again
    2 event logs and views   while the endpoint goes on recording
    3 successors             of what is used now, and pointers to them
    4 the Release            which the endpoint follows
    5 the rest               whatever still holds the person is deleted, once no endpoint needs it
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from llmrec_ray.artifact import Artifact, Workspace, cache_folder, remove_artifact
from llmrec_ray.config import Recipe
from llmrec_ray.data.sources import SourceFile
from llmrec_ray.errors import DataError, EventLogError
from llmrec_ray.events import (
    REDIS_URL_VARIABLE,
    RedisDownError,
    RedisView,
    forget_in_file,
    forget_in_folder,
    users_in,
)
from llmrec_ray.forget.endpoints import await_switch, check_urls
from llmrec_ray.forget.left import event_files, rows_left
from llmrec_ray.forget.person import Person
from llmrec_ray.forget.releases import Releases
from llmrec_ray.forget.rest import clear_runs, clear_staged, latest_uris, move_pointers
from llmrec_ray.forget.storage import exists, opened, remove
from llmrec_ray.forget.successors import Successors, artifacts_in, holds
from llmrec_ray.forgotten import Tombstones, forgotten_in, forgotten_uri, remember

__all__ = ["Forgotten", "forget"]

logger = logging.getLogger(__name__)
LIVE = "door.lock"


@dataclass(frozen=True)
class Forgotten:
    """What became of a person.

    tombstone: stands in vocabularies in place of the id. replaced: URI of an artifact -> URI of its successor. deleted:
    URIs. event_lines: of event logs that were the person's. release: id of the Release that is current now. left: file
    of the owner's own -> rows that are the person's.
    """

    tombstone: str
    replaced: dict[str, str]
    deleted: list[str]
    event_lines: int
    release: str | None
    left: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def forget(
    recipe: Recipe, user_id: str, workspace: Workspace, raw_folder: Path, *, endpoints: Sequence[str] = ()
) -> Forgotten:
    """Remove a person from everything that the recipe's workspace holds; no other stage may run on it meanwhile.

    raw_folder stands for {raw} in the recipe's paths; files there are the owner's, and only looked at. endpoints: URLs
    of endpoints that serve this workspace, which are waited for before what they served is deleted. Can be repeated,
    and is, after a run that was stopped. Raises ConfigError for an endpoint that is no URL, DataError when nothing
    names the person, ArtifactError and EventLogError when something could not be done.
    """
    check_urls(endpoints)
    return _Run(recipe, user_id, workspace, raw_folder).run(endpoints)


class _Run:
    def __init__(self, recipe: Recipe, user_id: str, workspace: Workspace, raw_folder: Path) -> None:
        self._recipe, self._user_id, self._workspace = recipe, user_id, workspace
        self._list_uri = forgotten_uri(workspace)
        self._releases = Releases(workspace)
        self._events = _Events(recipe, workspace, raw_folder, user_id)
        self._raw_folder = raw_folder

    def run(self, endpoints: Sequence[str]) -> Forgotten:
        artifacts = artifacts_in(self._workspace, self._releases.artifacts)
        holders = [artifact for artifact in artifacts if holds(artifact, self._user_id)]
        left = rows_left(self._recipe.data, self._raw_folder, self._user_id)
        self._check_known(holders, left)
        tombstones = remember(self._list_uri, self._user_id, done=False)
        lines = self._events.forget(tombstones)
        person = Person(self._user_id, tombstones.name_of(self._user_id))
        successors = Successors(person, artifacts, self._events.resized())
        self._replace(successors, holders)
        release, removed = self._releases.replace(successors.replaced, holders)
        self._await_switch(endpoints, removed)
        deleted = self._delete(successors, holders, removed)
        remember(self._list_uri, self._user_id, done=True)
        return Forgotten(person.tombstone, successors.by_uri(), deleted, lines, release, left)

    def _await_switch(self, endpoints: Sequence[str], removed: Sequence[str]) -> None:
        switched = await_switch(endpoints, [uri.rpartition("/")[2].removesuffix(".json") for uri in removed])
        for url in endpoints if removed else ():
            said = "has switched" if url in switched else "does not answer, or not with a Release of this workspace"
            logger.info("endpoint %s %s", url, said)

    def _check_known(self, holders: Sequence[Artifact], left: dict[str, int]) -> None:
        known = self._user_id in forgotten_in(self._workspace)
        if not (known or holders or left or self._events.are_there()):
            raise DataError(
                f"Nothing in {self._workspace.uri} and no file of the recipe names the user {self._user_id!r}, so "
                "nothing was changed: give the id as the log writes it."
            )

    def _replace(self, successors: Successors, holders: Sequence[Artifact]) -> None:
        used = [*latest_uris(self._workspace), *self._releases.uris_in_use]
        start = self._recipe.train.warm_start
        if start is not None:
            used.append(start if "://" in start else str(Path(start).absolute()))
        evaluations = [artifact for artifact in holders if artifact.manifest.kind == "evaluation"]
        successors.write({artifact.id: artifact for artifact in [*successors.used(used), *evaluations]}, holders)
        move_pointers(self._workspace, successors.replaced)
        if start is not None and (now := successors.by_uri().get(used[-1])) is not None:
            logger.warning("train.warm_start names a Bundle that was replaced: set it to %s.", now)

    def _delete(self, successors: Successors, holders: Sequence[Artifact], releases: Sequence[str]) -> list[str]:
        gone = {artifact.id for artifact in holders} | successors.replaced.keys()
        outdated = [
            artifact for artifact in successors.artifacts if artifact.id in gone
            or (artifact.manifest.kind == "index" and artifact.manifest.parents["bundle"] in gone)
        ]
        staged = clear_staged(self._workspace, self._recipe.data.scratch)
        deleted = [*clear_runs(self._workspace, gone), *staged, *self._releases.delete(releases)]
        for artifact in reversed(outdated):
            if exists(artifact.uri):  # not gone under another spelling of its place
                remove_artifact(artifact)
            remove(str(cache_folder() / "artifacts" / f"{artifact.manifest.kind}-{artifact.id}"))
            deleted.append(artifact.uri)
        return deleted


class _Events:
    """All event logs that the recipe knows of, and the Redis of its endpoint."""

    def __init__(self, recipe: Recipe, workspace: Workspace, raw_folder: Path, user_id: str) -> None:
        self._user_id, self._data, self._raw_folder = user_id, recipe.data, raw_folder
        own = workspace.local_folder("events", make=False) if workspace.is_local else None
        self._folder = own if own is not None and own.exists() else None
        self._redis_url = recipe.serve.events.redis_url or os.environ.get(REDIS_URL_VARIABLE)
        sources = self._sources()
        self._sizes = {source.name: source.size_bytes for source in sources}
        files = [opened(source.uri) for source in sources]
        live = {Path(path).parent for filesystem, path in files if _is_live(filesystem, path)}
        self._folders = sorted({folder.parent for folder in live} | ({self._folder} if self._folder else set()))
        self._files = [(filesystem, path) for filesystem, path in files if Path(path).parent not in live]

    def are_there(self) -> bool:
        """Whether any log or Redis has something of the person. Raises EventLogError."""
        only = Tombstones().with_user(self._user_id, done=False)
        local = pafs.LocalFileSystem()
        logs = [(local, str(file)) for folder in self._folders for file in (folder / "log").glob("*.jsonl")]
        for filesystem, path in [*self._files, *logs]:
            with _readable(path):
                if users_in(filesystem, path, only):
                    return True
        with self._redis() as redis:
            return redis is not None and redis.holds(self._user_id)

    def forget(self, tombstones: Tombstones) -> int:
        """Remove the person, and whoever was forgotten before; how many lines there were. Raises EventLogError."""
        lines = sum(
            forget_in_folder(folder, tombstones, None, [self._user_id], anew=True) for folder in self._folders
        )
        for filesystem, path in self._files:
            with _readable(path):
                lines += len(forget_in_file(filesystem, path, tombstones))
        with self._redis() as redis:
            if redis is not None:
                redis.forget([self._user_id])
        return lines

    def resized(self) -> dict[str, tuple[int, int]]:
        """Names of logs that were packed anew, and their sizes before and now: an incremental ingest knows a file by
        its size."""
        return {
            source.name: (before, source.size_bytes) for source in self._sources()
            if (before := self._sizes.get(source.name, source.size_bytes)) != source.size_bytes and source.is_compressed
        }

    def _sources(self) -> list[SourceFile]:
        log = None if self._folder is None else self._folder / "log"
        return event_files(self._data, self._raw_folder, log)

    @contextlib.contextmanager
    def _redis(self) -> Iterator[RedisView | None]:
        """The Redis of the endpoint, if it has one. Raises EventLogError when it cannot be reached."""
        if self._redis_url is None:
            yield None
            return
        with contextlib.closing(RedisView(self._redis_url, max_history=1, timeout_s=5.0)) as redis:
            try:
                yield redis
            except RedisDownError as error:
                raise EventLogError(
                    f"The events of {self._user_id!r} in Redis cannot be removed now ({error}): run the same command "
                    "again when it is back."
                ) from error


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Within it an error of a file of events names the file."""
    try:
        yield
    except OSError as error:
        raise EventLogError(
            f"The events in {path} cannot be looked at or removed ({error}): restore the file, or take it out of "
            "data.feedback, and run the same command again."
        ) from error


def _is_live(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether an endpoint may append to a file."""
    return isinstance(filesystem, pafs.LocalFileSystem) and (Path(path).parent / LIVE).exists()
