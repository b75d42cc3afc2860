"""Drills that need a cluster of their own: job submission, three raylets, and the demo as a stranger starts it."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llmrec_ray.cluster import HAPROXY_PORTS, SERVE_FLAGS, _free_ports
from tests.boards import board_recipe
from tests.test_end_to_end import free_port, post

pytestmark = [pytest.mark.drill, pytest.mark.timeout(600)]

RAY = str(Path(sys.executable).parent / "ray")
LLMREC = [sys.executable, "-m", "llmrec_ray"]


@pytest.fixture
def board_file(board_folder, tiny_encoder, tmp_path):
    recipe = board_recipe(
        board_folder, workspace=str(tmp_path / "work"), encoder={"model": str(tiny_encoder)},
        train={"epochs": 3}, serve={"port": free_port()},
    )
    path = tmp_path / "board.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return path


@pytest.fixture
def head():
    """A Ray head with a dashboard, in the foreground of a process of its own; yields its environment and address."""
    port, dashboard = free_port(), free_port()
    environment = own_proxy() | SERVE_FLAGS | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    command = [
        RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=6",
        f"--dashboard-agent-listen-port={free_port()}", "--include-dashboard=true", "--disable-usage-stats",
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/api/version", process)
        yield environment, f"http://127.0.0.1:{dashboard}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def own_proxy() -> dict[str, str]:
    """An environment in which Serve's proxy takes ports that are free on this machine."""
    return dict(os.environ) | _free_ports(HAPROXY_PORTS)


def wait_for(url: str, process: subprocess.Popen, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the process ended with {process.returncode}"
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"{url} did not answer within {timeout_s} s")


def test_serve_deploy_starts_the_application_that_serve_config_yaml_describes(head, board_file, tmp_path):
    environment, dashboard = head
    subprocess.run([*LLMREC, "demo", "--no-serve", "--config", str(board_file)], check=True)
    deployed = yaml.safe_load((Path(__file__).parent.parent / "serve_config.yaml").read_text())
    port = deployed["http_options"]["port"] = free_port()
    deployed["applications"][0]["args"] |= {
        "release_uri": str(tmp_path / "work" / "releases" / "current.json"),
        "events_folder": str(tmp_path / "work" / "events"),
        "keys": [{"name": "test", "sha256": hashlib.sha256(b"a-key-for-this-test").hexdigest()}],
    }
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(deployed))
    serve = str(Path(sys.executable).parent / "serve")
    command = [serve, "deploy", str(tmp_path / "serve.yaml"), "--address", dashboard]
    subprocess.run(command, env=environment, check=True)
    answer = until_ready(f"http://127.0.0.1:{port}")
    assert answer["release"]
    body = post(f"http://127.0.0.1:{port}/v1/recommend", "a-key-for-this-test", {"user_id": "u000", "k": 3})
    assert len(body["items"]) == 3


def until_ready(url: str, timeout_s: float = 120) -> dict:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as response:
                return json.load(response)
        except OSError:
            assert time.monotonic() < deadline, f"{url} was not ready within {timeout_s} s"
            time.sleep(0.5)


def processes_of_session(session: int, patience_s: float = 20) -> list[str]:
    """Commands that are still running after Ray's own processes had time to notice that their driver is gone."""
    deadline = time.monotonic() + patience_s
    while True:
        found = subprocess.run(["pgrep", "-a", "-s", str(session)], capture_output=True, text=True).stdout.splitlines()
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def test_ray_job_submit_runs_the_packaged_recipes_training_on_a_running_cluster(head, tmp_path):
    environment, dashboard = head
    workspace = f"workspace={tmp_path / 'work'}"
    for verb in (["data", "fetch", "movielens-100k"], ["ingest", "--recipe", "movielens-100k"]):
        subprocess.run([*LLMREC, *verb, workspace], check=True)
    job = [sys.executable, "-m", "llmrec_ray", "train", "--recipe", "movielens-100k", "--json", workspace,
           "train.epochs=1"]
    submitted = subprocess.run(
        [RAY, "job", "submit", "--address", dashboard, "--", *job], env=environment, capture_output=True, text=True
    )
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-3000:]
    result = next(json.loads(line) for line in submitted.stdout.splitlines() if line.startswith('{"uri"'))
    assert result["metrics"]["best_epoch"] == 1
    assert (tmp_path / "work" / "latest" / "bundle.json").is_file()


