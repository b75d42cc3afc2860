"""Weights of this moment -> NDCG@10 and such on the validation split, protocol P, users spread over workers.

Full ranking over the catalogue minus each user's train items, by the neural signal alone and, with a partner signal,
by both together at several shares. It does not know optimizers or epochs.
Shapes: B users of a batch, N items, T width of a text vector, F figures, S shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from llmrec_ray.metrics import ndcg_gains, reciprocal_gains
from llmrec_ray.model import FusionRecommender, SharedText, TrainingModule, catalogue_vectors, user_matrix
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.train.engine import Engine
from llmrec_ray.train.inputs import LateFusion, TrainingInputs
from llmrec_ray.train.workers import Workers
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["current_texts", "on_host", "validate"]

Precision: TypeAlias = Literal["fp32", "bf16"]
Ranks: TypeAlias = NDArray[np.float64]
GAINS: dict[str, Callable[[Ranks, int], NDArray[Any]]] = {
    "ndcg": ndcg_gains, "hr": lambda ranks, k: ranks <= k, "mrr": reciprocal_gains,
}
ALWAYS = ("ndcg@10", "hr@10")
FUSED = "fused_"
CALIBRATION_USERS = 256


def validate(
    module: TrainingModule, engine: Engine, inputs: TrainingInputs, workers: Workers, batch_users: int,
    precision: Precision = "fp32",
) -> dict[str, Any]:
    """`ndcg@10`, `hr@10` and `inputs.metrics` of the neural signal; equal on every worker.

    With `inputs.late` also `fused_<metric>` of both signals, at the share of the neural signal that is best by the
    metric of `inputs.selection`: `neural_share`; and `fused_curve`, that metric at every share as [share, value].

    precision: in which an encoder that trains computes, as in its steps.
    """
    module.eval()
    model = on_host(module.model, engine)
    catalogue = catalogue_vectors(model, current_texts(module, inputs, workers, precision))

    def score(histories: Histories) -> FloatArray:
        return mask_seen(user_matrix(model, catalogue, histories) @ catalogue.T, histories)

    judged_by = inputs.selection.removeprefix(FUSED)
    names = tuple(dict.fromkeys([*ALWAYS, *inputs.metrics, judged_by]))
    sums = np.zeros((1, 1 + len(names)))
    mixing = None if inputs.late is None else _Mixing(inputs, inputs.late, names, score, workers, batch_users)
    for users, histories in _batches(inputs, np.flatnonzero(inputs.targets >= 0), workers, batch_users):
        scores = score(histories)
        sums += _gain_sums(target_ranks(scores, inputs.targets[users]), names)
        if mixing is not None:
            mixing.add(users, scores)
    module.train()
    metrics = dict(zip(names, _means(sums, workers)[0].tolist(), strict=True))
    return metrics if mixing is None else metrics | mixing.metrics(judged_by)


def current_texts(
    module: TrainingModule, inputs: TrainingInputs, workers: Workers, precision: Precision
) -> FloatArray | None:
    """[N, T] text vectors of the catalogue as they are now."""
    if not isinstance(module.text_source, SharedText):
        return inputs.text_vectors
    with torch.autocast(workers.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return module.text_source.catalogue(inputs.n_items)


def on_host(model: FusionRecommender, engine: Engine) -> FusionRecommender:
    """The recommender with all its weights on the CPU, apart from what shards or moves the one that trains."""
    with engine.whole(model), torch.no_grad():
        state = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    twin = FusionRecommender(
        model.config, model.item_vector, model.n_users, model.n_items, model.text_size, model.context_sizes
    )
    twin.load_state_dict(state)
    return twin


class _Mixing:
    """Both signals at every share, over the users of whom the partner's scores are known."""

    def __init__(
        self, inputs: TrainingInputs, late: LateFusion, names: tuple[str, ...],
        score: Callable[[Histories], FloatArray], workers: Workers, batch_users: int,
    ) -> None:
        self._inputs, self._late, self._names, self._workers = inputs, late, names, workers
        self._places = np.full(len(inputs.targets), -1)
        self._places[late.users] = np.arange(len(late.users))
        self._mixes = self._weights(score, batch_users)
        self._sums = np.zeros((len(late.shares), 1 + len(names)))

    def add(self, users: IntArray, scores: FloatArray) -> None:
        """Neural scores [B, N] of some users, -inf where an item was seen."""
        known = self._places[users] >= 0
        neural, partner = scores[known], self._late.scores[self._places[users[known]]]
        targets = self._inputs.targets[users[known]]
        partner = np.where(np.isneginf(neural), -np.inf, partner)
        self._sums += [
            _gain_sums(target_ranks(_mixed(neural, partner, *mix), targets), self._names) for mix in self._mixes
        ]

    def metrics(self, judged_by: str) -> dict[str, Any]:
        """Of all workers' users; every worker must call it."""
        means, shares = _means(self._sums, self._workers), self._late.shares
        judged = means[:, self._names.index(judged_by)]
        best = int(judged.argmax())
        return {
            **{f"{FUSED}{name}": value for name, value in zip(self._names, means[best].tolist(), strict=True)},
            "neural_share": shares[best],
            "fused_curve": [[share, value] for share, value in zip(shares, judged.tolist(), strict=True)],
        }

    def _weights(self, score: Callable[[Histories], FloatArray], batch_users: int) -> list[tuple[float, float]]:
        """What both signals' raw scores are multiplied with at every share, from their deviations over unseen items of
        some users. Means are left out: they move all items of a user alike."""
        sums = np.zeros((2, 3))
        for users, histories in _batches(
            self._inputs, self._late.users[:CALIBRATION_USERS], self._workers, batch_users
        ):
            neural = score(histories)
            unseen = np.isfinite(neural)
            sums += _moments(neural[unseen]), _moments(self._late.scores[self._places[users]][unseen])
        count, first, second = self._workers.sum(torch.from_numpy(sums)).numpy().T
        variances = second / count - (first / count) ** 2
        neural_std, partner_std = np.sqrt(np.where(variances > 0, variances, 1.0)).tolist()
        return [(share / neural_std, (1.0 - share) / partner_std) for share in self._late.shares]


