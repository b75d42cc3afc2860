"""Joining a cluster that is not there. In processes of their own, since the session's Ray is connected in this one."""

import subprocess
import sys

import pytest

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
