"""A campaign runs real trials through Ray Tune and Ray Train and names a winner that a recipe can take."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import yaml

from llmrec_ray.artifact import Workspace
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import TrainingError
from llmrec_ray.tune import best_overrides, tune
from tests.boards import board_recipe, write_board

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    write_board(tmp_path)
    recipe = board_recipe(tmp_path)
    return Dataset.open(ingest(recipe, tmp_path, Workspace(recipe.workspace), use_ray=False).uri)


def small(folder: Path, **tune_section: object):
    return board_recipe(
        folder, fusion={"item_vector": "id"}, train={"num_workers": 1, "sharding": "none", "checkpoint_steps": 1},
        tune={"trials": 2, "epochs": 3, "grace_epochs": 1, "max_concurrent": 1, **tune_section},
    )


def test_a_campaign_keeps_every_trial_and_the_winners_overrides(tmp_path, dataset):
    recipe = small(tmp_path)
    workspace = Workspace(recipe.workspace)
    campaign = tune(recipe, dataset, None, None, workspace)
    results = pl.read_parquet(campaign.path / "results.parquet")
    epochs = pl.read_parquet(campaign.path / "epochs.parquet")
    assert len(results) == 2 and results["error"].null_count() == 2
    assert results["learning_rate"].is_between(*recipe.tune.learning_rate).all()
    assert results["neural_weight"].is_between(*recipe.tune.neural_weight).all()
    assert epochs.group_by("trial").agg(pl.col("value").max()).sort("trial")["value"].equals(results["value"])
    best = results.sort("value", descending=True).row(0, named=True)
    rate, weights = best_overrides(campaign)
    assert float(rate.removeprefix("train.learning_rate=")) == pytest.approx(best["learning_rate"], rel=1e-5)
    shares = yaml.safe_load(weights.removeprefix("fusion.weights="))
    assert shares["neural"] == pytest.approx(best["neural_weight"], abs=1e-4)
    assert shares["neural"] + shares["item_item"] == pytest.approx(1.0)
    assert workspace.latest("campaign", made_by="tune") == campaign.uri
    assert campaign.manifest.metrics["metric"] == "late_ndcg@10"


def test_without_late_fusion_only_the_learning_rate_is_searched(tmp_path, dataset):
    recipe = board_recipe(tmp_path, **{
        **small(tmp_path, trials=1, epochs=1).model_dump(mode="json", include={"train", "tune"}),
        "fusion": {"item_vector": "id", "mode": "feature"},
    })
    campaign = tune(recipe, dataset, None, None, Workspace(recipe.workspace))
    (override,) = best_overrides(campaign)
    assert override.startswith("train.learning_rate=") and campaign.manifest.metrics["metric"] == "ndcg@10"


def test_when_every_trial_fails_the_first_reason_is_given(tmp_path, dataset):
    recipe = small(tmp_path, trials=1, learning_rate=(1e30, 2e30))
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"gradient_clip": 1e30})})
    with pytest.raises(TrainingError, match=r"All 1 trials failed; the first said: .*The loss was not finite at"):
        tune(recipe, dataset, None, None, Workspace(recipe.workspace))
