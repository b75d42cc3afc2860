"""A campaign's winner -> its one figure on the test split, however often the campaign is resumed or shown.

What was seen stands in `<root>/confirm/test.json`, and in the workspace's log of looks at the test split.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from llmrec_ray.artifact import Artifact, Workspace, open_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.errors import ArtifactError, ArtifactNotFoundError
from llmrec_ray.evaluate import Evaluation, evaluate
from llmrec_ray.evaluate.scoring_log import log_scoring, scorings
from llmrec_ray.index import Index, build_index
from llmrec_ray.recommend import Pipeline
from llmrec_ray.storage import read_json, write_json_atomic

__all__ = ["Look", "look_at_test"]

STATE = "test.json"
LEVELS = 3
"""Of `winner-101/evaluations/evaluation-0011223344556677`."""


@dataclass(frozen=True)
class Look:
    """value: the metric on test. seed: of the model that has it. uri: the Evaluation. looks: how often this split was
    scored from the workspace."""

    value: float
    seed: int
    uri: str
    looks: int


def look_at_test(
    recipe: Recipe, dataset: Dataset, bundle: Bundle, workspace: Workspace, metric: str, *, winner: str, log: Workspace
) -> Look:
    """Score the test split with a Bundle of the winner, or say again what was seen when that has been done.

    recipe: the winner's. workspace: of the Bundle, among those of the campaign's fresh runs; receives Index and
    Evaluation. winner: hash of what it is, the seed apart; what it had with another seed is said again too. log:
    workspace that logs the look. All items are candidates. Raises what `evaluate` raises, and ArtifactError when
    another winner of the campaign has looked before, since a second look would make test a part of the search.
    """
    runs = workspace.uri.rpartition("/")[0]
    uri = _seen(runs, winner) or _of_bundle(workspace, bundle)
    evaluation = _opened(uri)[1] if uri else _evaluate(recipe, dataset, bundle, metric, workspace, log)
    within = "/".join(evaluation.uri.split("/")[-LEVELS:])  # so that a campaign may be moved
    write_json_atomic(f"{runs}/{STATE}", {"winner": winner, "evaluation": within})
    return Look(evaluation.model[metric], evaluation.seed, evaluation.uri, _logged(log, evaluation.uri))


def _seen(runs: str, winner: str) -> str | None:
    """URI of the Evaluation that this winner has."""
    try:
        seen = read_json(f"{runs}/{STATE}")
    except FileNotFoundError:
        return None
    uri = f"{runs}/{seen['evaluation']}"
    if seen["winner"] != winner:
        raise ArtifactError(
            f"An earlier winner of this campaign was scored on test already ({uri}), and a second look would make the "
            "test split a part of the search: judge the new winner by validation, or train it with its recipe and run "
            "`llmrec evaluate`."
        )
    return uri


def _of_bundle(workspace: Workspace, bundle: Bundle) -> str | None:
    """URI of the Evaluation that there is when a process was killed right after it."""
    with contextlib.suppress(ArtifactNotFoundError):
        uri = workspace.latest("evaluation", made_by="evaluate")
        return uri if _opened(uri)[0].manifest.parents["bundle"] == bundle.id else None
    return None


def _evaluate(
    recipe: Recipe, dataset: Dataset, bundle: Bundle, metric: str, workspace: Workspace, log: Workspace
) -> Evaluation:
    k = int(metric.partition("@")[2])
    ks = tuple(sorted({k, *(each for each in recipe.evaluate.ks if each < k)}))  # lists as long as on validation
    settings = recipe.evaluate.model_copy(update={"ks": ks, "candidates": "all"})
    index = Index.load(build_index(bundle, recipe.index, workspace.root("index")).uri)
    return evaluate(
        recipe.model_copy(update={"evaluate": settings}), dataset, bundle, Pipeline(dataset, bundle, index), workspace,
        log=log,
    )


def _opened(uri: str) -> tuple[Artifact, Evaluation]:
    artifact = open_artifact(uri, "evaluation")
    evaluation = Evaluation.model_validate_json((artifact.path / "evaluation.json").read_bytes())
    return artifact, evaluation.model_copy(update={"uri": uri})


def _logged(workspace: Workspace, uri: str) -> int:
    """Looks of this workspace at the same test split; the one at `uri` is logged if a killed process did not."""
    artifact, evaluation = _opened(uri)
    if all(line["evaluation"] != artifact.id for line in scorings(workspace)):
        log_scoring(workspace, evaluation, artifact)
    return sum(line["protocol_hash"] == evaluation.protocol_hash for line in scorings(workspace))
