"""The `data` section: from raw files to a Dataset."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from llmrec_ray.config.section import Fraction, Section, Uri

__all__ = [
    "COLD_FOLDS", "COLD_VALIDATION_FOLD", "DataConfig", "FileFormat", "LogColumns", "LogConfig", "Split", "TableConfig",
]

COLD_FOLDS = 10
COLD_VALIDATION_FOLD = 1

FileFormat = Literal["csv", "tsv", "parquet", "jsonl"]
Split = Literal["leave_one_out", "cold_items", "global_time"]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class LogColumns(Section):
    """Which columns of the log hold what."""

    user_id: str = "user_id"
    """Column with the user's id; any type, kept as a string."""
    item_id: str = "item_id"
    """Column with the item's id; any type, kept as a string."""
    timestamp: str = "timestamp"
    """Column with the time of the event, see `timestamp_unit`."""
    value: str | None = None
    """Optional column with a rating or weight; absent means 1.0 for every event."""


class LogConfig(Section):
    """Where the behaviour log is and how to read it."""

    paths: Annotated[tuple[Uri, ...], Field(min_length=1)]
    """Files or globs; `{raw}` is the folder that `data fetch` fills."""
    format: FileFormat = "parquet"
    """How the files are encoded; TSV and CSV need a header row."""
    columns: LogColumns = LogColumns()
    """Mapping from this log's column names."""
    timestamp_unit: Literal["s", "ms", "us", "iso8601"] = "s"
    """Unit of numeric timestamps since 1970 UTC, or text in ISO 8601."""
    min_value: float | None = None
    """Keep only events with at least this value; leave empty for implicit feedback."""

    @model_validator(mode="after")
    def _check_min_value_has_a_column(self) -> LogConfig:
        if self.min_value is not None and self.columns.value is None:
            raise ValueError(
                f"min_value is {self.min_value}, but no column is named as the value: "
                "set columns.value, or leave min_value empty"
            )
        return self


class TableConfig(Section):
    """A table of items or users with their descriptions."""

    paths: Annotated[tuple[Uri, ...], Field(min_length=1)]
    """Files or globs; `{raw}` is the folder that `data fetch` fills."""
    format: FileFormat = "parquet"
    """How the files are encoded."""
    id: str
    """Column with the id that the log refers to."""
    title: str | None = None
    """Column with a short name for people; the id when absent."""
    template: str
    """Text for the encoder, columns in braces: "{title} ({year}). Genres: {genres}"."""
    attributes: tuple[str, ...] = ()
    """Columns kept beside the text, for `model.context`; those of items also for request filters, and to tell new items
    by."""


class DataConfig(Section):
    """From raw files to a Dataset."""

    fetch: Literal["movielens-100k"] | None = None
    """Public data set that `data fetch` brings; empty for your own files."""
    interactions: LogConfig
    """The behaviour log."""
    items: TableConfig | None = None
    """Item descriptions; without them the text signal is off and items have only their ids."""
    new_items: bool = True
    """Keep items of `data.items` that the log never mentions: they can be recommended by what their texts say."""
    users: TableConfig | None = None
    """User descriptions (profiles): what people with such a profile like is learnt from them."""
    min_user_interactions: PositiveInt = 5
    """k-core: users with fewer events are dropped (3 is the least that a leave_one_out split can use)."""
    min_item_interactions: PositiveInt = 1
    """k-core: items with fewer events are dropped."""
    max_bad_ratio: Fraction = 0.01
    """Stop when a larger share of rows than this is quarantined."""
    split: Split = "leave_one_out"
    """`leave_one_out`: a user's last event = test, second last = validation. `cold_items`: two folds of the items are
    held out as well, to measure items that nobody has met. `global_time`: everything after one moment is held out."""
    cold_fold: Annotated[int, Field(ge=0, lt=COLD_FOLDS)] = 0
    """Which tenth of the items, by the hash of their ids, is the test fold of `cold_items`; fold 1 is validation's."""
    time_shares: tuple[Share, Share] = (0.1, 0.1)
    """Shares of all events that `global_time` gives to validation and, the newest, to test."""

    @model_validator(mode="after")
    def _check_split_needs_three(self) -> DataConfig:
        if self.split == "leave_one_out" and self.min_user_interactions < 3:
            raise ValueError(
                f"min_user_interactions is {self.min_user_interactions}, but a leave_one_out split needs 3 events "
                "per user (train, validation, test): set data.min_user_interactions to 3 or more"
            )
        return self

    @model_validator(mode="after")
    def _check_cold_fold(self) -> DataConfig:
        if self.cold_fold and self.split != "cold_items":
            raise ValueError(
                f"cold_fold is {self.cold_fold}, but it has no effect with split {self.split}: set data.split to "
                "cold_items, or leave cold_fold out"
            )
        if self.cold_fold == COLD_VALIDATION_FOLD:
            raise ValueError(
                f"cold_fold is {self.cold_fold}, which is the fold that settings are chosen on: set data.cold_fold to "
                "0 or to one of 2 to 9"
            )
        return self

    @model_validator(mode="after")
    def _check_time_shares(self) -> DataConfig:
        if self.time_shares != (0.1, 0.1) and self.split != "global_time":
            raise ValueError(
                f"time_shares is {self.time_shares}, but it has no effect with split {self.split}: set data.split to "
                "global_time, or leave time_shares out"
            )
        if sum(self.time_shares) >= 1:
            raise ValueError(
                f"time_shares {self.time_shares} add up to {sum(self.time_shares):g}, so that nothing is left to train "
                "on: lower them"
            )
        return self
