"""SASRec baseline: the transformer user tower trained alone, on item ids, without text, user ids or other signals.

Kang and McAuley 2018, with the sampled softmax and the training windows of the model that it stands beside. One plain
process; stopped by validation NDCG@10; the same seed gives the same weights on the same machine.
Shapes: B users, U users in training, N items, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from llmrec_ray.config import FusionConfig, ModelConfig, Recipe, TrainConfig
from llmrec_ray.metrics import ndcg_gains
from llmrec_ray.model import FusionRecommender, TrainingModule, catalogue_vectors, user_matrix
from llmrec_ray.ranking import mask_seen, take_items, target_ranks
from llmrec_ray.signals.base import blank_without_history
from llmrec_ray.train import TrainingInputs
from llmrec_ray.train.inputs import build_module
from llmrec_ray.train.optimizer import learning_rate_scale, make_optimizer, set_learning_rates
from llmrec_ray.train.stopping import EarlyStopping
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["SASREC_MODEL", "SASREC_TRAIN", "SasRec", "fit_sasrec"]

SELECTION_K = 10
SASREC_MODEL = ModelConfig(user_tower="transformer", user_embedding=False, dropout=0.2)
SASREC_TRAIN = TrainConfig(
    num_workers=1, epochs=16, patience=6, batch_size=16, learning_rate=4e-3, negatives=1024
)


class SasRec:
    """The `sasrec` baseline, trained."""

    name: ClassVar[str] = "sasrec"

    def __init__(self, model: FusionRecommender) -> None:
        self.model = model
        self.item_vectors = catalogue_vectors(model, None)

    def score(self, histories: Histories) -> FloatArray:
        """Raw scores of the whole catalogue, [B, N] float32; NaN for a user without history."""
        users = user_matrix(self.model, self.item_vectors, histories)
        return blank_without_history(users @ self.item_vectors.T, histories)

    def score_items(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Raw scores of item_rows [B, C] float32; NaN where the row is -1."""
        return take_items(self.score(histories), item_rows)


def fit_sasrec(
    recipe: Recipe,
    train: Histories,
    targets: IntArray,
    n_items: int,
    *,
    model: ModelConfig = SASREC_MODEL,
    training: TrainConfig = SASREC_TRAIN,
) -> SasRec:
    """Train on the histories of U users; targets [U] are their validation items, -1 for none.

    Of the recipe only the seed and `evaluate.batch_users` are used.
    """
    alone = recipe.model_copy(update={"model": model, "train": training, "fusion": FusionConfig(item_vector="id")})
    inputs = TrainingInputs(train, targets, n_items)
    with torch.random.fork_rng(devices=[]):
        run = _Run(alone, inputs)
        while run.epoch < training.epochs and not run.stopping.should_stop(training.patience):
            run.train_epoch()
    return SasRec(run.best_model())


class _Run:
    """The module, its optimizer, and the best weights so far."""

    def __init__(self, recipe: Recipe, inputs: TrainingInputs) -> None:
        self.recipe, self.inputs = recipe, inputs
        self.windows = inputs.windows(recipe)
        self.module: TrainingModule = build_module(recipe, inputs, self.windows)
        self.optimizer = make_optimizer(self.module, recipe)
        self.epoch = self.step = 0
        self.stopping = EarlyStopping()
        self.best: Mapping[str, Tensor] = {}

    def train_epoch(self) -> None:
        """All windows once, then validation."""
        train, seed = self.recipe.train, self.recipe.seed
        total = train.epochs * self.windows.steps(train.batch_size)
        self.module.train()
        for [batch] in self.windows.epoch(
            self.epoch, seed=seed, batch_size=train.batch_size, negatives=train.negatives
        ):
            torch.manual_seed(hash((seed, self.step)) % 2**63)
            set_learning_rates(self.optimizer.param_groups, learning_rate_scale(self.step, train, total))
            self.optimizer.zero_grad()
            self.module(batch).backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), train.gradient_clip)
            self.optimizer.step()
            self.step += 1
        self.epoch += 1
        self.stopping = self.stopping.seen(self._validation_ndcg(), self.epoch)
        if self.stopping.best_epoch == self.epoch:
            self.best = {name: tensor.clone() for name, tensor in self.module.model.state_dict().items()}

    def best_model(self) -> FusionRecommender:
        """The recommender with the weights of the best epoch, in evaluation mode."""
        self.module.model.load_state_dict(self.best)
        return self.module.model.eval()

    def _validation_ndcg(self) -> float:
        asked = np.flatnonzero(self.inputs.targets >= 0)
        signal, gains = SasRec(self.module.model), [np.empty(0)]
        for start in range(0, len(asked), self.recipe.evaluate.batch_users):
            users = asked[start : start + self.recipe.evaluate.batch_users]
            histories = self.inputs.histories.select(users)
            ranks = target_ranks(mask_seen(signal.score(histories), histories), self.inputs.targets[users])
            gains.append(ndcg_gains(ranks, SELECTION_K))
        return float(np.concatenate(gains).mean())
