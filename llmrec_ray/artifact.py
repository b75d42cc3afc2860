"""Immutable, content-addressed folders with a manifest: how every Dataset, Bundle and Index is kept.

A folder is staged beside its final place, hashed, given `manifest.json` and then renamed, so a failed stage
leaves nothing half-written. On an object store the manifest is uploaded last and is the commit mark.
This module does not know what the files mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from pyarrow import fs as pafs
from pydantic import BaseModel, ConfigDict, ValidationError

from llmrec_ray.errors import (
    ArtifactError,
    ArtifactMismatchError,
    ArtifactNotFoundError,
    CorruptArtifactError,
)
from llmrec_ray.storage import (
    filesystem_of,
    is_local,
    read_json,
    saving,
    sha256_of,
    temporary_folder,
    write_json_atomic,
)

__all__ = [
    "Artifact",
    "ArtifactKind",
    "FileEntry",
    "Manifest",
    "Workspace",
    "cache_folder",
    "create_artifact",
    "library_versions",
    "open_artifact",
    "remove_artifact",
]

ArtifactKind: TypeAlias = Literal["log", "dataset", "vectors", "encoder", "bundle", "index", "evaluation", "campaign"]
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PLURALS = {"index": "indexes", "policy": "policies", "vectors": "vectors"}
LIBRARIES = ("numpy", "polars", "pyarrow", "ray", "torch", "transformers", "deepspeed", "faiss-cpu")


class FileEntry(BaseModel):
    """Size and hash of one file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    size_bytes: int


class Manifest(BaseModel):
    """What an artifact says about itself. `id` hashes kind, format, config, parents and files, no more."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ArtifactKind
    format_version: int
    id: str
    created_at: str
    config: dict[str, Any]
    parents: dict[str, str]
    metrics: dict[str, Any]
    libraries: dict[str, str]
    git_commit: str | None
    files: dict[str, FileEntry]


class Artifact(BaseModel):
    """An opened artifact: where it is, a local folder with its files, and its manifest."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)
    uri: str
    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """The content hash, 16 hexadecimal digits."""
        return self.manifest.id


def create_artifact(
    root: str,
    kind: ArtifactKind,
    write: Callable[[Path], None],
    *,
    config: Mapping[str, Any],
    parents: Mapping[str, str] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Artifact:
    """Let `write(folder)` fill a staging folder, then commit it as `<root>/<kind>-<id>`.

    An artifact with the same content that is already there is returned as it is, unless it is damaged; then
    it is replaced. When `write` raises, the staging folder is removed and the error goes on; on a full disk that is
    DiskFullError.
    """
    filesystem, base = filesystem_of(root)
    with _staging_folder(filesystem, base, kind) as folder:
        write(folder)
        manifest = _with_id(Manifest(
            kind=kind, format_version=FORMAT_VERSION, id="",
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            config=dict(config), parents=dict(parents or {}), metrics=dict(metrics or {}),
            libraries=library_versions(), git_commit=_git_commit(), files=_hash_files(folder),
        ))
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        name = f"{kind}-{manifest.id}"
        _commit(filesystem, folder, str(PurePosixPath(base) / name), manifest)
    return open_artifact(f"{root.rstrip('/')}/{name}", kind, verify=False)


def open_artifact(uri: str, kind: ArtifactKind, *, verify: bool = True) -> Artifact:
    """Open a committed artifact and, with `verify`, compare every file with its manifest's hash.

    Remote artifacts are downloaded once to a cache folder named by their id. Raises ArtifactNotFoundError,
    ArtifactMismatchError (another kind, or written by a newer format), CorruptArtifactError naming the file.
    """
    filesystem, base = filesystem_of(uri)
    manifest = _read_manifest(filesystem, base, uri)
    if manifest.kind != kind:
        raise ArtifactMismatchError(f"{uri} is {_a(manifest.kind)}, not {_a(kind)}: pass the URI of {_a(kind)}.")
    if manifest.format_version != FORMAT_VERSION:
        raise ArtifactMismatchError(
            f"{uri} has format version {manifest.format_version}, this program reads {FORMAT_VERSION}: "
            f"make the {kind} again with this version."
        )
    path = Path(base) if is_local(filesystem) else _download(filesystem, base, manifest)
    if verify:
        _verify(path, manifest, uri)
    return Artifact(uri=uri, path=path, manifest=manifest)


def cache_folder() -> Path:
    """Where downloads are kept on this machine: LLMREC_CACHE, or ~/.cache/llmrec_ray."""
    return Path(os.environ.get("LLMREC_CACHE", Path.home() / ".cache" / "llmrec_ray"))


def remove_artifact(artifact: Artifact) -> None:
    """Delete a committed artifact, manifest first, so that nobody can open a part of it."""
    filesystem, base = filesystem_of(artifact.uri)
    filesystem.delete_file(f"{base}/{MANIFEST}")
    filesystem.delete_dir(base)


class Workspace:
    """The folder (or bucket) of one recipe: artifacts by kind, and a pointer to the newest of each."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") if "://" in uri else str(Path(uri).absolute())

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine's file system."""
        return is_local(filesystem_of(self.uri)[0])

    def root(self, kind: str) -> str:
        """URI of the folder that holds artifacts of this kind."""
        return f"{self.uri}/{PLURALS.get(kind, f'{kind}s')}"

    def set_latest(self, kind: str, uri: str) -> None:
        """Remember the newest artifact of a kind; replaced atomically."""
        write_json_atomic(f"{self.uri}/latest/{kind}.json", {"uri": uri})

    def latest(self, kind: str, *, made_by: str) -> str:
        """URI of the newest of a kind. Raises ArtifactNotFoundError naming the verb that makes it."""
        try:
            return str(read_json(f"{self.uri}/latest/{kind}.json")["uri"])
        except FileNotFoundError:
            raise ArtifactNotFoundError(
                f"There is no {kind} in {self.uri} yet: run `llmrec {made_by}` with the same recipe first."
            ) from None

    def local_folder(self, name: str, *, make: bool = True) -> Path:
        """A local folder of the workspace, made when missing. Raises ArtifactError for a remote workspace."""
        filesystem, base = filesystem_of(self.uri)
        if not is_local(filesystem):
            raise ArtifactError(f"{self.uri} is not a local folder, but {name} must be kept on a local disk.")
        folder = Path(base) / name
        if make:
            with saving(f"The folder {name}", base):
                folder.mkdir(parents=True, exist_ok=True)
        return folder


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that results depend on."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _a(kind: ArtifactKind) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


@contextlib.contextmanager
def _staging_folder(filesystem: pafs.FileSystem, base: str, kind: str) -> Iterator[Path]:
    parent = Path(base) if is_local(filesystem) else Path(tempfile.gettempdir())
    with temporary_folder(parent, f"staging-{kind}", what=f"The {kind}") as folder:
        yield folder


def _hash_files(folder: Path) -> dict[str, FileEntry]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_of(path), size_bytes=path.stat().st_size)
        for path in files
    }


