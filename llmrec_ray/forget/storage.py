"""Folders and files of a workspace by URI -> what is there, and its removal. Knows what no file means."""

from __future__ import annotations

from pathlib import Path

from pyarrow import fs as pafs

__all__ = ["exists", "folders", "opened", "remove"]


def opened(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI and the path in it."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).absolute())
    filesystem, path = pafs.FileSystem.from_uri(uri)
    return filesystem, path


def folders(uri: str) -> list[str]:
    """URIs of the folders right under a folder, sorted; none when there is no such folder."""
    filesystem, path = opened(uri)
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(f"{uri}/{info.base_name}" for info in found if info.type == pafs.FileType.Directory)


def exists(uri: str) -> bool:
    """Whether there is a file or a folder."""
    filesystem, path = opened(uri)
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def remove(uri: str) -> bool:
    """Delete a file or a folder with all that is in it; whether it was there."""
    filesystem, path = opened(uri)
    kind = filesystem.get_file_info(path).type
    if kind == pafs.FileType.Directory:
        filesystem.delete_dir(path)
    elif kind == pafs.FileType.File:
        filesystem.delete_file(path)
    return bool(kind != pafs.FileType.NotFound)
