"""Bundles: what is written scores as it did, holds no pickle, and refuses damage by name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from llmrec_ray.artifact import Artifact, Workspace, open_artifact, remove_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import ArtifactMismatchError, ArtifactNotFoundError, CorruptArtifactError
from llmrec_ray.model.onnx import OnnxEncoder
from llmrec_ray.train.finish import _check_scores
from llmrec_ray.types import Histories
from tests.tiny_release import write_tiny_bundle


@pytest.fixture(scope="module")
def dataset(tiny_recipe, tmp_path_factory) -> Dataset:
    workspace = Workspace(str(tmp_path_factory.mktemp("bundle_data")))
    return Dataset(ingest(tiny_recipe, Path(), workspace, use_ray=False))


@pytest.fixture(scope="module")
def artifact(tiny_recipe, dataset, tmp_path_factory) -> Artifact:
    return write_tiny_bundle(tiny_recipe, dataset, str(tmp_path_factory.mktemp("bundles")))


@pytest.fixture
def copied(artifact, tmp_path) -> Path:
    folder = tmp_path / artifact.path.name
    shutil.copytree(artifact.path, folder)
    return folder


def test_scores_of_candidates_equal_those_of_the_whole_catalogue(artifact, dataset):
    bundle = Bundle.open(artifact.uri)
    histories = dataset.histories("train").select(slice(0, 5))
    rows = np.tile(np.array([7, 0, 39, -1]), (5, 1))
    everything, some = bundle.score_all(histories), bundle.score_items(histories, rows)
    assert everything.keys() == some.keys() == set(bundle.signal_names)
    for name, scores in some.items():
        np.testing.assert_allclose(scores[:, :3], everything[name][:, rows[0, :3]], rtol=1e-4, atol=1e-5, err_msg=name)
        assert np.isnan(scores[:, 3]).all(), name


def test_only_the_signals_that_are_asked_for_are_scored(artifact, dataset):
    bundle = Bundle.open(artifact.uri)
    histories, rows = dataset.histories("train").select(slice(0, 2)), np.array([[3, 4], [5, -1]])
    some = bundle.score_items(histories, rows, names={"item_item", "neural"})
    everything = bundle.score_items(histories, rows)
    assert some.keys() == {"item_item", "neural"}
    for name, scores in some.items():
        np.testing.assert_array_equal(scores, everything[name])


def test_the_neural_score_is_the_dot_product_of_user_and_item_vectors(artifact, dataset):
    bundle = Bundle.open(artifact.uri)
    histories = dataset.histories("train").select(slice(0, 3))
    users = bundle.user_vectors(histories)
    assert users.shape == (3, bundle.item_vectors.shape[1])
    assert (users[:, -1] == 1).all()
    np.testing.assert_allclose(bundle.score_all(histories)["neural"], users @ bundle.item_vectors.T, rtol=1e-5)


def test_a_text_replaces_the_history_in_the_text_signal_and_steers_the_user_vector(artifact):
    bundle = Bundle.open(artifact.uri)
    histories = Histories.from_lists([[0, 2], [0, 2]])
    text = np.stack([bundle.text_vectors[1], np.zeros_like(bundle.text_vectors[1])])
    scores = bundle.score_all(histories, text)
    assert scores["text"][0].argmax() == 1
    np.testing.assert_array_equal(scores["text"][1], bundle.score_all(histories)["text"][1])
    users = bundle.user_vectors(histories, text)
    assert not np.allclose(users[0], users[1])


def test_a_bundle_holds_no_pickle(artifact):
    suffixes = {path.suffix for path in artifact.path.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".md", ".parquet", ".safetensors"}
    for path in artifact.path.rglob("*"):
        assert not path.is_file() or not path.read_bytes().startswith(b"\x80")


def test_the_same_parts_give_the_same_id(artifact, tiny_recipe, dataset, tmp_path):
    assert write_tiny_bundle(tiny_recipe, dataset, str(tmp_path)).id == artifact.id


@pytest.mark.parametrize(
    "name", ["model.safetensors", "arrays.safetensors", "policy.json", "encoder/model.safetensors"]
)
def test_a_changed_file_is_refused_by_name(copied, name):
    payload = bytearray((copied / name).read_bytes())
    payload[-3] ^= 1
    (copied / name).write_bytes(payload)
    with pytest.raises(CorruptArtifactError) as caught:
        Bundle.open(str(copied))
    assert str(caught.value) == (
        f"{name} in {copied} does not match its manifest's hash: restore it from a copy or make the bundle again."
    )


def test_weights_of_another_shape_are_refused(copied):
    weights = load_file(copied / "model.safetensors")
    name = max(weights, key=lambda key: weights[key].numel())
    save_file(weights | {name: weights[name][:-1].contiguous()}, copied / "model.safetensors")
    with pytest.raises(ArtifactMismatchError) as caught:
        Bundle(open_artifact(str(copied), "bundle", verify=False))
    message = str(caught.value)
    assert message.startswith(f"{copied / 'model.safetensors'} does not fit the recipe it was saved with (")
    assert message.endswith("): train again with this version.")


def spoil(file: Path, damage: str) -> None:
    whole = file.read_bytes()
    file.unlink()
    if damage != "gone":
        left = {"cut": whole[: len(whole) // 2], "other": b"nothing of this kind " * 20, "empty": b""}
        file.write_bytes(left[damage])


@pytest.mark.parametrize("damage", ["cut", "other", "empty", "gone"])
@pytest.mark.parametrize("name", [
    "recipe.json", "users.parquet", "items.parquet", "titles.parquet", "policy.json", "model.safetensors",
    "arrays.safetensors",
])
def test_a_damaged_file_is_refused_by_name_though_hashes_are_not_verified(copied, name, damage):
    spoil(copied / name, damage)
    with pytest.raises(CorruptArtifactError) as caught:
        Bundle(open_artifact(str(copied), "bundle", verify=False))
    assert str(caught.value).startswith(f"{copied / name} cannot be read (")
    remedy = "make it" if name == "arrays.safetensors" else "train"
    assert str(caught.value).endswith(f"): restore it or {remedy} again.")


@pytest.mark.parametrize("damage", ["cut", "other", "empty", "gone"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_encoder_is_refused_by_name(copied, name, damage):
    spoil(copied / "encoder" / name, damage)
    bundle = Bundle(open_artifact(str(copied), "bundle", verify=False))
    with pytest.raises(CorruptArtifactError) as caught:
        bundle.load_encoder()
    assert str(caught.value).startswith(f"{copied / 'encoder'} does not hold an encoder that can be loaded (")
    assert str(caught.value).endswith(" Restore the Bundle or train again.")


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_damaged_int8_file_is_refused_by_name(tiny_recipe, dataset, tmp_path, damage):
    encoder = tiny_recipe.encoder.model_copy(update={"precision": "int8"})
    artifact = write_tiny_bundle(tiny_recipe.model_copy(update={"encoder": encoder}), dataset, str(tmp_path))
    bundle, file = Bundle.open(artifact.uri), artifact.path / "encoder" / "model.int8.onnx"
    kept = bundle.load_encoder()
    assert isinstance(kept, OnnxEncoder) and kept.file == file
    spoil(file, damage)
    with pytest.raises(CorruptArtifactError, match=r"^encoder/model\.int8\.onnx in .* does not match its manifest"):
        Bundle.open(artifact.uri)
    with pytest.raises(CorruptArtifactError) as caught:
        bundle.load_encoder()
    assert str(caught.value).startswith(f"{file} cannot be read (")


def test_a_bundle_that_scores_differently_from_what_was_trained_is_noticed(artifact, dataset):
    trained = Bundle.open(artifact.uri)
    _check_scores(Bundle.open(artifact.uri), trained, dataset)
    trained.item_vectors = trained.item_vectors * 1.001
    with pytest.raises(CorruptArtifactError) as caught:
        _check_scores(Bundle.open(artifact.uri), trained, dataset)
    assert str(caught.value) == (
        f"The Bundle {artifact.uri} scores neural differently from the model that was trained: the disk or the "
        "library versions cannot be trusted; train again."
    )


def test_a_removed_bundle_is_gone(copied):
    remove_artifact(open_artifact(str(copied), "bundle"))
    assert not copied.exists()
    with pytest.raises(ArtifactNotFoundError):
        open_artifact(str(copied), "bundle")
