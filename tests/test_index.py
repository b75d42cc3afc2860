from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec_ray.bundle import Bundle
from llmrec_ray.config import IndexConfig
from llmrec_ray.errors import ArtifactError, CorruptArtifactError
from llmrec_ray.index import Index, build_index, measured_recall
from llmrec_ray.index.build import recall_at
from llmrec_ray.index.search import ExactSearch, HnswSearch
from llmrec_ray.types import Histories


@pytest.fixture(scope="module")
def vectors():
    generator = np.random.default_rng(0)
    items = generator.normal(size=(3000, 17)).astype(np.float32)
    items[:, -1] *= 3  # biases, so that vectors differ in length
    users = np.hstack([generator.normal(size=(64, 16)), np.ones((64, 1))]).astype(np.float32)
    return items, users


def searchers(items):
    return [ExactSearch(items), HnswSearch.build(items, IndexConfig(kind="hnsw"))]


@pytest.fixture(scope="module")
def bundle(tiny_release):
    return Bundle.open(tiny_release.bundle.uri)


@pytest.fixture(scope="module")
def board_index(tiny_release):
    return Index.load(tiny_release.index.uri)


def test_every_structure_returns_distinct_rows_best_first_with_true_dot_products(vectors):
    items, users = vectors
    for searcher in searchers(items):
        rows, scores = searcher.search(users, 50)
        assert rows.shape == scores.shape == (64, 50)
        assert (np.diff(scores, axis=1) <= 0).all()
        assert all(len(set(one)) == 50 for one in rows.tolist())
        np.testing.assert_allclose(scores, np.einsum("bd,bkd->bk", users, items[rows]), rtol=1e-4, atol=1e-4)


def test_asking_for_more_items_than_there_are_returns_them_all(vectors):
    items, users = vectors
    for searcher in searchers(items[:30]):
        rows, _ = searcher.search(users, 100)
        assert rows.shape == (64, 30)
        assert (np.sort(rows, axis=1) == np.arange(30)).all()


def test_a_batch_gives_what_single_searches_give(vectors):
    items, users = vectors
    for searcher in searchers(items):
        rows, _ = searcher.search(users[:8], 20)
        assert (rows == np.concatenate([searcher.search(users[i : i + 1], 20)[0] for i in range(8)])).all()


def test_exact_search_breaks_ties_towards_the_lower_row():
    rows, _ = ExactSearch(np.ones((5, 2), np.float32)).search(np.ones((1, 2), np.float32), 3)
    assert rows.tolist() == [[0, 1, 2]]


def test_hnsw_finds_nearly_all_of_the_true_nearest_although_lengths_differ(vectors):
    items, users = vectors
    assert recall_at(HnswSearch.build(items, IndexConfig(kind="hnsw")), items, users, 100) > 0.97


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_an_index_survives_the_disk_and_names_its_bundle(bundle, tmp_path, kind):
    artifact = build_index(bundle, IndexConfig(kind=kind), str(tmp_path))
    index = Index.load(artifact.uri)
    users = bundle.user_vectors(Histories.from_lists([[0, 2, 4], [], [1]]))
    rows, scores = index.search(users, 10)
    expected_rows, expected_scores = ExactSearch(bundle.item_vectors).search(users, 10)
    assert index.bundle_id == bundle.id == artifact.manifest.parents["bundle"]
    assert len(index) == len(bundle.items)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_an_approximate_index_says_in_its_manifest_how_much_it_finds(bundle, tmp_path):
    artifact = build_index(bundle, IndexConfig(kind="hnsw"), str(tmp_path))
    assert 0.95 <= artifact.manifest.metrics["recall@100"] <= 1.0


