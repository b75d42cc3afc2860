"""One training step as a module: a batch of windows -> the loss. No optimizer, no loop, no process group.

Shapes: B windows, W inputs, Q targets, R targets of the head, S negatives, M distinct items of the batch, T text
size, D embedding size. Nothing in it makes the host wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrec_ray.model.fusion import FusionRecommender
from llmrec_ray.model.windows import HEAD_STRIDE, WindowBatch, moved
from llmrec_ray.types import FloatArray

__all__ = ["FrozenText", "TrainingModule"]


class FrozenText(nn.Module):
    """Text vectors from a table [n_items, T] (centred, unit norm) that training does not change or save."""

    table_NT: Tensor

    def __init__(self, table: FloatArray) -> None:
        super().__init__()
        self.register_buffer("table_NT", torch.from_numpy(table), persistent=False)

    def forward(self, batch: WindowBatch) -> Tensor:
        """[M, T]."""
        return self.table_NT[moved(batch.rows, self.table_NT.device)]


class TrainingModule(nn.Module):
    """Sampled softmax for the dot product and for the NCF head, over every position of every window.

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
        rows_M = moved(batch.rows, batch.targets.device)
        item_MD = self._item_vectors(batch, rows_M)
        bias_M = self.model.item_biases(rows_M)
        user_QD = self._user_vectors(batch, functional.embedding(batch.inputs, item_MD))
        loss = self._dot_losses(user_QD, item_MD, bias_M, batch.targets, batch.negatives).sum()
        some_R, negatives = batch.head_targets, batch.negatives[: self.ncf_negatives]
        head = self._ncf_losses(user_QD[some_R], item_MD, batch.targets[some_R], negatives)
        return (loss + HEAD_STRIDE * head.sum()) / batch.n_targets

    def _item_vectors(self, batch: WindowBatch, rows_M: Tensor) -> Tensor:
        text_MT = None if self.text_source is None else self.text_source(batch)
        return self.model.item_vectors(rows_M, text_MT, self._hidden(batch))

    def _hidden(self, batch: WindowBatch) -> Tensor | None:
        share = self.model.config.id_dropout
        if not (self.training and share and self.model.item_vector == "feature"):
            return None
        generator = torch.Generator().manual_seed(batch.seed)
        hidden = torch.rand(self.model.n_items, generator=generator)[batch.rows] < share
        return moved(hidden, batch.targets.device)

    def _user_vectors(self, batch: WindowBatch, history_BWD: Tensor) -> Tensor:
        """[Q, D] the user vectors that precede the targets."""
        n_positions = (batch.inputs.shape[1] + 1) // 2
        return self.model.user_vectors_at(
            history_BWD, batch.input_mask, batch.user_rows, n_positions, batch.slots
        )

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


def _softmax_losses(positive_Q: Tensor, negative_QS: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    own = targets[:, None] == negatives[None, :]
    logits = torch.cat([positive_Q[:, None], negative_QS.masked_fill(own, -torch.inf)], dim=1)
    return torch.logsumexp(logits, dim=1) - positive_Q
