"""Weights of this moment -> NDCG@10 and HR@10 on the validation split, protocol P, users spread over workers.

Full ranking over the catalogue minus each user's train items. It does not know optimizers or epochs.
Shapes: B users of a batch, N items, T width of a text vector.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from llmrec_ray.metrics import ndcg_gains
from llmrec_ray.model import FusionRecommender, TrainingModule, catalogue_vectors, user_matrix
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.train.inputs import LateFusion, TrainingInputs
from llmrec_ray.train.workers import Workers
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["validate"]

K = 10
ENCODE_CHUNK = 512


def validate(
    module: TrainingModule, inputs: TrainingInputs, workers: Workers, batch_users: int
) -> dict[str, float]:
    """`ndcg@10` and `hr@10`, and `late_ndcg@10` when a partner signal is given; equal on every worker."""
    module.eval()
    model = module.model if workers.device.type == "cpu" else copy.deepcopy(module.model).cpu()
    catalogue = catalogue_vectors(model, _text_vectors(module, inputs, workers))
    scale = None if inputs.late is None else _score_deviation(model, catalogue, inputs, workers, batch_users)
    totals = np.zeros(4)
    for users, histories in _batches(inputs.histories, workers, batch_users):
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


def _text_vectors(module: TrainingModule, inputs: TrainingInputs, workers: Workers) -> FloatArray | None:
    """[N, T] as training sees texts now; trained encoders encode the catalogue once, shared among workers."""
    if inputs.text_vectors is None or inputs.text_center is None:
        return inputs.text_vectors
    assert module.text_source is not None, "text vectors without a text source. This is a bug."
    vectors = torch.zeros(inputs.text_vectors.shape)
    rows = torch.arange(workers.rank, inputs.n_items, workers.world_size)
    with torch.inference_mode():
        for chunk in torch.split(rows, ENCODE_CHUNK):
            vectors[chunk] = module.text_source(chunk.to(workers.device)).float().cpu()
    return np.asarray(workers.sum(vectors).numpy(), dtype=np.float32)


def _batches(
    histories: Histories, workers: Workers, batch_users: int
) -> Iterator[tuple[IntArray, Histories]]:
    """This worker's users, in batches: their positions and histories."""
    mine = np.arange(workers.rank, len(histories), workers.world_size)
    for start in range(0, len(mine), batch_users):
        users = mine[start : start + batch_users]
        yield users, histories.select(users)


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
    for users, histories in _batches(inputs.histories, workers, batch_users):
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
