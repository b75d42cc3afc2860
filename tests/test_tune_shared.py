"""What trials read is made once for all that read the same, and not kept for ever."""

from __future__ import annotations

import pytest
import ray

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import Recipe, override_recipe
from llmrec_ray.data import ingest
from llmrec_ray.tune.shared import KEPT, SharedInputs
from tests.boards import board_recipe, write_board


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    write_board(tmp_path)
    return board_recipe(tmp_path, data={"items": []}, fusion={"item_vector": "id", "signals": ["neural", "item_item"]})


@pytest.fixture
def shared(recipe, tmp_path, ray_session) -> SharedInputs:
    workspace = Workspace(recipe.workspace)
    dataset = ingest(recipe, tmp_path, workspace, use_ray=False)
    return SharedInputs(dataset.uri, workspace.uri, ("ndcg@10", "hr@10"), "fused_ndcg@10")


def asked(shared: SharedInputs, recipe: Recipe, *overrides: str) -> ray.ObjectRef:
    [found] = shared.get(override_recipe(recipe, [*overrides]).model_dump_json())
    return found


def test_trials_that_read_the_same_share_one_object(shared, recipe):
    first = asked(shared, recipe)
    assert asked(shared, recipe, "train.learning_rate=0.02", "train.loss=bpr", "model.dropout=0.4", "seed=9") == first
    assert asked(shared, recipe, "item_item.l2=7") != first


def test_scores_of_partners_follow_the_settings_that_are_searched(shared, recipe):
    few, many = (ray.get(asked(shared, recipe, f"item_item.l2={l2}")) for l2 in (1, 1000))
    assert few.late.scores.shape == many.late.scores.shape == (len(few.late.users), few.n_items)
    assert not (few.late.scores == many.late.scores).all()


def test_only_the_newest_inputs_are_kept_and_older_ones_made_again(shared, recipe):
    made = [asked(shared, recipe, f"item_item.l2={l2}") for l2 in range(1, KEPT + 1)]
    assert asked(shared, recipe, "item_item.l2=1") == made[0], "asked for again, it is the newest"
    asked(shared, recipe, "item_item.l2=99")
    assert asked(shared, recipe, "item_item.l2=1") == made[0]
    again = asked(shared, recipe, "item_item.l2=2")
    assert again != made[1]
    assert (ray.get(again).late.scores == ray.get(made[1]).late.scores).all()
