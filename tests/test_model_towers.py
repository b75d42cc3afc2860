"""Towers and array-level scoring: training equals inference, every kind of person and item has a vector."""

import numpy as np
import pytest
import torch

from llmrec_ray.config import ModelConfig
from llmrec_ray.model import FusionRecommender, catalogue_vectors, make_windows, ncf, user_matrix
from llmrec_ray.model.towers import ncf_head
from llmrec_ray.model.transformer import reaches
from llmrec_ray.types import Histories

N_USERS, N_ITEMS, TEXT_SIZE, LENGTH = 6, 30, 5, 4
CONFIG = ModelConfig(embedding_size=8, history_length=LENGTH, ncf_hidden=(8, 4))
TRANSFORMER = ModelConfig(
    embedding_size=8, history_length=LENGTH, ncf_hidden=(8, 4), user_tower="transformer", transformer_layers=2
)


@pytest.fixture(params=[CONFIG, TRANSFORMER], ids=["decayed means", "transformer"])
def config(request) -> ModelConfig:
    """Every user tower keeps the same laws."""
    return request.param


def recommender(item_vector: str = "feature", config: ModelConfig = CONFIG) -> FusionRecommender:
    torch.manual_seed(0)
    model = FusionRecommender(
        config, item_vector, N_USERS, N_ITEMS, None if item_vector == "id" else TEXT_SIZE
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture
def text() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N_ITEMS, TEXT_SIZE)).astype(np.float32)


@pytest.fixture
def histories() -> Histories:
    generator = np.random.default_rng(1)
    return Histories.from_lists(
        [generator.permutation(N_ITEMS)[:n] for n in (1, 3, 4, 5, 9, 17)], list(range(6))
    )


@pytest.mark.parametrize("item_vector", ["feature", "id", "text"])
def test_training_equals_inference_at_every_position(item_vector, config, text, histories):
    model = recommender(item_vector, config)
    catalogue = catalogue_vectors(model, text)
    items = torch.from_numpy(catalogue[:, :-1])
    compared = 0
    for [batch] in make_windows(histories, LENGTH).epoch(0, seed=0, batch_size=4, negatives=2):
        rows = batch.rows[batch.inputs]
        with torch.no_grad():
            trained = model.user_vectors_at(items[rows], batch.input_mask, batch.user_rows, LENGTH, batch.slots)
        for place, slot in enumerate(batch.slots.tolist()):
            b, p = divmod(slot, LENGTH)
            user, inputs = int(batch.user_rows[b]), slice(0, LENGTH + p)
            past = rows[b, inputs][batch.input_mask[b, inputs]].tolist()
            served = user_matrix(model, catalogue, Histories.from_lists([past], [user]))
            np.testing.assert_allclose(trained[place].numpy(), served[0, :-1], atol=1e-5)
            compared += 1
    assert compared == histories.lengths.sum()


def test_the_future_is_never_read(config, text, histories):
    model = recommender(config=config)
    history = torch.randn(2, 2 * LENGTH - 1, 8)
    mask = torch.ones(history.shape[:2], dtype=torch.bool)
    changed = history.clone()
    changed[:, -1] += 100.0
    rows = torch.tensor([0, -1])
    everywhere = torch.arange(2 * LENGTH)
    before, after = (
        model.user_vectors_at(items, mask, rows, LENGTH, everywhere).view(2, LENGTH, -1) for items in (history, changed)
    )
    torch.testing.assert_close(before[:, :-1], after[:, :-1], atol=0, rtol=0)
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_only_the_newest_items_within_the_history_length_count(config, text):
    model = recommender(config=config)
    catalogue = catalogue_vectors(model, text)
    long, short = Histories.from_lists([[9, 8, 1, 2, 3, 4]]), Histories.from_lists([[1, 2, 3, 4]])
    np.testing.assert_array_equal(user_matrix(model, catalogue, long), user_matrix(model, catalogue, short))
    shorter = Histories.from_lists([[2, 3, 4]])
    assert np.abs(user_matrix(model, catalogue, short) - user_matrix(model, catalogue, shorter)).max() > 1e-3


