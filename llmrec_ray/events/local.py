"""The embedded view: a folder's log -> every user's newest items and all known event ids, in SQLite.

It is rebuilt from the log when it is missing, damaged or of another kind. Any number of processes may open it.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from llmrec_ray.events.event import Event
from llmrec_ray.events.locks import file_lock
from llmrec_ray.events.log import EventLog, Span
from llmrec_ray.forgotten import Tombstones

__all__ = ["LocalView", "Writing", "forget_in_view"]

FORMAT = 3  # of the tables; a view of another one is built again
LOCK_TIMEOUT_S = 10.0
CHECKPOINT_S = 30.0
logger = logging.getLogger(__name__)
SCHEMA = """
BEGIN;
CREATE TABLE IF NOT EXISTS known (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS newest (
    user_id TEXT NOT NULL, millisecond INTEGER NOT NULL, arrival INTEGER NOT NULL, item_id TEXT NOT NULL,
    PRIMARY KEY (user_id, millisecond, arrival)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS replayed (file TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL) WITHOUT ROWID;
COMMIT;
"""
NEWEST = "SELECT item_id FROM newest WHERE user_id = ? ORDER BY millisecond DESC, arrival DESC LIMIT ?"
INSERT = """
INSERT INTO newest SELECT ?1, ?2, coalesce(max(arrival) + 1, 0), ?3 FROM newest WHERE user_id = ?1 AND millisecond = ?2
"""
TRIM = """
DELETE FROM newest WHERE user_id = ?1 AND (millisecond, arrival) <= (
    SELECT millisecond, arrival FROM newest WHERE user_id = ?1 ORDER BY millisecond DESC, arrival DESC
    LIMIT 1 OFFSET ?2
)
"""


class Writing:
    """What may be done to the view inside a transaction."""

    def __init__(self, connection: sqlite3.Connection, max_history: int) -> None:
        self._run = connection.execute
        self._max_history = max_history

    def unknown(self, events: Iterable[Event]) -> list[Event]:
        """The events whose ids were never added."""
        find = "SELECT 1 FROM known WHERE digest = ?"
        return [event for event in events if self._run(find, (event.digest,)).fetchone() is None]

    def add(self, span: Span, events: Iterable[Event], log: EventLog) -> None:
        """Take in the events of a span of the log, and whatever of that file was missed before."""
        if self.position(span.file) != span.start:
            self.replay(span.file, log)
            return
        self._insert(events)
        self._set_position(span.file, span.end)

    def replay(self, file: Path, log: EventLog) -> None:
        """Take in a log file to its end. Raises CorruptArtifactError."""
        start = end = self.position(file)
        if file.stat().st_size == start:
            return

        def events() -> Iterator[Event]:
            nonlocal end
            for event, end in log.read(file, start):  # noqa: B007  (kept for _set_position)
                if event is not None:
                    yield event

        self._insert(events())
        self._set_position(file, end)

    def position(self, file: Path) -> int:
        """How many bytes of a log file have been taken in."""
        row = self._run("SELECT size_bytes FROM replayed WHERE file = ?", (file.name,)).fetchone()
        return row[0] if row else 0

    def _insert(self, events: Iterable[Event]) -> None:
        users = set()
        for event in events:
            if self._run("INSERT OR IGNORE INTO known VALUES (?)", (event.digest,)).rowcount:
                self._run(INSERT, (event.user_id, event.millisecond, event.item_id))
                users.add(event.user_id)
        for user_id in users:
            self._run(TRIM, (user_id, self._max_history))

    def _set_position(self, file: Path, size_bytes: int) -> None:
        self._run("INSERT OR REPLACE INTO replayed VALUES (?, ?)", (file.name, size_bytes))


class LocalView:
    """One connection to the view of a folder's log; threads may share it, one after the other.

    It holds the newest `max_history` events of each user. Methods raise sqlite3.Error when the view cannot be used;
    it is then opened again, and brought up to date with the log, by the next call.
    """

    def __init__(self, path: Path, log: EventLog, max_history: int) -> None:
        self.path, self._log, self._max_history = path, log, max_history
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None

    def newest_of(self, user_ids: Iterable[str], n: int) -> dict[str, list[str]]:
        """Item ids of each user's newest `n` events, oldest first."""
        with self._usable() as connection:
            return _newest_of(connection, user_ids, n)

    def newest_as_it_was(self, user_ids: Sequence[str], n: int) -> dict[str, list[str]]:
        """What a view that cannot be brought up to date, since its disk is full, still has; without it nothing."""
        try:
            with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
                return _newest_of(connection, user_ids, n)
        except sqlite3.Error:
            return {user_id: [] for user_id in user_ids}

    def positions(self) -> dict[str, int]:
        """How many bytes of each log file are in the view: all of them are on disk."""
        with self._usable() as connection:
            return dict(connection.execute("SELECT file, size_bytes FROM replayed").fetchall())

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writing]:
        """A transaction that no other process can enter, so that one event id cannot be logged twice."""
        with self._usable() as connection, self._transaction(connection) as transaction:
            yield transaction

    def refresh(self) -> None:
        """Open the view, again where its file was exchanged, and bring it up to date with the log."""
        with self._usable():
            pass

    def drop(self) -> None:
        """Close the connection; the next call opens the view again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextlib.contextmanager
    def _usable(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._connection is None or _inode(self.path) != self._inode:
                    self._open()
                assert self._connection is not None
                yield self._connection
            except sqlite3.Error as error:
                self.drop()
                if _is_damage(error):
                    self._rebuild_next_time()
                raise

    def _open(self) -> None:
        self.drop()
        with file_lock(self.path.with_name("view.lock")):
            self._connection = _open_view(self.path, self._max_history)
            self._inode = _inode(self.path)
        try:
            with self._transaction(self._connection) as transaction:
                for file in self._log.files():
                    transaction.replay(file, self._log)
        except BaseException:
            self.drop()
            raise

    def _rebuild_next_time(self) -> None:
        logger.warning("The view %s is damaged and is built again from the event log.", self.path)
        with file_lock(self.path.with_name("view.lock")):
            if _inode(self.path) == self._inode:
                _remove_view(self.path)

    @contextlib.contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[Writing]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield Writing(connection, self._max_history)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise


def forget_in_view(path: Path, forgotten: Tombstones) -> list[str]:
    """Remove forgotten people from a view that any number of processes use, file and write-ahead log; their ids.

    A view that cannot be used is removed: whoever opens the folder next builds it again from the log. Raises
    sqlite3.OperationalError when somebody keeps it locked for too long.
    """
    if not path.exists():
        return []
    try:
        with contextlib.closing(_connect(path)) as connection:
            return _forget(connection, forgotten)
    except sqlite3.Error as error:
        if not _is_damage(error) and "no such table" not in str(error):
            raise
    with file_lock(path.with_name("view.lock")):
        _remove_view(path)
    return []


def _forget(connection: sqlite3.Connection, forgotten: Tombstones) -> list[str]:
    everybody = connection.execute("SELECT DISTINCT user_id FROM newest")
    found = [user_id for (user_id,) in everybody if user_id in forgotten]
    connection.executemany("DELETE FROM newest WHERE user_id = ?", [(user_id,) for user_id in found])
    deadline = time.monotonic() + CHECKPOINT_S
    while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:  # a reader is in its way
        if time.monotonic() > deadline:
            raise sqlite3.OperationalError("database is locked")
        time.sleep(0.05)
    return found


def _newest_of(connection: sqlite3.Connection, user_ids: Iterable[str], n: int) -> dict[str, list[str]]:
    run = connection.execute
    return {user_id: [item_id for (item_id,) in run(NEWEST, (user_id, n))][::-1] for user_id in user_ids}


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _is_damage(error: sqlite3.Error) -> bool:
    """A broken file, as against a full disk or a lock that others hold too long."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def _open_view(path: Path, max_history: int) -> sqlite3.Connection:
    """Open or create the view; one that cannot be used is thrown away, since the log has everything."""
    if not path.exists():
        _remove_view(path)
    try:
        connection = _connect(path)
    except sqlite3.Error as error:
        if not _is_damage(error):
            raise
        logger.warning("The view %s is damaged and is built again from the event log.", path)
    else:
        if _prepare(connection, max_history):
            return connection
        connection.close()
    _remove_view(path)
    connection = _connect(path)
    _prepare(connection, max_history)
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")  # what is trimmed or forgotten is overwritten
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, max_history: int) -> bool:
    """Create the tables of a new view. False for a view of another format, or with fewer events per user."""
    [(tables,)] = connection.execute("SELECT count(*) FROM sqlite_master")
    [(file_format,)] = connection.execute("PRAGMA application_id")
    [(kept,)] = connection.execute("PRAGMA user_version")
    if tables:
        return bool(file_format == FORMAT and kept >= max_history)
    connection.execute(f"PRAGMA application_id = {FORMAT}")
    connection.execute(f"PRAGMA user_version = {max_history}")
    connection.executescript(SCHEMA)
    return True


def _remove_view(path: Path) -> None:
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        file.unlink(missing_ok=True)
