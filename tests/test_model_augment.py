"""Augmentation: only inputs change, by known shares, the same for any number of workers."""

import numpy as np
import pytest
import torch

from llmrec_ray.config import AugmentConfig
from llmrec_ray.model import make_windows
from llmrec_ray.model.augment import CROP, MASK, SUBSTITUTE, UNCHANGED, Augmentation
from llmrec_ray.types import Histories

LENGTH = 6
SETTINGS = {"seed": 3, "batch_size": 8, "negatives": 5}


@pytest.fixture
def histories() -> Histories:
    """Every user goes through ten consecutive numbers, so that neighbours are known."""
    starts = np.random.default_rng(0).integers(0, 30, 60)
    return Histories.from_lists([np.arange(start, start + 10) for start in starts], list(range(60)))


def changed(histories: Histories, n: int = 400, **shares: float):
    """Inputs [n, W] with the first two absent, before and after, the mask after, and the draws."""
    augmentation = Augmentation(AugmentConfig(**shares), histories)
    draws = augmentation.draw(np.random.default_rng(0), n, 11)
    inputs, mask = np.tile(np.arange(9, 20), (n, 1)), np.tile(np.arange(11) >= 2, (n, 1))
    rows, kept = augmentation.apply(np.where(mask, inputs, 0), mask, draws)
    return np.where(mask, inputs, 0), rows, kept, draws


def test_each_share_of_the_windows_is_changed_in_its_way(histories):
    *_, draws = changed(histories, 4000, crop=0.1, mask=0.2, substitute=0.3)
    counts = np.bincount(draws.kinds, minlength=4) / 4000
    np.testing.assert_allclose(counts[[CROP, MASK, SUBSTITUTE, UNCHANGED]], [0.1, 0.2, 0.3, 0.4], atol=0.03)


def test_windows_that_are_not_drawn_stay_as_they_are(histories):
    before, after, kept, draws = changed(histories, crop=0.2, mask=0.2, substitute=0.2)
    same = draws.kinds == UNCHANGED
    np.testing.assert_array_equal(after[same], before[same])
    assert (kept[same].sum(axis=1) == 9).all()
    assert (before != after).any(axis=1)[~same].mean() > 0.8


def test_a_crop_forgets_the_oldest_events_and_never_all(histories):
    before, after, kept, _ = changed(histories, crop=1.0)
    np.testing.assert_array_equal(np.sort(kept, axis=1), kept, err_msg="what is left is the newest")
    assert {int(n) for n in kept.sum(axis=1)} == set(range(1, 10))
    np.testing.assert_array_equal(after, np.where(kept, before, 0))


def test_a_mask_forgets_random_events(histories):
    before, after, kept, _ = changed(histories, mask=1.0)
    assert kept[:, 2:].mean() == pytest.approx(0.7, abs=0.03) and not kept[:, :2].any()
    np.testing.assert_array_equal(after, np.where(kept, before, 0))


def test_a_substitute_stands_near_the_item_in_somebodys_history(histories):
    before, after, kept, _ = changed(histories, substitute=1.0)
    assert (kept[:, 2:]).all() and not kept[:, :2].any()
    moved = after[:, 2:] - before[:, 2:]
    assert set(np.unique(moved)) == {-2, -1, 0, 1, 2}
    assert (moved != 0).mean() == pytest.approx(0.3, abs=0.03)


def test_an_only_event_is_its_own_neighbour():
    _, after, _, _ = changed(Histories.from_lists([[row] for row in range(20)]), substitute=1.0)
    np.testing.assert_array_equal(after[:, 2:], np.tile(np.arange(11, 20), (400, 1)))


@pytest.mark.parametrize(("world_size", "micro_batches"), [(2, 1), (3, 2)])
def test_targets_stay_and_inputs_are_the_same_for_any_number_of_workers(histories, world_size, micro_batches):
    augmentation = Augmentation(AugmentConfig(crop=0.3, mask=0.3, substitute=0.3), histories)
    windows, plain = make_windows(histories, LENGTH, augmentation=augmentation), make_windows(histories, LENGTH)
    split = {"world_size": world_size, "micro_batches": micro_batches, "with_step_rows": True}
    shares = [list(windows.epoch(1, **SETTINGS, rank=r, **split)) for r in range(world_size)]
    steps = zip(windows.epoch(1, **SETTINGS), plain.epoch(1, **SETTINGS), strict=True)
    for step, ([whole], [original]) in enumerate(steps):
        assert torch.equal(whole.rows[whole.targets], original.rows[original.targets])
        assert torch.equal(whole.rows[whole.negatives], original.rows[original.negatives])
        assert not torch.equal(whole.rows[whole.inputs], original.rows[original.inputs])
        expected = read(whole)
        for part in (micro for share in shares for micro in share[step]):
            assert read(part).items() <= expected.items()
            assert torch.isin(part.rows[1:], part.step_rows).all()


def read(batch) -> dict[tuple, list]:
    """What each window reads, by its user and first target."""
    found, rows = {}, batch.rows[batch.inputs]
    first = {int(slot) // LENGTH: int(target) for slot, target in
             zip(batch.slots.flip(0), batch.rows[batch.targets].flip(0), strict=True)}
    for b, target in first.items():
        found[int(batch.user_rows[b]), target] = (rows[b].tolist(), batch.input_mask[b].tolist())
    return found


def test_an_epoch_can_begin_at_any_step(histories):
    windows = make_windows(histories, LENGTH, augmentation=Augmentation(AugmentConfig(mask=0.9), histories))
    whole = [read(batch) for [batch] in windows.epoch(0, **SETTINGS)]
    assert [read(batch) for [batch] in windows.epoch(0, **SETTINGS, first_step=5)] == whole[5:]
