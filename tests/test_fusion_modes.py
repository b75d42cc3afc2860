"""Fusion modes: the laws of all of them, and what each must learn where the right answer is planted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from llmrec_ray.bundle import Bundle
from llmrec_ray.config import override_recipe
from llmrec_ray.data import Dataset
from llmrec_ray.errors import DataError
from llmrec_ray.index import Index, build_index
from llmrec_ray.metrics import ndcg
from llmrec_ray.model.reranker import LearnedCorrection
from llmrec_ray.policy import weight_curve
from llmrec_ray.ranking import target_ranks
from llmrec_ray.recommend import Pipeline, Request
from llmrec_ray.signals import (
    Calibration,
    CandidateLists,
    CascadeFusion,
    CorrectedFusion,
    Fusion,
    GatedFusion,
    Given,
    WeightedFusion,
    load_fusion,
)
from llmrec_ray.train.crossfit import hold_out, make_lists
from llmrec_ray.train.fusing import fit_modes
from llmrec_ray.train.listwise import fit_correction
from llmrec_ray.types import FloatArray, Histories
from tests import tiny_release as tiny_release_module

LISTS, PLACES, ITEMS, SIZE = 40, 12, 50, 8
SIGNALS = ("neural", "item_item", "text", "popularity")
RARE = np.arange(ITEMS) >= ITEMS // 2
LOG_COUNTS = np.where(RARE, np.log1p(1), np.log1p(100)).astype(np.float32)
VECTORS = np.random.default_rng(9).normal(size=(ITEMS, SIZE + 1)).astype(np.float32)


def some_lists(n_lists: int = LISTS, seed: int = 0) -> CandidateLists:
    """Random candidates and scores; some places empty, some scores missing."""
    generator = np.random.default_rng(seed)
    rows = np.stack([np.sort(generator.permutation(ITEMS)[:PLACES]) for _ in range(n_lists)])
    rows[::3, -2:] = -1
    scores = {name: generator.normal(3.0, 2.0, rows.shape).astype(np.float32) for name in SIGNALS}
    scores["text"][:, 1] = np.nan
    for raw in scores.values():
        raw[rows < 0] = np.nan
    histories = Histories.from_lists(
        [generator.integers(0, ITEMS, 1 + n % 9) for n in range(n_lists)], list(range(n_lists))
    )
    users = generator.normal(size=(n_lists, SIZE + 1)).astype(np.float32)
    return CandidateLists(
        scores, Given(histories, rows, users), generator.integers(0, PLACES - 2, n_lists),
        Calibration(means=dict.fromkeys(SIGNALS, 3.0), stds=dict.fromkeys(SIGNALS, 2.0)), LOG_COUNTS, VECTORS,
    )


def some_correction(lists: CandidateLists) -> LearnedCorrection:
    """Fitted to noise and switched on, so that it adds something."""
    features = np.random.default_rng(1).normal(size=(ITEMS, 2)).astype(np.float32)
    return replace(fit_correction(lists, features, {"neural": 1.0}, 0).correction, strength=0.5)


@pytest.fixture(scope="module")
def lists() -> CandidateLists:
    return some_lists()


@pytest.fixture(scope="module")
def fusions(lists) -> dict[str, Fusion]:
    calibration = lists.calibration
    late = WeightedFusion(calibration, {"neural": 0.7, "item_item": 0.3, "ncf": 0.0})
    return {
        "late": late,
        "feature": WeightedFusion(calibration, {"neural": 1.0}),
        "cascade": CascadeFusion(calibration, "text", 4, "neural"),
        "gated": GatedFusion.fit(lists, ("neural", "text"), calibration, LOG_COUNTS),
        "learned": CorrectedFusion(late, some_correction(lists)),
    }


def part(lists: CandidateLists, users: slice, places: slice = slice(None)) -> tuple[dict[str, FloatArray], Given]:
    scores = {name: raw[users, places] for name, raw in lists.scores.items()}
    given = lists.given
    return scores, Given(given.histories.select(users), given.item_rows[users, places], given.users[users])


def reading(fusion: Fusion, scores: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Only what the fusion says it reads."""
    return {name: scores[name] for name in fusion.signals}


