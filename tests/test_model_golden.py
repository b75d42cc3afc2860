"""The default recipe's first losses: what is added to model or train must not change them."""

from pathlib import Path

import pytest
import torch

from llmrec_ray.train.inputs import build_module
from llmrec_ray.train.optimizer import learning_rate_scale
from llmrec_ray.train.sharding import make_engine
from tests.boards import board_recipe
from tests.train_boards import ALONE, inputs_of_board

LOSSES = [6.673417, 7.316518, 6.317741, 7.111238, 6.296207]
"""Of the first five steps, torch 2.13 on x86-64, before there was another tower, loss or sampling than the default."""


def test_the_first_losses_of_the_default_recipe_are_what_they_were():
    recipe = board_recipe(Path("/nowhere"), train={"sharding": "none", "num_workers": 1})
    inputs = inputs_of_board()
    windows = inputs.windows(recipe)
    engine = make_engine(build_module(recipe, inputs, windows).train(), recipe, ALONE, None)
    steps = windows.epoch(0, seed=recipe.seed, batch_size=recipe.train.batch_size, negatives=recipe.train.negatives)
    losses = []
    for number, batches in enumerate(steps):
        torch.manual_seed(hash((recipe.seed, number, 0)) % 2**63)
        losses.append(float(engine.step(batches, learning_rate_scale(number, recipe.train, 1000))))
    assert losses == pytest.approx(LOSSES, rel=1e-5)
