from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.bundle import Bundle
from llmrec_ray.config import RequestLimits
from llmrec_ray.errors import RequestError
from llmrec_ray.recommend import Pipeline, Request, Response, retriever_order
from llmrec_ray.recommend.because import nearest_of_history
from llmrec_ray.recommend.facets import facets_of
from llmrec_ray.types import Histories

SIGNALS = {"neural", "ncf", "popularity", "item_item", "text"}


@pytest.fixture(scope="module")
def pipeline(tiny_release) -> Pipeline:
    return Pipeline.of_release(tiny_release)


@pytest.fixture(scope="module")
def bundle(tiny_release) -> Bundle:
    return Bundle.open(tiny_release.bundle.uri)


def rank(pipeline: Pipeline, requests: list[Request]):
    batch = pipeline.resolver.resolve(requests, {})
    encoded = pipeline.encoder.encode(batch.queries, batch.profiles) if batch.has_text else None
    retrieved = pipeline.retriever.retrieve(batch, encoded)
    return batch, retrieved, pipeline.reranker.rerank(batch, retrieved)


requests = st.builds(
    Request,
    user_id=st.sampled_from(["u001", "u002", "nobody"]),
    history=st.none() | st.lists(st.sampled_from(["i001", "i004", "i007", "gone"]), max_size=4),
    query=st.none() | st.just("thing painted white"),
    profile=st.none() | st.just("likes black"),
    k=st.integers(1, 12),
    exclude_seen=st.booleans(),
    explain=st.booleans(),
    weights=st.none() | st.dictionaries(st.sampled_from(sorted(SIGNALS)), st.floats(0.1, 10), min_size=1),
)


@settings(max_examples=30, deadline=None)
@given(asked=st.lists(requests, min_size=1, max_size=6))
def test_every_share_is_there_and_they_add_up_for_those_who_ask_and_only_for_them(pipeline, asked):
    for request, response in zip(asked, pipeline.recommend(asked), strict=True):
        for item in response.items:
            if not request.explain:
                assert (item.shares, item.sources, item.because) == (None, None, None)
                continue
            assert set(item.shares) >= SIGNALS
            assert sum(item.shares.values()) == pytest.approx(item.score, abs=1e-5 * max(1, abs(item.score)))
            assert item.sources
            if request.weights is not None:
                assert all(item.shares[name] == 0 for name in SIGNALS - set(request.weights))


@settings(max_examples=15, deadline=None)
@given(asked=st.lists(requests, min_size=1, max_size=4))
def test_asking_why_does_not_change_what_is_recommended(pipeline, asked):
    plain = pipeline.recommend([request.model_copy(update={"explain": False}) for request in asked])
    explained = pipeline.recommend([request.model_copy(update={"explain": True}) for request in asked])
    for one, other in zip(plain, explained, strict=True):
        assert [item.item_id for item in one.items] == [item.item_id for item in other.items]
        np.testing.assert_allclose(
            [item.score for item in one.items], [item.score for item in other.items], rtol=1e-4, atol=1e-5
        )


def test_the_reasons_are_the_nearest_items_of_the_history_by_fused_vector(pipeline, bundle):
    [response] = pipeline.recommend([Request(user_id="u001", explain=True, exclude_seen=False, k=12)])
    vectors = bundle.item_vectors[:, :-1].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    past = pipeline.resolver.history("u001", [], 100).items
    for item in response.items:
        own = bundle.items.row(item.item_id)
        expected = sorted(
            ((float(vectors[own] @ vectors[bundle.items.row(seen.item_id)]), seen) for seen in past
             if seen.item_id != item.item_id),
            key=lambda pair: -pair[0],
        )[:3]
        expected = [(cosine, seen) for cosine, seen in expected if cosine > 0]
        assert [reason.item_id for reason in item.because] == [seen.item_id for _, seen in expected]
        assert [reason.title for reason in item.because] == [seen.title for _, seen in expected]
        assert [reason.similarity for reason in item.because] == pytest.approx(
            [cosine for cosine, _ in expected], abs=1e-5
        )
    assert any(item.because for item in response.items)


