"""Every baseline by its name: learns from train only, is the same again, and finds the colour of the board."""

import logging
import typing

import numpy as np
import polars as pl
import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import BaselineName, EvaluateConfig, ModelConfig, Recipe, TrainConfig
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.evaluate.baselines import fit_baseline, usable_baselines
from llmrec_ray.evaluate.sasrec import fit_sasrec
from llmrec_ray.metrics import ndcg
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.signals import TextCosine
from llmrec_ray.types import Histories

NAMES = typing.get_args(BaselineName)
IMPERSONAL = {"popularity", "recent_popularity"}
SMALL_MODEL = ModelConfig(
    user_tower="transformer", user_embedding=False, embedding_size=16, history_length=10, ncf_hidden=(8,), dropout=0.1
)
SMALL_TRAIN = TrainConfig(num_workers=1, epochs=8, negatives=32, warmup_steps=4, learning_rate=0.01, patience=8)


@pytest.fixture(scope="module")
def recipe(tiny_recipe) -> Recipe:
    return tiny_recipe


@pytest.fixture(scope="module")
def dataset(recipe, tmp_path_factory, ray_session) -> Dataset:
    workspace = Workspace(str(tmp_path_factory.mktemp("baselines")))
    return Dataset.open(ingest(recipe, workspace.local_folder("raw"), workspace).uri)


@pytest.fixture(scope="module")
def text_vectors(dataset):
    """The colour of each item and a little of its own, in text space."""
    colours = np.array(["black" in text for text in dataset.item_texts])
    vectors = np.where(colours[:, None], [1.0, 0.0, 0.2], [0.0, 1.0, 0.2])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def fit(name, dataset, recipe, text_vectors):
    """As evaluation does, but for SASRec a network of the board's size."""
    if name == "sasrec":
        targets = dataset.targets("validation")
        return fit_sasrec(
            recipe, dataset.histories("train"), targets, len(dataset.items), model=SMALL_MODEL, training=SMALL_TRAIN
        )
    return fit_baseline(name, dataset, recipe, text_vectors=text_vectors)


def shuffled_after_train(dataset):
    """The same Dataset with other test events: for SASRec, which stops by them, validation stays."""
    changed = Dataset(dataset.artifact)
    changed.interactions = dataset.interactions.with_columns(
        item_row=pl.when(pl.col("split") == "test").then(0).otherwise("item_row")
    )
    return changed


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def signal(name, dataset, recipe, text_vectors):
    return fit(name, dataset, recipe, text_vectors)


def test_bpr_is_left_out_where_it_would_take_too_long(dataset, text_vectors, monkeypatch, caplog):
    monkeypatch.setattr("llmrec_ray.evaluate.baselines.MAX_BPR_USERS", 3)
    monkeypatch.setattr(logging.getLogger("llmrec_ray"), "propagate", True)
    with caplog.at_level(logging.INFO, "llmrec_ray"):
        assert usable_baselines(["bpr", "ease"], dataset, text_vectors) == ["ease"]
    assert caplog.messages == [
        f"There are {len(dataset.users)} users, over 3, so the baseline bpr is left out: its time grows with their "
        "square."
    ]


def test_a_baseline_does_not_read_the_test_split_and_is_the_same_again(name, signal, dataset, recipe, text_vectors):
    again = fit(name, shuffled_after_train(dataset), recipe, text_vectors)
    train = dataset.histories("train")
    assert np.array_equal(signal.score(train), again.score(train))


def test_a_baseline_learns_from_train_only(name, dataset, recipe, text_vectors, signal):
    if name == "sasrec":
        pytest.skip("stops by the validation split")
    changed = Dataset(dataset.artifact)
    changed.interactions = dataset.interactions.with_columns(
        item_row=pl.when(pl.col("split") == "train").then("item_row").otherwise(0)
    )
    train = dataset.histories("train")
    assert np.array_equal(signal.score(train), fit(name, changed, recipe, text_vectors).score(train))


def test_a_baseline_finds_the_colour_of_the_board(name, signal, dataset):
    if name in IMPERSONAL:
        pytest.skip("the same for everybody")
    seen, targets = dataset.histories("validation"), dataset.targets("test")
    enough = 0.85 if name == "markov" else 0.9  # a Markov chain has not seen every pair of items
    assert ndcg(target_ranks(mask_seen(signal.score(seen), seen), targets), 10) > enough


def test_a_baseline_scores_some_items_as_it_scores_the_catalogue(signal, dataset):
    seen = dataset.histories("validation")
    rows = np.random.default_rng(0).integers(-1, len(dataset.items), (len(seen), 5))
    some = signal.score_items(seen, rows)
    assert np.array_equal(np.isnan(some), rows < 0)
    everything = np.take_along_axis(signal.score(seen), np.maximum(rows, 0), axis=1)
    np.testing.assert_allclose(some[rows >= 0], everything[rows >= 0], atol=1e-5)


def test_a_baseline_has_no_opinion_on_people_without_a_history(name, signal, dataset):
    people = Histories.from_lists([[], [0, 2]])
    scores = signal.score(people)
    assert scores.shape == (2, len(dataset.items))
    assert scores.dtype == np.float32
    assert np.isnan(scores[0]).all() == (name not in IMPERSONAL)
    assert np.isfinite(scores[1]).all()
    assert signal.score(Histories.from_lists([])).shape == (0, len(dataset.items))


def test_sasrec_skips_users_without_a_validation_item_and_keeps_the_best_epoch(dataset, recipe):
    train, targets = dataset.histories("train"), dataset.targets("validation").copy()
    targets[::2] = -1
    training = SMALL_TRAIN.model_copy(update={"epochs": 2, "patience": 1})
    fitted = fit_sasrec(recipe, train, targets, len(dataset.items), model=SMALL_MODEL, training=training)
    assert np.isfinite(fitted.score(train)).all()


def test_the_default_baselines_are_all_but_the_one_that_trains_a_network():
    assert set(NAMES) - set(EvaluateConfig().baselines) == {"sasrec"}


def test_without_texts_their_baselines_are_left_out_and_named(dataset, caplog):
    bare = Dataset(dataset.artifact)
    bare.item_texts = [""] * len(dataset.items)
    logger = logging.getLogger("llmrec_ray")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, "llmrec_ray"):
            assert usable_baselines(("popularity", "tfidf", "text"), bare, None) == ["popularity"]
    finally:
        logger.removeHandler(caplog.handler)
    assert "No item has a text, so the baselines tfidf and text are left out." in caplog.messages
    assert usable_baselines(NAMES, dataset, np.zeros((1, 1), np.float32)) == list(NAMES)


def test_the_text_baseline_is_the_cosine_signal(dataset, recipe, text_vectors):
    assert isinstance(fit_baseline("text", dataset, recipe, text_vectors=text_vectors), TextCosine)
