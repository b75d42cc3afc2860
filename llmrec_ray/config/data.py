"""The `data` section: from raw files to a Dataset."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from llmrec_ray.config.section import Fraction, Section, Uri, Weight
from llmrec_ray.types import Columns

__all__ = [
    "COLD_FOLDS", "COLD_VALIDATION_FOLD", "BehaviourConfig", "Cooccurrence", "DataConfig", "FileFormat", "FileSection",
    "LogColumns", "LogConfig", "Repeats", "RobotRules", "Split", "TableColumn", "TableConfig", "TimeUnit", "TimeWindow",
]

COLD_FOLDS = 10
COLD_VALIDATION_FOLD = 1

FileFormat = Literal["csv", "tsv", "parquet", "jsonl"]
Repeats = Literal["first", "last", "sum", "max"]
Split = Literal["leave_one_out", "cold_items", "global_time"]
TimeUnit = Literal["s", "ms", "us", "ns", "iso8601"]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Domain = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,32}$")]
TEXT_FORMATS = ("csv", "tsv")
OWN_COLUMNS = frozenset({
    Columns.USER_ID, Columns.ITEM_ID, Columns.TIMESTAMP, Columns.VALUE, Columns.EVENT, Columns.EVENT_ID,
    Columns.SESSION, Columns.USER_ROW, Columns.ITEM_ROW, Columns.SPLIT,
})


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        message = f"there is no time zone {name!r}: name one as in the IANA database, such as Europe/Berlin"
        raise ValueError(message) from None
    return name


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _as_many(value: Any) -> Any:
    """One section where a list of them may stand."""
    return () if value is None else [value] if isinstance(value, Mapping | Section) else value


def _as_column(value: Any) -> Any:
    """A column's name where it is taken as it is."""
    return {"column": value} if isinstance(value, str) else value


def _with_one_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression ({error}): correct it") from None
    if groups != 1:
        raise ValueError(
            f"the pattern {pattern!r} has {groups} groups: put round brackets around the one part that counts, and "
            "write (?:...) for others"
        )
    return pattern


def _local_folder(path: str) -> str:
    if "://" in path:
        raise ValueError(
            f"{path} is a URI, but intermediate files are mapped into memory: name a folder, such as one on a shared "
            "disk"
        )
    return path


Zone = Annotated[str, AfterValidator(_known_zone)]
Moment = Annotated[datetime, AfterValidator(_in_utc)]


class FileSection(Section):
    """Files and how they are encoded; what a log and a table have in common."""

    paths: Annotated[tuple[Uri, ...], Field(min_length=1)]
    """Files, folders or globs (`*` within a part of a path, `**` for any folders), plain or compressed; `{raw}` is the
    folder that `data fetch` fills. Columns in folder names (`day=2026-01-01`) are read too."""
    format: FileFormat = "parquet"
    """How the files are encoded; TSV and CSV need a header row, or `header`."""
    separator: str | None = None
    """What stands between the fields of CSV and TSV, such as ";" or "::"; by default a comma or a tab."""
    header: tuple[str, ...] = ()
    """Names of the columns of CSV and TSV files whose first line is a row already."""
    quotes: bool = True
    """Whether fields of CSV and TSV may stand in double quotes; false where a quote is a letter like any other, as
    always with a separator of several characters."""
    encoding: Literal["utf-8", "latin-1", "cp1252", "utf-16"] = "utf-8"
    """How the text of CSV, TSV and JSON lines is encoded."""
    domain: Domain | None = None
    """Name of the domain that the items belong to, such as books; their ids then begin with it (`books:17`), and
    requests can filter by the attribute `domain`."""

    @model_validator(mode="after")
    def _check_delimited(self) -> FileSection:
        for name in ("separator", "header"):
            if getattr(self, name) and self.format not in TEXT_FORMATS:
                raise ValueError(
                    f"{name} is given, but format is {self.format}: leave {name} out, or set format to csv"
                )
        if not self.quotes and self.format not in TEXT_FORMATS:
            raise ValueError(f"quotes is false, but format is {self.format}: leave quotes out, or set format to csv")
        return self

    @model_validator(mode="after")
    def _check_text(self) -> FileSection:
        if self.encoding != "utf-8" and self.format == "parquet":
            raise ValueError(
                f"encoding is {self.encoding}, but Parquet knows its own: leave encoding out, or set format"
            )
        if self.separator is not None and (not self.separator or set(self.separator) & set("\"\r\n")):
            raise ValueError(
                f"separator is {self.separator!r}, which cannot stand between fields: give characters other than "
                "double quotes and line ends"
            )
        return self


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
    event: str | None = None
    """Optional column with the kind of the event, such as view or purchase; see `event_weights`."""
    event_id: str | None = None
    """Optional column with an id that the sender gives every event; the same id counts once."""
    session: str | None = None
    """Optional column with the id of the session; see `data.session_gap_s` for logs without one."""
    context: tuple[str, ...] = ()
    """Columns kept beside every event, such as the device."""

    @model_validator(mode="after")
    def _check_context(self) -> LogColumns:
        for name in self.context:
            if name in OWN_COLUMNS:
                raise ValueError(
                    f"context names the column {name!r}, a name that Datasets use themselves: say in columns what it "
                    "means, or give the column another name"
                )
        return self


