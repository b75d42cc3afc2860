from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.changes import ChangeLog, RemovedItem
from llmrec_ray.config import ApiKey, FollowConfig
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ArtifactError, ConfigError
from llmrec_ray.events import EventLog, EventStore
from llmrec_ray.forget import endpoints, forget
from llmrec_ray.forgotten import forgotten_in, forgotten_uri, remember
from llmrec_ray.release import current_uri
from llmrec_ray.serve import ServeArgs
from llmrec_ray.serve.forgetting import forgotten_beside
from llmrec_ray.serve.keys import hash_key
from tests.forget.person import WHO, event, run
from tests.local_endpoint import local_endpoint
from tests.local_http import served
from tests.searching import found_in


def test_an_endpoint_follows_without_a_failed_request_and_keeps_everybody_elses_events(
    recipe, workspace, release, monkeypatch, caplog
):
    caplog.set_level("INFO", logger="llmrec_ray")
    monkeypatch.setattr(endpoints, "GRACE_S", 0.5)  # one replica of each stage, in one process
    with serving(workspace) as url, httpx.Client(base_url=url, headers=ADMIN, timeout=30, trust_env=False) as http:
        assert ask(http, WHO)["user"] == "known"
        with writers(url, n=3) as written:
            send(http, "first", WHO)
            nobody = "http://127.0.0.1:9"
            forgotten = forget(recipe, WHO, workspace, Path(workspace.uri) / "raw", endpoints=[url, nobody])
            time.sleep(0.3)
        assert f"endpoint {url} has switched" in caplog.messages
        assert f"endpoint {nobody} does not answer, or not with a Release of this workspace" in caplog.messages
        assert ask(http, "u001")["release"] == forgotten.release != release.id
        assert ask(http, WHO)["user"] == "unknown"
        answer = send(http, "later", WHO)
        assert (answer["accepted"], answer["duplicates"], answer["forgotten"]) == (0, 0, 1)
        assert len(written) > 20
        log = EventLog(workspace.local_folder("events") / "log")
        kept = [event.event_id for file in log.files() for event, _ in log.read(file) if event is not None]
        assert sorted(kept) == sorted(written)
        assert found_in(Path(workspace.uri), WHO) == []


def test_an_administrator_can_have_a_running_endpoint_forget_at_once(workspace, release):
    with serving(workspace) as url, httpx.Client(base_url=url, headers=ADMIN, timeout=30, trust_env=False) as http:
        send(http, "a", WHO)
        send(http, "b", "u001")
        answer = http.delete(f"/v1/admin/users/{WHO}").json()
        assert answer["events"] == 1
        assert answer["release"] == release.id
        assert ask(http, WHO)["user"] == "unknown"
        assert ask(http, WHO)["cold"] is True
        assert ask(http, "u001")["user"] == "known"
        assert http.get("/v1/users", params={"prefix": "person"}).json() == []
        assert found_in(workspace.local_folder("events"), WHO) == []
        assert http.delete(f"/v1/admin/users/{WHO}").json()["events"] == 0
        assert [http.delete(f"/v1/admin/users/{id_}").status_code for id_ in ("", "x" * 257)] == [422, 422]
    assert WHO in forgotten_in(workspace)
    assert len(forgotten_in(workspace)) == 1


def test_whoever_was_forgotten_while_an_endpoint_was_down_is_gone_when_it_answers(recipe, workspace, release):
    with EventStore.open(workspace.local_folder("events")) as store:
        store.record([event("a", WHO), event("b", "u001")])
    remember(forgotten_uri(workspace), WHO, done=False)
    with serving(workspace) as url, httpx.Client(base_url=url, headers=ADMIN, timeout=30, trust_env=False) as http:
        assert ask(http, WHO)["user"] == "unknown"
        assert found_in(workspace.local_folder("events"), WHO) == []


def test_the_list_lies_in_the_workspace_of_a_release_or_beside_it():
    assert forgotten_beside("s3://bucket/work/releases/current.json") == "s3://bucket/work/forgotten.json"
    assert forgotten_beside("/somewhere/release.json") == "/somewhere/forgotten.json"


def test_the_files_of_a_release_stay_as_long_as_an_endpoint_answers_with_it(recipe, workspace, release, monkeypatch):
    monkeypatch.setattr(endpoints, "SWITCH_TIMEOUT_S", 0.2)
    with stuck_at(release.id) as url:
        message = f"{url} still answers with release {release.id} after 0 s, so files of earlier Releases"
        with pytest.raises(ArtifactError, match=re.escape(message)):
            forget(recipe, WHO, workspace, Path(workspace.uri) / "raw", endpoints=[url])
    assert Dataset.open(release.dataset.uri).users.row(WHO) >= 0
    run(recipe, workspace)
    assert found_in(Path(workspace.uri), WHO) == []


