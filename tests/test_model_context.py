"""Context: encoders fitted on train, features of time, silence until something is learnt, the same in every path."""

import numpy as np
import polars as pl
import pytest
import torch

from llmrec_ray.config import ContextConfig, ModelConfig, load_recipe
from llmrec_ray.errors import ConfigError, DataError
from llmrec_ray.model import FusionRecommender, TrainingModule, catalogue_vectors, make_windows, user_matrix
from llmrec_ray.model.context import MOST_WORDS, ContextFeatures, context_sizes, time_features, time_size
from llmrec_ray.types import Histories

USERS = pl.DataFrame({"age": [20, 40, None, 99], "job": ["cook", "cook", None, "spy"]})
ITEMS = pl.DataFrame({"year": ["1990", "1994", "1992"], "genres": ["Action Comedy", "Comedy", "War Action"]})
CONFIG = ContextConfig(user_columns=("age", "job"), item_columns=("genres", "year"))
MONDAY_6_AM = 1_736_143_200
"""2025-01-06 06:00 UTC."""


@pytest.fixture
def fitted() -> ContextFeatures:
    """The last user and the last item are not in train."""
    return ContextFeatures.fit(CONFIG, USERS, ITEMS, np.array([1, 1, 1, 0], bool), np.array([1, 1, 0], bool))


def test_numbers_are_standardised_by_train_and_words_have_places_with_one_for_all_others(fitted):
    np.testing.assert_allclose(fitted.encode_users(USERS), [
        [-1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 0], [6.9, 0, 0, 1],
    ], atol=1e-6)
    np.testing.assert_allclose(fitted.encode_items(ITEMS), [
        [1, 1, 0, -1, 0], [0, 1, 0, 1, 0], [1, 0, 1, 0, 0],
    ], atol=1e-6)


def test_encoders_survive_json(fitted):
    again = ContextFeatures.from_json(fitted.to_json())
    assert again == fitted
    np.testing.assert_array_equal(again.encode_users(USERS), fitted.encode_users(USERS))


def test_lists_and_truth_values_are_words_and_rare_words_share_a_place():
    many = pl.DataFrame({"tags": [[f"t{n}", "all"] for n in range(100)], "new": [True, False] * 50})
    fitted = ContextFeatures.fit(
        ContextConfig(item_columns=("tags", "new")), pl.DataFrame(), many, np.empty(0, bool), np.ones(100, bool)
    )
    encoded = fitted.encode_items(many)
    assert encoded.shape == (100, MOST_WORDS + 1 + 3)
    assert (encoded[:, :MOST_WORDS].sum(axis=1) + encoded[:, MOST_WORDS] == 2).all()
    assert fitted.encode_users(pl.DataFrame()).shape == (0, 0)


@pytest.mark.parametrize("column", [[None, None], [5, 5]])
def test_a_column_that_says_nothing_is_finite(column):
    table = pl.DataFrame({"x": pl.Series(column, dtype=pl.Int64)})
    config, nobody = ContextConfig(item_columns=("x",)), np.empty(0, bool)
    fitted = ContextFeatures.fit(config, pl.DataFrame(), table, nobody, np.ones(2, bool))
    assert np.isfinite(fitted.encode_items(table)).all()


def test_a_column_that_the_dataset_has_not_is_refused():
    with pytest.raises(DataError) as caught:
        ContextFeatures.fit(ContextConfig(user_columns=("zip",)), USERS, ITEMS, np.ones(4, bool), np.ones(3, bool))
    assert str(caught.value) == (
        "model.context.user_columns names zip, but the Dataset keeps age, job: add it to data.users.attributes and "
        "ingest again."
    )


def test_the_time_of_day_is_a_circle_and_days_of_the_week_have_places():
    times = torch.tensor([MONDAY_6_AM, MONDAY_6_AM + 6 * 86_400 + 6 * 3600, -1])
    features = time_features(times, ("weekday", "hour"))
    expected = torch.zeros(3, 9)
    expected[0, [0, 2]], expected[1, 1], expected[1, 8] = 1.0, -1.0, 1.0
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)
    assert time_features(times, ()).shape == (3, 0)
    assert [time_size(parts) for parts in ((), ("hour",), ("weekday",), ("hour", "weekday"))] == [0, 2, 7, 9]


def recommender(fitted: ContextFeatures, **context: object) -> FusionRecommender:
    torch.manual_seed(0)
    config = ModelConfig(embedding_size=8, history_length=4, ncf_hidden=(4,), dropout=0.0, context={
        "user_columns": ("age", "job"), "item_columns": ("genres", "year"), **context})
    users, items = fitted.encode_users(USERS), fitted.encode_items(ITEMS)
    model = FusionRecommender(config, "id", 4, 3, None, (users.shape[1], items.shape[1]))
    model.set_features(users, items)
    return model.eval()


