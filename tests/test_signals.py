"""Laws that every signal obeys, then what each one alone promises."""

import re

import numpy as np
import pytest

from llmrec_ray.errors import ConfigError
from llmrec_ray.metrics import ndcg
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.signals import (
    Bpr,
    Ease,
    Ials,
    ItemKnn,
    MarkovChain,
    Popularity,
    RecentPopularity,
    TextCosine,
    TfidfContent,
    center,
    to_text_space,
)
from llmrec_ray.signals.base import history_matrix, recency_weights
from llmrec_ray.types import Histories

N_ITEMS = 24
COLOURS = np.arange(N_ITEMS) % 2
TEXTS = [f"thing number {item} painted {'black' if item % 2 else 'white'}" for item in range(N_ITEMS)]


def board(n_users=30, seed=0):
    """Users of two colours: train holds all but one item of their colour, the target is that one."""
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(np.flatnonzero(user % 2 == COLOURS)) for user in range(n_users)]
    return Histories.from_lists([order[:-1] for order in orders]), np.array([order[-1] for order in orders])


def text_vectors():
    generator = np.random.default_rng(0)
    vectors = generator.normal(0.0, 0.3, (N_ITEMS, 8)) + np.array([5.0] * 8)
    vectors[:, 0] += COLOURS
    return vectors.astype(np.float32)


def in_text_space():
    return to_text_space(text_vectors(), center(text_vectors()))


SIGNALS = {
    "ease": lambda train: Ease(5.0, 10.0).fit(train, N_ITEMS),
    "ease without recency": lambda train: Ease(5.0, None).fit(train, N_ITEMS),
    "popularity": lambda train: Popularity().fit(train, N_ITEMS),
    "recent_popularity": lambda train: RecentPopularity(np.arange(len(train.item_rows))).fit(train, N_ITEMS),
    "item_knn": lambda train: ItemKnn(recency=5.0).fit(train, N_ITEMS),
    "markov": lambda train: MarkovChain().fit(train, N_ITEMS),
    "bpr": lambda train: Bpr(factors=4, batch_size=64).fit(train, N_ITEMS),
    "ials": lambda train: Ials(factors=4, iterations=5).fit(train, N_ITEMS),
    "tfidf": lambda train: TfidfContent(TEXTS),
    "text": lambda train: TextCosine(in_text_space()),
}
PERSONAL = [name for name in SIGNALS if "popularity" not in name]


@pytest.fixture(params=SIGNALS)
def signal(request):
    return SIGNALS[request.param](board()[0])


@pytest.fixture(params=PERSONAL)
def personal(request):
    return SIGNALS[request.param](board()[0])


def test_scores_are_float32_for_every_user_and_item(signal):
    train, _ = board()
    scores = signal.score(train)
    assert scores.shape == (len(train), N_ITEMS)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


def test_scores_of_some_items_are_those_of_the_catalogue(signal):
    train, _ = board()
    item_rows = np.random.default_rng(0).integers(-1, N_ITEMS, (len(train), 9))
    some = signal.score_items(train, item_rows)
    assert some.dtype == np.float32
    assert np.array_equal(np.isnan(some), item_rows < 0)
    expected = np.take_along_axis(signal.score(train), np.maximum(item_rows, 0), axis=1)
    np.testing.assert_allclose(some[item_rows >= 0], expected[item_rows >= 0], atol=1e-5)


def test_a_batch_scores_as_its_users_alone(signal):
    train, _ = board()
    alone = np.concatenate([signal.score(train.select(np.array([user]))) for user in range(len(train))])
    np.testing.assert_allclose(alone, signal.score(train), atol=1e-5)


def test_nobody_gets_no_scores(signal):
    nobody = Histories.from_lists([])
    assert signal.score(nobody).shape == (0, N_ITEMS)
    assert signal.score_items(nobody, np.empty((0, 3), np.int64)).shape == (0, 3)


def test_a_user_without_history_gets_no_opinion(personal):
    people = Histories.from_lists([[], [0, 2]])
    assert np.isnan(personal.score(people)[0]).all()
    assert np.isnan(personal.score_items(people, np.array([[0, 1], [0, 1]]))[0]).all()
    assert np.isfinite(personal.score(people)[1]).all()


