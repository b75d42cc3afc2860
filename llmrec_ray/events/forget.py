"""Forgotten people and the events of one machine -> a log, an embedded view and a Redis without them.

Other processes go on recording meanwhile. Files of the log are replaced one by one, by files of the same length, so
that every position that a view, Redis or an ingest remembers stays true; a process that is killed leaves files that the
next one goes on with. Knows no artifacts.
"""

from __future__ import annotations

import io
import json
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
from llmrec_ray.forgotten import NOBODY, Tombstones
from llmrec_ray.storage import sync_to_disk

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
    if not anew and not len(tombstones.unfinished_in(log.forgotten)):
        return 0
    with file_lock(folder / "forget.lock"):
        new = tombstones.unfinished_in(NOBODY if anew else log.forgotten)  # others may have done it meanwhile
        if not len(new):
            return 0
        files = log.remember(new)
        try:
            lines = _lines_of(files, new)
            found = {user_id for users in lines.values() for user_id in users if user_id}
            found |= {*forget_in_view(folder / VIEW, new), *user_ids}
            if forget_in_redis is not None:  # before the lines go, which tell whoever has to try again of whom they are
                forget_in_redis(sorted(found))
            _clean_log(log.folder, list(lines), new)
        except (OSError, sqlite3.Error, RedisDownError) as error:
            raise EventLogError(
                f"Not all events of the person in {folder} are removed yet ({error}): {AGAIN}."
            ) from error
        log.remember(new.finished())
    return sum(len(users) for users in lines.values())


def forget_in_file(filesystem: pafs.FileSystem, path: str, forgotten: Tombstones) -> list[str]:
    """Remove people from a file of events that nobody appends to, plain or compressed; `users_in` it before.

    Raises OSError.
    """
    removed = users_in(filesystem, path, forgotten)
    if removed:
        staged = str(PurePosixPath(path).with_name(f".{PurePosixPath(path).name}{STAGED}"))
        _write_without(filesystem, path, staged, forgotten)
        filesystem.move(staged, path)
    return removed


def users_in(filesystem: pafs.FileSystem, path: str, forgotten: Tombstones) -> list[str]:
    """The user id of every line of a file of events that is of one of these people, "" for an end that was cut short.

    Raises OSError.
    """
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
        sync_to_disk(Path(staged))


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


def _lines_of(files: Sequence[Path], forgotten: Tombstones) -> dict[Path, list[str]]:
    """`users_in` of each of these files of the log in which there are any; nobody appends to them."""
    local = pafs.LocalFileSystem()
    return {file: users for file in files if (users := users_in(local, str(file), forgotten))}


def _clean_log(folder: Path, files: Sequence[Path], forgotten: Tombstones) -> None:
    """Replace these files; what a killed process left half-made goes too."""
    for left in folder.glob(f".*{STAGED}"):
        left.unlink()
    for file in files:
        forget_in_file(pafs.LocalFileSystem(), str(file), forgotten)
