"""Feedback events: from what people did at the endpoint to a durable log, and a view of everyone's newest.

    <folder>/log/<day>-<writer>.jsonl   the truth: one event a line, fsynced before it is acknowledged
    <folder>/view.sqlite                a view for fast reads, rebuilt from the log when missing or behind

Ids here are the outside world's, because rows change with a Release. Processes of one machine may share a
folder; the log files are JSON Lines that `ingest` reads like any other log. Knows nothing of models or HTTP.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmrec_ray.errors import CorruptArtifactError

__all__ = ["Event", "EventLog", "EventStore"]

Id = Annotated[str, Field(min_length=1, max_length=256)]
LOCK_TIMEOUT_S = 10.0
logger = logging.getLogger(__name__)
SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    event_id TEXT PRIMARY KEY, user_id TEXT NOT NULL, item_id TEXT NOT NULL, timestamp REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS by_user ON events (user_id, timestamp);
CREATE TABLE IF NOT EXISTS replayed (file TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL);
"""
NEWEST = "SELECT item_id FROM events WHERE user_id = ? ORDER BY timestamp DESC, rowid DESC LIMIT ?"


class Event(BaseModel):
    """One thing one person did with one item."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    event_id: Id
    """Chosen by the sender; sending the same id again changes nothing."""
    user_id: Id
    """Who, in the outside world's ids."""
    item_id: Id
    """What, in the outside world's ids."""
    timestamp: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(default_factory=time.time)
    """When, in seconds since 1970 UTC; the time of arrival when absent."""
    event: Id = "interaction"
    """Kind of event, such as `view` or `purchase`."""
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """A rating or weight, where there is one."""


class EventLog:
    """Append-only JSON Lines files, one per day and writer; no two writers ever share a file."""

    def __init__(self, folder: Path, writer: str | None = None) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.writer = writer or uuid.uuid4().hex

    def append(self, events: Sequence[Event]) -> Path:
        """Write the events, fsync file and folder, and return the file. On an error nothing of them stays."""
        file = self.folder / f"{time.strftime('%Y%m%d', time.gmtime())}-{self.writer}.jsonl"
        is_new = not file.exists()
        lines = b"".join(event.model_dump_json().encode() + b"\n" for event in events)
        with file.open("ab", buffering=0) as handle:  # a buffer would be written again when the file is closed
            start = handle.tell()
            try:
                while lines:
                    lines = lines[handle.write(lines):]
                os.fsync(handle.fileno())
            except OSError:
                os.truncate(file, start)
                raise
        if is_new:
            _fsync_folder(self.folder)
        return file

    def files(self) -> list[Path]:
        """Every writer's files, in order of day."""
        return sorted(self.folder.glob("*.jsonl"))

    def read(self, file: Path, start_bytes: int = 0) -> Iterator[tuple[Event, int]]:
        """Each event of a file from a byte position on, and the position after it.

        A last line without its newline was never acknowledged and is left out. Raises CorruptArtifactError
        naming the file and the byte position of a damaged line.
        """
        with file.open("rb") as handle:
            handle.seek(start_bytes)
            while (line := handle.readline()).endswith(b"\n"):
                end = handle.tell()
                yield _parse(line, file, end - len(line)), end


class EventStore:
    """The log and its view together: record durably, read a user's newest items in microseconds.

    Any number of processes on one machine may open the same folder; an event recorded by one is seen by the
    next read of every other. Threads may share an object.
    """

    def __init__(self, folder: Path) -> None:
        self.log = EventLog(folder / "log")
        self.view_path = folder / "view.sqlite"
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None
        with self._lock:
            self._view()

    def record(self, events: Sequence[Event]) -> int:
        """Make the events durable and visible; returns how many were new. Known event ids are left out."""
        with self._lock, _exclusive(self._view()) as view:
            new: dict[str, Event] = {}
            for event in events:
                if not _is_known(view, event.event_id):
                    new.setdefault(event.event_id, event)
            if new:
                _replay(view, self.log, self.log.append(list(new.values())))
            return len(new)

    def newest(self, user_id: str, n: int) -> list[str]:
        """Item ids of the user's newest `n` events, oldest first."""
        with self._lock:
            rows = self._view().execute(NEWEST, (user_id, n))
            return [item_id for (item_id,) in rows][::-1]

    def close(self) -> None:
        """Close the view; the log has no open files."""
        with self._lock:
            self._disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _view(self) -> sqlite3.Connection:
        """The open view; opened again and brought up to date with the log when its file was lost."""
        if self._connection is None or _inode(self.view_path) != self._inode:
            self._disconnect()
            with _file_lock(self.view_path.with_name("view.lock")):
                self._connection = _open_view(self.view_path)
            self._inode = _inode(self.view_path)
            with _exclusive(self._connection) as view:
                for file in self.log.files():
                    _replay(view, self.log, file)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _parse(line: bytes, file: Path, position: int) -> Event:
    try:
        return Event.model_validate_json(line)
    except ValidationError:
        raise CorruptArtifactError(
            f"The event log {file} is damaged at byte {position}: restore the file, or take the line out."
        ) from None


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Only one process at a time; the kernel lets go when a process dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _open_view(path: Path) -> sqlite3.Connection:
    """Open or create the view; a damaged one is thrown away, since the log has everything."""
    if not path.exists():
        _remove_view(path)
    try:
        return _connect(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        logger.warning("The view %s is damaged and is built again from the event log.", path)
        _remove_view(path)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _remove_view(path: Path) -> None:
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _exclusive(view: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A transaction that no other process can enter, so that one event id cannot be logged twice."""
    view.execute("BEGIN IMMEDIATE")
    try:
        yield view
    except BaseException:
        view.execute("ROLLBACK")
        raise
    view.execute("COMMIT")


def _is_known(view: sqlite3.Connection, event_id: str) -> bool:
    return view.execute("SELECT 1 FROM events WHERE event_id = ?", (event_id,)).fetchone() is not None


def _replay(view: sqlite3.Connection, log: EventLog, file: Path) -> None:
    """Bring the view up to the end of one log file."""
    row = view.execute("SELECT size_bytes FROM replayed WHERE file = ?", (file.name,)).fetchone()
    position = row[0] if row else 0
    for event, end in log.read(file, position):
        view.execute("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)",
                     (event.event_id, event.user_id, event.item_id, event.timestamp))
        position = end
    view.execute("INSERT OR REPLACE INTO replayed VALUES (?, ?)", (file.name, position))
