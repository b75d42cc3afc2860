from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from llmrec_ray.config import AppConfig, ServeConfig
from llmrec_ray.errors import ClusterError
from llmrec_ray.recommend import Snapshot
from llmrec_ray.serve import Endpoint, ServeArgs, run
from llmrec_ray.serve.replicas import make_encoder
from llmrec_ray.serve.run import start_failure

FILE = Path(__file__).parent.parent / "serve_config.yaml"
ARGS = {"release_uri": "r", "events_folder": "e"}


@pytest.fixture
def deployed() -> dict:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def test_the_config_file_fits_the_schema_that_serve_deploy_uses(deployed):
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(deployed)
    assert schema.applications[0].import_path == "llmrec_ray.serve.app:build"


def test_the_arguments_of_the_config_file_are_what_the_application_takes(deployed):
    args = ServeArgs.model_validate(deployed["applications"][0]["args"])
    defaults = AppConfig()
    assert args.limits == defaults.limits
    assert (args.ingress, args.retriever) == (defaults.ingress, defaults.retriever)


def test_the_builder_builds_the_four_deployments_from_the_typed_arguments(tiny_release, tmp_path, ray_session):
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    from llmrec_ray.serve.app import build

    file = tmp_path / "release.json"
    file.write_text(tiny_release.model_dump_json())
    args = {"release_uri": str(file), "events_folder": str(tmp_path), "keys": [{"name": "shop", "sha256": "0" * 64}]}
    application = call_user_app_builder_with_args_if_necessary(build, args)
    ingress = application._bound_deployment
    stages = [bound._bound_deployment for bound in ingress.init_args[3:]]
    assert [stage.name for stage in (ingress, *stages)] == ["Ingress", "Encoder", "Retriever", "Reranker"]
    assert all(stage._deployment_config.autoscaling_config.max_replicas == 2 for stage in (ingress, *stages))
    releases = ingress.init_args[2]._bound_deployment
    assert releases._deployment_config.max_ongoing_requests >= 1000, "reports would wait for administrators' calls"


@pytest.mark.parametrize("wrong", [
    {"colour": 1}, {"keys": [{"name": "shop", "sha256": "plain text"}]}, {"ingress": {"replicas": 3}},
    {"limits": {"max_k": 0}},
])
def test_a_wrong_argument_is_refused(wrong):
    with pytest.raises(ValidationError):
        ServeArgs.model_validate(ARGS | wrong)


@pytest.mark.parametrize(("reserved", "devices"), [([], []), (["0"], ["cuda"])])
def test_the_encoder_computes_on_the_gpu_that_its_deployment_reserves(tiny_release, monkeypatch, reserved, devices):
    moved: list[str] = []
    monkeypatch.setattr("ray.get_gpu_ids", lambda: reserved)
    monkeypatch.setattr("llmrec_ray.model.encoder.TextEncoder.to", lambda _, device: moved.append(device))
    encoder = make_encoder(Snapshot.open(tiny_release), None, bool)
    assert moved == devices
    assert make_encoder(Snapshot.open(tiny_release), encoder, bool) is encoder


def test_waiting_ends_when_the_process_is_told_to_end():
    endpoint = Endpoint(url="http://127.0.0.1:1", api_key="key", release_id="release")
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    endpoint.wait()
    timer.join()


def test_a_key_from_the_environment_is_not_shown_again(monkeypatch):
    endpoint = Endpoint(url="http://h:1", api_key="secret", release_id="release")
    assert "'Authorization: Bearer secret'" in endpoint.curl({})
    monkeypatch.setenv("LLMREC_API_KEY", "secret")
    assert '"Authorization: Bearer $LLMREC_API_KEY"' in endpoint.curl({})
    assert "secret" not in endpoint.curl({})


def test_a_serve_that_does_not_start_is_explained_in_one_sentence():
    report = """ray::HAProxyManager.ready() (pid=1)
    RuntimeError: HAProxy crashed during startup: [NOTICE] (1) : haproxy version is 2.8
    [ALERT]    (27565) : Binding [haproxy.cfg:95] for proxy stats: cannot bind socket (Address already in use)
    """
    end = "If a port is taken, stop what listens there or try again; else look at Ray's logs (--verbose shows them)."
    assert start_failure("http://h:1", report) == (
        "Ray Serve could not start at http://h:1: Binding [haproxy.cfg:95] for proxy stats: cannot bind socket "
        f"(Address already in use). {end}"
    )
    assert start_failure("http://h:1", "a\nb: c\n") == f"Ray Serve could not start at http://h:1: b: c. {end}"


def test_a_recipe_configures_everything_that_the_application_takes():
    assert ServeConfig.model_fields.keys() - {"host", "port"} == AppConfig.model_fields.keys()
    assert ServeArgs.model_fields.keys() - AppConfig.model_fields.keys() == {*ARGS}


def test_an_endpoint_that_does_not_become_ready_is_named(monkeypatch):
    monkeypatch.setattr(run, "READY_TIMEOUT_S", 0.3)
    with pytest.raises(ClusterError) as caught:
        run._wait_until_ready("http://127.0.0.1:1")
    message = str(caught.value)
    assert message.startswith("The endpoint at http://127.0.0.1:1 was not ready after 0 s (")
    assert message.endswith(
        "): look at `serve status` and Ray's logs; the cluster may have too few CPUs for four deployments."
    )
