"""A recipe and a Dataset -> a Campaign: the search, the winner without luck, and a page that shows it.

    search   trials by Ray Tune, see `judge` and `schedule`: what needs training
    finals   the best of them on several seeds, which choose the winner
    policy   what needs none, on stored scores of the winner
    confirm  winner and recipe again, on seeds that the search has not seen; the test split once

Everything lies in `<workspace>/tune/<name>` while it runs, so that whoever is killed goes on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import yaml
from pydantic import TypeAdapter, ValidationError
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from llmrec_ray.artifact import Artifact, Workspace, create_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Domain, FusionMode, Recipe, check_campaign, with_settings
from llmrec_ray.data import Dataset
from llmrec_ray.errors import (
    ArtifactError,
    ClusterError,
    ConfigError,
    DiskFullError,
    LlmrecError,
    TrainingError,
)
from llmrec_ray.policy import PolicyFound, search_policy
from llmrec_ray.storage import folder_names, read_json, saving, write_json_atomic
from llmrec_ray.train import fit_modes, open_start, train_bundle
from llmrec_ray.tune.begun import campaign_root, check_begun, keep_begun, resume_command
from llmrec_ray.tune.confirm import confirm
from llmrec_ray.tune.finals import choose_finalist, searched_modes
from llmrec_ray.tune.judge import Judge
from llmrec_ray.tune.luck import paired
from llmrec_ray.tune.outcome import Confirmation, Finals, Outcome
from llmrec_ray.tune.records import Records, TrialRecord, best_epoch, best_record, best_records, values_of
from llmrec_ray.tune.report import write_outcome
from llmrec_ray.tune.room import concurrent_trials
from llmrec_ray.tune.schedule import Plan
from llmrec_ray.tune.search import run_search
from llmrec_ray.tune.shared import SharedInputs, fuses, text_of
from llmrec_ray.tune.space import overrides_of, split_levels
from llmrec_ray.tune.trial import run_folder, trial_recipe

__all__ = ["best_overrides", "tune"]

logger = logging.getLogger(__name__)

FOUND = TypeAdapter(PolicyFound)


@dataclass(frozen=True)
class _Winner:
    """A trial, the epoch that it is taken from, and the fusion mode that was chosen among finalists."""

    record: TrialRecord
    epoch: int
    mode: FusionMode | None = None

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        """Which of the recipe are others."""
        mode = {} if self.mode in {None, recipe.fusion.mode} else {"fusion.mode": self.mode}
        return self.record.settings_at(self.epoch) | mode


def tune(recipe: Recipe, dataset: Dataset, workspace: Workspace, *, resume: str | None = None) -> Artifact:
    """Run the campaign of `recipe.tune` on the connected Ray, or go on with the one named `resume`.

    `best_overrides` reads the winner. Raises ConfigError for a search space or a name that cannot be used,
    TrainingError when every trial failed, ClusterError when there is no room for a trial, ArtifactNotFoundError,
    ArtifactMismatchError or CorruptArtifactError for a campaign that cannot be resumed, ArtifactError for one that
    another process runs, DiskFullError when no more can be written down.
    """
    check_campaign(recipe)
    name = resume or recipe.tune.name or f"{recipe.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    root, command = campaign_root(workspace, name), resume_command(name, recipe, workspace)
    if recipe.tune.name not in {None, name}:
        logger.warning("This goes on with the campaign %s; tune.name=%s is not looked at.", name, recipe.tune.name)
    recipe = recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"name": name})})
    plan = _plan(recipe, split_levels(recipe)[0])
    concurrent = concurrent_trials(recipe)
    check_begun(workspace, name, recipe, dataset, resume=resume is not None)
    if (tried := len(Records(root).load())) > plan.trials:
        raise ConfigError(f"The campaign {name} has {tried} trials already: set tune.trials to {tried} or more.")
    with _alone(name, root), _says_how_to_go_on(command, root):
        keep_begun(workspace, name, recipe, dataset)
        logger.info("campaign %s: %d trials, %d at once, in %s; whenever it is stopped, this goes on: %s", name,
                    plan.trials, concurrent, root, command)
        records, seconds = _search(recipe, plan, dataset, workspace, root)
        _check_found(recipe, plan, command, records)
        outcome = replace(_finish(recipe, plan, dataset, workspace, root, records), seconds=seconds)
        return _keep(outcome, workspace)


@contextlib.contextmanager
def _alone(name: str, root: str) -> Iterator[None]:
    """Nobody else may run the campaign meanwhile, which the system tells by a lock in its folder; buckets have none."""
    with contextlib.ExitStack() as held:
        if "://" not in root:
            with saving(f"The campaign {name}", root):
                Path(root).mkdir(parents=True, exist_ok=True)
                handle = held.enter_context(Path(root, "running.lock").open("w"))
            with contextlib.suppress(OSError):  # where files cannot be locked
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ArtifactError(
                        f"The campaign {name} is run by another process at this moment: wait until that has ended, or "
                        "stop it first."
                    ) from None
        yield


@contextlib.contextmanager
def _says_how_to_go_on(command: str, root: str) -> Iterator[None]:
    """When it is stopped: by Ctrl-C, by SIGTERM, which `cluster` makes an exit, or by a disk without room."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, DiskFullError, ClusterError):
        with tqdm.external_write_mode():  # not behind a bar that is still there
            logger.warning("The campaign was stopped. This goes on with what is in %s: %s", root, command)
        raise


