"""A campaign runs real trials through Ray Tune and Ray Train and names a winner that a recipe can take."""

from __future__ import annotations

import fcntl
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import ray
import ray.cloudpickle
from ray.actor import ActorHandle

from llmrec_ray.artifact import Artifact, Workspace, open_artifact
from llmrec_ray.cli.main import run
from llmrec_ray.config import Recipe, load_recipe, override_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import (
    ArtifactError,
    ArtifactMismatchError,
    ArtifactNotFoundError,
    ClusterError,
    ConfigError,
    CorruptArtifactError,
    DataError,
    DiskFullError,
    TrainingError,
)
from llmrec_ray.stages import tuned_recipe
from llmrec_ray.storage import write_json_atomic
from llmrec_ray.tune import best_overrides, trial, tune
from llmrec_ray.tune.judge import Judge
from llmrec_ray.tune.records import Records, TrialRecord
from llmrec_ray.tune.schedule import Plan
from llmrec_ray.tune.space import split_levels
from llmrec_ray.tune.trial import run_leg
from tests.boards import board_recipe, write_board

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors need not import tests
pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]

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
            "trials": 2, "search": RATES, "scheduler": "none", "max_concurrent": 1, "fresh_seeds": [],
            "name": "small", **tune_section,
        },
    )


def written(recipe: Recipe, folder: Path) -> str:
    path = folder / "small.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json")))
    return str(path)


def run_campaign(recipe: Recipe, dataset: Dataset, *, resume: str | None = None) -> Artifact:
    return tune(recipe, dataset, Workspace(recipe.workspace), resume=resume)


def test_a_campaign_keeps_every_trial_and_a_recipe_with_the_winners_settings(tmp_path, dataset, capsys):
    recipe, on_ctrl_c = small(tmp_path, scheduler="asha", grace_epochs=1), signal.getsignal(signal.SIGINT)
    assert run(["tune", "--config", written(recipe, tmp_path), "--json"]) == 0
    assert signal.getsignal(signal.SIGINT) is on_ctrl_c
    out = capsys.readouterr()
    command = f"llmrec tune --resume small workspace={recipe.workspace}"
    assert "report.html" in out.err and f"whenever it is stopped, this goes on: {command}\n" in out.err
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
    assert override_recipe(tuned_recipe(recipe, campaign), ["tune.name=null"]) == best
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


@pytest.mark.campaign
def test_when_every_trial_fails_the_first_reason_is_given(tmp_path, dataset):
    recipe = small(tmp_path, {"learning_rate": 1e30, "gradient_clip": 1e30}, trials=1)
    with pytest.raises(TrainingError, match=r"^All 1 trials failed; the first said: The loss was not finite at"):
        run_campaign(recipe, dataset)


@pytest.mark.campaign
def test_a_finished_campaign_that_is_resumed_trains_nothing_and_a_larger_one_only_what_is_new(tmp_path, dataset):
    recipe = small(tmp_path, algorithm="random")
    first = run_campaign(recipe, dataset)
    again = run_campaign(recipe, dataset, resume="small")
    assert again == first, "no other artifact either"
    larger = run_campaign(small(tmp_path, algorithm="random", trials=3), dataset, resume="small")
    table = pl.read_parquet(larger.path / "results.parquet")
    assert table.filter(pl.col("trial") < 2).equals(pl.read_parquet(first.path / "results.parquet"))
    assert table["trial"].max() == 2


@pytest.mark.campaign
def test_population_based_training_takes_over_weights_and_settings(tmp_path, dataset):
    recipe = small(
        tmp_path, {"epochs": 4}, trials=3, scheduler="pbt", pbt={"every_epochs": 2}, algorithm="random"
    )
    campaign = run_campaign(recipe, dataset)
    table = pl.read_parquet(campaign.path / "results.parquet")
    assert table.group_by("trial").agg(pl.col("epoch").max())["epoch"].to_list() == [4, 4, 4]
    changed = table.group_by("trial").agg(pl.col("train.learning_rate").n_unique())
    assert changed["train.learning_rate"].max() == 2


@pytest.mark.campaign
def test_settings_that_need_no_training_are_searched_on_the_winners_scores(tmp_path, dataset):
    search = {"fusion.mode": {"choice": ["late", "feature"]}, "retrieval.candidates.neural": {"choice": [5, 10]}}
    campaign = run_campaign(small(tmp_path, search=search), dataset)
    assert campaign.manifest.metrics["trials"] == 1
    names = [override.partition("=")[0] for override in best_overrides(campaign)]
    assert "retrieval.candidates.neural" in names


