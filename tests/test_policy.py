"""What is chosen on stored scores: simulated values are those of the served pipeline, and choices are what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.cli.main import run
from llmrec_ray.config import Choice, IntRange, LogUniform, Uniform, override_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import ArtifactMismatchError, ArtifactNotFoundError, ConfigError, CorruptArtifactError
from llmrec_ray.evaluate import validation_value
from llmrec_ray.index import Index
from llmrec_ray.metrics import ndcg_gains
from llmrec_ray.policy import (
    check_bundle,
    component_scores,
    keep_policy,
    load_policy,
    policy_of,
    search_policy,
    search_weights,
)
from llmrec_ray.policy.grids import grid
from llmrec_ray.policy.pairs import Pairs
from llmrec_ray.policy.search import _targets, _test_fold
from llmrec_ray.policy.simulated import Contest, Simulation, gains_of
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.recommend import Pipeline
from llmrec_ray.release import load_release
from llmrec_ray.signals import Calibration, CascadeFusion, FusionPolicy, WeightedFusion, fuse
from llmrec_ray.types import Histories
from tests.boards import board_recipe
from tests.outcomes import full_outcome
from tests.tiny_release import write_tiny_bundle

MOST = {"neural": 20, "item_item": 20, "text": 20, "popularity": 20, "cold": 10}
POLICIES = {
    "all": {},
    "few": {"candidates": {"neural": 12, "item_item": 11}},
    "one source": {"candidates": {"text": 10}},
    "weights": {"candidates": {"neural": 20, "item_item": 15, "popularity": 12}, "merge": "weights",
                "max_candidates": 12},
    "ranks": {"candidates": {"item_item": 20, "text": 12}, "merge": "reciprocal_rank", "max_candidates": 13},
    "with new items": {"candidates": {"neural": 10, "cold": 6}, "cold_scale": 0.8},
    "newcomers": {"candidates": {"item_item": 15, "popularity": 10}, "newcomer_events": 30,
                  "newcomer_weights": {"popularity": 0.7, "neural": 0.3}},
}


@pytest.fixture(scope="module")
def bundle(tiny_release) -> Bundle:
    return Bundle.open(tiny_release.bundle.uri)


@pytest.fixture(scope="module")
def dataset(tiny_release) -> Dataset:
    return Dataset.open(tiny_release.dataset.uri)


@pytest.fixture(scope="module")
def simulation(tiny_recipe, dataset, bundle) -> Simulation:
    components = component_scores(tiny_recipe, dataset, bundle)
    return Simulation.of(bundle, components, bundle.policy, MOST, 10, np.empty(0, np.int64))


@pytest.fixture(scope="module")
def cold(tiny_encoder, board_folder, tmp_path_factory) -> tuple[Dataset, Bundle]:
    """A board with two folds of items held out."""
    root = str(tmp_path_factory.mktemp("cold_policy"))
    recipe = board_recipe(
        board_folder, workspace=root, data={**board_recipe(board_folder).data.model_dump(mode="json"),
                                            "split": "cold_items"},
        encoder={"model": str(tiny_encoder)},
        retrieval={"candidates": {"neural": 20, "item_item": 20, "popularity": 10, "cold": 5}},
    )
    dataset = Dataset(ingest(recipe, Path(), Workspace(root), use_ray=False))
    return dataset, Bundle(write_tiny_bundle(recipe, dataset, f"{root}/bundles"))


def changed(policy: FusionPolicy, fields: dict) -> FusionPolicy:
    return FusionPolicy.model_validate(policy.model_dump() | fields)


def served(dataset: Dataset, bundle: Bundle, policy: FusionPolicy, k: int = 10) -> np.ndarray:
    """Each user's rank of the validation item in the pipeline's list, infinite when it is not there."""
    pipeline = Pipeline(dataset, bundle, Index.exact(bundle), policy=policy, with_encoder=False)
    users = np.flatnonzero(dataset.targets("validation") >= 0)
    found = pipeline.recommend_rows(dataset.histories("train").select(users), k)
    found = found == dataset.targets("validation")[users][:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1.0, np.inf)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("metric", ["ndcg@10", "hr@10", "mrr@10"])
def test_a_simulated_policy_has_the_value_that_the_pipeline_has(simulation, tiny_recipe, dataset, bundle, name, metric):
    policy = changed(bundle.policy, POLICIES[name])
    known, _ = _targets(dataset, component_scores(tiny_recipe, dataset, bundle), simulation)
    figures = Contest(simulation, policy, None, known, metric).figures(policy)
    assert figures.value == pytest.approx(gains_of(metric, served(dataset, bundle, policy)).mean(), abs=1e-9)


@pytest.mark.parametrize("mode", ["late", "cascade"])
def test_a_fusion_that_was_fitted_is_simulated_as_it_would_be_served(
    simulation, tiny_recipe, dataset, bundle, monkeypatch, mode
):
    fusions = {
        "late": WeightedFusion(bundle.calibration, {"text": 0.6, "neural": 0.4}),
        "cascade": CascadeFusion(bundle.calibration, "item_item", 8, "neural"),
    }
    known, _ = _targets(dataset, component_scores(tiny_recipe, dataset, bundle), simulation)
    policy = changed(bundle.policy, POLICIES["few"])
    figures = Contest(simulation, policy, fusions[mode], known, "ndcg@10").figures(policy)
    monkeypatch.setattr(bundle, "fusion", fusions[mode])
    assert figures.value == pytest.approx(gains_of("ndcg@10", served(dataset, bundle, policy)).mean(), abs=1e-9)


def test_candidates_are_counted_as_the_reranker_gets_them(simulation, bundle):
    few = changed(bundle.policy, {"candidates": {"neural": 12}})
    assert (simulation.members(few).sum(axis=1) == 12).all()
    capped = changed(bundle.policy, {"merge": "weights", "max_candidates": 11})
    assert (simulation.members(capped).sum(axis=1) == 11).all()


def test_the_value_found_is_that_of_the_validation_split_served(tiny_recipe, dataset, bundle):
    domains = {f"retrieval.candidates.{name}": IntRange(int=(10, 20)) for name in ("neural", "text")}
    found = search_policy(tiny_recipe, dataset, bundle, domains)
    assert found.value == pytest.approx(validation_value(tiny_recipe, dataset, bundle, "ndcg@10", policy=found.policy))
    assert found.base == pytest.approx(
        validation_value(tiny_recipe, dataset, bundle, "ndcg@10", policy=policy_of(tiny_recipe, bundle))
    )
    assert found.value >= max(row["value"] for row in found.table) * (1 - 0.002)
    assert [weight for weight, _ in found.curve] == pytest.approx(np.arange(11) / 10)
    assert found.seconds < 20


def test_of_settings_that_are_as_good_the_one_with_fewest_candidates_is_taken(tiny_recipe, dataset, bundle):
    domains = {
        "retrieval.candidates.neural": IntRange(int=(1, 20)), "retrieval.candidates.item_item": IntRange(int=(1, 20)),
        "retrieval.candidates.popularity": IntRange(int=(1, 20)),
    }
    found = search_policy(tiny_recipe, dataset, bundle, domains, tolerance=1.0)
    assert min(row["candidates"] for row in found.table) == pytest.approx(
        next(row["candidates"] for row in found.table if chosen(row, domains) == chosen_policy(found.policy, domains))
    )
    changed_recipe = override_recipe(tiny_recipe, found.overrides)
    assert policy_of(changed_recipe, bundle).candidates == found.policy.candidates


def chosen(row: dict, domains: dict) -> dict:
    return {key: row.get(key) for key in domains}


def chosen_policy(policy: FusionPolicy, domains: dict) -> dict:
    return {key: policy.candidates[key.rpartition(".")[2]] for key in domains}


def test_merging_and_how_much_of_it_stays_are_searched_together(tiny_recipe, dataset, bundle):
    domains = {
        "retrieval.merge": Choice(choice=("all", "weights", "reciprocal_rank")),
        "retrieval.max_candidates": Choice(choice=(11, 15, None)),
    }
    found = search_policy(tiny_recipe, dataset, bundle, domains, tolerance=1.0)
    assert found.policy.max_candidates == 11
    assert "retrieval.max_candidates=11" in found.overrides
    assert {row.get("retrieval.merge") for row in found.table} == {None, "weights", "reciprocal_rank"}
    override_recipe(tiny_recipe, found.overrides)
    alone = search_policy(tiny_recipe, dataset, bundle, {"retrieval.max_candidates": Choice(choice=(11,))})
    assert alone.left_out == {"retrieval.max_candidates": (
        "no value of both retrieval.merge and retrieval.max_candidates leaves anything out: let merge be "
        "reciprocal_rank or weights, and max_candidates smaller"
    )}


def test_the_best_of_the_fitted_modes_is_taken_and_the_others_are_said(tiny_recipe, dataset, bundle):
    domains = {"fusion.mode": Choice(choice=("late", "cascade", "learned"))}
    modes = {
        "late": WeightedFusion(bundle.calibration, {"neural": 1.0}),
        "cascade": CascadeFusion(bundle.calibration, "popularity", 20, "neural"),
    }
    found = search_policy(tiny_recipe, dataset, bundle, domains, modes=modes)
    assert found.left_out == {"fusion.mode=learned": "it was not fitted for this Bundle"}
    by_mode = {row["fusion.mode"]: row["value"] for row in found.table if "fusion.mode" in row}
    assert by_mode["late"] > by_mode["cascade"]
    assert found.overrides == []
    assert found.value == by_mode["late"]


@pytest.mark.parametrize("mode", ["cascade", "feature"])
def test_a_mode_that_is_not_searched_is_that_of_all_that_is_compared(tiny_recipe, dataset, bundle, monkeypatch, mode):
    """The Bundle of a trial always has late fusion."""
    recipe = override_recipe(tiny_recipe, [f"fusion.mode={mode}"])
    modes = {
        "cascade": CascadeFusion(bundle.calibration, "popularity", 20, "neural"),
        "feature": WeightedFusion(bundle.calibration, {"neural": 1.0}),
    }
    found = search_policy(
        recipe, dataset, bundle, {"retrieval.candidates.neural": Choice(choice=(10, 20))}, modes={mode: modes[mode]}
    )
    late = search_policy(tiny_recipe, dataset, bundle, {})
    policy = policy_of(recipe, bundle)
    if mode == "feature":
        policy = changed(policy, {"weights": {"neural": 1.0}, "newcomer_weights": {}})
    monkeypatch.setattr(bundle, "fusion", modes[mode])
    assert found.base == pytest.approx(gains_of("ndcg@10", served(dataset, bundle, policy)).mean(), abs=1e-9)
    assert found.value == pytest.approx(gains_of("ndcg@10", served(dataset, bundle, found.policy)).mean(), abs=1e-9)
    assert found.base != late.base


def test_late_fusion_is_judged_by_searched_weights_though_the_recipe_searches_none(tiny_recipe, dataset, bundle):
    recipe = override_recipe(tiny_recipe, ["fusion.mode=feature"])
    alone = WeightedFusion(bundle.calibration, {"neural": 1.0})
    domains = {"fusion.mode": Choice(choice=("late", "feature"))}
    found = search_policy(recipe, dataset, bundle, domains, modes={"late": alone, "feature": alone})
    by_mode = {row["fusion.mode"]: row["value"] for row in found.table if "fusion.mode" in row}
    late = search_policy(tiny_recipe, dataset, bundle, {})
    assert by_mode["late"] == pytest.approx(late.value)
    assert found.weights == late.weights != {"neural": 1.0}


def test_what_cannot_be_judged_is_left_as_it_is_with_the_reason(tiny_recipe, dataset, bundle):
    domains = {"fusion.mode": Choice(choice=("late",)), "fusion.cold_scale": Uniform(uniform=(0.0, 1.0))}
    found = search_policy(tiny_recipe, dataset, bundle, domains)
    assert found.left_out == {
        "fusion.mode": "a Bundle keeps the fusion that it was trained with, and no other was fitted",
        "fusion.cold_scale": "the validation split has no unseen items to judge it by, as data.split cold_items has",
    }
    assert found.policy.cold_scale == tiny_recipe.fusion.cold_scale
    assert "Not searched: fusion.mode, since a Bundle keeps the fusion" in found.text()


def test_what_was_found_is_told_with_as_many_settings_as_are_shown_and_what_there_was_before():
    found = full_outcome().policy
    lines = found.text().splitlines()
    assert lines[0] == "3 settings tried on stored scores in 1.8 s, by what the served pipeline gives:"
    assert lines[1].split() == ["validation", "ndcg@10", "candidates", "fusion.mode", "retrieval.candidates.text"]
    assert lines[2].split() == ["0.1146", "370", "late"]
    assert lines[5:] == [
        "Weights of late fusion: neural 0.52, item_item 0.31, ncf 0.11, text 0.06, popularity 0.00",
        "Chosen: fusion.mode=late, retrieval.candidates.text=20, ndcg@10 0.1142; before this search it was 0.1121",
        "Not searched: fusion.cold_scale, since validation holds no items that nobody had met",
    ]
    many = replace(found, table=found.table * 4, overrides=[]).text().splitlines()
    assert many[0].startswith("The best 8 of 12 settings tried on stored scores")
    assert many[10].startswith("Weights of") and many[11].startswith("Chosen: the settings that there were, ndcg@10")
    assert replace(found, table=found.table[:1]).text().startswith("1 setting tried on stored scores")


def test_a_key_that_needs_training_is_refused(tiny_recipe, dataset, bundle):
    with pytest.raises(ConfigError) as refused:
        search_policy(tiny_recipe, dataset, bundle, {"train.learning_rate": LogUniform(loguniform=(1e-3, 1e-2))})
    assert str(refused.value) == (
        "train.learning_rate cannot be searched without training: run a whole campaign."
    )


def test_how_far_unseen_items_rise_is_judged_by_unseen_items_and_costs_the_others_no_more_than_the_tolerance(cold):
    dataset, bundle = cold
    domains = {"fusion.cold_scale": Uniform(uniform=(0.0, 2.0)), "retrieval.candidates.cold": IntRange(int=(1, 8))}
    frugal = search_policy(bundle.recipe, dataset, bundle, domains, tolerance=0.0)
    lavish = search_policy(bundle.recipe, dataset, bundle, domains, tolerance=0.3)
    judged = [row for row in lavish.table if "cold_value" in row]
    assert len(judged) == len(grid(domains["fusion.cold_scale"])) * len(grid(domains["retrieval.candidates.cold"]))
    assert frugal.value == max(row["value"] for row in judged)
    best = max(row["cold_value"] for row in judged)
    assert best > 0
    taken = next(row for row in judged if row["fusion.cold_scale"] == lavish.policy.cold_scale
                 and row["retrieval.candidates.cold"] == lavish.policy.candidates["cold"])
    assert taken["cold_value"] >= 0.7 * best
    assert taken["value"] >= 0.7 * frugal.value


def test_items_held_out_for_test_take_no_part_in_a_choice(cold):
    dataset, bundle = cold
    held_out = _test_fold(dataset)
    assert {*dataset.cold_pairs("test")[1]} <= {*held_out}
    components = component_scores(bundle.recipe, dataset, bundle)
    simulation = Simulation.of(bundle, components, bundle.policy, MOST, 10, held_out)
    assert not np.isin(simulation.rows, held_out).any()


def test_gains_of_pairs_are_those_of_the_whole_ranking_with_ties_and_missing_opinions():
    generator = np.random.default_rng(0)
    scores = {name: np.round(generator.normal(size=(50, 30)), 1).astype(np.float32) for name in ("neural", "text")}
    scores["text"][3:9] = np.nan
    targets, seen = generator.integers(0, 30, 50), Histories.from_lists([generator.integers(0, 30, 8)] * 50)
    calibration = Calibration.fit(scores, seen)
    pairs = Pairs.of(scores, targets, seen, calibration)
    weightings = [{"neural": 1.0}, {"text": 1.0}, {"neural": 0.25, "text": 0.75}]
    for weights, gains in zip(weightings, pairs.gains(weightings, 10), strict=True):
        ranks = target_ranks(mask_seen(fuse(scores, calibration, weights)[0], seen), targets)
        np.testing.assert_allclose(gains, ndcg_gains(ranks, 10), atol=1e-9)


def test_of_a_large_catalogue_only_some_users_are_searched_and_the_value_is_that_of_all(monkeypatch):
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 40, 300)
    truth = 1.5 * np.eye(40)[targets]
    scores = {name: (truth + generator.normal(size=truth.shape)).astype(np.float32) for name in ("neural", "text")}
    seen = Histories.from_lists([[]] * 300)
    calibration = Calibration.fit(scores, seen)
    whole = search_weights(scores, targets, seen, calibration)
    monkeypatch.setattr("llmrec_ray.policy.weights.MAX_SCORES", 100)
    monkeypatch.setattr("llmrec_ray.policy.weights.MAX_PAIRS", 500)
    some = search_weights(scores, targets, seen, calibration)
    assert some.weights["neural"] == pytest.approx(whole.weights["neural"], abs=0.3)
    fused, _ = fuse(scores, calibration, some.weights)
    assert some.ndcg == pytest.approx(ndcg_gains(target_ranks(fused, targets), 10).mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (Choice(choice=(3, 1)), [3, 1]),
        (IntRange(int=(1, 4)), [1, 2, 3, 4]),
        (IntRange(int=(10, 200)), [10, 15, 21, 31, 45, 65, 95, 138, 200]),
        (IntRange(int=(0, 16)), [0, 2, 4, 6, 8, 10, 12, 14, 16]),
        (Uniform(uniform=(0.0, 1.0)), [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]),
    ],
)
def test_a_range_is_tried_at_some_values_with_both_bounds(domain, values):
    assert grid(domain) == values


def test_a_policy_that_was_found_can_be_published_and_one_of_another_bundle_cannot(
    tiny_recipe, tiny_release, dataset, bundle, cold, tmp_path
):
    found = search_policy(tiny_recipe, dataset, bundle, {"retrieval.candidates.neural": Choice(choice=(15,))})
    uri = keep_policy(Workspace(str(tmp_path)), bundle, found)
    assert load_policy(uri, bundle) == found.policy
    assert keep_policy(Workspace(str(tmp_path)), bundle, found) == uri
    with pytest.raises(ArtifactMismatchError, match=f"was found for bundle {bundle.id}, but .* name that bundle with"):
        load_policy(uri, cold[1])
    with pytest.raises(ArtifactNotFoundError, match="run `llmrec tune --policy-only` and give the file that it names"):
        load_policy(f"{tmp_path}/nothing.json", bundle)
    kept = json.loads(Path(uri).read_text())
    Path(uri).write_text(json.dumps({**kept, "policy": {**kept["policy"], "weights": {"magic": 1}}}))
    with pytest.raises(CorruptArtifactError, match=r"is not a policy \(policy.weights.magic.*: run"):
        load_policy(uri, bundle)


def test_a_policy_that_weighs_a_signal_which_the_bundle_lacks_is_refused(tiny_recipe, dataset, bundle, tmp_path):
    found = search_policy(tiny_recipe, dataset, bundle, {})
    uri = keep_policy(Workspace(str(tmp_path)), bundle, found)
    kept = json.loads(Path(uri).read_text())
    kept["policy"]["weights"] = {"text": 1.0}
    Path(uri).write_text(json.dumps(kept))
    without = Bundle.open(bundle.uri)
    del without.signals["text"]
    with pytest.raises(ArtifactMismatchError, match=r"weighs text, but the bundle .* has only item_item, ncf, neural,"):
        load_policy(uri, without)


def test_a_policy_is_searched_only_on_the_dataset_and_with_the_mode_of_the_bundle(tiny_recipe, dataset, bundle, cold):
    with pytest.raises(ArtifactMismatchError, match="name the dataset it was trained on with --dataset"):
        check_bundle(tiny_recipe, cold[0], bundle)
    with pytest.raises(ConfigError, match=r"was trained with late, which a policy cannot change: set fusion\.mode"):
        check_bundle(override_recipe(tiny_recipe, ["fusion.mode=cascade"]), dataset, bundle)


def test_the_command_line_finds_a_policy_and_publishes_it(tiny_recipe, tiny_release, tmp_path, capsys):
    config = tmp_path / "board.json"
    config.write_text(tiny_recipe.model_copy(update={"workspace": str(tmp_path)}).model_dump_json())
    shared = ["--config", str(config), "--json", "--dataset", tiny_release.dataset.uri]
    named = [*shared, "--bundle", tiny_release.bundle.uri]
    searched = "tune.search={retrieval.candidates.neural: {choice: [12]}}"
    assert run(["tune", "--policy-only", *named, searched]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["overrides"] in ([], ["retrieval.candidates.neural=12"])
    assert run(["publish", *named, "--index", tiny_release.index.uri, "--policy", found["policy"]]) == 0
    release = json.loads(capsys.readouterr().out.splitlines()[-1])
    kept = json.loads(Path(found["policy"]).read_text())
    served = load_release(f"{tmp_path}/releases/{release['id']}.json")
    assert served.policy == FusionPolicy.model_validate(kept["policy"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "--policy-only", "--resume", "x"], "--policy-only trains nothing that could be resumed: leave out"),
        (["tune", "--bundle", "x"], "A campaign trains its own bundles: leave out --bundle, or search one with"),
        (["publish", "--rollback", "--policy", "x"], "--rollback takes the policy of the earlier Release: leave out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, message, capsys):
    assert run([*arguments, "--recipe", "movielens-100k"]) == 2
    assert message in capsys.readouterr().err
