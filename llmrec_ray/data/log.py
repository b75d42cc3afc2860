"""Raw files of a behaviour log -> a Log: its valid events, its quarantine, and a count for every row.

    events/<piece>-<block>.arrow   valid events of one block, one record batch per range of user ids
    ranges.json                    the ids that the ranges are cut at
    quarantine.parquet             rows that could not be used, with file, position and reason

A Dataset is made from the Logs of one or several ingests; this module does not know how. Pieces of files are parsed
apart, and no process ever holds more than a block of one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from llmrec_ray.artifact import Artifact, Workspace, create_artifact, open_artifact
from llmrec_ray.config import DataConfig
from llmrec_ray.data.parse import QUARANTINE_SCHEMA, ParsedBlock, parse_piece, sample_users
from llmrec_ray.data.pieces import NO_STARTS, Piece, digest, estimated_rows
from llmrec_ray.data.ranges import choose_splitters, sample_fragment, write_fragment
from llmrec_ray.data.sources import FEEDBACK, SourceFile, TableName
from llmrec_ray.data.spread import Spread
from llmrec_ray.errors import BadRowsError, EmptyResultError
from llmrec_ray.forgotten import NOBODY, Tombstones
from llmrec_ray.types import Columns

__all__ = [
    "RANGE_ROWS", "Log", "LoggedEvents", "NewLog", "ParsedFiles", "check_quarantine", "common_splitters",
    "file_digests", "in_words", "parse_files", "parse_log", "read_by", "sections", "write_quarantine",
]

RANGE_ROWS = 1_000_000
SAMPLED_PIECES = 64
MOST_GROWTH = 2
EXAMPLES = 3
SHOWN_CHARACTERS = 300
RANGES, QUARANTINE = "ranges.json", "quarantine.parquet"


@dataclass(frozen=True)
class LoggedEvents:
    """Valid events of one Log.

    fragments: files in the order of the log. splitters: user ids that their ranges are cut at. newest: the time of the
    newest. metrics: counts, rows_read = rows_valid + rows_quarantined + those of rows_dropped_by_filter.
    """

    fragments: list[Path]
    splitters: list[str]
    newest: datetime | None
    metrics: dict[str, Any]


class Log:
    """One opened Log."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    @classmethod
    def open(cls, uri: str, *, verify: bool = True) -> Log:
        """Open the Log at `uri`. Raises ArtifactError as `open_artifact` does."""
        return cls(open_artifact(uri, "log", verify=verify))

    @property
    def quarantine(self) -> Path:
        """The file of its rows that could not be used."""
        return self.artifact.path / QUARANTINE

    @cached_property
    def events(self) -> LoggedEvents:
        """Where its valid events are."""
        path, metrics = self.artifact.path, self.artifact.manifest.metrics
        newest = metrics["newest"]
        return LoggedEvents(
            sorted((path / "events").glob("*.arrow")), json.loads((path / RANGES).read_text(encoding="utf-8")),
            None if newest is None else datetime.fromisoformat(newest), metrics,
        )

    @property
    def files(self) -> dict[str, int]:
        """How far each of its files was read, in bytes, by the file's name."""
        files: dict[str, int] = self.artifact.manifest.config["files"]
        return files

    @property
    def read_by(self) -> dict[str, list[int]]:
        """Which sections read each of its files, see `read_by`; of no file in a Log that does not say so."""
        numbers: dict[str, list[int]] = self.artifact.manifest.config.get("read_by", {})
        return numbers


@dataclass
class ParsedFiles:
    """What parsing the files of one table gave: where the frames are, and how many rows went where."""

    digests: dict[str, str]
    good: list[tuple[SourceFile, Path]] = field(default_factory=list)
    quarantine: list[tuple[Path, int]] = field(default_factory=list)
    rows: int = 0
    valid: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    newest: datetime | None = None

    @property
    def quarantined(self) -> int:
        """Rows that could not be used."""
        return self.reasons.total()


