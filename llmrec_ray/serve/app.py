"""From arguments to the Serve application: Ingress, Encoder, Retriever, Reranker, each scaling alone, and Releases.

No `from __future__ import annotations` here or in `ingress`: Serve and FastAPI read the types of signatures.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from llmrec_ray.artifact import open_artifact
from llmrec_ray.config import Replicas
from llmrec_ray.release import Release, load_release
from llmrec_ray.serve.args import ServeArgs
from llmrec_ray.serve.ingress import Ingress
from llmrec_ray.serve.keys import resolve_keys
from llmrec_ray.serve.logs import LOGGING
from llmrec_ray.serve.releases import Releases
from llmrec_ray.serve.replicas import EncoderReplica, RerankerReplica, RetrieverReplica

__all__ = ["build"]

RETRY_AFTER_S = 1.0
RELEASES_CPUS = 0.1
RELEASES_CALLS = 1000
"""At once: an administrator's call lasts until every replica has reported, so it must never keep reports out."""
MIN_LOOK_BACK_S = 11.0
"""The load is a mean over so long; Serve warns about anything up to ten seconds, though SERVE_FLAGS ask more often."""


def build(args: ServeArgs) -> Application:
    """The application that `serve deploy serve_config.yaml` deploys; a Bundle without texts needs no Encoder.

    Raises ArtifactNotFoundError for a missing Release and ConfigError when there is no API key.
    """
    release = load_release(args.release_uri)
    keys = resolve_keys(args.keys)
    inner = {"retriever": args.retriever, "reranker": args.reranker}
    if _has_encoder(release):
        inner["encoder"] = args.encoder
    releases = serve.deployment(
        Releases, name="Releases", num_replicas=1, max_ongoing_requests=RELEASES_CALLS,
        ray_actor_options={"num_cpus": RELEASES_CPUS}, logging_config=LOGGING,
    ).bind(args.release_uri, args.follow, ("ingress", *inner))
    classes = {"encoder": EncoderReplica, "retriever": RetrieverReplica, "reranker": RerankerReplica}
    stages = {
        name: _deploy(classes[name], name.capitalize(), replicas).bind(args, releases)
        for name, replicas in inner.items()
    }
    ingress = _deploy(Ingress, "Ingress", args.ingress)
    return ingress.bind(args, keys, releases, stages.get("encoder"), stages["retriever"], stages["reranker"])


def _deploy(stage: type[Any], name: str, replicas: Replicas) -> Any:
    return serve.deployment(
        stage,
        name=name,
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": replicas.target_ongoing_requests,
            "look_back_period_s": max(replicas.upscale_delay_s, MIN_LOOK_BACK_S),
            "upscale_delay_s": replicas.upscale_delay_s,
            "downscale_delay_s": replicas.downscale_delay_s,
        },
        max_ongoing_requests=replicas.max_ongoing_requests,
        max_queued_requests=replicas.max_queued_requests,
        backpressure_config={"status_code": 503, "retry_after_s": RETRY_AFTER_S},
        health_check_period_s=replicas.health_check_period_s,
        health_check_timeout_s=replicas.health_check_timeout_s,
        graceful_shutdown_timeout_s=replicas.graceful_shutdown_timeout_s,
        ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        logging_config=LOGGING,
    )


def _has_encoder(release: Release) -> bool:
    manifest = open_artifact(release.bundle.uri, "bundle", verify=False).manifest
    return any(name.startswith("encoder/") for name in manifest.files)
