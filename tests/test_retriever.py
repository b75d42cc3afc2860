from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_ray.bundle import Bundle
from llmrec_ray.config import IndexConfig, RetrievalConfig
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.index import Index, build_index
from llmrec_ray.recommend import Encoded, Filters, RequestBatch, Reranker, Retriever
from llmrec_ray.recommend.order import retriever_order
from llmrec_ray.types import Histories

N = 40


@pytest.fixture(scope="module")
def bundle(tiny_release):
    return Bundle.open(tiny_release.bundle.uri)


@pytest.fixture(scope="module")
def index(tiny_release):
    return Index.load(tiny_release.index.uri)


@pytest.fixture(scope="module")
def attributes(tiny_release):
    colours = Dataset.open(tiny_release.dataset.uri).item_attributes
    return colours.with_columns(year=pl.Series([float(1980 + row % 20) for row in range(N)]))


@pytest.fixture(scope="module", params=["exact", "hnsw"])
def retriever(bundle, attributes, tmp_path_factory, request):
    index = Index.load(build_index(bundle, IndexConfig(kind=request.param), str(tmp_path_factory.mktemp("index"))).uri)
    return Retriever(bundle, index, attributes, bundle.policy, "r", hidden=np.array([3, 17]))


def batch_of(histories, *, k=5, filters=None, exclude_seen=True):
    batch = RequestBatch.of_histories("r", Histories.from_lists(histories), 1)
    n = len(histories)
    return replace(
        batch, k=np.broadcast_to(np.asarray(k, np.int64), n).copy(), filters=filters or batch.filters,
        exclude_seen=np.broadcast_to(exclude_seen, n).copy(),
    )


def text_of(bundle, rows):
    """What is wanted: the text of an item, or nothing where the row is negative."""
    vectors = np.where(np.array(rows)[:, None] >= 0, bundle.text_vectors[rows], 0).astype(np.float32)
    return Encoded(vectors, np.zeros((len(rows), bundle.item_vectors.shape[1]), np.float32), {})


def may_be_shown(batch, request, attributes, bundle, hidden):
    """By the words of the contract, one item at a time."""
    filters, shown = batch.filters[request], []
    for row in range(N):
        item, values = bundle.items.id(row), {name: attributes[name][row] for name in attributes.columns}
        wanted = {name: value if isinstance(value, list) else [value] for name, value in filters.attributes.items()}
        passes = [
            row not in hidden, not (batch.exclude_seen[request] and row in batch.histories[request]),
            filters.allow is None or item in filters.allow, item not in filters.deny,
            all(str(values[name]).lower() in [one.lower() for one in any_of] for name, any_of in wanted.items()),
            all(bounds.min is None or values[name] >= bounds.min for name, bounds in filters.ranges.items()),
            all(bounds.max is None or values[name] <= bounds.max for name, bounds in filters.ranges.items()),
        ]
        if all(passes):
            shown.append(row)
    return shown


def expected_sources(batch, encoded, bundle, attributes, hidden=()):
    """Row -> sources per request, by looking at every score of every item; popularity fills up."""
    text = None if encoded is None else encoded.vectors
    users = bundle.user_vectors(batch.histories, text)
    scores = {name: bundle.score_catalogue(name, batch.histories, users, text) for name in bundle.signal_names}
    cold = bundle.blend_cold(batch.histories, users, bundle.policy)
    lists = []
    for request in range(len(batch)):
        shown = may_be_shown(batch, request, attributes, bundle, hidden)
        most = int(batch.k.max())

        def best(values, n, rows):
            known = [row for row in rows if np.isfinite(values[row])]
            return sorted(known, key=lambda row: (-values[row], row))[:n]

        found = {}
        for source, n in bundle.policy.candidates.items():
            if source in scores:
                found[source] = best(scores[source][request], max(n, most), shown)
            elif len(batch.histories[request]):
                values = dict(zip(bundle.cold.rows.tolist(), cold[request].tolist(), strict=True))
                found[source] = best(values, n, [row for row in shown if row in values])
        union = set().union(*found.values())
        lists.append({row: {name for name, rows in found.items() if row in rows} for row in union})
    return lists


