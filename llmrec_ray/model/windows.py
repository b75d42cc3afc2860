"""Histories -> batches of training windows, the same ones for any number of workers.

A window asks for up to `length` consecutive events of one user and carries the `length` events before each
of them, so that every event of a history is predicted once per epoch from exactly what inference would read.
It knows rows only: no text, no model. Shapes: n windows of a step, B of one batch, P = `length` targets, W = 2 * length
- 1 inputs, S negatives, K hard negatives to draw from and h drawn, U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrec_ray.model.augment import Augmentation, Draws
from llmrec_ray.model.negatives import NegativeSampler, Uniform
from llmrec_ray.types import Histories, IntArray

__all__ = ["HEAD_STRIDE", "WindowBatch", "Windows", "make_windows", "moved"]

HEAD_STRIDE = 4
"""The NCF head learns from every fourth target."""

PLACES = (
    "user_rows", "inputs", "input_mask", "targets", "slots", "negatives", "head_targets", "n_targets", "hard", "liked",
    "times",
)


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
    hard: [B, h] int64 places, negatives of each window alone; None when there are none.
    liked: [Q] bool, False for targets that were seen and disliked; None when all are liked.
    times: [Q] int64 unix seconds of each target; None when nothing depends on them.
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
    hard: Tensor | None = None
    liked: Tensor | None = None
    times: Tensor | None = None

    def to(self, device: torch.device | str) -> WindowBatch:
        """The same batch with its places on a device; to a GPU from pinned memory, without waiting for it."""
        device = torch.device(device)
        there = {name: getattr(self, name) for name in PLACES}
        tensors: dict[str, Any] = {name: moved(tensor, device) for name, tensor in there.items() if tensor is not None}
        return replace(self, **tensors)


@dataclass(frozen=True)
class _Step:
    """What is drawn for one step of all workers: window numbers [n], negatives [S], what changes histories, and hard
    negatives [n, h]."""

    windows: IntArray
    negatives: IntArray
    n_targets: float
    seed: int
    draws: Draws | None
    hard: IntArray | None

    def of(self, places: IntArray) -> IntArray:
        """Window numbers at these places of the step; -1 stays -1."""
        return np.where(places >= 0, self.windows[places], -1)


class Windows:
    """All windows of all users; `epoch` shuffles, splits and samples deterministically.

    sampler: where shared negatives come from, uniform when None. augmentation: what is done to inputs. liked: [E] bool
    per event of the histories, False for those that were disliked; None when all were liked. times: [E] int64 unix
    seconds of each event; None when nothing depends on them.
    """

    def __init__(
        self, histories: Histories, length: int, sampler: NegativeSampler | None = None,
        augmentation: Augmentation | None = None, liked: NDArray[np.bool_] | None = None,
        times: IntArray | None = None,
    ) -> None:
        self.histories = histories
        self.length = length
        self.sampler = sampler or Uniform(np.bincount(histories.item_rows))
        self._augmentation = augmentation
        self._liked, self._times = liked, times
        per_user = -(-histories.lengths // length)
        self._users = np.repeat(np.arange(len(histories)), per_user)
        first = np.concatenate([[0], np.cumsum(per_user)[:-1]]).astype(np.int64)
        self._starts = (np.arange(len(self._users)) - first[self._users]) * length

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
        hard: tuple[IntArray, int] | None = None,
    ) -> Iterator[list[WindowBatch]]:
        """Worker `rank`'s micro-batches of each step of one epoch, from `first_step` on.

        All workers together see each window exactly once. `batch_size` and `negatives` are those of the whole step.
        Every worker has the same number of micro-batches with the same number of windows; those that are missing in
        the last step are all masked. hard: a pool [U, K] of item rows per user, -1 where it has fewer, and how many of
        it each window gets; a uniform negative takes the place of a missing one.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        for number in range(first_step, self.steps(batch_size)):
            chosen = order[number * batch_size : (number + 1) * batch_size]
            step = self._draw(chosen, np.random.default_rng([seed, epoch, number]), negatives, world_size, hard)
            padding = np.full(-len(chosen) % (world_size * micro_batches), -1)
            shares = np.concatenate([np.arange(len(chosen)), padding]).reshape(-1, world_size)
            yield [
                self._batch(step, micro[:, rank], micro.ravel() if with_step_rows else None)
                for micro in np.split(shares, micro_batches)
            ]

    def _draw(
        self, chosen: IntArray, generator: np.random.Generator, n_negatives: int, world_size: int,
        hard: tuple[IntArray, int] | None,
    ) -> _Step:
        asked = self._targets(chosen) if self.sampler.reads_targets else np.empty(0, np.int64)
        negatives = self.sampler.draw(generator, n_negatives, asked)
        seed = int(generator.integers(2**62))
        augmentation = self._augmentation
        return _Step(
            windows=chosen,
            negatives=negatives,
            n_targets=float(self._n_targets(chosen).sum() / world_size),
            seed=seed,
            draws=None if augmentation is None else augmentation.draw(generator, len(chosen), 2 * self.length - 1),
            hard=None if hard is None else _hard(hard[0][self._users[chosen]], hard[1], negatives, generator),
        )

    def _n_targets(self, chosen: IntArray) -> IntArray:
        return np.minimum(self.histories.lengths[self._users[chosen]] - self._starts[chosen], self.length)

    def _targets(self, chosen: IntArray) -> IntArray:
        events, mask = self._events(chosen, self._starts[chosen], self.length)
        return self.histories.item_rows[events[mask]]

    def _batch(self, step: _Step, places: IntArray, everybodys: IntArray | None) -> WindowBatch:
        chosen = step.of(places)
        inputs, input_mask = self._inputs(step, places)
        events, target_mask = self._events(chosen, self._starts[chosen], self.length)
        asked = self.histories.item_rows[events[target_mask]]
        hard = _shared_where_absent(step, places)
        rows, numbers = np.unique(
            np.concatenate([inputs.ravel(), asked, step.negatives, hard.ravel()]), return_inverse=True
        )
        input_numbers, target_numbers, negative_numbers, hard_numbers = np.split(
            numbers, np.cumsum([inputs.size, asked.size, len(step.negatives)])
        )
        slots = np.flatnonzero(target_mask)
        user_rows = np.where(chosen >= 0, self.histories.user_rows[self._users[chosen]], -1)
        head_targets = np.flatnonzero(slots % self.length % HEAD_STRIDE == step.seed % HEAD_STRIDE)
        return WindowBatch(
            rows=torch.from_numpy(rows),
            step_rows=None if everybodys is None else torch.from_numpy(self._item_rows(step, everybodys)),
            user_rows=torch.from_numpy(user_rows),
            inputs=torch.from_numpy(input_numbers.reshape(inputs.shape)),
            input_mask=torch.from_numpy(input_mask),
            targets=torch.from_numpy(target_numbers),
            slots=torch.from_numpy(slots),
            negatives=torch.from_numpy(negative_numbers),
            head_targets=torch.from_numpy(head_targets),
            n_targets=torch.tensor(step.n_targets, dtype=torch.float32),
            seed=step.seed,
            hard=None if step.hard is None else torch.from_numpy(hard_numbers.reshape(hard.shape)),
            liked=None if self._liked is None else torch.from_numpy(self._liked[events[target_mask]]),
            times=None if self._times is None else torch.from_numpy(self._times[events[target_mask]]),
        )

    def _item_rows(self, step: _Step, places: IntArray) -> IntArray:
        parts = self._inputs(step, places)[0], self._targets(step.of(places)), _shared_where_absent(step, places)
        return np.unique(np.concatenate([*(part.ravel() for part in parts), step.negatives]))

    def _inputs(self, step: _Step, places: IntArray) -> tuple[IntArray, NDArray[np.bool_]]:
        """Rows and mask of what windows read; masked inputs are row 0."""
        chosen = step.of(places)
        events, mask = self._events(chosen, self._starts[chosen] - self.length, 2 * self.length - 1)
        inputs = np.where(mask, self.histories.item_rows[events], 0)
        if self._augmentation is None or step.draws is None:
            return inputs, mask
        return self._augmentation.apply(inputs, mask, step.draws.of(places))

    def _events(self, chosen: IntArray, first: IntArray, width: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """Numbers [B, width] of the events `first .. first + width` of each window's user (0 if absent), and mask."""
        users = self._users[chosen]
        events = first[:, None] + np.arange(width)[None, :]
        mask = (events >= 0) & (events < self.histories.lengths[users][:, None]) & (chosen >= 0)[:, None]
        return np.where(mask, self.histories.indptr[users][:, None] + events, 0), mask


def make_windows(
    histories: Histories, length: int, sampler: NegativeSampler | None = None,
    augmentation: Augmentation | None = None, liked: NDArray[np.bool_] | None = None, times: IntArray | None = None,
) -> Windows:
    """Windows of `length` targets (the model's `history_length`) over every user with at least one event."""
    assert len(histories.item_rows), "no events to train on. This is a bug: ingest refuses an empty data set."
    return Windows(histories, length, sampler, augmentation, liked, times)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a copy to a GPU goes through pinned memory and is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _hard(pool: IntArray, n: int, negatives: IntArray, generator: np.random.Generator) -> IntArray:
    """[n windows, h] distinct draws from each window's pool; the shared negatives stand in for what it lacks."""
    order = np.argsort(generator.random(pool.shape), axis=1)[:, :n]
    drawn = np.take_along_axis(pool, order, axis=1).astype(np.int64)
    return np.where(drawn >= 0, drawn, negatives[generator.integers(len(negatives), size=drawn.shape)])


def _shared_where_absent(step: _Step, places: IntArray) -> IntArray:
    """[B, h] hard negatives at these places of a step, some shared one where there is no window; [B, 0] for none."""
    if step.hard is None:
        return np.empty((len(places), 0), np.int64)
    return np.where(places[:, None] >= 0, step.hard[places], step.negatives[0])
