"""A Dataset and its text vectors -> what every training worker needs, as arrays; and the networks for it.

Workers know no Ray: the driver puts `TrainingInputs` into the object store, so workers need no storage of their own.
Shapes: U users, N items, T width of a text vector.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from llmrec_ray.config import Recipe
from llmrec_ray.embed import lower_states
from llmrec_ray.errors import DataError
from llmrec_ray.model import (
    FrozenText,
    FusionRecommender,
    Peers,
    SharedText,
    TextStates,
    TrainingModule,
    TunedText,
    Windows,
    make_windows,
)
from llmrec_ray.model.augment import Augmentation
from llmrec_ray.model.context import ContextFeatures
from llmrec_ray.model.encoder import TextEncoder, load_tokens
from llmrec_ray.model.fusion import FEATURES
from llmrec_ray.model.losses import make_loss
from llmrec_ray.model.negatives import make_sampler
from llmrec_ray.model.source import resolve_model
from llmrec_ray.model.tokens import TokenizedTexts
from llmrec_ray.model.tuning import compile_blocks, prepare_tuning
from llmrec_ray.train.warm import initial_weights
from llmrec_ray.types import FloatArray, Histories, IntArray
from llmrec_ray.vocab import Vocabulary

if TYPE_CHECKING:
    from llmrec_ray.bundle import Bundle
    from llmrec_ray.data import Dataset

TENTHS = tuple(step / 10 for step in range(11))

__all__ = ["LateFusion", "TrainingInputs", "build_module", "build_recommender"]


@dataclass(frozen=True)
class LateFusion:
    """A fixed partner of the neural signal: validation then also scores both together, see `validation`.

    users: [B] int64, users who have a validation target; all of them or some. scores: [B, N] float32 raw scores of the
    partner for their train histories, finite.
    shares: those of the neural signal that are tried; the partner has the rest, both scaled to unit deviation.
    """

    users: IntArray
    scores: FloatArray
    shares: tuple[float, ...] = TENTHS


@dataclass(frozen=True)
class TrainingInputs:
    """Train histories, validation targets and texts.

    histories: train events of U users, user_rows = 0..U-1. targets: [U] int64 validation item rows,
    -1 for users without one.
    text_vectors: [N, T] float32 in text space (centred, unit norm), or None when items have no texts.
    text_center: [T] float32, and item_texts, one per item row, tokenized once for all processes or to be tokenized by
    each: only needed to train encoder layers.
    text_states: what the first trained block reads for each text, when it is kept instead of computed in every step.
    item_ids: the outside world's names of the item rows, for messages.
    initial: weights of the recommender to start from, by name, and start_id: the Bundle that they are of.
    values: [E] float32 value of each event of the histories, NaN where it has none; None when nothing depends on it.
    times: [E] int64 unix seconds of each event; None when nothing depends on them.
    context: the encoders of the recipe's columns, and what they give: user_features [U, F] and item_features [N, F]
    float32; None when the recipe reads no columns.
    metrics: what validation measures, such as mrr@20. selection: the one that early stopping and the best checkpoint
    follow, such as ndcg@10 or, with `late`, fused_ndcg@10.
    """

    histories: Histories
    targets: IntArray
    n_items: int
    text_vectors: FloatArray | None = None
    text_center: FloatArray | None = None
    item_texts: TokenizedTexts | list[str] | None = None
    text_states: TextStates | None = None
    late: LateFusion | None = None
    item_ids: Vocabulary | None = None
    initial: Mapping[str, FloatArray] | None = None
    start_id: str = ""
    values: FloatArray | None = None
    times: IntArray | None = None
    context: ContextFeatures | None = None
    user_features: FloatArray | None = None
    item_features: FloatArray | None = None
    metrics: tuple[str, ...] = ("ndcg@10", "hr@10")
    selection: str = "ndcg@10"

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        dataset: Dataset,
        text_vectors: FloatArray | None,
        text_center: FloatArray | None,
        late: LateFusion | None = None,
        start: Bundle | None = None,
    ) -> TrainingInputs:
        """Take from a Dataset what this recipe trains on; texts, and states computed on Ray, only when its encoder
        trains; the first weights from the Bundle `start`. Raises ConfigError for a loss that the catalogue is too
        large for."""
        histories = dataset.histories("train")
        counts = np.bincount(histories.item_rows, minlength=len(dataset.items))
        make_sampler(recipe.train, counts)
        columns = _columns(recipe, dataset, histories, counts, None if start is None else start.context)
        return cls(
            histories=histories,
            targets=dataset.targets("validation"),
            n_items=len(dataset.items),
            text_vectors=text_vectors if _reads_text(recipe) else None,
            text_center=text_center if _tunes(recipe) else None,
            item_texts=_tokenized(recipe, dataset) if _tunes(recipe) else None,
            text_states=lower_states(dataset.item_texts, recipe.encoder) if _tunes(recipe) else None,
            late=late,
            item_ids=dataset.items,
            initial=None if start is None else (
                initial_weights(start, dataset.users, dataset.items, counts)
                | {name: columns[name] for name in FEATURES if columns.get(name) is not None}
            ),
            start_id="" if start is None else start.id,
            values=None if recipe.train.positive_value is None else dataset.history_values("train"),
            times=dataset.history_times("train") if recipe.model.context.time else None,
            **columns,
        )

    def part(self, histories: Histories, kept: NDArray[np.bool_], targets: IntArray) -> TrainingInputs:
        """The same over some of the events: kept [E] says which, `histories` are made of them."""
        values = None if self.values is None else self.values[kept]
        times = None if self.times is None else self.times[kept]
        return replace(self, histories=histories, targets=targets, values=values, times=times)

    def item_id(self, row: int) -> str:
        """The outside world's name of an item row."""
        return f"row {row}" if self.item_ids is None else self.item_ids.id(row)

    @property
    def context_sizes(self) -> tuple[int, int]:
        """Widths of the user and the item features, 0 where the recipe reads none."""
        users, items = (0 if table is None else table.shape[1] for table in (self.user_features, self.item_features))
        return users, items

    def check(self) -> None:
        """Raise DataError for text vectors that are not finite, which no step would survive."""
        if self.text_vectors is None:
            return
        bad = np.flatnonzero(~np.isfinite(self.text_vectors).all(axis=1))
        if len(bad):
            raise DataError(
                f"The text vectors of {len(bad)} items are not finite, first that of {self.item_id(int(bad[0]))}: use "
                "encoder.precision=fp32, or another encoder.model."
            )

    def windows(self, recipe: Recipe) -> Windows:
        """Training windows over the train histories, with the recipe's negatives and augmentation."""
        train = recipe.train
        liked = None if train.positive_value is None else self._liked(train.positive_value)
        return make_windows(
            self.histories, recipe.model.history_length, make_sampler(train, self._item_counts),
            Augmentation(train.augment, self.histories) if train.augment.is_on else None, liked, self.times,
        )

    @property
    def _item_counts(self) -> IntArray:
        return np.bincount(self.histories.item_rows, minlength=self.n_items)

    def _liked(self, positive_value: float) -> NDArray[np.bool_]:
        assert self.values is not None, "dislikes of a log without values. This is a bug: recipes are checked."
        return ~(self.values < positive_value)  # an event without a value is no dislike


