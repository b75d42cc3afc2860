"""One range of users of all Logs -> its events, transformed and in numbers, in files that later steps map.

    events.arrow   user and item as places among the range's ids, in the order of ids; then time, value and the others
    users.arrow, items.arrow      those ids, sorted
    alive-<round>.npy      which events are still in the k-core after so many rounds of peeling
    places.npy     the place of each of its items among the items of all ranges

A step that needs all events of a user has them all here; what needs all ranges exchanges counts. Each step gives the
same when it runs again, as it does where a machine is lost before it answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_ray.config import DataConfig
from llmrec_ray.data.kcore import drop_items, drop_rare_users
from llmrec_ray.data.ranges import number_texts, read_range
from llmrec_ray.data.transform import transform
from llmrec_ray.types import Columns, IntArray

__all__ = ["EncodedRange", "Lost", "encode_range", "finish_range", "found_items", "peel_range"]

ID = "id"
PLACES = "places.npy"


@dataclass(frozen=True)
class EncodedRange:
    """Where one encoded range lies, how many rows each filter dropped, and the rounds of peeling it has behind it."""

    folder: Path
    dropped: dict[str, int]
    rounds: int = 0

    @property
    def events(self) -> pl.DataFrame:
        """user_row, item_row uint32 as places in `users` and `items`, timestamp, value, …; sorted by user and time."""
        return pl.read_ipc(self.folder / "events.arrow")

    @property
    def users(self) -> pl.Series:
        """Ids of its users, sorted; some may have no event that is alive."""
        return pl.read_ipc(self.folder / "users.arrow")[ID]

    @property
    def items(self) -> pl.Series:
        """Ids of its items, sorted."""
        return pl.read_ipc(self.folder / "items.arrow")[ID]

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which events are in the k-core so far, [E]."""
        alive: NDArray[np.bool_] = np.load(self._alive)
        return alive

    @property
    def places(self) -> IntArray:
        """Place of each of `items` among those of all ranges, [N]; once they are known, see `finish_range`."""
        places: IntArray = np.load(self.folder / PLACES)
        return places

    @property
    def peeled(self) -> EncodedRange:
        """The range after one more round."""
        return replace(self, rounds=self.rounds + 1)

    def keep(self, alive: NDArray[np.bool_]) -> None:
        """Remember which events are alive."""
        np.save(self._alive, alive)

    def forget_round(self) -> None:
        """Remove what was alive at this round."""
        self._alive.unlink(missing_ok=True)

    @property
    def _alive(self) -> Path:
        return self.folder / f"alive-{self.rounds}.npy"


@dataclass(frozen=True)
class Lost:
    """What one round of peeling took from a range: rows by filter, and events of distinct items (their places)."""

    rare_user: int
    rare_item: int
    items: IntArray
    counts: IntArray


def encode_range(
    number: int, *, fragments: Sequence[Path], folder: Path, data: DataConfig, newest: datetime | None
) -> EncodedRange:
    """Read, transform and encode the events of one range, and drop its rare users once."""
    events = read_range(fragments, number)
    (user_numbers, users), (item_numbers, items) = (
        number_texts(events[name]) for name in (Columns.USER_ID, Columns.ITEM_ID)
    )
    others = pl.DataFrame(pl.from_arrow(events.drop_columns([Columns.USER_ID, Columns.ITEM_ID])))
    ids = (user_numbers.alias(Columns.USER_ID), item_numbers.alias(Columns.ITEM_ID))
    done = transform(pl.DataFrame([*ids, *others]), data, newest)
    renamed = done.events.drop(Columns.EVENT_ID, strict=False).rename(
        {Columns.USER_ID: Columns.USER_ROW, Columns.ITEM_ID: Columns.ITEM_ROW}
    )
    place = folder / f"{number:06}"
    place.mkdir(exist_ok=True)
    alive = np.ones(len(renamed), np.bool_)
    alive = drop_rare_users(renamed[Columns.USER_ROW].to_numpy(), alive, len(users), data.min_user_interactions)
    dropped = {**done.dropped, "rare_user": len(renamed) - int(alive.sum())}
    renamed.filter(alive).write_ipc(place / "events.arrow")
    users.alias(ID).to_frame().write_ipc(place / "users.arrow")
    items.alias(ID).to_frame().write_ipc(place / "items.arrow")
    encoded = EncodedRange(place, dropped)
    encoded.keep(np.ones(int(alive.sum()), np.bool_))
    return encoded


def found_items(encoded: EncodedRange) -> pl.DataFrame:
    """The range's items with events: id, count int64."""
    items = encoded.items
    counts = np.bincount(encoded.events[Columns.ITEM_ROW].to_numpy(), minlength=len(items)).astype(np.int64)
    return pl.DataFrame({ID: items, "count": counts}).filter(pl.col("count") > 0)


def peel_range(encoded: EncodedRange, *, items: Path, dead: Path, min_user_events: int) -> Lost:
    """Drop the items marked in the file `dead` ([N] bool), then users who have become rare; `encoded.peeled` has the
    rest.

    `items` is the Arrow file with the ids of the items of all ranges, whose places are meant.
    """
    _place_items(encoded, items)
    events, before = encoded.events, encoded.alive
    users = events[Columns.USER_ROW].to_numpy()
    item_places = encoded.places[events[Columns.ITEM_ROW].to_numpy()]
    without_items = drop_items(item_places, before, np.load(dead))
    alive = drop_rare_users(users, without_items, len(encoded.users), min_user_events)
    encoded.peeled.keep(alive)
    if encoded.rounds:
        replace(encoded, rounds=encoded.rounds - 1).forget_round()
    lost, counts = np.unique(item_places[without_items & ~alive], return_counts=True)
    rare_item, rare_user = int(before.sum() - without_items.sum()), int(without_items.sum() - alive.sum())
    return Lost(rare_user, rare_item, lost, counts.astype(np.int64))


def finish_range(encoded: EncodedRange, *, items: Path) -> IntArray:
    """Remember the places of its items among those of all ranges, and count the events of each of its users that are
    alive, [U] int64."""
    _place_items(encoded, items)
    users = encoded.events[Columns.USER_ROW].to_numpy()[encoded.alive]
    return np.bincount(users, minlength=len(encoded.users)).astype(np.int64)


def _place_items(encoded: EncodedRange, items: Path) -> None:
    if (encoded.folder / PLACES).exists():
        return
    every = pl.read_ipc(items)[ID]  # both are sorted, so that searching is faster than a join
    part = encoded.folder / f"part-{PLACES}"
    np.save(part, every.search_sorted(encoded.items).cast(pl.Int64).to_numpy())
    part.replace(encoded.folder / PLACES)  # whole or not there
