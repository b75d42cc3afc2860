from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from llmrec_ray.config import ApiKey, RequestLimits
from llmrec_ray.recommend import Pipeline, Request, SimilarResponse
from llmrec_ray.serve import ServeArgs
from llmrec_ray.serve.explore import explorer, read_page
from llmrec_ray.serve.guard import Guard
from llmrec_ray.serve.keys import Keyring, hash_key
from llmrec_ray.serve.problems import add_problem_handlers
from tests.chromium import Tab, browser, find_chromium
from tests.local_endpoint import local_endpoint
from tests.local_http import served

KEY = "open sesame"
HOSTILE = "<img src=x onerror=document.title='owned'> & <b>thing</b>"
EVENTS = ["i001", "i003"]
WIDTHS = [390, 768, 1280]
SCHEMES = ["light", "dark"]


class Replica:
    """What the routes and the guard ask of an Ingress replica, around a pipeline in this process."""

    def __init__(self, release) -> None:
        self.limits = RequestLimits(max_k=40)
        self.keyring = Keyring([ApiKey(name="page", sha256=hash_key(KEY))])
        self.pipeline = Pipeline.of_release(release, limits=self.limits)
        self.explored_release, self.explored_resolver = release, self.pipeline.resolver
        self.degraded: list[str] = []
        self.delay_s = 0.0
        self.asked: list[Request] = []

    async def newest_of(self, user_id: str) -> list[str]:
        return EVENTS if user_id == "later" else []

    def recommend(self, request: Request) -> JSONResponse:
        self.asked.append(request)
        time.sleep(self.delay_s)
        [response] = self.pipeline.recommend([request])
        return JSONResponse(response.model_dump(mode="json", exclude_none=True) | {"degraded": self.degraded})

    def similar(self, item_id: str, k: int = 10) -> SimilarResponse:
        items = self.pipeline.similar(item_id, k)
        return SimilarResponse(item_id=item_id, items=items, release="r", request_id="q", timings_ms={"total": 1.0})


@pytest.fixture(scope="module")
def replica(tiny_release) -> Replica:
    replica = Replica(tiny_release)
    titles = replica.explored_resolver._titles
    replica.explored_resolver._titles = [HOSTILE if row == 5 else title for row, title in enumerate(titles)]
    return replica


@pytest.fixture(scope="module")
def url(replica):
    app = FastAPI()
    app.include_router(explorer(lambda: replica, {}))
    app.add_middleware(Guard, settings=lambda: replica)
    add_problem_handlers(app)
    app.post("/v1/recommend")(replica.recommend)
    app.get("/v1/similar/{item_id:path}")(replica.similar)
    with served(app) as url:
        yield url


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as client:
        yield client


def test_the_page_is_open_and_everything_it_asks_for_needs_the_key(url):
    assert httpx.get(f"{url}/", trust_env=False).status_code == 200
    for path in ("/v1/about", "/v1/users", "/v1/users/u001/history"):
        assert httpx.get(url + path, trust_env=False).status_code == 401


def test_only_the_script_and_the_styles_of_the_page_may_run(url):
    answer = httpx.get(f"{url}/", trust_env=False)
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        [inline] = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert not re.search(r' style=| on[a-z]+="|(?:src|href)="https?:', read_page())


def test_what_is_served_is_told(http, tiny_release):
    about = http.get("/v1/about").json()
    assert (about["release"], about["users"], about["items"], about["max_k"]) == (tiny_release.id, 40, 40, 40)
    assert about["signals"] == ["item_item", "ncf", "neural", "popularity", "text"]
    assert about["weights"] == tiny_release.policy.weights
    assert about["facets"] == [{
        "name": "colour", "minimum": None, "maximum": None, "more": False,
        "values": [{"value": "black", "items": 20}, {"value": "white", "items": 20}],
    }]


def test_users_are_found_by_how_their_ids_begin(http):
    def found(**query) -> list[str]:
        return [user["user_id"] for user in http.get("/v1/users", params=query).json()]

    assert found(n=3) == ["u000", "u001", "u002"]
    assert found(prefix="u01") == [f"u01{digit}" for digit in range(10)]
    assert found(prefix="x") == []
    assert len(found(n=100)) == 40
    assert http.get("/v1/users", params={"prefix": "u001"}).json()[0]["events"] > 0
    for wrong in ({"n": 0}, {"n": 101}, {"prefix": "x" * 257}):
        assert http.get("/v1/users", params=wrong).status_code == 422


