from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import override_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.index import Index, build_index
from llmrec_ray.recommend import Pipeline, Request
from llmrec_ray.signals import CascadeFusion, ColdItems, Ease, ItemKernel, Propagation
from llmrec_ray.train.cold import ColdStart
from llmrec_ray.types import Histories
from tests.tiny_release import write_tiny_bundle

BLACK, WHITE = np.array([1.0, 0.0], np.float32), np.array([-1.0, 0.0], np.float32)


def colours(n: int) -> np.ndarray:
    return np.array([BLACK if item % 2 == 0 else WHITE for item in range(n)])


def rows(*items: int) -> np.ndarray:
    return np.array(items, np.int64)


def test_an_item_is_most_like_itself_and_likeness_is_mutual():
    kernel = ItemKernel(colours(4), [[1.0, 2.0, 3.0, 9.0], ["a b", "b", "d", "c"]])
    everything = kernel.between(np.arange(4), np.arange(4))
    np.testing.assert_allclose(everything, everything.T, rtol=1e-6)
    assert (everything.argmax(axis=1) == np.arange(4)).all()
    assert everything[0, 0] == pytest.approx(1.0)


def test_texts_numbers_and_words_are_compared_each_in_their_way():
    same = np.array([BLACK, BLACK, BLACK])
    by_number = ItemKernel(same, [[1990, 1991, 1960]]).between(rows(0), rows(1, 2))[0]
    by_word = ItemKernel(same, [["Comedy Drama", "Comedy", "War"]]).between(rows(0), rows(1, 2))[0]
    by_text = ItemKernel(colours(3)).between(rows(0), rows(1, 2))[0]
    assert by_number[0] > by_number[1]
    assert by_word[0] > by_word[1]
    np.testing.assert_allclose(by_text, [0.0, 1.0])
    np.testing.assert_allclose(by_word, ((1 + (1 + np.array([1 / np.sqrt(2), 0])) / 2) / 2) ** 2, rtol=1e-6)


def test_a_value_that_is_missing_is_like_nothing():
    similar = ItemKernel(np.array([BLACK, BLACK]), [[None, None], [None, None]]).between(rows(0), rows(1))
    np.testing.assert_allclose(similar, ((1 + 0.5) / 2) ** 2)


def test_a_column_of_one_number_or_of_none_at_all_can_be_compared():
    kernel = ItemKernel(colours(3), [[7, 7, 7], [None, None, None]])
    assert np.isfinite(kernel.between(np.arange(3), np.arange(3))).all()


def test_lists_are_words_whatever_their_order_and_numbers_that_are_none_are_missing():
    lists = ItemKernel(colours(3)[[0, 0, 0]], [[["Comedy", "War"], ["War", "Comedy"], ["Drama"]]])
    np.testing.assert_allclose(lists.between(rows(0), rows(1, 2))[0], [1.0, 0.75**2], rtol=1e-6)
    numbers = ItemKernel(colours(3)[[0, 0, 0]], [[1.0, float("nan"), float("inf")]])
    np.testing.assert_allclose(numbers.between(rows(0), rows(1, 2))[0], 0.75**2)


def test_without_texts_and_attributes_new_items_are_ranked_as_those_nobody_took(tiny_recipe, tmp_path):
    data = tiny_recipe.data.model_copy(update={"split": "cold_items", "items": ()})
    recipe = tiny_recipe.model_copy(update={"data": data})
    dataset = Dataset(ingest(recipe, Path(), Workspace(str(tmp_path)), use_ray=False))
    start = ColdStart.of(dataset, None)
    assert not len(start.rows) and (start.counts == 0).any()
    vectors, ease = np.ones((len(dataset.items), 3), np.float32), Ease(10.0)
    assert start.fill(vectors, ease) == (vectors, ease)


def test_a_cold_item_becomes_like_the_known_items_with_its_content():
    counts = np.array([5, 5, 5, 5, 0, 0])
    matrix = np.array([[1.0, 0], [0, 1.0], [1.0, 0], [0, 1.0], [9, 9], [9, 9]], np.float32)
    filled = Propagation.fit(ItemKernel(colours(6)), counts, rows(4, 5), ridge=0.01).fill_rows(matrix)
    np.testing.assert_allclose(filled[4:], [[1, 0], [0, 1]], atol=0.02)
    np.testing.assert_array_equal(filled[:4], matrix[:4])


def test_an_item_item_matrix_gets_rows_and_columns_and_keeps_what_it_knew():
    counts = np.array([5, 5, 5, 5, 0])
    matrix = np.random.default_rng(0).random((5, 5), np.float32)
    filled = Propagation.fit(ItemKernel(colours(5)), counts, rows(4)).fill_item_item(matrix)
    known = ~np.eye(4, dtype=bool)
    np.testing.assert_array_equal(filled[:4, :4][known], matrix[:4, :4][known])
    assert not np.diag(filled).any()
    assert filled[4, 0] != matrix[4, 0]


