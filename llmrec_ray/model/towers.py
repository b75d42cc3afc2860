"""Item tower, user tower and collaborative-filtering heads: the networks a recommender is made of.

They turn rows and text vectors into vectors, and vectors into scores. They know no vocabulary, no loss and no
catalogue. Shapes: B users, W positions of a history, P positions that are asked for, K time constants, M
items, C candidates per user, T text size, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "GmfHead", "ItemBiases", "ItemTower", "ItemVector", "MlpHead", "NcfKind", "NeumfHead", "UserTower",
    "add_known_users", "ncf_head",
]

ID_STD = 0.02

ItemVector: TypeAlias = Literal["feature", "id", "text"]
NcfKind: TypeAlias = Literal["neumf", "gmf", "mlp"]


class ItemTower(nn.Module):
    """Item vector = id embedding + linear projection of the item's text vector, or one of the two alone."""

    def __init__(self, kind: ItemVector, n_items: int, text_size: int | None, size: int) -> None:
        super().__init__()
        assert kind == "id" or text_size, f"item vectors of kind {kind!r} need text vectors. This is a bug."
        self.ids = nn.Embedding(n_items, size) if kind != "text" else None
        self.text = nn.Linear(text_size, size, bias=False) if kind != "id" and text_size else None
        self.biases = ItemBiases(n_items)
        if self.ids is not None:
            nn.init.normal_(self.ids.weight, std=ID_STD)

    def forward(self, item_rows: Tensor, text_MT: Tensor | None, hidden: Tensor | None = None) -> Tensor:
        """[M, D] vectors; where `hidden` [M] bool is True the id embedding is left out."""
        vectors = [] if self.ids is None else [_without(self.ids(item_rows), hidden)]
        if self.text is not None:
            assert text_MT is not None, "this item tower reads text vectors. This is a bug."
            vectors.append(self.text(text_MT))
        return torch.stack(vectors).sum(dim=0)


class ItemBiases(nn.Module):
    """One number per item. A module of its own, since ZeRO-3 gathers a weight when its module is called."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_items))

    def forward(self, item_rows: Tensor) -> Tensor:
        """[M]."""
        return self.weight[item_rows]


class UserTower(nn.Module):
    """A history as decayed means of its item vectors, mixed by one linear layer and one residual MLP.

    The k-th mean weighs an item that is `age` events old by exp(-age / time_constants[k]) (None: all alike)
    and reads the newest `history_length` items. A known user adds a learned vector; an unknown one (row -1)
    does not.
    """

    decay_KH: Tensor

    def __init__(
        self,
        n_users: int,
        size: int,
        *,
        history_length: int,
        time_constants: Sequence[float | None],
        user_embedding: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.register_buffer("decay_KH", _decay(time_constants, history_length), persistent=False)
        self.users = nn.Embedding(n_users, size) if user_embedding else None
        self.mix = nn.Linear(size * len(time_constants), size)
        self.residual = nn.Sequential(
            nn.Linear(size, 2 * size), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * size, size)
        )
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)
        if self.users is not None:
            nn.init.zeros_(self.users.weight)

    def forward(
        self, history_BWD: Tensor, mask_BW: Tensor, user_rows: Tensor, n_positions: int = 1,
        slots: Tensor | None = None,
    ) -> Tensor:
        """[B * P, D], or [Q, D] of the `slots` [Q] among them: what is known of each user after each of the last
        `n_positions` positions.

        history_BWD is oldest first; masked positions count as absent, and nothing after a position is read.
        """
        means = self._means(history_BWD, mask_BW, n_positions).flatten(start_dim=2).flatten(end_dim=1)
        if slots is not None:
            means = functional.embedding(slots, means)
        mixed = self.mix(self.dropout(means))
        if self.users is not None:
            mixed = add_known_users(mixed, self.users, user_rows, n_positions, slots)
        user: Tensor = self.norm(mixed + self.residual(mixed))
        noisy: Tensor = self.dropout(user)
        return noisy

    def _means(self, history_BWD: Tensor, mask_BW: Tensor, n_positions: int) -> Tensor:
        weight_KPW = self._band(n_positions, history_BWD.shape[1])
        present_BW = mask_BW.to(history_BWD.dtype)
        sums = torch.einsum("kpw,bwd->bpkd", weight_KPW, history_BWD * present_BW[..., None])
        totals = torch.einsum("kpw,bw->bpk", weight_KPW, present_BW)
        means: Tensor = sums / totals.clamp(min=1e-9)[..., None]
        return means

    def _band(self, n_positions: int, width: int) -> Tensor:
        """[K, P, W] weight of history position w for the p-th of the last P positions."""
        places = torch.arange(width, device=self.decay_KH.device)
        age_PW = places[width - n_positions :, None] - places[None, :]
        inside = (age_PW >= 0) & (age_PW < self.decay_KH.shape[1])
        weight_KPW: Tensor = self.decay_KH[:, age_PW.clamp(0, self.decay_KH.shape[1] - 1)]
        return weight_KPW * inside


class GmfHead(nn.Module):
    """Generalised matrix factorisation (He et al. 2017): a weighted sum of the elementwise product."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.product = nn.Linear(size, 1, bias=False)

    def forward(self, user_BD: Tensor, item_BCD: Tensor) -> Tensor:
        """[B, C] scores; `item_BCD` may be [1, C, D] when all users share the candidates."""
        score: Tensor = self.product(user_BD[:, None, :] * item_BCD).squeeze(-1)
        return score