@pytest.mark.parametrize(("length", "layers", "expected"), [
    (50, 2, [24, 25]), (50, 1, [49]), (10, 3, [3, 3, 3]), (12, 4, [2, 3, 3, 3]), (1, 2, [0, 0]), (2, 3, [0, 0, 1]),
])
def test_the_layers_of_a_transformer_look_back_over_the_history_length_together(length, layers, expected):
    assert reaches(length, layers) == expected


@pytest.mark.parametrize(("length", "layers", "heads"), [(1, 2, 4), (2, 1, 1), (5, 3, 8)])
def test_a_transformer_of_any_depth_reads_the_oldest_item_of_its_history_and_none_before(length, layers, heads, text):
    model = recommender(config=TRANSFORMER.model_copy(update={
        "history_length": length, "transformer_layers": layers, "transformer_heads": heads}))
    catalogue = catalogue_vectors(model, text)
    past = list(range(10, 10 + length))
    same, changed = Histories.from_lists([past, [1, *past]]), Histories.from_lists([past, [1, *past[1:]]])
    users, others = user_matrix(model, catalogue, same), user_matrix(model, catalogue, changed)
    np.testing.assert_allclose(users[0], users[1], atol=1e-6)
    assert np.abs(others[0] - others[1]).max() > 1e-4


def test_a_transformer_reads_the_order_of_a_history(text):
    model = recommender(config=TRANSFORMER)
    catalogue = catalogue_vectors(model, text)
    users = user_matrix(model, catalogue, Histories.from_lists([[1, 2, 3], [2, 1, 3]]))
    assert np.abs(users[0] - users[1]).max() > 1e-3


def test_an_unknown_user_and_an_empty_history_have_finite_vectors(config, text):
    model = recommender(config=config)
    catalogue = catalogue_vectors(model, text)
    people = Histories.from_lists([[1, 2], [1, 2], [], []], [3, -1, 3, -1])
    users = user_matrix(model, catalogue, people)
    assert np.isfinite(users).all()
    assert len(np.unique(users.round(5), axis=0)) == 4, "the user embedding and the history both matter"


def test_without_user_embedding_a_known_user_is_only_their_history(config, text):
    model = recommender(config=config.model_copy(update={"user_embedding": False}))
    catalogue = catalogue_vectors(model, text)
    users = user_matrix(model, catalogue, Histories.from_lists([[1, 2], [1, 2]], [3, -1]))
    np.testing.assert_array_equal(users[0], users[1])


def test_an_item_never_seen_in_train_is_its_text_and_starts_below_all_others(text):
    model = recommender()
    counts = torch.arange(N_ITEMS)
    model.start_from_popularity(counts)
    rows = torch.tensor([0])
    alone = model.text_item_vectors(torch.from_numpy(text[:1]))
    torch.testing.assert_close(model.item_vectors(rows, torch.from_numpy(text[:1])), alone)
    assert (model.item_biases(rows) < model.item_biases(torch.arange(1, N_ITEMS))).all()


def test_a_hidden_id_leaves_the_text_alone(text):
    model = recommender()
    rows, some = torch.arange(3), torch.from_numpy(text[:3])
    hidden = model.item_vectors(rows, some, torch.tensor([True, False, True]))
    torch.testing.assert_close(hidden[0], model.text_item_vectors(some)[0])
    torch.testing.assert_close(hidden[1], model.item_vectors(rows, some)[1])


def test_a_text_stands_in_the_history_as_its_newest_item(config, text, histories):
    model = recommender("text", config)
    catalogue = catalogue_vectors(model, text)
    said = np.zeros((len(histories), TEXT_SIZE), np.float32)
    said[[0, 4]] = text[[20, 21]]
    longer = Histories.from_lists(
        [[*history, *extra] for history, extra in zip(histories, [[20], [], [], [], [21], []], strict=True)],
        histories.user_rows.tolist(),
    )
    asked, bought = user_matrix(model, catalogue, histories, said), user_matrix(model, catalogue, longer)
    np.testing.assert_allclose(asked, bought, atol=1e-5)


