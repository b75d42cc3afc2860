"""A recipe and a Dataset -> a Campaign: trials over learning rate and late-fusion weight, and the winner.

Each trial is a Ray Train run of its own inside a Ray Tune trial; ASHA stops the poor ones early. A trial is
judged by the validation NDCG@10 of the neural signal fused with the item-item signal, or of the neural signal
alone where the recipe does not fuse. The test split is not read.

    results.parquet   one row per trial: configuration, best value, epochs, how it ended
    epochs.parquet    one row per trial and epoch
"""

from __future__ import annotations

import logging
import math
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import ray.tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from tqdm import tqdm

from llmrec_ray.artifact import Artifact, Workspace, create_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.errors import TrainingError
from llmrec_ray.signals import Ease
from llmrec_ray.train import LateFusion, TrainingInputs, run_training, with_encoder_of
from llmrec_ray.train.worker import stop_file
from llmrec_ray.types import FloatArray

__all__ = ["best_overrides", "tune"]

logger = logging.getLogger(__name__)

NEURAL, FUSED = "ndcg@10", "late_ndcg@10"
QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
"""No TensorBoard files, no tables: the bar and the Campaign say it all."""
TRIAL_RESOURCES = {"memory": 2**20}
"""A trial itself only waits for its training workers, which ask for CPUs of their own; Tune wants something."""


def tune(
    recipe: Recipe,
    dataset: Dataset,
    text_vectors: FloatArray | None,
    text_center: FloatArray | None,
    workspace: Workspace,
    *,
    start: Bundle | None = None,
) -> Artifact:
    """Run `tune.trials` trials on the connected Ray and keep the campaign; `best_overrides` reads the winner.

    text_vectors [N, T] and text_center [T] as `TrainingInputs` takes them. start: what `open_start` gave.
    Raises TrainingError when every trial failed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    started = with_encoder_of(recipe, start)
    inputs = TrainingInputs.of(started, dataset, text_vectors, text_center, start=start)
    partner = _partner_scores(recipe, dataset) if _fuses(recipe) else None
    folder = workspace.local_folder("tune")
    grid = _run(started, inputs, partner, folder)
    metric = NEURAL if partner is None else FUSED
    results, epochs = _tables(grid, metric)
    if results["value"].null_count() == len(results):
        raise TrainingError(f"All {len(results)} trials failed; the first said: {results['error'][0]}")
    best = results.sort("value", descending=True, nulls_last=True).row(0, named=True)
    artifact = create_artifact(
        workspace.root("campaign"), "campaign", lambda path: _write(path, results, epochs),
        config=recipe.model_dump(mode="json"), parents={"dataset": dataset.id},
        metrics={"metric": metric, "best": best, "overrides": _overrides(best), "trials": len(results)},
    )
    workspace.set_latest("campaign", artifact.uri)
    return artifact


def best_overrides(campaign: Artifact) -> list[str]:
    """Dotted overrides that give a recipe the winner's settings."""
    return [str(override) for override in campaign.manifest.metrics["overrides"]]


def _fuses(recipe: Recipe) -> bool:
    return recipe.fusion.mode == "late" and {"neural", "item_item"} <= set(recipe.fusion.signals)


def _partner_scores(recipe: Recipe, dataset: Dataset) -> FloatArray:
    histories = dataset.histories("train")
    ease = Ease(recipe.item_item.l2, recipe.item_item.recency).fit(histories, len(dataset.items))
    return np.nan_to_num(ease.score(histories))


def _run(
    recipe: Recipe, inputs: TrainingInputs, partner: FloatArray | None, folder: Path
) -> ray.tune.ResultGrid:
    low, high = recipe.tune.learning_rate
    space: dict[str, Any] = {"learning_rate": ray.tune.loguniform(low, high)}
    if partner is not None:
        space["neural_weight"] = ray.tune.uniform(*recipe.tune.neural_weight)
    trainable = ray.tune.with_parameters(
        _trial, recipe=_trial_recipe(recipe).model_dump_json(), inputs=inputs, partner=partner,
        folder=str(folder),
    )
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, TRIAL_RESOURCES),
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            metric=NEURAL if partner is None else FUSED, mode="max", num_samples=recipe.tune.trials,
            search_alg=BasicVariantGenerator(
                max_concurrent=recipe.tune.max_concurrent, random_state=recipe.seed
            ),
            scheduler=_GentleAsha(recipe, folder),
        ),
        run_config=ray.tune.RunConfig(
            name=f"experiment-{uuid.uuid4().hex[:8]}", storage_path=str(folder), verbose=0,
            callbacks=[JsonLoggerCallback(), _Progress(recipe.tune.trials)],
        ),
    )
    return tuner.fit()


