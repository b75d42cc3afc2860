"""A machine that is lost in mid-training: the run goes on with the workers that are left."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.train_boards import Job, deterministic_recipe, train_in_processes

pytestmark = [pytest.mark.drill, pytest.mark.timeout(300)]

LOSE_A_NODE = """
import json
import logging
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import llmrec_ray.train.run
from llmrec_ray.config import Recipe
from tests.train_boards import inputs_of_board

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
llmrec_ray.train.run.RESIZE_CHECK_S = 2.0
on_two = threading.Event()

class Watch(logging.Handler):
    def emit(self, record):
        if "on 2 processes" in record.getMessage():
            on_two.set()

logging.getLogger("llmrec_ray").addHandler(Watch())
run = Path(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
lost = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)

def checkpoints():
    return {folder.name for folder in run.glob("checkpoint_2*")}

def lose_it():
    on_two.wait()
    seen = checkpoints()
    enough = len(seen) + 8  # the newest few may not have been committed
    while len(seen) < enough:
        seen |= checkpoints()
        time.sleep(0.02)
    cluster.remove_node(lost)

threading.Thread(target=lose_it, daemon=True).start()
recipe = Recipe.model_validate_json(sys.argv[1])
trained = llmrec_ray.train.run.run_training(recipe, inputs_of_board(), str(run))
sys.stdout.write(json.dumps([epoch["loss"] for epoch in trained.epochs]) + "\\n")
ray.shutdown()
cluster.shutdown()
"""


def test_a_run_that_loses_a_node_goes_on_with_fewer_workers(tmp_path):
    recipe = deterministic_recipe(epochs=150, patience=150, min_workers=1, sharding="zero2", learning_rate=0.001)
    [whole] = train_in_processes(2, [Job(recipe)])
    command = [sys.executable, "-c", LOSE_A_NODE, recipe.model_dump_json(), str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    assert json.loads(result.stdout.strip().splitlines()[-1]) == pytest.approx(whole, rel=2e-4)
    said = re.findall(r"on (\d) process[es]*, cpu, fp32, sharding zero2(?:, from step (\d+))?;", result.stderr)
    two, one = [workers for workers, _ in said].index("2"), said[-1]
    assert one[0] == "1" and int(one[1]) > int(said[two][1] or 0), said
