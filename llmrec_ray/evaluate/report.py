"""The result of an evaluation: figures by system, as JSON and as one text table that names its protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Curves", "Evaluation", "Segment"]

HEADINGS = {
    "ndcg": "NDCG", "hr": "HR", "mrr": "MRR", "recall": "Recall", "precision": "Precision", "f1": "F1",
    "auc": "AUC", "coverage": "Coverage",
}
NAME_WIDTH = 28
COLUMN_WIDTH = 11
SERVED = "served pipeline"


class Segment(BaseModel):
    """One group of targets, such as those of the tail: how many, and every system's figures on them.

    systems: system -> metric -> value, systems named as in `ranks.parquet`; empty when there are no targets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    users: int
    systems: dict[str, dict[str, float]] = {}


class Curves(BaseModel):
    """What the report draws as lines.

    fusion: points (weight of the neural signal, validation NDCG@10), smallest weight first; empty when training
    searched no weights. at_k: metric -> system -> its value at k = 1, 2, 3, …
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    fusion: list[tuple[float, float]] = []
    at_k: dict[str, dict[str, list[float]]] = {}


class Evaluation(BaseModel):
    """Figures of the served pipeline, of each signal alone and of each baseline.

    Figures are `ndcg@10`, `hr@10`, `mrr@10`, `recall@10`, `precision@10`, `f1@10` and `coverage@10` for every
    k, and `auc`; also `gini@10`, `novelty@10` and, where items have vectors, `diversity@10`. Signals and baselines
    also have `lead`, `lead_low`, `lead_high`: by how much the served pipeline's NDCG at `main_k` is above theirs,
    paired over the users, with its 95 % interval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    protocol: str
    protocol_hash: str = ""
    """12 hexadecimal digits that two evaluations share when their figures may be compared; empty in old ones."""
    split: str
    recipe: str
    seed: int
    dataset: str
    bundle: str
    users: int
    items: int
    main_k: int
    model: dict[str, float]
    signals: dict[str, dict[str, float]]
    baselines: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    """System, named as in `ranks.parquet` -> metric at `main_k` -> its 95 % interval, bootstrapped over users."""
    segments: dict[str, dict[str, Segment]] = {}
    """By what (`popularity`, `warmth`, `history_length`) -> segment -> its figures."""
    cold: dict[str, dict[str, float]] = {}
    """Held-out items of a cold split: ranked among what, and with which cold scale -> metric -> value."""
    curves: Curves = Curves()
    versions: dict[str, str] = {}
    """Versions of the libraries that computed this."""
    uri: str = Field(default="", exclude=True)
    """Where the artifact is; empty before it is saved."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the URI, ready for JSON."""
        return self.model_dump(mode="json")

    def table(self) -> str:
        """One row per system at `main_k`, best NDCG first within signals and baselines, then held-out items if any."""
        columns = {name: name if name == "auc" else f"{name}@{self.main_k}" for name in HEADINGS}
        columns = {name: column for name, column in columns.items() if column in self.model}
        rows = [_row(SERVED, self.model, columns.values())]
        for kind, systems in (("signal", self.signals), ("baseline", self.baselines)):
            ordered = sorted(systems, key=lambda name: -systems[name][f"ndcg@{self.main_k}"])
            rows += [_row(f"{kind} {name}", systems[name], columns.values()) for name in ordered]
        return "\n".join([
            f"Protocol {self.protocol}{f' [{self.protocol_hash}]' if self.protocol_hash else ''}.",
            f"{self.users} users, {self.items} items, {self.split} split; {self.recipe}, seed {self.seed}.",
            "",
            self._heading(list(columns)),
            *rows,
            *self._cold_rows(),
        ])

    def _heading(self, columns: Sequence[str]) -> str:
        sampled = " SAMPLED" if "SAMPLED" in self.protocol.partition(":")[0] else ""
        figures = "".join(f"{HEADINGS[name]:>{COLUMN_WIDTH}}" for name in columns)
        return f"{f'at {self.main_k}{sampled}':<{NAME_WIDTH}}{figures}   {SERVED}'s lead in NDCG (95 %)"

    def _cold_rows(self) -> list[str]:
        if not self.cold:
            return []
        columns = [f"ndcg@{self.main_k}", f"hr@{self.main_k}"]
        width = max(map(len, self.cold))
        heading = f"{f'at {self.main_k}':<{width}}" + "".join(f"{title:>{COLUMN_WIDTH}}" for title in ("NDCG", "HR"))
        heading += "   HR (95 %)"
        return ["", "Items without a train event, beside the warm ranking by the same weights:", heading, *(
            f"{name:<{width}}" + "".join(f"{figures[column]:>{COLUMN_WIDTH}.4f}" for column in columns)
            + _interval(figures, columns[1])
            for name, figures in self.cold.items()
        )]


def _interval(figures: Mapping[str, float], name: str) -> str:
    return f"   {figures[f'{name}_low']:.4f} to {figures[f'{name}_high']:.4f}" if f"{name}_low" in figures else ""


def _row(name: str, metrics: Mapping[str, float], columns: Iterable[str]) -> str:
    figures = "".join(f"{metrics[column]:>{COLUMN_WIDTH}.4f}" for column in columns)
    return f"{name:<{NAME_WIDTH}}{figures}{_lead(metrics) if 'lead' in metrics else ''}"


def _lead(metrics: Mapping[str, float]) -> str:
    return f"   {metrics['lead']:+.4f} ({metrics['lead_low']:+.4f} to {metrics['lead_high']:+.4f})"
