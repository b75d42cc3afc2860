"""From a baseline's name to a fitted signal; all learn from train only, settings selected on validation.

The settings are those of MovieLens-100K under protocol P, chosen by validation NDCG@10 among a few dozen each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from llmrec_ray.config import BaselineName, Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.evaluate.sasrec import fit_sasrec
from llmrec_ray.signals import (
    TEXT_RECENCY,
    Bpr,
    Ease,
    Ials,
    ItemKnn,
    MarkovChain,
    Popularity,
    RecentPopularity,
    Signal,
    TextCosine,
    TfidfContent,
)
from llmrec_ray.types import FloatArray

__all__ = ["fit_baseline", "usable_baselines"]

logger = logging.getLogger(__name__)

EASE_L2 = 100.0
RECENCY = 10.0
TFIDF_RECENCY = 5.0
MAX_BPR_USERS = 20_000


def usable_baselines(
    names: Sequence[BaselineName], dataset: Dataset, text_vectors: FloatArray | None
) -> list[BaselineName]:
    """Those of the names for which the Dataset has what they read: `tfidf` needs texts, `text` their vectors; `bpr` is
    for at most MAX_BPR_USERS users."""
    has_texts = any(dataset.item_texts)
    if "bpr" in names and len(dataset.users) > MAX_BPR_USERS:
        logger.info("There are %d users, over %d, so the baseline bpr is left out: its time grows with their square.",
                    len(dataset.users), MAX_BPR_USERS)
        names = [name for name in names if name != "bpr"]
    missing = [name for name, there in (("tfidf", has_texts), ("text", text_vectors is not None)) if not there]
    if left_out := [name for name in names if name in missing]:
        named = f"baseline {left_out[0]} is" if len(left_out) == 1 else f"baselines {' and '.join(left_out)} are"
        logger.info("No item has a text, so the %s left out.", named)
    return [name for name in names if name not in missing]


def fit_baseline(
    name: BaselineName, dataset: Dataset, recipe: Recipe, *, text_vectors: FloatArray | None = None
) -> Signal:
    """Fit one baseline on the train split with the recipe's seed; `ease_recency` takes its item-item settings.

    text_vectors: [N, T] float32 in text space, which `text` compares. `sasrec` trains for a minute or two on
    MovieLens-100K, and stops by the validation targets.
    """
    train, n_items, seed = dataset.histories("train"), len(dataset.items), recipe.seed
    item_item = recipe.item_item
    fitters: dict[BaselineName, Callable[[], Signal]] = {
        "popularity": lambda: Popularity().fit(train, n_items),
        "recent_popularity": lambda: RecentPopularity(dataset.history_times("train")).fit(train, n_items),
        "tfidf": lambda: TfidfContent(dataset.item_texts, recency=TFIDF_RECENCY),
        "text": lambda: _text_cosine(text_vectors),
        "item_knn": lambda: ItemKnn().fit(train, n_items),
        "item_knn_recency": lambda: ItemKnn(200, asymmetry=0.5, amplification=1.5, recency=5.0).fit(train, n_items),
        "ease": lambda: Ease(EASE_L2, recency=None).fit(train, n_items),
        "ease_recency": lambda: Ease(item_item.l2, item_item.recency or RECENCY).fit(train, n_items),
        "ials": lambda: Ials(seed=seed).fit(train, n_items),
        "bpr": lambda: Bpr(seed=seed).fit(train, n_items),
        "markov": lambda: MarkovChain().fit(train, n_items),
        "sasrec": lambda: fit_sasrec(recipe, train, dataset.targets("validation"), n_items),
    }
    return fitters[name]()


def _text_cosine(text_vectors: FloatArray | None) -> TextCosine:
    assert text_vectors is not None, "the baseline text without text vectors. This is a bug."
    return TextCosine(text_vectors, recency=TEXT_RECENCY)
