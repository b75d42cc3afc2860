"""An Outcome -> the files that people and programs read: a table, a page, a recipe, and the figures as JSON.

    results.parquet   one row per trial and epoch, see `table`
    report.html       the same for people, see `page`
    best.yaml         the best recipe, ready for `llmrec train --config`
    outcome.json      figures and settings of the winner, for programs
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmrec_ray.config import Recipe, validate_recipe
from llmrec_ray.errors import ConfigError
from llmrec_ray.tune.outcome import Finals, Outcome
from llmrec_ray.tune.page import changed_settings, render_page
from llmrec_ray.tune.records import best_epoch, values_of
from llmrec_ray.tune.table import results_table
from llmrec_ray.tune.written import recipe_yaml

__all__ = ["best_yaml", "outcome_figures", "write_outcome"]

OF_POLICY = ("overrides", "metric", "value", "base", "weights", "curve", "left_out", "seconds")


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write the files of the module's docstring into a folder that exists."""
    results_table(outcome.records, outcome.space, outcome.metric).write_parquet(folder / "results.parquet")
    written = best_yaml(outcome)
    (folder / "best.yaml").write_text(written, encoding="utf-8")
    (folder / "report.html").write_text(render_page(outcome, written), encoding="utf-8")
    figures = json.dumps(_plain(outcome_figures(outcome)), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "outcome.json").write_text(figures + "\n", encoding="utf-8")


def best_yaml(outcome: Outcome) -> str:
    """The best recipe as a file that `--config` takes, saying above it where it comes from.

    It equals `best_recipe`, but for the campaign's name, which is taken, and a search space that its settings do not go
    with; these are left out.
    """
    changes = [
        f"  {key}: {after} (was {before})" for key, before, after in changed_settings(outcome) if before != after
    ]
    return recipe_yaml(_loadable(_unnamed(outcome.best_recipe)), [
        *_chosen_by(outcome),
        *(["Other than in the recipe that was searched around:", *changes] if changes else []),
        "Train it with: llmrec train --config best.yaml",
    ])


def outcome_figures(outcome: Outcome) -> dict[str, Any]:
    """What a program would ask: how many trials ended how, the winner, and what was found and confirmed after it."""
    statuses = [record.status for record in outcome.records]
    epoch = best_epoch(outcome.winner, outcome.metric)
    return {
        "name": outcome.name, "dataset": outcome.dataset, "metric": outcome.metric, "label": outcome.label,
        "trials": len(statuses), "statuses": {status: statuses.count(status) for status in sorted({*statuses})},
        "epochs": sum(len(record.epochs) for record in outcome.records), "seconds": outcome.seconds,
        "winner": {
            "trial": outcome.winner.number, "epoch": epoch,
            "settings": outcome.winner.settings_at(epoch), "value": max(values_of(outcome.winner, outcome.metric)),
        },
        "overrides": outcome.overrides, "finals": None if outcome.finals is None else _finals(outcome.finals),
        "policy": None if outcome.policy is None else {name: getattr(outcome.policy, name) for name in OF_POLICY},
        "confirmation": None if outcome.confirmation is None else asdict(outcome.confirmation),
    }


def _chosen_by(outcome: Outcome) -> list[str]:
    trial, trials, finals = outcome.winner.number, len(outcome.records), outcome.finals
    if finals is None or finals.mean is None:
        value = max(values_of(outcome.winner, outcome.metric))
        return [f"The best recipe of campaign {outcome.name}: trial {trial}, the best of {trials},",
                f"{outcome.label} {value:.4f}."]
    return [f"The best recipe of campaign {outcome.name}: trial {trial} of {trials}, the best finalist,",
            f"validation {outcome.recipe.tune.metric} {finals.mean:.4f} as served, mean of {finals.seeds_in_words}, "
            "before what needs no training was searched."]


def _finals(finals: Finals) -> dict[str, Any]:
    found = asdict(finals)
    for each, figures in zip(finals.finalists, found["finalists"], strict=True):
        figures["means"] = each.means
    return found


def _unnamed(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"name": None})})


def _loadable(recipe: Recipe) -> Recipe:
    """A choice may go with the value that another key had before, and no more with the winner's."""
    try:
        return validate_recipe(recipe.model_dump(mode="json"), recipe.name)
    except ConfigError:
        return recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"search": {}})})


def _plain(value: Any) -> Any:
    """For JSON, which knows no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
