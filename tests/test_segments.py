"""Segments of targets, on paper."""

import numpy as np
import pytest

from llmrec_ray.evaluate.report import Segment
from llmrec_ray.evaluate.segments import popularity_groups, segment_figures, segment_targets
from llmrec_ray.metrics import hit_rate, ndcg

# 100 events: the first item holds 30 of them, the last five together 20.
POPULARITY = np.array([30, 20, 15, 15, 8, 5, 4, 2, 1, 0])


def test_head_and_tail_hold_a_fifth_of_the_events_each():
    groups = popularity_groups(POPULARITY).tolist()
    assert groups == ["head", "mid", "mid", "mid", "tail", "tail", "tail", "tail", "tail", "tail"]


def test_items_of_equal_popularity_are_in_one_group():
    assert set(popularity_groups(np.array([5, 5, 5, 5]))) == {"head"}
    assert popularity_groups(np.array([9, 9, 1, 1, 1, 1])).tolist() == ["head", "head", *["tail"] * 4]


def test_a_catalogue_nobody_has_touched_has_no_most_popular_items():
    assert len(popularity_groups(np.array([], np.int64))) == 0
    assert set(popularity_groups(np.array([0, 0]))) == {"tail"}


@pytest.mark.parametrize(("length", "name"), [
    (0, "0"), (1, "1–4"), (4, "1–4"), (5, "5–9"), (19, "10–19"), (49, "20–49"), (99, "50–99"), (100, "100–199"),
    (200, "200+"),
])
def test_histories_fall_into_buckets_that_include_their_upper_bound(length, name):
    targets = segment_targets(np.array([length]), np.array([0]), POPULARITY)
    assert [bucket for bucket, marks in targets["history_length"].items() if marks[0]] == [name]


def test_every_target_is_in_one_segment_of_each_kind():
    generator = np.random.default_rng(0)
    targets = segment_targets(generator.integers(0, 300, 50), generator.integers(0, 10, 50), POPULARITY)
    assert set(targets) == {"popularity", "warmth", "history_length"}
    for segments in targets.values():
        assert np.sum(list(segments.values()), axis=0).tolist() == [1] * 50


def test_an_item_without_train_events_is_cold_and_of_the_tail():
    targets = segment_targets(np.array([3, 3]), np.array([0, 9]), POPULARITY)
    assert targets["warmth"]["cold"].tolist() == [False, True]
    assert targets["popularity"]["tail"].tolist() == [False, True]


def test_figures_of_a_segment_are_those_of_its_targets_for_every_system():
    ranks = {"model": np.array([1.0, 4.0, 2.0]), "baseline:ease": np.array([9.0, 1.0, 3.0])}
    targets = segment_targets(np.array([3, 30, 3]), np.array([0, 1, 9]), POPULARITY)
    short = segment_figures(targets, ranks, 2)["history_length"]["1–4"]
    assert short.users == 2
    for system, each in ranks.items():
        chosen = each[[0, 2]]
        figures = short.systems[system]
        assert (figures["ndcg@2"], figures["hr@2"]) == (ndcg(chosen, 2), hit_rate(chosen, 2))
        assert figures["ndcg@2_low"] <= figures["ndcg@2"] <= figures["ndcg@2_high"]


def test_a_segment_without_targets_counts_0_users_and_has_no_figures():
    targets = segment_targets(np.array([3]), np.array([0]), POPULARITY)
    figures = segment_figures(targets, {"model": np.array([1.0])}, 10)
    assert figures["warmth"]["cold"] == Segment(users=0, systems={})
    assert figures["popularity"]["tail"].users == 0
