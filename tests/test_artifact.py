"""Artifacts: immutable, content-addressed, whole or not there."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from llmrec_ray import artifact as module
from llmrec_ray import storage
from llmrec_ray.artifact import Workspace, create_artifact, open_artifact
from llmrec_ray.errors import (
    ArtifactError,
    ArtifactMismatchError,
    ArtifactNotFoundError,
    CorruptArtifactError,
)
from llmrec_ray.storage import read_json, temporary_folder, write_json_atomic


def write_two(folder: Path) -> None:
    (folder / "part").mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "part" / "b.txt").write_text("b")


def make(root: Path, write=write_two, **arguments):
    return create_artifact(str(root), "dataset", write, **{"config": {"x": 1}, **arguments})


def test_an_artifact_opens_as_it_was_made(tmp_path):
    made = make(tmp_path, parents={"bundle": "abc"}, metrics={"rows": 3})
    opened = open_artifact(made.uri, "dataset")
    assert opened == made
    assert opened.path == tmp_path / f"dataset-{made.id}"
    assert (opened.path / "part" / "b.txt").read_text() == "b"
    assert sorted(opened.manifest.files) == ["a.txt", "part/b.txt"]
    assert opened.manifest.files["a.txt"].size_bytes == 1
    assert (opened.manifest.parents, opened.manifest.metrics) == ({"bundle": "abc"}, {"rows": 3})
    assert opened.manifest.libraries["polars"]


def test_the_id_follows_content_config_and_parents_and_nothing_else(tmp_path):
    first = make(tmp_path / "one").id
    assert make(tmp_path / "two", metrics={"seconds": 7}).id == first
    assert make(tmp_path / "one", config={"x": 2}).id != first
    assert make(tmp_path / "one", parents={"bundle": "abc"}).id != first
    assert make(tmp_path / "one", lambda folder: (folder / "a.txt").write_text("b")).id != first


def test_making_the_same_again_keeps_the_artifact_that_is_there(tmp_path):
    first = make(tmp_path)
    before = (first.path / "manifest.json").stat().st_mtime_ns
    assert make(tmp_path).uri == first.uri
    assert (first.path / "manifest.json").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name]


KILLED = """
import os, sys
from pathlib import Path
from llmrec_ray.artifact import create_artifact

def write(folder):
    (folder / "half.txt").write_text("a")
    os.kill(os.getpid(), 9)

create_artifact(sys.argv[1], "dataset", write, config={})
"""


def test_what_a_killed_process_staged_is_gone_when_the_next_artifact_is_made(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.rglob("half.txt")] == ["half.txt"]
    made = make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [made.path.name]


def test_what_a_living_process_stages_is_left_alone(tmp_path):
    def write(folder):
        write_two(folder)
        make(tmp_path)

    outer = make(tmp_path, write, config={"x": 2})
    assert open_artifact(outer.uri, "dataset").manifest.files.keys() == {"a.txt", "part/b.txt"}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("victim", ["a.txt", "manifest.json"])
def test_making_a_damaged_artifact_again_repairs_it(tmp_path, victim):
    made = make(tmp_path)
    (made.path / victim).write_text("?")
    make(tmp_path)
    assert open_artifact(made.uri, "dataset").id == made.id
    assert [path.name for path in tmp_path.iterdir()] == [made.path.name]


def test_a_failed_stage_leaves_nothing_behind(tmp_path):
    def fail(folder: Path) -> None:
        write_two(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make(tmp_path, fail)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_artifact_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ArtifactNotFoundError) as missing:
        open_artifact(str(tmp_path / "none"), "dataset")
    assert str(missing.value) == f"There is no artifact at {tmp_path}/none (no manifest.json): check the URI."


def test_an_artifact_of_another_kind_is_refused(tmp_path):
    made = make(tmp_path)
    with pytest.raises(ArtifactMismatchError) as mismatch:
        open_artifact(made.uri, "bundle")
    assert str(mismatch.value) == f"{made.uri} is a dataset, not a bundle: pass the URI of a bundle."


def test_an_artifact_of_another_format_version_is_refused(tmp_path):
    made = make(tmp_path)
    manifest = json.loads((made.path / "manifest.json").read_text())
    (made.path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(ArtifactMismatchError) as mismatch:
        open_artifact(made.uri, "dataset")
    assert str(mismatch.value) == (
        f"{made.uri} has format version 99, this program reads {module.FORMAT_VERSION}: make the dataset "
        "again with this version."
    )


def test_a_lost_file_is_named(tmp_path):
    made = make(tmp_path)
    (made.path / "part" / "b.txt").unlink()
    with pytest.raises(CorruptArtifactError) as corrupt:
        open_artifact(made.uri, "dataset")
    assert str(corrupt.value) == (
        f"{made.uri} lacks its file part/b.txt: restore it from a copy or make the dataset again."
    )
    assert open_artifact(made.uri, "dataset", verify=False).id == made.id


@pytest.mark.parametrize("content", ["A", "aa"])
def test_a_changed_file_is_named(tmp_path, content):
    made = make(tmp_path)
    (made.path / "a.txt").write_text(content)
    with pytest.raises(CorruptArtifactError) as corrupt:
        open_artifact(made.uri, "dataset")
    assert str(corrupt.value) == (
        f"a.txt in {made.uri} does not match its manifest's hash: restore it from a copy or make the dataset "
        "again."
    )


@pytest.mark.parametrize("change", [{"config": {"x": 2}}, {"parents": {"a": "b"}}, {"files": {}}, {"id": "0" * 16}])
def test_a_manifest_that_is_not_the_one_its_id_was_made_from_is_named(tmp_path, change):
    made = make(tmp_path)
    file = made.path / "manifest.json"
    tree = json.loads(file.read_text()) | change
    file.write_text(json.dumps(tree))
    with pytest.raises(CorruptArtifactError) as corrupt:
        open_artifact(made.uri, "dataset")
    assert str(corrupt.value) == (
        f"manifest.json in {made.uri} is not what was hashed as {tree['id']}: restore it from a copy or make the "
        "dataset again."
    )


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_a_damaged_manifest_is_named(tmp_path, text):
    made = make(tmp_path)
    (made.path / "manifest.json").write_text(text)
    with pytest.raises(CorruptArtifactError) as corrupt:
        open_artifact(made.uri, "dataset")
    assert str(corrupt.value) == f"{made.uri}/manifest.json is damaged: restore the folder or make it again."


def test_an_unwritable_place_is_an_error_for_people(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ArtifactError, match=r"is there space, and may this user write there\?$"):
        make(tmp_path)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """`store://…` is a file system that is not this machine's, and there is an empty cache for it."""
    here = storage.filesystem_of

    def with_store(uri: str):
        if uri.startswith("store://"):
            return pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), uri.removeprefix("store://")
        return here(uri)

    for each in (storage, module):
        monkeypatch.setattr(each, "filesystem_of", with_store)
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    return "store://bucket"


