"""From a baseline's name to a fitted signal; all learn from train only, settings selected on validation."""

from __future__ import annotations

from llmrec_ray.config import BaselineName, ItemItemConfig
from llmrec_ray.data import Dataset
from llmrec_ray.signals import Ease, Ials, ItemKnn, Popularity, Signal, TfidfContent

__all__ = ["fit_baseline"]

EASE_L2 = 100.0
RECENCY = 10.0


def fit_baseline(name: BaselineName, dataset: Dataset, item_item: ItemItemConfig, *, seed: int) -> Signal:
    """Fit one baseline on the train split; `ease_recency` takes the recipe's item-item settings."""
    if name == "tfidf":
        return TfidfContent(dataset.item_texts)
    unfitted: dict[str, Popularity | ItemKnn | Ease | Ials] = {
        "popularity": Popularity(),
        "item_knn": ItemKnn(),
        "ease": Ease(EASE_L2, recency=None),
        "ease_recency": Ease(item_item.l2, item_item.recency or RECENCY),
        "ials": Ials(seed=seed),
    }
    return unfitted[name].fit(dataset.histories("train"), len(dataset.items))
