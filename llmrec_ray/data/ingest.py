"""Raw files and a recipe -> one Dataset.

Files are parsed apart, on Ray Data or here. What needs all rows (repeats, k-core, rows for ids, the split) is
one Polars program over the parsed rows in the order of the files, so neither blocks nor workers can change
the result.

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
from llmrec_ray.data.splits import assign_splits
from llmrec_ray.data.spread import parse_files
from llmrec_ray.data.tables import Descriptions, describe
from llmrec_ray.errors import BadRowsError, EmptyResultError
from llmrec_ray.types import Columns
from llmrec_ray.vocab import Vocabulary

__all__ = ["ingest"]

PART_ROWS = 4_000_000
EXAMPLES = 3


def ingest(
    recipe: Recipe,
    raw_folder: Path,
    workspace: Workspace,
    *,
    use_ray: bool = True,
    num_blocks: int | None = None,
) -> Artifact:
    """Make the recipe's Dataset and remember it as the workspace's latest.

    `raw_folder` stands for {raw} in the recipe's paths. With `use_ray`, Ray Data spreads the files over
    `num_blocks` blocks (one per file when None); the result is the same, byte for byte. Raises
    MissingInputError, BadRowsError, EmptyResultError and DataError, and then writes nothing.
    """
    data = recipe.data
    parsed = parse_files(find_sources(data, raw_folder), use_ray=use_ray, num_blocks=num_blocks)
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
    user_descriptions: Descriptions
    item_descriptions: Descriptions
    quarantine: pl.DataFrame
    metrics: dict[str, Any]

    def write(self, folder: Path) -> None:
        for name in ("interactions", "vocabulary"):
            (folder / name).mkdir()
        for number, part in enumerate(self.interactions.iter_slices(PART_ROWS)):
            part.write_parquet(folder / "interactions" / f"part-{number:05}.parquet")
        self.users.save(folder / "vocabulary" / "users.parquet")
        self.items.save(folder / "vocabulary" / "items.parquet")
        self.user_descriptions.texts.write_parquet(folder / "user_texts.parquet")
        self.user_descriptions.attributes.write_parquet(folder / "user_attributes.parquet")
        self.item_descriptions.texts.write_parquet(folder / "item_texts.parquet")
        self.item_descriptions.attributes.write_parquet(folder / "item_attributes.parquet")
        self.quarantine.write_parquet(folder / "quarantine.parquet")


def _check_quarantine(parsed: Sequence[ParsedFile], data: DataConfig) -> None:
    for table in dict.fromkeys(file.source.table for file in parsed):
        files = _files(parsed, table)
        rows = sum(file.rows for file in files)
        if not rows:
            names = ", ".join(file.source.name for file in files)
            raise EmptyResultError(
                f"There are no rows in the files of data.{table} ({names}): give files with rows."
            )
        bad = pl.concat(file.quarantine for file in files)
        if len(bad) > data.max_bad_ratio * rows:
            raise BadRowsError(
                f"{len(bad)} of {rows} rows of data.{table} cannot be used ({_in_words(_reasons(bad))}), "
                f"more than data.max_bad_ratio {data.max_bad_ratio} allows. First: {_examples(bad)}. Correct "
                "the recipe or the rows, or raise data.max_bad_ratio."
            )


def _files(parsed: Sequence[ParsedFile], table: TableName) -> list[ParsedFile]:
    return [file for file in parsed if file.source.table == table]


def _reasons(quarantine: pl.DataFrame) -> dict[str, int]:
    return dict(sorted(quarantine.group_by(Columns.REASON).len().iter_rows()))


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _examples(quarantine: pl.DataFrame) -> str:
    columns = (Columns.FILE, Columns.POSITION, Columns.REASON, Columns.RAW)
    rows = quarantine.select(columns).head(EXAMPLES).iter_rows()
    return "; ".join(f"{file} record {number} is {raw!r} ({reason})" for file, number, reason, raw in rows)


def _assemble(parsed: Sequence[ParsedFile], data: DataConfig) -> _Tables:
    filtered = filter_events(_good(parsed, "interactions"), data)
    law = _row_law(parsed, filtered)
    _check_anything_left(law)
    users = Vocabulary(filtered.events[Columns.USER_ID].unique().sort())
    found, new = filtered.events[Columns.ITEM_ID].unique().sort(), _new_items(parsed, data)
    items = Vocabulary([*found, *new])
    user_descriptions = describe(users, Columns.USER_ROW, data.users[0] if data.users else None, _good(parsed, "users"))
    item_descriptions = describe(items, Columns.ITEM_ROW, data.items[0] if data.items else None, _good(parsed, "items"))
    metrics = law | {
        "users": len(users),
        "items": len(items),
        "users_without_text": user_descriptions.without_text,
        "items_without_text": item_descriptions.without_text,
        "users_without_events": user_descriptions.unused,
        "items_without_events": len(new) + item_descriptions.unused,
        "table_rows_quarantined": sum(len(f.quarantine) for f in parsed) - law["rows_quarantined"],
    }
    return _Tables(
        interactions=_split(_with_rows(filtered.events, users, items), data),
        users=users, items=items, user_descriptions=user_descriptions, item_descriptions=item_descriptions,
        quarantine=pl.concat(file.quarantine for file in parsed).rechunk(),
        metrics=metrics,
    )


def _new_items(parsed: Sequence[ParsedFile], data: DataConfig) -> list[str]:
    """Ids of the item table that the log never mentions, sorted; they follow those with events.

    None when log and table have nothing in common, which is refused when the items are described.
    """
    if not data.items or not data.new_items:
        return []
    table = _good(parsed, "items")[data.items[0].id].unique()
    log = _good(parsed, "interactions")[Columns.ITEM_ID].unique()
    known = table.is_in(log.implode())
    return table.filter(~known).sort().to_list() if known.any() else []


def _good(parsed: Sequence[ParsedFile], table: TableName) -> pl.DataFrame:
    frames = [file.good for file in _files(parsed, table)]
    return pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame()


def _row_law(parsed: Sequence[ParsedFile], filtered: Filtered) -> dict[str, Any]:
    log = _files(parsed, "interactions")
    quarantine = pl.concat(file.quarantine for file in log)
    rows = sum(file.rows for file in log)
    accounted = len(filtered.events) + len(quarantine) + sum(filtered.dropped.values())
    assert rows == accounted, f"{rows} rows read, {accounted} accounted for. This is a bug."
    return {
        "rows_read": rows,
        "rows_kept": len(filtered.events),
        "rows_quarantined": len(quarantine),
        "rows_quarantined_by_reason": _reasons(quarantine),
        "rows_dropped_by_filter": filtered.dropped,
    }


def _check_anything_left(law: dict[str, Any]) -> None:
    if not law["rows_kept"]:
        raise EmptyResultError(
            f"No event is left of {law['rows_read']} rows: {law['rows_quarantined']} were quarantined, the "
            f"filters dropped {_in_words(law['rows_dropped_by_filter'])}. Lower data.interactions.min_value, "
            "data.min_user_interactions or data.min_item_interactions, or give more rows."
        )


def _with_rows(events: pl.DataFrame, users: Vocabulary, items: Vocabulary) -> pl.DataFrame:
    return events.with_columns(
        _row(Columns.USER_ID, users).alias(Columns.USER_ROW),
        _row(Columns.ITEM_ID, items).alias(Columns.ITEM_ROW),
    )


def _row(column: str, vocabulary: Vocabulary) -> pl.Expr:
    ids = pl.Series(list(vocabulary), dtype=pl.String)
    rows = pl.Series(range(len(vocabulary)), dtype=pl.Int64)
    return pl.col(column).replace_strict(ids, rows, return_dtype=pl.Int64)


def _split(events: pl.DataFrame, data: DataConfig) -> pl.DataFrame:
    columns = (Columns.USER_ROW, Columns.ITEM_ROW, Columns.TIMESTAMP, Columns.VALUE, Columns.SPLIT)
    return assign_splits(events.sort(Columns.USER_ROW, *ORDER), data).select(columns).rechunk()