def test_an_approximate_index_that_finds_too_little_is_refused_and_leaves_nothing(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("llmrec_ray.index.build.recall_at", lambda *_: 0.5)
    with pytest.raises(ArtifactError) as caught:
        build_index(bundle, IndexConfig(kind="hnsw", min_recall=0.9), str(tmp_path))
    assert str(caught.value) == (
        "The HNSW index finds 0.500 of the true 100 nearest items, below index.min_recall 0.9: raise "
        "index.ef_search or index.hnsw_neighbors, or set index.kind to exact."
    )
    assert list(tmp_path.iterdir()) == []


def test_an_opened_index_is_measured_again_before_it_is_served(bundle, tmp_path):
    index = Index.load(build_index(bundle, IndexConfig(kind="hnsw"), str(tmp_path)).uri)
    assert measured_recall(index, bundle, index.config) == index.artifact.manifest.metrics["recall@100"]
    strict = index.config.model_copy(update={"min_recall": 1.5})
    with pytest.raises(ArtifactError, match=r"of the true 100 nearest items, below index\.min_recall 1\.5"):
        measured_recall(index, bundle, strict)


def test_an_index_with_a_changed_file_is_not_loaded(bundle, tmp_path):
    artifact = build_index(bundle, IndexConfig(), str(tmp_path))
    with (artifact.path / "vectors.safetensors").open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"!")
    with pytest.raises(CorruptArtifactError, match=r"vectors\.safetensors in .* does not match"):
        Index.load(artifact.uri)


def test_exact_search_in_pieces_gives_what_one_piece_gives(vectors, monkeypatch):
    items, users = vectors
    items = np.concatenate([items, items[:100]])  # ties across pieces
    whole = ExactSearch(items).search(users, 40)
    monkeypatch.setattr("llmrec_ray.index.search.MAX_SCORES", 64 * 300)
    rows, scores = ExactSearch(items).search(users, 40)
    np.testing.assert_allclose(scores, whole[1], rtol=1e-5)
    assert (rows == whole[0]).mean() > 0.99
    rows, _ = ExactSearch(np.ones((1000, 2), np.float32)).search(np.ones((64, 2), np.float32), 310)
    assert (rows == np.arange(310)).all()


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_added_items_are_found_with_the_others_and_the_index_before_stays_as_it_was(bundle, tmp_path, kind):
    index = Index.load(build_index(bundle, IndexConfig(kind=kind), str(tmp_path)).uri)
    users = bundle.user_vectors(Histories.from_lists([[0, 2, 4], [], [1]]))
    before = index.search(users, 10)
    more = np.concatenate([users * 2, bundle.item_vectors[:1]]).astype(np.float32)
    extended = index.extended(more[:1]).extended(more[1:])
    rows, scores = extended.search(users, 10)
    everything = np.concatenate([bundle.item_vectors, more])
    expected_rows, expected_scores = ExactSearch(everything).search(users, 10)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    assert len(extended) == len(index) + 4
    np.testing.assert_array_equal(index.search(users, 10)[0], before[0])
    assert extended.kept_vectors is index.kept_vectors


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(among=st.sets(st.integers(0, 42)), k=st.integers(1, 50))
def test_the_nearest_among_given_rows_are_those_of_a_brute_force_search(bundle, board_index, among, k):
    extended = board_index.extended(bundle.item_vectors[:3] * 2)
    everything = np.concatenate([bundle.item_vectors, bundle.item_vectors[:3] * 2])
    user = bundle.user_vectors(Histories.from_lists([[0, 2, 4]]))[0]
    rows = np.array(sorted(among), np.int64)
    found, scores = extended.search_among(user, rows, k)
    expected = sorted(rows.tolist(), key=lambda row: (-float(everything[row] @ user), row))[:k]
    np.testing.assert_allclose(scores, everything[expected] @ user, rtol=1e-5)
    assert len(found) == min(k, len(among))
    assert set(found.tolist()) <= among


def test_a_graph_that_cannot_be_read_is_named(bundle, tmp_path):
    artifact = build_index(bundle, IndexConfig(kind="hnsw"), str(tmp_path))
    (artifact.path / "hnsw.faiss").write_bytes(b"not a graph")
    with pytest.raises(CorruptArtifactError, match=r"hnsw\.faiss cannot be read \(.*\): restore it or run `llmrec ind"):
        Index.load(artifact.uri, verify=False)


def test_a_graph_of_nothing_finds_nothing():
    rows, scores = HnswSearch.build(np.empty((0, 3), np.float32), IndexConfig(kind="hnsw")).search(np.ones((2, 3)), 5)
    assert rows.shape == scores.shape == (2, 0)
