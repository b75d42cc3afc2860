"""A campaign runs real trials through Ray Tune and Ray Train and names a winner that a recipe can take."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from llmrec_ray.artifact import Artifact, Workspace, open_artifact, write_json_atomic
from llmrec_ray.cli.main import run
from llmrec_ray.config import Recipe, load_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import ArtifactMismatchError, ArtifactNotFoundError, ClusterError, TrainingError
from llmrec_ray.stages import tuned_recipe
from llmrec_ray.tune import best_overrides, tune
from tests.boards import board_recipe, write_board

pytestmark = pytest.mark.usefixtures("ray_session")

RATES = {"train.learning_rate": {"loguniform": [1e-3, 1e-1]}}


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    write_board(tmp_path)
    recipe = board_recipe(tmp_path)
    return Dataset.open(ingest(recipe, tmp_path, Workspace(recipe.workspace), use_ray=False).uri)


def small(folder: Path, train: dict[str, object] | None = None, **tune_section: object) -> Recipe:
    return board_recipe(
        folder, fusion={"item_vector": "id"},
        train={"num_workers": 1, "sharding": "none", "epochs": 3, **(train or {})},
        tune={
            "trials": 2, "search": RATES, "scheduler": "none", "max_concurrent": 1, "fresh_seeds": [], "name": "small",
            **tune_section,
        },
    )


def written(recipe: Recipe, folder: Path) -> str:
    path = folder / "small.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json")))
    return str(path)


def run_campaign(recipe: Recipe, dataset: Dataset, *, resume: str | None = None) -> Artifact:
    return tune(recipe, dataset, Workspace(recipe.workspace), resume=resume)


def test_a_campaign_keeps_every_trial_and_a_recipe_with_the_winners_settings(tmp_path, dataset, capsys):
    recipe = small(tmp_path, scheduler="asha", grace_epochs=1)
    assert run(["tune", "--config", written(recipe, tmp_path), "--json"]) == 0
    out = capsys.readouterr()
    assert "report.html" in out.err and "--resume small goes on" in out.err
    campaign = open_artifact(json.loads(out.out.splitlines()[-1])["uri"], "campaign")
    table = pl.read_parquet(campaign.path / "results.parquet")
    metrics = campaign.manifest.metrics
    assert table.group_by("trial").len().sort("trial")["trial"].to_list() == [0, 1]
    first = table.filter(pl.col("trial") == 0)["train.learning_rate"]
    assert first[0] == recipe.train.learning_rate
    assert table["train.learning_rate"].is_between(1e-3, 1e-1).all()
    assert metrics["value"] == table["fused_ndcg@10"].max()
    assert metrics["metric"] == "validation NDCG@10 of the fused signals"
    winner = table.filter(pl.col("trial") == metrics["winner"])["train.learning_rate"][0]
    best = load_recipe(config=campaign.path / "best.yaml")
    assert best.train.learning_rate == pytest.approx(winner)
    assert tuned_recipe(recipe, campaign) == best
    assert f"train.learning_rate={winner}" in best_overrides(campaign)
    assert (campaign.path / "report.html").stat().st_size > 1000
    assert Workspace(recipe.workspace).latest("campaign", made_by="tune") == campaign.uri


def test_a_trial_that_fails_is_kept_with_its_reason_and_the_others_go_on(tmp_path, dataset):
    search = {"train.learning_rate": {"choice": [1e-2, 1e30]}, "train.gradient_clip": {"choice": [1e30]}}
    recipe = small(tmp_path, {"learning_rate": 1e-2, "gradient_clip": 1e30}, search=search, algorithm="random")
    campaign = run_campaign(recipe, dataset)
    table = pl.read_parquet(campaign.path / "results.parquet")
    failed = table.filter(pl.col("status") == "failed")
    assert failed["trial"].to_list() == [1] and "The loss was not finite at" in failed["reason"][0]
    assert campaign.manifest.metrics["winner"] == 0 and campaign.manifest.metrics["failed"] == 1


@pytest.mark.drill
def test_when_every_trial_fails_the_first_reason_is_given(tmp_path, dataset):
    recipe = small(tmp_path, {"learning_rate": 1e30, "gradient_clip": 1e30}, trials=1)
    with pytest.raises(TrainingError, match=r"^All 1 trials failed; the first said: The loss was not finite at"):
        run_campaign(recipe, dataset)


@pytest.mark.drill
def test_a_finished_campaign_that_is_resumed_trains_nothing_and_a_larger_one_only_what_is_new(tmp_path, dataset):
    recipe = small(tmp_path, algorithm="random")
    first = run_campaign(recipe, dataset)
    again = run_campaign(recipe, dataset, resume="small")
    assert pl.read_parquet(again.path / "results.parquet").equals(pl.read_parquet(first.path / "results.parquet"))
    larger = run_campaign(small(tmp_path, algorithm="random", trials=3), dataset, resume="small")
    table = pl.read_parquet(larger.path / "results.parquet")
    assert table.filter(pl.col("trial") < 2).equals(pl.read_parquet(first.path / "results.parquet"))
    assert table["trial"].max() == 2


@pytest.mark.drill
def test_population_based_training_takes_over_weights_and_settings(tmp_path, dataset):
    recipe = small(
        tmp_path, {"epochs": 4}, trials=3, scheduler="pbt", pbt={"every_epochs": 2}, algorithm="random"
    )
    campaign = run_campaign(recipe, dataset)
    table = pl.read_parquet(campaign.path / "results.parquet")
    assert table.group_by("trial").agg(pl.col("epoch").max())["epoch"].to_list() == [4, 4, 4]
    changed = table.group_by("trial").agg(pl.col("train.learning_rate").n_unique())
    assert changed["train.learning_rate"].max() == 2


@pytest.mark.drill
def test_settings_that_need_no_training_are_searched_on_the_winners_scores(tmp_path, dataset):
    search = {"fusion.mode": {"choice": ["late", "feature"]}, "retrieval.candidates.neural": {"choice": [5, 10]}}
    campaign = run_campaign(small(tmp_path, search=search), dataset)
    assert campaign.manifest.metrics["trials"] == 1
    names = [override.partition("=")[0] for override in best_overrides(campaign)]
    assert "retrieval.candidates.neural" in names


def test_a_name_that_is_taken_is_refused_on_the_command_line(tmp_path, dataset, capsys):
    recipe = small(tmp_path)
    write_json_atomic(f"{recipe.workspace}/tune/small/campaign.json", {})
    assert run(["tune", "--config", written(recipe, tmp_path)]) == 2
    assert (
        f"There is a campaign small in {recipe.workspace}/tune already: go on with it by --resume small, or choose "
        "another tune.name."
    ) in capsys.readouterr().err


def test_a_campaign_that_is_not_there_cannot_be_resumed(tmp_path, dataset):
    recipe = small(tmp_path)
    with pytest.raises(ArtifactNotFoundError, match=(
        rf"^There is no campaign other in {recipe.workspace}/tune to resume: look at the names there, or run "
        "`llmrec tune` without --resume.$"
    )):
        run_campaign(recipe, dataset, resume="other")


def test_a_campaign_of_another_recipe_cannot_be_resumed(tmp_path, dataset):
    begun = {"recipe": small(tmp_path, trials=1).model_dump(mode="json"), "dataset": dataset.id}
    write_json_atomic(f"{small(tmp_path).workspace}/tune/small/campaign.json", begun)
    with pytest.raises(ArtifactMismatchError, match=(
        r"^The campaign small cannot be resumed, since train.batch_size, tune.metric changed: use the recipe and data "
        "it was started with, or start another campaign.$"
    )):
        run_campaign(small(tmp_path, {"batch_size": 8}, trials=1, metric="hr@10"), dataset, resume="small")


def test_a_cluster_without_room_for_a_trial_is_named_before_anything_is_written(tmp_path, dataset):
    recipe = small(tmp_path, {"num_workers": 500, "batch_size": 500, "sharding": "ddp"})
    with pytest.raises(ClusterError, match=(
        r"^Each trial needs 500 CPUs \(train.num_workers\), but Ray has [0-9]+: set train.num_workers lower, or join a "
        "larger cluster.$"
    )):
        run_campaign(recipe, dataset)
    assert not (Path(recipe.workspace) / "tune").exists()
