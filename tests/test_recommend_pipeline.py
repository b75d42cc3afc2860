from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmrec_ray.bundle import Bundle
from llmrec_ray.config import IndexConfig, RequestLimits
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ArtifactMismatchError, RequestError
from llmrec_ray.index import Index, build_index
from llmrec_ray.recommend import Encoder, Filters, Pipeline, Request, Response, Retriever, Snapshot
from llmrec_ray.release import ArtifactRef
from llmrec_ray.signals import FusionPolicy

N_ITEMS = 40


@pytest.fixture(scope="module")
def parts(tiny_release):
    return (
        Dataset.open(tiny_release.dataset.uri),
        Bundle.open(tiny_release.bundle.uri),
        Index.load(tiny_release.index.uri),
    )


@pytest.fixture(scope="module")
def pipeline(tiny_release) -> Pipeline:
    return Pipeline.of_release(tiny_release)


def ask(pipeline: Pipeline, **fields) -> Response:
    [response] = pipeline.recommend([Request(**fields)])
    return response


def ids(response: Response) -> list[str]:
    return [item.item_id for item in response.items]


def of_colour(colour: int) -> set[str]:
    return {f"i{item:03}" for item in range(colour, N_ITEMS, 2)}


@pytest.fixture(scope="module")
def asking() -> dict[str, Request]:
    """Every combination of what a request may say."""
    given_fields = {
        "user_id": {"user_id": "u001"}, "stranger": {"user_id": "nobody"}, "history": {"history": ["i002", "i004"]},
        "query": {"query": "thing painted white"}, "profile": {"profile": "likes black"},
    }
    requests = {}
    for mask in range(1, 2 ** len(given_fields)):
        names = [name for bit, name in enumerate(given_fields) if mask >> bit & 1]
        fields = {key: value for name in names for key, value in given_fields[name].items()}
        requests["+".join(names)] = Request(**fields, k=7, explain=True, exclude_seen=False)
    return requests


def test_any_combination_of_user_history_query_and_profile_gets_k_items_in_order(pipeline, asking):
    for name, response in zip(asking, pipeline.recommend(list(asking.values())), strict=True):
        scores = [item.score for item in response.items]
        assert len(set(ids(response))) == 7, name
        assert scores == sorted(scores, reverse=True), name


def test_the_shares_of_the_signals_add_up_to_the_score(pipeline, asking):
    for response in pipeline.recommend(list(asking.values())):
        for item in response.items:
            assert sum(item.shares.values()) == pytest.approx(item.score, abs=1e-5)
            assert item.sources


def test_a_batch_gives_each_request_what_it_would_get_alone(pipeline, asking):
    together = pipeline.recommend(list(asking.values()))
    for request, response in zip(asking.values(), together, strict=True):
        [alone] = pipeline.recommend([request])
        assert [item.item_id for item in alone.items] == ids(response)
        np.testing.assert_allclose(
            [item.score for item in alone.items], [item.score for item in response.items], rtol=1e-3, atol=1e-4
        )


def test_no_requests_get_no_responses(pipeline):
    assert pipeline.recommend([]) == []


def test_shares_and_sources_are_given_only_when_asked_for(pipeline):
    [item] = ask(pipeline, user_id="u001", exclude_seen=False, k=1).items
    assert item.shares is None
    assert item.sources is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    k=st.integers(1, 60),
    history=st.lists(st.integers(0, N_ITEMS - 1), max_size=12),
    allow=st.none() | st.sets(st.integers(0, N_ITEMS + 5), max_size=20),
    deny=st.sets(st.integers(0, N_ITEMS - 1), max_size=20),
    colour=st.none() | st.sampled_from(["black", "white", "green"]),
    exclude_seen=st.booleans(),
)
def test_k_items_come_back_whenever_k_items_pass_the_filters(
    pipeline, k, history, allow, deny, colour, exclude_seen
):
    passing = set(range(N_ITEMS)) - deny
    if allow is not None:
        passing &= allow
    if colour is not None:
        passing = {item for item in passing if ["black", "white"][item % 2] == colour}
    if exclude_seen:
        passing -= set(history)
    response = ask(
        pipeline,
        history=[f"i{item:03}" for item in history],
        k=k,
        exclude_seen=exclude_seen,
        filters=Filters(
            attributes={} if colour is None else {"colour": colour},
            allow=None if allow is None else [f"i{item:03}" for item in allow],
            deny=[f"i{item:03}" for item in deny],
        ),
    )
    assert len(response.items) == min(k, len(passing))
    assert set(ids(response)) <= {f"i{item:03}" for item in passing}


