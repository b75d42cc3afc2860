"""A contender in a session of its own: started, asked for its CPU time and the processes of its replicas, stopped.

Reads /proc, so it needs Linux; it knows no load and no figures.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

__all__ = ["Contender", "free_port"]

CONTENDERS_FILE = Path(__file__).with_name("contenders.py")
REPLICA = "ServeReplica:llmrec:"
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Contender:
    """One of `contenders.CONTENDERS`, ready when the constructor returns; use it in a `with` block."""

    def __init__(
        self, name: str, release_uri: str, folder: Path, *, config: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """config: keys of the `serve` section. Raises RuntimeError with the process's last words if it ends."""
        self.name, self.folder = name, folder
        self._log = folder / f"{name}.log"
        command = [
            sys.executable, str(CONTENDERS_FILE), name, "--release", release_uri, "--folder", str(folder),
            "--port", str(free_port()), "--config", json.dumps(dict(config or {})),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                env=os.environ | dict(environment or {}),
            )
        try:
            answer = self._announced()
        except BaseException:
            self.stop()
            raise
        self.url, self.api_key = answer["url"], answer["api_key"]

    @property
    def events_folder(self) -> Path:
        """Where its event log is."""
        return self.folder / f"events-{self.name}"

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds that its processes have used so far, by what they are; those that have ended are not counted."""
        used: defaultdict[str, float] = defaultdict(float)
        for pid, title in self._processes():
            used[_role(title)] += _cpu_s(pid)
        return used

    def replicas(self, deployment: str) -> list[int]:
        """Process ids of the replicas of a deployment, oldest first."""
        return sorted(pid for pid, title in self._processes() if f"{REPLICA}{deployment}" in title)

    def stop(self) -> None:
        """End it in order, and whatever of its session is left after STOP_TIMEOUT_S by force."""
        assert self._process.stdin is not None and self._process.stdout is not None, "no pipes. This is a bug."
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.stdout.close()
        for pid, _ in self._processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _announced(self) -> dict[str, str]:
        """The first line of JSON on its standard output."""
        assert self._process.stdout is not None, "no pipe. This is a bug."
        deadline = time.monotonic() + START_TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                line = self._process.stdout.readline()
                if line.startswith(b'{"url"'):
                    answer: dict[str, str] = json.loads(line)
                    return answer
                if not line:
                    break
        raise RuntimeError(f"{self.name} did not start: {self._log.read_text(errors='replace')[-2000:]}")

    def _processes(self) -> Iterator[tuple[int, str]]:
        """Process id and command line of everything in its session."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                session, title = _fields(int(folder.name))[3], (folder / "cmdline").read_text(errors="replace")
            except (OSError, IndexError):
                continue
            if int(session) == self._process.pid:
                yield int(folder.name), title.replace("\0", " ")


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _fields(pid: int) -> list[str]:
    """What /proc/PID/stat says after the name, which may hold spaces: state, parent, group, session, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _cpu_s(pid: int) -> float:
    try:
        fields = _fields(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _role(title: str) -> str:
    """A replica's deployment, a Ray process's class, or `other`; Ray adds the running method to a title."""
    if found := re.search(rf"{REPLICA}(\w+)", title):
        return found[1]
    if "bin/haproxy" in title:
        return "HAProxy"
    found = re.match(r"ray::(\w+)", title)
    return found[1] if found else "other"
