"""The `retrieval`, `index` and `serve` sections: from a model to answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from llmrec_ray.config.events import EventsConfig
from llmrec_ray.config.keys import ApiKeys
from llmrec_ray.config.section import Fraction, MergeName, Section, SourceName

__all__ = [
    "AppConfig",
    "DeadlineConfig",
    "FollowConfig",
    "GatherConfig",
    "IndexConfig",
    "Replicas",
    "RequestLimits",
    "RetrievalConfig",
    "ServeConfig",
]

class RetrievalConfig(Section):
    """How many candidates each source proposes to the reranker."""

    candidates: Annotated[dict[SourceName, PositiveInt], Field(min_length=1)] = {
        "neural": 150, "item_item": 100, "text": 50, "popularity": 50, "cold": 20
    }
    """Items per source; a source that is not named is not asked. `cold` proposes items without a train event."""
    merge: MergeName = "all"
    """How they become one list: `all` keeps whatever any source proposes; `reciprocal_rank` (Cormack et al. 2009) and
    `weights` (the fusion's, on calibrated scores) keep the best `max_candidates` of them."""
    max_candidates: PositiveInt | None = None
    """The most candidates that one request hands to the reranker, or the length of its list where that is longer; fewer
    are faster. None keeps all."""

    @model_validator(mode="after")
    def _check_known_items(self) -> RetrievalConfig:
        if {*self.candidates} == {"cold"}:
            raise ValueError(
                "candidates names only cold, so nothing would propose items with train events: name another source in "
                "retrieval.candidates, such as neural"
            )
        if self.max_candidates is not None and self.merge == "all":
            raise ValueError(
                f"max_candidates is {self.max_candidates}, but merge all keeps every candidate: set retrieval.merge to "
                "reciprocal_rank or weights, or leave max_candidates out"
            )
        return self


class IndexConfig(Section):
    """Nearest-neighbour structure over item vectors."""

    kind: Literal["exact", "hnsw"] = "exact"
    """`exact` up to some 100,000 items, `hnsw` (FAISS) beyond."""
    hnsw_neighbors: PositiveInt = 32
    """Links per vector in HNSW; more is slower to build and more exact."""
    ef_construction: PositiveInt = 200
    """Breadth of the search while building HNSW."""
    build_threads: PositiveInt = 1
    """Threads that build HNSW. With one the same vectors always give the same graph; more are faster."""
    ef_search: PositiveInt = 128
    """Breadth of the search while answering; the longest list fetched counts where it is longer."""
    min_recall: Fraction = 0.95
    """Refuse an approximate index whose recall@100 against exact search is lower."""


class Replicas(Section):
    """Autoscaling of one deployment."""

    min_replicas: PositiveInt = 1
    """Replicas that are always there."""
    max_replicas: PositiveInt = 2
    """Upper bound under load."""
    target_ongoing_requests: PositiveFloat = 1.5
    """Calls per replica that the autoscaler aims at; a call of the inner stages is for many gathered requests."""
    max_ongoing_requests: PositiveInt = 8
    """Calls one replica takes at once; more wait or go elsewhere."""
    max_queued_requests: PositiveInt = 64
    """Calls that may wait for a replica, per caller; more are refused at once."""
    upscale_delay_s: PositiveFloat = 10.0
    """How long the load must be high before replicas are added."""
    downscale_delay_s: PositiveFloat = 120.0
    """How long the load must be low before replicas are taken away."""
    health_check_period_s: PositiveFloat = 5.0
    """How often each replica is asked whether it is well."""
    health_check_timeout_s: PositiveFloat = 30.0
    """A replica that does not answer within this time is replaced."""
    graceful_shutdown_timeout_s: PositiveFloat = 20.0
    """How long a replica that goes may finish what it has begun."""
    num_cpus: Annotated[float, Field(ge=0.0)] = 0.25
    """Logical CPUs per replica, for placement."""
    num_gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs per replica; only the encoder computes on one."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Replicas:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}: raise max_replicas"
            )
        return self


class RequestLimits(Section):
    """The most that one request may ask for."""

    max_k: PositiveInt = 200
    """Longest list a request may ask for."""
    max_history: PositiveInt = 1000
    """Most items a request's history may carry; also how many later events of a user are read."""
    max_text_chars: PositiveInt = 4000
    """Longest query or profile, in characters."""
    max_weight: PositiveFloat = 10.0
    """Largest weight that a request may give a signal; those of a Release sum to about 1."""
    max_events: PositiveInt = 1000
    """Most events in one call of /v1/events."""
    max_body_bytes: PositiveInt = 4_000_000
    """Largest body of any request; more is refused before it is read."""
    body_timeout_s: PositiveFloat = 10.0
    """How long a client may take to send a body; a slower one is refused with 408."""


class GatherConfig(Section):
    """How an Ingress replica gathers concurrent requests into one call of a stage."""

    max_batch: PositiveInt = 64
    """Most requests in one call."""
    max_in_flight: PositiveInt = 2
    """Calls on their way at once; requests that come meanwhile are gathered into the next."""
    max_waiting: PositiveInt = 128
    """Requests that may wait to be gathered; more are refused with 503 and Retry-After."""


class DeadlineConfig(Section):
    """How long the Ingress waits for a stage before it answers without it."""

    events_s: PositiveFloat = 1.0
    """Without them, answers go by the histories of the Release."""
    encoder_s: PositiveFloat = 1.0
    """Without it, texts are left out."""
    retriever_s: PositiveFloat = 1.0
    """Without it, popular items are shown."""
    source_s: PositiveFloat = 0.5
    """A source of candidates that takes longer is left out by the Retriever."""
    reranker_s: PositiveFloat = 1.0
    """Without it, the Retriever's order stands."""
    rest_s: PositiveFloat = 1.0
    """How long a stage that failed is left alone before one call tries it again."""


class FollowConfig(Section):
    """How replicas follow the published Release."""

    pointer_s: PositiveFloat = 2.0
    """How often the pointer to the current Release is read."""
    sync_s: PositiveFloat = 0.5
    """How often a replica asks what it should hold."""


class AppConfig(Section):
    """What the Serve application is told, however it is deployed."""

    limits: RequestLimits = RequestLimits()
    """The most that one request may ask for."""
    keys: ApiKeys = []
    """API keys beside those in the environment, LLMREC_API_KEY and LLMREC_ADMIN_KEY."""
    gather: GatherConfig = GatherConfig()
    """How concurrent requests become one call."""
    deadlines: DeadlineConfig = DeadlineConfig()
    """How long each stage may take."""
    follow: FollowConfig = FollowConfig()
    """How replicas follow the published Release."""
    events: EventsConfig = EventsConfig()
    """Where replicas find what people did a moment ago."""
    ingress: Replicas = Replicas(target_ongoing_requests=32, max_ongoing_requests=256, max_queued_requests=512)
    """Validation, orchestration, feedback."""
    encoder: Replicas = Replicas()
    """Text to vectors."""
    retriever: Replicas = Replicas()
    """Candidates."""
    reranker: Replicas = Replicas()
    """Final order."""


class ServeConfig(AppConfig):
    """The endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on; metrics and statistics of the proxy listen on all interfaces whatever this says."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """HTTP port."""
