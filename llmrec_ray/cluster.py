"""Starting a local Ray or joining a cluster, with the environment that Ray Serve reads at start.

This module knows nothing about recommending; `model`, `signals` and `recommend` may not import it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping

import ray

from llmrec_ray.errors import ClusterError

__all__ = ["SERVE_FLAGS", "connected", "set_serve_flags"]

logger = logging.getLogger(__name__)

SERVE_FLAGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Ten seconds by default, too long for autoscaling to keep up with load.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    # An hour by default, so long as a client that sends nothing could hold a connection.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
}
LOCAL_FLAGS = {
    # A replica waits this long for load balancers to forget it; on one machine the only one is gone by then.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
}
HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}
MIN_CPUS = 4
KILLED = 128
"""What shells add to the number of the signal that ended a process."""
ANSWER_TIMEOUT_S = 10.0
QUIET_LOGGERS = {
    "ray.data": logging.ERROR,  # it warns that its progress bars are off; ours say the same
    "ray.serve": logging.WARNING,
    "ray.train": logging.WARNING,
    "ray.tune": logging.WARNING,
}
QUIET = {
    "RAY_DATA_LOG_LEVEL": "ERROR",  # read when ray.data is imported, which may be later than `_quieten`
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; the old one warns at every start
}


def set_serve_flags() -> None:
    """Put the Serve flags into the environment; values that are already there win. Serve reads them at start."""
    _set_defaults(SERVE_FLAGS | QUIET)


@contextlib.contextmanager
def connected(num_cpus: int | None = None, *, dashboard: bool = False) -> Iterator[None]:
    """Ray for the length of the block.

    Uses the connection that exists; else joins the cluster that RAY_ADDRESS names (as `ray job submit` sets it);
    else starts a private Ray on this machine with `num_cpus` logical CPUs, by default its cores and at least
    four, since waiting actors hold a logical CPU too. Leaves when the block ends, unless Ray was connected
    before. SIGTERM ends the block and the process, with the status 143. Without debug logging the processes' own logs
    stay in Ray's log folder; errors come back as exceptions.
    Raises ClusterError when the cluster does not answer.
    """
    if ray.is_initialized():
        yield
        return
    set_serve_flags()
    address = os.environ.get("RAY_ADDRESS")
    verbose = logger.isEnabledFor(logging.DEBUG)
    try:
        if address:
            _check_answers(address)
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=verbose)
        else:
            _set_defaults(LOCAL_FLAGS | _free_ports(HAPROXY_PORTS))
            ray.init(
                address="local", num_cpus=num_cpus or max(MIN_CPUS, os.cpu_count() or 1),
                include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=verbose,
            )
    except (OSError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a local Ray"
        raise ClusterError(f"Could not reach or start {where}: {error}. Check `ray status`, or unset RAY_ADDRESS "
                           "to start a private Ray.") from error
    if not verbose:
        _quieten()
    with _ended_by_sigterm():
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit. So does Ray 2.60's handler, which aborts the process when its end takes 3 seconds; and
    what is raised while Ray waits comes out of it with the status 1, and out of training as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told: list[int] = []

    def end(number: int, _frame: object) -> None:
        told.append(number)
        sys.exit(KILLED + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as ended:
        raise (SystemExit(KILLED + told[0]) if told else ended) from None
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: one that was set below Python


def _check_answers(address: str) -> None:
    """Raise OSError when nothing listens at host:port: Ray itself would end the process without an exception."""
    if found := re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d+)", address):
        socket.create_connection((found[1], int(found[2])), timeout=ANSWER_TIMEOUT_S).close()


def _quieten() -> None:
    for name, level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(level)


def _set_defaults(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _free_ports(wanted: Mapping[str, int]) -> dict[str, str]:
    """Another port for each that is taken, so that the proxies of two private Rays can share a machine."""
    return {name: str(port if _is_free(port) else _any_free_port()) for name, port in wanted.items()}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
