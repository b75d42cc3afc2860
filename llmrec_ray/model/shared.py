"""Text vectors of a step's items, each distinct item encoded once over all workers of the step.

The items of a whole step are dealt to the workers longest text first, every worker encodes its part and all receive
all vectors; gradients go back to the worker that encoded the item. A worker alone would encode every item of its own
share, and popular items and shared negatives are in every share. It knows no model of users and no process group:
the exchange is handed in.

Shapes: G items of the step, M items of a batch, N items of the catalogue, T width of a text vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from llmrec_ray.model.tuned import TunedText
from llmrec_ray.model.windows import WindowBatch, moved
from llmrec_ray.types import FloatArray

__all__ = ["Peers", "SharedText"]

CATALOGUE_CHUNK = 512


@dataclass(frozen=True)
class Peers:
    """A worker's place among those that share the encoding.

    gather: [m, T] of every worker -> [world_size * m, T] by rank, the same on all; its gradient is the sum over them.
    """

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Tensor], Tensor] = field(default=lambda vectors: vectors)


class SharedText(nn.Module):
    """The text source of a recommender whose encoder trains.

    gradient_share: share of a step's items that are encoded, with gradients; the others take their vectors from
    `table` [N, T], those of the last call of `catalogue`. 1.0 encodes all and keeps no table.
    """

    table: Tensor | None

    def __init__(
        self, tuned: TunedText, vectors: FloatArray, peers: Peers | None = None, gradient_share: float = 1.0
    ) -> None:
        super().__init__()
        self.tuned = tuned
        self.peers = peers or Peers()
        self.gradient_share = gradient_share
        self.register_buffer("table", torch.from_numpy(vectors.copy()) if gradient_share < 1.0 else None)

    def forward(self, batch: WindowBatch) -> Tensor:
        """[M, T] vectors of the batch's items in text space; zero rows for items without text."""
        assert batch.step_rows is not None, "a tuned encoder needs the rows of the whole step. This is a bug."
        if self.table is None:
            return self._encode(batch.step_rows, batch.rows)
        encoded = self._drawn(batch.step_rows, batch.seed)
        wanted = torch.isin(batch.rows, encoded)
        fresh = self._encode(encoded, batch.rows[wanted])
        stale = self.table[moved(batch.rows, self.table.device)]
        return stale.index_copy(0, moved(wanted.nonzero().squeeze(1), self.table.device), fresh)

    @torch.no_grad()
    def catalogue(self, n_items: int) -> FloatArray:
        """[N, T] float32 of the whole catalogue on the host, as the encoder is now; all workers must call it."""
        size = CATALOGUE_CHUNK * self.peers.world_size
        chunks = [self._encode(rows, rows).float().cpu() for rows in torch.split(torch.arange(n_items), size)]
        vectors = torch.cat(chunks)
        if self.table is not None:
            self.table.copy_(vectors)
        return vectors.numpy()

    def _drawn(self, step_rows: Tensor, seed: int) -> Tensor:
        """The items that are encoded in this step; the first one always, so that a step never trains nothing."""
        draws = np.random.default_rng([seed, 1]).random(len(step_rows))
        draws[draws.argmin()] = 0.0
        return step_rows[torch.from_numpy(draws < self.gradient_share)]

    def _encode(self, rows: Tensor, wanted: Tensor) -> Tensor:
        """Vectors of `wanted`, a subset of `rows`; both ascending on the host."""
        world = self.peers.world_size
        order = torch.argsort(self.tuned.lengths[rows], descending=True, stable=True)
        parts = [rows[order[rank::world]] for rank in range(world)]
        passes = max(1, *(self.tuned.count_micro_batches(part) for part in parts))
        mine = self.tuned(parts[self.peers.rank], passes)
        size = len(parts[0])
        if len(mine) < size:
            mine = torch.cat([mine, mine.new_zeros(size - len(mine), mine.shape[1])])
        everybodys = self.peers.gather(mine)
        dealt = torch.arange(len(rows))
        places = torch.empty(len(rows), dtype=torch.int64)
        places[order] = dealt % world * size + dealt // world
        return everybodys[moved(places[torch.searchsorted(rows, wanted)], everybodys.device)]
