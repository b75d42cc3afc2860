"""Files on this machine's disks and in object stores: small JSON, names, hashes, and what a full disk says.

JSON is replaced whole, temporary folders of killed processes are removed, and errors of a disk that is full or may not
be written say so in words. It does not know artifacts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs as pafs

from llmrec_ray.errors import ArtifactError, CorruptArtifactError, DiskFullError

__all__ = [
    "delete_folder",
    "file_names",
    "filesystem_of",
    "folder_names",
    "free_space",
    "is_disk_full",
    "is_local",
    "read_json",
    "saving",
    "sha256_of",
    "sync_to_disk",
    "temporary_folder",
    "write_json_atomic",
    "write_new_json",
]

IN_USE = ".in-use"
UNMAKEABLE = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}  # a folder below a file, or in /proc
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_IN_WORDS = tuple(os.strerror(number) for number in FULL)


def write_json_atomic(uri: str, value: Mapping[str, Any], *, sort_keys: bool = True) -> None:
    """Write one JSON file so that a reader sees the old or the new one, never a part."""
    filesystem, path = filesystem_of(uri)
    payload = (json.dumps(value, indent=2, sort_keys=sort_keys) + "\n").encode()
    if not is_local(filesystem):
        filesystem.create_dir(str(PurePosixPath(path).parent), recursive=True)
        with filesystem.open_output_stream(path) as stream:
            stream.write(payload)
        return
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with saving(target.name, target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_durably(temporary, payload)
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_new_json(uri: str, value: Mapping[str, Any]) -> None:
    """Write one JSON file that nobody has written before, durably and whole. Raises FileExistsError.

    On an object store, which cannot be asked to refuse, two writers at the same moment are not told apart.
    """
    filesystem, path = filesystem_of(uri)
    if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
        raise FileExistsError(uri)
    if not is_local(filesystem):
        write_json_atomic(uri, value)
        return
    staged = Path(path).with_name(f".{Path(path).name}.{uuid.uuid4().hex}")
    try:
        write_json_atomic(str(staged), value)
        os.link(staged, path)
        sync_to_disk(Path(path).parent)
    finally:
        staged.unlink(missing_ok=True)


def read_json(uri: str) -> dict[str, Any]:
    """Read one JSON object. Raises FileNotFoundError when it is absent, CorruptArtifactError when damaged."""
    filesystem, path = filesystem_of(uri)
    with filesystem.open_input_stream(path) as stream:
        payload = stream.read()
    try:
        value = json.loads(payload)
    except ValueError as error:
        message = f"{uri} is not valid JSON ({error}): restore it or make it again."
        raise CorruptArtifactError(message) from None
    if not isinstance(value, dict):
        raise CorruptArtifactError(f"{uri} does not hold a JSON object: restore it or make it again.")
    return value


def file_names(uri: str) -> list[str]:
    """Names of the files right under a folder, sorted; none when there is no such folder."""
    return _names(uri, pafs.FileType.File)


def folder_names(uri: str) -> list[str]:
    """Names of the folders right under a folder, sorted; none when there is no such folder."""
    return _names(uri, pafs.FileType.Directory)


def _names(uri: str, kind: pafs.FileType) -> list[str]:
    filesystem, path = filesystem_of(uri)
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == kind)


def delete_folder(uri: str) -> None:
    """Delete a folder with all that is in it, if it is there; on this machine as far as that can be done."""
    if "://" not in uri:
        shutil.rmtree(uri, ignore_errors=True)
        return
    filesystem, path = filesystem_of(uri)
    if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
        filesystem.delete_dir(path)


def sha256_of(path: Path) -> str:
    """Of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def saving(what: str, folder: str | Path) -> Iterator[None]:
    """Within it an error because `folder` is full, whatever library raises it, becomes DiskFullError, and one because
    it may not be written ArtifactError."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"{what} could not be saved, since the disk of {folder} is full ({free_space(folder)} are free): make "
                "room there, or set workspace to a larger disk, and run the same command again."
            ) from error
        if _is_forbidden(error, folder):
            raise ArtifactError(
                f"{what} could not be saved, since {folder} may not be written ({error}): let this user write there, "
                "or set workspace to another folder."
            ) from error
        raise


@contextlib.contextmanager
def temporary_folder(parent: Path, name: str, *, what: str) -> Iterator[Path]:
    """A new folder `.<name>-…` below `parent` for the length of the block, or until it is renamed.

    Those of processes that were killed are removed first. A disk that is full or may not be written is an error as
    `saving` makes it, about `what`.
    """
    folder = parent / f".{name}-{uuid.uuid4().hex}"
    with saving(what, parent):
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent, name)
        with _marked_as_in_use(folder):
            try:
                folder.mkdir()
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk, a quota or a file is full; Rust libraries say it in words only."""
    return getattr(error, "errno", None) in FULL or any(words in str(error) for words in FULL_IN_WORDS)


def _is_forbidden(error: BaseException, folder: str | Path) -> bool:
    """Whether it is about a file of the folder, or about a folder above it that was to be made."""
    if not isinstance(error, OSError) or error.filename is None:
        return False
    if error.errno in UNMAKEABLE and Path(error.filename) in (Path(folder), *Path(folder).parents):
        return True
    if error.errno not in FORBIDDEN:
        return False
    return str(error.filename).startswith(str(folder)) or Path(error.filename) in Path(folder).parents


def free_space(folder: str | Path) -> str:
    """Free space on the disk of a folder, in words; an unknown amount when it cannot be told."""
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"
    except OSError:
        return "an unknown number of bytes"


def sync_to_disk(path: Path) -> None:
    """Return when a file, or the names in a folder, would outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """Who keeps a URI, or a path on this machine, and under what path. Raises ArtifactError for a URI of no use."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).absolute())
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"The URI {uri} cannot be used: {error}") from None
    return filesystem, path


def is_local(filesystem: pafs.FileSystem) -> bool:
    """Whether it is this machine's."""
    return isinstance(filesystem, pafs.LocalFileSystem)


def _write_durably(path: Path, payload: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(payload)
        handle.flush()
        os.fsync(handle.fileno())


@contextlib.contextmanager
def _marked_as_in_use(folder: Path) -> Iterator[None]:
    """Hold a locked file beside a folder, which the system unlocks when this process is killed."""
    mark = folder.with_name(f"{folder.name}{IN_USE}")
    with contextlib.ExitStack() as held:
        while not mark.exists():  # somebody who clears up may find it before it is locked
            handle = held.enter_context(mark.open("w+"))  # NFS shares a lock only with those who may read and write
            with contextlib.suppress(OSError):  # where files cannot be locked, nothing is ever removed as abandoned
                fcntl.flock(handle, fcntl.LOCK_SH)
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def _remove_abandoned(parent: Path, name: str) -> None:
    """Remove the temporary folders of processes that were killed."""
    for mark in parent.glob(f".{glob.escape(name)}-*{IN_USE}"):
        with contextlib.suppress(OSError), mark.open("r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for folder in parent.glob(f"{glob.escape(mark.name.removesuffix(IN_USE))}*"):
                shutil.rmtree(folder, ignore_errors=True)
            mark.unlink()
