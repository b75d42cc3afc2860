"""An Evaluation and example users -> one HTML page that needs nothing else: no script, font, image or style sheet.

Everything that comes from data is escaped: a title may hold any characters. Numbers are formatted here, words and
layout are in `templates/`, charts in `charts`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from llmrec_ray.evaluate.examples import Example
from llmrec_ray.evaluate.report import Evaluation, Segment
from llmrec_ray.pages import Bar, Interval, grouped_bars, interval_chart, line_chart, render, stacked_bar

__all__ = ["render_report", "write_report"]

SERVED = "served pipeline"
BEST_BASELINES = 2
BEYOND = ("coverage", "gini", "novelty", "diversity")
RANKED = ("ndcg", "hr", "mrr", "precision", "f1")
HEADINGS = {
    "ndcg": "NDCG", "hr": "HR", "mrr": "MRR", "precision": "Precision", "f1": "F1", "coverage": "Coverage",
    "gini": "Gini", "novelty": "Novelty", "diversity": "Diversity",
}
SEGMENTS = {
    "popularity": "Popularity of the held-out item", "warmth": "Held-out item seen in train or not",
    "history_length": "Length of the history",
}
COLD = {
    "cold_only": "among the held-out items", "cold_only_scale_off": "among the held-out items, cold scale 0",
    "all": "among all items", "all_scale_off": "among all items, cold scale 0",
    "warm": "known items among all", "warm_scale_off": "known items among all, cold scale 0",
}


@dataclass(frozen=True)
class _System:
    """One row of the tables. name: as in `ranks.parquet`."""

    name: str
    kind: str
    label: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    @property
    def is_model(self) -> bool:
        return self.kind == "model"

    @property
    def verdict(self) -> str:
        """The served pipeline against this one, in words."""
        if self.metrics["lead_low"] <= 0 <= self.metrics["lead_high"]:
            return "no difference shown"
        return f"{SERVED} is better" if self.metrics["lead"] > 0 else "this one is better"


def write_report(folder: Path, evaluation: Evaluation, examples: Sequence[Example]) -> None:
    """`report.html` and, for programs, `examples.json`."""
    (folder / "report.html").write_text(render_report(evaluation, examples), encoding="utf-8")
    kept = [example.model_dump(mode="json") for example in examples]
    (folder / "examples.json").write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def render_report(evaluation: Evaluation, examples: Sequence[Example]) -> str:
    """The page as text."""
    view = _View(evaluation, examples)
    return render("llmrec_ray.evaluate", "report.html", view=view, evaluation=evaluation, examples=examples)


class _View:
    """What the template asks for, in the order of the page."""

    def __init__(self, evaluation: Evaluation, examples: Sequence[Example]) -> None:
        self.evaluation = evaluation
        self.k = evaluation.main_k
        self.main = f"ndcg@{self.k}"
        self.signals = sorted({name for e in examples for item in e.items for name in item.shares})
        self.headings = HEADINGS
        self.segment_titles = SEGMENTS

    @cached_property
    def systems(self) -> list[_System]:
        """The served pipeline, then all others, best first."""
        evaluation = self.evaluation
        others = [
            _System(f"{kind}:{name}", kind, name, metrics, evaluation.intervals.get(f"{kind}:{name}", {}))
            for kind, systems in (("signal", evaluation.signals), ("baseline", evaluation.baselines))
            for name, metrics in systems.items()
        ]
        model = _System("model", "model", SERVED, evaluation.model, evaluation.intervals.get("model", {}))
        return [model, *sorted(others, key=lambda system: -system.metrics[self.main])]

    @property
    def model(self) -> _System:
        return self.systems[0]

    @property
    def is_sampled(self) -> bool:
        return "SAMPLED" in self.evaluation.protocol.partition(":")[0]

    @property
    def best_baseline(self) -> _System | None:
        return next((system for system in self.systems if system.kind == "baseline"), None)

    @property
    def ks(self) -> list[int]:
        return sorted(int(name.partition("@")[2]) for name in self.evaluation.model if name.startswith("ndcg@"))

    @property
    def shown(self) -> list[_System]:
        """The systems of line charts: the served pipeline, the best signal, the best baselines, and popularity."""
        signals = [system for system in self.systems if system.kind == "signal"][:1]
        baselines = [system for system in self.systems if system.kind == "baseline"]
        reference = [system for system in baselines if system.label == "popularity"]
        best = [system for system in baselines if system not in reference][:BEST_BASELINES]
        return [self.model, *signals, *best, *reference]

    @property
    def compared(self) -> list[_System]:
        """The systems of the segments' charts: the served pipeline, the best baseline and the best signal."""
        best = [next((s for s in self.systems if s.kind == kind), None) for kind in ("baseline", "signal")]
        return [self.model, *(system for system in best if system is not None)]

    @property
    def interval_chart(self) -> Markup | None:
        rows = [
            Interval(_with_kind(system), system.metrics[self.main], *system.intervals[self.main], system.is_model)
            for system in self.systems if self.main in system.intervals
        ]
        if not rows:
            return None
        ordered = sorted(rows, key=lambda row: -row.value)
        said = "; ".join(f"{row.label} {row.value:.4f}" for row in ordered)
        return interval_chart("systems", f"NDCG at {self.k} of every system", f"Best first: {said}.", ordered,
                              x_label=f"NDCG@{self.k}, 95 % interval")

    @property
    def charts_over_k(self) -> list[Markup]:
        return [chart for metric in ("ndcg", "hr") if (chart := self._over_k(metric)) is not None]

    @property
    def fusion_chart(self) -> Markup | None:
        points = sorted(self.evaluation.curves.fusion)
        if not points:
            return None
        best = max(points, key=lambda point: point[1])
        return line_chart(
            "fusion", "Validation NDCG by fusion weight",
            f"{len(points)} weights; the best is {best[0]:g} with {best[1]:.4f}.", {"late fusion": points},
            x_label="weight of the neural signal", y_label="validation NDCG@10", from_zero=False, mark_best=True,
        )

    @property
    def segment_charts(self) -> list[tuple[str, Markup]]:
        """Title and chart per kind of segment that has at least two segments with targets."""
        charts = []
        for by, segments in self.evaluation.segments.items():
            filled = {name: segment for name, segment in segments.items() if segment.users}
            if len(filled) > 1:
                charts.append((SEGMENTS.get(by, by), self._segment_chart(by, filled)))
        return charts

    @property
    def cold_metrics(self) -> list[str]:
        names = dict.fromkeys(name for figures in self.evaluation.cold.values() for name in figures)
        return [name for name in names if not name.endswith(("_low", "_high"))]

    @property
    def cold_groups(self) -> list[tuple[str, list[tuple[str, str, dict[str, float]]]]]:
        """Whose figures on held-out items -> label, kind of system and figures per row."""
        rows = [(name.split(":"), figures) for name, figures in self.evaluation.cold.items()]
        served = [(COLD.get(name[0], name[0]), "", figures) for name, figures in rows if len(name) == 1]
        alone = [(name[-1], ", ".join(name[1:-1]), figures) for name, figures in rows if len(name) > 1]
        groups = [(SERVED.capitalize(), served), ("Others alone, among the held-out items", alone)]
        return [(title, group) for title, group in groups if group]

    @property
    def beyond(self) -> list[str]:
        return [f"{name}@{self.k}" for name in BEYOND if f"{name}@{self.k}" in self.evaluation.model]

    @property
    def everything(self) -> list[str]:
        names = [f"{name}@{k}" for k in self.ks for name in (*RANKED, *BEYOND)]
        return [name for name in names if name in self.evaluation.model]

    @property
    def facts(self) -> list[tuple[str, str]]:
        evaluation = self.evaluation
        return [
            ("Protocol hash", evaluation.protocol_hash or "none"), ("Split", evaluation.split),
            ("Recipe", evaluation.recipe), ("Seed", str(evaluation.seed)),
            ("Dataset", evaluation.dataset), ("Bundle", evaluation.bundle),
        ]

    def heading(self, name: str) -> str:
        """`ndcg@10` as a person reads it."""
        metric, _, k = name.partition("@")
        return f"{HEADINGS.get(metric, metric.upper())}{f'@{k}' if k else ''}"

    def shares(self, example: Example, shares: dict[str, float]) -> Markup:
        """The stacked bar of one item, on a scale that the example's items share."""
        sums = [_above_and_below(item.shares) for item in example.items]
        return stacked_bar(shares, self.signals, min(below for _, below in sums), max(above for above, _ in sums))

    def _over_k(self, metric: str) -> Markup | None:
        at_k = self.evaluation.curves.at_k.get(metric, {})
        lines = {
            _with_kind(system): list(enumerate(at_k[system.name], 1)) for system in self.shown if system.name in at_k
        }
        if not lines:
            return None
        title, longest = HEADINGS[metric], max(len(line) for line in lines.values())
        said = "; ".join(f"{label} {line[-1][1]:.4f}" for label, line in lines.items())
        return line_chart(f"over-k-{metric}", f"{title} over k", f"At k = {longest}: {said}.", lines,
                          x_label="k, length of the list", y_label=f"{title}@k")

    def _segment_chart(self, by: str, segments: dict[str, Segment]) -> Markup:
        groups = {
            (name, f"n = {_count(segment.users)}"): [self._bar(segment, system) for system in self.compared]
            for name, segment in segments.items()
        }
        said = "; ".join(
            f"{name}: " + ", ".join(
                f"{system.label} {bar.value:.4f}" for system, bar in zip(self.compared, bars, strict=True)
            )
            for (name, _), bars in groups.items()
        )
        title = f"NDCG at {self.k} by {SEGMENTS.get(by, by).lower()}"
        return grouped_bars(f"segment-{by}", title, f"{said}.", groups, y_label=f"NDCG@{self.k}")

    def _bar(self, segment: Segment, system: _System) -> Bar:
        figures = segment.systems[system.name]
        return Bar(figures[self.main], figures.get(f"{self.main}_low"), figures.get(f"{self.main}_high"))


def _with_kind(system: _System) -> str:
    return system.label if system.is_model else f"{system.label} ({system.kind})"


def _above_and_below(shares: dict[str, float]) -> tuple[float, float]:
    values: list[Any] = list(shares.values())
    return sum(value for value in values if value > 0), sum(value for value in values if value < 0)


def _count(value: int) -> str:
    return f"{value:,}"