MODES = ("late", "feature", "cascade", "gated", "learned")


@pytest.mark.parametrize("mode", MODES)
class TestEveryMode:
    def test_shares_add_up_to_the_total(self, fusions, lists, mode):
        fusion = fusions[mode]
        total, shares = fusion.fuse(reading(fusion, lists.scores), lists.given)
        assert total.dtype == np.float32 and total.shape == lists.given.item_rows.shape
        assert set(shares) <= {*fusion.signals, "reranker"}
        np.testing.assert_allclose(np.sum(list(shares.values()), axis=0), total, atol=1e-5)

    def test_scores_and_shares_are_finite_and_empty_places_have_none(self, fusions, lists, mode):
        total, shares = fusions[mode].fuse(lists.scores, lists.given)
        empty = ~lists.given.mask
        assert empty.any()
        for values in (total, *shares.values()):
            assert np.isfinite(values).all()
            assert not values[empty].any()

    def test_a_signal_without_an_opinion_counts_as_its_mean(self, fusions, lists, mode):
        known = {name: np.where(lists.given.mask & np.isnan(raw), 3.0, raw).astype(np.float32)
                 for name, raw in lists.scores.items()}
        np.testing.assert_array_equal(
            fusions[mode].fuse(lists.scores, lists.given)[0], fusions[mode].fuse(known, lists.given)[0]
        )

    def test_a_person_alone_gets_what_they_get_in_a_batch(self, fusions, lists, mode):
        together, shares = fusions[mode].fuse(lists.scores, lists.given)
        for user in range(5):
            alone, parts = fusions[mode].fuse(*part(lists, slice(user, user + 1)))
            np.testing.assert_allclose(alone[0], together[user], atol=1e-5)
            for name, values in parts.items():
                np.testing.assert_allclose(values[0], shares[name][user], atol=1e-5)

    def test_one_candidate_is_ranked(self, fusions, lists, mode):
        total, shares = fusions[mode].fuse(*part(lists, slice(0, 3), slice(0, 1)))
        assert total.shape == (3, 1)
        np.testing.assert_allclose(np.sum(list(shares.values()), axis=0), total, atol=1e-6)

    def test_nobody_and_nothing_are_no_error(self, fusions, lists, mode):
        assert fusions[mode].fuse(*part(lists, slice(0, 0)))[0].shape == (0, PLACES)
        assert fusions[mode].fuse(*part(lists, slice(0, 2), slice(0, 0)))[0].shape == (2, 0)

    def test_it_can_be_made_again_from_json_and_arrays(self, fusions, lists, mode):
        fusion = fusions[mode]
        again = load_fusion(
            mode, json.loads(json.dumps(fusion.settings())), {name: a.copy() for name, a in fusion.state().items()},
            lists.calibration, lambda settings, state: LearnedCorrection.from_state(settings, state, VECTORS),
        )
        assert again.signals == fusion.signals
        np.testing.assert_array_equal(
            fusion.fuse(lists.scores, lists.given)[0], again.fuse(lists.scores, lists.given)[0]
        )


def test_what_a_cascade_keeps_comes_first_in_the_order_of_its_second_signal(lists):
    total, shares = CascadeFusion(lists.calibration, "item_item", 4, "neural").fuse(lists.scores, lists.given)
    for user in range(LISTS):
        n = int(lists.given.mask[user].sum())
        by_first = np.argsort(-lists.scores["item_item"][user, :n])
        kept, left = by_first[:4], by_first[4:]
        expected = [*kept[np.argsort(-lists.scores["neural"][user, kept])], *left]
        assert np.argsort(-total[user, :n]).tolist() == expected
        assert not shares["item_item"][user, kept].any() and not shares["neural"][user, left].any()


def test_a_cascade_that_keeps_everything_ranks_by_its_second_signal_alone(lists):
    cascade = CascadeFusion(lists.calibration, "item_item", PLACES, "neural")
    alone = WeightedFusion(lists.calibration, {"neural": 1.0})
    np.testing.assert_array_equal(
        cascade.fuse(lists.scores, lists.given)[0], alone.fuse(lists.scores, lists.given)[0]
    )