def test_files_stay_as_long_as_an_endpoint_is_too_slow_to_say_what_it_serves(recipe, workspace, release, monkeypatch):
    monkeypatch.setattr(endpoints, "SWITCH_TIMEOUT_S", 0.2)
    monkeypatch.setattr(endpoints, "ANSWER_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ArtifactError, match=rf"{url} gives no answer after 0 s, .* name with --endpoint where"):
            forget(recipe, WHO, workspace, Path(workspace.uri) / "raw", endpoints=[url])
    assert Dataset.open(release.dataset.uri).users.row(WHO) >= 0


def test_an_endpoint_that_is_no_url_is_refused_before_anything_is_changed(recipe, workspace, release):
    with pytest.raises(ConfigError, match="'localhost:8000' is no URL of an endpoint: write it as http://host:port"):
        forget(recipe, WHO, workspace, Path(workspace.uri) / "raw", endpoints=["localhost:8000"])
    assert len(forgotten_in(workspace)) == 0


@contextlib.contextmanager
def stuck_at(release_id: str) -> Iterator[str]:
    """An endpoint that never switches."""
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"release": f"{release_id}+3"}).encode()})

    with served(app, lifespan="off") as url:
        yield url


def test_changes_to_items_that_were_made_while_serving_go_on(recipe, workspace, release):
    log = ChangeLog.of(current_uri(workspace), release.id)
    log.append([RemovedItem(item_id="i001")], after=0)
    forgotten = run(recipe, workspace)
    assert ChangeLog.of(current_uri(workspace), forgotten.release).read().gone == {"i001"}
    assert not Path(log.uri).exists()


@pytest.mark.drill
def test_on_ray_two_ingress_replicas_follow_without_a_failed_request(recipe, workspace, release, ray_session):
    from llmrec_ray.config import Replicas, ServeConfig
    from llmrec_ray.serve import start
    from tests.test_serve_http import free_port

    config = ServeConfig(
        port=free_port(), ingress=Replicas(min_replicas=2, max_replicas=2),
        keys=[ApiKey(name="test", sha256=hash_key("the admin key"), admin=True)],
    )
    events = workspace.local_folder("events")
    with (
        start(config, current_uri(workspace), str(events), api_key="the key") as endpoint,
        httpx.Client(base_url=endpoint.url, headers=ADMIN, timeout=30, trust_env=False) as http,
    ):
        assert ask(http, WHO)["user"] == "known"
        with writers(endpoint.url, n=4) as written:
            for number in range(20):
                send(http, f"first-{number}", WHO)
            forgotten = forget(recipe, WHO, workspace, Path(workspace.uri) / "raw", endpoints=[endpoint.url])
            for number in range(20):
                assert send(http, f"later-{number}", WHO)["forgotten"] == 1
                answer = ask(http, WHO)
                assert (answer["user"], answer["release"]) == ("unknown", forgotten.release)
        log = EventLog(events / "log")
        kept = [event.event_id for file in log.files() for event, _ in log.read(file) if event is not None]
        assert sorted(kept) == sorted(written)
        assert len(written) > 100
        assert found_in(Path(workspace.uri), WHO) == []


ADMIN = {"Authorization": "Bearer the admin key"}


@contextlib.contextmanager
def serving(workspace: Workspace) -> Iterator[str]:
    args = ServeArgs(
        release_uri=current_uri(workspace), events_folder=str(workspace.local_folder("events")),
        follow=FollowConfig(sync_s=0.2, pointer_s=0.2),
        keys=[ApiKey(name="test", sha256=hash_key("the admin key"), admin=True)],
    )
    with local_endpoint(args) as url:
        yield url


@contextlib.contextmanager
def writers(url: str, n: int) -> Iterator[list[str]]:
    """People who send events and ask for recommendations all the time; the ids of events that were acknowledged."""
    done, written, failed = threading.Event(), list[str](), list[str]()

    def write(number: int) -> None:
        with httpx.Client(base_url=url, headers=ADMIN, timeout=30, trust_env=False) as http:
            for count in itertools.count():
                if done.is_set():
                    return
                try:
                    assert send(http, f"{number}-{count}", f"u{number:03}", f"i{count % 40:03}")["accepted"] == 1
                    written.append(f"{number}-{count}")
                    assert ask(http, f"u{number:03}")["degraded"] == []
                except Exception as error:
                    failed.append(repr(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    try:
        yield written
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failed == []


def send(http: httpx.Client, event_id: str, user_id: str, item_id: str = "i001") -> dict:
    answer = http.post("/v1/events", json={"events": [{"event_id": event_id, "user_id": user_id, "item_id": item_id}]})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ask(http: httpx.Client, user_id: str) -> dict:
    answer = http.post("/v1/recommend", json={"user_id": user_id, "k": 5})
    assert answer.status_code == 200, answer.text
    return answer.json()
