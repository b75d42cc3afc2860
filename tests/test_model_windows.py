"""Windows: every event is predicted once, from what came before it, for any number of workers."""

from collections import Counter

import numpy as np
import pytest
import torch

from llmrec_ray.model import Windows, make_windows
from llmrec_ray.types import Histories

SETTINGS = {"seed": 3, "batch_size": 6, "negatives": 7}


@pytest.fixture
def histories() -> Histories:
    generator = np.random.default_rng(0)
    lengths = [0, 1, 2, 4, 5, 9, 10, 23]
    return Histories.from_lists([generator.integers(0, 40, n) for n in lengths], list(range(10, 18)))


@pytest.fixture
def windows(histories) -> Windows:
    return make_windows(histories, 4)


def pairs(batches, width: int = 4) -> Counter:
    """(user row, the newest `width` items before, target) of everything the batches ask for."""
    found = Counter()
    for batch in batches:
        first = batch.item_rows.shape[1] - batch.targets.shape[1]
        for b, p in batch.target_mask.nonzero().tolist():
            place = slice(first + p - width + 1, first + p + 1)
            past = batch.item_rows[b, place][batch.item_mask[b, place]].tolist()
            found[int(batch.user_rows[b]), tuple(past), int(batch.targets[b, p])] += 1
    return found


def test_every_event_is_predicted_once_from_the_newest_items_before_it(histories, windows):
    expected = Counter(
        (int(user), tuple(history[max(0, t - 4) : t].tolist()), int(history[t]))
        for user, history in zip(histories.user_rows, histories, strict=True)
        for t in range(len(history))
    )
    assert pairs(windows.epoch(0, **SETTINGS)) == expected


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_workers(windows, world_size):
    alone = list(windows.epoch(1, **SETTINGS))
    shares = [list(windows.epoch(1, **SETTINGS, rank=r, world_size=world_size)) for r in range(world_size)]
    assert {len(share) for share in shares} == {len(alone)} == {windows.steps(6)}
    for step, whole in enumerate(alone):
        parts = [share[step] for share in shares]
        assert pairs(parts) == pairs([whole])
        assert all(torch.equal(part.negatives, whole.negatives) and part.seed == whole.seed for part in parts)
        assert {len(part.user_rows) for part in parts} == {-(-len(whole.user_rows) // world_size)}
        assert sum(float(part.n_targets) for part in parts) == pytest.approx(float(whole.n_targets))
        assert float(whole.n_targets) == whole.target_mask.sum()


def test_epochs_and_seeds_shuffle_differently_and_repeat_exactly(windows):
    def order(epoch: int, seed: int) -> list:
        batches = windows.epoch(epoch, seed=seed, batch_size=6, negatives=7)
        return [(b.user_rows.tolist(), b.targets.tolist(), b.negatives.tolist(), b.seed) for b in batches]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(1, 1)
    assert order(0, 1) != order(0, 2)


def test_negatives_are_distinct_and_only_items_seen_in_train():
    histories = Histories.from_lists([[3, 5, 3], [7, 5]], [0, 1])
    for batch in make_windows(histories, 4).epoch(0, seed=0, batch_size=1, negatives=100):
        assert sorted(batch.negatives.tolist()) == [3, 5, 7]


def test_item_counts_cover_the_whole_catalogue(windows, histories):
    counts = windows.item_counts(50)
    assert counts.shape == (50,)
    assert counts.sum() == len(histories.item_rows)


def test_a_batch_moves_to_a_device_whole(windows):
    batch = next(windows.epoch(0, **SETTINGS)).to("meta")
    assert batch.targets.device.type == batch.n_targets.device.type == "meta"
    assert isinstance(batch.seed, int)
