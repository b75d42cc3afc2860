"""Equal encoders of a campaign's Bundles take the room of one, and every Bundle stays whole and its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmrec_ray.artifact import Artifact, create_artifact, open_artifact, remove_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.tune.links import share_encoder

WEIGHTS = b"weights" * 1000


def made(workspace: Path, seed: int, weights: bytes = WEIGHTS) -> Artifact:
    """A Bundle as far as artifacts go."""
    def write(folder: Path) -> None:
        (folder / "encoder").mkdir()
        (folder / "encoder" / "model.safetensors").write_bytes(weights)
        (folder / "users.parquet").write_bytes(b"the same people")
        (folder / "model.safetensors").write_bytes(bytes([seed]))

    return create_artifact(f"{workspace}/bundles", "bundle", write, config={})


def used(root: Path) -> int:
    """Bytes on disk of all files, each file once whatever its names."""
    files = {(stat.st_dev, stat.st_ino): stat.st_size for stat in map(Path.stat, root.rglob("*.*")) if stat.st_size}
    return sum(files.values())


def weights_of(artifact: Artifact) -> Path:
    return artifact.path / "encoder" / "model.safetensors"


@pytest.fixture
def bundles(tmp_path) -> list[Artifact]:
    folders = ("winner", "confirm/winner-101", "confirm/recipe-101")
    return [made(tmp_path / folder, seed) for seed, folder in enumerate(folders)]


def test_equal_encoders_are_one_file_and_every_bundle_is_whole(tmp_path, bundles):
    before = used(tmp_path)
    assert [share_encoder(str(tmp_path), bundle.uri) for bundle in bundles[1:]] == [len(WEIGHTS)] * 2
    assert before - used(tmp_path) == 2 * len(WEIGHTS)
    assert share_encoder(str(tmp_path), bundles[2].uri) == 0
    assert len({weights_of(bundle).stat().st_ino for bundle in bundles}) == 1
    for bundle in bundles:
        assert open_artifact(bundle.uri, "bundle").manifest == bundle.manifest
        assert sorted(path.name for path in weights_of(bundle).parent.iterdir()) == ["model.safetensors"]


def test_a_bundle_that_is_deleted_or_copied_takes_nothing_from_the_others(tmp_path, bundles):
    share_encoder(str(tmp_path), bundles[1].uri)
    copy = shutil.copytree(bundles[1].path, tmp_path / "elsewhere" / bundles[1].path.name)
    remove_artifact(bundles[0])
    open_artifact(bundles[1].uri, "bundle")
    open_artifact(str(copy), "bundle")
    assert weights_of(bundles[1]).stat().st_nlink == 1


def test_only_encoders_are_shared_and_only_equal_ones(tmp_path, bundles):
    other = made(tmp_path / "confirm/recipe-102", 3, WEIGHTS[::-1])
    assert share_encoder(str(tmp_path), other.uri) == 0
    share_encoder(str(tmp_path), bundles[1].uri)
    assert len({(bundle.path / "users.parquet").stat().st_ino for bundle in bundles}) == 3


def test_a_damaged_encoder_does_not_spread(tmp_path, bundles):
    for bundle in bundles[::2]:
        weights_of(bundle).write_bytes(WEIGHTS[::-1])
    assert share_encoder(str(tmp_path), bundles[1].uri) == 0
    open_artifact(bundles[1].uri, "bundle")


def test_where_files_cannot_be_linked_every_bundle_keeps_its_own(tmp_path, bundles, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert share_encoder(str(tmp_path), bundles[1].uri) == 0
    open_artifact(bundles[1].uri, "bundle")
    assert share_encoder("s3://bucket/campaign", "s3://bucket/campaign/winner/bundles/bundle-0") == 0
    assert share_encoder(str(tmp_path), f"{tmp_path}/no/bundle") == 0


def test_a_bundle_with_a_shared_encoder_encodes_as_before(tmp_path, tiny_release):
    trained = Bundle.open(tiny_release.bundle.uri)
    folders = [tmp_path / part / "bundles" / f"bundle-{trained.id}" for part in ("winner", "confirm/winner-101")]
    for folder in folders:
        shutil.copytree(trained.artifact.path, folder)
    expected = Bundle.open(str(folders[1])).load_encoder().encode(["a blue thing"])
    freed = share_encoder(str(tmp_path), str(folders[1]))
    assert freed == sum(path.stat().st_size for path in (folders[0] / "encoder").iterdir())
    assert np.array_equal(Bundle.open(str(folders[1])).load_encoder().encode(["a blue thing"]), expected)
