"""Winner and recipe on fresh seeds, by real trainings on the checkerboard, and one look at the test split."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import ray

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe, override_recipe, validate_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.evaluate import Evaluation, validation_value
from llmrec_ray.storage import read_json
from llmrec_ray.train import train_bundle
from llmrec_ray.tune import look
from llmrec_ray.tune.confirm import confirm
from llmrec_ray.tune.fresh import FreshRun
from llmrec_ray.tune.outcome import Confirmation
from tests.boards import board_recipe

pytestmark = pytest.mark.usefixtures("ray_session")

METRIC = "ndcg@10"
SEEDS = (101,)


def recipe_of(board: Path, workspace: Path, **sections: object) -> Recipe:
    """Without texts, so that a training takes seconds."""
    tree = board_recipe(
        board, fusion={"item_vector": "id", "signals": ["neural", "item_item"]},
        train={"num_workers": 1, "sharding": "none", "epochs": 1, **sections.pop("train", {})},
        retrieval={"candidates": {"neural": 20, "popularity": 10}}, evaluate={"baselines": ["popularity"], "ks": [10]},
        **sections,
    ).model_dump(mode="json")
    tree["data"]["items"] = None
    return validate_recipe(tree | {"workspace": str(workspace)}, "the board recipe without texts")


@pytest.fixture(scope="module")
def recipe(board_folder, tmp_path_factory) -> Recipe:
    return recipe_of(board_folder, tmp_path_factory.mktemp("confirm"))


@pytest.fixture(scope="module")
def best(recipe, board_folder) -> Recipe:
    return recipe_of(board_folder, Path(recipe.workspace), train={"learning_rate": 0.03})


@pytest.fixture(scope="module")
def dataset(recipe, board_folder) -> Dataset:
    return Dataset.open(ingest(recipe, board_folder, Workspace(recipe.workspace), use_ray=False).uri)


def confirmed(recipe: Recipe, best: Recipe, dataset: Dataset, root: Path | str, **settings: object) -> Confirmation:
    wanted = {"seeds": SEEDS, "metric": METRIC, "score_test": True, "concurrent": 2} | settings
    return confirm(recipe, best, dataset, Workspace(recipe.workspace), str(root), **wanted)


@pytest.fixture(scope="module")
def trained(recipe, dataset, tmp_path_factory) -> tuple[Path, Bundle]:
    """The folder of a run of the recipe with the first seed, and what was made of it."""
    workspace = Workspace(str(tmp_path_factory.mktemp("trained")))
    seeded = recipe.model_copy(update={"seed": SEEDS[0]})
    bundle = train_bundle(seeded, dataset, None, workspace, show_progress=False)
    return Path(workspace.uri) / "runs", Bundle.open(bundle.uri)


@pytest.fixture(scope="module")
def root(tmp_path_factory, trained) -> Path:
    """A campaign that was stopped: one run has failed, with all its training done."""
    folder = tmp_path_factory.mktemp("campaign")
    shutil.copytree(trained[0], folder / "confirm" / "recipe-101" / "runs")
    record = FreshRun(arm="recipe", seed=SEEDS[0], identity="0" * 16, reason="the disk was full")
    (folder / "confirm" / "recipe-101.json").write_text(record.model_dump_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def confirmation(recipe, best, dataset, root) -> Confirmation:
    """Once for all tests that only look at what came of it."""
    return confirmed(recipe, best, dataset, root)


def bundle_of(root: Path, name: str) -> Bundle:
    id_ = read_json(f"{root}/confirm/{name}.json")["bundle"]
    return Bundle.open(f"{root}/confirm/{name}/bundles/bundle-{id_}")


def test_winner_and_recipe_are_trained_with_a_fresh_seed_and_measured_as_served(
    recipe, best, dataset, root, confirmation
):
    assert not confirmation.failed
    for arm, each, found in (("winner", best, confirmation.winner), ("recipe", recipe, confirmation.default)):
        bundle = bundle_of(root, f"{arm}-101")
        assert bundle.recipe.seed == SEEDS[0]
        assert bundle.recipe.train.learning_rate == each.train.learning_rate
        assert found == {SEEDS[0]: validation_value(each, dataset, bundle, METRIC)}


def test_a_run_that_failed_is_tried_again_and_goes_on_with_the_training_that_had_begun(root, confirmation, trained):
    check_not_trained_again(bundle_of(root, "recipe-101"), trained[1])


def test_checkpoints_go_when_all_is_finished(root, confirmation):
    assert sorted(path.name for path in (root / "confirm").iterdir()) == [
        "recipe-101", "recipe-101.json", "test.json", "winner-101", "winner-101.json",
    ]
    assert not [*root.glob("confirm/*/runs/train")]


def test_the_first_winner_is_scored_on_test_once_and_the_log_says_so(recipe, root, confirmation):
    lines = log_of(recipe)
    assert [(line["split"], line["seed"], line["bundle"]) for line in lines] == [
        ("test", SEEDS[0], bundle_of(root, "winner-101").id)
    ]
    assert confirmation.looks == 1 and confirmation.test_seed == SEEDS[0]
    evaluation = Evaluation.model_validate_json((Path(confirmation.test_uri) / "evaluation.json").read_bytes())
    assert confirmation.test == evaluation.model[METRIC] and evaluation.seed == SEEDS[0]


def test_a_campaign_that_is_resumed_or_shown_again_runs_nothing_and_does_not_look_again(
    recipe, best, dataset, root, confirmation, monkeypatch
):
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in root.rglob("*.json") if path.name != "test.json"}

    before = times()
    monkeypatch.setattr(look, "evaluate", never)
    assert confirmed(recipe, best, dataset, root) == confirmation
    assert times() == before and len(log_of(recipe)) == 1


def test_on_other_machines_or_with_other_seeds_a_campaign_has_the_same_winner_which_does_not_look_again(
    recipe, best, dataset, root, confirmation, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(look, "evaluate", never)
    copied = shutil.copytree(root, tmp_path / "campaign")
    on_others, best_on_others = (
        each.model_copy(update={"train": each.train.model_copy(update={"max_failures": 3, "min_workers": 1})})
        for each in (recipe, best)
    )
    there = Path(confirmation.test_uri).relative_to(root)
    assert confirmed(on_others, best_on_others, dataset, copied) == replace(
        confirmation, test_uri=str(copied / there)
    )
    for record in ("winner-101.json", "recipe-101.json"):
        run = FreshRun.model_validate(read_json(f"{copied}/confirm/{record}")).model_copy(update={"seed": 7})
        (copied / "confirm" / record.replace("101", "7")).write_text(run.model_dump_json(), encoding="utf-8")
    for arm in ("winner", "recipe"):
        shutil.copytree(copied / "confirm" / f"{arm}-101" / "bundles", copied / "confirm" / f"{arm}-7" / "bundles")
    later = confirmed(recipe, best, dataset, copied, seeds=(7,))
    assert (later.test, later.test_seed) == (confirmation.test, SEEDS[0]) and [*later.winner] == [7]
    assert later.test_uri == str(copied / there)


def test_a_process_that_was_killed_between_the_look_and_its_log_leaves_one_line_in_the_end(
    recipe, best, dataset, root, confirmation, monkeypatch
):
    monkeypatch.setattr(look, "evaluate", never)
    (Path(recipe.workspace) / "evaluations.jsonl").unlink()
    (root / "confirm" / "test.json").unlink()
    for _ in range(2):
        assert confirmed(recipe, best, dataset, root) == confirmation
        assert [line["evaluation"] for line in log_of(recipe)] == [confirmation.test_uri.rpartition("-")[2]]


def test_without_a_look_at_test_there_is_none(recipe, best, dataset, tmp_path, root, confirmation):
    copied = shutil.copytree(root, tmp_path / "campaign")
    (copied / "confirm" / "test.json").unlink()
    found = confirmed(recipe, best, dataset, copied, score_test=False)
    assert (found.test, found.test_uri, found.looks) == (None, None, 0)
    assert found.winner == confirmation.winner and not (copied / "confirm" / "test.json").exists()


def test_a_winner_that_fails_is_named_with_its_reason_and_a_later_winner_does_not_look_at_test(
    recipe, dataset, root, confirmation, trained, tmp_path, board_folder, monkeypatch
):
    monkeypatch.setattr(look, "evaluate", never)
    copied = shutil.copytree(root, tmp_path / "campaign")
    diverging = recipe_of(
        board_folder, Path(recipe.workspace), train={"learning_rate": 1e30, "gradient_clip": 1e30, "warmup_steps": 0}
    )
    found = confirmed(recipe, diverging, dataset, copied)
    assert found.winner == {} and found.default == confirmation.default
    assert [*found.failed] == ["winner-101"] and "The loss was not finite at" in found.failed["winner-101"]
    assert read_json(f"{copied}/confirm/winner-101.json")["reason"] == found.failed["winner-101"]
    assert found.test is None and not found.looks
    shutil.rmtree(copied / "confirm" / "winner-101" / "runs")
    shutil.copytree(trained[0], copied / "confirm" / "winner-101" / "runs")
    later = confirmed(recipe, recipe, dataset, copied)
    assert later.winner == later.default == confirmation.default and later.test is None
    assert later.failed == {
        "test": "An earlier winner of this campaign was scored on test already "
        f"({copied}/confirm/winner-101/evaluations/{Path(confirmation.test_uri).name}), and a second look would make "
        "the test split a part of the search: judge the new winner by validation, or train it with its recipe and run "
        "`llmrec evaluate`."
    }


def test_what_needs_no_training_is_not_trained_for(recipe, dataset, tmp_path, board_folder, trained):
    other = recipe_of(board_folder, Path(recipe.workspace))
    other = other.model_copy(update={"fusion": other.fusion.model_copy(update={"weights": {"item_item": 1.0}})})
    shutil.copytree(trained[0], tmp_path / "confirm" / "winner-101" / "runs")
    confirmed(recipe, other, dataset, tmp_path, score_test=False)
    ours, theirs = bundle_of(tmp_path, "winner-101"), bundle_of(tmp_path, "recipe-101")
    check_not_trained_again(ours, trained[1])
    check_not_trained_again(theirs, trained[1])
    assert ours.policy.weights == {"item_item": 1.0} != theirs.policy.weights


@pytest.mark.campaign
def test_seeds_are_run_in_turn_and_texts_are_read_once_for_all_of_them(tiny_recipe, board_folder, tmp_path):
    recipe = override_recipe(
        tiny_recipe, [f"workspace={tmp_path}/work", "train.epochs=1", "train.sharding=none", "train.num_workers=1"]
    )
    best = override_recipe(recipe, ["encoder.max_tokens=8"])
    dataset = Dataset.open(ingest(recipe, board_folder, Workspace(recipe.workspace), use_ray=False).uri)
    found = confirmed(recipe, best, dataset, tmp_path / "campaign", seeds=(101, 102, 103), score_test=False)
    assert [*found.winner] == [*found.default] == [101, 102, 103] and not found.failed
    assert len([*(tmp_path / "work" / "vectors").iterdir()]) == 2
    assert not [*(tmp_path / "campaign").glob("confirm/*/vectors")]


@pytest.mark.drill
def test_an_interrupted_confirmation_gives_its_cpus_back_and_leaves_its_checkpoints(
    recipe, dataset, board_folder, tmp_path
):
    long = recipe_of(board_folder, Path(recipe.workspace), train={"epochs": 5000, "patience": 5000})
    run, done = tmp_path / "confirm" / "winner-101" / "runs" / "train", threading.Event()

    def interrupt_in_mid_training() -> None:
        while not [*run.glob("checkpoint_*")]:
            time.sleep(0.5)
        done.set()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_in_mid_training, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        confirmed(long, long, dataset, tmp_path)
    assert done.is_set() and [*run.glob("checkpoint_*")] and not (tmp_path / "confirm" / "winner-101.json").exists()
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.5)


@pytest.mark.drill
def test_other_test_events_change_nothing_that_is_trained_or_chosen(recipe, dataset, board_folder, tmp_path):
    log = pl.read_csv(board_folder / "log.csv")
    is_last = pl.col("when") == pl.col("when").max().over("who")
    next_item = (pl.col("what").str.slice(1).cast(pl.Int64) + 1) % 40
    other_colour = pl.format("i{}", next_item.cast(pl.String).str.zfill(3))
    shutil.copytree(board_folder, tmp_path / "board", ignore=shutil.ignore_patterns("work"))
    log.with_columns(pl.when(is_last).then(other_colour).otherwise("what").alias("what")).write_csv(
        tmp_path / "board" / "log.csv"
    )
    scrambled = recipe_of(tmp_path / "board", tmp_path / "work")
    other = Dataset.open(ingest(scrambled, tmp_path / "board", Workspace(scrambled.workspace), use_ray=False).uri)
    assert (other.targets("test") != dataset.targets("test")).all() and other.id != dataset.id
    found = [
        confirmed(each, each, events, tmp_path / name, seeds=SEEDS, score_test=True)
        for name, each, events in (("as-it-is", recipe, dataset), ("scrambled", scrambled, other))
    ]
    bundles = [bundle_of(tmp_path / name, "winner-101") for name in ("as-it-is", "scrambled")]
    assert np.array_equal(*(bundle.item_vectors for bundle in bundles))
    assert bundles[0].policy == bundles[1].policy
    assert found[0].winner == found[1].winner and found[0].test != found[1].test


def check_not_trained_again(bundle: Bundle, trained: Bundle) -> None:
    assert np.array_equal(bundle.item_vectors, trained.item_vectors)
    assert bundle.artifact.manifest.metrics["train_seconds"] == 0 < trained.artifact.manifest.metrics["train_seconds"]


def log_of(recipe: Recipe) -> list[dict[str, object]]:
    return [json.loads(line) for line in (Path(recipe.workspace) / "evaluations.jsonl").read_text().splitlines()]


def never(*arguments: object, **settings: object) -> None:
    raise AssertionError("the test split is scored again")
