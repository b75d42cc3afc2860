"""A running endpoint changes what it serves, Releases and single items, without a failed or a mixed answer."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import FollowConfig, ServeConfig
from llmrec_ray.release import Release, current_uri, load_release, publish
from llmrec_ray.serve import Endpoint, start
from tests.boards import board_recipe
from tests.test_serve_http import free_port
from tests.tiny_release import publish_tiny_release

FOLLOW = FollowConfig(pointer_s=0.2, sync_s=0.1)
SWITCH_S = 30.0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return Workspace(str(tmp_path_factory.mktemp("workspace")))


@pytest.fixture(scope="module")
def first(workspace, board_folder, tiny_encoder) -> Release:
    return publish_tiny_release(board_recipe(board_folder, encoder={"model": str(tiny_encoder)}), workspace)


@pytest.fixture(scope="module")
def second(workspace, first) -> Release:
    """The same artifacts under another policy; published after the first, which is then current again."""
    policy = first.policy.model_copy(update={"weights": {"popularity": 1.0}})
    release = publish_again(workspace, first, policy)
    publish_again(workspace, first, first.policy)
    return release


def publish_again(workspace, release, policy) -> Release:
    return publish(
        workspace, name="again", policy=policy, dataset_uri=release.dataset.uri, bundle_uri=release.bundle.uri,
        index_uri=release.index.uri,
    )


@pytest.fixture(scope="module")
def endpoint(ray_session, workspace, first, second, tmp_path_factory) -> Iterator[Endpoint]:
    with served(workspace, tmp_path_factory.mktemp("events")) as endpoint:
        yield endpoint


def served(workspace: Workspace, events: Path) -> Endpoint:
    config = ServeConfig(port=free_port(), follow=FOLLOW)
    return start(config, current_uri(workspace), str(events), api_key="the key")


@pytest.fixture(scope="module")
def http(endpoint) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=endpoint.url, headers={"Authorization": "Bearer the key"}, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def admin(endpoint) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=endpoint.url, headers={"Authorization": f"Bearer {endpoint.admin_key}"}, timeout=120
    ) as client:
        yield client


def release_served(http: httpx.Client) -> str:
    return http.get("/healthz").json()["release"]


def wait_for(http: httpx.Client, release: str) -> None:
    deadline = time.monotonic() + SWITCH_S
    while release_served(http) != release:
        assert time.monotonic() < deadline, f"{release} was not served after {SWITCH_S} s"
        time.sleep(0.1)


def recommend(http: httpx.Client, **body) -> dict:
    response = http.post("/v1/recommend", json={"exclude_seen": False, "k": 5, **body})
    assert response.status_code == 200, response.text
    return response.json()


class Asking(threading.Thread):
    """Asks without a pause until told to stop, and keeps every answer."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.answers, self.failures, self.told = url, [], [], threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, headers={"Authorization": "Bearer the key"}, timeout=60) as client:
            while not self.told.is_set():
                response = client.post("/v1/recommend", json={"user_id": "u001", "k": 3, "explain": True})
                (self.answers if response.status_code == 200 else self.failures).append(response.json())

    def stop(self) -> None:
        self.told.set()
        self.join()


def test_a_published_release_is_switched_to_under_load_and_no_answer_mixes_two(
    endpoint, http, workspace, first, second
):
    asking = [Asking(endpoint.url) for _ in range(4)]
    for thread in asking:
        thread.start()
    publish_again(workspace, first, second.policy)
    wait_for(http, second.id)
    time.sleep(0.5)
    for thread in asking:
        thread.stop()
    assert [failure for thread in asking for failure in thread.failures] == []
    for thread in asking:
        releases = [answer["release"] for answer in thread.answers]
        assert set(releases) <= {first.id, second.id}
        assert releases[-1] == second.id
        for answer in thread.answers:
            assert answer["degraded"] == []
            used = {name for item in answer["items"] for name, share in item["shares"].items() if share}
            assert (used == {"popularity"}) == (answer["release"] == second.id)


def test_rollback_is_one_call_that_answers_when_it_is_done(http, admin, first, second):
    wait_for(http, second.id)
    response = admin.post("/v1/admin/publish", json={})
    assert response.status_code == 200, response.text
    status = response.json()
    assert (status["active"], status["pending"]) == (first.id, None)
    assert release_served(http) == first.id
    assert set(status["replicas"]) == {"ingress", "encoder", "retriever", "reranker"}
    assert all(first.id in held for replicas in status["replicas"].values() for held in replicas)