def test_an_item_is_no_reason_for_itself_and_one_that_points_away_is_none_at_all():
    angles = np.deg2rad([0, 10, 60, 100, 180])
    vectors = np.stack([3 * np.cos(angles), 3 * np.sin(angles), np.ones(5)], axis=1).astype(np.float32)
    vectors[2] *= 7
    because = nearest_of_history(vectors, Histories.from_lists([[0, 1, 2, 3, 4], []]), np.array([[0, -1], [0, 1]]))
    assert because.item_rows.tolist() == [[[1, 2, -1], [-1] * 3], [[-1] * 3, [-1] * 3]]
    np.testing.assert_allclose(because.similarities[0, 0], [np.cos(angles[1]), 0.5, 0.0], atol=1e-6)


def test_without_a_history_there_are_no_reasons(pipeline):
    [response] = pipeline.recommend([Request(query="thing painted white", explain=True)])
    assert response.items and all(item.because == [] for item in response.items)


def test_explanations_are_made_and_sent_only_for_the_requests_that_ask(pipeline):
    many = [Request(user_id=f"u{user:03}", explain=user == 7) for user in range(30)]
    _, _, ranked = rank(pipeline, many)
    assert ranked.explained.tolist() == [7]
    assert {share.shape for share in ranked.shares.values()} == {(1, 10)}
    assert ranked.because.item_rows.shape == (1, 10, 3)
    _, _, plain = rank(pipeline, [request.model_copy(update={"explain": False}) for request in many])
    assert (plain.shares, plain.sources, plain.because) == ({}, {}, None)
    _, _, full = rank(pipeline, [request.model_copy(update={"explain": True}) for request in many])
    assert len(pickle.dumps(plain)) < 0.3 * len(pickle.dumps(full))


def test_scores_that_came_along_give_the_lists_that_computing_them_gives(pipeline):
    many = [Request(user_id=f"u{user:03}", exclude_seen=False) for user in range(20)]
    many += [Request(user_id="u003", query="thing painted white"), Request(query="black"), Request(user_id="nobody")]
    policy = pipeline.policy.model_copy(update={"candidates": {"neural": 10, "item_item": 10, "text": 5}})
    pipeline = pipeline.with_policy(policy)
    batch, retrieved, ranked = rank(pipeline, many)
    assert set(retrieved.candidates.scores) == {"item_item", "text"}
    bare = replace(retrieved, candidates=replace(retrieved.candidates, scores={}))
    computed = pipeline.reranker.rerank(batch, bare)
    np.testing.assert_array_equal(ranked.item_rows, computed.item_rows)
    np.testing.assert_allclose(ranked.scores, computed.scores, rtol=1e-4, atol=1e-5)


def test_what_a_retriever_left_out_is_told_on(pipeline):
    batch, retrieved, _ = rank(pipeline, [Request(user_id="u001")])
    assert pipeline.reranker.rerank(batch, replace(retrieved, degraded=("source:text",))).degraded == ("source:text",)


def test_answers_are_responses_as_plain_values(pipeline):
    asked = [Request(user_id="u001", explain=True), Request(history=["gone"]), Request(query="white", k=3)]
    batch, _, ranked = rank(pipeline, asked)
    answers = pipeline.resolver.answers(asked, batch, ranked, {"total": 1.23456}, ["events"])
    responses = pipeline.resolver.respond(asked, batch, ranked, {"total": 1.23456}, ["events"])
    for answer, response in zip(answers, responses, strict=True):
        assert Response.model_validate(answer).model_dump(exclude={"request_id"}) == response.model_dump(
            exclude={"request_id"}
        )
    assert (answers[0]["timings_ms"], answers[0]["degraded"]) == ({"total": 1.235}, ["events"])
    answers[0]["degraded"].append("encoder")
    answers[0]["timings_ms"]["total"] = 9.0
    assert (answers[1]["degraded"], answers[1]["timings_ms"]["total"]) == (["events"], 1.235)
    assert len({answer["request_id"] for answer in answers}) == 3
    assert set(answers[1]["items"][0]) == {"item_id", "title", "score"}