def test_seen_items_are_left_out_unless_they_are_wanted(pipeline):
    black = of_colour(0)
    assert set(ids(ask(pipeline, user_id="u000", k=40))) == of_colour(1)
    assert black <= set(ids(ask(pipeline, user_id="u000", k=40, exclude_seen=False)))


def test_people_get_items_of_their_colour(pipeline):
    for user, colour in (("u000", 0), ("u001", 1)):
        liked = ids(ask(pipeline, user_id=user, k=10, exclude_seen=False))
        assert set(liked) <= of_colour(colour)


def test_a_history_of_one_session_steers_an_anonymous_visitor(pipeline):
    response = ask(pipeline, history=["i001", "i003", "i005"], k=5)
    assert set(ids(response)) <= of_colour(1)
    assert (response.user, response.cold) == ("anonymous", False)


def test_an_unknown_user_is_no_error_but_cold_and_says_so(pipeline, parts):
    response = ask(pipeline, user_id="nobody", k=3, explain=True)
    assert (response.user, response.cold) == ("unknown", True)
    assert response.notes == [
        "user_id 'nobody' is not known to this release.",
        "There is nothing to go by, so the most popular items are shown.",
    ]
    dataset, _, _ = parts
    counts = np.bincount(dataset.histories("train").item_rows, minlength=N_ITEMS)
    shown = [counts[dataset.items.row(item_id)] for item_id in ids(response)]
    assert shown == sorted(counts.tolist(), reverse=True)[:3]
    assert all(item.shares["popularity"] == pytest.approx(item.score) for item in response.items)


def test_a_known_user_is_neither_unknown_nor_cold(pipeline):
    response = ask(pipeline, user_id="u001", exclude_seen=False)
    assert (response.user, response.cold, response.notes) == ("known", False, [])


def test_events_after_the_dataset_make_a_stranger_warm_and_are_not_shown_again(pipeline):
    request = Request(user_id="nobody", k=5)
    [cold] = pipeline.recommend([request])
    [warm] = pipeline.recommend([request], {"nobody": ["i001", "i003"], "somebody else": ["i000"]})
    assert (cold.cold, warm.cold, warm.user) == (True, False, "unknown")
    assert set(ids(warm)) <= of_colour(1) - {"i001", "i003"}


def test_a_query_ranks_by_the_text_signal(pipeline):
    response = ask(pipeline, query="thing 7, painted white", k=5, explain=True)
    assert (response.user, response.cold) == ("anonymous", False)
    assert any(item.shares["text"] != 0 for item in response.items)
    assert all(item.shares["item_item"] == 0 for item in response.items)
    assert "encode" in response.timings_ms


def test_only_a_request_with_a_text_pays_for_the_encoder(pipeline):
    assert set(ask(pipeline, user_id="u001").timings_ms) == {"retrieve", "rerank", "total"}
    assert set(ask(pipeline, user_id="u001", query="white").timings_ms) == {"encode", "retrieve", "rerank", "total"}


def test_unknown_items_of_a_history_are_ignored_and_named(pipeline):
    response = ask(pipeline, history=["gone", "i001", "gone"], k=3)
    assert response.ignored_items == ["gone"]
    assert ids(response) == ids(ask(pipeline, history=["i001"], k=3))


def test_weights_of_a_request_replace_those_of_the_policy(pipeline):
    response = ask(pipeline, user_id="u001", exclude_seen=False, explain=True, weights={"popularity": 2.0})
    for item in response.items:
        assert item.shares["popularity"] == pytest.approx(item.score)
        assert item.shares["item_item"] == 0


def test_weights_for_signals_that_the_release_lacks_are_refused(parts, tiny_release):
    dataset, _, index = parts
    bundle = Bundle.open(tiny_release.bundle.uri)
    del bundle.signals["item_item"]
    pipeline = Pipeline(dataset, bundle, index)
    for weights in ({"item_item": 1.0}, {"item_item": 1.0, "neural": 1.0}):
        with pytest.raises(RequestError) as caught:
            ask(pipeline, user_id="u001", weights=weights)
        assert caught.value.field == "weights"
        assert str(caught.value) == (
            "Release unpublished has no signal item_item; it has ncf, neural, popularity, text: weigh only these."
        )


@pytest.mark.parametrize("weight", [-0.1, 1e300, float("inf"), float("nan")])
def test_a_weight_that_would_give_no_finite_score_is_refused(weight):
    with pytest.raises(ValidationError, match=r"should be (greater|less) than or equal to"):
        Request(user_id="u001", weights={"neural": weight})


