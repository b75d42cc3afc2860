"""Metrics on paper, and beside scikit-learn, scipy and brute force on random data."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import auc as area_under
from sklearn.metrics import (
    f1_score,
    label_ranking_average_precision_score,
    ndcg_score,
    precision_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)
from sklearn.metrics.pairwise import cosine_similarity

from llmrec_ray import metrics
from llmrec_ray.metrics import ListSums, bootstrap, gini, paired_bootstrap, self_information, summarise
from llmrec_ray.ranking import target_ranks, top_k

RANKS = np.array([1.0, 2.0, 3.5, 11.0])
USERS, ITEMS, K = 60, 30, 10


@pytest.fixture(scope="module")
def scores():
    return np.random.default_rng(0).normal(size=(USERS, ITEMS)).astype(np.float32)


@pytest.fixture(scope="module")
def targets():
    return np.random.default_rng(1).integers(0, ITEMS, USERS)


@pytest.fixture(scope="module")
def summary(scores, targets):
    return summarise(target_ranks(scores, targets), [K, ITEMS], np.full(USERS, ITEMS))


@pytest.fixture(scope="module")
def listed(scores):
    """[USERS, ITEMS] 1 where an item is among a user's first K."""
    marks = np.zeros((USERS, ITEMS), int)
    np.put_along_axis(marks, top_k(scores, K)[0], 1, axis=1)
    return marks


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


def test_a_k_above_the_catalogue_finds_every_target():
    summary = summarise(np.array([1.0, 3.0]), [1000], np.full(2, 3))
    assert summary["hr@1000"] == summary["recall@1000"] == 1.0
    assert summary["ndcg@1000"] == pytest.approx((1 + 1 / 2) / 2)


def test_scores_that_all_tie_are_worth_the_middle_of_the_catalogue():
    ranks = target_ranks(np.zeros((4, 9), np.float32), np.array([0, 3, 5, 8]))
    assert ranks.tolist() == [5.0] * 4
    summary = summarise(ranks, [4, 5], np.full(4, 9))
    assert (summary["hr@4"], summary["hr@5"], summary["auc"]) == (0.0, 1.0, 0.5)


def test_auc_agrees_with_scikit_learn_ties_included(targets):
    tied = np.random.default_rng(2).integers(0, 8, (USERS, ITEMS)).astype(np.float32)
    expected = np.mean([
        roc_auc_score(np.arange(ITEMS) == target, user_scores)
        for user_scores, target in zip(tied, targets, strict=True)
    ])
    assert metrics.auc(target_ranks(tied, targets), np.full(USERS, ITEMS)) == pytest.approx(expected)


def test_ndcg_agrees_with_scikit_learn(scores, targets, summary):
    assert summary[f"ndcg@{K}"] == pytest.approx(ndcg_score(np.eye(ITEMS)[targets], scores, k=K))


def test_mrr_agrees_with_scikit_learns_average_precision(scores, targets, summary):
    expected = label_ranking_average_precision_score(np.eye(ITEMS)[targets], scores)
    assert summary[f"mrr@{ITEMS}"] == pytest.approx(expected)


def test_the_hit_rate_agrees_with_scikit_learns_top_k_accuracy(scores, targets, summary):
    expected = top_k_accuracy_score(targets, scores, k=K, labels=np.arange(ITEMS))
    assert summary[f"hr@{K}"] == pytest.approx(expected)


@pytest.mark.parametrize(("name", "score"), [
    ("recall", recall_score), ("precision", precision_score), ("f1", f1_score),
])
def test_recall_precision_and_f1_agree_with_scikit_learn(name, score, listed, targets, summary):
    expected = score(np.eye(ITEMS, dtype=int)[targets], listed, average="samples", zero_division=0)
    assert summary[f"{name}@{K}"] == pytest.approx(expected)


def test_figures_of_three_lists_by_hand():
    """Four items, three users; item 3 has no vector, item 0 and 1 are alike, 2 stands at a right angle to both."""
    vectors = np.array([[2, 0], [1, 0], [0, 5], [0, 0]], np.float32)
    sums = ListSums.of(np.array([[0, 1], [0, 2], [0, -1]]), 4, vectors)
    assert sums.exposure.tolist() == [3, 1, 1, 0]
    figures = sums.figures(2, np.array([8, 4, 1, 0]), 8)
    assert figures["coverage@2"] == 3 / 4
    assert figures["gini@2"] == pytest.approx((-3 * 0 - 1 * 1 + 1 * 1 + 3 * 3) / (4 * 5))
    assert figures["novelty@2"] == pytest.approx((3 * 0 + 1 * 1 + 1 * 3) / 5)
    assert figures["diversity@2"] == pytest.approx(1 - (1.0 + 0.0) / 2)


def test_lists_without_vectors_have_no_diversity():
    figures = ListSums.of(np.array([[0, 1]]), 4).figures(2, np.ones(4, np.int64), 8)
    assert set(figures) == {"coverage@2", "gini@2", "novelty@2"}


def test_empty_lists_cover_nothing_and_tell_nothing_new():
    figures = ListSums.of(np.full((3, 2), -1), 4, np.ones((4, 2), np.float32)).figures(2, np.ones(4, np.int64), 8)
    assert figures == {"coverage@2": 0.0, "gini@2": 0.0, "novelty@2": 0.0}


def test_an_item_nobody_has_counts_as_if_one_user_had_it():
    assert self_information(np.array([0, 1, 4, 8]), 8).tolist() == [3.0, 3.0, 1.0, 0.0]


