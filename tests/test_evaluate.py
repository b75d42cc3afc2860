"""Protocol P on the checkerboard with a real Bundle, Index and Pipeline, and on paper."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from llmrec_ray.artifact import Workspace, open_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.evaluate import PROTOCOL, Evaluation, Ranking, Task, evaluate
from llmrec_ray.evaluate.protocol import rank_lists, rank_scores, rank_signal
from llmrec_ray.evaluate.scoring_log import log_scoring
from llmrec_ray.recommend import Pipeline
from llmrec_ray.types import Histories
from tests.boards import board_recipe, write_board
from tests.tiny_release import publish_tiny_release

BASELINES = ("popularity", "tfidf", "item_knn", "ease", "ease_recency", "ials")


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    section = {"baselines": BASELINES, "ks": [2, 10], "batch_users": 7}
    return Recipe.model_validate(tiny_recipe.model_dump(mode="json") | {"evaluate": section})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return Workspace(str(tmp_path_factory.mktemp("evaluate")))


@pytest.fixture(scope="module")
def parts(recipe, workspace) -> tuple[Dataset, Bundle, Pipeline]:
    release = publish_tiny_release(recipe, workspace)
    return Dataset.open(release.dataset.uri), Bundle.open(release.bundle.uri), Pipeline.of_release(release)


@pytest.fixture(scope="module")
def evaluation(recipe, parts, workspace) -> Evaluation:
    return evaluate(recipe, *parts, workspace)


@pytest.fixture
def log(caplog):
    """What the package tells people, also after a test ran the command line."""
    logger = logging.getLogger("llmrec_ray")
    level = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    yield caplog
    logger.setLevel(level)
    logger.removeHandler(caplog.handler)


def paper_task():
    """Three users, five items; what may be shown: {2, 3, 4}, {0, 4}, {1, 2, 3, 4}."""
    histories = Histories.from_lists([[0, 1], [1, 2, 3], [0]], [0, 1, 2])
    return Task(histories, np.array([2, 0, 4]), 5)


def paper_scores(histories):
    return {"fixed": np.tile(np.array([9, 8, 7, 7, 1], np.float32), (len(histories), 1))}


def test_ranks_on_paper_leave_out_what_was_seen_and_halve_ties():
    ranking = rank_scores(paper_task().batches(2), paper_scores, 3)["fixed"]
    assert ranking.ranks.tolist() == [1.5, 1.0, 4.0]
    assert ranking.lists.tolist() == [[2, 3, 4], [0, 4, -1], [1, 2, 3]]
    assert paper_task().n_candidates.tolist() == [3, 2, 4]


def test_metrics_on_paper():
    ranking = rank_scores(paper_task().batches(2), paper_scores, 3)["fixed"]
    metrics = ranking.metrics(paper_task(), [1, 2])
    assert metrics["hr@1"] == pytest.approx(1 / 3)
    assert metrics["ndcg@2"] == pytest.approx((1 / np.log2(2.5) + 1) / 3)
    assert metrics["auc"] == pytest.approx((1.5 / 2 + 1 / 1 + 0 / 3) / 3)
    assert metrics["coverage@1"] == 3 / 5
    assert metrics["coverage@2"] == 5 / 5


def test_a_served_list_that_misses_the_target_puts_it_in_the_middle_of_the_rest():
    ranking = rank_lists(paper_task().batches(2), lambda histories, k: np.full((len(histories), k), 3), 1)
    assert ranking.ranks.tolist() == [1 + 1 + 0.5, 1 + 1 + 0.0, 1 + 1 + 1.0]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_ranks_do_not_depend_on_the_batch_size(size):
    ranking = rank_scores(paper_task().batches(size), paper_scores, 3)["fixed"]
    assert ranking.ranks.tolist() == [1.5, 1.0, 4.0]


def test_the_task_reads_train_and_validation_and_asks_for_the_test_item(parts):
    dataset = parts[0]
    task = Task.of(dataset)
    assert task.n_items == len(dataset.items)
    for user in range(len(dataset.users)):
        events = dataset.interactions.filter(pl.col("user_row") == user)["item_row"].to_list()
        assert [*task.histories[user].tolist(), task.targets[user]] == events


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "popularity"])
def test_baselines_find_the_colour_of_the_board(name, evaluation):
    assert evaluation.baselines[name]["ndcg@10"] > 0.9


def test_signals_and_baselines_of_the_recipe_stand_beside_the_model(evaluation):
    assert set(evaluation.signals) == {"neural", "ncf", "item_item", "text", "popularity"}
    assert tuple(evaluation.baselines) == BASELINES
    figures = ("ndcg", "hr", "mrr", "recall", "precision", "f1", "coverage")
    names = {f"{figure}@{k}" for figure in figures for k in (2, 10)}
    assert set(evaluation.model) == names | {"auc"}
    assert set(evaluation.signals["text"]) == names | {"auc", "lead", "lead_low", "lead_high"}


def test_the_model_is_the_served_pipeline(evaluation, parts):
    dataset, _, pipeline = parts
    served = pipeline.recommend_rows(dataset.histories("validation"), 10)
    hits = (served == dataset.targets("test")[:, None]).any(axis=1)
    assert evaluation.model["hr@10"] == hits.mean()


def test_the_lead_is_the_difference_of_the_means(evaluation):
    for figures in [*evaluation.signals.values(), *evaluation.baselines.values()]:
        assert figures["lead"] == pytest.approx(evaluation.model["ndcg@10"] - figures["ndcg@10"])
        assert figures["lead_low"] <= figures["lead"] <= figures["lead_high"]


def test_auc_agrees_with_scikit_learn_on_the_catalogue_without_seen_items(evaluation, parts):
    dataset, bundle, _ = parts
    task = Task.of(dataset)
    areas = []
    for user, raw in enumerate(bundle.score_all(task.histories)["ncf"]):
        unseen = np.setdiff1d(np.arange(task.n_items), task.histories[user])
        areas.append(roc_auc_score(unseen == task.targets[user], raw[unseen]))
    assert evaluation.signals["ncf"]["auc"] == pytest.approx(np.mean(areas), abs=1e-3)


def test_the_table_names_the_protocol_and_has_a_row_per_system(evaluation):
    lines = evaluation.table().splitlines()
    assert lines[0] == f"Protocol {PROTOCOL}."
    assert "40 users, 40 items, test split; board, seed 0" in lines[1]
    first = [line[:22].strip() for line in lines[4:7]]
    assert first == ["served pipeline", "signal item_item", "signal text"]
    assert len(lines) == 4 + 1 + 5 + 6
    assert f"{evaluation.model['ndcg@10']:.4f}" in lines[4]
    assert all(re.search(r"[+-]0\.\d{4} \([+-]\d\.\d{4} to [+-]\d\.\d{4}\)$", line) for line in lines[5:])


def test_the_summary_is_json_without_the_place_where_it_is_kept(evaluation):
    summary = json.loads(json.dumps(evaluation.to_dict()))
    assert {"protocol", "model", "signals", "baselines"} < summary.keys()
    assert "uri" not in summary
    assert summary["model"]["ndcg@10"] == evaluation.model["ndcg@10"]


def test_the_artifact_holds_table_figures_and_every_rank(evaluation, parts, workspace):
    dataset, bundle, _ = parts
    artifact = open_artifact(evaluation.uri, "evaluation")
    assert workspace.latest("evaluation", made_by="evaluate") == evaluation.uri
    assert artifact.manifest.parents == {"dataset": dataset.id, "bundle": bundle.id}
    assert artifact.manifest.metrics == evaluation.model
    read = Evaluation.model_validate_json((artifact.path / "evaluation.json").read_text())
    assert read == evaluation.model_copy(update={"uri": ""})
    assert (artifact.path / "table.txt").read_text() == evaluation.table() + "\n"
    ranks = pl.read_parquet(artifact.path / "ranks.parquet")
    assert ranks["user_id"].to_list() == list(dataset.users)
    assert (ranks["baseline:ease"] <= 10).mean() == evaluation.baselines["ease"]["hr@10"]
    assert {"model", "signal:neural", "baseline:ials"} < set(ranks.columns)


def test_every_look_at_the_test_split_is_logged(recipe, parts, tmp_path, log):
    workspace = Workspace(str(tmp_path))
    short = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"baselines": ()})})
    first, second = (evaluate(short, *parts, workspace) for _ in range(2))
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert first.uri == second.uri
    assert lines[0]["evaluation"] == first.uri.rpartition("-")[2]
    assert lines[0]["bundle"] == parts[1].id
    assert (lines[0]["split"], lines[0]["protocol"], lines[0]["seed"]) == ("test", "P", 0)
    assert lines[1]["model"] == {"ndcg@10": second.model["ndcg@10"], "hr@10": second.model["hr@10"]}
    assert first.table() in log.text


def test_a_bucket_cannot_append_so_each_look_is_an_object_of_its_own(evaluation, monkeypatch):
    written = {}
    monkeypatch.setattr("llmrec_ray.evaluate.scoring_log.write_json_atomic", written.__setitem__)
    artifact = open_artifact(evaluation.uri, "evaluation")
    for _ in range(2):
        log_scoring(Workspace("s3://bucket/work"), evaluation, artifact)
    assert len(written) == 2
    assert all(uri.startswith("s3://bucket/work/evaluations-log/") for uri in written)
    assert all(line["evaluation"] == artifact.id for line in written.values())


def test_a_bundle_is_not_evaluated_on_another_dataset(recipe, parts, tiny_encoder, tmp_path):
    _, bundle, pipeline = parts
    write_board(tmp_path, seed=1)
    other_recipe = board_recipe(tmp_path, encoder={"model": str(tiny_encoder)})
    other = Dataset(ingest(other_recipe, Path(), Workspace(str(tmp_path / "work")), use_ray=False))
    with pytest.raises(ArtifactMismatchError) as error:
        evaluate(recipe, other, bundle, pipeline, Workspace(str(tmp_path)))
    assert str(error.value) == (
        f"The bundle {bundle.uri} was trained on dataset {parts[0].id}, not on "
        f"{other.id} ({other.uri}): evaluate it on its own dataset, or train on this one first."
    )
    assert not (tmp_path / "evaluations.jsonl").exists()


def test_without_item_texts_the_text_baseline_is_left_out_and_said_so(recipe, parts, tmp_path, log):
    dataset, bundle, pipeline = parts
    wordless = Dataset(dataset.artifact)
    wordless.item_texts = [""] * len(dataset.items)
    some = recipe.evaluate.model_copy(update={"baselines": ("popularity", "tfidf")})
    changed = recipe.model_copy(update={"evaluate": some})
    result = evaluate(changed, wordless, bundle, pipeline, Workspace(str(tmp_path)))
    assert set(result.baselines) == {"popularity"}
    assert "No item has a text, so the baseline tfidf is left out." in log.text


def test_ranking_one_signal_equals_ranking_it_by_name(parts):
    dataset, bundle, _ = parts
    task = Task.of(dataset)
    signal = bundle.signals["item_item"]
    alone: Ranking = rank_signal(task.batches(9), signal, 5)
    named = rank_scores(task.batches(40), lambda histories: {"it": signal.score(histories)}, 5)["it"]
    assert np.array_equal(alone.ranks, named.ranks)
    assert np.array_equal(alone.lists, named.lists)
