"""Ingest of a generated log: this pipeline, the same result by hand in one Polars program, and in pandas.

    python benchmarks/ingest.py [--quick] [--rows N ...] [--folder FOLDER] [--max-memory-gb 4]

Every run is a process of its own, timed from its start to its end, Ray's start included; programs take turns, and
figures are medians. Memory is the highest sum of the proportional set sizes of all processes of a run. Logs are read
by every program in turn, so they lie in the page cache alike. Before anything is timed, the three results are compared
at COMPARED_ROWS rows: same events in same order, same rows for ids, same quarantine, same counts. The largest size is
for this pipeline alone, once in threads of its process ("ours") and once on Ray Data ("ours-ray"); the recipe says
which. Marginal: only the rows between two sizes and the time between them, so that the start does not count. Dated
copies of the output belong into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from by_hand import LEAST_EVENTS
from logs import write_log
from metered import Metered, metered
from polars.testing import assert_frame_equal

from llmrec_ray.artifact import Workspace
from llmrec_ray.data import Dataset

SIZES = (1_000_000, 10_000_000, 30_000_000)
LARGEST = 100_000_000
QUICK_SIZES = (1_000_000, 3_000_000, 5_000_000)
COMPARED_ROWS = 200_000
COMPARED_PART_ROWS = 30_000
REPETITIONS = 3
BY_HAND = Path(__file__).with_name("by_hand.py")
PROGRAMS = ("ours", "ours-ray", "polars", "pandas")


@dataclass(frozen=True)
class Bench:
    """Where logs and results lie, and the settings of our pipeline."""

    folder: Path
    max_memory_gb: float
    num_cpus: int

    def log(self, rows: int, *, part_rows: int = 1_000_000) -> Path:
        """The folder of a log of so many rows, made when it is not there."""
        folder = self.folder / f"log-{rows}"
        write_log(folder, rows, rows_per_part=part_rows)
        return folder

    def run(self, program: str, log: Path, out: Path) -> Metered:
        """One program over one log, as a process of its own."""
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        if not program.startswith("ours"):
            return metered([sys.executable, str(BY_HAND), program, str(log), str(out)])
        config = out / "recipe.yaml"
        config.write_text(yaml.safe_dump(self._recipe(log, out, use_ray=program == "ours-ray")))
        return metered([sys.executable, "-m", "llmrec_ray", "ingest", "--config", str(config), "--json"])

    def _recipe(self, log: Path, out: Path, *, use_ray: bool) -> dict[str, Any]:
        interactions = {"paths": [f"{log}/*.parquet"], "format": "parquet", "columns": {"value": "value"}}
        data = {
            "interactions": interactions, "max_memory_gb": self.max_memory_gb,
            "min_user_interactions": LEAST_EVENTS, "min_item_interactions": LEAST_EVENTS, "use_ray": use_ray,
        }
        return {
            "name": "bench", "workspace": str(out / "work"), "num_cpus": self.num_cpus, "data": data,
            "fusion": {"item_vector": "id"},
        }


def main() -> None:
    """Compare, print the table, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 5M rows instead of 100M")
    parser.add_argument("--rows", type=int, nargs="+", help="sizes to measure with all programs instead")
    parser.add_argument("--largest", type=int, help=f"rows that only this pipeline reads (default {LARGEST}; 0: none)")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--max-memory-gb", type=float, default=4.0, help="data.max_memory_gb")
    parser.add_argument("--num-cpus", type=int, default=os.cpu_count(), help="num_cpus of the recipe")
    parser.add_argument("--folder", type=Path, help="keeps the logs for the next time; by default a temporary folder")
    arguments = parser.parse_args()
    sizes = sorted(arguments.rows or (QUICK_SIZES if arguments.quick else SIZES))
    largest = arguments.largest
    if largest is None:
        largest = 0 if arguments.quick or arguments.rows else LARGEST
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(arguments.folder or Path(temporary), arguments.max_memory_gb, arguments.num_cpus)
        compare_results(bench, arguments.programs)
        runs = measure(bench, arguments.programs, sizes, arguments.repetitions)
        for program in arguments.programs:
            if largest > sizes[-1] and program.startswith("ours"):
                runs[program, largest] = [bench.run(program, bench.log(largest), bench.folder / "out")]
                _progress(program, largest, runs[program, largest][-1])
    print_table(runs)
    print(json.dumps(report(runs) | {"machine": _machine()}))


