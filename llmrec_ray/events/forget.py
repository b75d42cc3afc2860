"""Forgotten people and the events of one machine -> a log, an embedded view and a Redis without them.

Other processes go on recording meanwhile. Files of the log are replaced one by one, by files of the same length, so
that every position that a view, Redis or an ingest remembers stays true; a process that is killed leaves files that the
next one goes on with. Knows no artifacts.
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs as pafs

from llmrec_ray.errors import EventLogError
from llmrec_ray.events.local import forget_in_view
from llmrec_ray.events.locks import file_lock
from llmrec_ray.events.log import EventLog
from llmrec_ray.events.redis_view import RedisDownError
from llmrec_ray.forgotten import Tombstones

__all__ = ["forget_in_file", "forget_in_folder", "users_in"]

VIEW = "view.sqlite"
STAGED = ".forgetting"
AGAIN = "run the same command again to go on"


def forget_in_folder(
    folder: Path,
    tombstones: Tombstones,
    forget_in_redis: Callable[[Sequence[str]], object] | None = None,
    user_ids: Sequence[str] = (),
    *,
    anew: bool = False,
) -> int:
    """Remove people from the events folder of this machine, and from Redis; how many lines of the log were theirs.

    user_ids: of these people, as far as they are known. anew: also those who were removed before. Raises EventLogError
    when something stays.
    """
    log = EventLog(folder / "log")
    new = tombstones.unfinished_in(Tombstones() if anew else log.forgotten)
    if not len(new):
        return 0
    with file_lock(folder / "forget.lock"):
        log.remember(new)
        try:
            found, removed = _clean_log(log, new)
            found |= {*forget_in_view(folder / VIEW, new), *user_ids}
            if forget_in_redis is not None:
                forget_in_redis(sorted(found))
        except (OSError, sqlite3.Error, RedisDownError) as error:
            raise EventLogError(
                f"Not all events of the person in {folder} are removed yet ({error}): {AGAIN}."
            ) from error
        log.remember(new.finished())
    return removed


def forget_in_file(filesystem: pafs.FileSystem, path: str, forgotten: Tombstones) -> int:
    """Remove people from a file of events that nobody appends to, plain or compressed; how many lines were theirs.

    Raises OSError.
    """
    removed = len(users_in(filesystem, path, forgotten))
    if removed:
        staged = str(PurePosixPath(path).with_name(f".{PurePosixPath(path).name}{STAGED}"))
        _write_without(filesystem, path, staged, forgotten)
        filesystem.move(staged, path)
    return removed


def users_in(filesystem: pafs.FileSystem, path: str, forgotten: Tombstones) -> list[str]:
    """The user id of every line of a file of events that is of one of these people. Raises OSError."""
    with filesystem.open_input_stream(path) as source:
        return [user_id for line in io.BufferedReader(source) if (user_id := _whose(line, forgotten)) is not None]


def _write_without(filesystem: pafs.FileSystem, path: str, staged: str, forgotten: Tombstones) -> None:
    compression = pa.Codec.detect(path).name if _is_compressed(path) else None
    with (
        filesystem.open_input_stream(path) as source,
        filesystem.open_output_stream(staged, compression=compression) as target,
    ):
        for line in io.BufferedReader(source):
            target.write(line if _whose(line, forgotten) is None else _blank(line))
    if isinstance(filesystem, pafs.LocalFileSystem):
        _sync(Path(staged))


def _is_compressed(path: str) -> bool:
    return PurePosixPath(path).suffix in {".gz", ".bz2", ".zst", ".lz4"}


def _whose(line: bytes, forgotten: Tombstones) -> str | None:
    """The user id of a line that is to go; "" for an end of file that was cut short, which no one can read anyway."""
    if not line.strip():
        return None
    try:
        user_id = str(json.loads(line)["user_id"])
    except (ValueError, KeyError, TypeError):
        return None if line.endswith(b"\n") else ""
    return user_id if user_id in forgotten else None


def _blank(line: bytes) -> bytes:
    return b" " * (len(line) - 1) + (b"\n" if line.endswith(b"\n") else b" ")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clean_log(log: EventLog, forgotten: Tombstones) -> tuple[set[str], int]:
    """Ids that were found, and how many lines were theirs; what a killed process left half-made goes too."""
    for left in log.folder.glob(f".*{STAGED}"):
        left.unlink()
    local = pafs.LocalFileSystem()
    found = [user_id for file in log.files() for user_id in users_in(local, str(file), forgotten)]
    for file in log.files():
        forget_in_file(local, str(file), forgotten)
    return {*found} - {""}, len(found)
