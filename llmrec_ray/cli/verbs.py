"""One small function per verb: call the stage, hand its summary to `emit`.

What only one verb needs is imported when it runs, as in `stages`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pydantic import ValidationError

from llmrec_ray import stages
from llmrec_ray.artifact import Artifact
from llmrec_ray.config import Recipe
from llmrec_ray.errors import RequestError

__all__ = ["VERBS", "compare", "import_data"]

logger = logging.getLogger(__name__)

Emit: TypeAlias = Callable[[dict[str, Any]], None]
Verb: TypeAlias = Callable[[Recipe, argparse.Namespace, Emit], None]


def _fetch(recipe: Recipe, _: argparse.Namespace, emit: Emit) -> None:
    emit({"raw": str(stages.fetch_stage(recipe))})


def import_data(arguments: argparse.Namespace, emit: Emit) -> None:
    """What `data import` does; it makes a recipe and needs none."""
    emit(stages.import_stage(arguments.kind, arguments.folder, out=arguments.out, name=arguments.name).to_dict())


def _ingest(recipe: Recipe, arguments: argparse.Namespace, emit: Emit) -> None:
    emit(_summary(stages.ingest_stage(recipe, extend=arguments.extend)))


def _embed(recipe: Recipe, arguments: argparse.Namespace, emit: Emit) -> None:
    vectors = stages.embed_stage(recipe, arguments.dataset)
    emit({"texts": vectors.shape[0], "size": vectors.shape[1]})


def _train(recipe: Recipe, arguments: argparse.Namespace, emit: Emit) -> None:
    emit(_summary(stages.train_stage(recipe, arguments.dataset, resume=arguments.resume)))


def _tune(recipe: Recipe, arguments: argparse.Namespace, emit: Emit) -> None:
    if arguments.policy_only:
        found, uri = stages.policy_stage(recipe, arguments.dataset, arguments.bundle)
        emit({"policy": uri, **found.summary()})
    else:
        emit(_summary(stages.tune_stage(recipe, arguments.dataset, resume=arguments.resume)))


def _index(recipe: Recipe, arguments: argparse.Namespace, emit: Emit) -> None:
    emit(_summary(stages.index_stage(recipe, arguments.bundle)))


def _evaluate(recipe: Recipe, arguments: argparse.Namespace, emit: Emit) -> None:
    emit(stages.evaluate_stage(recipe, arguments.dataset, arguments.bundle, arguments.index).to_dict())


def compare(arguments: argparse.Namespace, emit: Emit) -> None:
    """What `evaluate --compare` does; it needs no recipe."""
    a, b = (uris.split(",") for uris in arguments.compare)
    system_a, system_b = arguments.systems
    emit(stages.compare_stage(a, b, (system_a, system_b)).to_dict())


def _publish(recipe: Recipe, arguments: argparse.Namespace, emit: Emit) -> None:
    if arguments.rollback:
        release = stages.rollback_stage(recipe)
    else:
        release = stages.publish_stage(
            recipe, arguments.dataset, arguments.bundle, arguments.index, policy_uri=arguments.policy
        )
    emit(release.model_dump(mode="json"))


def _forget(recipe: Recipe, arguments: argparse.Namespace, emit: Emit) -> None:
    emit(stages.forget_stage(recipe, arguments.user, arguments.endpoint).to_dict())


def _serve(recipe: Recipe, arguments: argparse.Namespace, emit: Emit) -> None:
    with stages.serve_stage(recipe, arguments.release) as endpoint:
        stages.announce(endpoint)
        emit({"url": endpoint.url})
        endpoint.wait()


def _recommend(recipe: Recipe, arguments: argparse.Namespace, emit: Emit) -> None:
    from llmrec_ray.recommend import Request

    try:
        request = Request(
            user_id=arguments.user, history=arguments.history, query=arguments.query, profile=arguments.profile,
            k=arguments.k, explain=True,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0])
        raise RequestError(f"{field}: {problem['msg']} (got {problem['input']!r}).", field=field) from None
    response = stages.recommend_stage(recipe, request, arguments.release)
    for item in response.items:
        shares = ", ".join(f"{name} {share:+.2f}" for name, share in (item.shares or {}).items() if share)
        logger.info("%s (%s)  %.2f = %s", item.title, item.item_id, item.score, shares)
    if response.ignored_items:
        logger.info("Not in the catalogue, so left out of the history: %s", ", ".join(response.ignored_items))
    for note in response.notes:
        logger.info("%s", note)
    emit(response.model_dump(mode="json"))


def _demo(recipe: Recipe, arguments: argparse.Namespace, emit: Emit) -> None:
    from llmrec_ray.demo import run_demo

    run_demo(recipe, serve=not arguments.no_serve, tune=arguments.tune, emit=emit)


def _summary(artifact: Artifact) -> dict[str, Any]:
    return {"uri": artifact.uri, "id": artifact.id, "metrics": artifact.manifest.metrics}


VERBS: Mapping[str, Verb] = {
    "data fetch": _fetch,
    "demo": _demo,
    "embed": _embed,
    "evaluate": _evaluate,
    "forget": _forget,
    "index": _index,
    "ingest": _ingest,
    "publish": _publish,
    "recommend": _recommend,
    "serve": _serve,
    "train": _train,
    "tune": _tune,
}
