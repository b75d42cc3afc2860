"""One person and the files of an artifact -> which files name the person, and the same files without them.

    users.parquet                the id becomes a tombstone, so that no row shifts
    *.parquet, *.arrow           rows with the person's id or row go
    ranges.json                  a cut between people at this one's id becomes one at the same place
    *_texts, *_attributes        the person's row stays, and says nothing
    quarantine.parquet           what a row that may be theirs held goes, the reason stays
    model.safetensors            the person's rows of the model become zeros, which is how a new user starts
    examples.json, report.html   the person goes from the examples

Rows of other people keep their order and their bytes. Knows no artifacts that follow from each other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_ray.forgotten import GONE
from llmrec_ray.types import Columns

__all__ = ["Person", "link_or_copy"]

USERS = "users.parquet"
ID, ROW = "id", "row"
TOLD_OF_USERS = ("user_texts.parquet", "user_attributes.parquet")
WEIGHTS = "model.safetensors"
ROWS_OF_USERS = ("users.users.weight", "user_features")
EVALUATION, EXAMPLES, REPORT = "evaluation.json", "examples.json", "report.html"
RANGES = "ranges.json"
TABLE, ITEMS = "table", "items"


@dataclass(frozen=True)
class Person:
    """user_id: in the outside world. tombstone: what stands in a vocabulary in its place. before: the greatest id, in
    order of bytes, of those in all Logs that come before the person's, which is only needed when a Log is cut there."""

    user_id: str
    tombstone: str = ""
    before: str | None = None

    def row_in(self, folder: Path) -> int | None:
        """The person's row in the vocabulary of an artifact, under their id or their tombstone; None without one."""
        for file in (folder / USERS, folder / "vocabulary" / USERS):
            if file.exists():
                users = pl.scan_parquet(file).filter(pl.col(ID).is_in([self.user_id, self.tombstone]))
                rows = users.select(ROW).collect()[ROW].to_list()
                return int(rows[0]) if rows else None
        return None

    def events_in(self, folder: Path, row: int | None) -> int:
        """How many events a Dataset, in which the person has a row, or a Log has of the person."""
        if row is None:
            fragments = (folder / "events").glob("*.arrow")
            return sum(pc.sum(self._theirs(batch)).as_py() or 0 for file in fragments for batch in _batches(file))
        events = pl.scan_parquet(folder / "interactions" / "*.parquet")
        return int(events.select((pl.col(Columns.USER_ROW) == row).sum()).collect().item())

    def is_named_in(self, file: Path) -> bool:
        """Whether a file of an artifact holds the person's id."""
        if file.suffix == ".parquet":
            return self._is_in_table(file)
        if file.suffix == ".arrow":
            return any(self._is_in_batch(batch) for batch in _batches(file))
        if file.name == RANGES:
            return self.user_id in json.loads(file.read_bytes())
        return file.name == EXAMPLES and len(self._other_examples(file)) < len(_examples(file))

    def write_without(self, file: Path, target: Path, row: int | None) -> None:
        """Write a file of an artifact without the person, whose row in its vocabulary is `row`."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if write := self._rewriter(file, row):
            write(target)
        else:
            link_or_copy(file, target)

    def _rewriter(self, file: Path, row: int | None) -> Callable[[Path], object] | None:
        """What writes the file anew; None for a file that has nothing of the person."""
        if file.suffix == ".parquet":
            table = self._table_without(file, row)
            return None if table is None else table.write_parquet
        if file.suffix == ".arrow" and self.is_named_in(file):
            return lambda target: self._write_batches(file, target)
        if file.name == RANGES and self.is_named_in(file):
            return lambda target: target.write_text(json.dumps(self._cut_elsewhere(file)), encoding="utf-8")
        if file.name == WEIGHTS and row is not None:
            return lambda target: _write_weights(file, target, row)
        if file.name in (EXAMPLES, REPORT) and self._is_an_example(file.with_name(EXAMPLES)):
            return lambda target: self._write_report(file.parent, target)
        return None

    def _is_in_table(self, file: Path) -> bool:
        names = pl.read_parquet_schema(file)
        table = pl.scan_parquet(file)
        if file.name == USERS and ID in names:
            return _any(table, pl.col(ID) == self.user_id)
        if Columns.RAW in names:
            return _any(table, self._may_be_theirs(names))
        return Columns.USER_ID in names and _any(table, pl.col(Columns.USER_ID).cast(pl.String) == self.user_id)

    def _table_without(self, file: Path, row: int | None) -> pl.DataFrame | None:
        """A Parquet file without the person; None when nothing of it changes."""
        names = pl.read_parquet_schema(file)
        if file.name in TOLD_OF_USERS and row is not None:
            return self._silenced(pl.read_parquet(file), row)
        if Columns.USER_ROW in names and row is not None:
            theirs = pl.col(Columns.USER_ROW) == row
            return pl.read_parquet(file).filter(~theirs) if _any(pl.scan_parquet(file), theirs) else None
        if not self._is_in_table(file):
            return None
        table = pl.read_parquet(file)
        if file.name == USERS:
            return table.with_columns(pl.col(ID).replace(self.user_id, self.tombstone))
        if Columns.RAW in names:
            emptied = pl.when(self._may_be_theirs(names)).then(pl.lit(GONE)).otherwise(Columns.RAW)
            return table.with_columns(emptied.alias(Columns.RAW))
        return table.filter(pl.col(Columns.USER_ID).cast(pl.String).ne_missing(self.user_id))

    def _silenced(self, table: pl.DataFrame, row: int) -> pl.DataFrame:
        """With nothing said about the person; a text is never null."""
        said: Mapping[str, str] = {Columns.TEXT: "", Columns.TITLE: self.tombstone}
        theirs = pl.col(Columns.USER_ROW) == row
        return table.with_columns(
            pl.when(theirs).then(pl.lit(said.get(name)).cast(dtype)).otherwise(pl.col(name)).alias(name)
            for name, dtype in table.schema.items() if name != Columns.USER_ROW
        )

    def _may_be_theirs(self, names: Mapping[str, pl.DataType]) -> pl.Expr:
        """Rows of a quarantine that hold the id as a word; nobody can tell which field of a bad row is the user's."""
        in_json = {json.dumps(self.user_id, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)}
        written = in_json | {self.user_id, self.user_id.replace('"', '""')}
        words = rf"(^|[^\w])({'|'.join(map(re.escape, sorted(written)))})($|[^\w])"
        holds = pl.col(Columns.RAW).str.contains(words).fill_null(False)
        return holds & (pl.col(TABLE).cast(pl.String) != ITEMS) if TABLE in names else holds

    def _is_in_batch(self, batch: pa.RecordBatch) -> bool:
        if Columns.USER_ID not in batch.schema.names:
            return False
        return bool(pc.any(self._theirs(batch)).as_py())

    def _theirs(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        return pc.fill_null(pc.equal(_ids(batch), self.user_id), False)

    def _write_batches(self, file: Path, target: Path) -> None:
        """Every batch stays a batch, though it be empty: its place says which people are in it."""
        with (
            pa.memory_map(str(file)) as source,
            pa.ipc.open_file(source) as reader,
            pa.ipc.new_file(str(target), reader.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer,
        ):
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                writer.write_batch(batch.filter(pc.invert(self._theirs(batch))))

    def greatest_before(self, fragment: Path) -> str | None:
        """The greatest id of a file of events that comes before the person's; None without one."""
        found = [pc.max(ids.filter(pc.less(ids, self.user_id))).as_py() for ids in map(_ids, _batches(fragment))]
        return max((id_ for id_ in found if id_ is not None), default=None)

    def _cut_elsewhere(self, file: Path) -> list[str]:
        """Cuts in which the least text after `before` stands for the person's id: all others stay on their side."""
        cuts: list[str] = []
        for cut in json.loads(file.read_bytes()):
            theirs = "" if self.before is None else f"{self.before}\0"
            cuts.append(max([theirs, *cuts[-1:]]) if cut == self.user_id else cut)
        return cuts

    def _is_an_example(self, examples: Path) -> bool:
        return examples.exists() and self.is_named_in(examples)

    def _other_examples(self, examples: Path) -> list[dict[str, Any]]:
        return [example for example in _examples(examples) if example["user_id"] != self.user_id]

    def _write_report(self, folder: Path, target: Path) -> None:
        """Both files that show examples, of which the second overwrites the first by the same."""
        from llmrec_ray.evaluate.examples import Example
        from llmrec_ray.evaluate.html import write_report
        from llmrec_ray.evaluate.report import Evaluation

        evaluation = Evaluation.model_validate_json((folder / EVALUATION).read_bytes())
        others = self._other_examples(folder / EXAMPLES)
        write_report(target.parent, evaluation, [Example.model_validate(example) for example in others])


def link_or_copy(file: Path, target: Path) -> None:
    """The same file at another place; files of artifacts never change, so that it may be shared."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _any(table: pl.LazyFrame, condition: pl.Expr) -> bool:
    return bool(table.select(condition.any()).collect().item())


def _examples(file: Path) -> list[dict[str, Any]]:
    examples: list[dict[str, Any]] = json.loads(file.read_bytes())
    return examples


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _ids(batch: pa.RecordBatch) -> pa.StringArray:
    return batch.column(Columns.USER_ID).cast(pa.string())


def _write_weights(file: Path, target: Path, row: int) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    for name in ROWS_OF_USERS:
        if name in tensors:
            tensors[name] = tensors[name].clone()
            tensors[name][row] = 0
    save_file(tensors, target)