def test_a_text_without_any_history_is_enough(config, text):
    model = recommender(config=config)
    catalogue = catalogue_vectors(model, text)
    nobody = Histories.from_lists([[], []])
    users = user_matrix(model, catalogue, nobody, text[:2])
    assert np.abs(users[0] - users[1]).max() > 1e-3


def test_the_neural_score_is_one_dot_product_with_the_bias_inside(text, histories):
    model = recommender()
    catalogue = catalogue_vectors(model, text)
    users = user_matrix(model, catalogue, histories)
    assert catalogue.shape == (N_ITEMS, 9)
    assert users.shape == (6, 9)
    assert catalogue.dtype == users.dtype == np.float32
    np.testing.assert_allclose(catalogue[:, -1], model.items.biases.weight.detach().numpy())
    np.testing.assert_array_equal(users[:, -1], 1.0)


def test_a_batch_of_users_equals_one_user_at_a_time(config, text, histories):
    model = recommender(config=config)
    catalogue = catalogue_vectors(model, text)
    rows = np.tile(np.array([[0, 7, -1, 29]]), (len(histories), 1))
    users = user_matrix(model, catalogue, histories)
    scores = ncf(model, users, catalogue, rows)
    for b in range(len(histories)):
        one = user_matrix(model, catalogue, histories.select(np.array([b])))
        np.testing.assert_allclose(one[0], users[b], atol=1e-5)
        np.testing.assert_allclose(ncf(model, one, catalogue, rows[b : b + 1])[0], scores[b], atol=1e-5)


def test_the_ncf_head_scores_missing_candidates_as_nan_in_blocks_of_any_size(text, histories, monkeypatch):
    model = recommender()
    catalogue = catalogue_vectors(model, text)
    users = user_matrix(model, catalogue, histories)
    rows = np.random.default_rng(0).integers(-1, N_ITEMS, (6, 11))
    whole = ncf(model, users, catalogue, rows)
    monkeypatch.setattr("llmrec_ray.model.scoring._BLOCK_ELEMENTS", 1)
    np.testing.assert_allclose(ncf(model, users, catalogue, rows), whole, atol=1e-6)
    np.testing.assert_array_equal(np.isnan(whole), rows < 0)


def test_no_users_give_no_rows(text):
    model = recommender()
    catalogue = catalogue_vectors(model, text)
    assert user_matrix(model, catalogue, Histories.from_lists([])).shape == (0, 9)


def test_the_same_seed_makes_the_same_model():
    first, second = recommender().state_dict(), recommender().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["gmf", "mlp", "neumf"])
def test_every_ncf_head_scores_all_pairs_and_shares_candidates(kind):
    torch.manual_seed(0)
    head, users, items = ncf_head(kind, 8, (6, 4)), torch.randn(3, 8), torch.randn(1, 5, 8)
    scores = head(users, items)
    assert scores.shape == (3, 5)
    torch.testing.assert_close(scores, head(users, items.expand(3, -1, -1)))
    torch.testing.assert_close(scores[1:2, 2:3], head(users[1:2], items[:, 2:3]))


def test_neumf_is_the_sum_of_gmf_and_mlp():
    torch.manual_seed(0)
    both, users, items = ncf_head("neumf", 8, (6, 4)), torch.randn(3, 8), torch.randn(1, 5, 8)
    parts = [ncf_head("gmf", 8, (6, 4)), ncf_head("mlp", 8, (6, 4))]
    for part in parts:
        part.load_state_dict({name: tensor for name, tensor in both.state_dict().items() if name in part.state_dict()})
    torch.testing.assert_close(both(users, items), parts[0](users, items) + parts[1](users, items))
    torch.testing.assert_close(parts[0](users, items), (users[:, None] * items) @ both.product.weight[0])
