"""The endpoint under load, beside Ray Serve's defaults and one plain process: one table, then one JSON line.

    python benchmarks/serve.py [--quick] [--only KIND ...] [--seconds N] [--rounds N]

Three contenders (see contenders.py) hold the same Release of 100,000 items x 128 with exact retrieval and the learned
reranker over 200 candidates, and stay up side by side; wrk, a process of its own that never retries, asks them in
turn, so that whatever else the machine does falls on all. Figures are medians over the rounds, ratios are of the same
round. CPU per request is that of all processes of a contender, the load generator not counted.

wrk is a package of Debian and Ubuntu (`apt-get install wrk`) and of Homebrew (`brew install wrk`), or is built from
https://github.com/wg/wrk. Dated copies of the output belong into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from contenders import CONTENDERS
from processes import Contender
from synthetic import SERVE, publish_synthetic

SCRIPT = Path(__file__).with_name("requests.lua")
KINDS = ("known", "history", "filtered", "query", "steered", "similar", "events")
CLIENTS = 32
WARM_UP_S = 3
UNGATHERED = {
    "gather": {"max_batch": 1, "max_in_flight": 512},
    "deadlines": {"encoder_s": 30, "retriever_s": 30, "reranker_s": 30},
    "encoder": {"max_ongoing_requests": 64}, "retriever": {"max_ongoing_requests": 64},
    "reranker": {"max_ongoing_requests": 64},
}
"""What serves one request a call best: calls that are neither given up nor turned away to be sent again."""
GET_WRK = (
    "The load generator wrk is not installed: `apt-get install wrk` (Debian, Ubuntu), `brew install wrk` (macOS), or "
    "build https://github.com/wg/wrk."
)


@dataclass(frozen=True)
class Effort:
    """Rounds of known users at all contenders, and the seconds of every measurement."""

    rounds: int
    seconds: int
    kind_seconds: int


QUICK, FULL = Effort(rounds=2, seconds=6, kind_seconds=4), Effort(rounds=5, seconds=10, kind_seconds=6)


@dataclass(frozen=True)
class Load:
    """One measurement: what wrk saw, and the CPU seconds of the contender's processes and of wrk."""

    seen: Mapping[str, float]
    cpu_s: Mapping[str, float]
    generator_s: float

    @property
    def errors(self) -> int:
        """Requests refused (not 2xx), broken off, or later than wrk's timeout."""
        return int(self.seen["refused"] + self.seen["broken"] + self.seen["late"])

    def figures(self) -> dict[str, float]:
        """What the table shows of it."""
        answered = max(1.0, self.seen["requests"])
        return {
            "rps": (self.seen["requests"] - self.seen["refused"]) / self.seen["seconds"],
            **{name: self.seen[name] for name in ("p50_ms", "p95_ms", "p99_ms")}, "errors": self.errors,
            "cpu_ms_per_request": 1000 * sum(self.cpu_s.values()) / answered,
            "generator_share": self.generator_s / self.seen["seconds"],
        }


