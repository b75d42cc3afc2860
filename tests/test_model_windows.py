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


def pairs(steps, width: int = 4) -> Counter:
    """(user row, the newest `width` items before, target) of everything the micro-batches of some steps ask for."""
    found = Counter()
    for batch in (batch for step in steps for batch in step):
        inputs, targets = batch.rows[batch.inputs], batch.rows[batch.targets]
        positions = (inputs.shape[1] + 1) // 2
        for slot, target in zip(batch.slots.tolist(), targets.tolist(), strict=True):
            b, p = divmod(slot, positions)
            newest = inputs.shape[1] - positions + p
            place = slice(newest - width + 1, newest + 1)
            past = inputs[b, place][batch.input_mask[b, place]].tolist()
            found[int(batch.user_rows[b]), tuple(past), target] += 1
    return found


def test_every_event_is_predicted_once_from_the_newest_items_before_it(histories, windows):
    expected = Counter(
        (int(user), tuple(history[max(0, t - 4) : t].tolist()), int(history[t]))
        for user, history in zip(histories.user_rows, histories, strict=True)
        for t in range(len(history))
    )
    assert pairs(windows.epoch(0, **SETTINGS)) == expected


@pytest.mark.parametrize(("world_size", "micro_batches"), [(2, 1), (3, 1), (4, 1), (1, 3), (2, 2)])
def test_the_global_batch_does_not_depend_on_the_number_of_workers_and_micro_batches(
    windows, world_size, micro_batches
):
    alone = list(windows.epoch(1, **SETTINGS))
    shares = [
        list(windows.epoch(1, **SETTINGS, rank=r, world_size=world_size, micro_batches=micro_batches))
        for r in range(world_size)
    ]
    assert {len(share) for share in shares} == {len(alone)} == {windows.steps(6)}
    for step, [whole] in enumerate(alone):
        parts = [micro for share in shares for micro in share[step]]
        assert len(parts) == world_size * micro_batches
        assert pairs([parts]) == pairs([[whole]])
        assert all(torch.equal(negatives(part), negatives(whole)) and part.seed == whole.seed for part in parts)
        assert {len(part.user_rows) for part in parts} == {-(-len(whole.user_rows) // len(parts))}
        assert all(float(part.n_targets) * world_size == pytest.approx(float(whole.n_targets)) for part in parts)
        assert float(whole.n_targets) == len(whole.targets)


def negatives(batch) -> torch.Tensor:
    return batch.rows[batch.negatives]


def test_a_batch_names_its_items_once_and_knows_those_of_the_whole_step(windows):
    shares = [list(windows.epoch(0, **SETTINGS, rank=r, world_size=2, with_step_rows=True)) for r in range(2)]
    for [first], [second] in zip(*shares, strict=True):
        assert torch.equal(first.rows, first.rows.unique())
        assert torch.equal(first.step_rows, torch.cat([first.rows, second.rows]).unique())
        assert torch.equal(first.step_rows, second.step_rows)


def test_the_head_learns_from_every_fourth_target(windows):
    for [batch] in windows.epoch(0, **SETTINGS):
        positions = batch.slots[batch.head_targets] % 4
        assert (positions == batch.seed % 4).all()
        assert len(positions) == (batch.slots % 4 == batch.seed % 4).sum()


def test_an_epoch_can_begin_at_any_step(windows):
    whole = list(windows.epoch(2, **SETTINGS))
    for first in range(len(whole) + 1):
        rest = list(windows.epoch(2, **SETTINGS, first_step=first))
        assert [batch.seed for [batch] in rest] == [batch.seed for [batch] in whole[first:]]
        assert pairs(rest) == pairs(whole[first:])


def test_epochs_and_seeds_shuffle_differently_and_repeat_exactly(windows):
    def order(epoch: int, seed: int) -> list:
        steps = windows.epoch(epoch, seed=seed, batch_size=6, negatives=7)
        return [(b.user_rows.tolist(), b.rows[b.targets].tolist(), negatives(b).tolist(), b.seed) for [b] in steps]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(1, 1)
    assert order(0, 1) != order(0, 2)


def test_negatives_are_distinct_and_only_items_seen_in_train():
    histories = Histories.from_lists([[3, 5, 3], [7, 5]], [0, 1])
    for [batch] in make_windows(histories, 4).epoch(0, seed=0, batch_size=1, negatives=100):
        assert sorted(negatives(batch).tolist()) == [3, 5, 7]


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 1), (2, 1), (3, 2)])
def test_every_window_has_hard_negatives_of_its_own_user_whatever_the_split(
    windows, histories, world_size, micro_batches
):
    pool = np.arange(len(histories))[:, None] * 100 + np.arange(6)
    pool[4, 2:] = pool[5] = -1
    found = {}
    for rank in range(world_size):
        split = {"rank": rank, "world_size": world_size, "micro_batches": micro_batches, "with_step_rows": True}
        for step in windows.epoch(0, **SETTINGS, hard=(pool, 3), **split):
            for batch in step:
                assert torch.isin(batch.rows[batch.hard], batch.step_rows).all()
                for slot, target in zip(batch.slots.tolist(), batch.rows[batch.targets].tolist(), strict=True):
                    user, hard = int(batch.user_rows[slot // 4]), batch.rows[batch.hard][slot // 4].tolist()
                    shared = set(batch.rows[batch.negatives].tolist())
                    found.setdefault((user, slot % 4, target), []).append(hard)
                    own = [row for row in hard if row // 100 == user - 10 and row % 100 < 6 and row >= 100]
                    assert len(set(own)) == len(own), "distinct"
                    assert len(own) == {14: 2, 15: 0}.get(user, 3) or shared & set(hard)
    if world_size > 1:
        whole = {}
        for [batch] in windows.epoch(0, **SETTINGS, hard=(pool, 3)):
            for slot, target in zip(batch.slots.tolist(), batch.rows[batch.targets].tolist(), strict=True):
                key = int(batch.user_rows[slot // 4]), slot % 4, target
                whole.setdefault(key, []).append(batch.rows[batch.hard][slot // 4].tolist())
        assert {key: sorted(hard) for key, hard in found.items()} == {key: sorted(hard) for key, hard in whole.items()}


def test_targets_know_whether_they_were_liked(histories):
    liked = np.arange(len(histories.item_rows)) % 3 != 0
    counts = Counter(zip(histories.item_rows.tolist(), liked.tolist(), strict=True))
    found = Counter()
    for [batch] in make_windows(histories, 4, liked=liked).epoch(0, **SETTINGS):
        found.update(zip(batch.rows[batch.targets].tolist(), batch.liked.tolist(), strict=True))
    assert found == counts


def test_item_counts_cover_the_whole_catalogue(windows, histories):
    counts = windows.item_counts(50)
    assert counts.shape == (50,)
    assert counts.sum() == len(histories.item_rows)


def test_a_batch_moves_to_a_device_whole(windows):
    [batch] = next(windows.epoch(0, **SETTINGS))
    batch = batch.to("meta")
    assert batch.targets.device.type == batch.n_targets.device.type == "meta"
    assert batch.rows.device.type == "cpu", "the host plans with it"
    assert isinstance(batch.seed, int)
