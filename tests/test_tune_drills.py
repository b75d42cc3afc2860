"""Campaigns that are killed, stopped, robbed of a machine or of their disk, and go on as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmrec_ray.config import Recipe
from llmrec_ray.tune.records import TrialRecord
from tests.full_disk import try_on_small_disk
from tests.test_cluster_drills import head, processes_of_session  # noqa: F401  head is a fixture
from tests.tune_campaigns import (
    EPOCHS,
    ROOT,
    TRIALS,
    Campaign,
    Moment,
    between_trials,
    files_of,
    first_trial_begins,
    mid_training,
    slow_board,
    table,
    trial_folder,
    two_in_training,
)

pytestmark = pytest.mark.timeout(600)
LONG = pytest.mark.campaign
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""They outlive a raylet that was killed by some two minutes, in which they look for its cluster."""
RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("campaigns")


@pytest.fixture(scope="module")
def recipe(folder) -> Recipe:
    return slow_board(folder)


@pytest.fixture(scope="module")
def whole(recipe, folder) -> list[TrialRecord]:
    """The records of a campaign that nobody disturbed."""
    campaign = Campaign.of(recipe, folder, "whole")
    campaign.run()
    return campaign.records()


@pytest.fixture
def campaign(recipe, folder, request) -> Campaign:
    return Campaign.of(recipe, folder, re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:60])


def check_goes_on(campaign: Campaign, whole: Sequence[TrialRecord], *overrides: str) -> dict[str, Any]:
    """--resume brings a stopped campaign to where the undisturbed one came, and repeats nothing."""
    before = campaign.records()
    over = [record for record in before if record.status != "running"]
    files = {record.number: files_of(trial_folder(campaign, record.number)) for record in over}
    result = campaign.run(*overrides, resume=True)
    after = campaign.records()
    assert table(after) == table(whole)
    for record in before:
        kept = record.epochs if record in over else record.epochs[:-1]  # the newest checkpoint may not be committed
        assert after[record.number].epochs[: len(kept)] == kept, "epochs that were over are not trained again"
    for record in over:
        assert after[record.number] == record
        assert files_of(trial_folder(campaign, record.number)) == files[record.number]
    assert result["metrics"]["trials"] == len(whole)
    return result


@pytest.mark.drill
def test_a_campaign_that_nobody_disturbs_trains_every_trial_to_the_end(whole):
    assert [record.number for record in whole] == [*range(TRIALS)]
    assert all(record.status == "finished" and len(record.epochs) == EPOCHS for record in whole)
    assert len({json.dumps(record.settings) for record in whole}) == TRIALS


@pytest.mark.parametrize(("moment", "at_once"), [
    pytest.param(first_trial_begins, 1, marks=pytest.mark.drill, id="first_epoch"),
    pytest.param(mid_training, 1, marks=pytest.mark.drill, id="mid_training"),
    pytest.param(between_trials, 1, marks=LONG, id="between_trials"),
    pytest.param(two_in_training, 2, marks=LONG, id="two_at_once"),
])
def test_a_driver_that_is_killed_in_mid_campaign_goes_on(campaign, whole, recipe, folder, moment: Moment, at_once):
    override = f"tune.max_concurrent={at_once}"
    if at_once > 1:  # trials that share the cores sum in another order
        undisturbed = Campaign.of(recipe, folder, f"whole-{at_once}")
        undisturbed.run(override)
        whole = undisturbed.records()
    with campaign.started(override) as running:
        running.wait_for(moment)
        assert running.end(signal.SIGKILL) == -signal.SIGKILL
        left = processes_of_session(running.process.pid)
        assert [process for process in left if process.split(maxsplit=1)[1] not in RAYS_AGENTS] == []
    check_goes_on(campaign, whole, override)


@LONG
def test_a_campaign_goes_on_however_often_it_is_killed(campaign, whole):
    for n in range(1, TRIALS):
        with campaign.started(resume=n > 1) as running:
            running.wait_for(lambda records, n=n: len(records) == n and len(records[-1].epochs) >= 2)
            running.end(signal.SIGKILL)
    check_goes_on(campaign, whole)