def main() -> None:
    """Print the table, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--rounds", type=int, help="of known users at all contenders")
    parser.add_argument("--seconds", type=int, help="of a round")
    parser.add_argument("--folder", type=Path, help="keep the Release here, and take the one that is here already")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit(GET_WRK)
    base = QUICK if arguments.quick else FULL
    effort = Effort(arguments.rounds or base.rounds, arguments.seconds or base.seconds, base.kind_seconds)
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmrec-bench-")))
        result = measure(folder, effort, [kind for kind in arguments.only if kind != "known"])
    print(json.dumps(result))


def measure(folder: Path, effort: Effort, kinds: Sequence[str]) -> dict[str, Any]:
    """All contenders on one Release, as the keys of the JSON line; the table is printed on the way."""
    hardware = _hardware()
    print(f"{hardware}\n{_versions()}\n", flush=True)
    release_uri = _release_uri(folder)
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(_start(name, release_uri, folder)) for name in CONTENDERS}
        print(f"{'':34}{'req/s':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'errors':>8}{'CPU ms/req':>12}")
        for contender in running.values():
            _ask(contender, "known", CLIENTS, WARM_UP_S)
        alone = {name: _ask(contender, "known", 1, effort.kind_seconds) for name, contender in running.items()}
        _print_rows("known users, 1 client", {name: load.figures() for name, load in alone.items()})
        rounds = _rounds(running, effort)
        figures = {name: _median([load.figures() for load in loads]) for name, loads in rounds.items()}
        _print_rows(f"known users, {CLIENTS} clients", figures)
        others = {kind: _kind(running, kind, effort.kind_seconds) for kind in kinds}
    ratios = _ratios(rounds)
    _print_ratios(ratios)
    shipped = figures["shipped"]
    return {
        "rps": shipped["rps"], **ratios, "cpu_ms_per_request": shipped["cpu_ms_per_request"],
        "errors": sum(load.errors for load in rounds["shipped"]), "hardware": hardware, "versions": _versions(),
        "known": figures, "known_1_client": {name: load.figures() for name, load in alone.items()},
        "cpu_ms_by_process": _by_process(rounds["shipped"]), "kinds": others,
    }


def _release_uri(folder: Path) -> str:
    pointer = folder / "work" / "releases" / "current.json"
    if not pointer.exists():
        publish_synthetic(folder, SERVE)
    return str(pointer)


def _start(name: str, release_uri: str, folder: Path) -> Contender:
    # Ray gives a replica with less than two CPUs one thread for its linear algebra; so has the plain process.
    config = UNGATHERED if name == "defaults" else {}
    return Contender(name, release_uri, folder, config=config, environment={"OMP_NUM_THREADS": "1"})


def _rounds(running: Mapping[str, Contender], effort: Effort) -> dict[str, list[Load]]:
    loads: dict[str, list[Load]] = {name: [] for name in running}
    for _ in range(effort.rounds):
        for name, contender in running.items():
            loads[name].append(_ask(contender, "known", CLIENTS, effort.seconds))
    return loads


def _kind(running: Mapping[str, Contender], kind: str, seconds: int) -> dict[str, dict[str, float]]:
    figures = {name: _ask(contender, kind, CLIENTS, seconds).figures() for name, contender in running.items()}
    _print_rows(f"{kind}, {CLIENTS} clients", figures)
    return figures


def _ask(contender: Contender, kind: str, clients: int, seconds: int) -> Load:
    command = [
        "wrk", "--threads=1", f"--connections={clients}", f"--duration={seconds}s", "--timeout=10s", "--script",
        str(SCRIPT), contender.url, "--", kind, contender.api_key, str(SERVE.users), str(SERVE.items),
    ]
    before, generator = contender.cpu_s(), _children_s()
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    generator_s, after = _children_s() - generator, contender.cpu_s()
    used = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    return Load(json.loads(told.splitlines()[-1]), used, generator_s)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _median(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in figures) for name in figures[0]}


def _ratios(rounds: Mapping[str, Sequence[Load]]) -> dict[str, float]:
    """As shipped over the others, each round with itself."""
    figures = {name: [load.figures() for load in loads] for name, loads in rounds.items()}

    def ratio(other: str, name: str) -> float:
        pairs = zip(figures["shipped"], figures[other], strict=True)
        return statistics.median(ours[name] / theirs[name] for ours, theirs in pairs)

    return {
        "rps_vs_defaults": ratio("defaults", "rps"), "p99_vs_defaults": ratio("defaults", "p99_ms"),
        "rps_vs_floor": ratio("floor", "rps"),
    }


def _by_process(loads: Sequence[Load]) -> dict[str, float]:
    """CPU milliseconds per request of those that use at least a hundredth of one."""
    requests = sum(load.seen["requests"] for load in loads)
    names = {name for load in loads for name in load.cpu_s}
    used = {name: 1000 * sum(load.cpu_s.get(name, 0.0) for load in loads) / requests for name in sorted(names)}
    return {name: round(value, 2) for name, value in used.items() if value >= 0.01}


def _print_rows(title: str, figures: Mapping[str, Mapping[str, float]]) -> None:
    for name, one in figures.items():
        print(
            f"{f'{title}: {name}':34}{one['rps']:8.0f}{one['p50_ms']:9.1f}{one['p95_ms']:9.1f}{one['p99_ms']:9.1f}"
            f"{one['errors']:8.0f}{one['cpu_ms_per_request']:12.2f}", flush=True,
        )


def _print_ratios(ratios: Mapping[str, float]) -> None:
    wanted = {"rps_vs_defaults": "at least 3", "p99_vs_defaults": "at most 1", "rps_vs_floor": "at least 0.5"}
    print()
    for name, value in ratios.items():
        print(f"as shipped, {name:26}{value:8.2f}   {wanted[name]}")


def _hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores of {name}, load {os.getloadavg()[0]:.1f} at the start"


def _versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("ray", "torch", "numpy", "fastapi", "uvicorn"))


if __name__ == "__main__":
    main()
