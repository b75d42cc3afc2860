"""One training step as a module: a batch of windows -> the loss. No optimizer, no loop, no process group.

Shapes: B windows, W inputs, Q targets, R targets of the head, S negatives, M distinct items of the batch, T text
size, D embedding size. Nothing in it makes the host wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrec_ray.model.fusion import FusionRecommender
from llmrec_ray.model.losses import Loss, corrected, softmax
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
    """The loss of the dot product and of the NCF head, over every position of every window.

    Negatives are shared by the step; where one is a position's own target it is left out. Each distinct item
    is encoded once. A share `id_dropout` of the items has its id embedding hidden for the step, the same ones
    on every worker. The head, many times dearer than a dot product, learns on every fourth target and fewer
    negatives, and on detached vectors: trained jointly it became better alone and the dot product worse.

    log_q: [N] float32 log of the probability of each item as a shared negative, None for uniform ones. Hard negatives
    of a window count only for targets that score more than `hard_margin` above them (Moreira et al. 2024): the others
    may be liked as well. They are drawn from `hard_UK`, [U, K] int32 item rows (-1 = none) of `hard_shape`, which is
    saved with the weights since a resumed epoch needs it.
    """

    log_q_N: Tensor | None
    hard_UK: Tensor | None

    def __init__(
        self, model: FusionRecommender, text_source: nn.Module | None, ncf_negatives: int = 32, *,
        loss: Loss = softmax, log_q: FloatArray | None = None, hard_shape: tuple[int, int] | None = None,
        hard_margin: float = 0.0,
    ) -> None:
        super().__init__()
        assert model.reads_text == (text_source is not None), (
            "text source, item tower: one is missing. This is a bug."
        )
        self.model = model
        self.text_source = text_source
        self.ncf_negatives = ncf_negatives
        self.loss = loss
        self.hard_margin = hard_margin
        hard = None if hard_shape is None else torch.full(hard_shape, -1, dtype=torch.int32)
        self.register_buffer("log_q_N", None if log_q is None else torch.from_numpy(log_q), persistent=False)
        self.register_buffer("hard_UK", hard)

    def forward(self, batch: WindowBatch) -> Tensor:
        """[] mean loss per target over the whole step, as `WindowBatch.n_targets` explains."""
        rows_M = moved(batch.rows, batch.targets.device)
        item_MD = self._item_vectors(batch, rows_M)
        bias_M = self.model.item_biases(rows_M)
        log_q_M = None if self.log_q_N is None else self.log_q_N[rows_M]
        user_QD = self._user_vectors(batch, functional.embedding(batch.inputs, item_MD))
        loss = self._dot_losses(user_QD, item_MD, bias_M, log_q_M, batch).sum()
        head = self._ncf_losses(user_QD, item_MD, log_q_M, batch)
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
        return self.model.user_vectors_at(
            history_BWD, batch.input_mask, batch.user_rows, _n_positions(batch), batch.slots, batch.times
        )

    def _dot_losses(
        self, user_QD: Tensor, item_MD: Tensor, bias_M: Tensor, log_q_M: Tensor | None, batch: WindowBatch
    ) -> Tensor:
        targets, negatives = batch.targets, batch.negatives
        positive_Q = (user_QD * functional.embedding(targets, item_MD)).sum(dim=-1) + bias_M[targets]
        negative_QS = user_QD @ item_MD[negatives].T + bias_M[negatives]
        left_out_QS = targets[:, None] == negatives[None, :]
        if log_q_M is not None:
            positive_Q, negative_QS = corrected(positive_Q, negative_QS, log_q_M[targets], log_q_M[negatives])
        if batch.hard is not None:
            hard_Qh = batch.hard[batch.slots // _n_positions(batch)]
            scores_Qh = (user_QD[:, None, :] * functional.embedding(hard_Qh, item_MD)).sum(dim=-1) + bias_M[hard_Qh]
            doubtful_Qh = scores_Qh.detach() > positive_Q.detach()[:, None] - self.hard_margin
            negative_QS = torch.cat([negative_QS, scores_Qh], dim=1)
            left_out_QS = torch.cat([left_out_QS, doubtful_Qh | (targets[:, None] == hard_Qh)], dim=1)
        return self.loss(positive_Q, negative_QS, left_out_QS, batch.liked)

    def _ncf_losses(
        self, user_QD: Tensor, item_MD: Tensor, log_q_M: Tensor | None, batch: WindowBatch
    ) -> Tensor:
        some_R, negatives = batch.head_targets, batch.negatives[: self.ncf_negatives]
        targets, liked = batch.targets[some_R], None if batch.liked is None else batch.liked[some_R]
        user_RD, item_MD = user_QD[some_R].detach(), item_MD.detach()
        positive_R = self.model.ncf_scores(user_RD, item_MD[targets][:, None, :])[:, 0]
        negative_RS = self.model.ncf_scores(user_RD, item_MD[negatives][None, :, :])
        if log_q_M is not None:
            positive_R, negative_RS = corrected(positive_R, negative_RS, log_q_M[targets], log_q_M[negatives])
        return self.loss(positive_R, negative_RS, targets[:, None] == negatives[None, :], liked)


def _n_positions(batch: WindowBatch) -> int:
    return (batch.inputs.shape[1] + 1) // 2