class _Perceptron(nn.Module):
    """The hidden layers of an MLP over user and item together."""

    def __init__(self, size: int, hidden: Sequence[int]) -> None:
        super().__init__()
        first = hidden[0]
        self.user = nn.Linear(size, first)
        self.item = nn.Linear(size, first, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(hidden))

    def last_layer(self, user_BD: Tensor, item_BCD: Tensor) -> Tensor:
        """[B, C, width of the last hidden layer]."""
        layer = functional.relu(self.user(user_BD)[:, None, :] + self.item(item_BCD))
        for linear in self.hidden:
            layer = functional.relu(linear(layer))
        return layer


class MlpHead(_Perceptron):
    """A multi-layer perceptron over user and item (He et al. 2017)."""

    def __init__(self, size: int, hidden: Sequence[int]) -> None:
        super().__init__(size, hidden)
        self.join = nn.Linear(hidden[-1], 1, bias=False)

    def forward(self, user_BD: Tensor, item_BCD: Tensor) -> Tensor:
        """[B, C] scores; `item_BCD` may be [1, C, D] when all users share the candidates."""
        score: Tensor = self.join(self.last_layer(user_BD, item_BCD)).squeeze(-1)
        return score


class NeumfHead(_Perceptron):
    """NeuMF (He et al. 2017): an elementwise product and an MLP over user and item, joined linearly."""

    def __init__(self, size: int, hidden: Sequence[int]) -> None:
        super().__init__(size, hidden)
        self.product = nn.Linear(size, 1, bias=False)
        self.join = nn.Linear(hidden[-1], 1, bias=False)

    def forward(self, user_BD: Tensor, item_BCD: Tensor) -> Tensor:
        """[B, C] scores; `item_BCD` may be [1, C, D] when all users share the candidates."""
        last = self.last_layer(user_BD, item_BCD)
        score: Tensor = (self.product(user_BD[:, None, :] * item_BCD) + self.join(last)).squeeze(-1)
        return score


def ncf_head(kind: NcfKind, size: int, hidden: Sequence[int]) -> nn.Module:
    """A head for neural collaborative filtering over vectors of `size`; `hidden` widths are those of the MLP.

    None has a bias at the end: a softmax over candidates cannot see it.
    """
    if kind == "gmf":
        return GmfHead(size)
    return MlpHead(size, hidden) if kind == "mlp" else NeumfHead(size, hidden)


def add_known_users(
    vectors_QD: Tensor, table: nn.Embedding, user_rows: Tensor, n_positions: int, slots: Tensor | None
) -> Tensor:
    """[Q, D] with each known user's row of the table added; `slots` as in `UserTower.forward`."""
    known = _without(table(user_rows.clamp(min=0)), user_rows < 0)
    places = torch.arange(len(vectors_QD), device=known.device) if slots is None else slots
    return vectors_QD + functional.embedding(places // n_positions, known)


def _without(vectors: Tensor, hidden: Tensor | None) -> Tensor:
    return vectors if hidden is None else vectors * (~hidden).to(vectors.dtype)[:, None]


def _decay(time_constants: Sequence[float | None], length: int) -> Tensor:
    """[K, H] weight by age in events."""
    age = torch.arange(length, dtype=torch.float32)
    return torch.stack([torch.ones(length) if t is None else torch.exp(-age / t) for t in time_constants])