@given(st.integers(1, 20))
def test_sums_of_batches_are_the_sums_of_all_lists(size):
    generator = np.random.default_rng(size)
    lists = np.stack([generator.permutation(ITEMS)[:5] for _ in range(20)])
    lists[generator.random(lists.shape) < 0.2] = -1
    vectors = generator.normal(size=(ITEMS, 4)).astype(np.float32)
    whole = ListSums.of(lists, ITEMS, vectors)
    batches = [ListSums.of(lists[start : start + size], ITEMS, vectors) for start in range(0, 20, size)]
    added = sum(batches[1:], batches[0])
    assert added.exposure.tolist() == whole.exposure.tolist()
    assert added.lists == whole.lists
    assert added.similarity == pytest.approx(whole.similarity)


def test_diversity_agrees_with_scikit_learns_cosine_of_every_pair(listed):
    vectors = np.random.default_rng(3).normal(size=(ITEMS, 8)).astype(np.float32)
    lists = np.stack([np.flatnonzero(row) for row in listed])
    above = np.triu_indices(K, 1)
    expected = np.mean([1 - cosine_similarity(vectors[rows])[above].mean() for rows in lists])
    assert ListSums.of(lists, ITEMS, vectors).diversity == pytest.approx(expected, rel=1e-5)


def test_gini_agrees_with_the_area_above_the_lorenz_curve_and_with_the_mean_difference(listed):
    counts = listed.sum(axis=0)
    lorenz = np.concatenate([[0], np.cumsum(np.sort(counts)) / counts.sum()])
    assert gini(counts) == pytest.approx(1 - 2 * area_under(np.linspace(0, 1, len(lorenz)), lorenz))
    spread = np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean())
    assert gini(counts) == pytest.approx(spread)


@pytest.mark.parametrize(("counts", "expected"), [([3, 3, 3], 0.0), ([0, 0, 9], 2 / 3), ([0, 0], 0.0)])
def test_gini_of_equal_lonely_and_no_exposure(counts, expected):
    assert gini(np.array(counts)) == pytest.approx(expected)


def test_novelty_agrees_with_a_mean_over_places(listed):
    popularity = np.random.default_rng(4).integers(0, 50, ITEMS)
    lists = np.stack([np.flatnonzero(row) for row in listed])
    expected = np.mean([-math.log2(max(popularity[row], 1) / 50) for rows in lists for row in rows])
    assert ListSums.of(lists, ITEMS).novelty(popularity, 50) == pytest.approx(expected)


def test_the_bootstrap_agrees_with_scipys_percentile_interval():
    values = np.random.default_rng(0).exponential(size=300)
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    found = bootstrap(values, resamples=4000)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_the_bootstrap_does_not_depend_on_the_order_of_users_and_repeats_itself():
    values = np.random.default_rng(0).normal(size=100)
    first, shuffled = bootstrap(values), bootstrap(np.random.default_rng(5).permutation(values))
    assert (first.low, first.high) == (shuffled.low, shuffled.high)
    assert bootstrap(values, seed=1) != first


def test_resampling_in_chunks_gives_intervals_of_the_same_width(monkeypatch):
    values = np.random.default_rng(0).normal(size=200)
    whole = bootstrap(values)
    monkeypatch.setattr(metrics, "MAX_DRAWS_AT_ONCE", 1000)
    chunked = bootstrap(values)
    assert (chunked.low, chunked.high) == pytest.approx((whole.low, whole.high), abs=0.02)


def test_users_with_several_values_are_drawn_with_all_of_them():
    """Ten copies of each user's value say no more about users than one copy does."""
    once = np.random.default_rng(0).normal(size=50)
    alone, copied = bootstrap(once), bootstrap(np.repeat(once, 10), np.repeat(np.arange(50), 10))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    naive = bootstrap(np.repeat(once, 10))
    assert naive.high - naive.low < 0.5 * (copied.high - copied.low)


def test_the_mean_over_users_with_several_values_is_the_mean_over_values():
    found = bootstrap(np.array([1.0, 0.0, 0.0, 1.0]), np.array([7, 7, 7, 9]))
    assert found.mean == 0.5


def test_a_paired_interval_is_sharper_than_the_spread_of_its_parts():
    theirs = np.random.default_rng(0).normal(size=400)
    ours = theirs + 0.1 + 0.01 * np.random.default_rng(1).normal(size=400)
    difference = paired_bootstrap(ours, theirs)
    assert 0.097 < difference.low < difference.mean < difference.high < 0.103
    normal = 1.96 * np.std(ours - theirs, ddof=1) / 20
    assert difference.high - difference.mean == pytest.approx(normal, rel=0.1)


def test_several_runs_are_averaged_per_user_before_users_are_drawn():
    runs = np.random.default_rng(0).normal(size=(3, 80))
    theirs = np.random.default_rng(1).normal(size=80)
    assert paired_bootstrap(runs, theirs) == paired_bootstrap(runs.mean(axis=0), theirs)
    assert paired_bootstrap(theirs, runs).mean == pytest.approx(-paired_bootstrap(runs, theirs).mean)


def test_nearly_all_intervals_hold_the_truth():
    generator = np.random.default_rng(0)
    held = [
        found.low <= 0.3 <= found.high
        for found in (bootstrap((generator.random(200) < 0.3).astype(float), seed=i) for i in range(200))
    ]
    assert 0.91 <= np.mean(held) <= 0.99


def test_one_user_has_no_interval():
    difference = paired_bootstrap(np.array([0.5]), np.array([0.2]))
    assert difference == metrics.Difference(0.3, 0.3, 0.3)
