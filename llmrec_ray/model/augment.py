"""Training histories made a little wrong, so that a model does not lean on any single event.

Of the windows of a step a share each is cropped (the oldest events are forgotten), masked (random events are
forgotten) or substituted (random events become a neighbour: an event next to another occurrence of the same item, in
anybody's history), as in CL4SRec (Xie et al. 2022) and CoSeRec (Liu et al. 2021), but without a contrastive loss.
Only what is read changes, never what is asked for. All randomness is drawn for a whole step at once, so that it does
not depend on the number of workers. Shapes: n windows of a step, B those of one batch, W inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.config import AugmentConfig
from llmrec_ray.types import Histories, IntArray

__all__ = ["Augmentation", "Draws"]

CHANGED = 0.3
"""Share of the events of a masked or substituted window that are."""
FARTHEST = 2
"""How many events away a neighbour may be."""

UNCHANGED, CROP, MASK, SUBSTITUTE = range(4)


@dataclass(frozen=True)
class Draws:
    """What is random in a step. kinds: [n] what happens to each window. cuts: [n] and noise: [n, W, 3] in [0, 1)."""

    kinds: IntArray
    cuts: NDArray[np.float64]
    noise: NDArray[np.float64]

    def of(self, windows: IntArray) -> Draws:
        """Those of some windows of the step, by place."""
        return Draws(self.kinds[windows], self.cuts[windows], self.noise[windows])


class Augmentation:
    """Crops, masks and substitutes inputs; neighbours come from the histories."""

    def __init__(self, config: AugmentConfig, histories: Histories) -> None:
        self._up_to = np.cumsum([config.crop, config.mask, config.substitute])
        self._histories = histories
        self._users = np.repeat(np.arange(len(histories)), histories.lengths)
        self._by_item = np.argsort(histories.item_rows, kind="stable")
        self._counts = np.bincount(histories.item_rows)
        self._firsts = np.cumsum(self._counts) - self._counts

    def draw(self, generator: np.random.Generator, n: int, width: int) -> Draws:
        """For a step of `n` windows of `width` inputs."""
        kinds = np.searchsorted(self._up_to, generator.random(n), side="right")
        return Draws((kinds + 1) % 4, generator.random(n), generator.random((n, width, 3)))

    def apply(
        self, inputs: IntArray, mask: NDArray[np.bool_], draws: Draws
    ) -> tuple[IntArray, NDArray[np.bool_]]:
        """Inputs [B, W] and what is present of them, [B, W], changed; the newest event of a cropped window stays."""
        changed = mask & (draws.noise[:, :, 0] < CHANGED)
        hidden = np.where((draws.kinds == CROP)[:, None], _oldest(mask, draws.cuts), changed)
        kept = mask & ~(hidden & np.isin(draws.kinds, (CROP, MASK))[:, None])
        replaced = changed & (draws.kinds == SUBSTITUTE)[:, None]
        rows = inputs.copy()
        rows[replaced] = self._neighbours(inputs[replaced], draws.noise[replaced][:, 1:])
        return np.where(kept, rows, 0), kept

    def _neighbours(self, rows: IntArray, noise: NDArray[np.float64]) -> IntArray:
        """For item rows [n], each of which occurs, the item of an event near a random occurrence; the item itself for
        somebody with one event only."""
        events = self._by_item[self._firsts[rows] + (noise[:, 0] * self._counts[rows]).astype(np.int64)]
        users = self._users[events]
        first, last = self._histories.indptr[users], self._histories.indptr[users + 1] - 1
        steps = (noise[:, 1] * 2 * FARTHEST).astype(np.int64) - FARTHEST
        steps += steps >= 0
        steps = np.where((events + steps < first) | (events + steps > last), -steps, steps)
        neighbours: IntArray = self._histories.item_rows[np.clip(events + steps, first, last)]
        return neighbours


def _oldest(mask: NDArray[np.bool_], cuts: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[B, W] True for a share `cuts` of each window's present inputs, the oldest ones, never all."""
    age = np.cumsum(mask, axis=1)
    return age <= (cuts * age[:, -1]).astype(np.int64)[:, None]
