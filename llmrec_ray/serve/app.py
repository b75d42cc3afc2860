"""From arguments to the Serve application: Ingress, Encoder, Retriever, Reranker, each scaling alone.

No `from __future__ import annotations` here or in `ingress`: Serve and FastAPI read the types of signatures.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from llmrec_ray.artifact import open_artifact
from llmrec_ray.config import Replicas
from llmrec_ray.release import Release, load_release
from llmrec_ray.serve.args import ServeArgs, resolve_key_hash
from llmrec_ray.serve.ingress import Ingress
from llmrec_ray.serve.replicas import EncoderReplica, RerankerReplica, RetrieverReplica

__all__ = ["build"]


def build(args: ServeArgs) -> Application:
    """The application that `serve deploy serve_config.yaml` deploys; a Bundle without texts needs no Encoder.

    Raises ArtifactNotFoundError for a missing Release and ConfigError when there is no API key.
    """
    release = load_release(args.release_uri)
    key_hash = resolve_key_hash(args)
    encoder = None
    if _has_encoder(release):
        encoder = _deploy(EncoderReplica, "Encoder", args.encoder).bind(release)
    retriever = _deploy(RetrieverReplica, "Retriever", args.retriever).bind(release)
    reranker = _deploy(RerankerReplica, "Reranker", args.reranker).bind(release)
    ingress = _deploy(Ingress, "Ingress", args.ingress)
    return ingress.bind(release, args, key_hash, encoder, retriever, reranker)


def _deploy(stage: type[Any], name: str, replicas: Replicas) -> Any:
    return serve.deployment(
        stage,
        name=name,
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": replicas.target_ongoing_requests,
        },
        max_ongoing_requests=replicas.max_ongoing_requests,
        ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
    )


def _has_encoder(release: Release) -> bool:
    manifest = open_artifact(release.bundle.uri, "bundle", verify=False).manifest
    return any(name.startswith("encoder/") for name in manifest.files)