@pytest.mark.campaign
def test_finalists_choose_the_winner_and_its_mode(tmp_path, dataset):
    search = RATES | {"fusion.mode": {"choice": ["late", "feature"]}}
    recipe = small(tmp_path, search=search, finalists=2, finalist_seeds=[11], policy_tolerance=0.0)
    campaign = run_campaign(recipe, dataset)
    finals = json.loads((campaign.path / "outcome.json").read_text())["finals"]
    means = {(each["trial"], mode): mean for each in finals["finalists"] for mode, mean in each["means"].items()}
    best = max(means.values())
    metrics = campaign.manifest.metrics
    assert len(means) == 4 and metrics["finals"]["value"] == best
    assert means[metrics["winner"], metrics["finals"]["mode"]] == best
    chosen = load_recipe(config=campaign.path / "best.yaml")
    assert chosen.fusion.mode == metrics["finals"]["mode"]
    assert "Who won, and why" in (campaign.path / "report.html").read_text()
    assert run_campaign(recipe, dataset, resume="small").uri == campaign.uri


def test_a_name_that_is_taken_is_refused_on_the_command_line(tmp_path, dataset, capsys):
    recipe = small(tmp_path)
    write_json_atomic(f"{recipe.workspace}/tune/small/campaign.json", {})
    assert run(["tune", "--config", written(recipe, tmp_path)]) == 2
    assert (
        f"There is a campaign small in {recipe.workspace}/tune already: go on with it by `llmrec tune --resume small "
        f"workspace={recipe.workspace}`, or choose another tune.name."
    ) in capsys.readouterr().err


def begun(recipe: Recipe, dataset: Dataset) -> Path:
    """The folder of a campaign that was stopped before its first trial."""
    state = {"recipe": recipe.model_dump(mode="json"), "dataset": dataset.id}
    write_json_atomic(f"{recipe.workspace}/tune/small/campaign.json", state)
    return Path(recipe.workspace) / "tune" / "small"


def test_a_record_that_is_damaged_is_named(tmp_path, dataset):
    recipe = small(tmp_path)
    file = begun(recipe, dataset) / "records" / "00000.json"
    write_json_atomic(str(file), {"number": 0, "settings": {}})
    with pytest.raises(CorruptArtifactError, match=(
        rf"^{file} is not the record of a trial \(until: Field required\): restore it, or start another campaign\.$"
    )):
        run_campaign(recipe, dataset, resume="small")


def test_a_campaign_that_another_process_runs_is_left_alone(tmp_path, dataset):
    recipe = small(tmp_path)
    with (begun(recipe, dataset) / "running.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match=(
            "^The campaign small is run by another process at this moment: wait until that has ended, or stop it "
            r"first\.$"
        )):
            run_campaign(recipe, dataset, resume="small")
    assert not (Path(recipe.workspace) / "tune" / "small" / "records").exists()


def test_a_budget_that_is_over_before_the_first_trial_is_named(tmp_path, dataset):
    recipe = small(tmp_path, time_budget_s=1e-6)
    with pytest.raises(ConfigError, match=(
        r"^tune.time_budget_s is 1e-06, which was over before the first trial began: go on with a larger one, or "
        rf"without: llmrec tune --resume small workspace={recipe.workspace} tune.time_budget_s=null$"
    )):
        run_campaign(recipe, dataset)


def test_the_checkpoint_of_an_epoch_is_told_with_the_store_that_it_is_in(monkeypatch):
    told: list[tuple[object, ...]] = []
    judge = SimpleNamespace(report=SimpleNamespace(remote=lambda *report: told.append(report)))
    monkeypatch.setattr(trial.ray, "get", lambda answer: answer)
    callback = trial._ToJudge(judge, 3, "s3://bucket/tune/small/trials/00003-1")
    callback.after_report(None, [{"step": 4}], None)
    callback.after_report(None, [{"epoch": 1}], SimpleNamespace(path="bucket/tune/small/trials/00003-1/checkpoint_7"))
    assert told == [(3, {"epoch": 1}, "s3://bucket/tune/small/trials/00003-1/checkpoint_7")]


