"""Raw files and a recipe -> one Dataset.

Files are parsed apart (on Ray Data or here); what needs all rows (repeats, k-core, rows for ids, split) is one Polars
program over the parsed rows in the order of the files, so neither blocks nor workers can change the result.

Row law, kept in `manifest.metrics`: rows read = kept + quarantined + dropped by each named filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from llmrec_ray.artifact import Artifact, Workspace, create_artifact
from llmrec_ray.config import DataConfig, Recipe
from llmrec_ray.data.filters import ORDER, Filtered, filter_events
from llmrec_ray.data.parse import ParsedFile
from llmrec_ray.data.sources import TableName, find_sources
from llmrec_ray.data.spread import parse_files
from llmrec_ray.data.tables import Descriptions, describe
from llmrec_ray.errors import BadRowsError, EmptyResultError
from llmrec_ray.types import Columns
from llmrec_ray.vocab import Vocabulary

__all__ = ["ingest"]

PART_ROWS = 4_000_000
EXAMPLES = 3
SPLIT_TYPE = pl.Enum(["train", "validation", "test"])


def ingest(
    recipe: Recipe, raw_folder: Path, workspace: Workspace, *, use_ray: bool = True, num_blocks: int | None = None
) -> Artifact:
    """Make the recipe's Dataset and remember it as the workspace's latest.

    With `use_ray` the files are spread by Ray Data over `num_blocks` blocks (one per file when None); the result is
    the same, byte for byte. Raises MissingInputError, BadRowsError, EmptyResultError and DataError; then nothing is
    written.
    """
    data = recipe.data
    parsed = parse_files(find_sources(data, raw_folder), data, use_ray=use_ray, num_blocks=num_blocks)
    _check_quarantine(parsed, data)
    tables = _assemble(parsed, data)
    artifact = create_artifact(
        workspace.root("dataset"), "dataset", tables.write,
        config={"data": data.model_dump(mode="json")},
        parents={file.source.name: file.sha256 for file in parsed},
        metrics=tables.metrics,
    )
    workspace.set_latest("dataset", artifact.uri)
    return artifact


@dataclass(frozen=True)
class _Tables:
    interactions: pl.DataFrame
    users: Vocabulary
    items: Vocabulary
    item_descriptions: Descriptions
    user_descriptions: Descriptions
    quarantine: pl.DataFrame
    metrics: dict[str, Any]

    def write(self, folder: Path) -> None:
        for name in ("interactions", "vocabulary"):
            (folder / name).mkdir()
        for number, part in enumerate(self.interactions.iter_slices(PART_ROWS)):
            part.write_parquet(folder / "interactions" / f"part-{number:05}.parquet")
        self.users.save(folder / "vocabulary" / "users.parquet")
        self.items.save(folder / "vocabulary" / "items.parquet")
        self.item_descriptions.texts.write_parquet(folder / "item_texts.parquet")
        self.item_descriptions.attributes.write_parquet(folder / "item_attributes.parquet")
        self.user_descriptions.texts.write_parquet(folder / "user_texts.parquet")
        self.quarantine.write_parquet(folder / "quarantine.parquet")


def _check_quarantine(parsed: Sequence[ParsedFile], data: DataConfig) -> None:
    for table in dict.fromkeys(file.source.table for file in parsed):
        files = [file for file in parsed if file.source.table == table]
        rows = sum(file.rows for file in files)
        bad = pl.concat([file.quarantine for file in files])
        if not rows:
            raise EmptyResultError(f"The files of data.{table} hold no rows: {_names(files)}. Give files with rows.")
        if len(bad) > data.max_bad_ratio * rows:
            reasons = ", ".join(f"{count} {reason}" for reason, count in _counts(bad).items())
            examples = "; ".join(
                f"{row[Columns.FILE]} record {row[Columns.POSITION]}: {row[Columns.REASON]} in {row[Columns.RAW]!r}"
                for row in bad.head(EXAMPLES).iter_rows(named=True)
            )
            raise BadRowsError(
                f"{len(bad)} of {rows} rows of data.{table} cannot be used ({reasons}), more than data.max_bad_ratio "
                f"{data.max_bad_ratio} allows. First: {examples}. Correct the recipe or the rows, or raise the ratio."
            )


def _names(files: Sequence[ParsedFile]) -> str:
    return ", ".join(file.source.name for file in files)


def _counts(quarantine: pl.DataFrame) -> dict[str, int]:
    return dict(sorted(quarantine.group_by(Columns.REASON).len().iter_rows()))


def _assemble(parsed: Sequence[ParsedFile], data: DataConfig) -> _Tables:
    filtered = filter_events(_good(parsed, "interactions"), data)
    _check_anything_left(filtered, parsed)
    users = Vocabulary(filtered.events[Columns.USER_ID].unique().sort())
    items = Vocabulary(filtered.events[Columns.ITEM_ID].unique().sort())
    item_descriptions = describe(items, Columns.ITEM_ROW, data.items, _good(parsed, "items"))
    user_descriptions = describe(users, Columns.USER_ROW, data.users, _good(parsed, "users"))
    interactions = _split(_with_rows(filtered.events, users, items))
    metrics = {
        **_row_law(parsed, filtered),
        "users": len(users), "items": len(items),
        "items_without_text": item_descriptions.without_text,
        "users_without_text": user_descriptions.without_text,
    }
    quarantine = pl.concat([file.quarantine for file in parsed])
    return _Tables(interactions, users, items, item_descriptions, user_descriptions, quarantine, metrics)


def _good(parsed: Sequence[ParsedFile], table: TableName) -> pl.DataFrame:
    frames = [file.good for file in parsed if file.source.table == table]
    return pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame()


def _check_anything_left(filtered: Filtered, parsed: Sequence[ParsedFile]) -> None:
    if len(filtered.events):
        return
    law = _row_law(parsed, filtered)
    steps = ", ".join(f"{reason} dropped {count}" for reason, count in filtered.dropped.items())
    raise EmptyResultError(
        f"No event is left of {law['rows_read']} rows: {law['rows_quarantined']} were quarantined, {steps}. Loosen "
        "data.interactions.min_value, data.min_user_interactions or data.min_item_interactions, or give more rows."
    )


def _row_law(parsed: Sequence[ParsedFile], filtered: Filtered) -> dict[str, Any]:
    log = [file for file in parsed if file.source.table == "interactions"]
    quarantine = pl.concat([file.quarantine for file in log])
    counts = {
        "rows_read": sum(file.rows for file in log),
        "rows_kept": len(filtered.events),
        "rows_quarantined": len(quarantine),
        "rows_dropped": filtered.dropped,
        "quarantined_by_reason": _counts(quarantine),
    }
    accounted = len(filtered.events) + len(quarantine) + sum(filtered.dropped.values())
    assert counts["rows_read"] == accounted, f"rows got lost: {counts}. This is a bug."
    return counts


def _with_rows(events: pl.DataFrame, users: Vocabulary, items: Vocabulary) -> pl.DataFrame:
    return events.with_columns(
        _rows(Columns.USER_ID, users).alias(Columns.USER_ROW), _rows(Columns.ITEM_ID, items).alias(Columns.ITEM_ROW)
    )


def _rows(column: str, vocabulary: Vocabulary) -> pl.Expr:
    ids = pl.Series(list(vocabulary), dtype=pl.String)
    return pl.col(column).replace_strict(ids, pl.Series(range(len(vocabulary)), dtype=pl.Int64), return_dtype=pl.Int64)


def _split(events: pl.DataFrame) -> pl.DataFrame:
    """Leave one out: last event of a user = test, second last = validation; ties keep the order of the log."""
    age = pl.int_range(pl.len()).reverse().over(Columns.USER_ROW)
    split = pl.when(age == 0).then(pl.lit("test")).when(age == 1).then(pl.lit("validation")).otherwise(pl.lit("train"))
    return (
        events.sort(Columns.USER_ROW, *ORDER)
        .with_columns(split.cast(SPLIT_TYPE).alias(Columns.SPLIT))
        .select(Columns.USER_ROW, Columns.ITEM_ROW, Columns.TIMESTAMP, Columns.VALUE, Columns.SPLIT)
        .rechunk()
    )
