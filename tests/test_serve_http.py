"""A real server behind HAProxy on the session's Ray, asked over real HTTP."""

from __future__ import annotations

import json
import shlex
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from llmrec_ray.config import Replicas, RequestLimits, ServeConfig
from llmrec_ray.errors import ArtifactNotFoundError, ClusterError
from llmrec_ray.events import EventStore
from llmrec_ray.recommend import Pipeline, Request
from llmrec_ray.serve import Endpoint, start

WHITE = {f"i{item:03}" for item in range(1, 40, 2)}
LIMITS = RequestLimits(max_k=50, max_history=100, max_text_chars=100, max_events=5, max_body_bytes=20_000)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def proxies_of_this_ray() -> list[str]:
    import ray

    node = ray.get_runtime_context().get_node_id()
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_text().replace("\0", " ")
        except OSError:
            continue
        if "haproxy" in command and node in command:
            found.append(command)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("endpoint")


@pytest.fixture(scope="module")
def release_uri(tiny_release, folder) -> str:
    file = folder / "release.json"
    file.write_text(tiny_release.model_dump_json())
    return str(file)


@pytest.fixture(scope="module")
def endpoint(ray_session, release_uri, folder):
    """Two Ingress replicas, so that every test runs against both."""
    two = Replicas(min_replicas=2, max_replicas=2)
    config = ServeConfig(port=free_port(), limits=LIMITS, ingress=two)
    with start(config, release_uri, str(folder / "events"), api_key="the key") as endpoint:
        assert proxies_of_this_ray()
        yield endpoint
    assert proxies_of_this_ray() == []


@pytest.fixture
def http(endpoint):
    with httpx.Client(base_url=endpoint.url, headers={"Authorization": "Bearer the key"}, timeout=30) as client:
        yield client