@pytest.mark.parametrize("counts", [[3, 3, 3], [0, 0, 0]])
def test_nothing_cold_or_nothing_known_leaves_all_as_it_was(counts):
    counts = np.array(counts)
    propagation = Propagation.fit(ItemKernel(colours(3)), counts, np.flatnonzero(counts == 0))
    assert propagation.weights.shape == ((counts > 0).sum(), (counts == 0).sum())
    if counts.all():
        np.testing.assert_array_equal(propagation.fill_rows(colours(3)), colours(3))


def test_only_the_most_frequent_known_items_are_carried_over_from(monkeypatch):
    monkeypatch.setattr("llmrec_ray.signals.cold.MAX_KNOWN", 2)
    propagation = Propagation.fit(ItemKernel(colours(5)), np.array([1, 9, 1, 9, 0]), rows(4))
    assert propagation.known.tolist() == [1, 3]


def test_scores_of_cold_items_are_taken_where_they_are_asked_for():
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    items = ColdItems(rows(1, 3), np.ones((4, 2), np.float32), colours(4), vectors)
    histories = Histories.from_lists([[0, 2], []])
    scores = items.score(histories, np.ones((2, 3), np.float32))
    np.testing.assert_allclose(scores["neural"], [[12, 30], [12, 30]])
    np.testing.assert_allclose(scores["item_item"], [[np.sqrt(2)] * 2, [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(scores["text"], [[-1, -1], [0, 0]])
    taken = items.take(scores, np.array([[3, 0, -1], [1, 3, 2]]))
    np.testing.assert_allclose(taken["neural"], [[30, np.nan, np.nan], [12, 30, np.nan]])
    assert items.are(np.array([1, 0, -1])).tolist() == [True, False, False]


def test_known_items_are_rehearsed_as_if_they_were_new(tiny_recipe, tmp_path):
    dataset = Dataset(ingest(tiny_recipe, Path(), Workspace(str(tmp_path)), use_ray=False))
    start = ColdStart.of(dataset, colours(len(dataset.items)))
    assert not len(start.rows)
    assert len(start.rehearsal.cold) == round(0.1 * len(dataset.items))
    assert not np.isin(start.rehearsal.cold, start.rehearsal.known).any()
    train = dataset.histories("train")
    vectors = np.ones((len(dataset.items), 3), np.float32)
    calibration = start.calibrate(
        np.ones((len(train), 3), np.float32), train, vectors, Ease(10.0).fit(train, len(vectors)),
        colours(len(vectors)),
    )
    assert set(calibration.means) == {"neural", "item_item", "text"}


@pytest.fixture(scope="module")
def cold(tiny_recipe, tmp_path_factory) -> tuple[Dataset, Pipeline]:
    """A checkerboard two folds of whose items nobody has seen, behind the pipeline."""
    workspace = Workspace(str(tmp_path_factory.mktemp("cold")))
    recipe = override_recipe(tiny_recipe, ["data.split=cold_items", "data.cold_fold=0"])
    dataset = Dataset(ingest(recipe, Path(), workspace, use_ray=False))
    bundle = Bundle(write_tiny_bundle(recipe, dataset, workspace.root("bundle"), profiles=texts_of(dataset)))
    index = Index.load(build_index(bundle, recipe.index, workspace.root("index")).uri)
    return dataset, Pipeline(dataset, bundle, index, policy=bundle.policy.model_copy(
        update={"cold_scale": 3.0, "candidates": bundle.policy.candidates | {"cold": 20}}
    ))


def texts_of(dataset: Dataset) -> list[str]:
    return [f"likes {'black' if user[-1] in '02468' else 'white'}" for user in dataset.users]


def cold_ids(dataset: Dataset) -> set[str]:
    train = set(dataset.histories("train").item_rows.tolist())
    return {item for row, item in enumerate(dataset.items) if row not in train}


def ask(pipeline: Pipeline, **fields):
    [response] = pipeline.recommend([Request(**{"k": 40, "explain": True, "exclude_seen": False, **fields})])
    return response


def test_cold_items_are_proposed_and_the_shares_of_their_signals_add_up(cold):
    dataset, pipeline = cold
    shown = [item for item in ask(pipeline, history=["i002", "i004"]).items if item.item_id in cold_ids(dataset)]
    assert len(shown) >= 2
    for item in shown:
        assert item.shares is not None and item.sources is not None
        assert "cold" in item.sources
        assert sum(item.shares.values()) == pytest.approx(item.score, abs=1e-5)
        assert item.shares["item_item"] != 0.0
        assert item.shares["popularity"] == item.shares["ncf"] == 0.0


def test_people_get_cold_items_of_their_colour_first(cold):
    dataset, pipeline = cold
    for colour in (0, 1):
        history = [f"i{item:03}" for item in range(colour, 40, 2) if f"i{item:03}" not in cold_ids(dataset)]
        ranked = [item for item in ask(pipeline, history=history).items if item.item_id in cold_ids(dataset)]
        assert int(ranked[0].item_id[1:]) % 2 == colour


def test_scale_zero_leaves_cold_items_in_the_middle_and_larger_scales_spread_them(cold):
    dataset, pipeline = cold
    histories = dataset.histories("train").select(slice(0, 4))
    some = np.flatnonzero([item in cold_ids(dataset) for item in dataset.items])
    asked = np.tile(some, (4, 1))
    off, one, two = (
        pipeline.with_policy(pipeline.policy.model_copy(update={"cold_scale": scale})).score_rows(histories, asked)
        for scale in (0.0, 1.0, 2.0)
    )
    assert not off.any()
    np.testing.assert_allclose(two, 2 * one, rtol=1e-5)
    assert one.std() > 0


def test_given_rows_are_scored_as_they_are_in_an_answer(cold):
    dataset, pipeline = cold
    response = ask(pipeline, history=["i002", "i004", "i006", "i008", "i010"], k=10)
    history = dataset.items.rows(["i002", "i004", "i006", "i008", "i010"])
    asked = dataset.items.rows([item.item_id for item in response.items])
    scores = pipeline.score_rows(Histories.from_lists([history]), np.append(asked, -1)[None, :])
    np.testing.assert_allclose(scores[0, :-1], [item.score for item in response.items], rtol=1e-4, atol=1e-5)
    assert np.isnan(scores[0, -1])


def test_the_few_cold_items_that_are_proposed_do_not_shorten_the_lists_that_are_measured(cold):
    _, pipeline = cold

    def length(candidates: dict[str, int]) -> int:
        policy = pipeline.policy.model_copy(update={"candidates": candidates})
        return pipeline.with_policy(policy).list_length(10)

    assert length({"neural": 150, "text": 50, "cold": 20}) == 50
    assert length({"neural": 150, "text": 5, "cold": 20}) == 10
    assert length({"cold": 20}) == 10


def test_people_without_a_history_are_proposed_no_cold_items(cold):
    _, pipeline = cold
    for fields in ({"user_id": "nobody"}, {"query": "thing painted white"}):
        assert not any("cold" in (item.sources or ()) for item in ask(pipeline, **fields).items)


def test_a_profile_without_a_history_is_ranked_by_what_such_people_like(cold):
    _, pipeline = cold
    response = ask(pipeline, profile="likes black")
    assert not response.cold
    used = {name for item in response.items for name, share in (item.shares or {}).items() if share}
    assert used == {"neural", "popularity"}
    others = ask(pipeline, profile="likes white")
    assert [item.item_id for item in response.items] != [item.item_id for item in others.items]


def test_a_profile_with_a_history_leaves_the_word_to_the_history(cold):
    _, pipeline = cold
    alone, both = ask(pipeline, history=["i002"]), ask(pipeline, history=["i002"], profile="likes white")
    assert [(item.item_id, item.score) for item in alone.items] == [(item.item_id, item.score) for item in both.items]


def test_a_profile_with_a_query_counts_beside_it(cold):
    _, pipeline = cold
    response = ask(pipeline, query="thing painted black", profile="likes white")
    used = {name for item in response.items for name, share in (item.shares or {}).items() if share}
    assert used == {"neural", "popularity", "text"}


def test_cold_items_take_no_place_of_known_ones_in_a_cascade(cold, monkeypatch):
    dataset, pipeline = cold
    bundle = pipeline.reranker._bundle
    monkeypatch.setattr(bundle, "fusion", CascadeFusion(bundle.calibration, "text", 12, "neural"))
    histories = dataset.histories("train").select(slice(0, 8))
    known = np.flatnonzero([item not in cold_ids(dataset) for item in dataset.items])
    alone = pipeline.score_rows(histories, np.tile(known, (8, 1)))
    among_all = pipeline.score_rows(histories, np.tile(np.arange(len(dataset.items)), (8, 1)))
    np.testing.assert_allclose(among_all[:, known], alone, atol=1e-5)


def test_short_histories_are_read_with_weights_of_their_own(cold):
    dataset, pipeline = cold
    policy = pipeline.policy.model_copy(update={"newcomer_weights": {"text": 1.0}, "newcomer_events": 3})
    pipeline = pipeline.with_policy(policy)
    short, long = ask(pipeline, history=["i002", "i004"]), ask(pipeline, history=["i002", "i004", "i006"])
    for response, used in ((short, {"text"}), (long, {"neural", "ncf", "item_item", "text", "popularity"})):
        known = [item for item in response.items if item.item_id not in cold_ids(dataset)]
        assert {name for item in known for name, share in (item.shares or {}).items() if share} <= used
        assert any((item.shares or {})["text"] for item in known)


def test_a_bundle_keeps_how_fast_its_text_signal_forgets(cold, tiny_recipe, tmp_path, monkeypatch):
    dataset, _ = cold
    monkeypatch.setattr("tests.tiny_release.TEXT_RECENCY", 7.0)
    bundle = Bundle(write_tiny_bundle(tiny_recipe, dataset, str(tmp_path)))
    assert bundle.signals["text"].recency == 7.0
