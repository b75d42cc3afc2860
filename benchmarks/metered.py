"""One command in a session of its own: how long it took, its CPU time, and the most memory of all its processes.

Memory is the sum of the proportional set sizes (PSS) of every process of the session, sampled from /proc: pages that
several processes share, an object store's among them, count once, pages of mapped files count too. Needs Linux.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Metered", "metered"]

SAMPLE_S = 0.2
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LAST_WORDS = 3000
LONGEST_S = 86_400


@dataclass(frozen=True)
class Metered:
    """What one run took: seconds, CPU seconds of all processes, bytes at the highest sample; and what it printed."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    stdout: str


def metered(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Metered:
    """Run a command to its end. Raises RuntimeError with its last words when it fails; nothing of it is left behind."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True,
            env=os.environ | dict(environment or {}),
        )
        meter = _Meter(process.pid)
        meter.start()
        try:
            code = process.wait(LONGEST_S)  # without an end Ctrl-C would not wake it: Polars' handler restarts the call
            wall_s = time.perf_counter() - start
        finally:
            meter.stop()
            _end(process.pid)
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with {code}: {_text(log)[-LAST_WORDS:]}")
        return Metered(wall_s, sum(meter.cpu_s.values()), meter.peak_bytes, _text(out))


class _Meter(threading.Thread):
    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self._session, self._ended = session, threading.Event()
        self.peak_bytes = 0
        self.cpu_s: dict[int, float] = {}

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            total = 0
            for pid in _processes(self._session):
                total += _pss_bytes(pid)
                self.cpu_s[pid] = max(_cpu_s(pid), self.cpu_s.get(pid, 0.0))
            self.peak_bytes = max(self.peak_bytes, total)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _processes(session: int) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields and int(fields[3]) == session:
            yield int(folder.name)


def _stat(pid: int) -> list[str]:
    """What /proc/PID/stat says after the name, which may hold spaces: state, parent, group, session, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _cpu_s(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S if fields else 0.0


def _end(session: int) -> None:
    for pid in _processes(session):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _text(handle: object) -> str:
    handle.seek(0)  # type: ignore[attr-defined]
    return handle.read().decode(errors="replace")  # type: ignore[attr-defined, no-any-return]
