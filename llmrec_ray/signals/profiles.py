"""What people say about themselves: from a profile text's vector to the user vector that such a person would have.

One linear map by ridge regression, from the texts and learned vectors of the people of the train split, so that it
keeps nobody's text. Shapes: U and B users, T text vector size, d embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from llmrec_ray.signals.text import center, to_text_space
from llmrec_ray.types import FloatArray

__all__ = ["MIN_PROFILES", "ProfileMap"]

MIN_PROFILES = 10
RIDGE = 3.0


@dataclass(frozen=True)
class ProfileMap:
    """center: [T] float32, mean of the raw text vectors. weights: [T, d] and mean: [d] float32."""

    center: FloatArray
    weights: FloatArray
    mean: FloatArray

    @classmethod
    def fit(cls, raw: FloatArray, users: FloatArray, ridge: float = RIDGE) -> Self:
        """From raw text vectors [U, T] of profiles, none all zero, and the same people's user vectors [U, d]."""
        middle, mean = center(raw), users.mean(axis=0)
        texts = to_text_space(raw, middle).astype(np.float64)
        system = texts.T @ texts + ridge * np.eye(texts.shape[1])
        weights = np.linalg.solve(system, texts.T @ (users - mean))
        return cls(middle, weights.astype(np.float32), mean.astype(np.float32))

    def users(self, raw: FloatArray) -> FloatArray:
        """[B, d] user vectors for raw text vectors [B, T] of profiles."""
        return np.asarray(self.mean + to_text_space(raw, self.center) @ self.weights, np.float32)

    def arrays(self) -> dict[str, FloatArray]:
        """Everything needed, for safetensors."""
        return {"center": self.center, "weights": self.weights, "mean": self.mean}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """The map that `arrays` came from."""
        return cls(*(np.asarray(arrays[name], np.float32) for name in ("center", "weights", "mean")))
