"""Proof, before anything is scored, that what is measured has not seen what it is measured by.

Reads the Dataset's events and the counts in a Bundle; it ranks nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_ray.bundle import Bundle
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ArtifactMismatchError, LeakageError
from llmrec_ray.signals import Ease, Popularity
from llmrec_ray.signals.base import history_matrix
from llmrec_ray.types import Columns

__all__ = ["check_bundle", "check_split", "warn_of_suspicious"]

logger = logging.getLogger(__name__)

PAIR = (Columns.USER_ROW, Columns.ITEM_ROW)
WARM = ("train", "validation", "test")
AGAIN = "no figure from it could be trusted: ingest again."
CHECKED_ITEMS = 16
MOST_MISSING = 0.1
MOST_MISSING_SHARE = 1e-4
TOO_GOOD = 0.9
FEWEST_TARGETS = 20


def check_split(dataset: Dataset) -> None:
    """Raise LeakageError when a held-out event is among the training events, or older than one that it may not be
    older than, or when an item that counts as cold has a training event."""
    _check_pairs(dataset)
    _check_cold_items(dataset)
    if dataset.split == "global_time":
        _check_windows(dataset)
    else:
        _check_users_order(dataset)


def check_bundle(dataset: Dataset, bundle: Bundle) -> None:
    """Raise ArtifactMismatchError when the Bundle was trained on another Dataset, and LeakageError when its popularity
    or item-item signal was counted from other events than the train split."""
    trained_on = bundle.artifact.manifest.parents.get("dataset")
    if trained_on != dataset.id:
        raise ArtifactMismatchError(
            f"The bundle {bundle.uri} was trained on dataset {trained_on}, not on {dataset.id} "
            f"({dataset.uri}): evaluate it on its own dataset, or train on this one first."
        )
    _check_popularity(dataset, bundle)
    _check_item_item(dataset, bundle)


def warn_of_suspicious(ranks: Mapping[str, NDArray[np.float64]]) -> None:
    """Say so when a system ranks nearly every target first: ranks [U] by system."""
    shares = {system: float(np.mean(found <= 1)) for system, found in ranks.items() if len(found) >= FEWEST_TARGETS}
    if suspicious := {system: share for system, share in shares.items() if share > TOO_GOOD}:
        logger.warning(
            "%s: hardly anything ranks so many targets first that has not seen them. Look for a text, attribute or id "
            "that gives the target away.",
            ", ".join(f"{system} {share:.0%}" for system, share in suspicious.items()),
        )


def _check_pairs(dataset: Dataset) -> None:
    events = dataset.interactions
    train, held_out = events.filter(pl.col(Columns.SPLIT) == "train"), events.filter(pl.col(Columns.SPLIT) != "train")
    leaked = held_out.join(train, on=PAIR, how="semi")
    if len(leaked):
        raise LeakageError(
            f"{len(leaked)} of {len(held_out)} held-out events of {dataset.uri} are training events too, the first of "
            f"{_named(dataset, leaked)}; {AGAIN}"
        )


def _check_cold_items(dataset: Dataset) -> None:
    split = pl.col(Columns.SPLIT).cast(pl.String)
    events = dataset.interactions.with_columns(split)
    cold = events.filter(split.str.starts_with("cold_"))[Columns.ITEM_ROW].unique()
    known = events.filter(split.is_in(WARM) & pl.col(Columns.ITEM_ROW).is_in(cold.implode()))
    if len(known):
        raise LeakageError(
            f"{known[Columns.ITEM_ROW].n_unique()} of {len(cold)} items that {dataset.uri} holds out as cold have "
            f"other events, the first of {_named(dataset, known)}; {AGAIN}"
        )


def _check_windows(dataset: Dataset) -> None:
    times = {name: _times(dataset, name) for name in WARM}
    for earlier, later in (("train", "validation"), ("train", "test"), ("validation", "test")):
        newest, oldest = max(times[earlier]), min(times[later])
        if newest >= oldest:
            raise LeakageError(
                f"A {earlier} event of {dataset.uri} is from {newest:%Y-%m-%d %H:%M:%S}, not before the first {later} "
                f"event at {oldest:%Y-%m-%d %H:%M:%S}; {AGAIN}"
            )


def _times(dataset: Dataset, split: str) -> tuple[datetime, datetime]:
    """The oldest and the newest event of a split."""
    times = dataset.interactions.filter(pl.col(Columns.SPLIT) == split)[Columns.TIMESTAMP]
    return times.min(), times.max()  # type: ignore[return-value]


def _check_users_order(dataset: Dataset) -> None:
    """Of one user no train event may be newer than the validation event, and neither than the test event."""
    place = pl.col(Columns.SPLIT).cast(pl.String).replace_strict(
        {name: place for place, name in enumerate(WARM)}, default=None, return_dtype=pl.Int64
    )
    ordered = dataset.interactions.with_columns(place.alias("place")).filter(pl.col("place").is_not_null())
    newest_earlier = [
        pl.col(Columns.TIMESTAMP).filter(pl.col("place") < later).max().over(Columns.USER_ROW) for later in (1, 2)
    ]
    before = pl.when(pl.col("place") == 1).then(newest_earlier[0]).when(pl.col("place") == 2).then(newest_earlier[1])
    leaked = ordered.filter(before > pl.col(Columns.TIMESTAMP))
    if len(leaked):
        raise LeakageError(
            f"{len(leaked)} held-out events of {dataset.uri} are older than an event of the same user that is known "
            f"before them, the first of {_named(dataset, leaked)}; {AGAIN}"
        )


def _named(dataset: Dataset, events: pl.DataFrame) -> str:
    user, item = events.select(PAIR).row(0)
    return f"user {dataset.users.id(user)!r} and item {dataset.items.id(item)!r}"


def _check_popularity(dataset: Dataset, bundle: Bundle) -> None:
    popularity = bundle.signals["popularity"]
    if not isinstance(popularity, Popularity):
        return
    counted = Popularity().fit(dataset.histories("train"), len(dataset.items)).log_counts
    wrong = np.flatnonzero(~np.isclose(popularity.log_counts, counted, rtol=1e-5))
    if len(wrong):
        row = int(wrong[0])
        raise LeakageError(
            f"The popularity signal of the bundle {bundle.uri} was not counted from the train split of {dataset.uri}: "
            f"for {len(wrong)} items it differs, first for {dataset.items.id(row)!r} with "
            f"{np.expm1(popularity.log_counts[row]):.0f} users instead of {np.expm1(counted[row]):.0f}. Train again."
        )


def _check_item_item(dataset: Dataset, bundle: Bundle) -> None:
    """EASE's weights solve an equation in the co-occurrences, so they show which events these were counted from.

    With G the co-occurrences and B the weights, (G + l2 I)(I - B) is diagonal (Steck 2019). A few columns are enough;
    what is off the diagonal is in counts of users. Weights that were carried over to cold items are left out.
    """
    ease = bundle.signals.get("item_item")
    if not isinstance(ease, Ease):
        return
    occurrences = history_matrix(dataset.histories("train"), len(dataset.items), None).astype(np.float64)
    counts = np.asarray(occurrences.sum(axis=0)).ravel()
    items = np.argsort(-counts, kind="stable")[:CHECKED_ITEMS]
    columns = -ease.weights[:, items].astype(np.float64)
    columns[counts == 0] = 0.0
    columns[items, np.arange(len(items))] = 1.0
    product = occurrences.T @ (occurrences @ columns) + ease.l2 * columns
    product[items, np.arange(len(items))] = 0.0
    missing = float(np.abs(product).max(initial=0.0))
    if missing > MOST_MISSING + MOST_MISSING_SHARE * float(counts.max()):
        raise LeakageError(
            f"The item_item signal of the bundle {bundle.uri} was not learnt from the train split of {dataset.uri}: "
            f"its weights belong to co-occurrences that differ by {missing:.1f} users. Train again."
        )