@dataclass(frozen=True)
class _Block:
    """What became of one block; its files bear its name."""

    name: str
    rows: int
    valid: int
    reasons: dict[str, int]
    dropped: dict[str, int]
    newest: datetime | None


def parse_files(
    pieces: Sequence[Piece], folder: Path, spread: Spread, splitters: Sequence[str] | None = None,
    forgotten: Tombstones = NOBODY,
) -> ParsedFiles:
    """Parse the pieces of one table into files of `folder`: fragments when there are splitters, else plain frames.

    Events of forgotten users are dropped, and nothing that a quarantined row of theirs held is kept.

    Raises MissingInputError and DataError naming the file.
    """
    folder.mkdir()
    reports = spread.map(partial(_parse, folder=folder, splitters=splitters, forgotten=forgotten), pieces, "read")
    parsed = ParsedFiles(file_digests(pieces, (piece_digest for piece_digest, _ in reports)))
    before: Counter[int] = Counter()  # by number, since two sections may read one file
    for piece, (_, blocks) in zip(pieces, reports, strict=True):
        for block in blocks:
            _add(parsed, piece.source, block, folder, before[piece.source.number])
            before[piece.source.number] += block.rows
    return parsed


def file_digests(pieces: Sequence[Piece], digests: Iterable[str]) -> dict[str, str]:
    """Digests of the pieces of a table -> those of its files by name: of a file's bytes, or of its pieces' digests.

    The digest of a file that two sections read in other pieces stands under its number too.
    """
    parts: dict[int, list[str]] = {}
    for piece, piece_digest in zip(pieces, digests, strict=True):
        parts.setdefault(piece.source.number, []).append(piece_digest)
    names = {piece.source.number: piece.source.name for piece in pieces}
    named: dict[str, str] = {}
    for number, digests_of_file in parts.items():
        name, file_digest = names[number], _joined(digests_of_file)
        named[name if named.get(name, file_digest) == file_digest else f"{name} ({number})"] = file_digest
    return named


@dataclass(frozen=True)
class NewLog:
    """Parsed files that are to become a Log."""

    parsed: ParsedFiles
    events: LoggedEvents
    config: dict[str, Any]

    def commit(self, workspace: Workspace) -> Log:
        """Keep it in the workspace; its files go there."""
        artifact = create_artifact(
            workspace.root("log"), "log", self._write, config=self.config, parents=self.parsed.digests,
            metrics=self.events.metrics,
        )
        return Log(artifact)

    def _write(self, folder: Path) -> None:
        (folder / "events").mkdir()
        for fragment in self.events.fragments:
            shutil.move(fragment, folder / "events" / fragment.name)
        (folder / RANGES).write_text(json.dumps(self.events.splitters), encoding="utf-8")
        write_quarantine([self.parsed], folder / QUARANTINE)


def parse_log(
    pieces: Sequence[Piece], sources: Sequence[SourceFile], data: DataConfig, scratch: Path, spread: Spread, *,
    starts: Mapping[str, int] = NO_STARTS, splitters: Sequence[str] | None = None, forgotten: Tombstones = NOBODY,
    earlier: Sequence[LoggedEvents] = (),
) -> NewLog:
    """Parse pieces of the files of a log, which begin at `starts` as `cut_pieces` was told; `splitters` are where to
    cut ranges, chosen when there are none. One that follows `earlier` ones may be empty, and its bad rows are looked at
    together with theirs.

    Raises MissingInputError, DataError, EmptyResultError and BadRowsError.
    """
    splitters = _splitters(pieces, forgotten) if splitters is None else list(splitters)
    parsed = parse_files(pieces, scratch / "log", spread, splitters, forgotten)
    if parsed.rows or not earlier:
        check_quarantine(parsed, sources, data, earlier)
    metrics = {
        "rows_read": parsed.rows, "rows_valid": parsed.valid, "rows_quarantined": parsed.quarantined,
        "rows_quarantined_by_reason": dict(sorted(parsed.reasons.items())),
        "rows_dropped_by_filter": dict(parsed.dropped),
        "newest": None if parsed.newest is None else parsed.newest.isoformat(),
    }
    events = LoggedEvents([path for _, path in parsed.good], splitters, parsed.newest, metrics)
    files = {"files": _read_up_to(sources, pieces, starts), "read_by": read_by(sources, data)}
    return NewLog(parsed, events, {"sections": sections(data), **files})


