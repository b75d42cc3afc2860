"""Requests that Schemathesis makes from the OpenAPI document, and the limits of every field, against the real Ingress.

The stages are real too, in this process and without Ray; see `local_endpoint`.
"""

from __future__ import annotations

import json

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from llmrec_ray.config import ApiKey, FollowConfig, RequestLimits
from llmrec_ray.serve import ServeArgs
from llmrec_ray.serve.keys import hash_key
from tests.local_endpoint import local_endpoint

HEADERS = {"Authorization": "Bearer the admin key"}
LIMITS = RequestLimits(max_k=50, max_history=1000, max_text_chars=100, max_events=5, max_body_bytes=4_000_000)
PYDANTIC = ("Input should", "Value error", "Field required", "Extra inputs")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def url(tiny_release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    release, pointer = folder / f"{tiny_release.id}.json", folder / "current.json"
    release.write_text(tiny_release.model_dump_json())
    pointer.write_text(json.dumps({"uri": str(release)}))
    args = ServeArgs(
        release_uri=str(pointer), events_folder=str(folder / "events"), limits=LIMITS,
        follow=FollowConfig(sync_s=0.02), keys=[ApiKey(name="test", sha256=hash_key("the admin key"), admin=True)],
    )
    with local_endpoint(args) as url:
        yield url


@pytest.fixture(scope="module")
def http(url):
    with httpx.Client(base_url=url, headers=HEADERS, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def operations(url):
    contract = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found = [result.ok() for result in contract.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


OPERATIONS = {  # each with how many requests are tried; those of admins change what is served, which takes a while
    "POST /v1/recommend": 150, "GET /v1/similar/{item_id}": 40, "POST /v1/events": 40, "GET /v1/about": 3,
    "GET /v1/users": 30, "GET /v1/users/{user_id}/history": 30, "POST /v1/admin/items": 12,
    "DELETE /v1/admin/items": 12, "POST /v1/admin/publish": 12, "GET /v1/admin/status": 3,
    "DELETE /v1/admin/users/{user_id}": 20, "GET /healthz": 3, "GET /readyz": 3,
}


def test_every_operation_of_the_contract_is_tried(operations):
    assert operations.keys() == OPERATIONS.keys()


@pytest.mark.parametrize(("operation", "mode"), [
    (operation, mode) for operation in OPERATIONS for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE or operation not in {"GET /healthz", "GET /readyz"}  # which take nothing
])
def test_no_request_made_from_the_contract_breaks_the_endpoint(operations, operation, mode):
    statuses = set()

    @settings(
        max_examples=OPERATIONS[operation], deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations[operation].as_strategy(generation_mode=mode))
    def ask(case):
        answer = case.call_and_validate(headers=HEADERS, checks=CHECKS)
        statuses.add(answer.status_code)
        if answer.status_code >= 400:
            problem = answer.json()
            assert problem.keys() == {"code", "message", "field"}
            assert not any(words in problem["message"] for words in PYDANTIC)

    ask()
    if mode is GenerationMode.POSITIVE and operation in {"POST /v1/recommend", "POST /v1/events", "GET /v1/users"}:
        assert 200 in statuses


def nested(field: str, value: object) -> dict[str, object]:
    """A body with a value at a dotted place."""
    *outer, last = field.split(".")
    body: dict[str, object] = {last: value}
    for name in reversed(outer):
        body = {name: body}
    return body


LONG = "x" * 257
RECOMMEND_LIMITS = [
    ("user_id", "", "user_id has 0 characters; at least 1 must be sent."),
    ("user_id", LONG, "user_id has 257 characters; at most 256 are taken: shorten it."),
    ("history", ["i001"] * 100_000, "history has 100000 items; at most 1000 are read: send the newest."),
    ("query", "x" * 101, "query has 101 characters; at most 100 are read: shorten it."),
    ("query", " ", "query is empty: send some text, or leave the field out."),
    ("profile", "x" * 101, "profile has 101 characters; at most 100 are read: shorten it."),
    ("k", 0, "k is 0; it must be at least 1."),
    ("k", -3, "k is -3; it must be at least 1."),
    ("k", 51, "k is 51; it must be between 1 and 50."),
    ("k", 10**30, None),
    ("k", 2.5, "k is 2.5; it must be a whole number."),
    ("filters.attributes.mood", "x", None),
    ("filters.ranges.colour", {}, None),
    ("weights.text", -1, None),
    ("weights.text", 1e9, None),
    ("weights.loud", 1, None),
    ("explain", 7, None),
    ("exclude_seen", "x", 'exclude_seen is "x"; it must be true or false.'),
]


@pytest.mark.parametrize(("field", "value", "message"), RECOMMEND_LIMITS)
def test_every_limit_of_a_recommendation_is_kept_and_named(http, field, value, message):
    response = http.post("/v1/recommend", json={"user_id": "u001"} | nested(field, value))
    problem = response.json()
    assert response.status_code == 422
    assert problem["field"] == field
    assert message in {None, problem["message"]}
    assert not any(words in problem["message"] for words in PYDANTIC)


@pytest.mark.parametrize(("content", "field"), [
    (b'{"history": ["%s"]}' % LONG.encode(), "history.0"),
    (b'{"user_id": "u", "k": NaN}', "k"),
    (b'{"user_id": "u", "weights": {"text": NaN}}', "weights.text"),
    (b'{"user_id": "u", "weights": {"text": Infinity}}', "weights.text"),
    (b'{"user_id": "u", "filters": {"ranges": {"colour": {"min": NaN}}}}', "filters.ranges.colour.min"),
    (b'{"user_id": "\\ud800"}', "user_id"),
    (b'{"user_id": "u", "filters": {"deny": [""]}}', "filters.deny.0"),
    (b'{"user_id": "u", "filters": {"allow": 3}}', "filters.allow"),
])
def test_what_json_allows_but_no_answer_can_use_is_named(http, content, field):
    response = http.post("/v1/recommend", content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["field"]) == (422, field)


EVENT = {"event_id": "a", "user_id": "u", "item_id": "i"}


@pytest.mark.parametrize(("events", "field"), [
    ([], "events"),
    ([EVENT] * 6, "events"),
    ([EVENT | {"event_id": ""}], "events.0.event_id"),
    ([EVENT | {"user_id": LONG}], "events.0.user_id"),
    ([EVENT | {"item_id": 3}], "events.0.item_id"),
    ([EVENT, EVENT | {"timestamp": -1}], "events.1.timestamp"),
    ([EVENT | {"timestamp": "yesterday"}], "events.0.timestamp"),
    ([EVENT | {"event": LONG}], "events.0.event"),
    ([EVENT | {"value": "much"}], "events.0.value"),
    ([EVENT | {"colour": "red"}], "events.0.colour"),
])
def test_every_limit_of_an_event_is_kept_and_named(http, events, field):
    response = http.post("/v1/events", json={"events": events})
    assert (response.status_code, response.json()["field"]) == (422, field)


@pytest.mark.parametrize(("method", "path", "body", "field"), [
    ("GET", "/v1/similar/i001?k=0", None, "k"),
    ("GET", "/v1/similar/i001?k=51", None, "k"),
    ("GET", "/v1/users?n=0", None, "n"),
    ("GET", f"/v1/users?prefix={LONG}", None, "prefix"),
    ("GET", "/v1/users/u001/history?n=101", None, "n"),
    ("POST", "/v1/admin/items", {"items": []}, "items"),
    ("POST", "/v1/admin/items", {"items": [{"item_id": LONG, "text": "x"}]}, "items.0.item_id"),
    ("POST", "/v1/admin/items", {"items": [{"item_id": "new", "text": "x" * 20_001}]}, "items.0.text"),
    ("DELETE", "/v1/admin/items", {"item_ids": [""]}, "item_ids.0"),
    ("POST", "/v1/admin/publish", {"release_id": "../../etc/passwd"}, "release_id"),
])
def test_every_limit_of_the_other_routes_is_kept_and_named(http, method, path, body, field):
    response = http.request(method, path, json=body)
    assert (response.status_code, response.json()["field"]) == (422, field), response.text


def test_the_contract_has_examples_of_every_problem(http):
    for path, operations in http.get("/openapi.json").json()["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if status != "200":
                    assert answer["content"]["application/json"]["example"]["code"], (path, status)
