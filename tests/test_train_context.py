"""Context from a Dataset to a Bundle and on: the encoders are kept, and training that starts from it uses them."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe, RequestLimits
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.model import catalogue_vectors, user_matrix
from llmrec_ray.model.context import ContextFeatures
from llmrec_ray.recommend import Catalogue, Request
from llmrec_ray.recommend.resolver import Resolver
from llmrec_ray.train import TrainingInputs
from llmrec_ray.train.inputs import build_module
from llmrec_ray.train.loop import train_epochs
from llmrec_ray.train.warm import center_of
from tests.boards import board_recipe, write_board
from tests.tiny_release import write_tiny_bundle
from tests.train_boards import ALONE, Recorder


def recipe_for(folder: Path, encoder: Path, **train: object) -> Recipe:
    context = {"time": ["hour", "weekday"], "item_columns": ["colour"]}
    return board_recipe(
        folder, encoder={"model": str(encoder)}, model={"context": context},
        train={"num_workers": 1, "sharding": "none", "epochs": 2, **train},
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_encoder) -> Recipe:
    """A board of two colours."""
    folder = tmp_path_factory.mktemp("board")
    write_board(folder)
    return recipe_for(folder, tiny_encoder)


@pytest.fixture(scope="module")
def dataset(recipe, tmp_path_factory) -> Dataset:
    """Its Dataset."""
    return made(recipe, tmp_path_factory)


def made(recipe: Recipe, tmp_path_factory) -> Dataset:
    folder = Path(recipe.data.interactions[0].paths[0]).parent
    return Dataset(ingest(recipe, folder, Workspace(str(tmp_path_factory.mktemp("data"))), use_ray=False))


@pytest.fixture(scope="module")
def bundle(recipe, dataset, tmp_path_factory) -> Bundle:
    """A Bundle with context layers that say something."""
    bundle = Bundle(write_tiny_bundle(recipe, dataset, str(tmp_path_factory.mktemp("bundles"))))
    torch.nn.init.normal_(bundle.model.item_context.project.weight)
    torch.nn.init.normal_(bundle.model.user_context.project.weight)
    return bundle


def inputs_of(recipe: Recipe, dataset: Dataset, start: Bundle | None = None) -> TrainingInputs:
    vectors = np.random.default_rng(0).normal(size=(len(dataset.items), 32)).astype(np.float32)
    return TrainingInputs.of(recipe, dataset, vectors, None, start=start)


def test_histories_say_when_their_next_event_happens(dataset):
    train, validation = dataset.histories("train"), dataset.histories("validation")
    np.testing.assert_array_equal(train.asked_at, dataset.target_times("validation"))
    np.testing.assert_array_equal(validation.asked_at, dataset.target_times("test"))
    assert dataset.histories("test").asked_at is None
    np.testing.assert_array_equal(train.select(np.array([3, 1])).asked_at, train.asked_at[[3, 1]])


def test_a_bundle_keeps_the_encoders_and_scores_with_features_and_time(bundle, dataset):
    assert bundle.context.items[0].words == ("black", "white")
    histories = dataset.histories("validation")
    users = bundle.user_vectors(histories)
    np.testing.assert_array_equal(users, user_matrix(bundle.model, bundle.item_vectors, histories))
    later = histories.select(slice(None))
    later.asked_at[:] += 12 * 3600
    assert np.abs(bundle.user_vectors(later) - users).max() > 0.1


def test_a_request_is_asked_at_the_time_when_it_comes_whoever_makes_it(bundle, dataset):
    resolver = Resolver(
        Catalogue.of(dataset), "one", signals=bundle.signal_names, has_encoder=True, limits=RequestLimits()
    )
    before = int(time.time())
    batch = resolver.resolve([Request(user_id=dataset.users.id(0)), Request(history=["i001"])], {})
    assert all(before <= moment <= time.time() for moment in batch.histories.asked_at.tolist())
    users = bundle.user_vectors(batch.histories)
    assert (np.abs(users - bundle.user_vectors(replace(batch.histories, asked_at=None))).max(axis=1) > 0.01).all()


def test_training_with_context_resumes_as_if_nothing_had_happened(recipe, dataset, tmp_path):
    inputs, whole, rest = inputs_of(recipe, dataset), Recorder(tmp_path), Recorder()
    train_epochs(recipe, inputs, ALONE, whole)
    train_epochs(recipe, inputs, ALONE, rest, tmp_path / str(int(whole.reports[0]["step"])))
    assert rest.losses == whole.losses[1:] and np.isfinite(whole.losses).all()


def test_a_warm_start_uses_the_encoders_of_the_bundle_for_items_that_came_since(
    recipe, bundle, tmp_path_factory, tiny_encoder
):
    folder, before = tmp_path_factory.mktemp("later"), Path(recipe.data.interactions[0].paths[0]).parent
    things = pl.read_csv(before / "things.csv").with_columns(
        colour=pl.when(pl.col("what") == "i004").then(pl.lit("azure")).otherwise("colour"))
    things.filter(pl.col("what") != "i003").write_csv(folder / "things.csv")
    pl.read_csv(before / "log.csv").filter(pl.col("what") != "i003").write_csv(folder / "log.csv")
    later = recipe_for(folder, tiny_encoder, warm_start=bundle.uri)
    dataset = made(later, tmp_path_factory)
    vectors = np.zeros((len(dataset.items), bundle.text_vectors.shape[1]), np.float32)
    inputs = TrainingInputs.of(later, dataset, vectors, center_of(later, bundle), start=bundle)
    assert inputs.context == bundle.context != ContextFeatures.fit(
        later.model.context, dataset.user_attributes, dataset.item_attributes, np.ones(40, bool), np.ones(39, bool))
    np.testing.assert_array_equal(inputs.item_features[dataset.items.row("i004")], [0, 0, 1])
    model = build_module(later, inputs, inputs.windows(later)).model
    torch.testing.assert_close(model.item_features, torch.from_numpy(inputs.item_features))
    torch.testing.assert_close(model.item_context.project.weight, bundle.model.item_context.project.weight)
    assert np.isfinite(catalogue_vectors(model, vectors)).all()
