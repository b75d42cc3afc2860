"""Raw files and a recipe -> one Dataset, by way of a Log.

    files --parse--> Log     pieces of files apart; a Log is kept, and a later ingest may put another beside it
    Logs --assemble--> ids, parts of interactions, tables of counts
    files of items and users --describe--> titles, texts, attributes

Every step is a plain function of files and small arguments, spread by Ray Data or called here, and no step holds all
rows. The number of tasks, blocks and workers cannot change the result.

Row law, kept in `manifest.metrics`: rows read = kept + quarantined + dropped by each named filter.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from llmrec_ray.artifact import Artifact, Workspace, cache_folder, create_artifact
from llmrec_ray.config import DataConfig, Recipe, TableConfig
from llmrec_ray.data.assemble import Assembled, assemble
from llmrec_ray.data.dataset import Dataset
from llmrec_ray.data.extend import Extension, latest_dataset, plan_extension
from llmrec_ray.data.files import write_parquet
from llmrec_ray.data.log import (
    Log,
    LoggedEvents,
    NewLog,
    ParsedFiles,
    check_quarantine,
    file_digests,
    in_words,
    parse_files,
    parse_log,
    write_quarantine,
)
from llmrec_ray.data.pieces import Piece, cut_pieces, digest
from llmrec_ray.data.scratch import scratch_folder
from llmrec_ray.data.sources import SourceFile, TableName, find_sources
from llmrec_ray.data.spread import Spread
from llmrec_ray.data.tables import describe
from llmrec_ray.errors import EmptyResultError
from llmrec_ray.forgotten import NOBODY, forgotten_in
from llmrec_ray.types import Columns

__all__ = ["ingest", "needs_ray"]

HOW = {"max_memory_gb", "scratch", "use_ray"}
REMEDIES = {
    "other_event": "spell the kinds of events in event_weights as the log does",
    "below_min_value": "lower data.interactions.min_value",
    "outside_window": "widen data.window",
    "old_event": "widen data.window",
    "robot_user": "loosen data.robots",
    "rare_user": "lower data.min_user_interactions",
    "rare_item": "lower data.min_item_interactions",
}
NO_IDS = pl.Series("id", dtype=pl.String)
RAY_BYTES = 400_000_000  # below it Ray takes longer to start than this process needs for all


def needs_ray(data: DataConfig, raw_folder: Path, workspace: Workspace, *, extend: bool = False) -> bool:
    """Whether the recipe asks for Ray, or the files are so large that its tasks pay. Raises MissingInputError."""
    if data.use_ray is not None:
        return data.use_ray
    sources = _sources(data, raw_folder, workspace, extend=extend)
    return sum(source.size_bytes for source in sources) >= RAY_BYTES


def ingest(
    recipe: Recipe,
    raw_folder: Path,
    workspace: Workspace,
    *,
    use_ray: bool = False,
    num_blocks: int | None = None,
    extend: bool = False,
) -> Artifact:
    """Make the recipe's Dataset and remember it as the workspace's latest.

    `raw_folder` stands for {raw} in the recipe's paths. With `use_ray`, Ray Data spreads the work over the Ray that is
    connected, `num_blocks` blocks at each step (one per task when None); the result is the same, byte for byte. With
    `extend`, only files that the latest Dataset was not made of are read, and its rows stay; it comes back itself when
    there are none, and neither the tables nor `data` have changed. Raises MissingInputError, BadRowsError,
    EmptyResultError and DataError, and then changes nothing.
    """
    data = recipe.data
    spread = Spread.on_ray(data.max_memory_gb, num_blocks) if use_ray else Spread.here(data.max_memory_gb)
    sources = _sources(data, raw_folder, workspace, extend=extend)
    log_files = [source for source in sources if source.table == "interactions"]
    extension = plan_extension(log_files, data, workspace) if extend else Extension(log_files)
    pieces = cut_pieces(extension.sources, starts=extension.starts)
    if extension.dataset is not None and not pieces and _is_made_of(extension.dataset, data, sources):
        return extension.dataset.artifact
    with scratch_folder(_scratch_parent(data, workspace), keep_parent=data.scratch is not None) as scratch:
        artifact = _Ingest(data, workspace, scratch, spread, extension).run(sources, pieces)
    workspace.set_latest("dataset", artifact.uri)
    return artifact


@dataclass(frozen=True)
class _Ingest:
    data: DataConfig
    workspace: Workspace
    scratch: Path
    spread: Spread
    extension: Extension

    def run(self, sources: Sequence[SourceFile], log_pieces: Sequence[Piece]) -> Artifact:
        """Everything from the files to the Dataset."""
        items, users = self._table(sources, "items"), self._table(sources, "users")
        new = self._new_log(log_pieces) if log_pieces or not self.extension.logs else None
        earlier = self.extension.dataset
        events = [*(log.events for log in self.extension.logs), *([] if new is None else [new.events])]
        assembled = assemble(
            events, self.data, self.scratch, self.spread,
            earlier_users=NO_IDS if earlier is None else earlier.user_ids,
            earlier_items=NO_IDS if earlier is None else earlier.item_ids,
        )
        law = _row_law(events, assembled)
        _check_anything_left(law)
        result = _Result(self.data, items, users, assembled, law)
        logs = self.extension.logs if new is None else [*self.extension.logs, new.commit(self.workspace)]
        return result.create(self.workspace, logs)

    def _new_log(self, pieces: Sequence[Piece]) -> NewLog:
        return parse_log(
            pieces, self.extension.sources, self.data, self.scratch, self.spread,
            starts=self.extension.starts, splitters=self.extension.splitters, forgotten=forgotten_in(self.workspace),
            earlier=[log.events for log in self.extension.logs],
        )

    def _table(self, sources: Sequence[SourceFile], table: TableName) -> ParsedFiles:
        files = [source for source in sources if source.table == table]
        forgotten = forgotten_in(self.workspace) if table == "users" else NOBODY
        parsed = parse_files(cut_pieces(files), self.scratch / table, self.spread, forgotten=forgotten)
        if files:
            check_quarantine(parsed, files, self.data)
        return parsed


class _Result:
    """Everything of a Dataset, ready to be written."""

    def __init__(
        self, data: DataConfig, items: ParsedFiles, users: ParsedFiles, assembled: Assembled, law: dict[str, Any]
    ) -> None:
        self.data, self.tables, self.assembled, self.law = data, (items, users), assembled, law
        item_frames, user_frames = _frames(items), _frames(users)
        new = _new_items(item_frames, assembled, data)
        self.items = pl.concat([assembled.items, new])
        self.item_texts = describe(self.items, Columns.ITEM_ROW, item_frames, data.domains)
        self.user_texts = describe(assembled.users, Columns.USER_ROW, user_frames)
        self.items_without_events = len(new) + self.item_texts.unused

    def create(self, workspace: Workspace, logs: Sequence[Log]) -> Artifact:
        """Commit the Dataset that is made from these Logs."""
        digests = {name: digest for log in logs for name, digest in log.artifact.manifest.parents.items()}
        for table in self.tables:
            digests |= table.digests
        ids = {f"log {number}": log.artifact.id for number, log in enumerate(logs, start=1)}
        return create_artifact(
            workspace.root("dataset"), "dataset", partial(self._write, logs=logs),
            config={"data": _kept(self.data)}, parents=digests | ids, metrics=self._metrics(),
        )

    def _metrics(self) -> dict[str, Any]:
        return self.law | {
            "users": len(self.assembled.users),
            "items": len(self.items),
            "users_without_text": self.user_texts.without_text,
            "items_without_text": self.item_texts.without_text,
            "users_without_events": self.user_texts.unused,
            "items_without_events": self.items_without_events,
            "table_rows_quarantined": sum(table.quarantined for table in self.tables),
        }

    def _write(self, folder: Path, logs: Sequence[Log]) -> None:
        for made in sorted(self.assembled.folder.iterdir()):
            shutil.move(made, folder / made.name)
        (folder / "vocabulary").mkdir()
        _write_ids(self.assembled.users, folder / "vocabulary" / "users.parquet")
        _write_ids(self.items, folder / "vocabulary" / "items.parquet")
        for name, described in (("user", self.user_texts), ("item", self.item_texts)):
            write_parquet(described.texts, folder / f"{name}_texts.parquet")
            write_parquet(described.attributes, folder / f"{name}_attributes.parquet")
        write_quarantine(self.tables, folder / "quarantine.parquet", [log.quarantine for log in logs])


def _is_made_of(dataset: Dataset, data: DataConfig, sources: Sequence[SourceFile]) -> bool:
    """Whether the recipe and the tables are those that a Dataset was made of; its log is not looked at."""
    made_of = dataset.artifact.manifest
    if made_of.config["data"] != _kept(data):
        return False
    tables = [[file for file in sources if file.table == table] for table in ("items", "users")]
    pieces = [cut_pieces(files) for files in tables]
    now = [file_digests(table, map(digest, table)) for table in pieces]
    return all(made_of.parents.get(name) == known for digests in now for name, known in digests.items())


def _kept(data: DataConfig) -> dict[str, Any]:
    """What the section says of the Dataset, and not of how to make it."""
    return data.model_dump(mode="json", exclude=HOW)


def _sources(data: DataConfig, raw_folder: Path, workspace: Workspace, *, extend: bool) -> list[SourceFile]:
    """Files of a log that is extended may be gone."""
    may_be_gone = extend and latest_dataset(workspace) is not None
    return find_sources(data, raw_folder, _events_folder(workspace), logs_may_be_gone=may_be_gone)


def _events_folder(workspace: Workspace) -> Path | None:
    """Where the endpoint of this workspace keeps its event log."""
    return workspace.local_folder("events", make=False) / "log" if workspace.is_local else None


def _scratch_parent(data: DataConfig, workspace: Workspace) -> Path:
    if data.scratch is not None:
        return Path(data.scratch).absolute()
    return workspace.local_folder("scratch", make=False) if workspace.is_local else cache_folder() / "scratch"


def _frames(parsed: ParsedFiles) -> list[tuple[TableConfig, pl.DataFrame]]:
    """Each section's rows, in the order of its files."""
    frames: dict[int, tuple[TableConfig, list[pl.DataFrame]]] = {}
    for source, path in parsed.good:
        assert isinstance(source.config, TableConfig)
        frames.setdefault(id(source.config), (source.config, []))[1].append(pl.read_ipc(path))
    return [(config, pl.concat(parts, how="diagonal_relaxed")) for config, parts in frames.values()]


