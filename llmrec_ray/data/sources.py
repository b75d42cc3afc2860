"""Paths and globs of a recipe -> one ordered list of files to read.

The order (patterns as written, matches by name) decides between events of one moment, so it is fixed here. A
glob may use `*` and `[...]` in any part of a path.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from pyarrow import fs as pafs

from llmrec_ray.config import DataConfig, LogConfig, TableConfig
from llmrec_ray.errors import MissingInputError

__all__ = ["SourceFile", "TableName", "find_sources"]

TableName: TypeAlias = Literal["interactions", "items", "users"]
GLOB = frozenset("*[")


@dataclass(frozen=True)
class SourceFile:
    """One input file: its table, the section that describes it, its place in the order of the table, where it is, and
    its name in messages and tables."""

    table: TableName
    config: LogConfig | TableConfig
    number: int
    uri: str
    name: str

    def read(self) -> bytes:
        """The whole file, unpacked when its name ends in .gz, .bz2, .zst or .lz4.

        Raises MissingInputError when it went away or cannot be unpacked.
        """
        try:
            filesystem, path = _filesystem(self.uri)
            with filesystem.open_input_stream(path) as stream:
                return bytes(stream.read())
        except OSError as error:
            raise MissingInputError(f"{self.uri} cannot be read ({error}): restore it.") from None


def find_sources(data: DataConfig, raw_folder: Path) -> list[SourceFile]:
    """Every file of every table the recipe describes. Raises MissingInputError naming a path without one."""
    tables: dict[TableName, tuple[LogConfig, ...] | tuple[TableConfig, ...]] = {
        "interactions": data.interactions, "items": data.items, "users": data.users,
    }
    found = []
    for table, sections in tables.items():
        files = [
            (section, uri) for section in sections
            for uri in _expand(table, section.paths, raw_folder, can_fetch=data.fetch is not None)
        ]
        for number, (section, uri) in enumerate(files):
            found.append(SourceFile(table, section, number, uri, _name(uri, raw_folder.absolute())))
    return found


def _expand(table: str, patterns: tuple[str, ...], raw_folder: Path, *, can_fetch: bool) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        place = pattern.replace("{raw}", str(raw_folder))
        matches = _matches(place)
        if not matches:
            hint = "run `llmrec data fetch` first, or " if can_fetch and "{raw}" in pattern else ""
            raise MissingInputError(
                f"No file matches {place} (data.{table}.paths): {hint}correct the path."
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _matches(pattern: str) -> list[str]:
    filesystem, path = _filesystem(pattern)
    if not GLOB & set(path):
        is_file = filesystem.get_file_info(path).type == pafs.FileType.File
        return [_uri(path, pattern, path)] if is_file else []
    parts = PurePosixPath(path).parts
    fixed = next(i for i, part in enumerate(parts) if GLOB & set(part))
    root = str(PurePosixPath(*parts[:fixed]))
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    files = [info.path for info in filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
    return sorted(_uri(file, pattern, path) for file in files if _fits(file, parts))


def _fits(file: str, pattern_parts: tuple[str, ...]) -> bool:
    """`*` stays inside one path segment, as in a shell; hidden files only match patterns that say so."""
    parts = PurePosixPath(file).parts
    return len(parts) == len(pattern_parts) and all(
        fnmatch.fnmatchcase(part, pattern) and (not part.startswith(".") or pattern.startswith("."))
        for part, pattern in zip(parts, pattern_parts, strict=True)
    )


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
    """Short, the same wherever the workspace is, and without the keys or options a URI may carry."""
    if "://" in uri:
        return re.sub(r"://[^/@]*@", "://", uri.partition("?")[0])
    for folder in (raw_folder, Path.cwd()):
        if uri.startswith(f"{folder}/"):
            return uri.removeprefix(f"{folder}/")
    return uri