def common_splitters(logs: Sequence[LoggedEvents], spread: Spread) -> list[str]:
    """Where to cut the ranges of several Logs: as the first is cut, or anew when its ranges have become too large."""
    rows, first = sum(log.metrics["rows_valid"] for log in logs), logs[0].splitters
    if rows <= MOST_GROWTH * RANGE_ROWS * (len(first) + 1):
        return first
    n_ranges, fragments = -(-rows // RANGE_ROWS), [path for log in logs for path in log.fragments]
    chosen = fragments[:: -(-len(fragments) // max(SAMPLED_PIECES, n_ranges))]
    return choose_splitters(pl.concat(spread.map(sample_fragment, chosen, "sample")), n_ranges)


def sections(data: DataConfig) -> list[dict[str, Any]]:
    """What decides how the rows of a log are read, but for the paths of its files."""
    return [log.model_dump(mode="json", exclude={"paths"}) for log in data.interactions]


def read_by(sources: Sequence[SourceFile], data: DataConfig) -> dict[str, list[int]]:
    """Numbers of the sections that read each file, by its name; event logs of endpoints come last."""
    known = [*data.interactions, FEEDBACK]
    found: dict[str, set[int]] = {}
    for source in sources:
        found.setdefault(source.name, set()).add(next(n for n, config in enumerate(known) if config == source.config))
    return {name: sorted(numbers) for name, numbers in found.items()}


def check_quarantine(
    parsed: ParsedFiles, sources: Sequence[SourceFile], data: DataConfig, earlier: Sequence[LoggedEvents] = ()
) -> None:
    """Raise EmptyResultError when a table's files have no row, BadRowsError when too many cannot be used, those of
    earlier Logs of the same table counted too."""
    table: TableName = sources[0].table
    if not parsed.rows:
        names = ", ".join(file.name for file in sources)
        raise EmptyResultError(f"There are no rows in the files of data.{table} ({names}): give files with rows.")
    rows = parsed.rows + sum(events.metrics["rows_read"] for events in earlier)
    bad = parsed.quarantined + sum(events.metrics["rows_quarantined"] for events in earlier)
    if bad > data.max_bad_ratio * rows:
        raise BadRowsError(
            f"{bad} of {rows} rows of data.{table} cannot be used "
            f"({in_words(_reasons(parsed, earlier))}), more than data.max_bad_ratio {data.max_bad_ratio} "
            f"allows. First: {_examples(parsed)}. Correct the recipe or the rows, or raise data.max_bad_ratio."
        )


def _reasons(parsed: ParsedFiles, earlier: Sequence[LoggedEvents]) -> dict[str, int]:
    counts = parsed.reasons.copy()
    for events in earlier:
        counts.update(events.metrics["rows_quarantined_by_reason"])
    return dict(sorted(counts.items()))


def in_words(counts: Mapping[str, int]) -> str:
    """Counts by name, as a sentence has them."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def write_quarantine(tables: Iterable[ParsedFiles], path: Path, earlier: Sequence[Path] = ()) -> None:
    """One Parquet file of all quarantined rows, those of `earlier` files first; block by block."""
    schema = pl.DataFrame(schema=QUARANTINE_SCHEMA).to_arrow().schema
    with pq.ParquetWriter(path, schema) as writer:
        for file in earlier:
            for batch in pq.ParquetFile(file).iter_batches():
                writer.write_batch(batch.cast(schema))
        for parsed in tables:
            for frame in _quarantine(parsed):
                writer.write_table(frame.rechunk().to_arrow().cast(schema))


def _read_up_to(
    sources: Sequence[SourceFile], pieces: Sequence[Piece], starts: Mapping[str, int]
) -> dict[str, int]:
    """By name; a file that may grow was read up to its last whole line, which there need not be."""
    ends = {piece.source.name: piece.stop for piece in pieces if piece.source.may_grow}
    return {
        file.name: ends.get(file.name, starts.get(file.name, 0)) if file.may_grow else file.size_bytes
        for file in sources
    }


def _splitters(pieces: Sequence[Piece], forgotten: Tombstones) -> list[str]:
    n_ranges = -(-sum(estimated_rows(piece) for piece in pieces) // RANGE_ROWS)
    if n_ranges < 2:
        return []
    chosen = pieces[:: -(-len(pieces) // SAMPLED_PIECES)]
    users = pl.concat([sample_users(piece) for piece in chosen])
    return choose_splitters(users.filter(~forgotten.is_forgotten(users)), n_ranges)


def _parse(
    piece: Piece, folder: Path, splitters: Sequence[str] | None, forgotten: Tombstones
) -> tuple[str, list[_Block]]:
    blocks = []
    for number, parsed in enumerate(_without(block, forgotten) for block in parse_piece(piece)):
        name = f"{piece.number:06}-{number:04}"
        if splitters is None:
            parsed.good.write_ipc(folder / f"{name}.arrow")
        elif len(parsed.good):
            write_fragment(parsed.good, splitters, folder / f"{name}.arrow")
        if len(parsed.quarantine):
            parsed.quarantine.write_ipc(folder / f"{name}.quarantine")
        reasons = dict(parsed.quarantine.group_by(Columns.REASON).len().iter_rows())
        newest = None if splitters is None else parsed.good[Columns.TIMESTAMP].max()  # tables may have such a column
        assert newest is None or isinstance(newest, datetime)
        blocks.append(_Block(name, parsed.rows, len(parsed.good), reasons, parsed.dropped, newest))
    return digest(piece), blocks


def _without(block: ParsedBlock, forgotten: Tombstones) -> ParsedBlock:
    if not len(forgotten):
        return block
    quarantine = block.quarantine.with_columns(forgotten.without_mentions(block.quarantine[Columns.RAW]))
    block = replace(block, quarantine=quarantine)
    if Columns.USER_ID not in block.good.columns:
        return block
    kept = block.good.filter(~forgotten.is_forgotten(block.good[Columns.USER_ID]))
    return replace(block, good=kept, dropped=block.dropped | {"forgotten_user": len(block.good) - len(kept)})


def _add(parsed: ParsedFiles, source: SourceFile, block: _Block, folder: Path, rows_before: int) -> None:
    parsed.rows += block.rows
    parsed.valid += block.valid
    parsed.reasons.update(block.reasons)
    parsed.dropped.update(block.dropped)
    parsed.newest = max(filter(None, (parsed.newest, block.newest)), default=None)
    good, quarantine = folder / f"{block.name}.arrow", folder / f"{block.name}.quarantine"
    if good.exists():
        parsed.good.append((source, good))
    if quarantine.exists():
        parsed.quarantine.append((quarantine, rows_before))


def _joined(digests: Sequence[str]) -> str:
    """The digest of a file: of its bytes, or of the digests of its pieces."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _quarantine(parsed: ParsedFiles) -> Iterable[pl.DataFrame]:
    for path, rows_before in parsed.quarantine:
        yield pl.read_ipc(path).with_columns(pl.col(Columns.POSITION) + rows_before)


def _examples(parsed: ParsedFiles) -> str:
    columns = (Columns.FILE, Columns.POSITION, Columns.REASON, Columns.RAW)
    rows: list[Any] = []
    for frame in _quarantine(parsed):
        rows += frame.select(columns).head(EXAMPLES - len(rows)).iter_rows()
        if len(rows) == EXAMPLES:
            break
    return "; ".join(f"{file} record {number} is {_cut(raw)!r} ({reason})" for file, number, reason, raw in rows)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
