"""Protocol P on the checkerboard with a real Bundle, Index and Pipeline, and on paper; other protocols on paper."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from llmrec_ray.artifact import Workspace, open_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import EvaluateConfig, Recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import ArtifactMismatchError, ConfigError, DataError
from llmrec_ray.evaluate import Evaluation, Protocol, Ranking, Task, evaluate
from llmrec_ray.evaluate.protocol import _draw
from llmrec_ray.evaluate.scoring_log import log_scoring, scorings
from llmrec_ray.evaluate.spread import Worker, pool
from llmrec_ray.evaluate.systems import RawScores, Served, of_signal
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


def fixed_scores(*scores):
    """The same for everybody, as scores of all items and of some."""
    row = np.array(scores, np.float32)
    return (lambda histories: {"fixed": np.tile(row, (len(histories), 1))}), (
        lambda histories, item_rows: {"fixed": np.where(item_rows >= 0, row[item_rows], np.nan).astype(np.float32)}
    )


def paper_system(k=3, scores=(9, 8, 7, 7, 1)):
    return RawScores(*fixed_scores(*scores), k)


def ranked(task, system, batch_users=2, ks=(1, 2)) -> dict[str, Ranking]:
    with pool(lambda: Worker({"it": system}, ks, task.n_items), 1) as here:
        return here.rank("it", task, batch_users, lambda n: None)


def test_ranks_on_paper_leave_out_what_was_seen_and_halve_ties():
    [(name, found)] = paper_system().rank(paper_task())
    assert name == "fixed"
    assert found.ranks.tolist() == [1.5, 1.0, 4.0]
    assert found.lists.tolist() == [[2, 3, 4], [0, 4, -1], [1, 2, 3]]
    assert paper_task().n_candidates.tolist() == [3, 2, 4]


def test_metrics_on_paper():
    metrics = ranked(paper_task(), paper_system())["fixed"].metrics(paper_task(), [1, 2], np.ones(5, np.int64), 3)
    assert metrics["hr@1"] == pytest.approx(1 / 3)
    assert metrics["ndcg@2"] == pytest.approx((1 / np.log2(2.5) + 1) / 3)
    assert metrics["auc"] == pytest.approx((1.5 / 2 + 1 / 1 + 0 / 3) / 3)
    assert metrics["coverage@1"] == 3 / 5
    assert metrics["coverage@2"] == 5 / 5


def test_all_tied_scores_put_the_target_in_the_middle_of_its_candidates():
    for scores in ((1,) * 5, (np.nan,) * 5):
        ranks = ranked(paper_task(), paper_system(scores=scores))["fixed"].ranks
        assert ranks.tolist() == [2.0, 1.5, 2.5] == ((paper_task().n_candidates + 1) / 2).tolist()


def test_an_item_without_an_opinion_stands_below_all_others():
    assert ranked(paper_task(), paper_system(scores=(9, 8, np.nan, -5, -6)))["fixed"].ranks.tolist() == [3.0, 1.0, 3.0]


def test_a_list_longer_than_the_catalogue_is_the_catalogue():
    found = ranked(paper_task(), paper_system(k=50), ks=(50,))["fixed"]
    metrics = found.metrics(paper_task(), [50], np.ones(5, np.int64), 3)
    assert metrics["hr@50"] == metrics["coverage@50"] == 1.0


def test_a_served_list_that_misses_the_target_puts_it_in_the_middle_of_the_rest():
    served = Served("model", lambda histories, k: np.full((len(histories), k), 3), None, 1)
    assert ranked(paper_task(), served)["model"].ranks.tolist() == [1 + 1 + 0.5, 1 + 1 + 0.0, 1 + 1 + 1.0]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_figures_do_not_depend_on_the_batch_size(size):
    found = ranked(paper_task(), paper_system(), size)["fixed"]
    assert found.ranks.tolist() == [1.5, 1.0, 4.0]
    assert found.sums[2].exposure.tolist() == [1, 1, 2, 1, 1]


def held_out_task():
    """The first user also met item 2 and the second item 4, both of a held-out fold."""
    task = paper_task()
    held_out = Histories.from_lists([[4], [], [1, 2]], [0, 1, 2])
    return Task(task.histories, task.targets, task.n_items, held_out)


def test_held_out_items_of_the_user_are_no_candidates():
    assert held_out_task().n_candidates.tolist() == [2, 2, 2]
    assert ranked(held_out_task(), paper_system())["fixed"].ranks.tolist() == [1.5, 1.0, 2.0]
    served = Served("model", lambda histories, k: np.array([[4, 3, 2], [4, 0, -1], [1, 2, 4]])[histories.user_rows],
                    None, 3)
    assert ranked(held_out_task(), served)["model"].ranks.tolist() == [2.0, 2.0, 1.0]


def sampled_task():
    negatives = np.array([[3, 4], [4, -1], [1, 2]])
    return Task(paper_task().histories, paper_task().targets, 5, negatives=negatives)


def test_sampled_candidates_are_the_only_ones():
    assert sampled_task().n_candidates.tolist() == [3, 2, 3]
    assert ranked(sampled_task(), paper_system())["fixed"].ranks.tolist() == [1.5, 1.0, 3.0]
    some = fixed_scores(9, 8, 7, 7, 1)[1]
    served = Served("model", None, lambda histories, rows: some(histories, rows)["fixed"], 3)
    found = ranked(sampled_task(), served)["model"]
    assert found.ranks.tolist() == [1.5, 1.0, 3.0]
    assert not any(name.startswith("coverage") for name in found.metrics(sampled_task(), [2], np.ones(5, int), 3))


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
    figures = ("ndcg", "hr", "mrr", "recall", "precision", "f1", "coverage", "gini", "novelty", "diversity")
    names = {f"{figure}@{k}" for figure in figures for k in (2, 10)}
    assert set(evaluation.model) == names | {"auc"}
    assert set(evaluation.signals["text"]) == names | {"auc", "lead", "lead_low", "lead_high"}
    assert evaluation.intervals.keys() == {"model", *(f"signal:{n}" for n in evaluation.signals),
                                           *(f"baseline:{n}" for n in BASELINES)}
    assert evaluation.segments.keys() == {"popularity", "warmth", "history_length"}
    assert evaluation.cold == {}


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
    assert lines[0] == (
        "Protocol P: last event of each user held out for test, ranked among all items without the user's earlier "
        f"ones; fit on train, history includes the validation item [{evaluation.protocol_hash}]."
    )
    assert "40 users, 40 items, test split; board, seed 0" in lines[1]
    first = [line[:28].strip() for line in lines[4:7]]
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
    assert ranks["history_length"].to_list() == [19] * 40
    popularity = np.bincount(dataset.histories("train").item_rows, minlength=40)
    assert ranks["item_count"].to_list() == popularity[dataset.targets("test")].tolist()


def test_every_look_at_the_test_split_is_logged(recipe, parts, tmp_path, log):
    workspace = Workspace(str(tmp_path))
    short = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"baselines": ()})})
    first, second = (evaluate(short, *parts, workspace) for _ in range(2))
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert first.uri == second.uri
    assert lines[0]["evaluation"] == first.uri.rpartition("-")[2]
    assert lines[0]["bundle"] == parts[1].id
    assert lines[0]["protocol_hash"] == first.protocol_hash
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
    monkeypatch.setattr(
        "llmrec_ray.evaluate.scoring_log.file_names", lambda folder: sorted(uri.rpartition("/")[2] for uri in written)
    )
    monkeypatch.setattr("llmrec_ray.evaluate.scoring_log.read_json", written.__getitem__)
    assert scorings(Workspace("s3://bucket/work")) == [written[uri] for uri in sorted(written)]


def test_looks_are_read_back_in_the_order_of_the_log(evaluation, tmp_path):
    workspace, artifact = Workspace(str(tmp_path)), open_artifact(evaluation.uri, "evaluation")
    assert scorings(workspace) == []
    for seed in (1, 2):
        log_scoring(workspace, evaluation.model_copy(update={"seed": seed}), artifact)
    assert [(line["seed"], line["protocol_hash"]) for line in scorings(workspace)] == [
        (1, evaluation.protocol_hash), (2, evaluation.protocol_hash)
    ]


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
    alone = ranked(task, of_signal(signal, "it", 5), 9)["it"]
    named = ranked(task, RawScores(lambda histories: {"it": signal.score(histories)}, None, 5), 40)["it"]
    assert np.array_equal(alone.ranks, named.ranks)
    assert np.array_equal(alone.sums[2].exposure, named.sums[2].exposure)


def test_sampled_evaluation_says_so_wherever_it_is_named(recipe, parts, tmp_path):
    section = {"candidates": "sampled", "sampled_negatives": 7, "baselines": ["ease"]}
    sampled = recipe.model_copy(update={"evaluate": EvaluateConfig.model_validate(section)})
    result = evaluate(sampled, *parts, Workspace(str(tmp_path)))
    assert result.protocol == (
        "P-SAMPLED: last event of each user held out for test, ranked among 7 SAMPLED items that the user never met "
        "(seed 0; not comparable with full ranking) without the user's earlier ones; fit on train, history includes "
        "the validation item"
    )
    assert "SAMPLED" in result.table().splitlines()[3]
    assert result.baselines["ease"]["hr@10"] == 1.0
    line = json.loads((tmp_path / "evaluations.jsonl").read_text())
    assert line["protocol"] == "P-SAMPLED"


def test_negatives_are_drawn_once_per_user_from_what_the_user_never_met(parts):
    dataset = parts[0]
    met = dataset.histories("test")
    drawn = Task.of(dataset, negatives=9, seed=3).negatives
    assert drawn.shape == (40, 9)
    for user, rows in enumerate(drawn):
        assert len(set(rows.tolist())) == 9
        assert not np.isin(rows, met[user]).any()
    assert np.array_equal(drawn, Task.of(dataset, negatives=9, seed=3).negatives)
    assert not np.array_equal(drawn, Task.of(dataset, negatives=9, seed=4).negatives)


def test_fewer_items_than_negatives_are_all_taken(parts):
    drawn = Task.of(parts[0], negatives=25).negatives
    assert (drawn >= 0).sum(axis=1).tolist() == [20] * 40
    assert Task.of(parts[0], negatives=25).n_candidates.tolist() == [21] * 40


def test_among_many_items_negatives_are_drawn_as_evenly():
    met = Histories.from_lists([[3, 5]] * 400, list(range(400)))
    drawn = _draw(met, 1000, 20, seed=0)
    counts = np.bincount(drawn.ravel(), minlength=1000)
    assert counts[[3, 5]].tolist() == [0, 0]
    assert all(len(set(rows.tolist())) == 20 for rows in drawn)
    assert abs(counts[:500].sum() - counts[500:].sum()) < 4 * 8000**0.5


def test_the_protocol_hash_knows_settings_targets_and_catalogue(parts):
    dataset = parts[0]
    whole = Protocol({"split": "leave_one_out"})
    assert re.fullmatch("[0-9a-f]{12}", whole.hash(dataset))
    assert whole.hash(dataset) == Protocol({"split": "leave_one_out"}, seed=5).hash(dataset)
    others = [
        Protocol({"split": "leave_one_out"}, 99), Protocol({"split": "leave_one_out"}, 99, 1),
        Protocol({"split": "leave_one_out"}, 98), Protocol({"split": "cold_items", "cold_fold": 0}),
    ]
    assert len({whole.hash(dataset), *(other.hash(dataset) for other in others)}) == 5
    other = Dataset(dataset.artifact)
    other.interactions = dataset.interactions.with_columns(
        pl.when((pl.col("user_row") == 0) & (pl.col("split") == "test")).then(1 - pl.col("item_row") % 2)
        .otherwise("item_row").alias("item_row")
    )
    assert whole.hash(other) != whole.hash(dataset)


def test_every_protocol_says_what_was_held_out():
    assert str(Protocol({"split": "cold_items", "cold_fold": 2})).startswith(
        "C2: items of folds 2 and 1 of 10 held out with all their events; of each user's other events the last "
    )
    assert str(Protocol({"split": "global_time", "time_shares": (0.2, 0.1)})) == (
        "G: newest 0.1 of all events held out for test, each user's first of them ranked among all items without the "
        "user's earlier ones; fit on train, the 0.2 before are validation and part of the history"
    )


def test_ease_over_too_many_items_is_refused_before_anything_is_scored(recipe, parts, tmp_path, monkeypatch):
    monkeypatch.setattr("llmrec_ray.signals.ease.MAX_ITEMS", 39)
    monkeypatch.setattr("llmrec_ray.evaluate.run.pool", None)
    with pytest.raises(ConfigError, match="and 40 items are more than its limit of 39: leave item_item out"):
        evaluate(recipe, *parts, Workspace(str(tmp_path)))


def test_a_dataset_without_a_test_event_has_nothing_to_rank(recipe, parts, tmp_path, monkeypatch):
    dataset = Dataset(parts[0].artifact)
    monkeypatch.setattr(dataset, "targets", lambda split: np.full(40, -1), raising=False)
    with pytest.raises(DataError) as error:
        evaluate(recipe, dataset, *parts[1:], Workspace(str(tmp_path)))
    assert str(error.value) == (
        f"No user of {dataset.uri} has a test event, so there is nothing to rank: ingest longer logs."
    )


def test_negatives_without_sampling_are_refused():
    with pytest.raises(ValidationError, match="sampled_negatives is 50, but it has no effect with candidates all: set"):
        EvaluateConfig(sampled_negatives=50)
