"""One endpoint in a process of its own, in one of three ways, until its standard input ends.

    python benchmarks/contenders.py shipped|defaults|floor --release URI --folder FOLDER --port N

    shipped    the application as `llmrec serve` starts it
    defaults   the same graph on Ray Serve's own defaults: no HAProxy, no throughput flags, one request a call
    floor      the same stage objects in one plain uvicorn process: no Ray, no key, one request a call

When it is ready it prints one line of JSON: {"url": …, "api_key": …}.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import threading
from pathlib import Path
from typing import Any

from llmrec_ray.config import RequestLimits, ServeConfig
from llmrec_ray.events import Event, EventStore
from llmrec_ray.recommend import Pipeline, Request, Response
from llmrec_ray.release import load_release

__all__ = ["CONTENDERS", "DEFAULT_FLAGS"]

CONTENDERS = ("shipped", "defaults", "floor")
DEFAULT_FLAGS = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
NUM_CPUS = 8


def main() -> None:
    """Start the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--release", required=True)
    parser.add_argument("--folder", required=True, type=Path, help="gets the event log")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--config", default="{}", help="JSON of the `serve` section")
    arguments = parser.parse_args()
    events = str(arguments.folder / f"events-{arguments.name}")
    if arguments.name == "floor":
        _serve_floor(arguments.release, events, arguments.port)
    else:
        if arguments.name == "defaults":
            os.environ.update(DEFAULT_FLAGS)  # Serve reads them when it is imported
        config = json.loads(arguments.config) | {"port": arguments.port}
        _serve_graph(ServeConfig.model_validate(config), arguments.release, events)


def _serve_graph(config: ServeConfig, release_uri: str, events: str) -> None:
    from llmrec_ray.cluster import connected
    from llmrec_ray.serve import start

    api_key = secrets.token_urlsafe(24)
    with connected(num_cpus=NUM_CPUS), start(config, release_uri, events, api_key=api_key) as endpoint:
        _announce(endpoint.url, api_key)
        sys.stdin.read()


def _serve_floor(release_uri: str, events: str, port: int) -> None:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(_floor(release_uri, events), port=port, log_level="error", access_log=False))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        threading.Event().wait(0.1)
    _announce(f"http://127.0.0.1:{port}", "none")
    sys.stdin.read()


def _floor(release_uri: str, events: str) -> Any:
    from fastapi import FastAPI

    app, limits = FastAPI(), RequestLimits()
    pipeline = Pipeline.of_release(load_release(release_uri), limits=limits)
    store = EventStore.open(Path(events))

    # Without `await` in it a request is computed at once: threads would only take turns.
    @app.post("/v1/recommend")
    async def recommend(request: Request) -> Response:
        who = [] if request.user_id is None else [request.user_id]
        return pipeline.recommend([request], store.newest_of(who, limits.max_history))[0]

    @app.get("/v1/similar/{item_id}")
    async def similar(item_id: str, k: int = 10) -> list[Any]:
        return pipeline.similar(item_id, k)

    @app.post("/v1/events")
    async def record(body: dict[str, list[Event]]) -> int:
        return store.record(body["events"])

    return app


def _announce(url: str, api_key: str) -> None:
    print(json.dumps({"url": url, "api_key": api_key}), flush=True)


if __name__ == "__main__":
    main()
