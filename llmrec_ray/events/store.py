"""The log and its views together: record durably, read everybody's newest items."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from llmrec_ray.errors import CorruptArtifactError, EventLogError, EventViewError
from llmrec_ray.events.event import Event
from llmrec_ray.events.forget import forget_in_folder
from llmrec_ray.events.group import GroupCommit
from llmrec_ray.events.local import LocalView
from llmrec_ray.events.locks import file_lock
from llmrec_ray.events.log import EventLog, Span
from llmrec_ray.events.redis_view import RedisDownError, RedisView
from llmrec_ray.events.shared import SharedView
from llmrec_ray.forgotten import Tombstones

__all__ = ["REDIS_URL_VARIABLE", "EventStore"]

REDIS_URL_VARIABLE = "LLMREC_REDIS_URL"
VIEW_ERRORS = (sqlite3.Error, OSError, CorruptArtifactError)
logger = logging.getLogger(__name__)


class EventStore:
    """Feedback of everybody: durable before it is acknowledged, seen by the next read.

    Any number of processes on one machine may open the same folder; machines that name the same Redis see each
    other's events too. Threads may share an object: those that record at once share one fsync.
    """

    def __init__(self, folder: Path, *, max_history: int = 1000) -> None:
        self.log = EventLog(folder / "log")
        self._reader, self._writer = (LocalView(folder / "view.sqlite", self.log, max_history) for _ in range(2))
        self._shared: SharedView | None = None
        self._group = GroupCommit(self._write)
        self._recording = threading.Lock()

    @classmethod
    def open(
        cls, folder: Path, redis_url: str | None = None, *, max_history: int = 1000, redis_timeout_s: float = 0.2
    ) -> Self:
        """The events of this machine in `folder`, and those of others through Redis.

        redis_url: the variable LLMREC_REDIS_URL when None; without either only this machine's events are seen.
        max_history: newest events that the views keep of each user. redis_timeout_s: longest wait for Redis.
        Raises EventLogError for a folder that cannot be written, CorruptArtifactError for a damaged log,
        EventViewError for a view that cannot be opened.
        """
        store = cls(folder, max_history=max_history)
        store._open_views()
        redis_url = redis_url or os.environ.get(REDIS_URL_VARIABLE)
        if redis_url:
            redis = RedisView(redis_url, max_history, redis_timeout_s)
            store._shared = SharedView(
                redis, _node_of(folder), store.log, store._reader.positions, store._recording
            )
        return store

    def record(self, events: Sequence[Event]) -> int:
        """Make the events durable and visible; returns how many were new. Known event ids are left out, and people who
        were forgotten.

        Raises EventLogError when the disk refuses: then nothing of them is kept.
        """
        return self._group.record(events)

    def newest(self, user_id: str, n: int) -> list[str]:
        """Item ids of the user's newest `n` events, oldest first. Raises EventViewError."""
        return self.newest_of([user_id], n)[user_id]

    def newest_of(self, user_ids: Sequence[str], n: int) -> dict[str, list[str]]:
        """Item ids of each user's newest `n` events, oldest first; one round trip to Redis for all users.

        Raises EventViewError while Redis is away or being filled; its `newest` is what this machine knows.
        """
        if n < 1:
            return {user_id: [] for user_id in user_ids}
        if self._shared is None:
            return self._local_newest(user_ids, n)
        try:
            return self._shared.newest_of(user_ids, n)
        except RedisDownError as error:
            message = (
                f"The events of all nodes cannot be read from Redis at {self._shared.place} now ({error}): until it is "
                "back and filled again, answers use those of this node alone."
            )
            raise EventViewError(message, self._local_newest(user_ids, n)) from error

    def is_forgotten(self, user_id: str) -> bool:
        """Whether a person was forgotten, so that nothing they do is kept."""
        return self.log.is_forgotten(user_id)

    def forget(self, tombstones: Tombstones, user_ids: Sequence[str] = ()) -> int:
        """Remove all events of these people from this machine and from Redis; how many lines there were.

        user_ids: of these people, as far as they are known. What was removed before is not looked for again. Raises
        EventLogError when something stays; the next call goes on.
        """
        shared = self._shared
        return forget_in_folder(self.log.folder.parent, tombstones, None if shared is None else shared.forget, user_ids)

    def close(self) -> None:
        """Close the views; the log has no open files."""
        if self._shared is not None:
            self._shared.close()
        self._reader.drop()
        self._writer.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_views(self) -> None:
        try:
            self._writer.refresh()
            self._reader.refresh()
        except sqlite3.Error as error:
            raise _view_error(self._reader, error, {}) from error
        except OSError as error:
            raise EventLogError(
                f"The event folder {self.log.folder.parent} cannot be written ({error.strerror or error}): free space "
                "or make the folder writable."
            ) from error

    def _local_newest(self, user_ids: Sequence[str], n: int) -> dict[str, list[str]]:
        try:
            return self._reader.newest_of(user_ids, n)
        except VIEW_ERRORS:
            logger.warning("The view %s failed and is opened again.", self._reader.path, exc_info=True)
        try:
            return self._reader.newest_of(user_ids, n)
        except VIEW_ERRORS as error:
            raise _view_error(self._reader, error, self._reader.newest_as_it_was(user_ids, n)) from error

    def _write(self, asked: list[Event]) -> set[str]:
        """Log and show the events whose ids are new; returns those ids."""
        first: dict[str, Event] = {}
        for event in asked:
            first.setdefault(event.event_id, event)
        events = list(first.values())
        with self._recording, self.log.appending() as forgotten:
            events = [event for event in events if event.user_id not in forgotten]
            if self._shared is not None:
                recorded = self._shared.known(events)
                events = [event for event in events if event.event_id not in recorded]
            new, span = self._log_new(events)
            if span is not None and self._shared is not None:
                self._shared.add(span, new)
        return {event.event_id for event in new}

    def _log_new(self, events: list[Event]) -> tuple[list[Event], Span | None]:
        """Append those events to the log that the embedded view does not know. All of them when it cannot be used:
        to log one twice does no harm, since every reader of the log goes by the ids.
        """
        span = None
        try:
            with self._writer.writing() as view:
                events = view.unknown(events)
                if events:
                    span = self.log.append(events)
                    view.add(span, events, self.log)
            self._writer.refresh()  # had another process built it anew meanwhile, that one would lack these events
        except VIEW_ERRORS:
            logger.warning("The view %s failed and is opened again.", self._writer.path, exc_info=True)
            self._writer.drop()
            self._reader.drop()
        if span is None and events:
            span = self.log.append(events)
        return events, span


def _node_of(folder: Path) -> str:
    """This folder's name in Redis, made up once."""
    with file_lock(folder / "node.lock"):
        file = folder / "node"
        if not file.exists() or not file.read_text():
            file.write_text(uuid.uuid4().hex)
        return file.read_text()


def _view_error(view: LocalView, error: Exception, newest: dict[str, list[str]]) -> EventViewError:
    return EventViewError(
        f"The view of the event log {view.path} cannot be read ({error}): see whether its disk is full or read-only. "
        "The events themselves are safe in the log.",
        newest,
    )