def test_the_signals_of_a_release_are_known_without_loading_it(parts, tiny_release):
    assert Snapshot.open(tiny_release).signal_names == sorted(parts[1].signal_names)


def test_an_item_that_comes_again_counts_once_where_it_is_newest(parts, pipeline):
    dataset = parts[0]
    twice = pipeline.resolver.resolve([Request(history=["i001", "i002", "i003", "i001"])], {})
    assert dataset.items.ids(twice.histories[0]) == ["i002", "i003", "i001"]


def test_events_that_have_been_ingested_since_do_not_count_twice(parts, pipeline):
    dataset = parts[0]
    ingested = dataset.items.ids(dataset.histories("test")[1])
    batch = pipeline.resolver.resolve([Request(user_id="u001")], {"u001": ingested})
    assert dataset.items.ids(batch.histories[0]) == ingested


def test_an_empty_result_after_filtering_is_an_empty_list_with_a_note(pipeline):
    response = ask(pipeline, user_id="u001", filters=Filters(attributes={"colour": "green"}))
    assert (response.items, response.notes) == ([], ["No unseen item passes the filters."])
    response = ask(pipeline, history=["i001"], filters=Filters(allow=["i002"]), k=4, exclude_seen=False)
    assert response.notes == ["Fewer than 4 items pass the filters."]


def test_a_filter_matches_a_whole_value_one_of_its_words_or_a_number(parts, tiny_release):
    _, bundle, index = parts
    genres = ["Action Comedy", "Comedy", "Space Opera", None]
    attributes = pl.DataFrame({
        "genres": [genres[row % 4] for row in range(N_ITEMS)],
        "year": [1990.0 + row % 3 for row in range(N_ITEMS)],
    })
    retriever = Retriever(bundle, index, attributes, bundle.policy, "r")

    def passing(**attributes) -> set[int]:
        mask = retriever._filter.passing(Filters(attributes=attributes))
        return set(np.flatnonzero(mask).tolist())

    rows = range(N_ITEMS)
    assert passing(genres="Comedy") == {row for row in rows if row % 4 in (0, 1)}
    assert passing(genres="Space Opera") == {row for row in rows if row % 4 == 2}
    assert passing(genres=["Action", "Opera"]) == {row for row in rows if row % 4 in (0, 2)}
    assert passing(genres=[]) == set()
    for year in (1991, 1991.0, "1991"):
        assert passing(year=year) == {row for row in rows if row % 3 == 1}
    assert passing(genres="Comedy", year=1990) == {row for row in rows if row % 4 in (0, 1) and row % 3 == 0}


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_both_kinds_of_index_serve_the_same_lists(parts, pipeline, asking, tmp_path, kind):
    dataset, bundle, _ = parts
    index = Index.load(build_index(bundle, IndexConfig(kind=kind), str(tmp_path)).uri)
    other = Pipeline(dataset, bundle, index)
    for one, two in zip(pipeline.recommend([*asking.values()]), other.recommend([*asking.values()]), strict=True):
        assert ids(one) == ids(two)


def test_rows_for_evaluation_are_the_items_a_request_gets(parts, pipeline):
    dataset, _, _ = parts
    histories = dataset.histories("test")
    rows = pipeline.recommend_rows(histories, 25)
    assert rows.shape == (len(dataset.users), 25)
    for user in (0, 1, 17):
        expected = ids(ask(pipeline, user_id=dataset.users.id(user), k=25))
        assert dataset.items.ids(rows[user][rows[user] >= 0]) == expected
        assert not set(rows[user].tolist()) & set(histories[user].tolist())


def test_rows_for_evaluation_are_padded_when_the_catalogue_is_smaller_than_the_list(parts, pipeline):
    dataset, _, _ = parts
    rows = pipeline.recommend_rows(dataset.histories("train").select(slice(0, 2)), 60)
    assert rows.shape == (2, 60)
    assert (rows[:, N_ITEMS:] == -1).all()


def test_a_policy_changes_which_sources_propose(parts):
    dataset, bundle, index = parts
    policy = FusionPolicy(weights={"item_item": 1.0}, candidates={"item_item": 5})
    response = ask(Pipeline(dataset, bundle, index, policy=policy), user_id="u001", exclude_seen=False, explain=True)
    assert {source for item in response.items for source in item.sources} == {"item_item"}


