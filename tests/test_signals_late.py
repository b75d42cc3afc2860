import numpy as np
import pytest
from pydantic import ValidationError

from llmrec_ray.metrics import ndcg
from llmrec_ray.policy import search_weights
from llmrec_ray.policy.pairs import Pairs
from llmrec_ray.policy.weights import _Search
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.signals import Calibration, FusionPolicy, fuse
from llmrec_ray.types import Histories

USERS, ITEMS = 60, 40
NOBODY_SAW = Histories.from_lists([[]] * USERS)
ONLY_NEW = "no source proposes known items as candidates: name at least one, such as neural: 100"


def scores_and_targets(seed=0):
    """Two signals that each know half of the truth, on different scales, and one that knows nothing."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, ITEMS, USERS)
    truth = np.eye(ITEMS)[targets]
    noise = generator.normal(size=(3, USERS, ITEMS))
    scores = {
        "neural": 100.0 * (1.5 * truth + noise[0]) + 1000.0,
        "item_item": 0.01 * (1.5 * truth + noise[1]),
        "popularity": noise[2],
    }
    return {name: raw.astype(np.float32) for name, raw in scores.items()}, targets


def test_a_calibrated_signal_has_mean_zero_and_deviation_one():
    scores, _ = scores_and_targets()
    calibration = Calibration.fit(scores)
    for name, raw in scores.items():
        calibrated = calibration.apply(name, raw)
        assert calibrated.dtype == np.float32
        assert calibrated.mean() == pytest.approx(0.0, abs=1e-4)
        assert calibrated.std() == pytest.approx(1.0, abs=1e-4)


def test_calibration_leaves_out_seen_items_and_missing_opinions():
    raw = np.array([[1.0, 3.0, 1e6, np.nan, -np.inf]], np.float32)
    calibration = Calibration.fit({"neural": raw}, Histories.from_lists([[2]]))
    assert calibration.means["neural"] == 2.0
    assert calibration.stds["neural"] == 1.0
    assert np.isnan(calibration.apply("neural", raw)[0, 3])


def test_a_constant_signal_and_an_unheard_one_are_calibrated_to_zero():
    scores = {"text": np.full((2, 3), 7.0, np.float32), "neural": np.full((2, 3), np.nan, np.float32)}
    calibration = Calibration.fit(scores)
    assert not calibration.apply("text", scores["text"]).any()
    assert calibration.means["neural"] == 0.0
    assert calibration.stds["neural"] == 1.0


def test_calibration_does_not_depend_on_who_else_is_in_the_request():
    scores, _ = scores_and_targets()
    calibration = Calibration.fit(scores)
    alone = calibration.apply("neural", scores["neural"][:1])
    assert np.array_equal(alone, calibration.apply("neural", scores["neural"])[:1])


def test_calibration_survives_json():
    calibration = Calibration.fit(scores_and_targets()[0])
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


def test_shares_add_up_to_the_total_and_a_missing_opinion_has_none():
    scores, _ = scores_and_targets()
    scores["item_item"][0, 0] = np.nan
    weights = {"neural": 0.5, "item_item": 0.3, "popularity": 0.0}
    total, shares = fuse(scores, Calibration.fit(scores), weights)
    assert shares.keys() == {"neural", "item_item"}
    assert shares["item_item"][0, 0] == 0.0
    assert total.dtype == np.float32
    np.testing.assert_allclose(shares["neural"] + shares["item_item"], total, atol=1e-6)


def test_fusing_candidates_gives_the_scores_of_the_catalogue():
    scores, _ = scores_and_targets()
    calibration, weights = Calibration.fit(scores), {"neural": 0.5, "item_item": 0.5}
    some = {name: raw[:, 3:7] for name, raw in scores.items()}
    np.testing.assert_array_equal(
        fuse(some, calibration, weights)[0], fuse(scores, calibration, weights)[0][:, 3:7]
    )


def test_a_weight_without_scores_is_a_bug():
    scores, _ = scores_and_targets()
    with pytest.raises(AssertionError, match=r"signals without scores: \{'text'\}\. This is a bug"):
        fuse(scores, Calibration.fit(scores), {"text": 1.0})


def test_weight_search_beats_every_single_signal_and_ignores_noise():
    scores, targets = scores_and_targets()
    calibration = Calibration.fit(scores, NOBODY_SAW)
    found = search_weights(scores, targets, NOBODY_SAW, calibration)
    alone = [ndcg(target_ranks(raw, targets), 10) for raw in scores.values()]
    assert found.ndcg > max(alone) + 0.02
    assert sum(found.weights.values()) == pytest.approx(1.0, abs=1e-5)
    assert found.weights["neural"] + found.weights["item_item"] > 0.7


def test_weight_search_reports_the_ndcg_that_its_weights_give():
    scores, targets = scores_and_targets()
    seen = Histories.from_lists([[int(t + 1) % ITEMS] for t in targets])
    calibration = Calibration.fit(scores, seen)
    found = search_weights(scores, targets, seen, calibration)
    fused, _ = fuse(scores, calibration, found.weights)
    assert ndcg(target_ranks(mask_seen(fused, seen), targets), 10) == pytest.approx(found.ndcg, abs=1e-3)


def test_weight_search_gives_the_same_weights_whatever_the_order_of_signals():
    scores, targets = scores_and_targets()
    calibration = Calibration.fit(scores)
    turned = dict(reversed(scores.items()))
    first = search_weights(scores, targets, NOBODY_SAW, calibration)
    assert search_weights(turned, targets, NOBODY_SAW, calibration) == first


def test_weight_search_leaves_out_signals_that_hardly_count():
    scores, targets = scores_and_targets()
    found = search_weights(scores, targets, NOBODY_SAW, Calibration.fit(scores))
    assert min(found.weights.values()) >= 0.05


def test_a_signal_of_a_small_weight_stays_only_where_it_brings_much():
    generator = np.random.default_rng(0)
    targets = generator.integers(0, ITEMS, USERS)
    own = np.arange(USERS), targets
    neural, nudge = generator.normal(size=(2, USERS, ITEMS)).astype(np.float32)
    neural[own] = np.sort(neural, axis=1)[:, -1] - 0.01  # all but on top
    nudge[own] = 2.0
    scores = {"neural": neural, "item_item": nudge, "popularity": 2 * neural}  # that says the same again
    search = _Search(Pairs.of(scores, targets, NOBODY_SAW, Calibration.fit(scores)))
    assert search.without_idle({"neural": 0.96, "item_item": 0.04}) == {"neural": 0.96, "item_item": 0.04}
    assert search.without_idle({"neural": 0.96, "popularity": 0.04}) == {"neural": 1.0}
    assert search.without_idle({"neural": 0.8, "popularity": 0.2}) == {"neural": 0.8, "popularity": 0.2}


def test_weight_search_works_for_a_single_user():
    scores, targets = scores_and_targets()
    one = {name: raw[:1] for name, raw in scores.items()}
    found = search_weights(one, targets[:1], Histories.from_lists([[]]), Calibration.fit(one))
    assert sum(found.weights.values()) == pytest.approx(1.0, abs=1e-5)


def test_weight_search_of_one_signal_gives_it_everything():
    scores, targets = scores_and_targets()
    one = {"neural": scores["neural"]}
    assert search_weights(one, targets, NOBODY_SAW, Calibration.fit(one)).weights == {"neural": 1.0}


def test_a_policy_survives_json():
    policy = FusionPolicy(weights={"neural": 0.8, "item_item": 0.2}, candidates={"neural": 100})
    assert FusionPolicy.model_validate_json(policy.model_dump_json()) == policy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"neural": 0.0}}, "every fusion weight is 0, so nothing would rank items"),
        ({"candidates": {}}, ONLY_NEW),
        ({"candidates": {"cold": 20}}, ONLY_NEW),
        ({"weights": {"neural": -1.0}}, "greater than or equal to 0"),
        ({"weights": {"neural": float("nan")}}, "finite number"),
        ({"weights": {"magic": 1.0}}, "'neural', 'ncf', 'item_item', 'text' or 'popularity'"),
        ({"candidates": {"neural": 0}}, "greater than 0"),
        ({"diversity": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(fields, message):
    valid = {"weights": {"neural": 1.0}, "candidates": {"neural": 100}}
    with pytest.raises(ValidationError, match=message):
        FusionPolicy.model_validate({**valid, **fields})
