"""cluster.yaml: valid for Ray's own schema, and carrying the Serve flags before Ray starts."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray import autoscaler

from llmrec_ray.cluster import SERVE_FLAGS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster_yaml_is_valid_for_rays_schema(cluster):
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


def test_the_schema_refuses_an_unknown_key(cluster):
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        jsonschema.validate(cluster | {"max_wrokers": 3}, schema)


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_serve_flags_stand_before_ray_starts_on_every_node(cluster, commands):
    start = next(command for command in cluster[commands] if "ray start" in command)
    for name, value in SERVE_FLAGS.items():
        assert 0 <= start.find(f"{name}={value}") < start.find("ray start")


def test_the_head_type_is_one_of_the_node_types(cluster):
    assert cluster["head_node_type"] in cluster["available_node_types"]