def test_without_a_reranker_nothing_is_claimed_about_shares_and_reasons(pipeline):
    asked = [Request(user_id="u001", explain=True)]
    batch, retrieved, _ = rank(pipeline, asked)
    [answer] = pipeline.resolver.answers(asked, batch, retriever_order(batch, retrieved), {}, ["reranker"])
    assert set(answer["items"][0]) == {"item_id", "title", "score", "sources"}
    assert answer["items"][0]["sources"]


def test_requests_without_filters_share_one_object_and_travel_as_one():
    first, second = Request(user_id="a"), Request.model_validate_json('{"user_id": "b"}')
    assert first.filters is second.filters
    assert len(pickle.dumps([first.filters] * 64)) < 64 * 4 + len(pickle.dumps([first.filters]))


def test_a_weight_above_the_limit_is_refused(tiny_release):
    pipeline = Pipeline.of_release(tiny_release, limits=RequestLimits(max_weight=2.5))
    assert pipeline.recommend([Request(user_id="u001", weights={"neural": 2.5})])
    with pytest.raises(RequestError) as caught:
        pipeline.recommend([Request(user_id="u001", weights={"text": 1.0, "neural": 2.6})])
    assert caught.value.field == "weights.neural"
    assert str(caught.value) == "The weight of neural is 2.6; at most 2.5 is taken: only proportions matter."


def test_the_proportions_of_weights_decide_and_not_their_size(pipeline):
    small, large = pipeline.recommend([
        Request(user_id="u001", weights={"text": 0.1, "item_item": 0.3}),
        Request(user_id="u001", weights={"text": 1.0, "item_item": 3.0}),
    ])
    assert [item.item_id for item in small.items] == [item.item_id for item in large.items]


def test_filters_are_offered_by_range_by_value_or_by_word():
    frame = pl.DataFrame({
        "year": [1990, None, 2001, 1995], "price": [float("nan"), 2.5, -1.0, None],
        "genres": ["Drama War", "War", None, "Drama"],
        "maker": ["New York Pens", "Best Pens", "New York Pens", None],
        "sorts": ["Ink, Dip Pens", "Ink", "Dip Pens, Ink", "Dip Pens"],
        "nothing": pl.Series([None] * 4, dtype=pl.String), "void": pl.Series([None] * 4, dtype=pl.Float64),
        "tags": [["a"], ["b", "a"], [], None], "new": [True, None, False, True],
        "born": pl.Series([date(1990, 1, 1)] * 4),
    })
    year, price, genres, maker, sorts, tags, new = facets_of(frame)
    assert [(found.value, found.items) for found in sorts.values] == [("Dip Pens", 3), ("Ink", 3)]
    assert [(found.value, found.items) for found in tags.values] == [("a", 2), ("b", 1)]
    assert [(found.value, found.items) for found in new.values] == [("true", 2), ("false", 1)]
    assert (year.name, year.minimum, year.maximum, year.values) == ("year", 1990.0, 2001.0, [])
    assert (price.minimum, price.maximum) == (-1.0, 2.5)
    assert [(found.value, found.items) for found in genres.values] == [("Drama", 2), ("War", 2)]
    assert [(found.value, found.items) for found in maker.values] == [("New York Pens", 2), ("Best Pens", 1)]
    assert (maker.minimum, maker.more) == (None, False)


def test_no_more_values_are_offered_than_a_person_can_look_through():
    [facet] = facets_of(pl.DataFrame({"maker": [f"maker{n:03}" for n in range(150)]}))
    assert (len(facet.values), facet.more) == (100, True)