def test_a_history_is_told_newest_first_with_later_events(http, replica):
    resolver = replica.explored_resolver
    rows = resolver._catalogue.history(1)
    past = http.get("/v1/users/u001/history").json()
    assert [item["item_id"] for item in past["items"]] == resolver._items.ids(rows[::-1])
    assert (past["known"], past["total"]) == (True, len(rows))
    short = http.get("/v1/users/u001/history", params={"n": 2}).json()
    assert (short["items"], short["total"]) == (past["items"][:2], len(rows))
    later = http.get("/v1/users/later/history").json()
    assert [item["item_id"] for item in later["items"]] == EVENTS[::-1]
    assert later["known"] is False


@pytest.mark.parametrize("user_id", ["a/b", "..", "ü ñ", "?n=2", "history"])
def test_any_id_of_a_stranger_has_an_empty_history(http, user_id):
    past = http.get(f"/v1/users/{quote(user_id, safe='')}/history".replace("/../", "/%2e%2e/")).json()
    assert past == {"user_id": user_id, "known": False, "items": [], "total": 0}


@pytest.mark.parametrize("user_id", ["", "x" * 257])
def test_an_id_that_no_user_can_have_is_refused_with_its_field(http, user_id):
    answer = http.get(f"/v1/users/{user_id}/history")
    assert (answer.status_code, answer.json()["field"]) == (422, "user_id")


@pytest.fixture(scope="module")
def devtools(tmp_path_factory):
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine: install the package chromium to test the page")
    with browser(executable, tmp_path_factory.mktemp("chromium")) as address:
        yield address


@pytest.fixture
def tab(devtools, url, replica):
    replica.degraded, replica.delay_s = [], 0.0
    with Tab.of(devtools) as tab:
        yield tab
        assert [said for said in tab.complaints if "status of 401" not in said] == []


IDLE = (
    "!document.querySelector('#results').hasAttribute('aria-busy') && "
    "document.querySelector('#heading').textContent.includes(' for ')"
)
TITLES = "[...document.querySelectorAll('#items h3')].map(node => node.firstChild.textContent)"


def enter(tab: Tab, url: str) -> None:
    tab.open(f"{url}/")
    tab.focus("#key")
    tab.type(KEY)
    tab.press("Enter", code=13, text="\r")
    tab.until(IDLE)


def settle(tab: Tab, replica: Replica, n_asked: int) -> list[str]:
    """Titles of the list once the page has asked again."""
    deadline = time.monotonic() + 10
    while len(replica.asked) <= n_asked:
        assert time.monotonic() < deadline, "the page did not ask"
        time.sleep(0.02)
    tab.until(IDLE)
    return tab.ask(TITLES)


def choose_user(tab: Tab, replica: Replica, user_id: str) -> list[str]:
    asked = len(replica.asked)
    tab.ask(f"(() => {{ const box = document.querySelector('#user'); box.value = {json.dumps(user_id)};"
            "box.dispatchEvent(new Event('change')); })()")
    return settle(tab, replica, asked)


def slide(tab: Tab, replica: Replica, signal: str, key: str) -> list[str]:
    asked = len(replica.asked)
    tab.focus(f"[data-signal={signal}]")
    tab.press(key, code={"End": 35, "Home": 36, "ArrowRight": 39}[key])
    return settle(tab, replica, asked)


def test_without_a_key_there_is_no_data_and_a_wrong_one_is_refused_and_forgotten(tab, url):
    tab.open(f"{url}/")
    assert tab.ask("document.activeElement.id") == "key"
    assert tab.ask("document.querySelector('#room').hidden") is True
    tab.type("wrong")
    tab.press("Enter", code=13, text="\r")
    tab.until("!document.querySelector('#refused').hidden")
    assert tab.ask("document.querySelector('#refused').textContent") == "The API key is wrong."
    assert tab.ask("sessionStorage.length + localStorage.length") == 0
    assert tab.ask("document.querySelector('#room').hidden") is True


