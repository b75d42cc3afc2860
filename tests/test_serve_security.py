"""Keys, roles, rates, sizes, slow clients, headers and wording, over real HTTP against a small application."""

from __future__ import annotations

import json
import logging
import re
import statistics
import time
from hashlib import sha256
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmrec_ray.config import ApiKey, AppConfig, RequestLimits
from llmrec_ray.errors import ConfigError, RequestError
from llmrec_ray.serve.guard import Guard
from llmrec_ray.serve.keys import Keyring, TokenBucket, hash_key, keys_for_start, resolve_keys
from llmrec_ray.serve.logs import AccessLog, note, request_id
from llmrec_ray.serve.problems import SECURITY_HEADERS, UnavailableError, add_problem_handlers, responses
from llmrec_ray.serve.validation import KINDS, SENTENCES
from tests.local_http import send_raw, served

KEYS = [
    ApiKey(name="shop", sha256=hash_key("shop key")),
    ApiKey(name="slow", sha256=hash_key("slow key"), requests_per_second=2.0),
    ApiKey(name="ops", sha256=hash_key("ops key"), admin=True),
]
SETTINGS = SimpleNamespace(keyring=Keyring(KEYS), limits=RequestLimits(max_body_bytes=5000, body_timeout_s=0.5))


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: Annotated[int, Field(gt=0, lt=100)]
    label: Annotated[str, Field(pattern="^[a-z]+$")] = "a"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=2, max_length=5)] = "abc"
    k: Annotated[int, Field(ge=1, le=10)] = 1
    weights: dict[Literal["neural", "text"], Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] = {}
    wanted: dict[str, str | int | list[str | int]] = {}
    items: Annotated[list[str], Field(min_length=1, max_length=3)] = ["a"]
    parts: list[Part] = []
    explain: bool = False


def small_app() -> FastAPI:
    app = FastAPI()
    add_problem_handlers(app)
    app.add_middleware(Guard, settings=lambda: SETTINGS)
    app.add_middleware(AccessLog)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/recommend", responses=responses("unauthorized"))
    async def recommend(body: Body) -> dict[str, Any]:
        note(release="r1", degraded=["encoder"])
        return {"k": body.k, "request_id": request_id()}

    @app.get("/v1/users/{user_id}/history")
    async def history(user_id: str, n: Annotated[int, Field(ge=1)] = 1) -> dict[str, str]:
        errors = {
            "late": UnavailableError("A stage did not answer: send the request again in a moment."),
            "wrong": RequestError("There is no such user.", field="user_id", code="not_found"),
            "broken": RuntimeError("10.0.0.7 refused alice with secret"),
        }
        if user_id in errors:
            raise errors[user_id]
        return {"user_id": user_id}

    @app.get("/v1/admin/status")
    @app.get("/v1/admin")
    async def status() -> dict[str, str]:
        return {"status": "fine"}

    return app


@pytest.fixture(scope="module")
def url():
    with served(small_app()) as url:
        yield url


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, headers={"Authorization": "Bearer shop key"}) as client:
        yield client