def planted_lists(seed: int, n_lists: int = 400) -> CandidateLists:
    """The text knows the target among rare items, the neural signal among popular ones, and neither elsewhere."""
    lists = some_lists(n_lists, seed)
    generator = np.random.default_rng(seed + 100)
    rows, places = lists.given.item_rows, lists.places
    truth = np.zeros(rows.shape)
    truth[np.arange(n_lists), places] = 3.0
    rare = RARE[np.maximum(rows, 0)]
    noise = generator.normal(size=(4, *rows.shape))
    raw = dict(zip(SIGNALS, noise, strict=True))
    raw["text"] = np.where(rare, noise[2] + truth, 2.0 * noise[2])
    raw["neural"] = np.where(rare, 2.0 * noise[0], noise[0] + truth)
    scores = {name: np.where(rows < 0, np.nan, 3.0 + 2.0 * values).astype(np.float32) for name, values in raw.items()}
    return replace(lists, scores=scores)


def quality(fusion: Fusion, lists: CandidateLists) -> float:
    total, _ = fusion.fuse(lists.scores, lists.given)
    return ndcg(target_ranks(np.where(lists.given.mask, total, -np.inf), lists.places), 3)


def best_late(lists: CandidateLists) -> WeightedFusion:
    fusions = [WeightedFusion(lists.calibration, {"neural": w, "text": 1 - w}) for w in np.linspace(0, 1, 11)]
    return max(fusions, key=lambda fusion: quality(fusion, lists))


def test_gates_learn_to_trust_the_text_for_rare_items():
    learnt, other = planted_lists(0), planted_lists(1)
    gated = GatedFusion.fit(learnt, ("neural", "text"), learnt.calibration, LOG_COUNTS)
    weights = gated.weights(other.given)
    rare = RARE[np.maximum(other.given.item_rows, 0)]
    assert weights[rare & other.given.mask, 1].mean() > 3 * weights[rare & other.given.mask, 0].mean()
    assert weights[~rare & other.given.mask, 0].mean() > 3 * weights[~rare & other.given.mask, 1].mean()
    assert quality(gated, other) > quality(best_late(learnt), other) + 0.05


def test_gates_weigh_as_much_as_late_fusion_on_average():
    learnt = planted_lists(0)
    gated = GatedFusion.fit(learnt, ("neural", "text"), learnt.calibration, LOG_COUNTS)
    weights = gated.weights(learnt.given)[learnt.given.mask]
    assert weights.sum(axis=1).mean() == pytest.approx(1.0, abs=1e-4)
    assert (weights >= 0).all()


def test_gates_use_the_calibration_and_counts_of_the_model_that_is_served():
    learnt = planted_lists(0)
    served = Calibration(means=dict.fromkeys(SIGNALS, 0.0), stds=dict.fromkeys(SIGNALS, 1.0))
    gated = GatedFusion.fit(learnt, ("neural", "text"), served, LOG_COUNTS)
    own = GatedFusion.fit(learnt, ("neural", "text"), learnt.calibration, LOG_COUNTS)
    moved = {name: (raw - 3.0) / 2.0 for name, raw in learnt.scores.items()}
    np.testing.assert_allclose(
        gated.fuse(moved, learnt.given)[0], own.fuse(learnt.scores, learnt.given)[0], atol=1e-4
    )


def test_the_reranker_beats_late_weights_where_one_weight_cannot_suit_all_items():
    learnt, other = planted_lists(0, 800), planted_lists(1)
    late = best_late(learnt)
    features = np.stack([LOG_COUNTS - LOG_COUNTS.mean(), np.zeros(ITEMS)], axis=1).astype(np.float32)
    fitted = fit_correction(learnt, features, late.weights, 0)
    assert fitted.correction.strength > 0
    assert fitted.ndcg[fitted.correction.strength] > fitted.ndcg[0.0]
    assert quality(CorrectedFusion(late, fitted.correction), other) > quality(late, other) + 0.05


