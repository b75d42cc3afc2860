"""An Outcome -> `report.html`: what was found, whether it is luck, what mattered, and how it was made.

Figures are worked out here, words and layout are in `templates/`, charts in `charts`; see `pages` for what makes the
page safe to open and free of scripts.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from markupsafe import Markup, escape
from scipy.stats import rankdata

from llmrec_ray import __version__
from llmrec_ray.artifact import Workspace, library_versions
from llmrec_ray.pages import line_chart, render
from llmrec_ray.tune.axes import Axis, axis_of, value_scale
from llmrec_ray.tune.begun import resume_command
from llmrec_ray.tune.charts import (
    Pair,
    Trace,
    learning_curves,
    pair_chart,
    parallel_coordinates,
    share_bars,
    slice_chart,
)
from llmrec_ray.tune.finalist_table import FinalistTable, finalist_table
from llmrec_ray.tune.importance import Importance, parameter_importance
from llmrec_ray.tune.luck import Gap, Paired, gap, paired
from llmrec_ray.tune.outcome import Finals, Outcome
from llmrec_ray.tune.records import TrialRecord, value_at, values_of
from llmrec_ray.tune.written import duration_text, finalists_text, scheduler_text, setting_of, setting_text

__all__ = ["changed_settings", "render_page"]

MOST_AXES, MOST_ROWS, LEVELS, DENSE = 8, 24, 5, 48
OF_TWO, CURVE_METRIC = "On stored scores of the winner, neural and item-item alone", "ndcg@10"
NAMES = {"ndcg": "NDCG", "hr": "HR", "mrr": "MRR"}


def render_page(outcome: Outcome, recipe_yaml: str) -> str:
    """The page as text; recipe_yaml: the best recipe, as it is shown."""
    return render("llmrec_ray.tune", "report.html", view=_View(outcome), outcome=outcome, recipe_yaml=recipe_yaml)


def changed_settings(outcome: Outcome) -> list[tuple[str, str, str]]:
    """Key, the recipe's value and the winner's, as text, of every setting that was searched."""
    before, after = outcome.recipe, outcome.best_recipe
    keys = dict.fromkeys(override.partition("=")[0] for override in outcome.overrides)
    return [(key, setting_text(setting_of(before, key)), setting_text(setting_of(after, key))) for key in keys]


@dataclass(frozen=True)
class _Row:
    """One trial as the page shows it. level: of its value among all, 0 is the worst fifth."""

    record: TrialRecord
    value: float | None
    best_epoch: int | None
    level: int
    is_winner: bool

    @property
    def is_recipe(self) -> bool:
        """Trial 0, unless its best epoch has weights of another."""
        return self.record.number == 0 and not any(p.after_epoch < (self.best_epoch or 1) for p in self.record.parts)

    @property
    def look(self) -> str:
        if self.is_winner or self.is_recipe:
            return "winner" if self.is_winner else "recipe"
        return "failed" if self.record.status == "failed" or self.value is None else f"level-{self.level}"

    @property
    def settings(self) -> dict[str, Any]:
        """As in its best epoch."""
        return self.record.settings_at(self.best_epoch or 1)

    @property
    def remarks(self) -> list[str]:
        """Why it ended so, and what had happened before."""
        retried = f"Tried again in smaller pieces: {self.record.retried}" if self.record.retried else None
        taken = [
            f"After epoch {part.after_epoch} went on with the weights of trial {part.taken_from}: {part.reason}"
            for part in self.record.parts
        ]
        return [remark for remark in (self.record.reason, retried, *taken) if remark]


class _View:
    """What the template asks for, in the order of the page."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.config = outcome.recipe.tune
        self.metric_name = _metric_name(self.config.metric)
        self.keys = [*outcome.space]
        self.changes = changed_settings(outcome)

    @cached_property
    def rows(self) -> list[_Row]:
        """All trials by number."""
        outcome = self.outcome
        records = sorted(outcome.records, key=lambda record: record.number)
        best = [_best(record, outcome.metric) for record in records]
        levels = _levels([value for value, _ in best])
        return [
            _Row(record, value, epoch, level, record.number == outcome.winner.number)
            for record, (value, epoch), level in zip(records, best, levels, strict=True)
        ]

    @cached_property
    def ranked(self) -> list[_Row]:
        """Best first, then those without a value."""
        return sorted(self.rows, key=lambda row: (not row.is_winner, row.value is None, -(row.value or 0.0)))

    @property
    def shown(self) -> list[_Row]:
        """Rows of the table that is open."""
        return self.ranked[:MOST_ROWS]

    @property
    def folded(self) -> list[_Row]:
        """Rows of the table below, folded."""
        return self.ranked[MOST_ROWS:]

    @property
    def winner(self) -> _Row:
        return next(row for row in self.rows if row.is_winner)

    @property
    def is_best(self) -> bool:
        """Whether the winner has the best value of the search."""
        return all((row.value or 0.0) <= (self.winner.value or 0.0) for row in self.rows)

    @property
    def recipe(self) -> _Row | None:
        """Trial 0, unless it was not among them or is no longer the recipe."""
        return next((row for row in self.rows if row.is_recipe), None)

    @property
    def gain(self) -> float | None:
        """Of the winner over the recipe as it was, after as many epochs as that was trained."""
        if self.recipe is None or self.recipe.value is None or self.compared is None or self.recipe.is_winner:
            return None
        return self.compared - self.recipe.value

    @property
    def compared(self) -> float | None:
        """The winner's value that is compared with the recipe's."""
        early = None if self.cut is None else value_at(self.winner.record, self.outcome.metric, self.cut)
        return self.winner.value if early is None else early

    @property
    def cut(self) -> int | None:
        """The epoch after which the recipe was not trained on as it is, unless it had all."""
        record = None if self.recipe is None else self.recipe.record
        if record is None or (record.status == "finished" and not record.parts):
            return None
        return record.parts[0].after_epoch if record.parts else record.done

    @property
    def recipe_took_over(self) -> bool:
        """Whether trial 0 is no longer the recipe."""
        return self.recipe is None and any(row.record.number == 0 and row.record.parts for row in self.rows)

    @property
    def gain_percent(self) -> str:
        """The same in parts of the recipe's value, or nothing where that is 0."""
        base = self.recipe.value if self.recipe is not None else None
        return f"{self.gain / base:+.0%}".replace("-", "−") if self.gain is not None and base else ""

    @property
    def resume_command(self) -> str:
        """What tries again what failed."""
        recipe = self.outcome.recipe
        return resume_command(self.outcome.name, recipe, Workspace(recipe.workspace))

    @property
    def finals(self) -> Finals | None:
        """Those that chose the winner."""
        found = self.outcome.finals
        return None if found is None or found.mode is None else found

    @property
    def finalists(self) -> FinalistTable | None:
        return None if self.outcome.finals is None else finalist_table(self.outcome.finals)

    @cached_property
    def luck(self) -> Paired | None:
        found = self.outcome.confirmation
        return None if found is None or not (found.winner or found.default) else paired(found)

    @cached_property
    def gap(self) -> Gap | None:
        """From the value that was chosen by, on stored scores where the policy was searched, to test."""
        found, policy = self.outcome.confirmation, self.outcome.policy
        searched = self.winner.value if policy is None else policy.value
        if self.finals is not None:
            searched = self.finals.mean
        return None if found is None or searched is None else gap(
            searched, found, by_finalists=self.finals is not None
        )

    @property
    def endings(self) -> str:
        """`5 finished, 9 stopped, 2 failed`."""
        statuses = [row.record.status for row in self.rows]
        return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(sorted(statuses)))

    @property
    def has_others(self) -> bool:
        return any(row.look.startswith("level") for row in self.rows)

    @property
    def has_stopped(self) -> bool:
        return any(row.record.status not in {"finished", "failed"} for row in self.rows)

    @property
    def has_failed(self) -> bool:
        return any(row.record.status == "failed" for row in self.rows)

    @property
    def is_dense(self) -> bool:
        """Whether lines must be thin to be told apart."""
        return len(self.rows) > DENSE

    @property
    def epochs(self) -> int:
        return sum(len(row.record.epochs) for row in self.rows)

    @property
    def full_epochs(self) -> int:
        """With every trial to the end."""
        return len(self.rows) * (self.config.epochs or self.outcome.recipe.train.epochs)

    @property
    def pairs(self) -> list[Pair]:
        """Figures of fresh seeds, and their means where there are several of both."""
        found = self.outcome.confirmation
        if found is None:
            return []
        seeds = [*dict.fromkeys((*found.winner, *found.default))]
        pairs = [
            Pair(f"seed {seed}", _known(found.winner.get(seed)), _known(found.default.get(seed))) for seed in seeds
        ]
        both = [pair for pair in pairs if pair.winner is not None and pair.recipe is not None]
        if len(both) < 2:
            return pairs
        winner, recipe = (sum(getattr(pair, name) for pair in both) / len(both) for name in ("winner", "recipe"))
        return [*pairs, Pair("mean", winner, recipe, strong=True)]

    @property
    def pair_chart(self) -> Markup | None:
        if not any(pair.winner is not None or pair.recipe is not None for pair in self.pairs):
            return None
        said = "; ".join(f"{p.label}: {_or_dash(p.winner)} against {_or_dash(p.recipe)}" for p in self.pairs)
        return pair_chart("seeds", "Winner and recipe on fresh seeds", f"{said}.", self.pairs,
                          label=f"{self.metric_name} of the served pipeline, validation")

    @cached_property
    def importance(self) -> Importance:
        return parameter_importance(self.outcome.records, self.outcome.space, self.outcome.metric,
                                    seed=self.outcome.recipe.seed)

    @property
    def importance_chart(self) -> Markup | None:
        shares = self.importance.shares
        if not shares:
            return None
        said = "; ".join(f"{key} {share:.0%}" for key, share in shares.items())
        return share_bars("importance", "How much each setting mattered", f"{said}.", shares)

    @property
    def axis_keys(self) -> list[str]:
        """Settings with an axis, those that matter most beside the values."""
        shares = self.importance.shares
        varied = [key for key in self.keys if len({repr(row.settings.get(key)) for row in self.rows}) > 1]
        kept = sorted(varied, key=lambda key: -shares.get(key, 0.0))[:MOST_AXES]
        return kept[::-1]

    @property
    def parallel_chart(self) -> Markup | None:
        if not self.axis_keys or len(self.rows) < 2:
            return None
        values = [row.value for row in self.rows]
        axes = [self._axis(key) for key in self.axis_keys]
        axes.append(value_scale(values).axis(self.metric_name, values))
        winner = self.winner
        said = f"{len(values)} trials; the winner is trial {winner.record.number} with {self._settings(winner)}."
        return parallel_coordinates("parallel", "What was tried, and what came of it", said, axes, self.traces)

    @property
    def curves_chart(self) -> Markup | None:
        up = value_scale([value for trace in self.traces for _, value in trace.points])
        if not up.marks:
            return None
        said = f"The winner reaches {_or_dash(self.winner.value)} in epoch {self.winner.best_epoch}."
        return learning_curves("curves", "Learning curves of all trials", said, up, self.traces,
                               y_label=self.outcome.label)

    @property
    def slice_charts(self) -> list[Markup]:
        """One per setting, those that matter most first."""
        up = value_scale([row.value for row in self.rows])
        return [
            slice_chart(f"slice-{n}", f"{key} and what came of it", f"{len(self.rows)} trials, one point each.",
                        self._axis(key), up, self.traces, y_label=self.metric_name)
            for n, key in enumerate(self.axis_keys[::-1])
        ]

    @property
    def is_cut(self) -> bool:
        """Whether some values are so low that charts show them at their lower end."""
        return value_scale([row.value for row in self.rows]).is_cut

    @property
    def fusion_charts(self) -> list[tuple[str, Markup]]:
        """Title and chart of the metric over the neural signal's share: in the search, and on stored scores."""
        best = next((e for e in self.outcome.winner.epochs if e["epoch"] == self.winner.best_epoch), {})
        policy = self.outcome.policy
        curves = [
            ("In the search, the winner's best epoch", self.metric_name, best.get("fused_curve") or []),
            (OF_TWO, _metric_name(CURVE_METRIC), policy.curve if policy is not None else []),
        ]
        return [(title, self._fusion_chart(n, title, metric, curve)) for n, (title, metric, curve) in enumerate(curves)
                if any(_known(value) is not None for _, value in curve)]

    @property
    def shows_two_signals(self) -> bool:
        """Whether a chart shows only two of the signals that are fused."""
        return any(title == OF_TWO for title, _ in self.fusion_charts)

    @property
    def policy_rows(self) -> list[dict[str, Any]]:
        """Settings that were tried on stored scores, best first."""
        policy = self.outcome.policy
        return [] if policy is None else sorted(policy.table, key=lambda row: -(row.get("value") or 0.0))

    @property
    def policy_columns(self) -> list[str]:
        names = dict.fromkeys(name for row in self.policy_rows for name in row)
        return [*(name for name in names if name not in self.headings), *(n for n in self.headings if n in names)]

    @property
    def headings(self) -> dict[str, str]:
        """Columns of that table that are no settings."""
        metric = self.metric_name
        return {"candidates": "Candidates", "cold_value": f"{metric}, unseen items", "value": metric}

    @property
    def facts(self) -> list[tuple[str, str]]:
        """How the campaign was made."""
        config, recipe, rows = self.config, self.outcome.recipe, self.rows
        training = sum(row.record.training_s for row in rows)
        overhead = (sum(row.record.seconds for row in rows) - training) / len(rows)
        return [
            ("Recipe", recipe.name), ("Dataset", self.outcome.dataset), ("Split", recipe.data.split),
            ("Maximised", self.outcome.label),
            ("Proposed by", "chance" if config.algorithm == "random" else "Optuna's TPE"),
            ("Ended early by", scheduler_text(config)),
            ("Budget", f"{config.trials} trials" + (f", {config.time_budget_s:g} s" if config.time_budget_s else "")),
            ("Seed of the search", str(recipe.seed)),
            ("Finalists", finalists_text(config)),
            ("Fresh seeds", ", ".join(map(str, config.fresh_seeds)) or "none"),
            ("Wall time of the search", duration_text(self.outcome.seconds)),
            ("Time in epochs", duration_text(training)),
            ("Outside of epochs", f"{overhead:.1f} s a trial"),
        ]

    @property
    def versions(self) -> dict[str, str]:
        return {"llmrec_ray": __version__, "python": platform.python_version(), **library_versions()}

    @cached_property
    def traces(self) -> list[Trace]:
        """All trials as charts take them, by number."""
        metric = self.outcome.metric
        return [
            Trace(self._label(row), row.look, row.value, _points(row.record, metric), row.record.status)
            for row in self.rows
        ]

    def _axis(self, key: str) -> Axis:
        return axis_of(key, self.outcome.space.get(key), [row.settings.get(key) for row in self.rows])

    def _label(self, row: _Row) -> str:
        return f"trial {row.record.number}: {_or_dash(row.value)}, {row.record.status}; {self._settings(row)}"

    def _settings(self, row: _Row) -> str:
        return ", ".join(f"{key} {setting_text(row.settings.get(key))}" for key in self.keys)

    def _fusion_chart(self, n: int, title: str, metric: str, curve: Sequence[Sequence[float]]) -> Markup:
        points = sorted((float(share), float(value)) for share, value in curve if _known(value) is not None)
        best = max(points, key=lambda point: point[1])
        return line_chart(
            f"fusion-{n}", title, f"{len(points)} shares; the best is {best[0]:g} with {best[1]:.4f}.", {title: points},
            x_label="share of the neural signal", y_label=f"validation {metric}", from_zero=False,
            mark_best=True,
        )

    def breakable(self, key: str) -> Markup:
        """A dotted key that may go on in the next line after each part."""
        return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(key))))

    def setting(self, value: Any) -> str:
        return setting_text(value)

    def minus(self, sentence: str) -> str:
        """With real minus signs before figures."""
        return re.sub(r"(?<![\w.])-(?=\d)", "−", sentence)


def _best(record: TrialRecord, metric: str) -> tuple[float | None, int | None]:
    """Best value and the first epoch that had it."""
    best = max(values_of(record, metric), default=None)
    return best, next((int(entry["epoch"]) for entry in record.epochs if entry.get(metric) == best), None)


def _points(record: TrialRecord, metric: str) -> list[tuple[float, float]]:
    kept = [entry for entry in record.epochs if values_of(record.model_copy(update={"epochs": [entry]}), metric)]
    return [(float(entry["epoch"]), float(entry[metric])) for entry in kept]


def _levels(values: Sequence[float | None]) -> list[int]:
    """Fifths by rank, equal values alike; 0 for those without a value."""
    known = [value for value in values if value is not None]
    ranks = iter(rankdata(known) if known else [])
    return [0 if value is None else min(LEVELS - 1, int(LEVELS * (next(ranks) - 0.5) / len(known))) for value in values]


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _metric_name(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{NAMES.get(name, name.upper())}@{k}"


def _or_dash(value: float | None) -> str:
    return "no value" if value is None else f"{value:.4f}"
