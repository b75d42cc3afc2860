"""Paths, folders and globs of a recipe -> one ordered list of files to read.

The order (patterns as written, matches by name) decides between events of one moment, so it is fixed here. A glob may
use `*` and `[...]` in any part of a path, and `**` for any number of folders. Knows no format.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs as pafs

from llmrec_ray.config import DataConfig, LogConfig, TableConfig
from llmrec_ray.config.data import LogColumns
from llmrec_ray.errors import MissingInputError
from llmrec_ray.types import Columns

__all__ = ["FEEDBACK", "SourceFile", "TableName", "find_sources"]

TableName: TypeAlias = Literal["interactions", "items", "users"]
GLOB = frozenset("*[")
ANY_FOLDERS = "**"
EVENTS_FOLDER = "{events}"
EVENT_FILES = ("*.jsonl", "*.jsonl.*")
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
READ_BYTES = 4 * 1024 * 1024
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

FEEDBACK = LogConfig(
    paths=(EVENTS_FOLDER,), format="jsonl", missing_value=1.0,
    columns=LogColumns(value=Columns.VALUE, event=Columns.EVENT, event_id=Columns.EVENT_ID),
)
"""How the event logs of endpoints (`llmrec_ray.events.EventLog`) are read."""


@dataclass(frozen=True)
class SourceFile:
    """One input file: its table, the section that describes it, its place in the order of the table, where it is, its
    name in messages and tables, and its size as it is stored."""

    table: TableName
    config: LogConfig | TableConfig
    number: int
    uri: str
    name: str
    size_bytes: int

    @property
    def is_local(self) -> bool:
        """Whether `path` can be opened on this machine."""
        return "://" not in self.uri

    @property
    def is_compressed(self) -> bool:
        """Whether the bytes are unpacked while they are read, as the name says."""
        return PurePosixPath(self.path).suffix in COMPRESSED

    @property
    def may_grow(self) -> bool:
        """Whether an endpoint may still append lines to it."""
        return self.config == FEEDBACK and not self.is_compressed

    @property
    def path(self) -> str:
        """The path within its file system."""
        return _filesystem(self.uri)[1]

    @property
    def partitions(self) -> dict[str, str | None]:
        """Columns that stand in the names of folders, as in `day=2026-01-01/part-0.parquet`; the innermost counts."""
        folders = PurePosixPath(self.uri.partition("?")[0]).parts[:-1]
        pairs = (folder.partition("=") for folder in folders if "=" in folder)
        return {
            unquote(name): None if value == NULL_PARTITION else unquote(value) for name, _, value in pairs if name
        }

    def read_bytes(self, start: int, stop: int, chunk_bytes: int = READ_BYTES) -> Iterator[bytes]:
        """The bytes between two places; those of a compressed file all, unpacked. Raises as `stored_bytes` does."""
        if not self.is_compressed:
            yield from self.stored_bytes(start, stop, chunk_bytes)
            return
        try:
            with self._opened(lambda store, path: store.open_input_stream(path)) as stream:
                while chunk := stream.read(chunk_bytes):
                    yield chunk
        except OSError as error:
            raise self.unreadable(error) from None

    def stored_bytes(self, start: int, stop: int, chunk_bytes: int = READ_BYTES) -> Iterator[bytes]:
        """The bytes between two places as they are stored, chunk by chunk.

        Raises MissingInputError when the file went away, cannot be read or has become shorter.
        """
        try:
            with self.open_raw() as file:
                file.seek(start)
                while start < stop:
                    chunk = file.read(min(chunk_bytes, stop - start))
                    if not chunk:
                        raise self.unreadable(EOFError(f"it ends at byte {start:,}, {stop - start:,} bytes early"))
                    start += len(chunk)
                    yield chunk
        except OSError as error:
            raise self.unreadable(error) from None

    def open_raw(self) -> pa.NativeFile:
        """The bytes as they are stored, from anywhere. Raises MissingInputError when the file went away."""
        return self._opened(lambda store, path: store.open_input_file(path))

    def unreadable(self, error: Exception) -> MissingInputError:
        """What to raise when the store or the unpacking fails."""
        return MissingInputError(f"{self.name} cannot be read ({error}): restore it.")

    def _opened(self, opening: Callable[[pafs.FileSystem, str], pa.NativeFile]) -> pa.NativeFile:
        try:
            return opening(*_filesystem(self.uri))
        except OSError as error:
            raise self.unreadable(error) from None


@dataclass(frozen=True)
class _Match:
    uri: str
    size_bytes: int


def find_sources(
    data: DataConfig, raw_folder: Path, events_folder: Path | None = None, *, logs_may_be_gone: bool = False
) -> list[SourceFile]:
    """Every file of every table the recipe describes, the endpoints' event logs (`data.feedback`) after the log.

    `raw_folder` stands for {raw}, `events_folder` for {events}; the latter may be empty. Raises MissingInputError
    naming a path without a file; with `logs_may_be_gone` only for a table of items or users.
    """
    tables: dict[TableName, list[tuple[LogConfig | TableConfig, _Match]]] = {
        "interactions": [
            *_of_sections("interactions", data.interactions, raw_folder, data.fetch, may_be_gone=logs_may_be_gone),
            *((FEEDBACK, match) for match in _feedback(data.feedback, raw_folder, events_folder)),
        ],
        "items": _of_sections("items", data.items, raw_folder, data.fetch),
        "users": _of_sections("users", data.users, raw_folder, data.fetch),
    }
    return [
        SourceFile(table, section, number, match.uri, _name(match.uri, raw_folder.absolute()), match.size_bytes)
        for table, files in tables.items() for number, (section, match) in enumerate(files)
    ]


def _of_sections(
    table: TableName, sections: Sequence[LogConfig | TableConfig], raw_folder: Path, fetched: str | None,
    *, may_be_gone: bool = False,
) -> list[tuple[LogConfig | TableConfig, _Match]]:
    return [
        (section, match) for section in sections
        for match in _expand(table, section.paths, raw_folder, fetched, may_be_gone=may_be_gone)
    ]


def _expand(
    table: str, patterns: tuple[str, ...], raw_folder: Path, fetched: str | None, *, may_be_gone: bool
) -> list[_Match]:
    found: dict[_Match, None] = {}
    for pattern in patterns:
        place = pattern.replace("{raw}", str(raw_folder))
        matches = _matches(place)
        if not matches and not may_be_gone:
            hint = f"run `llmrec data fetch {fetched}` first, or " if fetched and "{raw}" in pattern else ""
            raise MissingInputError(f"No file matches {place} (data.{table}.paths): {hint}correct the path.")
        found.update(dict.fromkeys(matches))
    return list(found)


def _feedback(patterns: tuple[str, ...], raw_folder: Path, events_folder: Path | None) -> list[_Match]:
    """Only the files of events, since other things may stand beside them; none need be there before the first event."""
    found: dict[_Match, None] = {}
    for pattern in patterns:
        if EVENTS_FOLDER in pattern and events_folder is None:
            continue
        place = pattern.replace(EVENTS_FOLDER, str(events_folder)).replace("{raw}", str(raw_folder))
        matches = [match for match in _matches(place) if _is_event_file(match.uri)]
        if not matches and EVENTS_FOLDER not in pattern:
            raise MissingInputError(f"No event log (*.jsonl) matches {place} (data.feedback): correct the path.")
        found.update(dict.fromkeys(matches))
    return list(found)


def _is_event_file(uri: str) -> bool:
    name = PurePosixPath(uri.partition("?")[0]).name
    return any(fnmatch.fnmatchcase(name, form) for form in EVENT_FILES)


def _matches(pattern: str) -> list[_Match]:
    """A file; all files of a folder; or what fits a glob, files before folders."""
    try:
        return _found(pattern)
    except OSError as error:
        raise MissingInputError(f"{pattern} cannot be looked at ({error}): correct the path, or let this user read "
                                "it.") from None


def _found(pattern: str) -> list[_Match]:
    filesystem, path = _filesystem(pattern)
    info = filesystem.get_file_info(path)
    if not GLOB & set(path) or info.type != pafs.FileType.NotFound:  # a name may have brackets
        files = [info] if info.type == pafs.FileType.File else _files_below(filesystem, path)
    else:
        parts = PurePosixPath(path).parts
        root = str(PurePosixPath(*parts[: next(i for i, part in enumerate(parts) if GLOB & set(part))]))
        below = _files_below(filesystem, root, hidden=True)
        files = [info for info in below if _fits(PurePosixPath(info.path).parts, parts)]
        files = files or [info for info in below if _lies_in(info.path, root, parts)]
    if isinstance(filesystem, pafs.LocalFileSystem):
        files = _once(files)
    return sorted((_Match(_uri(info.path, pattern, path), info.size) for info in files), key=lambda match: match.uri)


def _once(files: Sequence[pafs.FileInfo]) -> list[pafs.FileInfo]:
    """A file that links lead to by several paths, even in circles, only by the shortest."""
    ordered = sorted(files, key=lambda info: (info.path.count("/"), info.path), reverse=True)
    return list({os.path.realpath(info.path): info for info in ordered}.values())


def _files_below(filesystem: pafs.FileSystem, folder: str, *, hidden: bool = False) -> list[pafs.FileInfo]:
    """All files of a folder and its folders, but for those that writers put beside their data, such as `_SUCCESS`."""
    selector = pafs.FileSelector(folder, recursive=True, allow_not_found=True)
    files = [info for info in filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
    return files if hidden else [info for info in files if not _is_hidden(info.path, folder)]


def _is_hidden(file: str, folder: str) -> bool:
    return any(part.startswith((".", "_")) for part in PurePosixPath(file).relative_to(folder).parts)


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """`*` stays inside one path segment, as in a shell; hidden files only match patterns that say so."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == ANY_FOLDERS:
        return _fits(parts, pattern[1:] or ("*",)) or (not parts[0].startswith(".") and _fits(parts[1:], pattern))
    is_hidden = parts[0].startswith(".") and not pattern[0].startswith(".")
    return not is_hidden and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _lies_in(file: str, root: str, pattern: tuple[str, ...]) -> bool:
    """Whether a folder that the file is in, however deep, fits the pattern."""
    folder = next((f for f in PurePosixPath(file).parents if _fits(f.parts, pattern)), None)
    return folder is not None and not _is_hidden(file, str(folder)) and str(folder) != root