def test_a_reranker_that_has_nothing_to_learn_stays_switched_off():
    noise = some_lists(300)
    truth = np.where(np.arange(PLACES) == noise.places[:, None], 9.0, 0.0)
    scores = {**noise.scores, "neural": (noise.scores["neural"] + truth).astype(np.float32)}
    fitted = fit_correction(replace(noise, scores=scores), np.zeros((ITEMS, 2), np.float32), {"neural": 1.0}, 0)
    assert fitted.correction.strength == 0.0
    late = WeightedFusion(noise.calibration, {"neural": 1.0})
    total, shares = CorrectedFusion(late, fitted.correction).fuse(scores, noise.given)
    assert not shares["reranker"].any()
    np.testing.assert_array_equal(total, late.fuse(scores, noise.given)[0])


def test_fitting_twice_gives_the_same_fusion(lists):
    first, second = (GatedFusion.fit(lists, ("neural", "text"), lists.calibration, LOG_COUNTS) for _ in range(2))
    assert first.settings() == second.settings()
    one, other = some_correction(lists), some_correction(lists)
    for name, array in one.state().items():
        np.testing.assert_array_equal(array, other.state()[name])


def test_held_out_events_are_the_newest_and_each_comes_with_what_was_before_it():
    train = Histories.from_lists([[1, 2, 3, 4, 5], [6], [], [7, 8]], [0, 1, 2, 3])
    held_out = hold_out(train, 2, np.arange(10, 18))
    assert [history.tolist() for history in held_out.rest] == [[1, 2, 3], [6], [], [7]]
    assert held_out.targets.tolist() == [4, 5, 8]
    assert [history.tolist() for history in held_out.histories] == [[1, 2, 3], [1, 2, 3, 4], [7]]
    assert held_out.histories.user_rows.tolist() == [0, 0, 3]
    assert held_out.counted.tolist() == [True, True, True, False, False, True, True, False]
    assert held_out.histories.asked_at.tolist() == [13, 14, 17]
    assert held_out.rest.asked_at.tolist() == [13, -1, -1, 17]


def test_the_weight_curve_goes_from_the_partner_alone_to_the_neural_signal_alone():
    generator = np.random.default_rng(0)
    targets = generator.integers(0, ITEMS, 60)
    truth = 1.5 * np.eye(ITEMS)[targets]
    scores = {name: (truth + generator.normal(size=truth.shape)).astype(np.float32) for name in ("neural", "item_item")}
    seen = Histories.from_lists([[]] * 60)
    curve = weight_curve(scores, targets, seen, Calibration.fit(scores, seen))
    assert [weight for weight, _ in curve] == pytest.approx(np.arange(11) / 10)
    assert curve[0][1] == pytest.approx(ndcg(target_ranks(scores["item_item"], targets), 10))
    assert curve[-1][1] == pytest.approx(ndcg(target_ranks(scores["neural"], targets), 10))
    assert max(value for _, value in curve[1:-1]) > max(curve[0][1], curve[-1][1])


def test_every_mode_is_fitted_on_the_towers_of_a_bundle_without_reading_held_out_items(tiny_release, monkeypatch):
    bundle, dataset = Bundle.open(tiny_release.bundle.uri), Dataset.open(tiny_release.dataset.uri)
    before = bundle.item_vectors.copy()
    monkeypatch.setattr(Dataset, "histories", _train_only(Dataset.histories))
    modes = fit_modes(bundle.recipe, dataset, bundle)
    assert set(modes) == set(MODES)
    assert modes["gated"].measured["lists"] == modes["learned"].measured["lists"] > 20
    assert modes["late"].seconds == modes["cascade"].seconds == 0.0 < modes["gated"].seconds
    np.testing.assert_array_equal(bundle.item_vectors, before)
    histories, rows = dataset.histories("train").select(slice(0, 4)), np.tile(np.arange(10), (4, 1))
    given = Given(histories, rows, bundle.user_vectors(histories))
    for fitted in modes.values():
        scores = bundle.score_items(histories, rows, names=fitted.fusion.signals)
        total, shares = fitted.fusion.fuse(scores, given)
        np.testing.assert_allclose(np.sum(list(shares.values()), axis=0), total, atol=1e-5)


