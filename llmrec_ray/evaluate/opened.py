"""URIs of a Dataset, a Bundle and an Index -> the systems that a worker ranks with, opened in its own process.

What is opened already is used as it is: one process then holds everything once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from llmrec_ray.bundle import Bundle
from llmrec_ray.data import Dataset
from llmrec_ray.evaluate.cold import ColdSystem
from llmrec_ray.evaluate.spread import Ranker, Worker
from llmrec_ray.evaluate.systems import RawScores, Served
from llmrec_ray.index import Index
from llmrec_ray.recommend import Pipeline
from llmrec_ray.signals import FusionPolicy
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["COLD", "SCALE_OFF", "SIGNALS", "Uris", "make_worker"]

SIGNALS = "signals"
SCALE_OFF = "model_scale_off"
COLD = ("cold_only", "cold_only_scale_off", "cold_only_signals", "all", "all_scale_off")
"""Systems of pairs of held-out items, in the order of the report."""


@dataclass(frozen=True)
class Uris:
    """What another process needs in order to open the same systems."""

    dataset: str
    bundle: str
    index: str
    policy: FusionPolicy
    ks: tuple[int, ...]

    @classmethod
    def of(cls, dataset: Dataset, bundle: Bundle, pipeline: Pipeline, ks: Sequence[int]) -> Self:
        """Of artifacts that are open here."""
        return cls(dataset.uri, bundle.uri, pipeline.index_uri, pipeline.policy, tuple(ks))

    def __call__(self) -> Worker:
        """Open everything; hashes were verified where the evaluation began."""
        dataset, bundle = Dataset.open(self.dataset, verify=False), Bundle.open(self.bundle, verify=False)
        pipeline = Pipeline(dataset, bundle, Index.load(self.index, verify=False), policy=self.policy)
        return make_worker(dataset, bundle, pipeline, self.ks)


def make_worker(dataset: Dataset, bundle: Bundle, pipeline: Pipeline, ks: Sequence[int]) -> Worker:
    """A worker with the systems `model`, SIGNALS and, for cold items, SCALE_OFF and those of COLD."""
    systems: dict[str, Ranker] = {
        "model": _served("model", pipeline, ks),
        SIGNALS: RawScores(bundle.score_all, bundle.score_items, max(ks), "signal:"),
    }
    if dataset.split == "cold_items":
        off = pipeline.with_policy(pipeline.policy.model_copy(update={"cold_scale": 0.0}))
        systems[SCALE_OFF] = _served(SCALE_OFF, off, ks)
        scopes: dict[str, Literal["fold", "all"]] = {"cold_only": "fold", "all": "all"}
        for among, scope in scopes.items():
            systems[among] = ColdSystem(_Fused(among, pipeline), scope)
            systems[f"{among}_scale_off"] = ColdSystem(_Fused(f"{among}_scale_off", off), scope)
        systems["cold_only_signals"] = ColdSystem(_ColdSignals(bundle), "fold", "signal:")
    return Worker(systems, ks, len(dataset.items), bundle.text_vectors)


def _served(name: str, pipeline: Pipeline, ks: Sequence[int]) -> Served:
    return Served(name, pipeline.recommend_rows, pipeline.score_rows, pipeline.list_length(max(ks)))


@dataclass(frozen=True)
class _Fused:
    name: str
    pipeline: Pipeline

    def __call__(self, histories: Histories, item_rows: IntArray) -> dict[str, FloatArray]:
        return {self.name: self.pipeline.score_rows(histories, item_rows)}


@dataclass(frozen=True)
class _ColdSignals:
    """What each signal says about cold items, as the fusion reads it."""

    bundle: Bundle

    def __call__(self, histories: Histories, item_rows: IntArray) -> dict[str, FloatArray]:
        cold = self.bundle.cold
        return cold.take(cold.score(histories, self.bundle.user_vectors(histories)), item_rows)