class LogConfig(FileSection):
    """Where the behaviour log is and how to read it."""

    columns: LogColumns = LogColumns()
    """Mapping from this log's column names."""
    timestamp_unit: TimeUnit = "s"
    """Unit of numeric timestamps since 1970 UTC, or text in ISO 8601."""
    timestamp_format: str | None = None
    """Form of timestamps that are text or digits of another kind, as strptime writes it: "%d/%m/%Y %H:%M"."""
    timezone: Zone = "UTC"
    """Zone of timestamps that name none."""
    event_weights: dict[str, Weight] = {}
    """Kinds of events that count and what one is worth (its value is multiplied by it); empty counts all alike."""
    missing_value: float | None = None
    """Value of events whose value is empty; without it such rows are quarantined."""
    min_value: float | None = None
    """Keep only events with at least this value; leave empty for implicit feedback."""

    @model_validator(mode="after")
    def _check_min_value_has_a_column(self) -> LogConfig:
        if self.min_value is not None and self.columns.value is None and not self.event_weights:
            raise ValueError(
                f"min_value is {self.min_value}, but no column is named as the value: "
                "set columns.value, or leave min_value empty"
            )
        return self

    @model_validator(mode="after")
    def _check_missing_value_has_a_column(self) -> LogConfig:
        if self.missing_value is not None and self.columns.value is None:
            raise ValueError(
                f"missing_value is {self.missing_value}, but no column is named as the value: set columns.value, or "
                "leave missing_value out"
            )
        return self

    @model_validator(mode="after")
    def _check_event_weights_have_a_column(self) -> LogConfig:
        if self.event_weights and self.columns.event is None:
            raise ValueError(
                "event_weights are given, but no column is named as the kind of event: set columns.event, or leave "
                "event_weights out"
            )
        return self


