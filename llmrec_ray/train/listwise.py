"""Lists of candidates -> the reranker that corrects late fusion on them, or one that leaves it as it is.

Softmax cross-entropy of the target among its candidates (listwise, Cao et al. 2007). How far the correction is trusted
is decided on people whose lists it was not fitted on; a correction that does not help there gets strength 0.
Shapes: L lists, C candidates, S signals, A item features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from llmrec_ray.metrics import ndcg_gains
from llmrec_ray.model.reranker import LearnedCorrection
from llmrec_ray.ranking import target_ranks
from llmrec_ray.signals import CandidateLists, calibrated, fuse
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["FittedCorrection", "fit_correction"]

HIDDEN = 32
EPOCHS = 10
BATCH_LISTS = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1.0
SHARPNESS = 1.5
"""Log of what late fusion's scores are times in the softmax, to begin with; it is learnt and then left out."""
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LEAST_GAIN = 0.5
"""A strength must gain half a standard error over none."""
K = 10


@dataclass(frozen=True)
class FittedCorrection:
    """The correction, and NDCG@10 on people it was not fitted on, of the lists, by strength."""

    correction: LearnedCorrection
    ndcg: dict[float, float]


def fit_correction(
    lists: CandidateLists, item_features: FloatArray, weights: Mapping[str, float], seed: int
) -> FittedCorrection:
    """For lists scored by late fusion with these weights; item_features [N, A], standardised.

    Two halves of the people decide for each other how strong the correction is; then all are fitted on.
    """
    problem = _Problem.of(lists, item_features, weights)
    half = np.random.default_rng(seed).integers(0, 2, int(lists.given.histories.user_rows.max(initial=0)) + 1)
    side = half[lists.given.histories.user_rows]
    added = np.zeros_like(problem.base)
    for fold in (0, 1):
        inside, outside = np.flatnonzero(side != fold), np.flatnonzero(side == fold)
        if len(inside) and len(outside):
            added[outside] = problem.predict(problem.fit(inside, seed), outside)
    gains = {strength: problem.gains(problem.base + np.float32(strength) * added) for strength in STRENGTHS}
    correction = replace(problem.fit(np.arange(len(lists)), seed), strength=_best_strength(gains))
    return FittedCorrection(correction, {strength: float(gain.mean()) for strength, gain in gains.items()})


def _best_strength(gains: Mapping[float, NDArray[np.float64]]) -> float:
    best = max(gains, key=lambda strength: (gains[strength].mean(), -strength))
    difference = gains[best] - gains[0.0]
    error = difference.std() / len(difference) ** 0.5
    return best if difference.mean() > LEAST_GAIN * error else 0.0


@dataclass(frozen=True)
class _Problem:
    """lists, their calibrated scores values [L, C, S], and the fused base [L, C] that is corrected."""

    lists: CandidateLists
    item_features: FloatArray
    values: FloatArray
    base: FloatArray

    @classmethod
    def of(cls, lists: CandidateLists, item_features: FloatArray, weights: Mapping[str, float]) -> _Problem:
        base, _ = fuse(lists.scores, lists.calibration, weights)
        return cls(lists, item_features, calibrated(lists.scores, lists.calibration, sorted(lists.scores)), base)

    def fit(self, rows: IntArray, seed: int) -> LearnedCorrection:
        """A network trained on these lists."""
        torch.manual_seed(seed)
        correction = self._untrained()
        network, sharpness = correction.network.train(), nn.Parameter(torch.tensor(SHARPNESS))
        groups: list[dict[str, Any]] = [{"params": network.parameters()}, {"params": [sharpness], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        steps = EPOCHS * -(-len(rows) // BATCH_LISTS)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        for some in _batches(rows, seed):
            optimizer.zero_grad()
            self._loss(correction, sharpness, some).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return correction

    def predict(self, correction: LearnedCorrection, rows: IntArray) -> FloatArray:
        """What it adds to these lists, [R, C]."""
        return correction(*self._candidates(rows))

    def gains(self, total: FloatArray) -> NDArray[np.float64]:
        """[L] NDCG@10 of each list."""
        ranks = target_ranks(np.where(self.lists.given.mask, total, -np.inf).astype(np.float32), self.lists.places)
        return ndcg_gains(ranks, K)

    def _loss(self, correction: LearnedCorrection, sharpness: Tensor, rows: IntArray) -> Tensor:
        added: Tensor = correction.network(*correction.inputs(*self._candidates(rows)))
        logits = sharpness.exp() * (torch.from_numpy(self.base[rows]) + added)
        logits = logits.masked_fill(torch.from_numpy(~self.lists.given.mask[rows]), -torch.inf)
        return functional.cross_entropy(logits, torch.from_numpy(self.lists.places[rows]))

    def _candidates(self, rows: IntArray) -> tuple[FloatArray, IntArray, FloatArray, IntArray]:
        given = self.lists.given
        return self.values[rows], given.item_rows[rows], given.users[rows], given.histories.lengths[rows]

    def _untrained(self) -> LearnedCorrection:
        lengths = np.log1p(self.lists.given.histories.lengths)
        scale = (float(lengths.mean()), float(lengths.std()) or 1.0)
        names, vectors = sorted(self.lists.scores), self.lists.item_vectors
        return LearnedCorrection.untrained(names, vectors, self.item_features, scale, HIDDEN)


def _batches(rows: IntArray, seed: int) -> Iterator[IntArray]:
    """All lists in another order for every epoch."""
    generator = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        order = generator.permutation(rows)
        yield from (order[start : start + BATCH_LISTS] for start in range(0, len(order), BATCH_LISTS))