def build_recommender(
    recipe: Recipe, n_users: int, n_items: int, text_size: int | None, sizes: tuple[int, int] = (0, 0)
) -> FusionRecommender:
    """The untrained recommender of a recipe; `text_size` is ignored when the items' vectors read no text.

    sizes: widths of the user and the item features, which `context_sizes` reads from trained weights.
    """
    return FusionRecommender(
        recipe.model, recipe.fusion.item_vector, n_users, n_items, text_size if _reads_text(recipe) else None, sizes
    )


def build_module(
    recipe: Recipe, inputs: TrainingInputs, windows: Windows, peers: Peers | None = None
) -> TrainingModule:
    """The training module with the recipe's seed, or the inputs' weights: the same in every process."""
    torch.manual_seed(recipe.seed)
    text_size = None if inputs.text_vectors is None else inputs.text_vectors.shape[1]
    model = build_recommender(recipe, len(inputs.histories), inputs.n_items, text_size, inputs.context_sizes)
    model.set_features(inputs.user_features, inputs.item_features)
    model.start_from_popularity(windows.item_counts(inputs.n_items))
    if inputs.initial is not None:
        model.load_state_dict({name: torch.tensor(array) for name, array in inputs.initial.items()})
    train = recipe.train
    pool = (len(inputs.histories), train.mined.pool) if train.negative_sampling == "mined" else None
    return TrainingModule(
        model, _text_source(recipe, inputs, peers), loss=make_loss(train),
        log_q=windows.sampler.log_q, hard_shape=pool, hard_margin=train.mined.margin,
    )


def _columns(
    recipe: Recipe, dataset: Dataset, histories: Histories, item_counts: IntArray, fitted: ContextFeatures | None
) -> dict[str, Any]:
    """Encoders, those of the Bundle to start from or fitted on users and items of train, and the features of all."""
    config = recipe.model.context
    if not (config.user_columns or config.item_columns):
        return {}
    users, items = dataset.user_attributes, dataset.item_attributes
    if fitted is None:
        fitted = ContextFeatures.fit(config, users, items, histories.lengths > 0, item_counts > 0)
    return {
        "context": fitted,
        "user_features": fitted.encode_users(users) if config.user_columns else None,
        "item_features": fitted.encode_items(items) if config.item_columns else None,
    }


def _tokenized(recipe: Recipe, dataset: Dataset) -> TokenizedTexts:
    return load_tokens(resolve_model(recipe.encoder.model), recipe.encoder).tokenized(dataset.item_texts)


def _text_source(recipe: Recipe, inputs: TrainingInputs, peers: Peers | None) -> nn.Module | None:
    if inputs.text_vectors is None:
        return None
    if not _tunes(recipe):
        with warnings.catch_warnings():  # the table is shared memory: read-only, and nothing writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return FrozenText(np.asarray(inputs.text_vectors, dtype=np.float32))
    assert inputs.item_texts is not None, "tuning without texts. This is a bug."
    assert inputs.text_center is not None, "tuning without a centre. This is a bug."
    encoder = TextEncoder.load(resolve_model(recipe.encoder.model), recipe.encoder, for_training=True)
    if recipe.train.compile:
        compile_blocks(encoder.backbone)
    prepare_tuning(encoder)
    tuned = TunedText(encoder, inputs.item_texts, inputs.text_center, inputs.text_states)
    return SharedText(tuned, inputs.text_vectors, peers, recipe.encoder.gradient_share)


def _reads_text(recipe: Recipe) -> bool:
    return recipe.fusion.item_vector != "id"


def _tunes(recipe: Recipe) -> bool:
    return _reads_text(recipe) and recipe.encoder.tuning != "frozen"
