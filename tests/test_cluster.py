"""Joining a cluster that is not there, in processes of their own, since the session's Ray is connected in this one; and
what SIGTERM does while one is connected."""

import os
import signal
import subprocess
import sys

import pytest

from llmrec_ray.cluster import _ended_by_sigterm
from llmrec_ray.train.run import _interruptible

SCRIPT = """
import sys
from llmrec_ray.cluster import connected
from llmrec_ray.errors import ClusterError
try:
    with connected():
        pass
except ClusterError as error:
    sys.stdout.write(str(error))
"""


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense://x"])
def test_a_cluster_that_does_not_answer_is_named_with_the_remedy(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Could not reach or start the Ray cluster at RAY_ADDRESS={address}: ")
    assert result.stdout.endswith("Check `ray status`, or unset RAY_ADDRESS to start a private Ray.")


def _told() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _told_while_ray_waits() -> None:
    try:
        _told()
    except SystemExit:
        raise SystemExit(1) from None  # as Ray's core does


def _told_in_training() -> None:
    with _interruptible():
        _told_while_ray_waits()


@pytest.mark.parametrize("waiting", [_told, _told_while_ray_waits, _told_in_training])
def test_sigterm_ends_the_process_with_its_own_status_wherever_it_waits(waiting):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, _ended_by_sigterm():
        waiting()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("other", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_a_process_without_sigterm_stays_what_it_is(other):
    with pytest.raises((KeyboardInterrupt, SystemExit)) as ended, _ended_by_sigterm():
        raise other
    assert ended.value is other