def test_with_the_key_a_user_their_history_and_an_explained_list_are_there(tab, url, replica):
    enter(tab, url)
    assert tab.ask("document.querySelector('#user').value") == "u000"
    assert tab.ask("document.querySelector('#heading').textContent") == "10 recommendations for user u000"
    [response] = replica.pipeline.recommend([Request(user_id="u000", explain=True)])
    assert tab.ask(TITLES) == [item.title for item in response.items]
    tab.until("document.querySelectorAll('#past-items li').length")
    resolver = replica.explored_resolver
    assert tab.ask("[...document.querySelectorAll('#past-items li')].map(node => node.textContent)") == [
        item.title for item in resolver.history("u000", [], 100).items
    ]
    parts = tab.ask("[...document.querySelectorAll('.item')][0].querySelector('.parts').textContent")
    for name, share in response.items[0].shares.items():
        assert (f"{name} " in parts) == (abs(share) >= 0.005)
    assert "Ranked by the release" in tab.ask("document.querySelector('#timing').textContent")
    assert "ms in the endpoint (retrieve" in tab.ask("document.querySelector('#timing').textContent")
    assert tab.ask("document.querySelector('#degraded').hidden") is True


def test_the_bar_of_an_item_is_as_long_as_its_shares(tab, url):
    enter(tab, url)
    widths = tab.ask("[...document.querySelectorAll('svg.shares')].map(svg => [...svg.querySelectorAll('rect:not("
                     ".track)')].reduce((sum, rect) => sum + Number(rect.getAttribute('width')), 0))")
    assert len(widths) == 10
    assert all(0 < width <= 100.001 for width in widths)
    assert max(widths) > 50


def test_moving_a_weight_changes_the_list_at_once_and_there_is_a_way_back(tab, url, replica):
    enter(tab, url)
    before = choose_user(tab, replica, "u001")
    slide(tab, replica, "popularity", "End")
    for signal in ("item_item", "neural", "ncf"):
        after = slide(tab, replica, signal, "Home")
    assert replica.asked[-1].weights == {"popularity": 1.0, "text": 0.1}
    assert after != before
    assert "Ranked by your weights" in tab.ask("document.querySelector('#timing').textContent")
    assert tab.ask("document.querySelectorAll('.moved').length") > 0
    asked = len(replica.asked)
    tab.click("#back")
    assert settle(tab, replica, asked) == before
    assert replica.asked[-1].weights is None
    assert tab.ask("document.querySelectorAll('.moved').length") == 0


def test_weights_that_are_all_zero_are_explained_and_not_sent(tab, url, replica):
    enter(tab, url)
    for signal in ("popularity", "item_item", "neural", "ncf"):
        slide(tab, replica, signal, "Home")
    tab.focus("[data-signal=text]")
    tab.press("Home", code=36)
    tab.until("!document.querySelector('#problem').hidden")
    assert "Every weight is 0: give one signal a weight. The list below is from before." in tab.ask(
        "document.querySelector('#problem').textContent"
    )


def test_free_text_steers_the_list(tab, url, replica):
    enter(tab, url)
    asked = len(replica.asked)
    tab.focus("#query")
    tab.type("thing painted white")
    settle(tab, replica, asked)
    assert (replica.asked[-1].user_id, replica.asked[-1].query) == ("u000", "thing painted white")
    assert "encode" in tab.ask("document.querySelector('#timing').textContent")


def test_filters_narrow_the_list_and_say_when_too_little_is_left(tab, url, replica):
    enter(tab, url)
    asked = len(replica.asked)
    tab.click("#filters input[value=white]")
    titles = settle(tab, replica, asked)
    assert replica.asked[-1].filters.attributes == {"colour": ["white"]}
    assert titles and set(titles) <= {replica.explored_resolver._titles[row] for row in range(1, 40, 2)}
    assert tab.ask("document.querySelector('#filtered').textContent") == "(1 in use)"
    tab.click("#filters input[value=white]")
    tab.click("#filters input[value=black]")
    assert settle(tab, replica, asked + 1) == []
    assert tab.ask("document.querySelector('#notes').textContent") == "No unseen item passes the filters."