def test_an_object_store_gets_the_manifest_last(bucket, monkeypatch):
    copied = []
    copy_files = pafs.copy_files

    def remember(source, destination, **arguments):
        copied.append(Path(destination).name)
        copy_files(source, destination, **arguments)

    monkeypatch.setattr(pafs, "copy_files", remember)
    create_artifact(bucket, "dataset", write_two, config={})
    assert copied[:3] == ["a.txt", "b.txt", "manifest.json"]


def test_an_artifact_in_an_object_store_is_read_from_a_cached_copy(bucket, tmp_path):
    made = create_artifact(bucket, "dataset", write_two, config={})
    assert made.uri == f"{bucket}/dataset-{made.id}"
    assert made.path == tmp_path / "cache" / "artifacts" / f"dataset-{made.id}"
    (tmp_path / "bucket" / f"dataset-{made.id}" / "a.txt").unlink()
    assert open_artifact(made.uri, "dataset") == made


def test_a_workspace_in_an_object_store_points_to_its_newest_but_has_no_local_folders(bucket):
    workspace = Workspace(bucket)
    workspace.set_latest("dataset", "store://x")
    assert workspace.latest("dataset", made_by="ingest") == "store://x"
    with pytest.raises(ArtifactError) as refusal:
        workspace.local_folder("events")
    assert str(refusal.value) == f"{bucket} is not a local folder, but events must be kept on a local disk."


def test_a_workspace_remembers_the_newest_of_each_kind(tmp_path):
    workspace = Workspace(str(tmp_path))
    workspace.set_latest("dataset", "/old")
    workspace.set_latest("dataset", "/new")
    assert workspace.latest("dataset", made_by="ingest") == "/new"
    assert workspace.root("dataset") == f"{tmp_path}/datasets"
    assert workspace.root("index") == f"{tmp_path}/indexes"
    assert [path.name for path in (tmp_path / "latest").iterdir()] == ["dataset.json"]
    assert workspace.local_folder("cache") == tmp_path / "cache"


def test_a_workspace_without_an_artifact_names_the_verb_that_makes_it(tmp_path):
    with pytest.raises(ArtifactNotFoundError) as missing:
        Workspace(f"{tmp_path}/").latest("bundle", made_by="train")
    assert str(missing.value) == (
        f"There is no bundle in {tmp_path} yet: run `llmrec train` with the same recipe first."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)): "
           "restore it or make it again."),
     ("[]", "does not hold a JSON object: restore it or make it again.")],
)
def test_a_damaged_json_file_is_named(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(CorruptArtifactError) as corrupt:
        read_json(str(path))
    assert str(corrupt.value) == f"{path} {message}"


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_json_atomic(str(path), {"a": 1})
    write_json_atomic(str(path), {"a": 2})
    assert read_json(str(path)) == {"a": 2}
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_a_uri_nobody_understands_is_an_error_for_people():
    with pytest.raises(ArtifactError, match=r"^The URI nowhere://x cannot be used: Unrecognized filesystem"):
        open_artifact("nowhere://x", "dataset")


def test_a_mark_that_is_cleared_up_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, cleared = fcntl.flock, list[Path]()

    def too_late(handle, how: int) -> None:
        cleared.extend([] if cleared else tmp_path.glob("*.in-use"))
        assert fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR, "NFS refuses the lock"
        for mark in cleared:
            mark.unlink(missing_ok=True)
        monkeypatch.setattr(fcntl, "flock", lock)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with temporary_folder(tmp_path, "x[1]", what="x") as folder:
        assert cleared == [folder.with_name(f"{folder.name}.in-use")]
        with temporary_folder(tmp_path, "x[1]", what="x"):
            assert folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "work", tmp_path / "file", Path("/proc/nowhere")):
        with pytest.raises(ArtifactError) as unmade, temporary_folder(folder, "test", what="The test"):
            pass
        assert str(unmade.value).startswith(f"The test could not be saved, since {folder} may not be written (")
        assert str(unmade.value).endswith("): let this user write there, or set workspace to another folder.")
