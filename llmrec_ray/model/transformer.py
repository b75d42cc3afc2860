"""A causal transformer as the user tower: self-attention over a history, in the manner of SASRec.

Kang and McAuley (2018) with three changes. The norms come first (Xiong et al. 2020). A learned bias per head for the
age of an item, in events, takes the place of position vectors (Raffel et al. 2020), so that a history means the same
wherever it stands in a window. And each layer looks back over a share of the history length only (Beltagy et al.
2020), shares that add up to it: a user vector depends on exactly the newest `history_length` items whatever came
before, so that one pass over a window trains every position on what serving would read there.

It knows no vocabulary, no loss and no catalogue. Shapes: B users, W positions of a history, P positions that are
asked for, Q of them that are needed, L queries of a layer, A attention heads, D embedding size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrec_ray.model.towers import add_known_users

__all__ = ["TransformerTower", "reaches"]


class TransformerTower(nn.Module):
    """User vectors by `n_layers` layers of causal self-attention with `n_heads` heads; see the module.

    A known user adds a learned vector; an unknown one (row -1) does not.
    """

    def __init__(
        self, n_users: int, size: int, *, history_length: int, n_layers: int, n_heads: int, user_embedding: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.users = nn.Embedding(n_users, size) if user_embedding else None
        self.reaches = reaches(history_length, n_layers)
        self.layers = nn.ModuleList(_Layer(size, n_heads, reach, dropout) for reach in self.reaches)
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
        present_BW1 = mask_BW.to(history_BWD.dtype)[..., None]
        states: Tensor = self.dropout(history_BWD * present_BW1 * math.sqrt(history_BWD.shape[-1]))
        for layer, n_queries in zip(self.layers, self._n_queries(n_positions, history_BWD.shape[1]), strict=True):
            states = layer(states, mask_BW[:, -states.shape[1] :], n_queries)
        states = states.flatten(end_dim=1)
        if slots is not None:
            states = functional.embedding(slots, states)
        if self.users is not None:
            states = add_known_users(states, self.users, user_rows, n_positions, slots)
        noisy: Tensor = self.dropout(self.norm(states))
        return noisy

    def _n_queries(self, n_positions: int, width: int) -> list[int]:
        """How many of the newest positions each layer must give, so that the last one has what it looks back at."""
        needed = [n_positions]
        for reach in self.reaches[:0:-1]:
            needed.append(min(needed[-1] + reach, width))
        return needed[::-1]


class _Layer(nn.Module):
    """Attention over a position and the `reach` ones before it, then an MLP; both pre-norm, both added."""

    def __init__(self, size: int, n_heads: int, reach: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.reach = n_heads, reach
        self.norm = nn.LayerNorm(size)
        self.queries, self.values = nn.Linear(size, size), nn.Linear(size, size)
        self.keys = nn.Linear(size, size, bias=False)  # a softmax could not see one
        self.ages = nn.Embedding(reach + 1, n_heads)
        self.merge = nn.Linear(size, size)
        self.mlp = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * size, size)
        )
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.ages.weight)

    def forward(self, states_BWD: Tensor, mask_BW: Tensor, n_queries: int) -> Tensor:
        """[B, L, D] the newest `n_queries` positions."""
        normed = self.norm(states_BWD)
        queries, keys = self._heads(self.queries(normed[:, -n_queries:])), self._heads(self.keys(normed))
        found = functional.scaled_dot_product_attention(
            queries, keys, self._heads(self.values(normed)), dropout_p=self.dropout.p if self.training else 0.0,
            attn_mask=self._bias(mask_BW, n_queries).to(queries.dtype),
        )
        states = states_BWD[:, -n_queries:] + self.dropout(self.merge(found.transpose(1, 2).flatten(start_dim=2)))
        added: Tensor = states + self.dropout(self.mlp(states))
        return added

    def _heads(self, part_BWD: Tensor) -> Tensor:
        """[B, A, W, D / A]."""
        return part_BWD.reshape(*part_BWD.shape[:2], self.n_heads, -1).transpose(1, 2)

    def _bias(self, mask_BW: Tensor, n_queries: int) -> Tensor:
        """[B, A, L, W] what is added to each logit; -inf where a query may not look. Every query sees itself, so that
        even an empty history has a state."""
        places = torch.arange(mask_BW.shape[1], device=mask_BW.device)
        age_LW = places[-n_queries:, None] - places[None, :]
        within_LW = (age_LW >= 0) & (age_LW <= self.reach)
        seen_BLW = (within_LW & mask_BW[:, None, :]) | (age_LW == 0)
        bias_LWA: Tensor = self.ages(age_LW.clamp(0, self.reach))
        return bias_LWA.permute(2, 0, 1).masked_fill(~seen_BLW[:, None], -torch.inf)


def reaches(history_length: int, n_layers: int) -> list[int]:
    """How many items before a position each layer sees: together, with the position's own, `history_length`."""
    share, rest = divmod(history_length - 1, n_layers)
    return [share + (layer >= n_layers - rest) for layer in range(n_layers)]