def _check_found(recipe: Recipe, plan: Plan, command: str, records: list[TrialRecord]) -> None:
    """Raises ConfigError when there was no time for a trial, TrainingError when none has a value."""
    if best_record(records, plan.metric) is not None:
        return
    if not records:
        raise ConfigError(
            f"tune.time_budget_s is {recipe.tune.time_budget_s:g}, which was over before the first trial began: go on "
            f"with a larger one, or without: {command} tune.time_budget_s=null"
        )
    reason = next((record.reason for record in records if record.reason), "none had an epoch")
    raise TrainingError(f"All {len(records)} trials failed; the first said: {reason}")


def best_overrides(campaign: Artifact) -> list[str]:
    """Dotted overrides that give a recipe the winner's settings."""
    return [str(override) for override in campaign.manifest.metrics["overrides"]]


def _plan(recipe: Recipe, space: dict[str, Domain]) -> Plan:
    metric = f"fused_{recipe.tune.metric}" if fuses(recipe) else recipe.tune.metric
    return Plan(recipe, space, recipe.tune.epochs or recipe.train.epochs, metric)


def _search(
    recipe: Recipe, plan: Plan, dataset: Dataset, workspace: Workspace, root: str
) -> tuple[list[TrialRecord], float]:
    """All trials, those of earlier parts included, and the seconds that they took."""
    metrics = tuple(dict.fromkeys(("ndcg@10", "hr@10", recipe.tune.metric)))
    judge = _actor(Judge, root, plan)
    shared = _actor(SharedInputs, dataset.uri, workspace.uri, metrics, plan.metric)
    try:
        if not ray.get(judge.is_over.remote()):
            run_search(recipe, plan, root, dataset.id, judge, shared)
        if not ray.get(judge.is_over.remote()):
            raise KeyboardInterrupt
        ray.get(judge.close.remote())
        return Records(root).load(), ray.get(judge.seconds.remote())  # as whoever shows it again will read them
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LlmrecError):
            raise error.cause from None
        raise
    finally:
        ray.kill(judge)
        ray.kill(shared)