def _batches(
    inputs: TrainingInputs, users: IntArray, workers: Workers, batch_users: int
) -> Iterator[tuple[IntArray, Histories]]:
    """This worker's part of some users, in batches: their rows and histories."""
    mine = users[workers.rank :: workers.world_size]
    for start in range(0, len(mine), batch_users):
        batch = mine[start : start + batch_users]
        yield batch, inputs.histories.select(batch)


def _moments(values: FloatArray) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    return np.array([wide.size, wide.sum(), np.square(wide).sum()])


def _mixed(neural: FloatArray, partner: FloatArray, weight: float, partner_weight: float) -> FloatArray:
    """Weighted sum of scores [B, N] that are -inf where an item was seen, which no weight of 0 may meet."""
    if not partner_weight:
        return neural
    mixed = np.float32(partner_weight) * partner
    return mixed if not weight else np.asarray(mixed + np.float32(weight) * neural, np.float32)


def _gain_sums(ranks: Ranks, names: tuple[str, ...]) -> list[float]:
    """How many users there are, and the sum over them of every figure: [1 + F]."""
    split = (name.split("@") for name in names)
    return [float(len(ranks)), *(float(GAINS[figure](ranks, int(k)).sum()) for figure, k in split)]


def _means(sums: NDArray[np.float64], workers: Workers) -> NDArray[np.float64]:
    """Means over the users of all workers, [S, F], from sums [S, 1 + F]."""
    total = workers.sum(torch.from_numpy(sums)).numpy()
    return np.asarray(total[:, 1:] / total[:, :1], np.float64)
