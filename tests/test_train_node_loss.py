"""A machine that is lost in mid-training: the run goes on with the workers that are left."""

from __future__ import annotations

import json
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

from llmrec_ray.config import Recipe
from llmrec_ray.train import run_training
from tests.train_boards import inputs_of_board

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
run = Path(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
lost = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)

def lose_it():
    while len(list(run.glob("checkpoint_2*"))) < 2:
        time.sleep(0.05)
    cluster.remove_node(lost)

threading.Thread(target=lose_it, daemon=True).start()
trained = run_training(Recipe.model_validate_json(sys.argv[1]), inputs_of_board(), str(run))
sys.stdout.write(json.dumps([epoch["loss"] for epoch in trained.epochs]) + "\\n")
ray.shutdown()
cluster.shutdown()
"""


def test_a_run_that_loses_a_node_goes_on_with_fewer_workers(tmp_path):
    recipe = deterministic_recipe(epochs=60, patience=60, min_workers=1, sharding="zero2")
    [whole] = train_in_processes(2, [Job(recipe)])
    command = [sys.executable, "-c", LOSE_A_NODE, recipe.model_dump_json(), str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    assert json.loads(result.stdout.strip().splitlines()[-1]) == pytest.approx(whole, rel=1e-4)
    said = [line for line in result.stderr.splitlines() if "parameters (encoder" in line]
    assert "on 2 processes" in said[0] and "on 1 process," in said[-1] and "from step" in said[-1], said
