"""What is learnt for people whom training did not see: from whom, from which events, and at what time."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from llmrec_ray.bundle import Bundle
from llmrec_ray.data import Dataset
from llmrec_ray.policy import newcomer_weights
from llmrec_ray.signals import ProfileMap
from llmrec_ray.train.newcomers import profile_map
from llmrec_ray.types import Histories

USERS = np.arange(40)


@pytest.fixture(scope="module")
def bundle(tiny_release) -> Bundle:
    return Bundle.open(tiny_release.bundle.uri)


@pytest.fixture
def dataset(tiny_release) -> Dataset:
    return Dataset.open(tiny_release.dataset.uri)


def test_weights_for_newcomers_come_from_the_newest_events_of_unknown_people_at_the_time_they_are_asked_about(
    bundle, dataset, monkeypatch
):
    read: list[Histories] = []
    plain = bundle.user_vectors
    monkeypatch.setattr(bundle, "user_vectors", lambda histories: read.append(histories) or plain(histories))
    weights = newcomer_weights(dataset, bundle, bundle.calibration, ["item_item", "text"], USERS, 4)
    assert set(weights) <= {"item_item", "text"}
    assert sum(weights.values()) == pytest.approx(1.0)
    [few], train = read, dataset.histories("train")
    assert few.lengths[:6].tolist() == [1, 2, 3, 1, 2, 3]
    assert all(history.tolist() == train[user][-len(history):].tolist() for user, history in enumerate(few))
    assert (few.user_rows == -1).all()
    np.testing.assert_array_equal(few.asked_at, dataset.target_times("validation"))


def fitted(dataset: Dataset, bundle: Bundle, texts: list[str]) -> ProfileMap | None:
    dataset.user_texts = texts
    return profile_map(dataset, bundle, bundle.load_encoder())


def test_hardly_any_profiles_give_no_map(bundle, dataset):
    assert fitted(dataset, bundle, [f"likes {user}" if user < 9 else "" for user in USERS]) is None


def test_a_profile_of_somebody_without_a_train_event_is_not_learnt_from(bundle, dataset):
    without = (pl.col("user_row") == 3) & (pl.col("split") == "train")
    dataset.interactions = dataset.interactions.filter(~without)
    texts = [f"likes {'black' if user % 2 else 'white'}" for user in USERS]
    one, other = (fitted(dataset, bundle, [*texts[:3], said, *texts[4:]]) for said in (texts[3], "hates everything"))
    assert one is not None and other is not None
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(other.arrays()[name], array)
