"""Protocols C2 and G: held-out pairs on paper, and both splits of the checkerboard with a real pipeline."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.artifact import Workspace, open_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.evaluate import Evaluation, Task, evaluate
from llmrec_ray.evaluate.cold import ColdSystem, ColdTask, chance, cold_figures
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.recommend import Pipeline
from llmrec_ray.types import Histories
from tests.tiny_release import publish_tiny_release

N_ITEMS = 6


def score_by(table):
    """Scores [users, items] of a table as a system that scores some rows."""
    return lambda histories, rows: {"fixed": np.take_along_axis(table[histories.user_rows], rows, axis=1)}


def paper_task():
    """Fold {3, 4, 5}; item 2 is of the other held-out fold."""
    return ColdTask(
        histories=Histories.from_lists([[0], [1, 0]], [0, 1]), pairs=Histories.from_lists([[3, 5], [4]], [0, 1]),
        held_out=Histories.from_lists([[2, 3, 5], [4]], [0, 1]), fold=np.array([3, 4, 5]), n_items=N_ITEMS,
    )


def ranks(task, table, among):
    [(name, found)] = ColdSystem(score_by(table), among, "it:").rank(task)
    assert name == "it:fixed"
    return found.ranks.tolist()


def test_each_pair_is_ranked_alone_among_its_fold_or_among_all():
    table = np.array([[9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4]], np.float32)
    assert ranks(paper_task(), table, "fold") == [1.0, 2.0, 2.0]
    assert ranks(paper_task(), table, "all") == [2.0, 3.0, 3.0]
    assert paper_task().n_candidates.tolist() == [2, 2, 3]
    assert paper_task().users.tolist() == [0, 0, 1]


def test_tied_scores_put_a_pair_in_the_middle():
    for value in (0.0, np.nan):
        assert ranks(paper_task(), np.full((2, 6), value, np.float32), "fold") == [1.5, 1.5, 2.0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_the_ranks_are_those_of_the_definition(seed):
    generator = np.random.default_rng(seed)
    table = generator.choice(np.array([0, 1, 2, np.nan], np.float32), (2, N_ITEMS))
    task = paper_task()
    expected = {"fold": [], "all": []}
    for user in range(2):
        for item in task.pairs[user]:
            barred = np.concatenate([task.histories[user], np.setdiff1d(task.held_out[user], [item])])
            scores = mask_seen(table[user : user + 1], Histories.from_lists([barred]))
            target = np.array([item])
            expected["all"].append(target_ranks(scores, target)[0])
            scores[:, :3] = -np.inf
            expected["fold"].append(target_ranks(scores, target)[0])
    assert {among: ranks(task, table, among) for among in expected} == expected


@pytest.mark.parametrize("most", [1, 2, 5, 7, 100])
def test_scoring_a_few_items_at_a_time_changes_nothing(most, monkeypatch):
    monkeypatch.setattr("llmrec_ray.evaluate.cold.MOST_CELLS", most)
    table = np.random.default_rng(0).random((2, N_ITEMS)).astype(np.float32)
    with pytest.MonkeyPatch.context() as whole:
        whole.setattr("llmrec_ray.evaluate.cold.MOST_CELLS", 1000)
        expected = {among: ranks(paper_task(), table, among) for among in ("fold", "all")}
    assert {among: ranks(paper_task(), table, among) for among in ("fold", "all")} == expected


def test_chance_is_what_random_ranks_reach():
    n_candidates = np.repeat([7, 20, 150], [3, 5, 2])
    generator = np.random.default_rng(0)
    drawn = np.concatenate([generator.integers(1, n_candidates + 1) for _ in range(5000)]).astype(np.float64)
    expected = chance(n_candidates, [5, 10])
    found = cold_figures(drawn, [5, 10])
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.01)
        assert found[f"{name}_low"] < value < found[f"{name}_high"]


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    tree = tiny_recipe.model_dump(mode="json")
    section = {"baselines": ["popularity", "tfidf", "ease"], "ks": [2, 10], "batch_users": 7}
    return Recipe.model_validate(tree | {
        "data": tree["data"] | {"split": "cold_items", "cold_fold": 2}, "evaluate": section
    })


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return Workspace(str(tmp_path_factory.mktemp("evaluate_cold")))


def opened(recipe, workspace) -> tuple[Dataset, Bundle, Pipeline]:
    release = publish_tiny_release(recipe, workspace)
    return Dataset.open(release.dataset.uri), Bundle.open(release.bundle.uri), Pipeline.of_release(release)


@pytest.fixture(scope="module")
def parts(recipe, workspace) -> tuple[Dataset, Bundle, Pipeline]:
    return opened(recipe, workspace)


@pytest.fixture(scope="module")
def evaluation(recipe, parts, workspace) -> Evaluation:
    return evaluate(recipe, *parts, workspace)


def test_the_pairs_are_the_events_of_the_held_out_fold(parts):
    dataset = parts[0]
    task = ColdTask.of(dataset)
    owners, items = dataset.cold_pairs("test")
    assert np.array_equal(task.users, owners)
    assert np.array_equal(task.pairs.item_rows, items)
    assert np.array_equal(task.fold, np.unique(items))
    assert not np.isin(task.histories.item_rows, task.held_out.item_rows).any()
    assert len(task.held_out.item_rows) == sum(len(dataset.cold_pairs(split)[0]) for split in ("validation", "test"))
    validation = ColdTask.of(dataset, "validation")
    assert not np.isin(validation.fold, task.fold).any()


def test_held_out_items_are_neither_known_nor_candidates_of_the_warm_ranking(parts):
    dataset = parts[0]
    task = Task.of(dataset)
    met = dataset.histories("test")
    assert task.n_candidates.tolist() == [40 - len(met[user]) + 1 for user in range(40)]


def test_cold_figures_stand_with_and_without_scale_and_beside_the_warm_ranking(evaluation):
    assert evaluation.protocol.startswith("C2: items of folds 2 and 1 of 10 held out")
    fused = {"cold_only", "cold_only_scale_off", "all", "all_scale_off", "warm", "warm_scale_off"}
    alone = {f"signal:{name}" for name in ("neural", "item_item", "text")}
    alone |= {f"baseline:{name}" for name in ("popularity", "tfidf", "ease")} | {"chance"}
    assert evaluation.cold.keys() == fused | {f"cold_only:{name}" for name in alone}
    metrics = {"hr@2", "ndcg@2", "hr@10", "ndcg@10"}
    for name, figures in evaluation.cold.items():
        intervals = {f"{metric}_{end}" for metric in metrics for end in ("low", "high")}
        assert set(figures) == metrics | (set() if name == "cold_only:chance" else intervals)
    assert evaluation.cold["warm"]["ndcg@10"] == evaluation.model["ndcg@10"]


def test_what_an_item_says_of_itself_finds_who_likes_its_colour(evaluation):
    cold = evaluation.cold
    assert cold["cold_only"]["hr@2"] > cold["cold_only:chance"]["hr@2"] + 0.2
    assert cold["cold_only"]["hr@2"] > cold["cold_only_scale_off"]["hr@2"]
    assert cold["cold_only:baseline:tfidf"]["hr@2"] > cold["cold_only:chance"]["hr@2"] + 0.2


def test_without_scale_the_cold_items_are_all_tied(parts, evaluation):
    task = ColdTask.of(parts[0])
    middle = (task.n_candidates + 1) / 2
    assert evaluation.cold["cold_only_scale_off"] == cold_figures(middle, [2, 10], task.users)


def test_the_table_and_the_artifact_hold_the_pairs(parts, evaluation):
    dataset = parts[0]
    lines = evaluation.table().splitlines()
    assert "Items without a train event, beside the warm ranking by the same weights:" in lines
    assert any(line.startswith("cold_only_scale_off ") for line in lines)
    table = pl.read_parquet(open_artifact(evaluation.uri, "evaluation").path / "cold_ranks.parquet")
    assert len(table) == len(dataset.cold_pairs("test")[0])
    assert (table["cold_only"] <= 10).mean() == pytest.approx(evaluation.cold["cold_only"]["hr@10"])
    ranks = pl.read_parquet(open_artifact(evaluation.uri, "evaluation").path / "ranks.parquet")
    assert (ranks["model_scale_off"] <= 10).mean() == pytest.approx(evaluation.cold["warm_scale_off"]["hr@10"])


def test_a_global_time_split_is_evaluated_for_the_users_who_have_a_target(tiny_recipe, board_folder, tmp_path):
    tree = tiny_recipe.model_dump(mode="json")
    log = pl.read_csv(board_folder / "log.csv")
    late = log.with_columns(when=pl.col("when") + 60 * pl.col("who").str.slice(1).cast(pl.Int64))
    late.write_csv(tmp_path / "log.csv")
    tree["data"]["interactions"][0]["paths"] = [str(tmp_path / "log.csv")]
    tree["data"] |= {"split": "global_time", "time_shares": [0.1, 0.1]}
    timed = Recipe.model_validate(tree | {"evaluate": {"baselines": ["popularity", "markov"], "ks": [10]}})
    workspace = Workspace(str(tmp_path / "work"))
    dataset, bundle, pipeline = opened(timed, workspace)
    result = evaluate(timed, dataset, bundle, pipeline, workspace)
    assert result.protocol.startswith("G: newest 0.1 of all events held out for test, each user's first of them")
    asked = dataset.targets("test") >= 0
    assert 0 < result.users == asked.sum() < 40
    assert result.cold == {}
    line = json.loads((tmp_path / "work" / "evaluations.jsonl").read_text())
    assert line["protocol"] == "G"


def test_scores_of_given_items_are_those_that_order_a_served_list_whatever_is_known_of_the_user(parts):
    dataset, _, pipeline = parts
    train = dataset.histories("train")
    some = Histories.from_lists([train[0], train[1][:1], []], [0, 1, -1])
    lists = pipeline.recommend_rows(some, 5)
    scores = pipeline.score_rows(some, lists)
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    everything = pipeline.score_rows(some, np.tile(np.arange(40), (3, 1)))
    assert np.allclose(np.take_along_axis(everything, lists, axis=1), scores, atol=1e-5)
