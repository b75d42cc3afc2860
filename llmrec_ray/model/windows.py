"""Histories -> batches of training windows, the same ones for any number of workers.

A window asks for up to `length` consecutive events of one user and carries the `length` events before each
of them, so that every event of a history is predicted once per epoch from exactly what inference would read.
It knows rows only: no text, no model. Shapes: B windows, P = `length` targets, W = 2 * length - 1 inputs, S
negatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrec_ray.types import Histories, IntArray

__all__ = ["WindowBatch", "Windows", "make_windows"]


@dataclass(frozen=True)
class WindowBatch:
    """One worker's share of one step.

    user_rows: [B] int64, -1 = unknown. item_rows: [B, W] int64 inputs, oldest first; item_mask: [B, W] bool.
    targets: [B, P] int64; target_mask: [B, P] bool. The p-th target follows input position W - P + p.
    negatives: [S] int64, shared by all workers of the step.
    n_targets: [] float32, targets of the whole step divided by the number of workers: a sum of losses divided
    by it, averaged over workers, is the mean over the step whatever the split.
    seed: what is random in this step, the same for all workers.
    """

    user_rows: Tensor
    item_rows: Tensor
    item_mask: Tensor
    targets: Tensor
    target_mask: Tensor
    negatives: Tensor
    n_targets: Tensor
    seed: int

    def to(self, device: torch.device | str) -> WindowBatch:
        """The same batch on a device."""
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "seed"}
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
        self, epoch: int, *, seed: int, batch_size: int, negatives: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[WindowBatch]:
        """Worker `rank`'s batches of one epoch. All workers together see each window exactly once.

        `batch_size` and `negatives` are those of the whole step. Negatives are uniform and distinct, over
        items that occur in the histories. A worker left without windows in the last step gets one that is all
        masked.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        for step in range(self.steps(batch_size)):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            generator = np.random.default_rng([seed, epoch, step])
            sampled = generator.choice(
                self._train_items, size=min(negatives, len(self._train_items)), replace=False
            )
            padding = np.full(-len(chosen) % world_size, -1)
            share = np.concatenate([chosen, padding])[rank::world_size]
            n_targets = self._n_targets(chosen).sum() / world_size
            yield self._batch(share, sampled, float(n_targets), int(generator.integers(2**62)))

    def _n_targets(self, chosen: IntArray) -> IntArray:
        return np.minimum(self.histories.lengths[self._users[chosen]] - self._starts[chosen], self.length)

    def _batch(self, chosen: IntArray, negatives: IntArray, n_targets: float, seed: int) -> WindowBatch:
        first_target = self._starts[chosen]
        targets, target_mask = self._slice(chosen, first_target, self.length)
        inputs, input_mask = self._slice(chosen, first_target - self.length, 2 * self.length - 1)
        user_rows = np.where(chosen >= 0, self.histories.user_rows[self._users[chosen]], -1)
        return WindowBatch(
            user_rows=torch.from_numpy(user_rows),
            item_rows=torch.from_numpy(inputs),
            item_mask=torch.from_numpy(input_mask),
            targets=torch.from_numpy(targets),
            target_mask=torch.from_numpy(target_mask),
            negatives=torch.from_numpy(negatives),
            n_targets=torch.tensor(n_targets, dtype=torch.float32),
            seed=seed,
        )

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
