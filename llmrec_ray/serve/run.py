"""Starting and stopping the endpoint from a program; `serve deploy serve_config.yaml` needs none of this."""

from __future__ import annotations

import http.client
import json
import logging
import os
import shlex
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Self

import ray
from ray.exceptions import RayError

from llmrec_ray.cluster import set_serve_flags
from llmrec_ray.config import ServeConfig
from llmrec_ray.errors import ClusterError
from llmrec_ray.serve.args import ServeArgs
from llmrec_ray.serve.keys import API_KEY_VARIABLE, keys_for_start

__all__ = ["Endpoint", "start"]

APPLICATION = "llmrec"
READY_TIMEOUT_S = 180.0
POLL_S = 0.2
WAKE_S = 0.5


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint; use it in a `with` block, or call `stop`."""

    url: str
    api_key: str | None = field(repr=False)
    """None where only hashes of keys are configured."""
    release_id: str
    admin_key: str | None = field(default=None, repr=False)
    """For /v1/admin; None where only its hash is configured."""
    made_admin_key: bool = False
    """Whether the admin key was made just now, so that nobody has it yet."""

    def curl(self, body: dict[str, object]) -> str:
        """A command that asks for a recommendation, ready to paste."""
        return (
            f"curl -s {self.url}/v1/recommend -H {self._header} "
            f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
        )

    @property
    def key_from_environment(self) -> bool:
        """Whether the key is the one in LLMREC_API_KEY, or one that only its owner has: it need not be shown."""
        return self.api_key is None or os.environ.get(API_KEY_VARIABLE) == self.api_key

    @property
    def _header(self) -> str:
        if self.key_from_environment:
            return f'"Authorization: Bearer ${API_KEY_VARIABLE}"'
        return f"'Authorization: Bearer {self.api_key}'"

    def wait(self) -> None:
        """Return when the process is told to end (SIGTERM); Ctrl-C raises KeyboardInterrupt as always."""
        told = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: told.set())
        try:
            while not told.wait(WAKE_S):  # Polars' handler of SIGINT does not wake a wait without an end
                pass
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: Ray's own, set below Python

    def stop(self) -> None:
        """Shut Serve and its proxy down; returns when nothing listens any more, or after READY_TIMEOUT_S."""
        from ray import serve

        serve.shutdown()
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while _listens(host, int(port)) and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(
    config: ServeConfig, release_uri: str, events_folder: str, *, api_key: str | None = None
) -> Endpoint:
    """Serve a Release on the Ray that is connected, and return when every stage is ready.

    The key is `api_key`, else LLMREC_API_KEY, else a new random one unless hashes are configured; the admin key is
    LLMREC_ADMIN_KEY, else one of those configured, else a new random one. Raises ClusterError when the port is
    taken, Serve already runs there or the stages do not become ready, and what `load_release` raises.
    """
    assert ray.is_initialized(), "start() without a connected Ray. This is a bug."
    set_serve_flags()
    from ray import serve

    from llmrec_ray.serve.app import build

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # importing Serve has just set it to INFO
    if _listens(config.host, config.port):
        message = f"Port {config.port} is taken: stop what listens there, or set serve.port to another."
        raise ClusterError(message)
    made = keys_for_start(config.keys, api_key)
    settings = config.model_dump(exclude={"host", "port", "keys"})
    args = ServeArgs(release_uri=release_uri, events_folder=events_folder, keys=made.keys, **settings)
    application = build(args)
    _check_serve_is_ours()
    url = f"http://{config.host}:{config.port}"
    try:
        serve.start(http_options={"host": config.host, "port": config.port})
        serve.run(application, name=APPLICATION, route_prefix="/")
        release_id = _wait_until_ready(url)
    except BaseException as error:
        serve.shutdown()
        if isinstance(error, (RayError, RuntimeError)):
            raise ClusterError(start_failure(url, str(error))) from error
        raise
    return Endpoint(
        url=url, api_key=made.api_key, release_id=release_id, admin_key=made.admin_key,
        made_admin_key=made.made_admin_key,
    )


def start_failure(url: str, report: str) -> str:
    """One sentence for people out of the stack of a Serve that did not start: the proxy's alerts, or the last line."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    alerts = [line.partition(" : ")[2] or line for line in lines if line.startswith("[ALERT]")]
    reason = "; ".join(alerts) or (lines[-1] if lines else "no reason given")
    return (
        f"Ray Serve could not start at {url}: {reason}. If a port is taken, stop what listens there or try again; "
        "else look at Ray's logs (--verbose shows them)."
    )


def _check_serve_is_ours() -> None:
    """Serve has one proxy and one shutdown for a whole cluster, and somebody else's must survive ours."""
    from ray import serve

    status = serve.status()
    if status.proxies or status.applications:
        running = ", ".join(status.applications) or "none"
        raise ClusterError(
            f"Ray Serve already runs on this cluster (applications: {running}), and stopping this endpoint would "
            "stop it: deploy with `serve deploy serve_config.yaml`, or stop that one with `serve shutdown`."
        )


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def _wait_until_ready(url: str) -> str:
    deadline = time.monotonic() + READY_TIMEOUT_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # HTTP_PROXY is for other machines
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            with direct.open(f"{url}/readyz", timeout=10) as answer:
                return str(json.load(answer)["release"])
        except urllib.error.HTTPError as error:
            last = f"{error.code} {error.read()[:200]!r}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            last = str(error)
        time.sleep(POLL_S)
    raise ClusterError(
        f"The endpoint at {url} was not ready after {READY_TIMEOUT_S:.0f} s ({last}): look at `serve status` "
        "and Ray's logs; the cluster may have too few CPUs for four deployments."
    )
