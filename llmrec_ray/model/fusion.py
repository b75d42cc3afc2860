"""The recommender: item tower, user tower and NCF head behind one state dict.

Turns rows, text vectors and histories into vectors whose dot product (plus item bias) is the neural score. It
knows no vocabulary, no batch and no loss. Shapes as in `towers`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmrec_ray.config import ModelConfig
from llmrec_ray.model.towers import ItemTower, ItemVector, UserTower, ncf_head
from llmrec_ray.model.transformer import TransformerTower

__all__ = ["FusionRecommender"]


class FusionRecommender(nn.Module):
    """Vectors for items and users, and the two ways to score a pair.

    `text_size` is the width of text vectors (centred, unit norm); None with `item_vector: id`.
    """

    def __init__(
        self, config: ModelConfig, item_vector: ItemVector, n_users: int, n_items: int, text_size: int | None
    ) -> None:
        super().__init__()
        self.config = config
        self.item_vector: ItemVector = item_vector
        self.n_users, self.n_items, self.text_size = n_users, n_items, text_size
        self.items = ItemTower(item_vector, n_items, text_size, config.embedding_size)
        self.users = _user_tower(config, n_users)
        self.ncf = ncf_head(config.ncf_head, config.embedding_size, config.ncf_hidden)

    @property
    def reads_text(self) -> bool:
        """Whether item vectors need text vectors."""
        return self.items.text is not None

    @torch.no_grad()
    def start_from_popularity(self, item_counts: Tensor) -> None:
        """Set biases to the log of each item's count in train ([n_items]), unseen items' id vectors to zero.

        Uniform negatives make log popularity the bias that training would find; starting there also gives
        items that train never shows a bias below all others and a vector that is their text alone.
        """
        biases = self.items.biases.weight
        biases.copy_(torch.log1p(item_counts.to(biases.dtype)))
        biases.sub_(biases.mean())
        if self.items.ids is not None:
            self.items.ids.weight[item_counts == 0] = 0.0

    def item_vectors(self, item_rows: Tensor, text_MT: Tensor | None, hidden: Tensor | None = None) -> Tensor:
        """[M, D]; `hidden` [M] bool leaves out the id embedding of some, as for items nobody has seen."""
        vectors: Tensor = self.items(item_rows, text_MT, hidden)
        return vectors

    def item_biases(self, item_rows: Tensor) -> Tensor:
        """[M] what is added to the dot product."""
        biases: Tensor = self.items.biases(item_rows)
        return biases

    def text_item_vectors(self, text_BT: Tensor) -> Tensor:
        """[B, D] vectors of things that have a text and no row, such as a query. Needs `reads_text`."""
        assert self.items.text is not None, "this recommender reads no text. This is a bug."
        vectors: Tensor = self.items.text(text_BT)
        return vectors

    def user_vectors(self, history_BWD: Tensor, mask_BW: Tensor, user_rows: Tensor) -> Tensor:
        """[B, D] user vectors from right-aligned histories (newest last); user row -1 = unknown."""
        vectors: Tensor = self.users(history_BWD, mask_BW, user_rows)
        return vectors

    def user_vectors_at(
        self, history_BWD: Tensor, mask_BW: Tensor, user_rows: Tensor, n_positions: int, slots: Tensor
    ) -> Tensor:
        """[Q, D] user vectors, causal, for training: for each of the `slots` [Q], places in [B, P] flattened, the user
        after that one of the last `n_positions` positions."""
        vectors: Tensor = self.users(history_BWD, mask_BW, user_rows, n_positions, slots)
        return vectors

    def ncf_scores(self, user_BD: Tensor, item_BCD: Tensor) -> Tensor:
        """[B, C] scores of the NCF head; `item_BCD` may be [1, C, D]."""
        scores: Tensor = self.ncf(user_BD, item_BCD)
        return scores


def _user_tower(config: ModelConfig, n_users: int) -> UserTower | TransformerTower:
    size = config.embedding_size
    if config.user_tower == "transformer":
        return TransformerTower(
            n_users, size, history_length=config.history_length, n_layers=config.transformer_layers,
            n_heads=config.transformer_heads, user_embedding=config.user_embedding, dropout=config.dropout,
        )
    return UserTower(
        n_users, size, history_length=config.history_length, time_constants=config.time_constants,
        user_embedding=config.user_embedding, dropout=config.dropout,
    )