def test_a_release_can_be_named_and_one_that_does_not_exist_changes_nothing(http, admin, first, second):
    assert admin.post("/v1/admin/publish", json={"release_id": second.id}).json()["active"] == second.id
    assert admin.post("/v1/admin/publish", json={"release_id": first.id}).json()["active"] == first.id
    response = admin.post("/v1/admin/publish", json={"release_id": "0" * 16})
    assert (response.status_code, response.json()["field"]) == (404, "release_id")
    assert response.json()["message"] == "There is no Release 0000000000000000: `llmrec publish` makes one."
    assert release_served(http) == first.id


def test_a_release_with_a_damaged_file_is_refused_and_the_old_one_goes_on(http, admin, workspace, first, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(first.bundle.uri, copy)
    policy = first.policy.model_copy(update={"weights": {"item_item": 1.0}})
    damaged = publish(
        workspace, name="damaged", policy=policy, dataset_uri=first.dataset.uri, bundle_uri=str(copy),
        index_uri=first.index.uri,
    )
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    deadline = time.monotonic() + SWITCH_S
    while damaged.id not in (status := admin.get("/v1/admin/status").json())["refused"]:
        assert time.monotonic() < deadline, status
        time.sleep(0.1)
    assert "model.safetensors" in status["refused"][damaged.id]
    assert status["active"] == first.id
    assert recommend(http, user_id="u001")["release"] == first.id
    response = admin.post("/v1/admin/publish", json={"release_id": damaged.id})
    assert (response.status_code, response.json()["code"]) == (409, "refused")
    assert response.json()["message"].startswith(f"Release {damaged.id} is not served: CorruptArtifactError: ")
    assert load_release(current_uri(workspace)).id == first.id


NEW = {"item_id": "new", "title": "New thing", "text": "thing painted white", "attributes": {"colour": "white"}}


def test_a_new_item_is_recommended_by_its_text_once_the_call_is_answered(http, admin, first):
    response = admin.post("/v1/admin/items", json={"items": [NEW]})
    assert response.status_code == 200, response.text
    assert (response.json()["release"], response.json()["items"]) == (f"{first.id}+1", 1)
    answer = recommend(http, query="thing painted white", k=50)
    assert answer["release"] == f"{first.id}+1"
    assert {"item_id": "new", "title": "New thing"}.items() <= {
        item["item_id"]: item for item in answer["items"]
    }["new"].items()
    assert http.get("/v1/similar/new").json()["items"]
    only = recommend(http, query="thing", filters={"allow": ["new"]})
    assert [item["item_id"] for item in only["items"]] == ["new"]


def test_a_wrong_item_is_named_and_nothing_is_kept(http, admin, first):
    before = release_served(http)
    response = admin.post("/v1/admin/items", json={"items": [NEW]})
    assert (response.status_code, response.json()["field"]) == (409, "items.0.item_id")
    response = admin.request("DELETE", "/v1/admin/items", json={"item_ids": ["gone"]})
    assert (response.status_code, response.json()) == (
        404, {"code": "not_found", "message": "There is no item 'gone'.", "field": "item_ids.0"}
    )
    assert release_served(http) == before


def test_a_removed_item_is_never_shown_again_by_no_release(http, admin, first, second):
    gone = recommend(http, user_id="u001")["items"][0]["item_id"]
    response = admin.request("DELETE", "/v1/admin/items", json={"item_ids": [gone]})
    assert response.status_code == 200, response.text
    assert gone not in {item["item_id"] for item in recommend(http, user_id="u001", k=50)["items"]}
    response = admin.post("/v1/admin/publish", json={"release_id": second.id})
    assert response.status_code == 200, response.text
    assert response.json()["active"] == f"{second.id}+1"
    shown = {item["item_id"] for item in recommend(http, user_id="u001", k=50)["items"]}
    assert gone not in shown
    assert recommend(http, query="thing", filters={"allow": ["new", gone]})["items"][0]["item_id"] == "new"


def test_changes_of_items_survive_a_restart_of_the_endpoint(endpoint, http, workspace, second, tmp_path):
    served_before = release_served(http)
    endpoint.stop()
    with served(workspace, tmp_path) as again, httpx.Client(
        base_url=again.url, headers={"Authorization": "Bearer the key"}, timeout=60
    ) as client:
        assert again.release_id == served_before == f"{second.id}+1"
        assert recommend(client, query="thing", filters={"allow": ["new"]})["items"][0]["title"] == "New thing"
