"""What breaks while the endpoint is under steady load: kills, a switch of Release, scaling; table, then JSON line.

    python benchmarks/drill.py [--quick] [--seconds N] [--rate N]

Ten minutes (`--quick`: one) of requests that leave on time and are never sent twice (steady.py). Meanwhile one replica
of each deployment is killed with SIGKILL, another Release is published, and a crowd comes, stays until replicas have
been added, and goes, whereupon they are taken away again.

A request is counted as failed whatever the reason: no connection, broken off, late, or any status but 200; answers
that name stages in `degraded` are answers, and are counted beside. Those that had left before the kill of an Ingress
replica and failed are counted apart, with the number of all that were then on their way. Events count as acknowledged
when their answer is 200, and as lost when the log on disk does not have them afterwards. The crowd's requests count
like all others, but for those that are refused with 429 or 503: the endpoint may say that it has enough.

Needs Linux, no packages beyond llmrec_ray[serve]. Dated copies of the output belong into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import Contender
from synthetic import DRILL, publish_again, publish_synthetic

from llmrec_ray.release import Release

STEADY = Path(__file__).with_name("steady.py")
DEPLOYMENTS = ("Retriever", "Reranker", "Encoder", "Ingress")
OVERLOAD = ("status 429", "status 503")
FEWEST = 1
"""Replicas of each inner deployment when nothing is to be done."""
POLL_S = 0.2
PROXY_S = 1.0
"""How long the proxy may go on sending requests to an Ingress that has died; they count as inside it."""
# Serve's autoscaler hears of the load every ten seconds unless told otherwise.
HEAR_OFTEN = {f"RAY_SERVE_{who}_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1" for who in ("REPLICA", "HANDLE")}


@dataclass(frozen=True)
class Pace:
    """How long everything takes, seconds, and how many requests a second."""

    seconds: float
    rate: float
    upscale_s: float
    downscale_s: float
    recovery_s: float
    """Longest wait for a killed replica's successor, and for a switch."""
    crowd_s: float
    crowd_clients: int = 64


FULL = Pace(seconds=600, rate=40, upscale_s=10, downscale_s=40, recovery_s=60, crowd_s=90)
QUICK = Pace(seconds=60, rate=25, upscale_s=1, downscale_s=4, recovery_s=30, crowd_s=25)


@dataclass
class Log:
    """What was done and when: unix seconds, in order."""

    moments: list[tuple[float, str]] = field(default_factory=list)
    killed_ingress_at: list[tuple[float, float]] = field(default_factory=list)
    """From just before each kill until the process, which dies a moment later, had let go of its connections."""
    scaled: dict[str, list[int]] = field(default_factory=dict)
    switch: dict[str, Any] = field(default_factory=dict)

    def note(self, what: str) -> float:
        """Write down what is done now."""
        now = time.time()
        self.moments.append((now, what))
        print(f"{now - self.moments[0][0]:7.1f} s  {what}", flush=True)
        return now