def test_what_was_done_without_is_said(tab, url, replica):
    replica.degraded = ["encoder", "source:text"]
    enter(tab, url)
    assert tab.ask("document.querySelector('#degraded').textContent") == (
        "Degraded. The text encoder did not answer, so that the texts were left out. The source text was left out."
    )


def test_a_stranger_and_nobody_get_an_answer_that_says_what_it_went_by(tab, url, replica):
    enter(tab, url)
    assert choose_user(tab, replica, "nobody known")
    assert "is not known to this release" in tab.ask("document.querySelector('#notes').textContent")
    assert choose_user(tab, replica, "")
    assert tab.ask("document.querySelector('#heading').textContent") == "10 recommendations for somebody"


def test_what_if_an_item_had_been_seen_counts_in_this_session_only(tab, url, replica):
    enter(tab, url)
    first, asked = tab.ask(TITLES)[0], len(replica.asked)
    tab.click(".item:first-child .acts button:last-child")
    assert first not in settle(tab, replica, asked)
    assert len(replica.asked[-1].history) == 1
    assert tab.ask("document.querySelector('#session').textContent") == f"{first} ×"
    asked = len(replica.asked)
    tab.click("#session button")
    assert settle(tab, replica, asked)[0] == first
    assert replica.asked[-1].history is None


def test_similar_items_open_in_a_dialog_that_escape_closes(tab, url):
    enter(tab, url)
    tab.focus(".item:first-child .acts button")
    tab.press("Enter", code=13, text="\r")
    tab.until("document.querySelector('#similar').open")
    assert tab.ask("document.querySelectorAll('#similar li').length") == 10
    tab.press("Escape", code=27)
    tab.until("!document.querySelector('#similar').open")
    assert tab.ask("document.activeElement.textContent") == "Similar"


def test_titles_are_text_whatever_they_hold(tab, url, replica):
    enter(tab, url)
    choose_user(tab, replica, "u001")
    asked = len(replica.asked)
    tab.ask("(() => { const k = document.querySelector('#k'); k.value = 40; k.dispatchEvent(new Event('input')); "
            "document.querySelector('#unseen').click(); })()")
    settle(tab, replica, asked)
    tab.until(f"{TITLES}.includes({json.dumps(HOSTILE)})")
    assert tab.ask("document.title") == "Explorer · llmrec_ray"
    assert tab.ask("document.querySelectorAll('img').length") == 0


def test_an_answer_that_came_too_late_is_not_shown(tab, url, replica):
    enter(tab, url)
    replica.delay_s = 0.4
    tab.ask("(() => { const box = document.querySelector('#user'); for (const user of ['u001', 'u002']) "
            "{ box.value = user; box.dispatchEvent(new Event('change')); } })()")
    tab.until("document.querySelector('#heading').textContent.endsWith('u002')")
    time.sleep(0.5)
    assert tab.ask("document.querySelector('#heading').textContent") == "10 recommendations for user u002"


def test_forgetting_the_key_leaves_nothing_on_the_page(tab, url):
    enter(tab, url)
    tab.click("#leave")
    tab.until("!document.querySelector('#door').hidden")
    assert tab.ask("sessionStorage.length + localStorage.length") == 0
    assert tab.ask("document.querySelectorAll('#items li, #past-items li, #users option').length") == 0
    assert tab.ask("document.querySelector('#release').textContent") == ""


def test_the_endpoint_going_away_is_said_and_the_old_list_called_old(devtools, replica, tiny_release, url):
    app = FastAPI()
    app.include_router(explorer(lambda: replica, {}))
    app.post("/v1/recommend")(replica.recommend)
    with Tab.of(devtools) as tab:
        with served(app) as short_lived:
            enter(tab, short_lived)
        tab.click("#unseen")
        tab.until("!document.querySelector('#problem').hidden")
        assert tab.ask("document.querySelector('#problem').textContent") == (
            "No answer. The endpoint cannot be reached. The list below is from before. Ask again"
        )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_its_width_and_every_text_stands_out(devtools, url, replica, width, scheme, tmp_path):
    replica.degraded = ["events"]
    with Tab.of(devtools, width=width, scheme=scheme) as tab:
        enter(tab, url)
        tab.ask("document.querySelectorAll('details').forEach(node => node.open = true)")
        assert tab.ask("document.documentElement.scrollWidth") <= width
        assert tab.ask(FAINT) == []
        assert tab.ask(SMALL if width == 390 else "[]") == []
        tab.picture(tmp_path / f"page-{width}-{scheme}.png")
    replica.degraded = []