def compare_results(bench: Bench, programs: Sequence[str]) -> None:
    """Raises AssertionError, showing the difference, when the programs do not agree at COMPARED_ROWS."""
    log = bench.log(COMPARED_ROWS, part_rows=COMPARED_PART_ROWS)
    results = []
    for program in programs:
        out = bench.folder / f"compared-{program}"
        bench.run(program, log, out)
        results.append(_result_of_ours(out) if program.startswith("ours") else _result_by_hand(out))
    for result in results[1:]:
        for name, frame in results[0].items():
            assert_frame_equal(frame, result[name], check_row_order=True)
    names = ", ".join(programs)
    print(f"same result at {COMPARED_ROWS:,} rows: {names} ({results[0]['counts'].row(0, named=True)})")


def _result_of_ours(out: Path) -> dict[str, pl.DataFrame]:
    dataset = Dataset.open(Workspace(str(out / "work")).latest("dataset", made_by="ingest"))
    law = dataset.artifact.manifest.metrics
    quarantine = dataset.quarantine.with_columns(pl.col("file").str.split("/").list.last())
    vocabularies = {"users": list(dataset.users), "items": list(dataset.items)}
    return _comparable(dataset.interactions, quarantine, vocabularies, law)


def _result_by_hand(out: Path) -> dict[str, pl.DataFrame]:
    def read(name: str) -> pl.DataFrame:
        return pl.read_parquet(out / f"{name}.parquet")

    vocabularies = {name: read(name)["id"].to_list() for name in ("users", "items")}
    return _comparable(
        read("interactions"), read("quarantine"), vocabularies, json.loads((out / "counts.json").read_text())
    )


def _comparable(
    events: pl.DataFrame, quarantine: pl.DataFrame, vocabularies: dict[str, list[str]], law: dict[str, Any]
) -> dict[str, pl.DataFrame]:
    dropped = {name: count for name, count in law["rows_dropped_by_filter"].items() if count}
    counts = {name: law[name] for name in ("rows_read", "rows_kept", "rows_quarantined")}
    whole = pl.col("user_row", "item_row").cast(pl.Int64)
    return {
        "events": events.select(whole, "timestamp", "value", pl.col("split").cast(pl.String)),
        "users": pl.DataFrame({"id": vocabularies["users"]}),
        "items": pl.DataFrame({"id": vocabularies["items"]}),
        "quarantine": quarantine.select(
            pl.col("file", "reason").cast(pl.String), pl.col("position").cast(pl.Int64)
        ).sort("file", "position"),
        "counts": pl.DataFrame([counts | dict(sorted(dropped.items()))]),
    }


Runs = dict[tuple[str, int], list[Metered]]


def measure(bench: Bench, programs: Sequence[str], sizes: Sequence[int], repetitions: int) -> Runs:
    """Every program over every size, in turn, as often as said."""
    runs: defaultdict[tuple[str, int], list[Metered]] = defaultdict(list)
    for rows in sizes:
        bench.log(rows)
    for _ in range(repetitions):
        for rows in sizes:
            for program in programs:
                runs[program, rows].append(bench.run(program, bench.log(rows), bench.folder / "out"))
                _progress(program, rows, runs[program, rows][-1])
    return dict(runs)


def _progress(program: str, rows: int, run: Metered) -> None:
    print(f"  {program} {rows:,}: {run.wall_s:.1f} s, CPU {run.cpu_s:.1f} s, {run.peak_bytes / 2**30:.2f} GiB",
          file=sys.stderr, flush=True)


