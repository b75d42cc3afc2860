"""Every system's rank of every target -> what stands behind the means: intervals, segments, curves, versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmrec_ray import __version__
from llmrec_ray.artifact import library_versions
from llmrec_ray.evaluate.report import Curves, Evaluation
from llmrec_ray.evaluate.segments import segment_figures, segment_targets
from llmrec_ray.metrics import bootstrap, hit_rate, ndcg, ndcg_gains
from llmrec_ray.types import IntArray

__all__ = ["with_details"]

Ranks: TypeAlias = NDArray[np.float64]


def with_details(
    evaluation: Evaluation,
    ranks: Mapping[str, Ranks],
    *,
    history_lengths: IntArray,
    target_rows: IntArray,
    popularity: IntArray,
    trained: Mapping[str, Any],
) -> Evaluation:
    """The evaluation with intervals, segments, curves and versions filled in.

    ranks: system, named as in `ranks.parquet` -> [U]. history_lengths: [U] events that the ranking read.
    target_rows: [U] item rows. popularity: [N] train events. trained: what the Bundle's manifest measured, of
    which `fusion_curve` is drawn when it is there.
    """
    k = evaluation.main_k
    targets = segment_targets(history_lengths, target_rows, popularity)
    return evaluation.model_copy(update={
        "intervals": {system: _intervals(each, k) for system, each in ranks.items()},
        "segments": segment_figures(targets, ranks, k),
        "curves": Curves(fusion=trained.get("fusion_curve", []), at_k=_over_k(ranks, _longest(evaluation))),
        "versions": {"llmrec_ray": __version__, "python": platform.python_version(), **library_versions()},
    })


def _intervals(ranks: Ranks, k: int) -> dict[str, tuple[float, float]]:
    gains = {f"ndcg@{k}": ndcg_gains(ranks, k), f"hr@{k}": (ranks <= k).astype(np.float64)}
    found = {name: bootstrap(each) for name, each in gains.items()}
    return {name: (difference.low, difference.high) for name, difference in found.items()}


def _longest(evaluation: Evaluation) -> int:
    return max(int(name.partition("@")[2]) for name in evaluation.model if name.startswith("ndcg@"))


def _over_k(ranks: Mapping[str, Ranks], longest: int) -> dict[str, dict[str, list[float]]]:
    ks = range(1, longest + 1)
    return {
        "ndcg": {system: [ndcg(each, k) for k in ks] for system, each in ranks.items()},
        "hr": {system: [hit_rate(each, k) for k in ks] for system, each in ranks.items()},
    }