class Broken:
    """Shared inputs that cannot be made."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def get(self, recipe_json: str) -> None:
        raise self._error


def leg_of(recipe: Recipe, folder: Path, error: Exception) -> tuple[ActorHandle, Callable[[int], None]]:
    """A judge who has handed out the first leg, and what runs a leg up to some epoch with inputs that fail."""
    plan = Plan(recipe, split_levels(recipe)[0], 3, "ndcg@10")
    judge, shared = ray.remote(Judge).remote(str(folder), plan), ray.remote(Broken).remote(error)
    ray.get(judge.next_assignment.remote())
    return judge, lambda until: run_leg(
        {"trial": 0, "until": until}, recipe_json=recipe.model_dump_json(), root=str(folder), data_id="",
        judge=judge, shared=shared,
    )


def test_a_trial_whose_inputs_cannot_be_made_fails_in_the_words_of_the_error(tmp_path, ray_session):
    judge, run_until = leg_of(small(tmp_path), tmp_path, DataError("The texts are gone: restore them."))
    run_until(2)
    assert ray.get(judge.record.remote(0)).status == "running", "a leg that ended, whose process was lost after that"
    run_until(3)
    record = ray.get(judge.record.remote(0))
    assert (record.status, record.reason) == ("failed", "The texts are gone: restore them.")


def test_a_disk_that_is_full_for_the_inputs_ends_the_campaign_in_the_words_of_the_error(tmp_path, ray_session):
    judge, run_until = leg_of(small(tmp_path), tmp_path, DiskFullError("The disk is full."))
    run_until(3)
    with pytest.raises(DiskFullError) as caught:
        ray.get(judge.close.remote())
    assert str(caught.value.cause) == "The disk is full."


def test_a_campaign_that_is_not_there_cannot_be_resumed(tmp_path, dataset):
    recipe = small(tmp_path)
    with pytest.raises(ArtifactNotFoundError, match=(
        rf"^There is no campaign other in {recipe.workspace}/tune to resume, and no other: say where it is by "
        r"workspace=…, or run `llmrec tune` without --resume\.$"
    )):
        run_campaign(recipe, dataset, resume="other")


def test_a_campaign_of_another_recipe_cannot_be_resumed(tmp_path, dataset):
    recipe = small(tmp_path, trials=1)
    begun(recipe, dataset)
    with pytest.raises(ArtifactMismatchError, match=(
        r"^The campaign small cannot be resumed, since train.batch_size \(16, now 8\) and tune.metric \(ndcg@10, now "
        r"hr@10\) changed: use the recipe and data it was started with, as `llmrec tune --resume small "
        rf"workspace={recipe.workspace}` does, or start another campaign\.$"
    )):
        run_campaign(small(tmp_path, {"batch_size": 8}, trials=1, metric="hr@10"), dataset, resume="small")


def test_a_campaign_cannot_be_made_smaller(tmp_path, dataset):
    recipe = small(tmp_path, trials=1)
    root = f"{recipe.workspace}/tune/small"
    write_json_atomic(f"{root}/campaign.json", {"recipe": recipe.model_dump(mode="json"), "dataset": dataset.id})
    for number in range(2):
        Records(root).save(TrialRecord(number=number, settings={}, until=3, started_at="2026-01-01T00:00:00+00:00"))
    with pytest.raises(ConfigError, match=r"^The campaign small has 2 trials already: set tune\.trials to 2 or more"):
        run_campaign(recipe, dataset, resume="small")


def test_a_cluster_without_room_for_a_trial_is_named_before_anything_is_written(tmp_path, dataset):
    recipe = small(tmp_path, {"num_workers": 500, "batch_size": 500, "sharding": "ddp"})
    with pytest.raises(ClusterError, match=(
        r"^Each trial needs 500 CPUs \(train.num_workers\), but Ray has [0-9]+: set train.num_workers lower, or join a "
        "larger cluster.$"
    )):
        run_campaign(recipe, dataset)
    assert not (Path(recipe.workspace) / "tune").exists()


def test_whoever_resumes_one_campaign_and_names_another_is_told_which_goes_on(tmp_path, dataset, caplog):
    recipe = small(tmp_path, name="second")
    with caplog.at_level("WARNING"), pytest.raises(ArtifactNotFoundError):
        tune(recipe, dataset, Workspace(recipe.workspace), resume="first")
    assert "This goes on with the campaign first; tune.name=second is not looked at." in caplog.text