def _commit(filesystem: pafs.FileSystem, folder: Path, target: str, manifest: Manifest) -> None:
    if is_local(filesystem):
        _commit_locally(folder, Path(target), manifest)
        return
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in sorted(names, key=lambda name: (name == MANIFEST, name)):
        destination = f"{target}/{name}"
        filesystem.create_dir(str(PurePosixPath(destination).parent), recursive=True)
        pafs.copy_files(str(folder / name), destination, source_filesystem=pafs.LocalFileSystem(),
                        destination_filesystem=filesystem)


def _commit_locally(folder: Path, target: Path, manifest: Manifest) -> None:
    """Rename into place. The same artifact stays when it is whole; a damaged one makes room."""
    if target.exists() and not _is_whole(target, manifest):
        shutil.rmtree(target.rename(folder.with_name(f"{folder.name}-damaged")))
    with contextlib.suppress(OSError):
        folder.rename(target)
    if not (target / MANIFEST).is_file():
        raise ArtifactError(f"{target} could not be written: is there space, and may this user write there?")


def _is_whole(path: Path, manifest: Manifest) -> bool:
    try:
        _read_manifest(pafs.LocalFileSystem(), str(path), str(path))
        _verify(path, manifest, str(path))
    except ArtifactError:
        return False
    return True


def _read_manifest(filesystem: pafs.FileSystem, base: str, uri: str) -> Manifest:
    try:
        with filesystem.open_input_stream(f"{base}/{MANIFEST}") as stream:
            payload = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        message = f"There is no artifact at {uri} (no {MANIFEST}): check the URI."
        raise ArtifactNotFoundError(message) from None
    try:
        return Manifest.model_validate_json(payload)
    except ValidationError:
        message = f"{uri}/{MANIFEST} is damaged: restore the folder or make it again."
        raise CorruptArtifactError(message) from None


def _download(filesystem: pafs.FileSystem, base: str, manifest: Manifest) -> Path:
    cache = cache_folder() / "artifacts"
    target = cache / f"{manifest.kind}-{manifest.id}"
    if (target / MANIFEST).is_file():
        return target
    with _staging_folder(pafs.LocalFileSystem(), str(cache), manifest.kind) as folder:
        pafs.copy_files(base, str(folder), source_filesystem=filesystem,
                        destination_filesystem=pafs.LocalFileSystem())
        with contextlib.suppress(OSError):
            folder.rename(target)
    return target


def _with_id(manifest: Manifest) -> Manifest:
    """The manifest as it is read back from its file, with the id that follows from the rest."""
    manifest = Manifest.model_validate_json(manifest.model_dump_json())
    identity = {
        "kind": manifest.kind, "format_version": manifest.format_version, "config": manifest.config,
        "parents": manifest.parents, "files": {name: entry.sha256 for name, entry in manifest.files.items()},
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return manifest.model_copy(update={"id": digest})


def _verify(path: Path, manifest: Manifest, uri: str) -> None:
    remedy = f"restore it from a copy or make the {manifest.kind} again"
    if _with_id(manifest).id != manifest.id:
        raise CorruptArtifactError(f"{MANIFEST} in {uri} is not what was hashed as {manifest.id}: {remedy}.")
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise CorruptArtifactError(f"{uri} lacks its file {name}: {remedy}.")
        if file.stat().st_size != entry.size_bytes or sha256_of(file) != entry.sha256:
            raise CorruptArtifactError(f"{name} in {uri} does not match its manifest's hash: {remedy}.")


def _git_commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