def scores(model: FusionRecommender, histories: Histories) -> np.ndarray:
    vectors = catalogue_vectors(model, None)
    return user_matrix(model, vectors, histories) @ vectors.T


def test_context_is_silent_until_it_has_learnt_and_a_state_dict_brings_it_back(fitted):
    with_context = recommender(fitted, time=("hour",))
    torch.manual_seed(0)
    plain = FusionRecommender(ModelConfig(embedding_size=8, history_length=4, ncf_hidden=(4,)), "id", 4, 3, None).eval()
    histories = Histories.from_lists([[0, 1], [2]], [0, -1], np.array([MONDAY_6_AM, -1]))
    np.testing.assert_array_equal(scores(with_context, histories), scores(plain, histories))
    torch.nn.init.normal_(with_context.user_context.project.weight)
    torch.nn.init.normal_(with_context.item_context.project.weight)
    state = with_context.state_dict()
    assert context_sizes(state) == (4, 5) and context_sizes(plain.state_dict()) == (0, 0)
    again = FusionRecommender(with_context.config, "id", 4, 3, None, context_sizes(state)).eval()
    again.load_state_dict(state)
    np.testing.assert_array_equal(scores(again, histories), scores(with_context, histories))


def test_columns_and_the_time_matter_where_they_are_known_only(fitted):
    model = recommender(fitted, time=("hour", "weekday"))
    torch.nn.init.normal_(model.user_context.project.weight)
    morning, night, never = (np.full(2, time) for time in (MONDAY_6_AM, MONDAY_6_AM + 12 * 3600, -1))
    vectors = catalogue_vectors(model, None)
    by_time = [user_matrix(model, vectors, Histories.from_lists([[1], [1]], [0, -1], time))
               for time in (morning, night, never)]
    assert np.abs(by_time[0] - by_time[1]).max(axis=1).min() > 0.1
    without = user_matrix(model, vectors, Histories.from_lists([[1], [1]], [0, -1]))
    np.testing.assert_array_equal(by_time[2], without)
    assert np.abs(without[0] - without[1]).max() > 0.1, "user columns"


def test_training_reads_the_time_of_each_target_as_inference_does(fitted):
    model = recommender(fitted, time=("hour", "weekday"))
    torch.nn.init.normal_(model.user_context.project.weight)
    histories = Histories.from_lists([[0, 1, 2, 1, 0], [2, 1]], [0, 3])
    times = MONDAY_6_AM + 3600 * 7 * np.arange(7)
    items = torch.from_numpy(catalogue_vectors(model, None)[:, :-1])
    [batch] = next(make_windows(histories, 4, times=times).epoch(0, seed=0, batch_size=9, negatives=2))
    rows = batch.rows[batch.inputs]
    with torch.no_grad():
        trained = model.user_vectors_at(
            items[rows], batch.input_mask, batch.user_rows, 4, batch.slots, batch.times
        )
    for place, slot in enumerate(batch.slots.tolist()):
        b, p = divmod(slot, 4)
        past = rows[b, : 4 + p][batch.input_mask[b, : 4 + p]].tolist()
        served = Histories.from_lists([past], [int(batch.user_rows[b])], batch.times[place : place + 1].numpy())
        expected = user_matrix(model, catalogue_vectors(model, None), served)[0, :-1]
        np.testing.assert_allclose(trained[place].numpy(), expected, atol=1e-5)
    assert sorted(batch.times.tolist()) == sorted(times.tolist())


def test_gradients_reach_both_context_layers(fitted):
    model = recommender(fitted, time=("hour",))
    histories = Histories.from_lists([[0, 1, 2, 1, 0], [2, 1], [0, 2]], [0, 3, 1])
    windows = make_windows(histories, 4, times=np.arange(9) * 5000)
    [batch] = next(windows.epoch(0, seed=0, batch_size=9, negatives=2))
    TrainingModule(model, None)(batch).backward()
    assert model.user_context.project.weight.grad.abs().sum(dim=0).count_nonzero() >= 5
    assert model.item_context.project.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("overrides", "message"), [
    (["model.context.user_columns=[zip]"],
     "recipe: model.context.user_columns names zip, but data.users keeps no attributes: add it to "
     "data.users.attributes, or leave it out"),
    (["model.context.item_columns=[year, director]"],
     "recipe: model.context.item_columns names director, but data.items keeps year, genres: add it to "
     "data.items.attributes, or leave it out"),
])
def test_columns_that_cannot_be_had_are_refused(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe("movielens-100k", overrides=overrides)
    assert message in str(caught.value)
