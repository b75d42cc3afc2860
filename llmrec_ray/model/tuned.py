"""Item rows -> text vectors in text space, with gradients into the trained part of an encoder.

It knows how the catalogue's texts are tokenized and cut into micro-batches, and nothing of users, losses or Ray.

Shapes: N items, M distinct rows asked for, P rows in one micro-batch, L tokens, T width of a text vector.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmrec_ray.model.encoder import TextEncoder, pooled_states
from llmrec_ray.model.states import GivenStates, TextStates
from llmrec_ray.model.tokens import TokenizedTexts, token_budget_batches
from llmrec_ray.model.windows import moved
from llmrec_ray.types import FloatArray

__all__ = ["TextStates", "TunedText"]

NORM_FLOOR = 1e-12


class TunedText(nn.Module):
    """Item rows -> [M, T], for an encoder that `prepare_tuning` has prepared.

    Rows are encoded in token-budget micro-batches, longest texts first, without dropout. Below the first trained
    block autograd records nothing.

    texts: one per item row, "" for none, or what this encoder's tokenizer made of them. center: [T] float32, subtracted
    from raw vectors. states: of these texts, what the first trained block reads; without them the blocks below run in
    every call.
    """

    center: Tensor
    tokens: Tensor

    def __init__(
        self, encoder: TextEncoder, texts: Sequence[str] | TokenizedTexts, center: FloatArray,
        states: TextStates | None = None,
    ) -> None:
        super().__init__()
        self.backbone = encoder.backbone
        self.pooling = encoder.config.pooling
        self.max_batch_tokens = encoder.config.max_batch_tokens
        shared = texts if isinstance(texts, TokenizedTexts) else encoder.tokens.tokenized(texts)
        with warnings.catch_warnings():  # shared memory is read-only, and nothing writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tokens, self.lengths = torch.from_numpy(shared.tokens), torch.from_numpy(shared.lengths)
        self._given = None if states is None else GivenStates(self.backbone, states, self.lengths)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("center", torch.from_numpy(center.copy()), persistent=False)

    def forward(self, rows: Tensor, micro_batches: int = 0) -> Tensor:
        """Distinct rows [M] int64 on the host -> [M, T] centred, unit norm; zero rows for items without text.

        Makes at least `micro_batches` passes through the backbone, since under ZeRO-3 all workers must make
        equally many; passes that nobody needs are part of the graph with weight 0.
        """
        batches = self._batches(rows)
        spare = [self._pool_nothing() for _ in range(micro_batches - len(batches))]
        vectors = self.center.new_zeros(len(rows), len(self.center))
        if batches:
            raw = torch.cat([self._pool(rows[batch]) for batch in batches])
            vectors = vectors.index_copy(0, moved(torch.cat(batches), raw.device), self._unit(raw))
        return vectors + 0.0 * torch.stack(spare).sum() if spare else vectors

    def count_micro_batches(self, rows: Tensor) -> int:
        """How many passes through the backbone `rows` [M] need."""
        return len(self._batches(rows))

    def train(self, mode: bool = True) -> TunedText:
        """Training mode without the encoder's dropout: what trains sees what serving will see."""
        super().train(mode)
        self.backbone.eval()
        return self

    def _batches(self, rows: Tensor) -> list[Tensor]:
        return list(token_budget_batches(self.lengths[rows], self.max_batch_tokens))

    def _pool(self, rows: Tensor) -> Tensor:
        lengths, device = self.lengths[rows], self.tokens.device
        longest, shortest = int(lengths[0]), int(lengths[-1])
        tokens = self.tokens[moved(rows, device), :longest].long()
        if self._given is not None:
            self._given.give(moved(self._given.of(rows, longest), device))
        padded = shortest < longest
        return pooled_states(self.backbone, tokens, moved(lengths, device), self.pooling, padded=padded)

    def _pool_nothing(self) -> Tensor:
        """A pass over one token, whatever it is."""
        device = self.tokens.device
        token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        if self._given is not None:
            self._given.give(moved(self._given.of(torch.zeros(1, dtype=torch.int64), 1), device))
        return pooled_states(self.backbone, token, torch.ones_like(token[0]), self.pooling, padded=False).sum()

    def _unit(self, raw: Tensor) -> Tensor:
        centred = raw - self.center
        unit: Tensor = centred / centred.norm(dim=1, keepdim=True).clamp_min(NORM_FLOOR)
        return unit
