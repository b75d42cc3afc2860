"""Scores of a target and of its negatives -> the loss of each target: pure functions, without models or sampling.

All take positive_Q, the score of each target; negative_QS, the scores of its negatives; left_out_QS, True where a
column is no negative of that target (it is the target itself); liked_Q, False where a target was seen and disliked,
None when all are liked (only `bce` and `focal` can tell the two apart). All give [Q] float, and are not averaged.

Where negatives are not drawn uniformly, `corrected` comes first. Shapes: Q targets, S negatives of each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from llmrec_ray.config import TrainConfig

__all__ = ["Loss", "bce", "bpr", "corrected", "focal", "make_loss", "softmax"]

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def make_loss(config: TrainConfig) -> Loss:
    """The loss that `train.loss` names; a full softmax is the sampled one over all items."""
    losses: dict[str, Loss] = {"bpr": bpr, "bce": bce, "focal": partial(focal, gamma=config.focal_gamma)}
    return losses.get(config.loss, softmax)


def softmax(positive_Q: Tensor, negative_QS: Tensor, left_out_QS: Tensor, liked_Q: Tensor | None = None) -> Tensor:
    """Cross-entropy of the target among itself and its negatives (Bengio and Senécal 2008)."""
    assert liked_Q is None, "a softmax cannot learn from dislikes. This is a bug: recipes are checked."
    logits = torch.cat([positive_Q[:, None], negative_QS.masked_fill(left_out_QS, -torch.inf)], dim=1)
    return torch.logsumexp(logits, dim=1) - positive_Q


def bpr(positive_Q: Tensor, negative_QS: Tensor, left_out_QS: Tensor, liked_Q: Tensor | None = None) -> Tensor:
    """Bayesian personalised ranking (Rendle et al. 2009): the mean over negatives of -log sigmoid(positive - negative).
    """
    assert liked_Q is None, "pairs cannot learn from dislikes. This is a bug: recipes are checked."
    return _mean(functional.softplus(negative_QS - positive_Q[:, None]), left_out_QS)


def bce(positive_Q: Tensor, negative_QS: Tensor, left_out_QS: Tensor, liked_Q: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of the target, liked or not, plus the mean over its negatives.

    In expectation that of one negative per target (Kang and McAuley 2018), with less noise.
    """
    return _of_truth(positive_Q, negative_QS, left_out_QS, liked_Q, lambda truth: functional.softplus(-truth))


def focal(
    positive_Q: Tensor, negative_QS: Tensor, left_out_QS: Tensor, liked_Q: Tensor | None = None, *, gamma: float = 2.0
) -> Tensor:
    """Focal loss (Lin et al. 2017) without class weights: binary cross-entropy times (1 - p)^gamma, where p is the
    probability given to the truth, so that the many easy negatives count little; gamma 0 is `bce`."""
    return _of_truth(positive_Q, negative_QS, left_out_QS, liked_Q, partial(_focal_term, gamma=gamma))


def corrected(
    positive_Q: Tensor, negative_QS: Tensor, log_q_Q: Tensor, log_q_S: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores minus the log of the probability with which each item is drawn as a negative (logQ correction).

    Without it popular items are pushed down for being drawn often (Bengio and Senécal 2008; Yi et al. 2019).
    """
    return positive_Q - log_q_Q, negative_QS - log_q_S


def _of_truth(
    positive_Q: Tensor, negative_QS: Tensor, left_out_QS: Tensor, liked_Q: Tensor | None,
    term: Callable[[Tensor], Tensor],
) -> Tensor:
    """`term` of the logit of what is true of each target, plus its mean over the negatives."""
    truth_Q = positive_Q if liked_Q is None else torch.where(liked_Q, positive_Q, -positive_Q)
    return term(truth_Q) + _mean(term(-negative_QS), left_out_QS)


def _focal_term(truth: Tensor, gamma: float) -> Tensor:
    """-(1 - p)^gamma log p with p = sigmoid(truth), from logs, whose gradients stay finite."""
    return torch.exp(gamma * functional.logsigmoid(-truth)) * functional.softplus(-truth)


def _mean(losses_QS: Tensor, left_out_QS: Tensor) -> Tensor:
    """[Q] over the columns that count; 0 where none does."""
    return losses_QS.masked_fill(left_out_QS, 0.0).sum(dim=1) / (~left_out_QS).sum(dim=1).clamp(min=1)