def _uri(file: str, pattern: str, pattern_path: str) -> str:
    """A file found on a pattern's file system, with the pattern's scheme and options around its path."""
    if "://" not in pattern:
        return file
    location, mark, options = pattern.partition("?")
    return location.removesuffix(pattern_path) + file + mark + options


def _filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).absolute())
    location, _, query = uri.partition("?")
    scheme, _, rest = location.partition("://")
    host, _, path = rest.partition("/")
    try:
        filesystem, root = pafs.FileSystem.from_uri(f"{scheme}://{host}/" + (f"?{query}" if query else ""))
    except (OSError, ValueError) as error:
        message = f"The URI {uri} cannot be used ({error}): correct it in the recipe."
        raise MissingInputError(message) from None
    return filesystem, f"{root.rstrip('/')}/{path}"


def _name(uri: str, raw_folder: Path) -> str:
    """Short, the same wherever the workspace is, another for every file, and without the keys or options a URI may
    carry: a file of the raw folder by its place there, one of the working directory as ./file."""
    if "://" in uri:
        return re.sub(r"://[^/@]*@", "://", uri.partition("?")[0])
    for folder, prefix in ((raw_folder, ""), (Path.cwd(), "./")):
        if uri.startswith(f"{folder}/"):
            return prefix + uri.removeprefix(f"{folder}/")
    return uri