def test_similar_items_are_like_the_item_and_not_the_item_itself(pipeline):
    similar = pipeline.similar("i001", 39)
    scores = [item.score for item in similar]
    assert {item.item_id for item in similar} == of_colour(0) | of_colour(1) - {"i001"}
    assert scores == sorted(scores, reverse=True)
    assert -1.0001 <= min(scores) <= max(scores) <= 1.0001


WRONG = [
    ({}, "user_id", "The request says nothing about who asks or what for: give at least one of user_id, history, "
     "query and profile."),
    ({"user_id": "u001", "k": 51}, "k", "k is 51; it must be between 1 and 50."),
    ({"history": ["i001"] * 9}, "history", "history has 9 items; at most 8 are read: send the newest."),
    ({"query": " \n "}, "query", "query is empty: send some text, or leave the field out."),
    ({"profile": "x" * 31}, "profile", "profile has 31 characters; at most 30 are read: shorten it."),
    ({"user_id": "u001", "filters": {"attributes": {"size": 3}}}, "filters.attributes.size",
     "There is no item attribute 'size' to filter by; there are: colour."),
    ({"user_id": "u001", "weights": {"neural": 0.0}}, "weights",
     "Every weight is 0, so nothing would rank the items: give one signal a weight."),
]


@pytest.mark.parametrize(("fields", "field", "message"), WRONG)
def test_a_wrong_request_is_refused_with_its_field(parts, fields, field, message):
    pipeline = Pipeline(*parts, limits=RequestLimits(max_k=50, max_history=8, max_text_chars=30))
    with pytest.raises(RequestError) as caught:
        pipeline.recommend([Request.model_validate(fields)])
    assert (str(caught.value), caught.value.field) == (message, field)


def test_an_unknown_item_has_no_similar_items(pipeline, tiny_release):
    with pytest.raises(RequestError) as caught:
        pipeline.similar("gone")
    assert str(caught.value) == f"There is no item 'gone' in release {tiny_release.id}."
    assert (caught.value.field, caught.value.code) == ("item_id", "not_found")


def test_a_text_for_a_release_without_texts_is_refused(parts, monkeypatch):
    dataset, bundle, index = parts
    monkeypatch.setattr(bundle.texts, "center", None)
    pipeline = Pipeline(dataset, bundle, index, release_id="r1")
    with pytest.raises(RequestError) as caught:
        ask(pipeline, query="white")
    assert str(caught.value) == "Release r1 has no text encoder, so query cannot be used: leave it out."
    assert caught.value.code == "not_supported"


def test_an_index_of_another_bundle_is_refused(parts, monkeypatch):
    dataset, bundle, index = parts
    monkeypatch.setattr(index, "bundle_id", "0123")
    with pytest.raises(ArtifactMismatchError) as caught:
        Pipeline(dataset, bundle, index)
    assert str(caught.value) == (
        f"The index {index.uri} was built from bundle 0123, not {bundle.id}: run `llmrec index` on this Bundle."
    )


def test_rows_of_another_release_are_refused_by_every_stage(parts, pipeline):
    dataset, bundle, index = parts
    other = Pipeline(dataset, bundle, index, release_id="next")
    batch = other.resolver.resolve([Request(user_id="u001")], {})
    with pytest.raises(ArtifactMismatchError, match=r"for release next, but this stage holds .*send the request"):
        pipeline.retriever.retrieve(batch, None)
    with pytest.raises(ArtifactMismatchError, match="made for release next"):
        pipeline.reranker.rerank(batch, other.retriever.retrieve(batch, None))


def test_a_release_whose_artifact_was_replaced_is_not_loaded(tiny_release):
    changed = tiny_release.model_copy(update={"bundle": ArtifactRef(uri=tiny_release.bundle.uri, id="0123")})
    with pytest.raises(ArtifactMismatchError) as caught:
        Pipeline.of_release(changed)
    assert str(caught.value) == (
        f"Release {tiny_release.id} was published with bundle 0123, but {tiny_release.bundle.uri} now holds "
        f"{tiny_release.bundle.id}: restore it, or publish again."
    )


def test_a_text_that_is_asked_for_again_is_not_encoded_again(tiny_release):
    looked_up: list[bool] = []
    encoder = Encoder(Snapshot.open(tiny_release).texts, looked_up=looked_up.append)
    first = encoder.encode(["thing painted white", ""], ["", "likes black"])
    again = encoder.encode(["thing painted white", "thing painted white"], ["", ""])
    assert looked_up == [False, False, True, True]
    assert np.array_equal(again.vectors[0], first.vectors[0])
    assert np.array_equal(again.vectors[1], first.vectors[0])
