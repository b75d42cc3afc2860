"""The reranker: a NeuMF-style network that corrects a weighted sum of signals for the candidates of a person.

It reads the user's and the item's vector (as an elementwise product, and through an MLP), the calibrated scores of
the signals, what is known of the item (its popularity and whether that rises), and the length of the history. It
starts as no correction at all. Numpy in and out around a plain torch network; it knows no signal, no fusion and no
fitting. Shapes: B users, C candidates, S signals, A item features, F = S + A + 1 features, D embedding size, N items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrec_ray.types import FloatArray, IntArray

__all__ = ["LearnedCorrection", "RerankerNetwork"]

LEAST, MOST = -6.0, 12.0
"""Calibrated scores are read within these bounds: co-occurrence has a long tail."""
DROPOUT = 0.2
_BLOCK_ELEMENTS = 2**22


class RerankerNetwork(nn.Module):
    """One number per candidate, 0 before training. No bias at the end: an order cannot see it."""

    def __init__(self, n_features: int, size: int, hidden: int) -> None:
        super().__init__()
        self.product = nn.Linear(size, 1, bias=False)
        self.user = nn.Linear(size, hidden, bias=False)
        self.item = nn.Linear(size, hidden, bias=False)
        self.features = nn.Linear(n_features, hidden)
        self.hidden = nn.Linear(hidden, hidden)
        self.direct = nn.Linear(n_features, 1, bias=False)
        self.join = nn.Linear(hidden, 1, bias=False)
        self.dropout = nn.Dropout(DROPOUT)
        for last in (self.product, self.direct, self.join):
            nn.init.zeros_(last.weight)

    def forward(self, user_BD: Tensor, item_BCD: Tensor, feature_BCF: Tensor) -> Tensor:
        """[B, C]."""
        layer = functional.relu(self.user(user_BD)[:, None] + self.item(item_BCD) + self.features(feature_BCF))
        layer = functional.relu(self.hidden(self.dropout(layer)))
        matched = self.product(user_BD[:, None] * item_BCD)
        score: Tensor = (matched + self.direct(feature_BCF) + self.join(layer)).squeeze(-1)
        return score


@dataclass(frozen=True)
class LearnedCorrection:
    """A network, and what it needs to read candidates.

    signals: names of its score inputs, in order. item_vectors: [N, D + 1] float32, the last column a bias, which it
    does not read. item_features: [N, A] float32, standardised. length_scale: mean and deviation of the logarithm of 1
    + the history's length. strength: what the network's output is times.
    """

    network: RerankerNetwork
    signals: tuple[str, ...]
    item_vectors: FloatArray
    item_features: FloatArray
    length_scale: tuple[float, float]
    strength: float = 1.0

    @classmethod
    def untrained(
        cls, signals: Sequence[str], item_vectors: FloatArray, item_features: FloatArray,
        length_scale: tuple[float, float], hidden: int,
    ) -> LearnedCorrection:
        """One that adds nothing yet."""
        n_features = len(signals) + item_features.shape[1] + 1
        network = RerankerNetwork(n_features, item_vectors.shape[1] - 1, hidden)
        return cls(network, tuple(signals), item_vectors, item_features, length_scale)

    def __call__(self, values: FloatArray, item_rows: IntArray, users: FloatArray, lengths: IntArray) -> FloatArray:
        """[B, C] float32 from calibrated scores [B, C, S], candidates [B, C] (-1 = empty, gets any number), user
        vectors [B, D + 1] and history lengths [B]."""
        added = np.zeros(item_rows.shape, np.float32)
        if not self.strength:
            return added
        if self.network.training:
            self.network.eval()
        block = max(1, _BLOCK_ELEMENTS // max(1, item_rows.shape[1] * self.item_vectors.shape[1]))
        for start in range(0, len(item_rows), block):
            part = slice(start, start + block)
            with torch.inference_mode():
                inputs = self.inputs(values[part], item_rows[part], users[part], lengths[part])
                added[part] = self.strength * self.network(*inputs).numpy()
        return added

    def inputs(
        self, values: FloatArray, item_rows: IntArray, users: FloatArray, lengths: IntArray
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the network reads: users [B, D], items [B, C, D] and features [B, C, F]."""
        rows = np.maximum(item_rows, 0)
        mean, std = self.length_scale
        length = np.broadcast_to(((np.log1p(lengths) - mean) / std)[:, None, None], (*rows.shape, 1))
        features = np.concatenate([values.clip(LEAST, MOST), self.item_features[rows], length], axis=-1)
        return (
            torch.from_numpy(np.ascontiguousarray(users[:, :-1])), torch.from_numpy(self.item_vectors[rows, :-1]),
            torch.from_numpy(features.astype(np.float32)),
        )

    def at(self, item_vectors: FloatArray, item_features: FloatArray) -> LearnedCorrection:
        """The same network with other vectors and features of the items."""
        return replace(self, item_vectors=item_vectors, item_features=item_features)

    def settings(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        return {
            "signals": list(self.signals), "hidden": self.network.hidden.in_features,
            "length_scale": list(self.length_scale), "strength": self.strength,
        }

    def state(self) -> dict[str, FloatArray]:
        """The network's weights and the item features; the item vectors are those of the model beside it."""
        weights = {f"network.{name}": tensor.numpy() for name, tensor in self.network.state_dict().items()}
        return {**weights, "item_features": self.item_features}

    @classmethod
    def from_state(
        cls, settings: Mapping[str, Any], state: Mapping[str, FloatArray], item_vectors: FloatArray
    ) -> LearnedCorrection:
        """The correction that `settings` and `state` came from."""
        mean, std = settings["length_scale"]
        empty = cls.untrained(
            settings["signals"], item_vectors, state["item_features"], (mean, std), settings["hidden"]
        )
        prefix = "network."
        weights = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
        empty.network.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        return replace(empty, strength=settings["strength"])
