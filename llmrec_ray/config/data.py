"""The `data` section: from raw files to a Dataset."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from llmrec_ray.config.section import Fraction, Section, Uri

__all__ = ["DataConfig", "FileFormat", "LogColumns", "LogConfig", "TableConfig"]

FileFormat = Literal["csv", "tsv", "parquet", "jsonl"]


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
    """Columns kept beside the text for request filters."""


class DataConfig(Section):
    """From raw files to a Dataset."""

    fetch: Literal["movielens-100k"] | None = None
    """Public data set that `data fetch` brings; empty for your own files."""
    interactions: LogConfig
    """The behaviour log."""
    items: TableConfig | None = None
    """Item descriptions; without them the text signal is off and items have only their ids."""
    users: TableConfig | None = None
    """User descriptions (profiles), kept with the Dataset; no signal reads them."""
    min_user_interactions: PositiveInt = 5
    """k-core: users with fewer events are dropped (3 is the least that a leave-one-out split can use)."""
    min_item_interactions: PositiveInt = 1
    """k-core: items with fewer events are dropped."""
    max_bad_ratio: Fraction = 0.01
    """Stop when a larger share of rows than this is quarantined."""
    split: Literal["leave_one_out"] = "leave_one_out"
    """Last event of each user = test, second last = validation, rest = train."""

    @model_validator(mode="after")
    def _check_split_needs_three(self) -> DataConfig:
        if self.min_user_interactions < 3:
            raise ValueError(
                f"min_user_interactions is {self.min_user_interactions}, but a leave_one_out split needs 3 events "
                "per user (train, validation, test): set data.min_user_interactions to 3 or more"
            )
        return self