def test_the_colour_of_the_board_is_found(personal):
    train, targets = board()
    assert ndcg(target_ranks(mask_seen(personal.score(train), train), targets), 10) > 0.9


@pytest.mark.parametrize("recency", [10.0, None])
def test_ease_comes_back_from_its_arrays(recency):
    train, _ = board()
    fitted = Ease(7.0, recency).fit(train, N_ITEMS)
    again = Ease.from_arrays(fitted.arrays())
    assert (again.l2, again.recency) == (7.0, recency)
    assert np.array_equal(again.score(train), fitted.score(train))


def test_popularity_comes_back_from_its_arrays_and_counts_users_not_events():
    train = Histories.from_lists([[0, 0, 0, 1], [1]])
    fitted = Popularity().fit(train, 3)
    assert fitted.score(train)[0].tolist() == pytest.approx([np.log(2), np.log(3), 0.0])
    assert np.array_equal(Popularity.from_arrays(fitted.arrays()).score(train), fitted.score(train))


def test_ease_solves_steck_2019():
    train, _ = board()
    occurrences = history_matrix(train, N_ITEMS, None).toarray().astype(np.float64)
    weights = Ease(5.0).fit(train, N_ITEMS).weights
    assert not np.diag(weights).any()
    gradient = occurrences.T @ (occurrences @ weights - occurrences) + 5.0 * weights
    np.testing.assert_allclose(gradient - np.diag(np.diag(gradient)), 0.0, atol=1e-4)


def test_ease_refuses_a_catalogue_that_is_too_large_for_a_dense_matrix():
    message = ("30000 items are more than its limit of 20000: leave item_item out of fusion.signals and "
               "retrieval.candidates, and ease and ease_recency out of evaluate.baselines.")
    with pytest.raises(ConfigError, match=re.escape(message)):
        Ease().fit(Histories.from_lists([[0]]), 30_000)


def test_the_newest_event_weighs_one_and_older_ones_less():
    weights = recency_weights(Histories.from_lists([[5, 6, 7], [], [8]]), 10.0)
    assert weights.tolist() == pytest.approx([np.exp(-0.2), np.exp(-0.1), 1.0, 1.0])
    assert recency_weights(Histories.from_lists([[5, 6]]), None).tolist() == [1.0, 1.0]


def test_an_item_that_occurs_twice_counts_as_its_newest_event():
    matrix = history_matrix(Histories.from_lists([[3, 1, 3]]), 4, 1.0).toarray()
    assert matrix[0].tolist() == pytest.approx([0.0, np.exp(-1.0), 0.0, 1.0])


def test_item_knn_keeps_no_more_neighbours_than_told_and_never_the_item_itself():
    fitted = ItemKnn(neighbors=3).fit(board()[0], N_ITEMS)
    neighbours = fitted.similarities.T.tocsr()
    assert np.diff(neighbours.indptr).max() == 3
    assert not fitted.similarities.diagonal().any()


def test_ials_is_the_same_for_the_same_seed():
    train, _ = board()
    first, again = (Ials(4, iterations=2, seed=3).fit(train, N_ITEMS).score(train) for _ in range(2))
    assert np.array_equal(first, again)


def test_recent_popularity_counts_events_less_by_days_before_the_newest():
    train = Histories.from_lists([[0, 1], [0, 2]])
    fitted = RecentPopularity(np.array([0, 86_400, 43_200, 172_800]), decay_days=1.0).fit(train, 4)
    counts = [np.exp(-2.0) + np.exp(-1.5), np.exp(-1.0), 1.0, 0.0]
    assert fitted.score(train)[0].tolist() == pytest.approx(np.log1p(counts).tolist(), abs=1e-6)


def test_a_markov_chain_reads_only_the_newest_item_and_smooths_by_popularity():
    train = Histories.from_lists([[0, 1, 2], [0, 1], [3], []])
    forward = MarkovChain(decay=None, backward=0.0).fit(train, 4).score(Histories.from_lists([[2, 0], [0]]))
    assert np.array_equal(forward[0], forward[1])
    assert forward[0].tolist() == pytest.approx([(2 / 6) / 3, (2 + 2 / 6) / 3, (1 / 6) / 3, (1 / 6) / 3])
    backward = MarkovChain(decay=None, backward=0.5).fit(train, 4).score(Histories.from_lists([[1]]))
    assert backward[0].tolist() == pytest.approx([(1 + 2 / 6) / 3, (2 / 6) / 3, (1 + 1 / 6) / 3, (1 / 6) / 3])