def recommend(http: httpx.Client, **body) -> dict:
    response = http.post("/v1/recommend", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def ids(answer: dict) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def click(http: httpx.Client, event_id: str, user_id: str, item_id: str) -> dict:
    body = {"events": [{"event_id": event_id, "user_id": user_id, "item_id": item_id}]}
    response = http.post("/v1/events", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_endpoint_answers_what_the_pipeline_in_this_process_answers(http, tiny_release):
    bodies = [
        {"user_id": "u001", "k": 8, "exclude_seen": False, "explain": True},
        {"history": ["i002", "i004"], "k": 8},
        {"user_id": "nobody", "k": 8},
        {"query": "thing painted white", "profile": "likes black", "k": 8},
        {"user_id": "u002", "filters": {"attributes": {"colour": "white"}, "deny": ["i001"]}, "k": 50},
    ]
    pipeline = Pipeline.of_release(tiny_release, limits=LIMITS)
    for body in bodies:
        [expected] = pipeline.recommend([Request.model_validate(body)])
        answer = recommend(http, **body)
        assert ids(answer) == [item.item_id for item in expected.items]
        for name in ("user", "cold", "notes", "ignored_items", "release"):
            assert answer[name] == getattr(expected, name)
        assert [item["score"] for item in answer["items"]] == pytest.approx(
            [item.score for item in expected.items], abs=1e-4
        )


def test_an_answer_names_its_release_and_itself_times_its_stages_and_is_not_degraded(http, tiny_release):
    one, other = recommend(http, user_id="u001"), recommend(http, user_id="u001")
    assert one["release"] == tiny_release.id
    assert one["request_id"] != other["request_id"]
    assert one["degraded"] == []
    assert set(one["timings_ms"]) == {"retrieve", "rerank", "total"}
    assert one["timings_ms"]["total"] >= one["timings_ms"]["retrieve"] + one["timings_ms"]["rerank"]
    assert set(recommend(http, query="white")["timings_ms"]) == {"encode", "retrieve", "rerank", "total"}


def test_explained_shares_add_up_over_http(http):
    for item in recommend(http, user_id="u001", exclude_seen=False, explain=True)["items"]:
        assert sum(item["shares"].values()) == pytest.approx(item["score"], abs=1e-5)


def test_the_next_answer_after_an_event_already_sees_it_whichever_replica_answers(endpoint, http):
    for visitor in range(15):
        user = f"visitor {visitor}"
        assert recommend(http, user_id=user)["cold"] is True
        assert click(http, f"click {visitor}", user, "i001")["accepted"] == 1
        with httpx.Client(base_url=endpoint.url, headers=http.headers) as other_connection:
            answer = recommend(other_connection, user_id=user, k=5)
        assert answer["cold"] is False
        assert set(ids(answer)) <= WHITE - {"i001"}


def test_an_event_is_on_disk_when_it_is_acknowledged_and_counts_once(http, folder, tiny_release):
    first = click(http, "only once", "u007", "i000")
    again = click(http, "only once", "u007", "i000")
    assert (first["accepted"], first["duplicates"], first["unknown_items"]) == (1, 0, [])
    assert (again["accepted"], again["duplicates"]) == (0, 1)
    assert first["release"] == tiny_release.id
    lines = [line for file in (folder / "events" / "log").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert [json.loads(line)["item_id"] for line in lines if json.loads(line)["event_id"] == "only once"] == ["i000"]


def test_an_event_about_an_item_that_the_release_does_not_know_is_kept_and_named(http):
    answer = click(http, "tomorrow", "visitor", "not yet made")
    assert (answer["accepted"], answer["unknown_items"]) == (1, ["not yet made"])
    assert recommend(http, user_id="visitor")["cold"] is True


def test_many_people_may_ask_at_once(http):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: recommend(http, user_id=f"u{n % 40:03}", k=3, exclude_seen=False), range(80)))
    for number, answer in enumerate(answers):
        assert {int(item_id[1:]) % 2 for item_id in ids(answer)} == {number % 2}


def test_similar_items_come_over_http(http, tiny_release):
    response = http.get("/v1/similar/i001", params={"k": 4})
    expected = Pipeline.of_release(tiny_release).similar("i001", 4)
    assert response.status_code == 200
    assert ids(response.json()) == [item.item_id for item in expected]
    assert response.json()["item_id"] == "i001"


def test_health_needs_no_key_and_readiness_asks_every_stage(endpoint, tiny_release):
    assert httpx.get(f"{endpoint.url}/healthz").json() == {"status": "ok", "release": tiny_release.id}
    assert httpx.get(f"{endpoint.url}/readyz").json() == {"status": "ready", "release": tiny_release.id}


def test_the_contract_is_published_as_openapi_with_docs(endpoint):
    contract = httpx.get(f"{endpoint.url}/openapi.json").json()
    assert set(contract["paths"]) == {
        "/v1/recommend", "/v1/similar/{item_id}", "/v1/events", "/v1/about", "/v1/users", "/v1/users/{user_id}/history",
        "/v1/admin/items", "/v1/admin/publish", "/v1/admin/status", "/v1/admin/users/{user_id}", "/healthz", "/readyz",
    }
    recommend_operation = contract["paths"]["/v1/recommend"]["post"]
    assert recommend_operation["security"] == [{"HTTPBearer": []}]
    assert recommend_operation["responses"]["422"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Problem"
    }
    assert "weights" in contract["components"]["schemas"]["Request"]["properties"]
    assert httpx.get(f"{endpoint.url}/docs").status_code == 200


@pytest.mark.parametrize(("header", "message"), [
    (None, "Send the API key in the header `Authorization: Bearer KEY`."),
    ("Basic dGhlIGtleQ==", "Send the API key in the header `Authorization: Bearer KEY`."),
    ("Bearer another key", "The API key is wrong."),
])
@pytest.mark.parametrize(("method", "path"), [
    ("POST", "/v1/recommend"), ("POST", "/v1/events"), ("GET", "/v1/similar/i001"),
])
def test_without_the_right_key_nothing_is_told(endpoint, method, path, header, message):
    headers = {} if header is None else {"Authorization": header}
    response = httpx.request(method, endpoint.url + path, headers=headers, json={} if method == "POST" else None)
    assert response.status_code == 401
    assert response.json() == {"code": "unauthorized", "message": message, "field": None}
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/events", "/v1/nothing", "/v1/../v1/recommend", "//v1/events"])
@pytest.mark.parametrize("content", [b'{"user_id": ', b"\xff", b"[]", b"x" * 30_000])
def test_without_the_right_key_not_even_a_broken_or_huge_body_is_looked_at(endpoint, path, content):
    headers = {"Content-Type": "application/json", "Authorization": "Bearer wrong"}
    response = httpx.post(endpoint.url + path, headers=headers, content=content)
    assert (response.status_code, response.json()["message"]) == (401, "The API key is wrong.")


def test_a_body_over_the_limit_is_refused_whether_or_not_it_says_how_long_it_is(http):
    body = json.dumps({"history": ["i001"], "filters": {"deny": ["x" * 200] * 150}}).encode()
    pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)]
    for content in (body, iter(pieces)):
        response = http.post("/v1/recommend", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert response.json() == {
            "code": "too_large", "message": "The body is larger than 20000 bytes: send less at once.", "field": "body",
        }
    assert recommend(http, history=["i001"], filters={"deny": ["x" * 200] * 90})["items"]


WRONG = [
    ("/v1/recommend", {}, 422, "invalid_request", "user_id",
     "The request says nothing about who asks or what for: give at least one of user_id, history, query and profile."),
    ("/v1/recommend", {"user_id": "u001", "k": 51}, 422, "invalid_request", "k",
     "k is 51; it must be between 1 and 50."),
    ("/v1/recommend", {"user_id": "u001", "k": 0}, 422, "invalid_request", "k",
     "k is 0; it must be at least 1."),
    ("/v1/recommend", {"user_id": "u001", "colour": 1}, 422, "invalid_request", "colour",
     "colour is not known here: leave it out, or see /docs for the names that are."),
    ("/v1/recommend", {"query": ""}, 422, "invalid_request", "query",
     "query is empty: send some text, or leave the field out."),
    ("/v1/recommend", {"user_id": "u001", "filters": {"attributes": {"size": 1}}}, 422, "invalid_request",
     "filters.attributes.size", "There is no item attribute 'size' to filter by; there are: colour."),
    ("/v1/recommend", {"user_id": "u001", "weights": {"luck": 1.0}}, 422, "invalid_request", "weights.luck",
     "weights.luck is \"luck\"; it must be one of 'neural', 'ncf', 'item_item', 'text' or 'popularity'."),
    ("/v1/recommend", [], 422, "invalid_request", "body",
     "body is a list; it must be an object in { }."),
    ("/v1/events", {"events": []}, 422, "invalid_request", "events",
     "events has 0 entries; at least 1 must be sent."),
    ("/v1/events", {"events": [{"event_id": "a", "user_id": "u"}]}, 422, "invalid_request", "events.0.item_id",
     "events.0.item_id is missing: send it."),
    ("/v1/events", {"events": [{"event_id": str(n), "user_id": "u", "item_id": "i"} for n in range(6)]}, 422,
     "invalid_request", "events", "There are 6 events; at most 5 are taken at once: send fewer."),
    ("/v1/nothing", {}, 404, "not_found", None, "There is nothing at /v1/nothing; see /docs."),
    ("/healthz", {}, 405, "method_not_allowed", None, "/healthz does not answer POST; see /docs."),
]


@pytest.mark.parametrize(("path", "body", "status", "code", "field", "message"), WRONG)
def test_a_wrong_request_gets_code_sentence_and_field(http, path, body, status, code, field, message):
    response = http.post(path, json=body)
    assert response.json() == {"code": code, "message": message, "field": field}
    assert response.status_code == status


def test_a_body_that_is_no_json_is_named_so(http):
    for content, content_type, message in (
        (b'{"user_id": ', "application/json", "The body is not valid JSON: Expecting value at character 12."),
        (b'{"user_id": "u001"}', "application/x-www-form-urlencoded",
         "The body must be JSON: send the header `Content-Type: application/json`."),
    ):
        response = http.post("/v1/recommend", content=content, headers={"Content-Type": content_type})
        assert response.status_code == 422
        assert response.json() == {"code": "invalid_request", "message": message, "field": "body"}


def test_an_item_id_may_hold_a_slash(http, tiny_release):
    response = http.get("/v1/similar/shoes%2Fred")
    assert response.json()["message"] == f"There is no item 'shoes/red' in release {tiny_release.id}."


def test_an_unknown_item_is_not_found_and_a_wrong_k_is_named(http, tiny_release):
    response = http.get("/v1/similar/gone")
    assert response.status_code == 404
    assert response.json() == {
        "code": "not_found", "message": f"There is no item 'gone' in release {tiny_release.id}.", "field": "item_id",
    }
    response = http.get("/v1/similar/i001", params={"k": "many"})
    assert response.json() == {
        "code": "invalid_request", "field": "k",
        "message": 'k is "many"; it must be a whole number.',
    }


def test_the_printed_command_asks_a_real_question(endpoint):
    words = shlex.split(endpoint.curl({"user_id": "u001", "history": ["Schindler's List"], "k": 2}))
    headers = dict(words[n + 1].split(": ", 1) for n, word in enumerate(words) if word == "-H")
    response = httpx.post(words[2], headers=headers, content=words[words.index("-d") + 1])
    assert words[:2] == ["curl", "-s"]
    assert len(response.json()["items"]) == 2


def test_a_port_that_is_taken_is_not_shared(ray_session, endpoint, release_uri, folder):
    port = int(endpoint.url.rsplit(":", 1)[1])
    with pytest.raises(ClusterError) as caught:
        start(ServeConfig(port=port), release_uri, str(folder / "events"))
    assert str(caught.value) == f"Port {port} is taken: stop what listens there, or set serve.port to another."


def test_a_serve_that_already_runs_is_neither_joined_nor_stopped(ray_session, endpoint, http, release_uri, folder):
    with pytest.raises(ClusterError) as caught:
        start(ServeConfig(port=free_port()), release_uri, str(folder / "events"))
    assert str(caught.value).startswith("Ray Serve already runs on this cluster (applications: llmrec")
    assert str(caught.value).endswith(
        "), and stopping this endpoint would stop it: deploy with `serve deploy serve_config.yaml`, or stop that one "
        "with `serve shutdown`."
    )
    assert recommend(http, user_id="u001")["items"]


def test_a_key_does_not_show_where_an_endpoint_is_printed(endpoint):
    assert "the key" not in repr(endpoint)


def test_a_missing_release_is_named_before_anything_starts(ray_session, folder):
    with pytest.raises(ArtifactNotFoundError, match=r"There is no Release at .*nowhere\.json: run `llmrec publish`"):
        start(ServeConfig(port=free_port()), str(folder / "nowhere.json"), str(folder / "events"))


class BrokenEncoder:
    """An Encoder whose every call fails."""

    def encode(self, snapshot_id, queries, profiles):
        raise RuntimeError("out of memory")

    def held_snapshots(self):
        return ["another"]


class BrokenRetriever(BrokenEncoder):
    """A Retriever whose every call fails."""

    def retrieve(self, batch, encoded):
        raise RuntimeError("out of memory")

    similar = retrieve


@pytest.fixture(scope="module")
def broken(endpoint, release_uri, folder):
    """Two more applications on the same Serve: one whose Encoder fails, one whose Retriever fails."""
    import cloudpickle
    from ray import serve

    import tests.test_serve_http as this_module
    from llmrec_ray.config import ApiKey
    from llmrec_ray.serve import ServeArgs
    from llmrec_ray.serve.ingress import Ingress
    from llmrec_ray.serve.keys import hash_key
    from llmrec_ray.serve.releases import Releases
    from llmrec_ray.serve.replicas import RerankerReplica, RetrieverReplica

    cloudpickle.register_pickle_by_value(this_module)
    keys = [ApiKey(name="test", sha256=hash_key("the key"))]
    args = ServeArgs(release_uri=release_uri, events_folder=str(folder / "broken"), limits=LIMITS, keys=keys)
    light = {"ray_actor_options": {"num_cpus": 0.1}}
    for name, retriever in {"no_encoder": RetrieverReplica, "no_retriever": BrokenRetriever}.items():
        releases = serve.deployment(Releases, name="Releases", **light).bind(release_uri, args.follow, ("ingress",))
        needed = (args, releases) if retriever is RetrieverReplica else ()
        application = serve.deployment(Ingress, name="Ingress", **light).bind(
            args, keys, releases,
            serve.deployment(BrokenEncoder, name="Encoder", **light).bind(),
            serve.deployment(retriever, name="Retriever", **light).bind(*needed),
            serve.deployment(RerankerReplica, name="Reranker", **light).bind(args, releases),
        )
        serve.run(application, name=name, route_prefix=f"/{name}")
    cloudpickle.unregister_pickle_by_value(this_module)


def test_a_failing_encoder_costs_the_text_but_not_the_answer(http, broken):
    body = {"user_id": "u001", "query": "white", "k": 3, "exclude_seen": False}
    answer = http.post("/no_encoder/v1/recommend", json=body).json()
    without = recommend(http, user_id="u001", k=3, exclude_seen=False)
    assert answer["degraded"] == ["encoder"]
    assert ids(answer) == ids(without)


def test_a_text_that_could_not_be_encoded_leaves_a_stranger_cold(http, broken):
    answer = http.post("/no_encoder/v1/recommend", json={"query": "white", "k": 3}).json()
    assert (answer["degraded"], answer["cold"]) == (["encoder"], True)
    assert answer["notes"] == ["There is nothing to go by, so the most popular items are shown."]


def test_the_key_is_asked_for_below_a_route_prefix_too(endpoint, broken):
    assert httpx.post(f"{endpoint.url}/no_encoder/v1/recommend", json={"user_id": "u001"}).status_code == 401
    assert httpx.get(f"{endpoint.url}/no_encoder/healthz").status_code == 200


def test_a_failing_retriever_costs_the_taste_but_not_the_answer(http, broken):
    body = {"user_id": "u001", "k": 3, "explain": True, "filters": {"attributes": {"colour": "black"}}}
    answer = http.post("/no_retriever/v1/recommend", json=body).json()
    assert answer["degraded"] == ["retriever"]
    assert len(ids(answer)) == 3
    assert not set(ids(answer)) & WHITE
    assert all(item["shares"] == {"popularity": item["score"]} for item in answer["items"])


def test_what_cannot_be_done_without_a_stage_is_unavailable_and_the_endpoint_not_ready(http, broken):
    response = http.get("/no_retriever/v1/similar/i001")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert response.json() == {
        "code": "unavailable", "field": None,
        "message": "A stage of the endpoint did not answer: send the request again in a moment.",
    }
    response = http.get("/no_retriever/readyz")
    assert response.status_code == 503
    assert response.json()["message"].startswith("encoder and retriever do not hold release ")


def test_events_survive_a_restart_of_the_endpoint_and_the_loss_of_its_view(
    ray_session, endpoint, http, release_uri, folder, monkeypatch
):
    click(http, "before the restart", "returning visitor", "i001")
    endpoint.stop()
    assert proxies_of_this_ray() == []
    for file in (folder / "events").glob("view.sqlite*"):
        file.unlink()
    config = ServeConfig(port=free_port(), limits=LIMITS)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with start(config, release_uri, str(folder / "events")) as again:
        monkeypatch.delenv("http_proxy")
        assert isinstance(again, Endpoint)
        assert len(again.api_key) >= 32
        with httpx.Client(base_url=again.url, headers={"Authorization": f"Bearer {again.api_key}"}) as client:
            answer = recommend(client, user_id="returning visitor", k=5)
            assert click(client, "before the restart", "returning visitor", "i001")["duplicates"] == 1
    assert answer["cold"] is False
    assert set(ids(answer)) <= WHITE - {"i001"}
    with EventStore.open(folder / "events") as store:
        assert store.newest("returning visitor", 5) == ["i001"]
