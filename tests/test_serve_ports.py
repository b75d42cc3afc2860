"""What the whole endpoint, with its proxy, shows to somebody on the network, and leaves in its logs."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import httpx
import pytest

from llmrec_ray.config import ServeConfig
from llmrec_ray.serve import start
from tests.local_http import send_raw

pytestmark = pytest.mark.drill
KEY = {"Authorization": "Bearer the key"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def endpoint(ray_session, tiny_release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ports")
    release, pointer = folder / f"{tiny_release.id}.json", folder / "current.json"
    release.write_text(tiny_release.model_dump_json())
    pointer.write_text(json.dumps({"uri": str(release)}))
    config = ServeConfig.model_validate({"port": free_port(), "limits": {"body_timeout_s": 1.0}})
    with start(config, str(pointer), str(folder / "events"), api_key="the key") as endpoint:
        yield endpoint


def test_a_body_that_trickles_in_is_refused_behind_the_proxy_too(endpoint):
    head = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer the key\r\nContent-Length: 100\r\n\r\n"
    start_s = time.monotonic()
    answer = send_raw(endpoint.url, head, b"{", b" ", pause_s=0.2)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - start_s < 10


def test_many_slow_clients_do_not_keep_others_from_their_answers(endpoint):
    host, port = endpoint.url.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(300)]
    for number, connection in enumerate(slow):
        connection.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\n" if number % 2 else b"P")
    try:
        with httpx.Client(base_url=endpoint.url, headers=KEY, timeout=10) as http:
            assert [http.post("/v1/recommend", json={"user_id": "u001"}).status_code for _ in range(20)] == [200] * 20
    finally:
        for connection in slow:
            connection.close()


def test_a_request_id_is_the_same_in_header_answer_and_log_and_the_log_says_nothing_of_people(endpoint):
    import ray

    with httpx.Client(base_url=endpoint.url, headers=KEY, timeout=30) as http:
        answer = http.post("/v1/recommend", json={"user_id": "u001"}, headers={"X-Request-ID": "drill-1"})
        assert answer.headers["X-Request-ID"] == answer.json()["request_id"] == "drill-1"
        other = http.post("/v1/recommend", json={"user_id": "u001"})
        assert other.headers["X-Request-ID"] == other.json()["request_id"] != "drill-1"
        assert http.get("/v1/users/somebody%20special/history").status_code == 200
    time.sleep(3)  # lines are written in batches
    folder = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    written = "".join(file.read_text() for file in folder.glob("replica_llmrec_Ingress_*.log"))
    lines = [json.loads(line) for line in written.splitlines()]
    [line] = [line for line in lines if line.get("request_id") == "drill-1"]
    assert (line["http_route"], line["status"], line["deployment"]) == ("/v1/recommend", 200, "llmrec_Ingress")
    assert "somebody" not in written and "u001" not in written and "the key" not in written