class TableColumn(Section):
    """A column as the recipe calls it, made from one of the file, or from many that say yes or no."""

    column: str | None = None
    """The file's column."""
    flags: tuple[str, ...] = ()
    """Columns that hold 1 or true where their name applies to the row, such as one per genre, instead of `column`."""
    pattern: Annotated[str, AfterValidator(_with_one_group)] | None = None
    """Only the part of the text that the group of this regular expression matches; nothing where it does not match."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """What stands between several values in one text, such as "|"; they are put as "A, B"."""
    values: dict[str, str] = {}
    """Words for codes, `{"1": student, "N/A": ""}`; an empty one says that nothing is known. Others stay."""

    @model_validator(mode="after")
    def _check_one_source(self) -> TableColumn:
        if (self.column is None) == (not self.flags):
            raise ValueError("a column is made from one other or from flags: give column or flags, not both")
        if self.flags and (self.pattern or self.separator):
            raise ValueError("flags hold no text: leave pattern and separator out")
        return self


class TableConfig(FileSection):
    """A table of items or users with their descriptions."""

    columns: dict[str, Annotated[TableColumn, BeforeValidator(_as_column)]] = {}
    """Names for the file's columns and for parts of them, `{title: "movie_title:token_seq", year: {column: title,
    pattern: ...}}`; the others keep the file's names."""
    id: str
    """Column with the id that the log refers to."""
    title: str | None = None
    """Column with a short name for people; the id when absent."""
    template: str
    """Text for the encoder, columns in braces: "{title} ({year}). Genres: {genres}"."""
    attributes: tuple[str, ...] = ()
    """Columns kept beside the text, for `model.context`; those of items also for request filters, and to tell new items
    by."""


class BehaviourConfig(Section):
    """How to tell in words what people did."""

    items: PositiveInt = 20
    """At most so many of a person's newest items are named by their titles, the newest first."""
    template: str = "{profile}; liked: {history}"
    """The whole text about a person: `{profile}` is what `data.users` says, `{history}` the titles."""
    separator: str = ", "
    """What stands between two titles."""

    @model_validator(mode="after")
    def _check_template(self) -> BehaviourConfig:
        parts = list(string.Formatter().parse(self.template))
        fields = {name for _, name, _, _ in parts if name is not None}
        is_plain = not any(form or conversion for _, _, form, conversion in parts)
        if not ({"history"} <= fields <= {"history", "profile"} and is_plain):
            raise ValueError(
                f"the template {self.template!r} must have {{history}} in it, and beside it only {{profile}}: correct "
                "data.behaviour.template"
            )
        return self


class RobotRules(Section):
    """Which users are no people, or are like nobody else; all their events are dropped, counted as `robot_user`."""

    max_events: PositiveInt | None = None
    """Most events a user may have in the whole log."""
    max_events_per_hour: PositiveInt | None = None
    """Most events a user may have within any 3,600 seconds."""
    max_repeats: PositiveInt | None = None
    """Most events a user may have with one item."""


class TimeWindow(Section):
    """Which stretch of time counts; events outside are dropped, counted as `outside_window`."""

    since: Moment | None = None
    """Oldest moment that counts, ISO 8601; UTC when no zone is given."""
    until: Moment | None = None
    """First moment that no longer counts, ISO 8601."""
    days: PositiveFloat | None = None
    """Only so many days before the newest event of the log count, or before `until` when that is earlier."""
    max_events_per_user: PositiveInt | None = None
    """Only a user's newest events count; older ones are counted as `old_event`."""

    @model_validator(mode="after")
    def _check_order(self) -> TimeWindow:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError(
                f"since is {self.since.isoformat()}, which is not before until, {self.until.isoformat()}, so that "
                "nothing counts: correct one of them"
            )
        return self


class Cooccurrence(Section):
    """The table of items that the same people met near each other, made from the train split."""

    within: PositiveInt = 5
    """Two items count as met together when at most so many steps of one history lie between them."""
    top: PositiveInt = 50
    """So many companions are kept per item, those met most often."""


Logs: TypeAlias = Annotated[tuple[LogConfig, ...], BeforeValidator(_as_many), Field(min_length=1)]
Tables: TypeAlias = Annotated[tuple[TableConfig, ...], BeforeValidator(_as_many)]


class DataConfig(Section):
    """From raw files to a Dataset."""

    fetch: Literal["movielens-100k"] | None = None
    """Public data set that `data fetch` brings; empty for your own files."""
    interactions: Logs
    """The behaviour log, or a list of logs that differ in form; their events count as those of one log."""
    feedback: tuple[Uri, ...] = ()
    """Folders or globs of the event logs that endpoints write, read after `interactions`; `{events}` is the folder of
    this workspace's own endpoint."""
    items: Tables = ()
    """Item descriptions, one table or a list; without them the text signal is off and items have only their ids."""
    new_items: bool = True
    """Keep items of `data.items` that the log never mentions: they can be recommended by what their texts say."""
    users: Tables = ()
    """User descriptions (profiles), one table or a list: what people with such a profile like is learnt from them."""
    behaviour: BehaviourConfig | None = None
    """Profiles are also learnt from what people did in the train split, told by the titles of items, so that "likes
    Alien, Heat" is understood. Training then encodes up to 20,000 such texts."""
    repeats: Repeats = "first"
    """What becomes of several events of one user with one item: the first stays, or the last, or one event at the time
    of the first whose value is their sum or their greatest; the others are counted as `repeated_pair`."""
    session_gap_s: PositiveFloat | None = None
    """A user's session ends when nothing happens for so many seconds; for logs without a session column."""
    window: TimeWindow = TimeWindow()
    """Which stretch of time counts."""
    robots: RobotRules = RobotRules()
    """Which users are left out as robots or outliers."""
    cooccurrence: Cooccurrence | None = None
    """Also make the table of items that are met together."""
    popularity_days: Annotated[float, Field(ge=0.01)] = 7.0
    """Length of the periods, in days, in which the events of each item are counted."""
    min_user_interactions: PositiveInt = 5
    """k-core: users with fewer events are dropped (3 is the least that a leave_one_out split can use)."""
    min_item_interactions: PositiveInt = 1
    """k-core: items with fewer events are dropped."""
    max_bad_ratio: Fraction = 0.01
    """Stop when a larger share of rows than this is quarantined."""
    max_memory_gb: PositiveFloat = 4.0
    """Memory that ingest may use on a machine, in GB of a thousand million bytes, Ray's processes included; with less
    of it fewer tasks run at once."""
    use_ray: bool | None = None
    """Whether tasks of Ray do the work, or threads of the process itself; empty decides by the size of the files."""
    scratch: Annotated[str, AfterValidator(_local_folder)] | None = None
    """Folder for intermediate files, about as large as the log, which every machine of the cluster must see; by default
    a folder of the workspace."""
    split: Split = "leave_one_out"
    """`leave_one_out`: a user's last event = test, second last = validation. `cold_items`: two folds of the items are
    held out as well, to measure items that nobody has met. `global_time`: everything after one moment is held out."""
    cold_fold: Annotated[int, Field(ge=0, lt=COLD_FOLDS)] = 0
    """Which tenth of the items, by the hash of their ids, is the test fold of `cold_items`; fold 1 is validation's."""
    time_shares: tuple[Share, Share] = (0.1, 0.1)
    """Shares of all events that `global_time` gives to validation and, the newest, to test."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains of items, sorted; with any, items have an attribute `domain`."""
        return tuple(sorted({part.domain for part in (*self.interactions, *self.items) if part.domain}))

    @model_validator(mode="after")
    def _check_split_needs_three(self) -> DataConfig:
        if self.split == "leave_one_out" and self.min_user_interactions < 3:
            raise ValueError(
                f"min_user_interactions is {self.min_user_interactions}, but a leave_one_out split needs 3 events "
                "per user (train, validation, test): set data.min_user_interactions to 3 or more"
            )
        return self

    @model_validator(mode="after")
    def _check_behaviour_has_titles(self) -> DataConfig:
        if self.behaviour is not None and all(table.title is None for table in self.items):
            raise ValueError(
                "behaviour tells what people did by the titles of items, but no table of items has a title: set "
                "data.items.title, or leave data.behaviour out"
            )
        return self

    @model_validator(mode="after")
    def _check_domains(self) -> DataConfig:
        if any(table.domain for table in self.users):
            raise ValueError(
                "data.users has a domain, but people belong to all domains: name it in data.interactions and "
                "data.items only"
            )
        if self.domains and any("domain" in table.attributes for table in self.items):
            raise ValueError(
                "data.items has an attribute of the name domain, which is what the domains are told apart by: give "
                "the column another name in data.items.columns, or name no domain"
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