def print_table(runs: Runs) -> None:
    """A line per program and size: median of the total time, marginal rate since the size before, CPU, memory."""
    print(f"{'program':8} {'rows':>12} {'total s':>9} {'rows/s':>10} {'marginal/s':>11} {'CPU s':>8} {'GiB':>6}  runs")
    for program in PROGRAMS:
        before: tuple[int, float] | None = None
        for rows in _sizes(runs, program):
            wall_s = _median(runs, program, rows)
            rate = f"{(rows - before[0]) / max(wall_s - before[1], 1e-9):>11,.0f}" if before else f"{'':>11}"
            cpu_s = statistics.median(run.cpu_s for run in runs[program, rows])
            peak = max(run.peak_bytes for run in runs[program, rows]) / 2**30
            every = " ".join(f"{run.wall_s:.1f}" for run in runs[program, rows])
            print(f"{program:9} {rows:>12,} {wall_s:>9.1f} {rows / wall_s:>10,.0f} {rate} {cpu_s:>8.1f} {peak:>6.2f}  "
                  f"{every}")
            before = rows, wall_s


def report(runs: Runs) -> dict[str, Any]:
    """The figures of the JSON line; those that need a program or a size that did not run are null.

    marginal_vs_polars and marginal_vs_pandas: our rows a second between the two largest sizes that all programs read,
    over theirs. vs_pandas: their total time over ours at the largest of these. slope_error: how much more (or less)
    a row takes between our two largest sizes than between the two before.
    """
    ours = _sizes(runs, "ours")
    rows = ours[-1] if ours else None
    common = [size for size in ours if all((name, size) in runs for name in _programs(runs))]
    return {
        "rows": rows,
        "rows_per_s": round(rows / _median(runs, "ours", rows)) if rows else None,
        "marginal_rows_per_s": {name: _rounded(_rate(runs, name, common)) for name in _programs(runs)},
        "marginal_vs_polars": _ratio(_rate(runs, "ours", common), _rate(runs, "polars", common)),
        "marginal_vs_pandas": _ratio(_rate(runs, "ours", common), _rate(runs, "pandas", common)),
        "vs_pandas": _ratio(_total(runs, "pandas", common), _total(runs, "ours", common)),
        "marginal_vs_polars_on_ray": _ratio(_rate(runs, "ours-ray", common), _rate(runs, "polars", common)),
        "slope_error_on_ray": _slope_error(runs, "ours-ray"),
        "vs_polars": _ratio(_total(runs, "polars", common), _total(runs, "ours", common)),
        "peak_bytes": max(run.peak_bytes for run in runs["ours", rows]) if rows else None,
        "slope_error": _slope_error(runs, "ours"),
        "totals_s": {
            name: {size: round(_median(runs, name, size), 2) for size in _sizes(runs, name)} for name in _programs(runs)
        },
    }


def _slope_error(runs: Runs, program: str) -> float | None:
    return slope_error([(size, _median(runs, program, size)) for size in _sizes(runs, program)])


def slope_error(totals: Sequence[tuple[int, float]]) -> float | None:
    """Seconds a row between the last two of (rows, seconds), over those between the two before, less one; absolute."""
    if len(totals) < 3:
        return None
    (a, a_s), (b, b_s), (c, c_s) = totals[-3:]
    return round(abs((c_s - b_s) / (c - b) / ((b_s - a_s) / (b - a)) - 1), 4)


def _programs(runs: Runs) -> Iterator[str]:
    return (name for name in PROGRAMS if any(program == name for program, _ in runs))


def _sizes(runs: Runs, program: str) -> list[int]:
    return sorted(rows for name, rows in runs if name == program)


def _median(runs: Runs, program: str, rows: int) -> float:
    return statistics.median(run.wall_s for run in runs[program, rows])


def _total(runs: Runs, program: str, sizes: Sequence[int]) -> float | None:
    return _median(runs, program, sizes[-1]) if sizes and (program, sizes[-1]) in runs else None


def _rate(runs: Runs, program: str, sizes: Sequence[int]) -> float | None:
    if len(sizes) < 2 or any((program, rows) not in runs for rows in sizes[-2:]):
        return None
    less, more = sizes[-2:]
    return (more - less) / (_median(runs, program, more) - _median(runs, program, less))


def _ratio(above: float | None, below: float | None) -> float | None:
    return round(above / below, 3) if above and below else None


def _rounded(rate: float | None) -> int | None:
    return None if rate is None else round(rate)


def _machine() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("polars", "pandas", "ray", "pyarrow"))
    return f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    main()