@LONG
def test_a_campaign_that_is_over_is_only_shown_again(campaign, whole):
    first = campaign.run()
    files = files_of(campaign.root / "records") | files_of(campaign.root / "trials")
    again = check_goes_on(campaign, whole)
    assert files_of(campaign.root / "records") | files_of(campaign.root / "trials") == files
    assert again["metrics"]["overrides"] == first["metrics"]["overrides"]


@pytest.mark.parametrize(("how", "status"), [
    pytest.param(signal.SIGINT, 130, marks=pytest.mark.drill, id="ctrl_c"),
    pytest.param(signal.SIGTERM, 143, marks=LONG, id="sigterm"),
])
def test_a_campaign_that_is_stopped_says_how_to_go_on_and_does(campaign, whole, how, status):
    with campaign.started() as running:
        running.wait_for(mid_training)
        assert running.end(how) == status, running.said()
        command = f"llmrec tune --resume {campaign.name} workspace={campaign.root.parents[1]}"
        assert f"This goes on with what is in {campaign.root}: {command}\n" in running.said()
        assert "Traceback" not in running.said()
        assert processes_of_session(running.process.pid) == []
    check_goes_on(campaign, whole)


@LONG
def test_trials_that_outnumber_the_slots_of_a_small_cluster_take_turns(campaign, whole):
    campaign.run("num_cpus=1", "tune.max_concurrent=4")
    assert table(campaign.records()) == table(whole)


@pytest.mark.drill
def test_a_cluster_too_small_for_one_trial_is_refused_at_once(campaign):
    started = time.monotonic()
    with campaign.started("num_cpus=1", "train.num_workers=2", "train.sharding=ddp") as running:
        assert running.wait() == 1
        assert running.said().splitlines()[-1] == (
            "llmrec tune: Each trial needs 2 CPUs (train.num_workers), but Ray has 1: set train.num_workers lower, or "
            "join a larger cluster."
        )
    assert time.monotonic() - started < 60 and campaign.records() == []


LOSE_A_NODE = """
import sys
import threading
import time

import ray
from ray.cluster_utils import Cluster

from llmrec_ray.cli.main import run
from llmrec_ray.tune.records import Records
from tests.tune_campaigns import two_in_training

root, command = sys.argv[1], sys.argv[2:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
lost = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)

def lose_it():
    records = Records(root)
    while not two_in_training(records.load()):
        time.sleep(0.02)
    cluster.remove_node(lost)
    sys.stderr.write("a node is gone\\n")

threading.Thread(target=lose_it, daemon=True).start()
status = run(command)
ray.shutdown()
cluster.shutdown()
sys.exit(status)
"""


