"""Samplers: what they draw, how often, and with which correction."""

import numpy as np
import pytest

from llmrec_ray.config import TrainConfig
from llmrec_ray.errors import ConfigError
from llmrec_ray.model import make_windows
from llmrec_ray.model.negatives import Everything, InBatch, Popular, Uniform, make_sampler
from llmrec_ray.types import Histories

COUNTS = np.array([0, 1, 4, 0, 16, 9])
TARGETS = np.array([4, 4, 2, 5])
SAMPLERS = [Uniform(COUNTS), Everything(COUNTS), Popular(COUNTS, 0.5), Popular(COUNTS, 0.0), InBatch(COUNTS)]


def drawn(sampler, n: int, draws: int = 1, targets: np.ndarray = TARGETS) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.concatenate([sampler.draw(generator, n, targets) for _ in range(draws)])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_only_items_of_train_are_drawn_as_integers_and_repeatably(sampler):
    rows = drawn(sampler, 50, 20)
    assert rows.dtype == np.int64 and (COUNTS[rows] > 0).all()
    np.testing.assert_array_equal(rows, drawn(sampler, 50, 20))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_correction_is_finite_for_every_item_and_there_unless_all_are_as_likely(sampler):
    if isinstance(sampler, Uniform):
        assert sampler.log_q is None
    else:
        assert np.isfinite(sampler.log_q).all() and sampler.log_q.dtype == np.float32
        assert np.exp(sampler.log_q[COUNTS > 0]).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("sampler", "shares"), [
    (Popular(COUNTS, 0.5), [0, 0.1, 0.2, 0, 0.4, 0.3]), (Popular(COUNTS, 0.0), [0, 0.25, 0.25, 0, 0.25, 0.25]),
    (Popular(COUNTS, 1.0), [0, 1 / 30, 4 / 30, 0, 16 / 30, 9 / 30]),
])
def test_popular_items_are_drawn_as_often_as_the_correction_says(sampler, shares):
    counts = np.bincount(drawn(sampler, 20_000), minlength=6)
    np.testing.assert_allclose(counts / 20_000, shares, atol=0.01)
    np.testing.assert_allclose(np.exp(sampler.log_q)[COUNTS > 0], np.array(shares)[COUNTS > 0], rtol=1e-5)


def test_uniform_negatives_are_distinct_and_everything_is_all_of_them_in_any_order():
    assert len(set(drawn(Uniform(COUNTS), 3))) == 3
    assert sorted(drawn(Uniform(COUNTS), 50)) == sorted(drawn(Everything(COUNTS), 1)) == [1, 2, 4, 5]
    assert len({tuple(drawn(Everything(COUNTS), 1, seed)[-4:]) for seed in range(1, 9)}) > 1


def test_in_batch_negatives_are_the_targets_of_the_step_as_often_as_they_are_asked_for():
    sampler = InBatch(COUNTS)
    assert sampler.reads_targets
    assert sorted(drawn(sampler, 50)) == sorted(TARGETS)
    assert sorted(drawn(sampler, 50, targets=np.array([2]))) == [2]
    assert len(drawn(sampler, 3)) == 3
    np.testing.assert_allclose(np.exp(sampler.log_q[[1, 2, 4, 5]]), np.array([1, 4, 16, 9]) / 30, rtol=1e-5)


def test_a_full_softmax_over_too_many_items_is_refused():
    with pytest.raises(ConfigError) as caught:
        make_sampler(TrainConfig(loss="full_softmax"), np.ones(20_001, np.int64))
    assert str(caught.value) == (
        "train.loss full_softmax compares every target with all 20,001 items of train, and more than 20,000 take too "
        "long: set train.loss to sampled_softmax."
    )


@pytest.mark.parametrize(("settings", "kind"), [
    ({}, Uniform), ({"loss": "full_softmax"}, Everything), ({"negative_sampling": "popularity"}, Popular),
    ({"negative_sampling": "in_batch"}, InBatch), ({"negative_sampling": "mined"}, Uniform),
])
def test_the_recipe_names_the_sampler(settings, kind):
    assert type(make_sampler(TrainConfig(**settings), COUNTS)) is kind


@pytest.mark.parametrize(("world_size", "micro_batches"), [(2, 1), (3, 2)])
def test_in_batch_negatives_are_those_of_the_whole_step_for_any_number_of_workers(world_size, micro_batches):
    generator = np.random.default_rng(0)
    histories = Histories.from_lists([generator.integers(0, 30, n) for n in (3, 5, 9, 2, 12)], list(range(5)))
    windows = make_windows(histories, 4, InBatch(np.bincount(histories.item_rows)))
    settings = {"seed": 0, "batch_size": 5, "negatives": 1000}
    alone = list(windows.epoch(0, **settings))
    shares = [
        list(windows.epoch(0, **settings, rank=r, world_size=world_size, micro_batches=micro_batches))
        for r in range(world_size)
    ]
    for step, [whole] in enumerate(alone):
        negatives = whole.rows[whole.negatives].tolist()
        assert sorted(negatives) == sorted(whole.rows[whole.targets].tolist())
        for part in (micro for share in shares for micro in share[step]):
            assert part.rows[part.negatives].tolist() == negatives