def some_fusion(mode: str, bundle: Bundle) -> Fusion:
    """Of a mode that a Bundle must keep, over its signals."""
    calibration, n_items = bundle.calibration, len(bundle.items)
    generator = np.random.default_rng(0)
    if mode == "cascade":
        return CascadeFusion(calibration, "text", 5, "item_item")
    if mode == "gated":
        settings = {"signals": ["neural", "text"], "weights": generator.normal(size=(2, 3)).tolist(),
                    "means": [1.0, 2.0], "stds": [1.0, 2.0], "scale": 0.7}
        return GatedFusion.from_state(settings, {"log_counts": np.ones(n_items, np.float32)}, calibration)
    features = generator.normal(size=(n_items, 2)).astype(np.float32)
    correction = LearnedCorrection.untrained(("neural", "text"), bundle.item_vectors, features, (2.0, 1.0), 4)
    torch.nn.init.normal_(correction.network.product.weight)
    torch.nn.init.normal_(correction.network.join.weight)
    return CorrectedFusion(WeightedFusion(calibration, {"item_item": 1.0}), correction)


@pytest.mark.parametrize("mode", ["cascade", "gated", "learned"])
def test_a_bundle_keeps_its_fusion_and_the_pipeline_ranks_by_it(tiny_release, tmp_path, monkeypatch, mode):
    dataset, plain = Dataset.open(tiny_release.dataset.uri), Bundle.open(tiny_release.bundle.uri)
    fusion, save = some_fusion(mode, plain), tiny_release_module.save_bundle
    monkeypatch.setattr(
        tiny_release_module, "save_bundle",
        lambda root, parts, **other: save(root, replace(parts, fusion=fusion), **other),
    )
    recipe = override_recipe(plain.recipe, [f"fusion.mode={mode}"])
    artifact = tiny_release_module.write_tiny_bundle(recipe, dataset, str(tmp_path / "bundles"))
    bundle = Bundle.open(artifact.uri)
    pipeline = Pipeline(dataset, bundle, Index.load(build_index(bundle, recipe.index, str(tmp_path / "indexes")).uri))
    [answer] = pipeline.recommend([Request(user_id="u003", k=40, explain=True)])
    rows = np.array([[dataset.items.row(item.item_id) for item in answer.items]])
    histories = dataset.histories("test").select(dataset.users.rows(["u003"]))
    given = Given(histories, rows, bundle.user_vectors(histories))
    expected, shares = fusion.fuse(bundle.score_items(histories, rows, names=fusion.signals), given)
    np.testing.assert_allclose([item.score for item in answer.items], expected[0], atol=1e-4)
    for place, item in enumerate(answer.items):
        assert sum(item.shares.values()) == pytest.approx(item.score, abs=1e-4)
        for name, share in shares.items():
            assert item.shares.get(name, 0.0) == pytest.approx(share[0, place], abs=1e-4)


def test_nothing_to_learn_from_is_said(tiny_release):
    bundle, dataset = Bundle.open(tiny_release.bundle.uri), Dataset.open(tiny_release.dataset.uri)
    first = pl.int_range(pl.len()).over("user_row") == 0
    dataset.interactions = dataset.interactions.filter(first | (pl.col("split") != "train"))
    with pytest.raises(DataError) as caught:
        fit_modes(bundle.recipe, dataset, bundle)
    assert str(caught.value) == (
        "The fusion mode learns from the newest train events of everybody, but of 0 such events none was found among "
        "the candidates that are retrieved: raise retrieval.candidates, or set fusion.mode to late."
    )


def test_held_out_events_that_no_source_proposes_are_nothing_to_learn_from(tiny_release):
    bundle = Bundle.open(tiny_release.bundle.uri)
    held_out = hold_out(Histories.from_lists([[0, 1], [1, 0]], [0, 1]), 5, np.zeros(4, np.int64))
    with pytest.raises(DataError, match="but of 2 such events none was found among the candidates"):
        make_lists(bundle.recipe, bundle, held_out, np.isin(np.arange(40), (2, 3)).astype(np.int64), ["neural"])


def _train_only(histories):
    def read(self, through):
        assert through == "train"
        return histories(self, through)

    return read
