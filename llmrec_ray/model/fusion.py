"""The recommender: item tower, user tower and NCF head behind one state dict.

Turns rows, text vectors and histories into vectors whose dot product (plus item bias) is the neural score. It
knows no vocabulary, no batch and no loss. Shapes as in `towers`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmrec_ray.config import ModelConfig
from llmrec_ray.model.context import ContextLayer, time_features, time_size
from llmrec_ray.model.towers import ItemTower, ItemVector, UserTower, ncf_head
from llmrec_ray.model.transformer import TransformerTower
from llmrec_ray.types import FloatArray

__all__ = ["FEATURES", "FusionRecommender"]

FEATURES = ("user_features", "item_features")


class FusionRecommender(nn.Module):
    """Vectors for items and users, and the two ways to score a pair.

    `text_size` is the width of text vectors (centred, unit norm); None with `item_vector: id`. context_sizes: widths of
    the features of users and items, 0 for none; `set_features` or a state dict brings them.
    """

    user_features: Tensor | None
    item_features: Tensor | None

    def __init__(
        self, config: ModelConfig, item_vector: ItemVector, n_users: int, n_items: int, text_size: int | None,
        context_sizes: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.config = config
        self.item_vector: ItemVector = item_vector
        self.n_users, self.n_items, self.text_size = n_users, n_items, text_size
        self.items = ItemTower(item_vector, n_items, text_size, config.embedding_size)
        self.users = _user_tower(config, n_users)
        self.ncf = ncf_head(config.ncf_head, config.embedding_size, config.ncf_hidden)
        self.context_sizes, of_user = context_sizes, context_sizes[0] + time_size(config.context.time)
        self.item_context = ContextLayer(context_sizes[1], config.embedding_size) if context_sizes[1] else None
        self.user_context = ContextLayer(of_user, config.embedding_size) if of_user else None
        for name, rows, width in zip(FEATURES, (n_users, n_items), context_sizes, strict=True):
            self.register_buffer(name, torch.zeros(rows, width) if width else None)

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

    def set_features(self, users: FloatArray | None, items: FloatArray | None) -> None:
        """Take the encoded columns of all users [U, F] and items [N, F], float32, see `ContextFeatures`."""
        for table, features in ((self.user_features, users), (self.item_features, items)):
            if table is not None:
                assert features is not None, "no features for a recommender that reads them. This is a bug."
                table.copy_(torch.from_numpy(features))

    def item_vectors(self, item_rows: Tensor, text_MT: Tensor | None, hidden: Tensor | None = None) -> Tensor:
        """[M, D]; `hidden` [M] bool leaves out the id embedding of some, as for items nobody has seen."""
        vectors: Tensor = self.items(item_rows, text_MT, hidden)
        if self.item_context is not None and self.item_features is not None:
            vectors = vectors + self.item_context(self.item_features[item_rows])
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

    def user_vectors(
        self, history_BWD: Tensor, mask_BW: Tensor, user_rows: Tensor, times: Tensor | None = None
    ) -> Tensor:
        """[B, D] user vectors from right-aligned histories (newest last); user row -1 = unknown.

        times: [B] int64 unix seconds of what is asked for, -1 = unknown.
        """
        vectors: Tensor = self.users(history_BWD, mask_BW, user_rows)
        return vectors if self.user_context is None else vectors + self._context(user_rows, times)

    def user_vectors_at(
        self, history_BWD: Tensor, mask_BW: Tensor, user_rows: Tensor, n_positions: int, slots: Tensor,
        times: Tensor | None = None,
    ) -> Tensor:
        """[Q, D] user vectors, causal, for training: for each of the `slots` [Q], places in [B, P] flattened, the user
        after that one of the last `n_positions` positions; `times` [Q] as above."""
        vectors: Tensor = self.users(history_BWD, mask_BW, user_rows, n_positions, slots)
        if self.user_context is None:
            return vectors
        return vectors + self._context(user_rows[slots // n_positions], times)

    def ncf_scores(self, user_BD: Tensor, item_BCD: Tensor) -> Tensor:
        """[B, C] scores of the NCF head; `item_BCD` may be [1, C, D]."""
        scores: Tensor = self.ncf(user_BD, item_BCD)
        return scores

    def _context(self, user_rows: Tensor, times: Tensor | None) -> Tensor:
        """[B, D] what user columns and times add; only of a recommender that reads them."""
        assert self.user_context is not None, "a recommender without context of users. This is a bug."
        times = torch.full_like(user_rows, -1) if times is None else times
        features = time_features(times, self.config.context.time)
        if self.user_features is not None:
            known = self.user_features[user_rows.clamp(min=0)] * (user_rows >= 0)[:, None]
            features = torch.cat([known, features], dim=1)
        added: Tensor = self.user_context(features)
        return added


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
