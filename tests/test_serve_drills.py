"""A minute of steady load on a real endpoint while replicas are killed, the Release is switched and a crowd comes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.drill, pytest.mark.timeout(400)]

DRILL = Path(__file__).parent.parent / "benchmarks" / "drill.py"


@pytest.fixture(scope="module")
def drill() -> dict:
    """What `benchmarks/drill.py --quick` says; one run for all tests."""
    run = subprocess.run([sys.executable, str(DRILL), "--quick"], capture_output=True, text=True, timeout=390)
    sys.stdout.write(run.stdout)  # what happened when: shown when a test fails
    lines = run.stdout.splitlines()
    assert lines and lines[-1].startswith("{"), run.stdout + run.stderr
    return json.loads(lines[-1])


def test_killing_inner_replicas_and_switching_the_release_fails_no_request(drill):
    assert drill["requests"] > 1000
    assert drill["failed"] == 0, drill["failures"]


def test_killing_an_ingress_replica_fails_at_most_what_was_on_its_way_then(drill):
    assert drill["failed_in_killed_ingress"] <= 25 * 2  # a second or two of the steady load


def test_every_acknowledged_event_is_on_disk_afterwards(drill):
    assert drill["events_acknowledged"] > 100
    assert drill["events_lost"] == 0


def test_every_answer_after_a_switch_is_of_the_new_release(drill):
    switch = drill["switch"]
    assert switch["other_releases"] == []
    assert switch["first_new_s"] is not None
    assert switch["last_old_s"] - switch["first_new_s"] < 5


def test_retriever_replicas_are_added_for_a_crowd_and_taken_away_after_it(drill):
    before, most, after = drill["retriever_replicas"]
    assert before < most
    assert after < most


def test_answers_without_a_killed_stage_say_so(drill):
    assert {"encoder", "retriever", "reranker"} & set(drill["degraded"])