def keyed(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_found_by_its_hash_and_no_other_is():
    ring = Keyring(KEYS)
    assert [ring.find(sent) for sent in ("shop key", "slow key", "ops key")] == KEYS
    assert [ring.find(sent) for sent in ("", "shop", "shop key ", hash_key("shop key"), "schlüssel")] == [None] * 5


def test_every_key_is_compared_wherever_the_match_stands(monkeypatch):
    compared = []
    from llmrec_ray.serve import keys

    def compare(held: bytes, sent: bytes) -> bool:
        compared.append(held)
        return held == sent

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    ring = Keyring(KEYS)
    for sent in ("shop key", "ops key", "none of them"):
        compared.clear()
        ring.find(sent)
        assert compared == [bytes.fromhex(key.sha256) for key in KEYS]


def test_a_bucket_lets_a_second_s_worth_through_at_once_and_then_the_rate():
    now = [100.0]
    bucket = TokenBucket(4.0, lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [0.0] * 4
    assert bucket.take() == pytest.approx(0.25)
    passed = 0
    for _ in range(1000):
        now[0] += 0.01
        passed += bucket.take() == 0.0
    assert passed == pytest.approx(40, abs=1)
    now[0] += 1000.0
    assert [bucket.take() == 0.0 for _ in range(5)] == [True] * 4 + [False]


def test_a_rate_below_one_a_second_still_lets_one_through_and_says_when_to_come_again():
    now = [0.0]
    ring = Keyring([ApiKey(name="rare", sha256=hash_key("rare"), requests_per_second=0.1)])
    ring._buckets[hash_key("rare")]._clock = lambda: now[0]
    key = ring.find("rare")
    ring._buckets[hash_key("rare")]._filled = 0.0
    assert (ring.wait_s(key), ring.wait_s(key)) == (0, 10)
    now[0] = 10.0
    assert ring.wait_s(key) == 0


def test_finding_a_key_and_counting_it_costs_microseconds():
    ring = Keyring([ApiKey(name="one", sha256=hash_key("one"), requests_per_second=1e9), *KEYS])
    took = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(500):
            ring.wait_s(ring.find("one"))
        took.append((time.perf_counter() - start) / 500)
    assert statistics.median(took) < 30e-6


def test_keys_come_from_the_settings_and_from_the_environment(monkeypatch):
    monkeypatch.setenv("LLMREC_API_KEY", "from outside")
    monkeypatch.setenv("LLMREC_ADMIN_KEY", "for admins")
    ring = Keyring(resolve_keys(KEYS))
    assert ring.find("shop key") == KEYS[0]
    assert ring.find("from outside").admin is False
    assert ring.find("for admins").admin is True


def test_without_any_key_nothing_is_served(monkeypatch):
    monkeypatch.delenv("LLMREC_API_KEY", raising=False)
    monkeypatch.delenv("LLMREC_ADMIN_KEY", raising=False)
    with pytest.raises(ConfigError) as caught:
        resolve_keys([])
    assert str(caught.value) == (
        "The endpoint has no API key: set keys in the arguments (sha256 from `printf %s KEY | sha256sum`), or "
        "LLMREC_API_KEY in the environment."
    )


def test_the_admin_key_must_be_another_one():
    with pytest.raises(ConfigError) as caught:
        keys_for_start([], "same", "same")
    assert str(caught.value) == (
        "LLMREC_API_KEY and LLMREC_ADMIN_KEY are the same: give the admin key to fewer people, as another key."
    )


def test_keys_are_made_for_the_roles_that_nobody_has_one_for(monkeypatch):
    monkeypatch.delenv("LLMREC_API_KEY", raising=False)
    monkeypatch.delenv("LLMREC_ADMIN_KEY", raising=False)
    made, again = keys_for_start([]), keys_for_start([])
    assert (made.made_api_key, made.made_admin_key) == (True, True)
    assert len({made.api_key, made.admin_key, again.api_key, again.admin_key}) == 4
    assert min(len(made.api_key), len(made.admin_key)) >= 32
    ring = Keyring(made.keys)
    assert (ring.find(made.api_key).admin, ring.find(made.admin_key).admin) == (False, True)
    assert made.api_key not in repr(made)
    configured = keys_for_start(KEYS)
    assert (configured.api_key, configured.admin_key, configured.keys) == (None, None, KEYS)
    given = keys_for_start([], "given")
    assert (given.api_key, given.made_api_key, given.made_admin_key) == ("given", False, True)


@pytest.mark.parametrize(("keys", "message"), [
    ([{"name": "a", "sha256": "0" * 64}, {"name": "a", "sha256": "1" * 64}],
     "keys holds name a 2 times: give every key a name of its own"),
    ([{"name": "a", "sha256": "0" * 64}, {"name": "b", "sha256": "0" * 64}],
     f"keys holds sha256 {'0' * 64} 2 times: give every key a sha256 of its own"),
])
def test_two_keys_do_not_share_a_name_or_a_hash(keys, message):
    with pytest.raises(ValidationError) as caught:
        AppConfig(keys=keys)
    assert message in str(caught.value)


def test_a_key_in_plain_text_is_not_taken_for_a_hash():
    with pytest.raises(ValidationError):
        ApiKey(name="a", sha256="my secret")


@pytest.mark.parametrize(("headers", "message"), [
    ({}, "Send the API key in the header `Authorization: Bearer KEY`."),
    ({"Authorization": "Basic c2hvcCBrZXk="}, "Send the API key in the header `Authorization: Bearer KEY`."),
    (keyed("another"), "The API key is wrong."),
    (keyed(sha256(b"shop key").hexdigest()), "The API key is wrong."),
])
@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/users/alice/history", "/v1/admin/status", "/nothing", "//", ""])
def test_nothing_but_the_open_routes_answers_without_a_key(url, path, headers, message):
    if path == "":
        path = "/healthz/"
    response = httpx.post(url + path, headers=headers)
    assert response.status_code == 401
    assert response.json() == {"code": "unauthorized", "message": message, "field": None}
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_the_open_routes_answer_without_a_key(url):
    assert httpx.get(f"{url}/healthz").status_code == 200
    assert httpx.get(f"{url}/openapi.json").status_code == 200
    assert httpx.get(f"{url}/docs").status_code == 200


@pytest.mark.parametrize("path", ["/v1/admin/status", "/v1/admin", "/v1/admin/", "/v1/admin%2Fstatus", "/v1/admin/x"])
def test_control_needs_an_admin_key(url, path):
    response = httpx.get(url + path, headers=keyed("shop key"))
    assert response.status_code == 403
    assert response.json() == {
        "code": "forbidden", "field": None, "message": "This needs an admin key, and the key that was sent is none.",
    }


def test_an_admin_key_opens_control_and_the_rest(url):
    assert httpx.get(f"{url}/v1/admin/status", headers=keyed("ops key")).status_code == 200
    assert httpx.post(f"{url}/v1/recommend", headers=keyed("ops key"), json={}).status_code == 200


def test_without_an_admin_key_the_way_to_have_one_is_named(url, monkeypatch):
    monkeypatch.setattr(SETTINGS, "keyring", Keyring(KEYS[:2]))
    assert httpx.get(f"{url}/v1/admin/status", headers=keyed("shop key")).json()["message"] == (
        "This needs an admin key, and the endpoint has none: set LLMREC_ADMIN_KEY, or a key with admin: true."
    )


def test_a_key_that_asks_too_often_is_told_when_to_come_again_and_others_are_not_slowed(url, monkeypatch):
    monkeypatch.setattr(SETTINGS, "keyring", Keyring(KEYS))
    answers = [httpx.post(f"{url}/v1/recommend", headers=keyed("slow key"), json={}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert answers[2].headers["Retry-After"] == "1"
    assert answers[2].json() == {
        "code": "too_many_requests", "field": None,
        "message": "This key has asked too often: send the request again in 1 s.",
    }
    assert httpx.post(f"{url}/v1/recommend", headers=keyed("shop key"), json={}).status_code == 200
    time.sleep(1.0)
    assert httpx.post(f"{url}/v1/recommend", headers=keyed("slow key"), json={}).status_code == 200


def test_browsers_are_told_to_trust_nothing(url, http):
    for response in (
        http.post("/v1/recommend", json={}), http.get("/nothing"), httpx.get(f"{url}/v1/admin/status"),
        http.get("/v1/users/broken/history"),
    ):
        assert {name: response.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    policy = httpx.get(f"{url}/docs").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    page = httpx.get(f"{url}/docs").text
    for address in re.findall(r'(?:src|href)="(https://[^"]*)"', page):
        assert any(address.startswith(allowed) for allowed in re.findall(r"https://\S+?(?=[ ;])", policy))


def test_no_website_may_ask_in_its_visitors_name(http):
    asked = {"Origin": "https://x.example", "Access-Control-Request-Method": "POST"}
    response = http.options("/v1/recommend", headers=asked)
    assert response.status_code == 405
    assert not any(name.startswith("access-control") for name in response.headers)


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(http):
    problem = {
        "code": "too_large", "field": "body", "message": "The body is larger than 5000 bytes: send less at once.",
    }
    large = json.dumps({"name": "x" * 6000}).encode()
    said = http.post("/v1/recommend", content=large)
    unsaid = http.post("/v1/recommend", content=iter([large[:3000], large[3000:]]))
    assert [(answer.status_code, answer.json()) for answer in (said, unsaid)] == [(413, problem)] * 2


def test_a_length_that_is_no_length_is_refused(url):
    for length in (b"99999999999999999999999", b"-1", b"1e3"):
        answer = send_raw(
            url, b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer shop key\r\n"
            b"Content-Length: " + length + b"\r\n\r\n{}",
        )
        assert re.match(rb"HTTP/1.1 4\d\d ", answer), answer


def test_a_body_that_trickles_in_is_refused_before_it_holds_a_replica(url):
    start = time.perf_counter()
    answer = send_raw(
        url, b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer shop key\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n", b"{", b" ", b" ", pause_s=0.1,
    )
    assert time.perf_counter() - start < 3
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
        "code": "too_slow", "field": "body",
        "message": "The body had not arrived after 0.5 s: send it faster, or less at once.",
    }


def test_a_client_that_goes_away_in_the_middle_of_its_body_harms_nobody(url, http):
    import socket

    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer shop key\r\nContent-Length: 100\r\n\r\n{"
        )
    assert http.post("/v1/recommend", json={}).status_code == 200


def test_an_error_tells_neither_stack_nor_address_nor_who(url, http, caplog):
    with caplog.at_level(logging.ERROR, "ray.serve"):
        response = http.get("/v1/users/broken/history")
    assert "Unexpected error at /v1/users/{user_id}/history" in caplog.messages
    assert (response.status_code, response.json()) == (500, {
        "code": "internal", "field": None,
        "message": "Something unexpected went wrong; the endpoint's log has the details.",
    })


def test_overload_says_when_to_come_again(http):
    response = http.get("/v1/users/late/history")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert response.json()["code"] == "unavailable"


WRONG = [
    ({"nmae": "x"}, "nmae", "nmae is not known here: leave it out, or see /docs for the names that are."),
    ({"name": "x"}, "name", "name has 1 characters; at least 2 must be sent."),
    ({"name": "xxxxxx"}, "name", "name has 6 characters; at most 5 are taken: shorten it."),
    ({"name": 3}, "name", "name is 3; it must be text in quotes."),
    ({"name": None}, "name", "name is null; it must be text in quotes."),
    ({"name": {"a": 1}}, "name", "name is an object; it must be text in quotes."),
    ({"k": 0}, "k", "k is 0; it must be at least 1."),
    ({"k": -5}, "k", "k is -5; it must be at least 1."),
    ({"k": 11}, "k", "k is 11; it must be at most 10."),
    ({"k": 1.5}, "k", "k is 1.5; it must be a whole number."),
    ({"k": "many"}, "k", 'k is "many"; it must be a whole number.'),
    ({"k": [1]}, "k", "k is a list; it must be a whole number."),
    ({"k": "9" * 60}, "k", None),
    ({"weights": {"neural": -1}}, "weights.neural", "weights.neural is -1; it must be at least 0.0."),
    ({"weights": {"neural": "x"}}, "weights.neural", 'weights.neural is "x"; it must be a number.'),
    ({"weights": {"loud": 1}}, "weights.loud", "weights.loud is \"loud\"; it must be one of 'neural' or 'text'."),
    ({"weights": []}, "weights", "weights is a list; it must be an object in { }."),
    ({"wanted": {"genre": {}}}, "wanted.genre",
     "wanted.genre is an object; it must be text in quotes or a whole number or a list in [ ]."),
    ({"wanted": {"genre": [None]}}, "wanted.genre",
     "wanted.genre is a list; it must be text in quotes or a whole number."),
    ({"items": []}, "items", "items has 0 entries; at least 1 must be sent."),
    ({"items": list("abcd")}, "items", "items has 4 entries; at most 3 are taken: send fewer."),
    ({"items": "a"}, "items", 'items is "a"; it must be a list in [ ].'),
    ({"items": ["a", 2]}, "items.1", "items.1 is 2; it must be text in quotes."),
    ({"parts": [{}]}, "parts.0.size", "parts.0.size is missing: send it."),
    ({"parts": [{"size": 0}]}, "parts.0.size", "parts.0.size is 0; it must be above 0."),
    ({"parts": [{"size": 100}]}, "parts.0.size", "parts.0.size is 100; it must be below 100."),
    ({"parts": [{"size": 1, "label": "A"}]}, "parts.0.label", 'parts.0.label is "A"; it must match ^[a-z]+$.'),
    ({"parts": [3]}, "parts.0", "parts.0 is 3; it must be an object in { }."),
    ({"explain": "perhaps"}, "explain", 'explain is "perhaps"; it must be true or false.'),
    ([], "body", "body is a list; it must be an object in { }."),
    (3, "body", "body is 3; it must be an object in { }."),
]


@pytest.mark.parametrize(("body", "field", "message"), WRONG)
def test_what_is_wrong_is_said_in_a_sentence_with_field_value_and_remedy(http, body, field, message):
    response = http.post("/v1/recommend", json=body)
    assert response.status_code == 422
    problem = response.json()
    assert (problem["code"], problem["field"]) == ("invalid_request", field)
    if message is not None:
        assert problem["message"] == message
    assert len(problem["message"]) < 200


@pytest.mark.parametrize(("content", "message"), [
    (b'{"name": ', "The body is not valid JSON: Expecting value at character 9."),
    (b"{'name': 1}", "The body is not valid JSON: Expecting property name enclosed in double quotes at character 1."),
    (b"[" * 4900, None),
    (b'{"k": ' + b"1" * 4500 + b"}", None),
    (b'{"name": "\xff\xfe"}', None),
])
def test_a_body_that_is_no_json_is_named_so(http, content, message):
    response = http.post("/v1/recommend", content=content, headers={"Content-Type": "application/json"})
    unreadable = (
        "The body is not valid JSON: its text is not UTF-8, it is nested too deeply, or a number in it has too many "
        "digits."
    )
    assert (response.status_code, response.json()) == (
        422, {"code": "invalid_request", "field": "body", "message": message or unreadable}
    )


def test_numbers_that_are_none_and_text_that_is_none_are_named(http):
    for content, field, message in (
        (b'{"weights": {"text": NaN}}', "weights.text", "weights.text is NaN; it must be a finite number."),
        (b'{"weights": {"text": Infinity}}', "weights.text", "weights.text is Infinity; it must be a finite number."),
        (b'{"k": NaN}', "k", "k is NaN; it must be a finite number."),
        (b'{"name": "\\ud800"}', "name", 'name is "\\ud800"; it must be text that can be written as UTF-8.'),
    ):
        response = http.post("/v1/recommend", content=content, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()) == (
            422, {"code": "invalid_request", "field": field, "message": message}
        )


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_another_content_type_is_refused_with_the_right_one(http, content_type):
    response = http.post("/v1/recommend", content=b'{"k": 1}', headers={"Content-Type": content_type})
    assert (response.status_code, response.json()) == (422, {
        "code": "invalid_request", "field": "body",
        "message": "The body must be JSON: send the header `Content-Type: application/json`.",
    })


def test_no_body_at_all_is_named(http):
    assert http.post("/v1/recommend", headers={"Content-Type": "application/json"}).json()["message"] == (
        "body is missing: send it."
    )


def test_a_wrong_parameter_of_a_path_or_query_is_named(http):
    response = http.get("/v1/users/alice/history", params={"n": "some"})
    assert response.json() == {
        "code": "invalid_request", "field": "n", "message": 'n is "some"; it must be a whole number.',
    }
    response = http.get("/v1/users/alice/history", params={"n": -1})
    assert response.json()["message"] == 'n is "-1"; it must be at least 1.'


def test_what_does_not_exist_and_what_does_not_answer_a_method_are_told_apart(http):
    assert http.get("/v1/users/wrong/history").json()["code"] == "not_found"
    missing, wrong = http.get("/v1/nothing"), http.delete("/v1/recommend")
    assert (missing.status_code, missing.json()["message"]) == (404, "There is nothing at /v1/nothing; see /docs.")
    assert (wrong.status_code, wrong.json()["message"]) == (405, "/v1/recommend does not answer DELETE; see /docs.")
    assert wrong.headers["Allow"] == "POST"


def test_every_error_is_documented_with_an_example():
    documented = responses("unauthorized", "invalid_request", "too_many_requests")
    assert sorted(documented) == [401, 422, 429]
    assert documented[429]["content"]["application/json"]["example"]["code"] == "too_many_requests"


def test_sentences_are_for_kinds_of_errors_that_pydantic_knows():
    from typing import get_args

    from pydantic_core import core_schema

    assert {*KINDS, *SENTENCES} <= set(get_args(core_schema.ErrorType))


def test_answers_are_logged_by_route_and_request_and_never_by_person_key_or_text(http, caplog):
    with caplog.at_level(logging.INFO, "ray.serve"):
        answer = http.post("/v1/recommend", json={"name": "zorro"}, headers={"X-Request-ID": "abc-1"}).json()
        http.get("/v1/users/alice/history")
        http.post("/v1/recommend", json={}, headers=keyed("alice's key"))
        http.post("/v1/recommend", json={"name": "alice and bob"})
        while len(lines := [record for record in caplog.records if record.getMessage() == "answered"]) < 4:
            time.sleep(0.01)  # a line is written when its answer has left
    assert answer["request_id"] == lines[0].request_id == "abc-1"
    assert [(line.http_route, line.status) for line in lines] == [
        ("/v1/recommend", 200), ("/v1/users/{user_id}/history", 200), ("none", 401), ("/v1/recommend", 422),
    ]
    assert (lines[0].release, lines[0].degraded, lines[1].release) == ("r1", ["encoder"], None)
    written = json.dumps([record.__dict__ for record in caplog.records], default=str)
    for secret in ("alice", "zorro", "shop key"):
        assert secret not in written


def test_a_request_id_that_would_not_read_well_in_a_log_is_replaced(http):
    for sent in ("x" * 65, "a b", '{"level": "ERROR"}'):
        given = http.post("/v1/recommend", json={}, headers={"X-Request-ID": sent}).json()["request_id"]
        assert re.fullmatch("[0-9a-f]{32}", given)


def test_no_line_waits_in_memory_for_long(http, monkeypatch):
    from logging.handlers import MemoryHandler

    from llmrec_ray.serve import logs

    lines: list[str] = []

    class Written(logging.Handler):
        def emit(self, record):
            lines.append(record.http_route)

    monkeypatch.setattr(logs, "FLUSH_S", 0.05)
    handler = MemoryHandler(1000, target=Written())
    logs.logger.addHandler(handler)
    level = logs.logger.level
    logs.logger.setLevel(logging.INFO)
    try:
        time.sleep(1.1)  # a flush of earlier answers may be on its way
        http.post("/v1/recommend", json={})
        time.sleep(0.5)
        assert lines == ["/v1/recommend"]
    finally:
        logs.logger.removeHandler(handler)
        logs.logger.setLevel(level)