class _GentleAsha(ASHAScheduler):  # type: ignore[misc]
    """ASHA that asks a trial to end itself: a killed one leaves its workers' placement group behind."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        grace = min(recipe.tune.grace_epochs, recipe.tune.epochs)
        super().__init__(
            time_attr="epoch", max_t=recipe.tune.epochs, reduction_factor=2, grace_period=grace
        )
        self._folder = folder

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """ASHA's decision, with a stop file in place of a kill."""
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            Path(stop_file(_run_dir(self._folder, trial.trial_id))).touch()
        return str(TrialScheduler.CONTINUE if decision == TrialScheduler.STOP else decision)


def _run_dir(folder: Path, trial_id: str) -> str:
    return f"{folder}/trials/{trial_id}"


def _trial_recipe(recipe: Recipe) -> Recipe:
    """A trial trains `tune.epochs` epochs; ASHA, not patience, ends it early."""
    train = recipe.train.model_copy(update={
        "epochs": recipe.tune.epochs, "patience": recipe.tune.epochs, "checkpoint_steps": None,
    })
    return recipe.model_copy(update={"train": train})


def _trial(
    config: dict[str, float], recipe: str, inputs: TrainingInputs, partner: FloatArray | None, folder: str
) -> None:
    """What runs inside one Ray Tune trial: a Ray Train run whose reports go on to Tune."""
    from ray.tune.integration.ray_train import TuneReportCallback

    base = Recipe.model_validate_json(recipe)
    train = base.train.model_copy(update={"learning_rate": config["learning_rate"]})
    late = None if partner is None else LateFusion(partner, config["neural_weight"])
    run_training(
        base.model_copy(update={"train": train}), replace(inputs, late=late),
        _run_dir(Path(folder), ray.tune.get_context().get_trial_id()),
        callbacks=[TuneReportCallback()], show_progress=False,
    )


class _Progress(ray.tune.Callback):  # type: ignore[misc]
    """A bar over trials on stderr."""

    def __init__(self, trials: int) -> None:
        self._trials = trials

    def setup(self, **info: Any) -> None:
        """Made here and not before, since Tune pickles its callbacks."""
        self._bar = tqdm(total=self._trials, desc="tune", unit="trial")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._bar.close()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._advance()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._advance()

    def _advance(self) -> None:
        self._bar.update(1)


def _tables(grid: ray.tune.ResultGrid, metric: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One row per trial, and one per trial and epoch."""
    trials, epochs = [], []
    for number, result in enumerate(grid):
        rows = [] if result.metrics_dataframe is None else result.metrics_dataframe.to_dict("records")
        values = [float(row[metric]) for row in rows if math.isfinite(row[metric])]
        trials.append({
            "trial": number, **result.config, "value": max(values, default=None), "epochs": len(rows),
            "error": None if result.error is None else str(result.error).strip().splitlines()[-1],
        })
        epochs += [
            {"trial": number, "epoch": int(row["epoch"]), "value": row[metric], "loss": row.get("loss")}
            for row in rows
        ]
    schema = {"trial": pl.Int64, "epoch": pl.Int64, "value": pl.Float64, "loss": pl.Float64}
    kinds = {"value": pl.Float64, "error": pl.String}
    return pl.DataFrame(trials, schema_overrides=kinds), pl.DataFrame(epochs, schema=schema)


def _overrides(best: dict[str, Any]) -> list[str]:
    overrides = [f"train.learning_rate={best['learning_rate']:.6g}"]
    if "neural_weight" in best:
        share = round(best["neural_weight"], 4)
        overrides.append(f"fusion.weights={{neural: {share:g}, item_item: {1 - share:g}}}")
    return overrides


def _write(folder: Path, results: pl.DataFrame, epochs: pl.DataFrame) -> None:
    results.write_parquet(folder / "results.parquet")
    epochs.write_parquet(folder / "epochs.parquet")