def _new_items(
    frames: Sequence[tuple[TableConfig, pl.DataFrame]], assembled: Assembled, data: DataConfig
) -> pl.Series:
    """Ids of the item tables that the log never mentions, sorted; they follow those with events.

    None when log and tables have nothing in common, which is refused when the items are described.
    """
    if not frames or not data.new_items:
        return NO_IDS
    table = pl.concat([frame[config.id].alias("id") for config, frame in frames]).unique()
    if not table.is_in(assembled.mentioned.implode()).any():
        return NO_IDS
    known = pl.concat([assembled.mentioned, assembled.items])
    return table.filter(~table.is_in(known.implode())).sort()


def _row_law(logs: Sequence[LoggedEvents], assembled: Assembled) -> dict[str, Any]:
    rows = sum(log.metrics["rows_read"] for log in logs)
    quarantined = sum(log.metrics["rows_quarantined"] for log in logs)
    reasons = sum((Counter(log.metrics["rows_quarantined_by_reason"]) for log in logs), Counter())
    dropped = sum((Counter(log.metrics["rows_dropped_by_filter"]) for log in logs), Counter())
    names = dict.fromkeys(name for log in logs for name in log.metrics["rows_dropped_by_filter"])
    filters = {name: dropped[name] for name in names} | assembled.dropped
    accounted = assembled.kept + quarantined + sum(filters.values())
    assert rows == accounted, f"{rows} rows read, {accounted} accounted for. This is a bug."
    return {
        "rows_read": rows, "rows_kept": assembled.kept, "rows_quarantined": quarantined,
        "rows_quarantined_by_reason": dict(sorted(reasons.items())), "rows_dropped_by_filter": filters,
    }


def _check_anything_left(law: dict[str, Any]) -> None:
    if not law["rows_kept"]:
        raise EmptyResultError(
            f"No event is left of {law['rows_read']} rows: {law['rows_quarantined']} were quarantined, the "
            f"filters dropped {in_words(law['rows_dropped_by_filter'])}. To keep some, {_remedies(law)}give more rows."
        )


def _remedies(law: dict[str, Any]) -> str:
    """What would have kept rows that were dropped."""
    dropped = [name for name, count in law["rows_dropped_by_filter"].items() if count]
    found = dict.fromkeys(REMEDIES[name] for name in dropped if name in REMEDIES)
    return "".join(f"{remedy}, or " for remedy in found)


def _write_ids(ids: pl.Series, path: Path) -> None:
    write_parquet(pl.DataFrame({"row": pl.int_range(len(ids), eager=True), "id": ids}), path)
