"""Weights of this moment -> NDCG@10 and HR@10 on the validation split, protocol P, users spread over workers.

Full ranking over the catalogue minus each user's train items. It does not know optimizers or epochs.
Shapes: B users of a batch, N items, T width of a text vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from llmrec_ray.metrics import ndcg_gains
from llmrec_ray.model import FusionRecommender, SharedText, TrainingModule, catalogue_vectors, user_matrix
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.train.engine import Engine
from llmrec_ray.train.inputs import LateFusion, TrainingInputs
from llmrec_ray.train.workers import Workers
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["current_texts", "on_host", "validate"]

K = 10
Precision: TypeAlias = Literal["fp32", "bf16"]


def validate(
    module: TrainingModule, engine: Engine, inputs: TrainingInputs, workers: Workers, batch_users: int,
    precision: Precision = "fp32",
) -> dict[str, float]:
    """`ndcg@10` and `hr@10`, and `late_ndcg@10` when a partner signal is given; equal on every worker.

    precision: in which an encoder that trains computes, as in its steps.
    """
    module.eval()
    model = on_host(module.model, engine)
    catalogue = catalogue_vectors(model, current_texts(module, inputs, workers, precision))
    scale = None if inputs.late is None else _score_deviation(model, catalogue, inputs, workers, batch_users)
    totals = np.zeros(4)
    for users, histories in _batches(inputs, workers, batch_users):
        scores = user_matrix(model, catalogue, histories) @ catalogue.T
        ranks = target_ranks(mask_seen(scores, histories), inputs.targets[users])
        totals[:3] += len(users), ndcg_gains(ranks, K).sum(), (ranks <= K).sum()
        if inputs.late is not None and scale is not None:
            fused = mask_seen(_fused(scores, inputs.late, users, scale), histories)
            totals[3] += ndcg_gains(target_ranks(fused, inputs.targets[users]), K).sum()
    module.train()
    count, gain, hits, late_gain = workers.sum(torch.from_numpy(totals)).tolist()
    metrics = {"ndcg@10": gain / count, "hr@10": hits / count}
    return metrics if inputs.late is None else metrics | {"late_ndcg@10": late_gain / count}


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


def _batches(
    inputs: TrainingInputs, workers: Workers, batch_users: int
) -> Iterator[tuple[IntArray, Histories]]:
    """This worker's users who have a target, in batches: their positions and histories."""
    mine = np.flatnonzero(inputs.targets >= 0)[workers.rank :: workers.world_size]
    for start in range(0, len(mine), batch_users):
        users = mine[start : start + batch_users]
        yield users, inputs.histories.select(users)


def _score_deviation(
    model: FusionRecommender,
    catalogue: FloatArray,
    inputs: TrainingInputs,
    workers: Workers,
    batch_users: int,
) -> tuple[float, float]:
    """Standard deviations of the neural and the partner's scores over all pairs a user has not seen."""
    assert inputs.late is not None, "deviation of a missing partner. This is a bug."
    sums = np.zeros((2, 3))
    for users, histories in _batches(inputs, workers, batch_users):
        neural = user_matrix(model, catalogue, histories) @ catalogue.T
        unseen = np.isfinite(mask_seen(neural, histories))
        sums += _moments(neural[unseen]), _moments(inputs.late.scores[users][unseen])
    count, first, second = workers.sum(torch.from_numpy(sums)).numpy().T
    deviations = np.sqrt(second / count - (first / count) ** 2)
    return float(deviations[0]), float(deviations[1])


def _moments(values: FloatArray) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    return np.array([wide.size, wide.sum(), np.square(wide).sum()])


def _fused(scores: FloatArray, late: LateFusion, users: IntArray, scale: tuple[float, float]) -> FloatArray:
    """Means are left out: they move all items of a user alike."""
    neural, partner = late.neural_weight / scale[0], (1.0 - late.neural_weight) / scale[1]
    return np.asarray(neural * scores + partner * late.scores[users], dtype=np.float32)