def test_a_markov_chain_counts_later_followers_less_and_none_of_another_history():
    train = Histories.from_lists([[0, 1, 2], [3, 0]])
    counts = MarkovChain(decay=1.0, backward=0.0).fit(train, 4).counts.toarray()
    assert counts[0].tolist() == pytest.approx([0.0, 1.0, np.exp(-1.0), 0.0])
    assert counts[2].sum() == 0.0
    assert counts[3].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_bpr_gradients_are_those_of_its_loss():
    signal = Bpr(factors=3, epochs=1, l2=0.1).fit(board()[0], N_ITEMS)
    pairs, negatives = np.array([0 * N_ITEMS + 4, 0 * N_ITEMS + 6, 1 * N_ITEMS + 5]), np.array([7, 4, 4])

    def loss():
        users, positives = pairs // N_ITEMS, pairs % N_ITEMS
        user, item, other = signal.users[users], signal.items[positives], signal.items[negatives]
        margin = (user * (item - other)).sum(axis=1) + (signal.biases[positives] - signal.biases[negatives])[:, 0]
        norms = 0.5 * 0.1 * (user**2 + item**2 + other**2).sum(axis=1)
        return float((np.log1p(np.exp(-margin)) + norms).mean())

    parameters = [signal.users, signal.items, signal.biases]
    for which, gradient in enumerate(signal._gradients(pairs, negatives)):
        parameters[which] = parameters[which].astype(np.float64)
        signal.users, signal.items, signal.biases = parameters
        for place in [(0, 0), (1, 0), (4, 0), (5, 0), (7, 0)]:
            kept = parameters[which][place]
            parameters[which][place] = kept + 1e-5
            above = loss()
            parameters[which][place] = kept - 1e-5
            below = loss()
            parameters[which][place] = kept
            assert gradient[place] == pytest.approx((above - below) / 2e-5, abs=1e-5)


def test_bpr_is_the_same_for_the_same_seed_and_scores_strangers_like_the_users_they_resemble():
    train, targets = board()
    first, again = (Bpr(4, batch_size=64, seed=3).fit(train, N_ITEMS).score(train) for _ in range(2))
    assert np.array_equal(first, again)
    known = Histories.from_lists(list(train), range(len(train)))
    scores = Bpr(4, batch_size=64).fit(known, N_ITEMS).score(known)
    assert ndcg(target_ranks(mask_seen(scores, known), targets), 10) > 0.9


def test_bpr_reads_the_history_of_somebody_who_has_no_train_event():
    train, _ = board()
    known = Histories.from_lists([*train, []], range(len(train) + 1))
    signal = Bpr(4, batch_size=64).fit(known, N_ITEMS)
    past = [train[0].tolist()]
    stranger, newly = (signal.score(Histories.from_lists(past, [row])) for row in (-1, len(train)))
    np.testing.assert_array_equal(newly, stranger)


def test_text_space_is_centred_and_of_unit_norm_and_keeps_missing_texts_zero():
    vectors = text_vectors()
    vectors[4] = 0.0
    middle = center(vectors)
    np.testing.assert_allclose(middle, np.delete(vectors, 4, axis=0).mean(axis=0), rtol=1e-5)
    spaced = to_text_space(vectors, middle)
    assert spaced.dtype == np.float32
    assert not spaced[4].any()
    np.testing.assert_allclose(np.linalg.norm(np.delete(spaced, 4, axis=0), axis=1), 1.0, rtol=1e-5)


def test_the_centre_of_no_texts_is_zero():
    assert not center(np.zeros((3, 5), np.float32)).any()


def test_a_query_scores_items_by_cosine():
    signal = TextCosine(in_text_space())
    query = in_text_space()[[7]]
    scores = signal.score_query(query)
    assert scores.shape == (1, N_ITEMS)
    assert scores.argmax() == 7
    assert scores[0, 7] == pytest.approx(1.0)
    some = signal.score_query_items(query, np.array([[7, -1, 3]]))
    assert some[0, [0, 2]].tolist() == pytest.approx(scores[0, [7, 3]].tolist())
    assert np.isnan(some[0, 1])
