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
NEURAL_ALONE = (1.0, 0.0)


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
    judged_by = inputs.selection.removeprefix(FUSED)
    names = tuple(dict.fromkeys([*ALWAYS, *inputs.metrics, judged_by]))
    late = inputs.late
    mixes = [NEURAL_ALONE]
    if late is not None:
        mixes += _mixes(late, _deviations(late, model, catalogue, inputs, workers, batch_users))
    count, sums = 0, np.zeros((len(mixes), len(names)))
    for users, histories in _batches(inputs, workers, batch_users):
        raw = [user_matrix(model, catalogue, histories) @ catalogue.T, *([] if late is None else [late.scores[users]])]
        masked = [mask_seen(scores, histories) for scores in raw]
        sums += [_gain_sums(target_ranks(_mixed(masked, mix), inputs.targets[users]), names) for mix in mixes]
        count += len(users)
    module.train()
    total = workers.sum(torch.from_numpy(np.array([count, *sums.ravel()]))).numpy()
    means = total[1:].reshape(sums.shape) / total[0]
    metrics = dict(zip(names, means[0].tolist(), strict=True))
    return metrics if late is None else metrics | _fused(late.shares, names, means[1:], judged_by)


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
    inputs: TrainingInputs, workers: Workers, batch_users: int, most: int | None = None
) -> Iterator[tuple[IntArray, Histories]]:
    """This worker's users who have a target, or the first of them, in batches: their positions and histories."""
    mine = np.flatnonzero(inputs.targets >= 0)[workers.rank :: workers.world_size][:most]
    for start in range(0, len(mine), batch_users):
        users = mine[start : start + batch_users]
        yield users, inputs.histories.select(users)


def _deviations(
    late: LateFusion, model: FusionRecommender, catalogue: FloatArray, inputs: TrainingInputs, workers: Workers,
    batch_users: int,
) -> NDArray[np.float64]:
    """[2] standard deviations of the neural and the partner's scores of unseen items, over some users."""
    sums, users_each = np.zeros((2, 3)), -(-CALIBRATION_USERS // workers.world_size)
    for users, histories in _batches(inputs, workers, min(batch_users, users_each), users_each):
        neural = user_matrix(model, catalogue, histories) @ catalogue.T
        unseen = np.isfinite(mask_seen(neural, histories))
        sums += _moments(neural[unseen]), _moments(late.scores[users][unseen])
    count, first, second = workers.sum(torch.from_numpy(sums)).numpy().T
    return np.asarray(np.sqrt(np.maximum(second / count - (first / count) ** 2, 0.0)), np.float64)


def _moments(values: FloatArray) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    return np.array([wide.size, wide.sum(), np.square(wide).sum()])


def _mixes(late: LateFusion, deviations: NDArray[np.float64]) -> list[tuple[float, float]]:
    """What the neural and the partner's raw scores are multiplied with, for every share. Means are left out: they move
    all items of a user alike."""
    neural, partner = np.where(deviations > 0, deviations, 1.0).tolist()
    return [(share / neural, (1.0 - share) / partner) for share in late.shares]


def _mixed(masked: list[FloatArray], mix: tuple[float, float]) -> FloatArray:
    """Weighted sum of scores [B, N] that are -inf where an item was seen, which no weight of 0 may meet."""
    parts = [np.float32(weight) * scores for weight, scores in zip(mix, masked, strict=False) if weight]
    return np.asarray(sum(parts[1:], parts[0]), np.float32)


def _gain_sums(ranks: Ranks, names: tuple[str, ...]) -> list[float]:
    """Sum over users of every figure, [F]."""
    split = (name.split("@") for name in names)
    return [float(GAINS[figure](ranks, int(k)).sum()) for figure, k in split]


def _fused(
    shares: tuple[float, ...], names: tuple[str, ...], means: NDArray[np.float64], judged_by: str
) -> dict[str, Any]:
    """From means [S, F]."""
    judged = means[:, names.index(judged_by)]
    best = int(judged.argmax())
    return {
        **{f"{FUSED}{name}": value for name, value in zip(names, means[best].tolist(), strict=True)},
        "neural_share": shares[best],
        "fused_curve": [[share, value] for share, value in zip(shares, judged.tolist(), strict=True)],
    }
