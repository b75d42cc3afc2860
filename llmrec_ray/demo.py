"""The main job: every stage in order on the recipe's data, then real requests against the served result.

Knows no stage from the inside; it calls `stages`, keeps the time and shows what a visitor would see.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llmrec_ray import stages
from llmrec_ray.config import Recipe, override_recipe
from llmrec_ray.data import Dataset
from llmrec_ray.evaluate import Evaluation
from llmrec_ray.release import Release
from llmrec_ray.serve import Endpoint

__all__ = ["run_demo"]

logger = logging.getLogger(__name__)

HTTP_TIMEOUT_S = 30.0
SMALL_CAMPAIGN = ("tune.trials=4", "tune.fresh_seeds=[]")
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens without http_proxy, which cannot reach an endpoint of this machine."""


def run_demo(recipe: Recipe, *, serve: bool, tune: bool, emit: Callable[[dict[str, Any]], None]) -> None:
    """Fetch, ingest, embed, (tune,) train, index, evaluate, publish; then serve until interrupted.

    `emit` receives the summary: data set, protocol, metrics of the served pipeline, of each signal and baseline,
    seconds per stage, and the Release.
    """
    clock = _Clock()
    with stages.ray_for(recipe, dashboard=serve):
        recipe, evaluation = _make(recipe, clock, tune=tune)
        with clock.time("publish"):
            release = stages.publish_stage(recipe)
        logger.info("Finished in %.0f s: %s", sum(clock.seconds.values()), clock)
        summary = _summary(recipe, evaluation, clock.seconds, release)
        if not serve:
            emit(summary)
            return
        with stages.serve_stage(recipe) as endpoint:
            _show_requests(endpoint, stages.open_dataset(recipe))
            stages.announce(endpoint)
            emit(summary)
            endpoint.wait()


def _make(recipe: Recipe, clock: _Clock, *, tune: bool) -> tuple[Recipe, Evaluation]:
    if recipe.data.fetch is not None:
        with clock.time("fetch"):
            stages.fetch_stage(recipe)
    with clock.time("ingest"):
        stages.ingest_stage(recipe)
    if recipe.data.items:
        with clock.time("embed"):
            stages.embed_stage(recipe)
    if tune:
        with clock.time("tune"):
            recipe = stages.tuned_recipe(recipe, stages.tune_stage(override_recipe(recipe, SMALL_CAMPAIGN)))
    with clock.time("train"):
        stages.train_stage(recipe)
    with clock.time("index"):
        stages.index_stage(recipe)
    with clock.time("evaluate"):
        evaluation = stages.evaluate_stage(recipe)
    return recipe, evaluation


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 2)

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())


def _summary(
    recipe: Recipe, evaluation: Evaluation, seconds: Mapping[str, float], release: Release
) -> dict[str, Any]:
    table = evaluation.to_dict()
    return {
        "dataset": recipe.name,
        **{key: table[key] for key in ("protocol", "model", "signals", "baselines")},
        "seconds": dict(seconds),
        "release": release.id,
    }


def _show_requests(endpoint: Endpoint, dataset: Dataset) -> None:
    """A known user, an anonymous history, a query, and what one click changes."""
    histories = dataset.histories("test")
    known = dataset.users.id(0)
    rows = histories[len(histories) - 1][-3:].tolist()
    history, titles = dataset.items.ids(rows), [dataset.item_titles[row] for row in rows]
    ask = _Client(endpoint)
    before = ask.recommend(f"User {known}", {"user_id": known, "k": 5})
    ask.recommend(f"Somebody who just saw {' · '.join(titles)}", {"history": history, "k": 5})
    ask.recommend("A newcomer asking for “a space adventure for children”",
                  {"user_id": "newcomer", "query": "a space adventure for children", "k": 5})
    clicked, title = before["items"][0]["item_id"], before["items"][0]["title"]
    event = {"event_id": uuid.uuid4().hex, "user_id": known, "item_id": clicked, "event": "click"}
    ask.post("/v1/events", {"events": [event]})
    ask.recommend(f"User {known} after a click on {title}", {"user_id": known, "k": 5})


class _Client:
    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def recommend(self, who: str, request: dict[str, Any]) -> dict[str, Any]:
        answer = self.post("/v1/recommend", request)
        titles = " · ".join(item["title"] for item in answer["items"])
        logger.info("%s (%.0f ms): %s", who, answer["timings_ms"]["total"], titles)
        return answer

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.endpoint.url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.endpoint.api_key}"},
        )
        with DIRECT.open(request, timeout=HTTP_TIMEOUT_S) as response:
            answer: dict[str, Any] = json.load(response)
        return answer
