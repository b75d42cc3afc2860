"""A Dataset on disk -> histories, targets, texts and vocabularies in memory.

`interactions/part-*.parquet` holds one row per kept event, sorted by user and then by time, so it *is* the
histories. This module does not know where the rows came from.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import polars as pl

from llmrec_ray.artifact import Artifact, open_artifact
from llmrec_ray.config.data import BehaviourConfig, Split
from llmrec_ray.data.aggregates import COOCCURRENCE, merge_popularity
from llmrec_ray.data.behaviour import tell_behaviour
from llmrec_ray.types import Columns, FloatArray, Histories, IntArray, SplitName
from llmrec_ray.vocab import Vocabulary

__all__ = ["Dataset"]

HeldOut: TypeAlias = Literal["validation", "test"]
ID_DIGITS = 16
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class Dataset:
    """One opened Dataset; tables are read on first use."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    @classmethod
    def open(cls, uri: str, *, verify: bool = True) -> Dataset:
        """Open the Dataset at `uri`.

        Raises ArtifactNotFoundError, ArtifactMismatchError and, with `verify`, CorruptArtifactError.
        """
        return cls(open_artifact(uri, "dataset", verify=verify))

    @property
    def uri(self) -> str:
        """Where the Dataset was opened."""
        return self.artifact.uri

    @property
    def id(self) -> str:
        """Its content hash."""
        return self.artifact.id

    @cached_property
    def users(self) -> Vocabulary:
        """User ids in row order."""
        return Vocabulary.load(self.artifact.path / "vocabulary" / "users.parquet")

    @cached_property
    def items(self) -> Vocabulary:
        """Item ids in row order."""
        return Vocabulary.load(self.artifact.path / "vocabulary" / "items.parquet")

    @property
    def user_ids(self) -> pl.Series:
        """User ids in row order, as a column."""
        return pl.read_parquet(self.artifact.path / "vocabulary" / "users.parquet")["id"]

    @property
    def item_ids(self) -> pl.Series:
        """Item ids in row order, as a column."""
        return pl.read_parquet(self.artifact.path / "vocabulary" / "items.parquet")["id"]

    @property
    def log_ids(self) -> list[str]:
        """Ids of the Logs it was made from, oldest first; none in a Dataset of a version that kept none."""
        parents = self.artifact.manifest.parents
        numbers = itertools.takewhile(lambda number: _is_id(parents.get(f"log {number}")), itertools.count(1))
        return [parents[f"log {number}"] for number in numbers]

    @cached_property
    def interactions(self) -> pl.DataFrame:
        """Kept events: user_row, item_row int64, timestamp datetime (UTC), value float32, split; where the recipe has
        them also session int32 (its number within the user), event and the columns of context as text.

        Sorted by user_row, then time; equal times keep the order of the log.
        """
        return pl.read_parquet(self.artifact.path / "interactions" / "*.parquet")

    @cached_property
    def quarantine(self) -> pl.DataFrame:
        """Rows that could not be used: table, file, position (1-based record), reason, raw."""
        return pl.read_parquet(self.artifact.path / "quarantine.parquet")

    @cached_property
    def item_titles(self) -> list[str]:
        """A short name per item row; the id where the catalogue gives none."""
        return self._item_texts[Columns.TITLE].to_list()

    @cached_property
    def item_texts(self) -> list[str]:
        """The encoder's text per item row; "" where there is none."""
        return self._item_texts[Columns.TEXT].to_list()

    @cached_property
    def user_texts(self) -> list[str]:
        """The profile text per user row; "" where there is none."""
        return pl.read_parquet(self.artifact.path / "user_texts.parquet")[Columns.TEXT].to_list()

    @property
    def behaviour(self) -> BehaviourConfig | None:
        """The recipe's `data.behaviour`."""
        config = self.artifact.manifest.config["data"].get("behaviour")
        return None if config is None else BehaviourConfig(**config)

    def behaviour_texts(self, through: SplitName, newest: IntArray | None = None) -> list[str]:
        """What they did up to and including a split, told as `behaviour` says, per user row; "" where nothing is known.

        Only for Datasets that have it. newest: how many items of each are told, [n_users] int64, by default as many as
        the recipe says. What learns from these texts reads those of the train split only.
        """
        assert self.behaviour is not None, "behaviour is told without data.behaviour. This is a bug."
        titles = [title if title != id_ else None for title, id_ in zip(self.item_titles, self.items, strict=True)]
        return tell_behaviour(self.histories(through), titles, self.user_texts, self.behaviour, newest)

    @cached_property
    def item_attributes(self) -> pl.DataFrame:
        """The recipe's attribute columns in item_row order; null where the catalogue gives none."""
        return pl.read_parquet(self.artifact.path / "item_attributes.parquet").drop(Columns.ITEM_ROW)

    @cached_property
    def user_attributes(self) -> pl.DataFrame:
        """The recipe's attribute columns of data.users in user_row order; null where the table gives none, and no
        column in a Dataset of a version that kept none."""
        path = self.artifact.path / "user_attributes.parquet"
        return pl.read_parquet(path).drop(Columns.USER_ROW) if path.exists() else pl.DataFrame()

    @cached_property
    def popularity_over_time(self) -> pl.DataFrame:
        """Train events per item and period of `data.popularity_days`: item_row int64, period_start datetime (UTC),
        events int64, sorted by both; periods without an event are missing. Empty in a Dataset of a version that kept
        none."""
        path = self.artifact.path / "popularity.parquet"
        return pl.read_parquet(path) if path.exists() else merge_popularity([])

    @cached_property
    def cooccurrence(self) -> pl.DataFrame:
        """The companions of each item in the train histories, see `data.cooccurrence`: item_row, other_row, count
        int64 (people who met both), sorted by item, then from the most frequent; empty where the recipe asks for none.
        """
        files = sorted((self.artifact.path / "cooccurrence").glob("*.parquet"))
        return pl.concat([pl.DataFrame(schema=COOCCURRENCE), *map(pl.read_parquet, files)])

    @property
    def split(self) -> Split:
        """How the events were split: leave_one_out, cold_items or global_time."""
        split: Split = self.artifact.manifest.config["data"]["split"]
        return split

    @property
    def split_settings(self) -> dict[str, Any]:
        """What decides which events are held out: `split`, and its `cold_fold` or `time_shares`."""
        data = self.artifact.manifest.config["data"]
        setting = {"cold_items": ("cold_fold",), "global_time": ("time_shares",)}.get(self.split, ())
        return {name: data[name] for name in ("split", *setting)}

    def histories(self, through: SplitName) -> Histories:
        """Everybody's events up to and including a split, oldest first; user_rows = 0 … n_users - 1.

        "train" is what models learn from, "validation" what is known when test targets are ranked, and "test" all
        that is known at all, events of held-out items included: what serving starts from. With global_time a target
        is the first event of its window, so the user's later ones of that window are in no history before it.
        What is asked about, in `asked_at`, is the target of the next split; after "test" it is not known.
        """
        following: dict[SplitName, HeldOut] = {"train": "validation", "validation": "test"}
        asked_at = self.target_times(following[through]) if through in following else None
        return replace(self._histories(self._events(through)), asked_at=asked_at)

    def cold_histories(self, split: HeldOut) -> Histories:
        """What is known of everybody when `cold_pairs(split)` are ranked: no item of a held-out fold.

        "validation" is the train split, so that nothing chosen on it has seen the warm targets; "test" is all events
        of the items that are not held out.
        """
        if split == "validation":
            return self.histories("train")
        return self._histories(self.interactions.filter(pl.col(Columns.SPLIT).is_in(SPLITS)))

    def history_times(self, through: SplitName) -> IntArray:
        """When each event of `histories(through)` happened, in its order, [E] int64 unix seconds."""
        return _seconds(self._events(through))

    def history_values(self, through: SplitName) -> FloatArray:
        """The value of each event of `histories(through)`, in its order, [E] float32; NaN where the log has none."""
        values: FloatArray = self._events(through)[Columns.VALUE].cast(pl.Float32).fill_null(np.nan).to_numpy()
        return values

    def targets(self, split: HeldOut) -> IntArray:
        """The item row to predict for every user, [n_users] int64: the first event in the split, -1 without one."""
        first = self._first_events(split)
        return self._per_user(first, first[Columns.ITEM_ROW].to_numpy())

    def target_times(self, split: HeldOut) -> IntArray:
        """When the target happened, [n_users] int64 unix seconds, -1 for users without one."""
        first = self._first_events(split)
        return self._per_user(first, _seconds(first))

    def cold_pairs(self, split: HeldOut) -> tuple[IntArray, IntArray]:
        """The events of the items that `cold_items` held out for a split: user rows [P] and item rows [P], int64,
        sorted by user; none under any other split."""
        events = self.interactions.filter(pl.col(Columns.SPLIT).cast(pl.String) == f"cold_{split}")
        return events[Columns.USER_ROW].to_numpy().copy(), events[Columns.ITEM_ROW].to_numpy().copy()

    def _events(self, through: SplitName) -> pl.DataFrame:
        if through == "test":
            return self.interactions
        return self.interactions.filter(pl.col(Columns.SPLIT).is_in(SPLITS[: SPLITS.index(through) + 1]))

    def _histories(self, events: pl.DataFrame) -> Histories:
        counts = np.bincount(events[Columns.USER_ROW].to_numpy(), minlength=len(self.users))
        return Histories(
            user_rows=np.arange(len(self.users), dtype=np.int64),
            indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            item_rows=events[Columns.ITEM_ROW].to_numpy().astype(np.int64),
        )

    def _first_events(self, split: HeldOut) -> pl.DataFrame:
        events = self.interactions.filter(pl.col(Columns.SPLIT) == split)
        return events.unique(Columns.USER_ROW, keep="first", maintain_order=True)

    def _per_user(self, first: pl.DataFrame, values: IntArray) -> IntArray:
        every = np.full(len(self.users), -1, np.int64)
        every[first[Columns.USER_ROW].to_numpy()] = values
        return every

    @cached_property
    def _item_texts(self) -> pl.DataFrame:
        return pl.read_parquet(self.artifact.path / "item_texts.parquet")


def _is_id(parent: str | None) -> bool:
    """Whether a parent is an artifact, and not a file, whose digest is longer."""
    return parent is not None and len(parent) == ID_DIGITS


def _seconds(events: pl.DataFrame) -> IntArray:
    seconds: IntArray = events[Columns.TIMESTAMP].dt.epoch("s").to_numpy().astype(np.int64)
    return seconds