THREE_RAYLETS = """
import sys
import ray
from ray.cluster_utils import Cluster
from llmrec_ray import stages
from llmrec_ray.cluster import set_serve_flags
from llmrec_ray.config import load_recipe
from tests.test_end_to_end import post

set_serve_flags()
recipe = load_recipe(config=sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
for _ in range(2):
    cluster.add_node(num_cpus=2)
cluster.wait_for_nodes()
ray.init(address=cluster.address)
assert sum(node["Alive"] for node in ray.nodes()) == 3
stages.ingest_stage(recipe)
stages.train_stage(recipe)
stages.index_stage(recipe)
stages.publish_stage(recipe)
with stages.serve_stage(recipe) as endpoint:
    answer = post(f"{endpoint.url}/v1/recommend", endpoint.api_key, {"user_id": "u001", "k": 5})
    from ray.util.state import list_actors
    alive = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    nodes = {actor.node_id for actor in alive if "ServeReplica" in actor.class_name}
    sys.stdout.write(f"items {len(answer['items'])} nodes {len(nodes)}\\n")
ray.shutdown()
cluster.shutdown()
"""


def test_training_and_serving_run_on_a_cluster_of_three_raylets(board_file):
    command = [sys.executable, "-c", THREE_RAYLETS, str(board_file)]
    result = subprocess.run(command, env=own_proxy(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    said = re.search(r"^items (\d+) nodes (\d+)$", result.stdout, re.MULTILINE)  # Ray may say more
    assert said is not None, result.stdout
    assert int(said[1]) == 5
    assert int(said[2]) >= 2


def test_the_demo_serves_until_terminated_and_then_leaves_nothing_running(board_file, tmp_path):
    with running(["demo", "--config", str(board_file), "--json"], tmp_path / "demo.log") as process:
        line = process.stdout.readline()
        assert line, (tmp_path / "demo.log").read_text()[-5000:]
        summary = json.loads(line)
        assert summary["dataset"] == "board"
        assert summary["model"]["ndcg@10"] > 0.9
        answer = post(f"{endpoint_of(board_file)}/v1/recommend", KEY, {"user_id": "u000", "k": 3})
        assert answer["release"] == summary["release"]
        end(process, signal.SIGTERM, 0, endpoint_of(board_file), tmp_path / "demo.log")


def test_ctrl_c_ends_llmrec_serve_and_leaves_nothing_running(board_file, tmp_path):
    subprocess.run([*LLMREC, "demo", "--no-serve", "--config", str(board_file)], check=True)
    with running(["serve", "--config", str(board_file), "--json"], tmp_path / "serve.log") as process:
        assert json.loads(process.stdout.readline()) == {"url": endpoint_of(board_file)}
        end(process, signal.SIGINT, 130, endpoint_of(board_file), tmp_path / "serve.log")


KEY = "a-key-for-this-test"


def endpoint_of(board_file: Path) -> str:
    return f"http://127.0.0.1:{yaml.safe_load(board_file.read_text())['serve']['port']}"


@contextlib.contextmanager
def running(arguments: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """The command in a session of its own, with SIGINT as a terminal leaves it; killed if the test gives up."""
    with log.open("w") as stderr:
        process = subprocess.Popen(
            ["env", "--default-signal=INT", *LLMREC, *arguments], env=os.environ | {"LLMREC_API_KEY": KEY},
            start_new_session=True, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def end(process: subprocess.Popen, how: signal.Signals, status: int, url: str, log: Path) -> None:
    os.kill(process.pid, how)
    process.communicate(timeout=120)
    assert process.returncode == status
    assert "Traceback" not in log.read_text()
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=5)
    assert processes_of_session(process.pid) == []