@LONG
def test_a_campaign_that_loses_a_node_goes_on_with_what_is_left(campaign, whole):
    _, _, _, *command = campaign.command("tune.max_concurrent=2")
    done = subprocess.run(
        [sys.executable, "-c", LOSE_A_NODE, str(campaign.root), *command], cwd=ROOT, text=True,
        capture_output=True, timeout=400, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and "a node is gone" in done.stderr, done.stderr[-6000:]
    assert table(campaign.records()) == table(whole)


class Jobs:
    """`ray job …` against a running cluster."""

    def __init__(self, environment: Mapping[str, str], dashboard: str) -> None:
        self._environment, self._dashboard = environment, dashboard

    def call(self, verb: str, *arguments: str) -> str:
        command = [RAY, "job", verb, "--address", self._dashboard, *arguments]
        done = subprocess.run(command, env=dict(self._environment), capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    def wait_until_nothing_is_held(self, timeout_s: float = 60) -> None:
        """Workers of a stopped job have given their CPUs back."""
        command = [RAY, "list", "placement-groups", "--address", self._dashboard, "--format", "json"]
        deadline = time.monotonic() + timeout_s
        while True:
            done = subprocess.run(command, env=dict(self._environment), capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr[-4000:]
            held = [group for group in json.loads(done.stdout or "[]") if group["state"] != "REMOVED"]
            if not held:
                return
            assert time.monotonic() < deadline, held
            time.sleep(1.0)


@LONG
def test_a_submitted_campaign_is_stopped_and_goes_on_as_another_job(campaign, whole, head):  # noqa: F811
    jobs = Jobs(*head)
    jobs.call("submit", "--no-wait", "--submission-id", "first", "--", *campaign.command())
    for records in polled(campaign, timeout_s=180):
        if mid_training(records):
            break
    jobs.call("stop", "first")
    assert "Job 'first' was stopped" in jobs.call("status", "first")
    jobs.wait_until_nothing_is_held()
    before = {record.number: record for record in campaign.records() if record.status == "finished"}
    said = jobs.call("submit", "--submission-id", "second", "--", *campaign.command(resume=True))
    assert "Job 'second' succeeded" in jobs.call("status", "second")
    result = next(json.loads(line) for line in said.splitlines() if line.startswith('{"uri"'))
    assert result["metrics"]["trials"] == TRIALS
    after = campaign.records()
    assert table(after) == table(whole)
    assert all(after[number] == record for number, record in before.items())


def polled(campaign: Campaign, *, timeout_s: float) -> Iterator[list[TrialRecord]]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        yield campaign.records()
        time.sleep(0.05)
    pytest.fail(f"that moment never came: {campaign.records()}")


@LONG
def test_a_disk_that_fills_up_stops_a_campaign_which_goes_on_when_there_is_room(tmp_path):
    report = try_on_small_disk("search", tmp_path, size_kb=30_000, timeout_s=400)
    for name in ("full", "nearly"):
        found = report[name]
        assert re.match(r"DiskFullError: .* (is full \(|has 0\.\d MB free)", found["said"]), found
        assert found["failed"] == [], "a full disk is not the trials' fault"
        assert (found["later"], found["statuses"]) == ("nothing", ["finished"] * 2), found
    assert ": llmrec tune --resume full workspace=" in report["stderr"] and "Traceback" not in report["stderr"]


CHECKED = ("tune.trials=2", "tune.fresh_seeds=[101, 102]", "tune.score_test=true")


def finished_seeds(campaign: Campaign) -> list[Path]:
    """Records of what was trained again and judged."""
    return sorted((campaign.root / "confirm").glob("*-*.json"))


@contextlib.contextmanager
def confirming(campaign: Campaign) -> Iterator[Any]:
    """A campaign that is retraining its winner on fresh seeds."""
    with campaign.started(*CHECKED) as running:
        running.wait_for(lambda _: any(finished_seeds(campaign)), timeout_s=240)
        yield running


@LONG
def test_a_driver_that_is_killed_while_the_winner_is_checked_goes_on_and_scores_the_test_split_once(campaign):
    scorings = campaign.root.parents[1] / "evaluations.jsonl"
    before = lines_of(scorings)
    with confirming(campaign) as running:
        running.end(signal.SIGKILL)
    judged = {path.name: path.read_bytes() for path in finished_seeds(campaign)}
    campaign.run(*CHECKED, resume=True)
    after = {path.name: path.read_bytes() for path in finished_seeds(campaign)}
    assert judged.items() <= after.items(), "what was judged is not trained again"
    assert {"winner-101.json", "winner-102.json"} <= after.keys()
    campaign.run(*CHECKED, resume=True)
    [line] = lines_of(scorings)[len(before):]
    assert json.loads(line)["split"] == "test"


FINALS = ("tune.trials=2", "tune.finalists=2", "tune.finalist_seeds=[11, 12]")


@LONG
def test_a_driver_that_is_killed_between_finalists_goes_on_with_those_that_are_left(campaign):
    def measured() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (campaign.root / "finals").glob("*.json")}

    with campaign.started(*FINALS) as running:
        running.wait_for(lambda _: bool(measured()), timeout_s=240)
        running.end(signal.SIGKILL)
    before = measured()
    assert 0 < len(before) < 4
    found = campaign.run(*FINALS, resume=True)
    assert before.items() <= measured().items(), "what was measured is not trained again"
    assert sorted(measured()) == ["trial-0-11.json", "trial-0-12.json", "trial-1-11.json", "trial-1-12.json"]
    means = {
        trial: sum(json.loads(measured()[f"trial-{trial}-{seed}.json"])["value"] for seed in (11, 12)) / 2
        for trial in (0, 1)
    }
    best = max(means, key=means.__getitem__)
    assert (found["metrics"]["winner"], found["metrics"]["finals"]["value"]) == (best, pytest.approx(means[best]))
    assert campaign.run(*FINALS, resume=True)["uri"] == found["uri"]


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
