"""The whole path on small data: real DeepSpeed processes, real HTTP, and the answer a person would get."""

import json
import signal
import socket
import urllib.request

import pytest

from llmrec_ray import stages
from tests.boards import board_recipe

SIGINT_AS_IT_WAS = signal.getsignal(signal.SIGINT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(url: str, key: str, body: dict) -> dict:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def tuned(board_folder, tiny_encoder, tmp_path_factory, ray_session):
    """A recipe whose encoder's top layer was trained by two processes under ZeRO-2, with everything published."""
    recipe = board_recipe(
        board_folder,
        workspace=str(tmp_path_factory.mktemp("tuned")),
        encoder={"model": str(tiny_encoder), "tuning": "top_layers", "top_layers": 1, "learning_rate": 1e-3},
        train={"num_workers": 2, "sharding": "zero2", "epochs": 4},
        serve={"port": free_port()},
    )
    stages.ingest_stage(recipe)
    stages.train_stage(recipe)
    stages.index_stage(recipe)
    stages.publish_stage(recipe)
    return recipe


def test_training_the_top_layer_changes_the_text_vectors_and_the_bundles_encoder_agrees_with_them(tuned):
    bundle = stages.open_bundle(tuned)
    dataset = stages.open_dataset(tuned)
    frozen = stages.embed_stage(tuned)
    tuned_raw = bundle.load_encoder().encode(dataset.item_texts)
    assert abs(tuned_raw - frozen).max() > 1e-3
    centred = tuned_raw - bundle.text_center
    cosines = (centred * bundle.text_vectors).sum(axis=1) / (centred**2).sum(axis=1) ** 0.5
    assert cosines.min() > 0.9999


def test_a_model_tuned_by_two_processes_under_zero2_answers_over_http(tuned):
    with stages.serve_stage(tuned) as endpoint:
        dataset = stages.open_dataset(tuned)
        seen = set(dataset.items.ids(dataset.histories("test")[0]))
        answer = post(f"{endpoint.url}/v1/recommend", endpoint.api_key, {"user_id": "u000", "k": 5})
        assert answer["user"] == "known"
        assert len(answer["items"]) == 5
        assert not seen & {item["item_id"] for item in answer["items"]}
        asked = post(f"{endpoint.url}/v1/recommend", endpoint.api_key, {"query": "painted white", "k": 5})
        assert len(asked["items"]) == 5
        assert asked["timings_ms"]["encode"] > 0
        assert answer["degraded"] == asked["degraded"] == []


def test_training_leaves_the_meaning_of_ctrl_c_as_it_was(tuned):
    assert signal.getsignal(signal.SIGINT) is SIGINT_AS_IT_WAS


def test_a_checkerboard_is_learnt_from_files_to_evaluation(board_folder, tiny_encoder, tmp_path, ray_session):
    recipe = board_recipe(
        board_folder, workspace=str(tmp_path), encoder={"model": str(tiny_encoder)}, fusion={"mode": "feature"},
        train={"num_workers": 1, "sharding": "none"},
    )
    stages.ingest_stage(recipe)
    stages.train_stage(recipe)
    stages.index_stage(recipe)
    evaluation = stages.evaluate_stage(recipe)
    assert evaluation.model["ndcg@10"] > 0.9
    assert evaluation.signals["neural"]["ndcg@10"] > 0.9
    assert evaluation.signals["popularity"]["ndcg@10"] < 0.5
