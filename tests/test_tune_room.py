"""How many trainings of a recipe run at once, and beside each other on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from llmrec_ray.tune.room import concurrent_trials, trials_per_machine
from tests.boards import board_recipe


@pytest.mark.parametrize(("workers", "wanted", "at_once", "per_machine"), [
    (1, None, 6, 3), (2, None, 3, 2), (2, 2, 2, 1), (1, 100, 6, 3), (4, None, 1, 1),
])
def test_cores_are_shared_by_the_trials_of_the_machines_that_lend_any(
    monkeypatch, workers, wanted, at_once, per_machine
):
    lent = [{"memory": 1e9}, {"CPU": 4.0}, {"CPU": 2.0}]
    nodes = [{"Alive": True, "Resources": each} for each in lent] + [{"Alive": False, "Resources": {}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0})
    recipe = board_recipe(
        Path("/nowhere"), train={"num_workers": workers, "sharding": "ddp"}, tune={"max_concurrent": wanted}
    )
    assert (concurrent_trials(recipe), trials_per_machine(recipe)) == (at_once, per_machine)
