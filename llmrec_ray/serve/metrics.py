"""What happens inside the endpoint as Prometheus metrics, through Ray's own export.

Ray's agent on every node serves them with the prefix `ray_`, and `llmrec_` names them as this program's.
Labels come from small, fixed sets (stages, sources, routes, releases); ids of people or items never become
one. Recording costs about two microseconds and does nothing where no Ray runs. Ray's agent knows only the buckets of a
histogram, so the sums it exports are made of their middles: counts and quantiles are good, means are approximate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram

__all__ = ["HttpMetrics", "StageMetrics"]

SECONDS = [
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 2.0, 5.0, 10.0,
]
BATCH_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0]
CANDIDATES = [1.0, 10.0, 20.0, 50.0, 100.0, 150.0, 200.0, 300.0, 500.0, 1000.0, 2000.0]


class StageMetrics:
    """Metrics of one stage (`ingress`, `encoder`, `retriever`, `reranker`, …) in one replica."""

    def __init__(self, stage: str) -> None:
        self._stage = {"stage": stage}
        self._metrics = _stage_instruments()
        self._held: str | None = None

    def observe(self, seconds: float, batch_size: int) -> None:
        """One call of the stage, for `batch_size` requests at once."""
        self._metrics.seconds.observe(seconds, self._stage)
        self._metrics.requests.inc(batch_size, self._stage)
        self._metrics.batch_size.observe(batch_size, self._stage)

    def candidates(self, source: str, n: int) -> None:
        """`source` proposed n items to one request."""
        self._metrics.candidates.observe(n, {**self._stage, "source": source})

    def degraded(self, what: str) -> None:
        """An answer was given without `what`, as named in its field `degraded`."""
        self._metrics.degraded.inc(1, {**self._stage, "what": what})

    def queue(self, n: int) -> None:
        """n requests wait at this moment."""
        self._metrics.queue.set(n, self._stage)

    def cache(self, hit: bool) -> None:
        """A cache was asked."""
        self._metrics.cache.inc(1, {**self._stage, "result": "hit" if hit else "miss"})

    def release(self, release_id: str) -> None:
        """The stage answers with this snapshot from now on: a Release's id, and after a `+` its changes of items."""
        release, _, changes = release_id.partition("+")
        if self._held is not None and self._held != release:
            self._metrics.release.set(0, {**self._stage, "release": self._held})
        self._held = release
        self._metrics.release.set(1, {**self._stage, "release": release})
        self._metrics.changes.set(int(changes or 0), self._stage)


class HttpMetrics:
    """Metrics of the answers that leave an Ingress replica, refusals included."""

    def __init__(self) -> None:
        self._metrics = _http_instruments()

    def answered(self, route: str, status: int, seconds: float) -> None:
        """One answer; `route` is the route's pattern, never the path with its ids."""
        self._metrics.seconds.observe(seconds, {"route": route, "status": str(status)})


@dataclass(frozen=True)
class StageInstruments:
    """Ray's metrics behind StageMetrics; one set for a process, whatever stages it holds."""

    seconds: Histogram
    requests: Counter
    batch_size: Histogram
    candidates: Histogram
    degraded: Counter
    queue: Gauge
    cache: Counter
    release: Gauge
    changes: Gauge


@dataclass(frozen=True)
class HttpInstruments:
    """Ray's metrics behind HttpMetrics."""

    seconds: Histogram


@cache
def _stage_instruments() -> StageInstruments:
    stage = ("stage",)
    return StageInstruments(
        seconds=Histogram("llmrec_stage_seconds", "Time of one call of a stage, in seconds.", SECONDS, stage),
        requests=Counter("llmrec_stage_requests", "Requests in all calls of a stage.", stage),
        batch_size=Histogram("llmrec_stage_batch_size", "Requests in one call of a stage.", BATCH_SIZES, stage),
        candidates=Histogram(
            "llmrec_candidates", "Items that a source proposed to one request.", CANDIDATES, (*stage, "source")
        ),
        degraded=Counter("llmrec_degraded", "Answers given without a part that failed or was late.", (*stage, "what")),
        queue=Gauge("llmrec_queue_length", "Requests that wait inside one replica.", stage),
        cache=Counter("llmrec_cache_lookups", "Lookups in a cache, by whether it had the answer.", (*stage, "result")),
        release=Gauge("llmrec_release_info", "1 for the Release a replica answers with.", (*stage, "release")),
        changes=Gauge("llmrec_item_changes", "Changes of items that count beside the Release.", stage),
    )


@cache
def _http_instruments() -> HttpInstruments:
    return HttpInstruments(
        seconds=Histogram(
            "llmrec_http_seconds", "Time from a request to the end of its answer, in seconds.", SECONDS,
            ("route", "status"),
        )
    )
