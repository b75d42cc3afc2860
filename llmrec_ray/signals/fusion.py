"""What every fusion mode is: raw scores of a person's candidates in, one score and the signals' shares of it out.

Each mode says which signals it reads; the shares add up to the total. A candidate on which a signal has no opinion
(NaN) counts as that signal's mean; an empty place (row -1) gets 0 throughout. Shapes: B users, C candidates, S
signals, N items, L lists that fusion learns from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.signals.late import Calibration
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["CandidateLists", "Fusion", "Given", "calibrated"]


@dataclass(frozen=True)
class Given:
    """What is known about the candidates besides their scores.

    histories: of the B users. item_rows: [B, C] int64 candidates, -1 = empty place. users: [B, d + 1] float32 user
    vectors of the neural signal.
    """

    histories: Histories
    item_rows: IntArray
    users: FloatArray

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[B, C] True where there is a candidate."""
        return self.item_rows >= 0


class Fusion(Protocol):
    """How raw signal scores of candidates become one score."""

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals whose raw scores it reads."""

    def fuse(self, scores: Mapping[str, FloatArray], given: Given) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Total [B, C] float32, and shares by signal that add up to it, from raw scores [B, C] of `signals`."""

    def settings(self) -> dict[str, Any]:
        """What JSON can hold of it; with `state` and the calibration it can be made again."""

    def state(self) -> dict[str, FloatArray]:
        """Its arrays, for safetensors."""


@dataclass(frozen=True)
class CandidateLists:
    """What fusion learns from: L times the candidates of one moment, and the item that the person took.

    scores: signal -> [L, C] float32 raw scores. places: [L] int64, the target's column. calibration: of these scores.
    log_counts: [N] float32, log(1 + train events) of every item at that time. item_vectors: [N, d + 1] float32.
    """

    scores: Mapping[str, FloatArray]
    given: Given
    places: IntArray
    calibration: Calibration
    log_counts: FloatArray
    item_vectors: FloatArray

    def __len__(self) -> int:
        return len(self.places)


def calibrated(scores: Mapping[str, FloatArray], calibration: Calibration, names: Sequence[str]) -> FloatArray:
    """[B, C, S] float32 in standard deviations from each signal's mean; no opinion is 0."""
    return np.stack([np.nan_to_num(calibration.apply(name, scores[name])) for name in names], axis=-1)
