"""A Dataset on disk -> histories, targets, texts and vocabularies in memory.

`interactions/part-*.parquet` holds one row per kept event, sorted by user and then by time, so it *is* the
histories. This module does not know where the rows came from.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl

from llmrec_ray.artifact import Artifact, open_artifact
from llmrec_ray.types import Columns, Histories, IntArray, SplitName
from llmrec_ray.vocab import Vocabulary

__all__ = ["Dataset"]

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

    @cached_property
    def interactions(self) -> pl.DataFrame:
        """Kept events: user_row, item_row int64, timestamp datetime (UTC), value float32, split.

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

    @cached_property
    def item_attributes(self) -> pl.DataFrame:
        """The recipe's attribute columns in item_row order; null where the catalogue gives none."""
        return pl.read_parquet(self.artifact.path / "item_attributes.parquet").drop(Columns.ITEM_ROW)

    def histories(self, through: SplitName) -> Histories:
        """Everybody's events up to and including a split, oldest first; user_rows = 0 … n_users - 1."""
        wanted = SPLITS[: SPLITS.index(through) + 1]
        events = self.interactions.filter(pl.col(Columns.SPLIT).is_in(wanted))
        counts = np.bincount(events[Columns.USER_ROW].to_numpy(), minlength=len(self.users))
        return Histories(
            user_rows=np.arange(len(self.users), dtype=np.int64),
            indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            item_rows=events[Columns.ITEM_ROW].to_numpy().astype(np.int64),
        )

    def targets(self, split: Literal["validation", "test"]) -> IntArray:
        """The held-out item row of every user, [n_users] int64."""
        events = self.interactions.filter(pl.col(Columns.SPLIT) == split)
        assert events[Columns.USER_ROW].to_list() == list(range(len(self.users))), (
            "a user without exactly one held-out event. This is a bug."
        )
        return events[Columns.ITEM_ROW].to_numpy().astype(np.int64)

    @cached_property
    def _item_texts(self) -> pl.DataFrame:
        return pl.read_parquet(self.artifact.path / "item_texts.parquet")