def sources_of(retrieved, request):
    rows = retrieved.candidates.item_rows[request]
    return {
        int(row): {name for name, marks in retrieved.candidates.sources.items() if marks[request, place]}
        for place, row in enumerate(rows) if row >= 0
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    histories=st.lists(st.lists(st.integers(0, N - 1), max_size=12, unique=True), min_size=1, max_size=4),
    data=st.data(),
)
def test_the_candidates_are_those_of_a_brute_force_search_with_any_filters(
    retriever, bundle, attributes, histories, data
):
    def filters():
        low = data.draw(st.none() | st.integers(1978, 2001))
        allow = data.draw(st.none() | st.sets(st.integers(0, N + 3), max_size=25))
        colour = data.draw(st.none() | st.sampled_from(["black", "White", "GREEN"]))
        deny = data.draw(st.sets(st.integers(0, N - 1), max_size=20))
        return Filters.model_validate({
            "attributes": {} if colour is None else {"colour": colour},
            "ranges": {} if low is None else {"year": {"min": low, "max": low + data.draw(st.integers(0, 15))}},
            "allow": None if allow is None else [f"i{row:03}" for row in allow],
            "deny": [f"i{row:03}" for row in deny],
        })

    n = len(histories)
    batch = batch_of(
        histories, k=data.draw(st.lists(st.integers(1, 50), min_size=n, max_size=n)),
        filters=[filters() for _ in range(n)],
        exclude_seen=data.draw(st.lists(st.booleans(), min_size=n, max_size=n)),
    )
    wanted = data.draw(st.lists(st.integers(-1, N - 1), min_size=n, max_size=n))
    encoded = text_of(bundle, wanted) if max(wanted) >= 0 else None
    retrieved = retriever.retrieve(batch, encoded)
    expected = expected_sources(batch, encoded, bundle, attributes, hidden=(3, 17))
    for request in range(n):
        assert sources_of(retrieved, request) == expected[request]
        rows = retrieved.candidates.item_rows[request]
        rows = rows[rows >= 0]
        assert (np.diff(rows) > 0).all()
        shown = may_be_shown(batch, request, attributes, bundle, (3, 17))
        assert len(rows) >= min(batch.k[request], len(shown))


def test_a_batch_retrieves_what_each_request_would_retrieve_alone(retriever, bundle):
    histories = [[0, 2, 4], [], [7], list(range(1, 30, 2))]
    together = retriever.retrieve(batch_of(histories), text_of(bundle, [-1, 5, 3, -1]))
    for place, history in enumerate(histories):
        alone = retriever.retrieve(batch_of([history]), text_of(bundle, [[-1, 5, 3, -1][place]]))
        assert sources_of(together, place) == sources_of(alone, 0)


def test_sources_in_threads_propose_what_they_propose_in_turn(bundle, index, attributes):
    batch = batch_of([[0, 2, 4], [], [7]])
    one = Retriever(bundle, index, attributes, bundle.policy, "r").retrieve(batch, None)
    many = Retriever(bundle, index, attributes, bundle.policy, "r", deadline_s=30.0).retrieve(batch, None)
    np.testing.assert_array_equal(one.candidates.item_rows, many.candidates.item_rows)
    np.testing.assert_array_equal(one.order, many.order)
    assert one.candidates.sources.keys() == many.candidates.sources.keys()
    assert one.degraded == many.degraded == ()


def failing(bundle, monkeypatch, broken, do):
    score = bundle.score_signal

    def broken_score(name, *given):
        return do() if name in broken else score(name, *given)

    monkeypatch.setattr(bundle, "score_signal", broken_score)


