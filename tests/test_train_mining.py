"""Hard negatives: whose they are, what is left out of them, and that a resumed run has the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmrec_ray.model import catalogue_vectors, user_matrix
from llmrec_ray.train import mining
from llmrec_ray.train.inputs import build_module
from llmrec_ray.train.mining import mine
from llmrec_ray.train.sharding import make_engine
from tests.train_boards import (
    ALONE,
    Job,
    deterministic_recipe,
    inputs_of_board,
    train_here,
    train_in_processes,
)

MINED = {"negative_sampling": "mined", "mined": {"per_window": 3, "pool": 6, "skip": 2}}


def recipe(model: dict | None = None, **train: object):
    recipe = deterministic_recipe(**{"sharding": "none", "num_workers": 1, **MINED, **train})
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=model or {})})


def mined(recipe, inputs, epoch: int = 0):
    module = build_module(recipe, inputs, inputs.windows(recipe))
    mine(module, make_engine(module, recipe, ALONE, None), inputs, ALONE, recipe, epoch)
    return module, module.hard_UK.numpy()


def test_the_pool_is_the_best_unseen_items_after_the_skipped_ones():
    settings, inputs = recipe(), inputs_of_board()
    module, pool = mined(settings, inputs)
    vectors = catalogue_vectors(module.model, inputs.text_vectors)
    scores = user_matrix(module.model, vectors, inputs.histories) @ vectors.T
    assert module.training and pool.shape == (40, 6)
    for user, past in enumerate(inputs.histories):
        scores[user, past] = -np.inf
        np.testing.assert_array_equal(pool[user], np.argsort(-scores[user], kind="stable")[2:8])


def test_items_that_never_occur_in_train_are_no_negatives_and_what_is_missing_is_marked():
    inputs = inputs_of_board()
    rare = replace(inputs, histories=inputs.histories.select(np.arange(2)), targets=inputs.targets[:2])
    _, pool = mined(recipe(mined={"pool": 30, "skip": 0}), rare)
    for own, other, row in ((0, 1, pool[0]), (1, 0, pool[1])):
        assert sorted(row[row >= 0]) == sorted(set(rare.histories[other]) - set(rare.histories[own]))
        assert (row[18:] == -1).all()


def test_of_very_many_users_some_are_mined_in_each_epoch(monkeypatch):
    monkeypatch.setattr(mining, "MOST_USERS", 15)
    settings, inputs = recipe(), inputs_of_board()
    pools = [mined(settings, inputs, epoch)[1] for epoch in (0, 0, 1)]
    fresh = [(pool >= 0).any(axis=1) for pool in pools]
    assert [int(rows.sum()) for rows in fresh] == [15, 15, 15]
    np.testing.assert_array_equal(pools[0], pools[1])
    assert (fresh[0] != fresh[2]).any()


@pytest.mark.parametrize("at", [5, 7], ids=["after an epoch", "within an epoch"])
def test_a_stopped_run_resumes_with_the_same_hard_negatives(at, tmp_path):
    settings = recipe({"dropout": 0.3}, checkpoint_steps=1, augment={"mask": 0.3, "substitute": 0.3})
    whole = train_here(settings, tmp_path / "whole")
    assert train_here(settings, tmp_path / "resumed", resume_from=tmp_path / "whole" / str(at)) == whole[at:]


def test_two_processes_train_like_one_with_every_kind_of_negatives_tower_and_augmentation():
    """Under ddp and with sharded weights, which ZeRO-3 gathers module by module."""
    augment = {"crop": 0.2, "mask": 0.3, "substitute": 0.3}
    tower = {"user_tower": "transformer"}
    settings = [
        ({}, {"augment": augment, "mined": {"per_window": 3, "pool": 40, "skip": 0, "margin": 0.01}}),
        (tower, {"negative_sampling": "in_batch", "mined": {}, "augment": augment}),
        (tower, {"negative_sampling": "popularity", "mined": {}, "loss": "bpr"}),
    ]
    shardings = ["ddp", "zero3", "zero3"]
    alone = [train_here(recipe(model, epochs=2, **train)) for model, train in settings]
    together = train_in_processes(2, [
        Job(recipe(model, epochs=2, **train, num_workers=2, sharding=sharding))
        for (model, train), sharding in zip(settings, shardings, strict=True)
    ])
    for one, two in zip(alone, together, strict=True):
        assert two == pytest.approx(one, rel=2e-5)
    assert torch.isfinite(torch.tensor(alone)).all()