def test_everything_that_can_be_used_has_a_name(devtools, url):
    with Tab.of(devtools) as tab:
        enter(tab, url)
        used = {"button", "textbox", "slider", "checkbox", "spinbutton", "combobox", "link", "list", "dialog"}
        named = [(role, name) for role, name in tab.accessible() if role in used - {"list"}]
        assert [role for role, name in named if not name.strip()] == []
        assert {"slider", "checkbox", "combobox"} <= {role for role, _ in named}
        assert ("slider", "popularity") in [(role, name.strip()) for role, name in named]


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(tab, url):
    enter(tab, url)
    tab.focus(".skip")
    visited = ["Skip to the list"]
    for _ in range(30):
        tab.press("Tab", code=9)
        visited.append(tab.ask("document.activeElement.id || document.activeElement.textContent"))
        assert tab.ask("getComputedStyle(document.activeElement).outlineStyle !== 'none' || "
                       "document.activeElement.matches('.values input, .skip')"), visited[-1]
    order = ["Skip to the list", "user", "another", "query", "weight-popularity", "k", "unseen", "Similar"]
    assert [visited.index(name) for name in order] == sorted(visited.index(name) for name in order)


def test_on_the_endpoint_itself_an_event_is_in_the_history_and_changes_the_list(
    devtools, tiny_release, tmp_path
):
    release, pointer = tmp_path / f"{tiny_release.id}.json", tmp_path / "current.json"
    release.write_text(tiny_release.model_dump_json())
    pointer.write_text(json.dumps({"uri": str(release)}))
    key = ApiKey(name="page", sha256=hash_key(KEY))
    args = ServeArgs(release_uri=str(pointer), events_folder=str(tmp_path / "events"), keys=[key])
    with local_endpoint(args) as url, Tab.of(devtools) as tab:
        enter(tab, url)
        first = tab.ask(TITLES)[0]
        tab.click(".item:first-child .acts button")
        tab.until("document.querySelectorAll('#similar li').length === 10")
        tab.ask("document.querySelector('#similar').close()")
        event = {"event_id": "e1", "user_id": "u000", "item_id": tab.ask("document.querySelector('.item').dataset.id")}
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = httpx.post(f"{url}/v1/events", json={"events": [event | {"event": "click"}]}, headers=headers,
                            trust_env=False)
        assert answer.json()["accepted"] == 1
        tab.ask("document.querySelector('#user').dispatchEvent(new Event('change'))")
        tab.until(f"document.querySelector('#past-items li')?.textContent === {json.dumps(first)}")
        tab.until(f"{IDLE} && !{TITLES}.includes({json.dumps(first)})")
        assert tab.complaints == []


FAINT = """(() => {
  const linear = (part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4;
  const luminance = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map((part) => linear(Number(part) / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const faint = [];
  for (const node of document.querySelectorAll('main *, header *')) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!hasText || !node.getClientRects().length || node.closest(':disabled, .unseen')) continue;
    const both = [getComputedStyle(node).color, ground(node)].map(luminance).sort((a, b) => b - a);
    if ((both[0] + .05) / (both[1] + .05) < 4.5) faint.push(`${node.tagName}.${node.className} ${node.textContent}`);
  }
  return faint;
})()"""
"""Texts with a contrast below 4.5 : 1 (WCAG 2.2, 1.4.3)."""

SMALL = """[...document.querySelectorAll('main button, main summary, main input')].filter((node) => {
  const box = node.getBoundingClientRect();
  return box.width && (box.height < 24 || box.width < 18) && !node.matches('.check input');
}).map((node) => node.outerHTML.slice(0, 80))"""
"""What is too small for a finger (WCAG 2.2, 2.5.8)."""