def test_a_source_that_fails_is_left_out_and_named_and_the_others_answer(
    bundle, index, attributes, monkeypatch, caplog
):
    retriever = Retriever(bundle, index, attributes, bundle.policy, "r", deadline_s=30.0)
    whole = retriever.retrieve(batch_of([[0, 2, 4]]), None)
    failing(bundle, monkeypatch, {"item_item"}, lambda: 1 / 0)
    retrieved = retriever.retrieve(batch_of([[0, 2, 4]]), None)
    assert retrieved.degraded == ("source:item_item",)
    assert "The source item_item is left out: division by zero" in caplog.text
    without = {row: names - {"item_item"} for row, names in sources_of(whole, 0).items()}
    assert sources_of(retrieved, 0) == {row: names for row, names in without.items() if names}


def test_a_late_source_is_left_out_and_one_that_hangs_holds_nobody_up_again(bundle, index, attributes, monkeypatch):
    release, calls = threading.Event(), []
    failing(bundle, monkeypatch, {"item_item"}, lambda: calls.append(1) or release.wait(30))
    retriever = Retriever(bundle, index, attributes, bundle.policy, "r", deadline_s=0.1)
    for _ in range(6):
        assert retriever.retrieve(batch_of([[0, 2, 4]]), None).degraded == ("source:item_item",)
    assert len(calls) == 4
    release.set()
    monkeypatch.undo()
    for _ in range(100):
        if not retriever.retrieve(batch_of([[0, 2, 4]]), None).degraded:
            break
    else:
        pytest.fail("the source never came back")


def test_popularity_answers_when_every_source_fails_and_k_items_still_come_back(bundle, index, attributes, monkeypatch):
    policy = bundle.policy.model_copy(update={"candidates": {"item_item": 5, "text": 5}})
    retriever = Retriever(bundle, index, attributes, policy, "r", deadline_s=30.0)
    failing(bundle, monkeypatch, {"item_item", "text"}, lambda: 1 / 0)
    retrieved = retriever.retrieve(batch_of([[0, 2, 4]], k=12), None)
    assert set(retrieved.degraded) == {"source:item_item", "source:text"}
    popular = bundle.signals["popularity"].log_counts
    best = [row for row in np.lexsort((np.arange(N), -popular)) if row not in (0, 2, 4)][:12]
    assert retrieved.candidates.item_rows[0].tolist() == sorted(best)
    assert set(retrieved.candidates.sources) == {"popularity"}


