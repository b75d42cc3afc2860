import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmrec_ray.ranking import list_ranks, mask_seen, take_items, target_ranks, top_k
from llmrec_ray.types import Histories

INF = np.inf
NAN = np.nan


def array(*rows):
    return np.array(rows, np.float32)


few_values = hnp.arrays(np.float32, (3, 7), elements=st.sampled_from([-INF, NAN, -1.0, 0.0, 0.5, 2.0]))


def test_seen_items_become_minus_infinity_and_the_input_is_left_alone():
    scores = array([1, 2, 3], [4, 5, 6])
    masked = mask_seen(scores, Histories.from_lists([[0, 2], []]))
    assert masked.tolist() == [[-INF, 2, -INF], [4, 5, 6]]
    assert scores[0, 0] == 1


def test_top_k_gives_ties_to_the_lower_row():
    rows, scores = top_k(array([1, 3, 1, 3, 0]), 4)
    assert rows.tolist() == [[1, 3, 0, 2]]
    assert scores.tolist() == [[3, 3, 1, 1]]


def test_top_k_lists_neither_masked_items_nor_items_without_an_opinion():
    rows, scores = top_k(array([-INF, NAN, 5]), 3)
    assert rows.tolist() == [[2, -1, -1]]
    assert scores.tolist() == [[5, -INF, -INF]]


@pytest.mark.parametrize("k", [3, 50])
def test_top_k_is_no_wider_than_the_catalogue(k):
    assert top_k(array([1, 2, 3]), k)[0].tolist() == [[2, 1, 0]]


def test_top_k_of_nobody_and_of_nothing_is_empty():
    assert top_k(np.empty((0, 5), np.float32), 3)[0].shape == (0, 3)
    assert top_k(array([1, 2]), 0)[0].shape == (1, 0)


@given(few_values, st.integers(1, 9))
def test_top_k_agrees_with_a_full_stable_sort(scores, k):
    rows, best = top_k(scores, k)
    for user, user_scores in enumerate(scores):
        listed = [row for row in np.argsort(-np.nan_to_num(user_scores, nan=-INF, neginf=-INF), kind="stable")
                  if user_scores[row] > -INF][:k]
        assert rows[user][rows[user] >= 0].tolist() == listed
        assert best[user][: len(listed)].tolist() == user_scores[listed].tolist()


def test_a_rank_is_one_plus_the_higher_plus_half_the_ties():
    scores = array([5, 3, 3, 3, 1])
    assert target_ranks(np.tile(scores, (3, 1)), np.array([0, 1, 4])).tolist() == [1, 3, 5]


def test_masked_items_never_tie_and_missing_opinions_tie_last():
    assert target_ranks(array([-INF, -INF, 0, 1]), np.array([2])).tolist() == [2]
    assert target_ranks(array([NAN, NAN, NAN, -INF, 7]), np.array([0])).tolist() == [3]
    assert target_ranks(array([-INF, 0, 1]), np.array([0])).tolist() == [3]


@given(few_values)
def test_the_ranks_of_all_items_that_may_be_shown_add_up(scores):
    shown = scores != -INF
    for user in range(len(scores)):
        targets = np.flatnonzero(shown[user])
        ranks = target_ranks(np.tile(scores[user], (len(targets), 1)), targets)
        assert ranks.sum() == pytest.approx(len(targets) * (len(targets) + 1) / 2)


def test_a_listed_target_has_its_place_and_others_share_the_places_after_the_list():
    lists = np.array([[4, 2, -1], [4, 2, -1], [-1, -1, -1]])
    ranks = list_ranks(lists, np.array([2, 9, 9]), np.array([10, 10, 5]))
    assert ranks.tolist() == [2, (3 + 10) / 2, (1 + 5) / 2]


def test_a_full_list_gives_the_same_ranks_as_its_scores():
    scores = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    targets = np.arange(20) % 12
    lists, _ = top_k(scores, 12)
    assert list_ranks(lists, targets, np.full(20, 12)).tolist() == target_ranks(scores, targets).tolist()


def test_taking_items_gives_nan_where_there_is_none():
    taken = take_items(array([1, 2, 3]), np.array([[2, -1, 0]]))
    assert taken[0, [0, 2]].tolist() == [3, 1]
    assert np.isnan(taken[0, 1])
    assert taken.dtype == np.float32
