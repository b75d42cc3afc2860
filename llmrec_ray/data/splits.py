"""Kept events -> the split that each belongs to, by the protocol that the recipe names.

    leave_one_out  a user's last event = test, the one before = validation, the rest = train
    cold_items     items of two hash folds are held out with all their events (cold_test, cold_validation); the other
                   events of each user are split as in leave_one_out, users with fewer than three only train
    global_time    two moments cut the whole log: train, then validation, then test

A SplitPlan holds all that must be known of the whole log, so that the events of some users are marked apart from all
others. It knows neither files nor vocabularies. Events come sorted by user, then time, equal times in the order of the
log; that order decides between events of one moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_ray.config import DataConfig
from llmrec_ray.config.data import COLD_FOLDS, COLD_VALIDATION_FOLD, Split
from llmrec_ray.errors import DataError
from llmrec_ray.types import Columns, IntArray

__all__ = ["SPLIT_TYPE", "SplitCounts", "SplitPlan", "TimeCuts", "count_times", "item_fold", "plan_splits"]

SPLIT_TYPE = pl.Enum(["train", "validation", "test", "cold_validation", "cold_test"])
TRAIN, VALIDATION, TEST, COLD_VALIDATION, COLD_TEST = range(5)
LEAST_EVENTS = 3
ROUNDING = 1e-9
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME_BINS = 1 << 14

Mask = NDArray[np.bool_]
Numbers = NDArray[np.integer[Any]]


def plan_splits(
    data: DataConfig, item_ids: Sequence[str] = (), cuts: tuple[datetime, datetime] | None = None
) -> SplitPlan:
    """How to split by `data.split`.

    item_ids: all items with events, in row order, for `cold_items`. cuts: the last moments of train and of validation,
    for `global_time`; see TimeCuts.
    """
    folds = None
    if data.split == "cold_items":
        folds = np.array([item_fold(item_id) for item_id in item_ids], np.uint8)
    assert (cuts is not None) == (data.split == "global_time"), "Cuts are those of global_time. This is a bug."
    return SplitPlan(data.split, data.cold_fold, data.time_shares, folds, cuts)


@dataclass(frozen=True, eq=False)
class SplitPlan:
    """Marks the events of some users, whatever the others did; picklable.

    folds: [n_items] uint8, the fold of each item row, for cold_items.
    """

    split: Split
    cold_fold: int
    time_shares: tuple[float, float]
    folds: NDArray[np.uint8] | None
    cuts: tuple[datetime, datetime] | None

    def mark(self, events: pl.DataFrame) -> pl.DataFrame:
        """The whole histories of some users (user_row, item_row, timestamp and more, sorted) with a column `split`."""
        splits = self._by_time(events) if self.split == "global_time" else self._by_place(events)
        return events.with_columns(pl.Series(Columns.SPLIT, splits).cat.to(SPLIT_TYPE))

    def count(self, marked: pl.DataFrame) -> SplitCounts:
        """What `check` must know of marked events; counts of several frames are added."""
        splits = marked[Columns.SPLIT].to_physical().to_numpy()
        users = marked[Columns.USER_ROW].rle_id().to_numpy()
        train, validation, test = (_any_of(users, splits == split) for split in (TRAIN, VALIDATION, TEST))
        at_cuts = 0 if self.cuts is None else int(marked[Columns.TIMESTAMP].is_in(self.cuts).sum())
        per_user = np.bincount(users)
        return SplitCounts(
            **dict(zip(SPLIT_TYPE.categories, np.bincount(splits, minlength=5).tolist(), strict=True)),
            users_in_validation=int(validation.sum()),
            users_in_validation_with_past=int((validation & train).sum()),
            users_in_test=int(test.sum()),
            users_in_test_with_past=int((test & (train | validation)).sum()),
            at_cuts=at_cuts,
            fewest=int(per_user.min()) if len(per_user) else None,
        )

    def check(self, counts: SplitCounts) -> None:
        """Raise DataError when the split does not fit the events, of which `counts` are those of all."""
        if self.split == "leave_one_out":
            _check_fewest(counts)
        elif self.split == "cold_items":
            self._check_cold(counts)
        else:
            self._check_time(counts)

    def _by_time(self, events: pl.DataFrame) -> NDArray[np.uint8]:
        assert self.cuts is not None
        cuts = [_to_us(moment) for moment in self.cuts]
        moments: IntArray = events[Columns.TIMESTAMP].dt.epoch("us").to_numpy()
        return ((moments > cuts[0]).astype(np.uint8) + (moments > cuts[1])).astype(np.uint8)

    def _by_place(self, events: pl.DataFrame) -> NDArray[np.uint8]:
        users = events[Columns.USER_ROW].to_numpy()
        if self.folds is None:
            return _last_two_held_out(users)
        items: IntArray = events[Columns.ITEM_ROW].to_numpy()
        splits = _cold_splits(self.cold_fold)[self.folds[items]]
        warm = np.flatnonzero(splits == TRAIN)
        splits[warm] = _last_two_held_out(users[warm])
        return splits

    def _check_cold(self, counts: SplitCounts) -> None:
        assert self.folds is not None
        held_out = {"cold_test": self.cold_fold, "cold_validation": COLD_VALIDATION_FOLD}
        for split, fold in held_out.items():
            if not getattr(counts, split):
                raise DataError(
                    f"None of the {len(self.folds)} items with events is in fold {fold} of {COLD_FOLDS}, which "
                    f"data.split cold_items holds out as {split}: choose another data.cold_fold, or give more items."
                )
        if not counts.test:
            raise DataError(
                f"No user has {LEAST_EVENTS} events of items outside the held-out folds, so data.split cold_items "
                "leaves no validation or test event: give longer histories."
            )

    def _check_time(self, counts: SplitCounts) -> None:
        empty = [name for name in ("validation", "test") if not getattr(counts, name)]
        if empty:
            assert self.cuts is not None
            validation, test = self.time_shares
            moments = " and ".join(dict.fromkeys(f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in self.cuts))
            raise DataError(
                f"data.split global_time with data.time_shares {validation:g} and {test:g} leaves "
                f"{' and '.join(empty)} without an event: {counts.at_cuts} of {counts.events} events happened at "
                f"{moments}, where it cuts. Give events with times, other data.time_shares, or set data.split to "
                "leave_one_out."
            )
        _check_pasts(counts)


@dataclass(frozen=True)
class SplitCounts:
    """Events per split, and what else decides whether a split fits. Add those of parts with `+`.

    at_cuts: events of the very moments that cut. fewest: the least number of events that a user has, None without one.
    """

    train: int = 0
    validation: int = 0
    test: int = 0
    cold_validation: int = 0
    cold_test: int = 0
    users_in_validation: int = 0
    users_in_validation_with_past: int = 0
    users_in_test: int = 0
    users_in_test_with_past: int = 0
    at_cuts: int = 0
    fewest: int | None = None

    @property
    def events(self) -> int:
        """Events of all splits."""
        return self.train + self.validation + self.test + self.cold_validation + self.cold_test

    def __add__(self, other: SplitCounts) -> SplitCounts:
        """The counts of both together; no user may be in both."""
        names = [field.name for field in fields(self) if field.name != "fewest"]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        known = [fewest for fewest in (self.fewest, other.fewest) if fewest is not None]
        return SplitCounts(**sums, fewest=min(known, default=None))


class TimeCuts:
    """Finds the moments that cut all events by shares, exactly, from histograms of any parts of the events.

    The newest share `test` of all events is test, the newest share `validation` of the others validation; events of
    one moment stay together, with the older split. A round: make the `edges`, `add` the counts of every part between
    them. After about five rounds of a few thousand numbers it is `done`, and `cuts` holds the last moments of train
    and of validation.
    """

    def __init__(self, events: int, validation: float, test: float) -> None:
        shares = (validation + test, test)
        self._events = events
        self._ranks = [max(0, events - 1 - int(events * share + ROUNDING)) for share in shares]
        self._bounds = [(0, 1 << 53), (0, 1 << 53)]
        self._edges = np.empty(0, np.int64)
        self._counts = np.array([events])

    @property
    def done(self) -> bool:
        """Whether the cuts are known."""
        return all(stop - start == 1 for start, stop in self._bounds)

    @property
    def cuts(self) -> tuple[datetime, datetime]:
        """The last moments of train and of validation, UTC."""
        assert self.done, "The cuts were asked for before they were known. This is a bug."
        train, validation = (EPOCH + timedelta(microseconds=start) for start, _ in self._bounds)
        return train, validation

    def edges(self) -> IntArray:
        """Edges of the next round's bins, [N] int64 microseconds since 1970, ascending; no event lies outside."""
        assert self._counts.sum() == self._events, "A round did not count every event once. This is a bug."
        ladders = [np.arange(start, stop, max(1, (stop - start) // TIME_BINS)) for start, stop in self._bounds]
        ends = [stop for _, stop in self._bounds]
        self._edges = np.unique(np.concatenate([*ladders, ends, [-(1 << 62), 1 << 62]])).astype(np.int64)
        self._counts = np.zeros(len(self._edges) - 1, np.int64)
        return self._edges

    def add(self, counts: IntArray) -> None:
        """Add the events of a part that lie in each bin, [N - 1]; the round ends with the last of all events."""
        self._counts += counts
        if self._counts.sum() == self._events:
            below = np.cumsum(self._counts)
            places = np.searchsorted(below, self._ranks, side="right")
            self._bounds = [(int(self._edges[place]), int(self._edges[place + 1])) for place in places]


def count_times(moments_us: IntArray, edges: IntArray) -> IntArray:
    """How many moments lie in each bin, its lower edge included, [N - 1] int64; none may lie outside."""
    return np.bincount(np.searchsorted(edges, moments_us, side="right") - 1, minlength=len(edges) - 1).astype(np.int64)


def item_fold(item_id: str) -> int:
    """The fold of an item, 0 to 9: the SHA-256 of its id, as a number, modulo ten."""
    return int(hashlib.sha256(item_id.encode()).hexdigest(), 16) % COLD_FOLDS


def _cold_splits(fold: int) -> NDArray[np.uint8]:
    """The split of the items of each fold; train stands for those that are not held out."""
    splits = np.full(COLD_FOLDS, TRAIN, np.uint8)
    splits[[COLD_VALIDATION_FOLD, fold]] = COLD_VALIDATION, COLD_TEST
    return splits


def _last_two_held_out(users: Numbers) -> NDArray[np.uint8]:
    """One out of every user's events for test and one for validation, where the user has three."""
    splits = np.full(len(users), TRAIN, np.uint8)
    last = np.append(np.flatnonzero(users[1:] != users[:-1]), len(users) - 1)
    last = last[last >= LEAST_EVENTS - 1]
    enough = last[users[last - LEAST_EVENTS + 1] == users[last]]
    splits[enough] = TEST
    splits[enough - 1] = VALIDATION
    return splits


def _any_of(users: Numbers, chosen: Mask) -> Mask:
    """Which users, places from 0, have an event among the chosen, [U] bool."""
    return np.bincount(users, weights=chosen) > 0


def _to_us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def _check_fewest(counts: SplitCounts) -> None:
    fewest = counts.fewest or 0
    if fewest < LEAST_EVENTS:
        raise DataError(
            f"A user has only {fewest} events, but data.split leave_one_out needs {LEAST_EVENTS} (train, validation, "
            f"test): raise data.min_user_interactions to {LEAST_EVENTS} or more."
        )


def _check_pasts(counts: SplitCounts) -> None:
    for name in ("validation", "test"):
        if not getattr(counts, f"users_in_{name}_with_past"):
            raise DataError(
                f"None of the {getattr(counts, f'users_in_{name}')} users with an event in {name} has an earlier one, "
                "so data.split global_time has nothing to predict from: give users with longer histories, or other "
                "data.time_shares."
            )