def test_without_a_deadline_a_failing_source_is_an_error(bundle, index, attributes, monkeypatch):
    retriever = Retriever(bundle, index, attributes, bundle.policy, "r")
    failing(bundle, monkeypatch, {"item_item"}, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        retriever.retrieve(batch_of([[0, 2, 4]]), None)


def test_removed_items_are_not_similar_to_anything(retriever, bundle):
    rows, scores = retriever.similar(np.array([1, 5]), 39)
    assert rows.shape == (2, 39)
    for item, similar in zip((1, 5), rows, strict=True):
        assert set(similar[similar >= 0].tolist()) == set(range(N)) - {item, 3, 17}
    unit = bundle.item_vectors[:, :-1] / np.linalg.norm(bundle.item_vectors[:, :-1], axis=1, keepdims=True)
    np.testing.assert_allclose(scores[0][:5], unit[rows[0][:5]] @ unit[1], rtol=1e-4)


def merged_by(bundle, index, attributes, **policy):
    return Retriever(bundle, index, attributes, bundle.policy.model_copy(update=policy), "r")


@pytest.mark.parametrize("merge", ["reciprocal_rank", "weights"])
def test_a_merge_keeps_the_best_candidates_of_all_that_are_proposed(bundle, index, attributes, merge):
    batch = batch_of([[0, 2, 4], [], [7]], k=4)
    whole = merged_by(bundle, index, attributes, merge=merge).retrieve(batch, None)
    some = merged_by(bundle, index, attributes, merge=merge, max_candidates=7).retrieve(batch, None)
    assert some.candidates.item_rows.shape[1] == 7
    for request in range(3):
        rows, order = whole.candidates.item_rows[request], whole.order[request]
        best = sorted(rows[np.lexsort((rows, -order))][:7].tolist())
        assert some.candidates.item_rows[request].tolist() == best
        assert {row: sources_of(whole, request)[row] for row in best} == sources_of(some, request)


def test_a_cap_below_k_does_not_shorten_a_list(bundle, index, attributes):
    retriever = merged_by(bundle, index, attributes, merge="weights", max_candidates=3)
    assert (retriever.retrieve(batch_of([[0, 2, 4]], k=20), None).candidates.item_rows >= 0).sum() == 20


def test_reciprocal_ranks_add_up_over_the_sources(bundle, index, attributes):
    policy = {"merge": "reciprocal_rank", "candidates": {"neural": 6, "popularity": 6}}
    retrieved = merged_by(bundle, index, attributes, **policy).retrieve(batch_of([[0, 2, 4]], k=1), None)
    users = bundle.user_vectors(Histories.from_lists([[0, 2, 4]]))
    shown = [row for row in range(N) if row not in (0, 2, 4)]
    lists = [(users @ bundle.item_vectors.T)[0], bundle.signals["popularity"].log_counts]
    expected: dict[int, float] = {}
    for values in lists:
        for place, row in enumerate(sorted(shown, key=lambda row: (-values[row], row))[:6]):
            expected[row] = expected.get(row, 0.0) + 1 / (61 + place)
    rows = retrieved.candidates.item_rows[0]
    found = dict(zip(rows[rows >= 0].tolist(), retrieved.order[0][rows >= 0].tolist(), strict=True))
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_a_reranker_lists_come_in_the_order_of_the_weighted_sources(bundle, index, attributes):
    batch = replace(batch_of([[0, 2, 4], [], [7]], k=[5, 8, 3]), explain=np.array([True, False, True]))
    retrieved = Retriever(bundle, index, attributes, bundle.policy, "r").retrieve(batch, None)
    ranked = retriever_order(batch, retrieved)
    assert (ranked.item_rows >= 0).sum(axis=1).tolist() == [5, 8, 3]
    assert ranked.shares == {}
    assert ranked.explained.tolist() == [0, 2]
    assert all(marks.shape == (2, 8) for marks in ranked.sources.values())
    popular = bundle.signals["popularity"].log_counts
    assert popular[ranked.item_rows[1]].tolist() == sorted(popular)[::-1][:8]
    reranked = Reranker(bundle, bundle.policy, "r").rerank(batch, retrieved)
    for one, other in zip(ranked.item_rows[[0, 2]], reranked.item_rows[[0, 2]], strict=True):
        assert len({*one[one >= 0].tolist()} & {*other[other >= 0].tolist()}) >= 2


def test_weights_of_a_request_change_the_order_without_a_reranker(bundle, index, attributes):
    batch = replace(batch_of([[0, 2, 4]], k=10), weights=[{"popularity": 1.0}])
    retrieved = Retriever(bundle, index, attributes, bundle.policy, "r").retrieve(batch, None)
    rows = retriever_order(batch, retrieved).item_rows[0]
    popular = bundle.signals["popularity"].log_counts
    assert popular[rows].tolist() == sorted(popular[[row for row in range(N) if row not in (0, 2, 4)]])[::-1][:10]


def test_an_index_of_another_bundle_is_refused(bundle, index, attributes, monkeypatch):
    monkeypatch.setattr(index, "bundle_id", "another")
    with pytest.raises(ArtifactMismatchError, match=r"was built from bundle another, not .*: run `llmrec index`"):
        Retriever(bundle, index, attributes, bundle.policy, "r")


def test_a_cap_that_merging_ignores_is_refused():
    message = (
        "max_candidates is 100, but merge all keeps every candidate: set retrieval.merge to reciprocal_rank or "
        "weights, or leave max_candidates out"
    )
    with pytest.raises(ValueError, match=message):
        RetrievalConfig(max_candidates=100)