def _actor(kind: type, *arguments: Any) -> ActorHandle:
    """On this machine, so that it is lost only with the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(kind).remote(*arguments)


def _finish(
    recipe: Recipe, plan: Plan, dataset: Dataset, workspace: Workspace, root: str, records: list[TrialRecord]
) -> Outcome:
    """Who wins, what needs no training, and whether the winner is luck."""
    concurrent = concurrent_trials(recipe)
    finals = choose_finalist(recipe, plan.metric, records, dataset, workspace, root, concurrent=concurrent)
    winner = _winner(plan, records, finals)
    found = _policy(recipe, dataset, workspace, root, winner)
    settings = _in_order(recipe, winner.settings(recipe) | _parsed(found.overrides))
    overrides, best_recipe = overrides_of(settings), with_settings(recipe, settings)
    outcome = Outcome(
        name=root.rpartition("/")[2], recipe=recipe, dataset=dataset.id, space=plan.space, records=records,
        metric=plan.metric, label=_label(plan), winner=winner.record, overrides=overrides, best_recipe=best_recipe,
        seconds=0.0, finals=finals, policy=found,
    )
    if not recipe.tune.fresh_seeds:
        return outcome
    confirmation = confirm(
        recipe, best_recipe, dataset, workspace, root, seeds=recipe.tune.fresh_seeds, metric=recipe.tune.metric,
        score_test=recipe.tune.score_test, concurrent=concurrent,
    )
    logger.info("%s", paired(confirmation).sentence(recipe.tune.metric))
    return replace(outcome, confirmation=confirmation)


def _winner(plan: Plan, records: list[TrialRecord], finals: Finals | None) -> _Winner:
    best = best_records(records, plan.metric)
    record = best[0] if finals is None else next(each for each in best if each.number == finals.trial)
    return _Winner(record, best_epoch(record, plan.metric), None if finals is None else finals.mode)


def _in_order(recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    """As the search names them, then what it does not name; records have them in the order of the alphabet."""
    keys = [key for level in split_levels(recipe) for key in level if key in settings]
    return {key: settings[key] for key in (*keys, *settings)}


def _label(plan: Plan) -> str:
    name, _, k = plan.config.metric.partition("@")
    of = "the fused signals" if plan.metric.startswith("fused_") else "the neural signal"
    return f"validation {name.upper()}@{k} of {of}"


def _policy(recipe: Recipe, dataset: Dataset, workspace: Workspace, root: str, winner: _Winner) -> PolicyFound:
    """What needs no training, found once, so that whoever is killed after it goes on with the same winner."""
    uri = f"{root}/policy.json"
    of = {
        "trial": winner.record.number, "epoch": winner.epoch, "mode": winner.mode,
        "tolerance": recipe.tune.policy_tolerance,
    }
    with contextlib.suppress(FileNotFoundError, ValidationError):
        if (kept := read_json(uri))["of"] == of:
            return FOUND.validate_python(kept["found"])
    found = FOUND.dump_python(_found(recipe, dataset, workspace, root, winner), mode="json")
    write_json_atomic(uri, {"of": of, "found": found}, sort_keys=False)
    return FOUND.validate_python(found)  # as whoever goes on will read it


def _found(recipe: Recipe, dataset: Dataset, workspace: Workspace, root: str, winner: _Winner) -> PolicyFound:
    """On the weights of the winner's best epoch; its fusion mode is searched unless finalists have chosen it."""
    bundle = _bundle(recipe, dataset, workspace, root, winner)
    searched = with_settings(recipe, winner.settings(recipe))  # fitting a mode trains once more, as the winner was
    _, domains = split_levels(recipe)
    if winner.mode is not None:
        domains.pop("fusion.mode", None)
    named = dict.fromkeys((recipe.fusion.mode, *searched_modes(recipe)))
    fitted = fit_modes(searched, dataset, bundle, [*named] if winner.mode is None else [winner.mode])
    return search_policy(
        searched, dataset, bundle, domains, metric=recipe.tune.metric, tolerance=recipe.tune.policy_tolerance,
        modes={mode: each.fusion for mode, each in fitted.items()},
    )


def _bundle(recipe: Recipe, dataset: Dataset, workspace: Workspace, root: str, winner: _Winner) -> Bundle:
    """The winner's best epoch, from its checkpoints."""
    trained, start = trial_recipe(recipe, winner.record.settings_at(winner.epoch)), open_start(recipe)
    raw = text_of(trained, dataset, workspace, start)
    return Bundle.open(train_bundle(
        trained, dataset, raw, Workspace(f"{root}/winner"), start=start, resume=True,
        run_dir=run_folder(root, winner.record, winner.epoch), show_progress=False,
    ).uri)


def _parsed(overrides: list[str]) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, _, value in (override.partition("=") for override in overrides)}


def _fresh(confirmation: Confirmation | None) -> dict[str, Any] | None:
    if confirmation is None:
        return None
    found = paired(confirmation)
    return {
        "winner": {str(seed): value for seed, value in confirmation.winner.items()},
        "recipe": {str(seed): value for seed, value in confirmation.default.items()},
        "difference": found.mean, "verdict": found.verdict, "test": confirmation.test,
    }


def _chosen(finals: Finals | None) -> dict[str, Any] | None:
    return None if finals is None else {"trial": finals.trial, "mode": finals.mode, "value": finals.mean}


def _keep(outcome: Outcome, workspace: Workspace) -> Artifact:
    best, known = max(values_of(outcome.winner, outcome.metric)), folder_names(workspace.root("campaign"))
    artifact = create_artifact(
        workspace.root("campaign"), "campaign", lambda folder: write_outcome(folder, outcome),
        config=outcome.recipe.model_dump(mode="json"), parents={"dataset": outcome.dataset},
        metrics={
            "name": outcome.name, "metric": outcome.label, "value": best, "trials": len(outcome.records),
            "failed": sum(record.status == "failed" for record in outcome.records),
            "epochs": sum(record.done for record in outcome.records), "winner": outcome.winner.number,
            "finals": _chosen(outcome.finals), "fresh_seeds": _fresh(outcome.confirmation),
            "overrides": outcome.overrides, "settings": _parsed(outcome.overrides), "seconds": outcome.seconds,
        },
    )
    if artifact.uri.rpartition("/")[2] in known:
        logger.info("campaign %s is what it was before, and is shown again", outcome.name)
    workspace.set_latest("campaign", artifact.uri)
    return artifact
