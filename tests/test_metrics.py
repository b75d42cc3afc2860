import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from llmrec_ray import metrics
from llmrec_ray.metrics import paired_difference, summarise
from llmrec_ray.ranking import target_ranks

RANKS = np.array([1.0, 2.0, 3.5, 11.0])


def test_metrics_of_four_users_by_hand():
    summary = summarise(RANKS, [3, 10])
    assert summary["hr@3"] == 2 / 4
    assert summary["hr@10"] == summary["recall@10"] == 3 / 4
    assert summary["precision@10"] == pytest.approx(3 / 4 / 10)
    assert summary["f1@3"] == pytest.approx((2 * (1 / 3 * 1) / (1 / 3 + 1)) * 2 / 4)
    assert summary["mrr@3"] == pytest.approx((1 + 1 / 2) / 4)
    assert summary["mrr@10"] == pytest.approx((1 + 1 / 2 + 1 / 3.5) / 4)
    assert summary["ndcg@3"] == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert summary["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(4.5)) / 4)
    assert "auc" not in summary


def test_every_metric_is_one_for_a_perfect_list_of_one():
    assert set(summarise(np.ones(3), [1], np.full(3, 9)).values()) == {1.0}


def test_a_rank_beyond_k_earns_nothing():
    assert not any(summarise(np.array([10.5]), [10]).values())


def test_auc_agrees_with_scikit_learn_ties_included():
    scores = np.random.default_rng(0).integers(0, 8, (50, 30)).astype(np.float32)
    targets = np.random.default_rng(1).integers(0, 30, 50)
    expected = np.mean([
        roc_auc_score(np.arange(30) == target, user_scores)
        for user_scores, target in zip(scores, targets, strict=True)
    ])
    assert metrics.auc(target_ranks(scores, targets), np.full(50, 30)) == pytest.approx(expected)


def test_ndcg_agrees_with_scikit_learn():
    scores = np.random.default_rng(0).normal(size=(50, 30)).astype(np.float32)
    targets = np.random.default_rng(1).integers(0, 30, 50)
    expected = ndcg_score(np.eye(30)[targets], scores, k=10)
    assert metrics.ndcg(target_ranks(scores, targets), 10) == pytest.approx(expected)


def test_coverage_counts_distinct_items_and_no_empty_places():
    assert metrics.coverage(np.array([[0, 1], [1, -1]]), 8) == 2 / 8


def test_a_paired_difference_is_sharper_than_the_spread_of_its_parts():
    theirs = np.random.default_rng(0).normal(size=400)
    ours = theirs + 0.1 + 0.01 * np.random.default_rng(1).normal(size=400)
    difference = paired_difference(ours, theirs)
    assert 0.097 < difference["low"] < difference["mean"] < difference["high"] < 0.103
    assert difference["high"] - difference["mean"] == pytest.approx(1.96 * np.std(ours - theirs, ddof=1) / 20)


def test_one_user_has_no_interval():
    assert paired_difference(np.array([0.5]), np.array([0.2])) == {"mean": 0.3, "low": 0.3, "high": 0.3}
