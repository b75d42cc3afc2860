"""One training step as a module: a batch of windows -> the loss. No optimizer, no loop, no process group.

Shapes: B windows, P positions, W inputs, Q = targets that are there, S negatives, M distinct items of the
batch, T text size, D embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrec_ray.model.fusion import FusionRecommender
from llmrec_ray.model.windows import WindowBatch
from llmrec_ray.types import FloatArray

__all__ = ["FrozenText", "TrainingModule"]

NCF_STRIDE = 4


class FrozenText(nn.Module):
    """Text vectors from a table [n_items, T] (centred, unit norm) that training does not change or save."""

    table_NT: Tensor

    def __init__(self, table: FloatArray) -> None:
        super().__init__()
        self.register_buffer("table_NT", torch.from_numpy(table), persistent=False)

    def forward(self, item_rows: Tensor) -> Tensor:
        """[M, T]."""
        return self.table_NT[item_rows]


class TrainingModule(nn.Module):
    """Sampled softmax for the dot product and for the NeuMF head, over every position of every window.

    Negatives are shared by the step; where one is a position's own target it is left out. Each distinct item
    is encoded once. A share `id_dropout` of the items has its id embedding hidden for the step, the same ones
    on every worker. The head, many times dearer than a dot product, learns on every fourth target and fewer
    negatives, and on detached vectors: trained jointly it became better alone and the dot product worse.
    """

    def __init__(
        self, model: FusionRecommender, text_source: nn.Module | None, ncf_negatives: int = 32
    ) -> None:
        super().__init__()
        assert model.reads_text == (text_source is not None), (
            "text source, item tower: one is missing. This is a bug."
        )
        self.model = model
        self.text_source = text_source
        self.ncf_negatives = ncf_negatives

    def forward(self, batch: WindowBatch) -> Tensor:
        """[] mean loss per target over the whole step, as `WindowBatch.n_targets` explains."""
        parts = [batch.item_rows.flatten(), batch.targets[batch.target_mask], batch.negatives]
        rows_M, places = torch.unique(torch.cat(parts), return_inverse=True)
        inputs, targets, negatives = places.split([len(part) for part in parts])
        item_MD = self._item_vectors(rows_M, batch.seed)
        bias_M = self.model.item_biases(rows_M)
        user_QD = self._user_vectors(batch, functional.embedding(inputs.view_as(batch.item_rows), item_MD))
        loss = self._dot_losses(user_QD, item_MD, bias_M, targets, negatives).sum()
        some_Q = _every_fourth(batch)
        losses = self._ncf_losses(user_QD[some_Q], item_MD, targets[some_Q], negatives[: self.ncf_negatives])
        return (loss + NCF_STRIDE * losses.sum()) / batch.n_targets

    def _item_vectors(self, rows_M: Tensor, seed: int) -> Tensor:
        text_MT = None if self.text_source is None else self.text_source(rows_M)
        return self.model.item_vectors(rows_M, text_MT, self._hidden(rows_M, seed))

    def _hidden(self, rows_M: Tensor, seed: int) -> Tensor | None:
        share = self.model.config.id_dropout
        if not (self.training and share and self.model.item_vector == "feature"):
            return None
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(self.model.n_items, generator=generator) < share).to(rows_M.device)[rows_M]

    def _user_vectors(self, batch: WindowBatch, history_BWD: Tensor) -> Tensor:
        """[Q, D] the user vectors that precede the targets."""
        n_positions = batch.targets.shape[1]
        users = self.model.user_vectors_at(history_BWD, batch.item_mask, batch.user_rows, n_positions)
        return users[batch.target_mask]

    def _dot_losses(
        self, user_QD: Tensor, item_MD: Tensor, bias_M: Tensor, targets: Tensor, negatives: Tensor
    ) -> Tensor:
        positive_Q = (user_QD * functional.embedding(targets, item_MD)).sum(dim=-1) + bias_M[targets]
        negative_QS = user_QD @ item_MD[negatives].T + bias_M[negatives]
        return _softmax_losses(positive_Q, negative_QS, targets, negatives)

    def _ncf_losses(self, user_QD: Tensor, item_MD: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        user_QD, item_MD = user_QD.detach(), item_MD.detach()
        positive_Q1 = self.model.ncf_scores(user_QD, item_MD[targets][:, None, :])
        negative_QS = self.model.ncf_scores(user_QD, item_MD[negatives][None, :, :])
        return _softmax_losses(positive_Q1[:, 0], negative_QS, targets, negatives)


def _every_fourth(batch: WindowBatch) -> Tensor:
    """[Q] bool; which places in a window depends on the step, not on the worker."""
    places = torch.arange(batch.targets.shape[1], device=batch.targets.device)
    chosen = (places % NCF_STRIDE == batch.seed % NCF_STRIDE).expand_as(batch.target_mask)
    return chosen[batch.target_mask]


def _softmax_losses(positive_Q: Tensor, negative_QS: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    own = targets[:, None] == negatives[None, :]
    logits = torch.cat([positive_Q[:, None], negative_QS.masked_fill(own, -torch.inf)], dim=1)
    return torch.logsumexp(logits, dim=1) - positive_Q
