"""Dataset: what opens is what was ingested, or an error that says why not."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import llmrec_ray.data
from llmrec_ray.artifact import Workspace
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import ArtifactMismatchError, ArtifactNotFoundError, CorruptArtifactError
from tests.boards import board_recipe, write_board


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("dataset")
    write_board(folder, n_users=6, n_items=12)
    return ingest(board_recipe(folder), folder, Workspace(str(folder / "work")), use_ray=False).uri


def test_the_package_exports_its_three_nouns():
    assert llmrec_ray.data.__all__ == [
        "KINDS", "Dataset", "Imported", "fetch", "import_recipe", "ingest", "latest_dataset", "needs_ray",
    ]


def test_opening_a_dataset_needs_no_ray():
    code = "import sys, llmrec_ray.data; assert not {'ray', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_dataset_knows_who_it_is(uri):
    dataset = Dataset.open(uri)
    assert dataset.uri == uri
    assert uri.endswith(f"dataset-{dataset.id}")
    assert dataset.artifact.manifest.config["data"]["min_user_interactions"] == 5


def test_histories_grow_by_one_event_per_split(uri):
    dataset = Dataset.open(uri)
    train, validation, test = (dataset.histories(split) for split in ("train", "validation", "test"))
    assert train.lengths.tolist() == [4] * 6
    assert (validation.lengths - train.lengths).tolist() == [1] * 6
    assert (test.lengths - validation.lengths).tolist() == [1] * 6
    for user in range(6):
        assert [*train[user], dataset.targets("validation")[user]] == validation[user].tolist()
        assert [*validation[user], dataset.targets("test")[user]] == test[user].tolist()
        assert {row % 2 for row in test[user]} == {user % 2}


def test_arrays_are_64_bit_integers(uri):
    dataset = Dataset.open(uri)
    histories = dataset.histories("train")
    for array in (histories.user_rows, histories.indptr, histories.item_rows, dataset.targets("test")):
        assert array.dtype == np.int64


def test_texts_titles_and_attributes_follow_the_rows(uri):
    dataset = Dataset.open(uri)
    assert list(dataset.items) == [f"i{row:03}" for row in range(12)]
    assert dataset.item_texts[3] == "thing 3, painted white"
    assert dataset.item_titles[3] == "thing 3"
    assert dataset.item_attributes["colour"].to_list() == ["black", "white"] * 6
    assert dataset.quarantine.is_empty()


def test_a_dataset_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ArtifactNotFoundError, match=r"^There is no artifact at .*/none \(no manifest\.json"):
        Dataset.open(f"{tmp_path}/none")


def test_a_dataset_without_a_file_or_of_another_kind_is_refused(tmp_path):
    write_board(tmp_path, n_users=4, n_items=12)
    workspace = Workspace(str(tmp_path / "work"))
    made = ingest(board_recipe(tmp_path), tmp_path, workspace, use_ray=False)
    (made.path / "item_texts.parquet").unlink()
    with pytest.raises(CorruptArtifactError) as corrupt:
        Dataset.open(made.uri)
    assert str(corrupt.value) == (
        f"{made.uri} lacks its file item_texts.parquet: restore it from a copy or make the dataset again."
    )
    manifest = (made.path / "manifest.json").read_text()
    (made.path / "manifest.json").write_text(manifest.replace('"kind": "dataset"', '"kind": "bundle"'))
    with pytest.raises(ArtifactMismatchError, match="is a bundle, not a dataset: pass the URI of a dataset"):
        Dataset.open(made.uri)


def test_the_workspace_points_to_the_newest_dataset(tmp_path):
    workspace = Workspace(str(tmp_path / "work"))
    for n_users in (4, 6):
        write_board(tmp_path, n_users=n_users, n_items=12)
        made = ingest(board_recipe(tmp_path), tmp_path, workspace, use_ray=False)
        assert workspace.latest("dataset", made_by="ingest") == made.uri
        assert len(Dataset.open(made.uri).users) == n_users