def main() -> None:
    """Print the table, then the JSON line; exit 1 when something failed that must not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute instead of ten")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rate", type=float, help="requests a second")
    arguments = parser.parse_args()
    base = QUICK if arguments.quick else FULL
    given = {name: getattr(arguments, name) for name in ("seconds", "rate") if getattr(arguments, name) is not None}
    with tempfile.TemporaryDirectory(prefix="llmrec-drill-") as folder:
        result = run_drill(Path(folder), Pace(**{**vars(base), **given}))
    print_table(result)
    print(json.dumps(result))
    sys.exit(1 if result["failed"] or result["events_lost"] else 0)


def run_drill(folder: Path, pace: Pace) -> dict[str, Any]:
    """The keys of the JSON line; `folder` gets everything that is written."""
    release = publish_synthetic(folder, DRILL)
    config = _config(pace)
    pointer = str(folder / "work" / "releases" / "current.json")
    log, steady, crowd = Log(), folder / "steady.jsonl", folder / "crowd.jsonl"
    with Contender("shipped", pointer, folder, config=config, environment=HEAR_OFTEN) as endpoint:
        log.note("steady load begins")
        generator = _send(endpoint, steady, pace.seconds, f"--rate={pace.rate}")
        try:
            _disturb(endpoint, folder, release, pace, log, crowd)
            _wait_for_end(generator, pace)
        finally:
            generator.kill()
        log.note("steady load ends")
        acknowledged, kept = _events(steady, crowd, events_folder=endpoint.events_folder)
    return _summary(_read(steady), _read(crowd), log) | {
        "events_acknowledged": len(acknowledged), "events_lost": len(acknowledged - kept),
    }


def print_table(result: Mapping[str, Any]) -> None:
    """For people."""
    for name, value in result.items():
        print(f"{name:28}{value}")


def _config(pace: Pace) -> dict[str, Any]:
    """The defaults, with two Ingress replicas to begin with and scaling as fast as the drill is short."""
    scaling = {"upscale_delay_s": pace.upscale_s, "downscale_delay_s": pace.downscale_s}
    inner = {"min_replicas": FEWEST, "max_replicas": 2, "target_ongoing_requests": 1.5, **scaling}
    two = {"min_replicas": 2, "max_replicas": 2}
    return {"ingress": two, "encoder": inner, "retriever": inner, "reranker": inner}


def _send(endpoint: Contender, out: Path, seconds: float, how: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, str(STEADY), endpoint.url, endpoint.api_key, how, f"--seconds={seconds}",
        f"--users={DRILL.users}", f"--items={DRILL.items}", f"--out={out}",
    ]
    return subprocess.Popen(command)


def _disturb(endpoint: Contender, folder: Path, release: Release, pace: Pace, log: Log, crowd: Path) -> None:
    """Everything that happens, evenly spread over the time: four kills, a switch, a crowd."""
    start, share = time.monotonic(), pace.seconds / (len(DEPLOYMENTS) + 3)
    for number, deployment in enumerate(DEPLOYMENTS):
        _sleep_until(start + (number + 0.5) * share)
        _kill_one(endpoint, deployment, pace, log)
    _sleep_until(start + (len(DEPLOYMENTS) + 0.5) * share)
    other = publish_again(folder, release, popularity=0.3)
    log.switch = {"from": release.id, "to": other.id, "published": log.note(f"Release {other.id} is published")}
    _sleep_until(start + (len(DEPLOYMENTS) + 1.25) * share)
    _crowd(endpoint, crowd, pace, log)


def _kill_one(endpoint: Contender, deployment: str, pace: Pace, log: Log) -> None:
    before = endpoint.replicas(deployment)
    at = time.time()  # before the kill: what it breaks has ended by the time that it returns
    os.kill(before[0], signal.SIGKILL)
    log.note(f"a replica of {deployment} is killed ({len(before)} before)")
    if deployment == "Ingress":
        _until(lambda: not _has_files(before[0]), 2.0)
        log.killed_ingress_at.append((at, time.time() + PROXY_S))
    if _until(lambda: len(endpoint.replicas(deployment)) >= len(before), pace.recovery_s):
        log.note(f"{deployment} has {len(before)} again")


def _crowd(endpoint: Contender, out: Path, pace: Pace, log: Log) -> None:
    """Replicas of the Retriever before the crowd, at most while it is there, and after it has gone.

    The kills and the switch may have added one for a while; the crowd comes when it has been taken away.
    """
    rested = _until(lambda: len(endpoint.replicas("Retriever")) == FEWEST, pace.downscale_s + pace.recovery_s)
    before = len(endpoint.replicas("Retriever"))
    if not rested:
        raise RuntimeError(f"The Retriever has {before} replicas still, so a crowd could not add any.")
    log.note(f"a crowd comes; Retriever replicas: {before}")
    crowd = _send(endpoint, out, pace.crowd_s, f"--clients={pace.crowd_clients}")
    most = before
    while crowd.poll() is None:
        most = max(most, len(endpoint.replicas("Retriever")))
        time.sleep(POLL_S)
    log.note(f"the crowd has gone; most Retriever replicas: {most}")
    _until(lambda: len(endpoint.replicas("Retriever")) <= before, pace.downscale_s + pace.recovery_s)
    after = len(endpoint.replicas("Retriever"))
    log.note(f"Retriever replicas: {after}")
    log.scaled = {"Retriever": [before, most, after]}


def _wait_for_end(generator: subprocess.Popen[bytes], pace: Pace) -> None:
    if generator.wait(pace.seconds + pace.recovery_s):
        raise RuntimeError(f"The load generator ended with {generator.returncode}.")


def _summary(steady: Sequence[Mapping[str, Any]], crowd: Sequence[Mapping[str, Any]], log: Log) -> dict[str, Any]:
    shed = [one for one in crowd if one["outcome"] in OVERLOAD]
    answers = [*steady, *(one for one in crowd if one["outcome"] not in OVERLOAD)]
    failures = [one for one in answers if one["outcome"] != "ok"]
    inside = [one for one in failures if _on_its_way(one, log.killed_ingress_at)]
    failed = [one for one in failures if one not in inside]
    seconds = sorted(one["seconds"] for one in steady)
    degraded = Counter(what for one in answers for what in one.get("degraded", ()))
    first = min(one["left"] for one in steady)
    return {
        "requests": len(answers), "failed": len(failed), "failed_in_killed_ingress": len(inside),
        "on_their_way_at_the_kill": sum(_on_its_way(one, log.killed_ingress_at) for one in answers),
        "failures": dict(Counter(f"{one['kind']}: {one['outcome']}" for one in failures)),
        "failed_at_s": [round(one["left"] - first, 2) for one in failed][:20],
        "refused_of_the_crowd": len(shed), "degraded": dict(degraded),
        "p50_ms": round(1000 * _quantile(seconds, 0.5), 1), "p99_ms": round(1000 * _quantile(seconds, 0.99), 1),
        "switch": _switch(answers, log.switch), "retriever_replicas": log.scaled["Retriever"],
    }


def _on_its_way(one: Mapping[str, Any], moments: Sequence[tuple[float, float]]) -> bool:
    return any(one["left"] <= gone and at <= one["left"] + one["seconds"] for at, gone in moments)


def _has_files(pid: int) -> bool:
    try:
        return any(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _switch(answers: Sequence[Mapping[str, Any]], switch: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds from publishing to the first answer of the new Release, and to the last of the old."""
    ends = [(one["left"] + one["seconds"], one["release"]) for one in answers if "release" in one]
    new = [end for end, release in ends if release == switch["to"]]
    old = [end for end, release in ends if release == switch["from"]]
    others = {release for _, release in ends} - {switch["from"], switch["to"]}
    published = switch["published"]
    return {
        "first_new_s": round(min(new) - published, 2) if new else None,
        "last_old_s": round(max(old) - published, 2) if old else None, "other_releases": sorted(others),
    }


def _events(*files: Path, events_folder: Path) -> tuple[set[str], set[str]]:
    """Ids that were acknowledged, and those that the log on disk has."""
    sent = (one for file in files for one in _read(file))
    acknowledged = {one["event_id"] for one in sent if one["outcome"] == "ok" and "event_id" in one}
    return acknowledged, {event["event_id"] for event in _lines((events_folder / "log").glob("*.jsonl"))}


def _read(file: Path) -> list[dict[str, Any]]:
    return [*_lines([file])]


def _lines(files: Iterator[Path] | Sequence[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        for line in file.read_text().splitlines():
            yield json.loads(line)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(POLL_S)
    return False


if __name__ == "__main__":
    main()
