"""Histories -> batches of training windows, the same ones for any number of workers.

A window asks for up to `length` consecutive events of one user and carries the `length` events before each
of them, so that every event of a history is predicted once per epoch from exactly what inference would read.
It knows rows only: no text, no model. Shapes: B windows, P = `length` targets, W = 2 * length - 1 inputs, S
negatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrec_ray.types import Histories, IntArray

__all__ = ["HEAD_STRIDE", "WindowBatch", "Windows", "make_windows", "moved"]

HEAD_STRIDE = 4
"""The NCF head learns from every fourth target."""

PLACES = ("user_rows", "inputs", "input_mask", "targets", "slots", "negatives", "head_targets", "n_targets")


@dataclass(frozen=True)
class WindowBatch:
    """One worker's share of one step, or one micro-batch of it.

    Items are named once: `rows` lists the distinct ones, everything else holds places in it. What a device needs to
    know about sizes is worked out here, on the host, so that the step itself never waits for the device.

    rows: [M] int64, distinct item rows, ascending; stays on the host. step_rows: [G] int64, distinct item rows of all
    workers' shares, ascending, on the host; None unless asked for.
    user_rows: [B] int64, -1 = unknown. inputs: [B, W] int64 places, oldest first; input_mask: [B, W] bool.
    targets: [Q] int64 places; slots: [Q] int64, where in the flattened [B, P] user vectors each target's user is. The
    p-th slot of a window follows its input W - P + p.
    negatives: [S] int64 places, the same items for all workers of the step.
    head_targets: [R] int64, the targets among Q that the NCF head learns from.
    n_targets: [] float32, targets of the whole step divided by the number of workers: a sum of losses divided
    by it, averaged over workers, is the mean over the step whatever the split.
    seed: what is random in this step, the same for all workers.
    """

    rows: Tensor
    step_rows: Tensor | None
    user_rows: Tensor
    inputs: Tensor
    input_mask: Tensor
    targets: Tensor
    slots: Tensor
    negatives: Tensor
    head_targets: Tensor
    n_targets: Tensor
    seed: int

    def to(self, device: torch.device | str) -> WindowBatch:
        """The same batch with its places on a device; to a GPU from pinned memory, without waiting for it."""
        device = torch.device(device)
        tensors: dict[str, Any] = {name: moved(getattr(self, name), device) for name in PLACES}
        return replace(self, **tensors)


class Windows:
    """All windows of all users; `epoch` shuffles, splits and samples deterministically."""

    def __init__(self, histories: Histories, length: int) -> None:
        self.histories = histories
        self.length = length
        per_user = -(-histories.lengths // length)
        self._users = np.repeat(np.arange(len(histories)), per_user)
        first = np.concatenate([[0], np.cumsum(per_user)[:-1]]).astype(np.int64)
        self._starts = (np.arange(len(self._users)) - first[self._users]) * length
        self._train_items = np.unique(histories.item_rows)

    def __len__(self) -> int:
        return len(self._users)

    def steps(self, batch_size: int) -> int:
        """Steps in one epoch; the last one may be smaller."""
        return -(-len(self) // batch_size)

    def item_counts(self, n_items: int) -> Tensor:
        """[n_items] int64 how often each item occurs."""
        return torch.from_numpy(np.bincount(self.histories.item_rows, minlength=n_items))

    def epoch(
        self,
        epoch: int,
        *,
        seed: int,
        batch_size: int,
        negatives: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
        first_step: int = 0,
        with_step_rows: bool = False,
    ) -> Iterator[list[WindowBatch]]:
        """Worker `rank`'s micro-batches of each step of one epoch, from `first_step` on.

        All workers together see each window exactly once. `batch_size` and `negatives` are those of the whole step.
        Negatives are uniform and distinct, over items that occur in the histories. Every worker has the same number
        of micro-batches with the same number of windows; those that are missing in the last step are all masked.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        for step in range(first_step, self.steps(batch_size)):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            generator = np.random.default_rng([seed, epoch, step])
            sampled = generator.choice(
                self._train_items, size=min(negatives, len(self._train_items)), replace=False
            )
            n_targets = float(self._n_targets(chosen).sum() / world_size)
            step_seed = int(generator.integers(2**62))
            padding = np.full(-len(chosen) % (world_size * micro_batches), -1)
            shares = np.concatenate([chosen, padding]).reshape(-1, world_size)
            yield [
                self._batch(micro[:, rank], sampled, n_targets, step_seed, micro.ravel() if with_step_rows else None)
                for micro in np.split(shares, micro_batches)
            ]

    def _n_targets(self, chosen: IntArray) -> IntArray:
        return np.minimum(self.histories.lengths[self._users[chosen]] - self._starts[chosen], self.length)

    def _batch(
        self, chosen: IntArray, negatives: IntArray, n_targets: float, seed: int, everybodys: IntArray | None
    ) -> WindowBatch:
        inputs, input_mask, targets, target_mask = self._inputs_and_targets(chosen)
        asked = targets[target_mask]
        rows, places = np.unique(np.concatenate([inputs.ravel(), asked, negatives]), return_inverse=True)
        input_places, target_places, negative_places = np.split(places, np.cumsum([inputs.size, asked.size]))
        slots = np.flatnonzero(target_mask)
        user_rows = np.where(chosen >= 0, self.histories.user_rows[self._users[chosen]], -1)
        return WindowBatch(
            rows=torch.from_numpy(rows),
            step_rows=None if everybodys is None else torch.from_numpy(self._item_rows(everybodys, negatives)),
            user_rows=torch.from_numpy(user_rows),
            inputs=torch.from_numpy(input_places.reshape(inputs.shape)),
            input_mask=torch.from_numpy(input_mask),
            targets=torch.from_numpy(target_places),
            slots=torch.from_numpy(slots),
            negatives=torch.from_numpy(negative_places),
            head_targets=torch.from_numpy(np.flatnonzero(slots % self.length % HEAD_STRIDE == seed % HEAD_STRIDE)),
            n_targets=torch.tensor(n_targets, dtype=torch.float32),
            seed=seed,
        )

    def _item_rows(self, chosen: IntArray, negatives: IntArray) -> IntArray:
        inputs, _, targets, target_mask = self._inputs_and_targets(chosen)
        return np.unique(np.concatenate([inputs.ravel(), targets[target_mask], negatives]))

    def _inputs_and_targets(
        self, chosen: IntArray
    ) -> tuple[IntArray, NDArray[np.bool_], IntArray, NDArray[np.bool_]]:
        """Rows and masks of what windows read and ask for; masked inputs are row 0."""
        first_target = self._starts[chosen]
        targets, target_mask = self._slice(chosen, first_target, self.length)
        inputs, input_mask = self._slice(chosen, first_target - self.length, 2 * self.length - 1)
        return inputs, input_mask, targets, target_mask

    def _slice(self, chosen: IntArray, first: IntArray, width: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """Events `first .. first + width` of each window's user: rows [B, width] (0 if absent), mask."""
        users = self._users[chosen]
        events = first[:, None] + np.arange(width)[None, :]
        mask = (events >= 0) & (events < self.histories.lengths[users][:, None]) & (chosen >= 0)[:, None]
        flat = np.where(mask, self.histories.indptr[users][:, None] + events, 0)
        return np.where(mask, self.histories.item_rows[flat], 0), mask


def make_windows(histories: Histories, length: int) -> Windows:
    """Windows of `length` targets (the model's `history_length`) over every user with at least one event."""
    assert len(histories.item_rows), "no events to train on. This is a bug: ingest refuses an empty data set."
    return Windows(histories, length)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a copy to a GPU goes through pinned memory and is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
