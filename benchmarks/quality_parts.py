"""The parts of the quality benchmark: each trains once, ranks with everything that this training serves, and is kept.

A part is a JSON object {"rows": {system: {"ranks": {split: [...]}, "train_s": …, "score_us": …}}, …} in a file of its
own, so that an interrupted run goes on with the next part. A part that scores the test split is logged when it is
computed, not when it is read again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmrec_ray import stages
from llmrec_ray.artifact import Artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import BaselineName, Recipe, override_recipe
from llmrec_ray.data import Dataset
from llmrec_ray.evaluate import fit_baseline
from llmrec_ray.evaluate.cold import ColdSystem, ColdTask, chance, cold_figures
from llmrec_ray.evaluate.protocol import Task
from llmrec_ray.evaluate.systems import RawScores, Served, System, of_signal
from llmrec_ray.index import Index
from llmrec_ray.metrics import hit_rate, ndcg
from llmrec_ray.recommend import Pipeline
from llmrec_ray.train import TextSpace
from llmrec_ray.train.fusing import FittedMode, fit_modes
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["SEEDED", "UNSEEDED", "Part", "Parts", "Split", "baselines_part", "cold_part", "figures", "model_part"]

Split = Literal["validation", "test"]
Tower = Literal["decayed_means", "transformer"]
ScoreItems = Callable[[Histories, IntArray], Mapping[str, FloatArray]]
K = 10
UNPUBLISHED = "unpublished"
LEARNT = ("neural", "ncf")
ORIGIN = ("protocol", "dataset", "bundle")
BATCH_USERS = 256
UNSEEDED: tuple[BaselineName, ...] = (
    "popularity", "recent_popularity", "tfidf", "text", "item_knn", "item_knn_recency", "ease", "ease_recency",
    "markov",
)
SEEDED: tuple[BaselineName, ...] = ("ials", "bpr", "sasrec")


@dataclass(frozen=True)
class Part:
    """What one file holds: a name, the recipe and what computes it."""

    name: str
    recipe: Recipe
    compute: Callable[[Recipe, Sequence[Split]], dict[str, Any]]


@dataclass(frozen=True)
class Parts:
    """The files of one run in a folder; `log`: where scorings of the test split are written down, or None."""

    folder: Path
    splits: Sequence[Split]
    log: Path | None

    def result(self, part: Part) -> dict[str, Any]:
        """Read the part when it is there for the same recipe and splits, else compute it."""
        path = self.folder / f"{part.name}.json"
        stamp = _stamp(part.recipe, *self.splits)
        if path.exists():
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if kept["stamp"] == stamp:
                return kept
        started = time.monotonic()
        result = part.compute(part.recipe, self.splits)
        result |= {"stamp": stamp, "seconds": round(time.monotonic() - started, 1)}
        self._log(part, result)
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result), encoding="utf-8")
        return result

    def _log(self, part: Part, result: Mapping[str, Any]) -> None:
        if "test" not in self.splits or self.log is None:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "split": "test", "benchmark": "quality",
            "part": part.name, "recipe": part.recipe.name, "seed": part.recipe.seed,
            "git_commit": _git_commit(), **{name: result[name] for name in ORIGIN if name in result},
            "systems": {name: figures(row["ranks"]["test"]) for name, row in result["rows"].items()},
        } | ({"cold": result["cold"]} if "cold" in result else {})
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")


def model_part(tower: Tower) -> Callable[[Recipe, Sequence[Split]], dict[str, Any]]:
    """One training of the recipe's model with this user tower, then what it serves: the pipeline and every signal.

    With the recipe's own tower also every fusion mode: `late` is without the reranker, `learned` with it. Modes need
    the same towers, so these are trained once, with late fusion, and the pipeline is given the recipe's mode. Another
    tower is served with late fusion.
    """

    def compute(recipe: Recipe, splits: Sequence[Split]) -> dict[str, Any]:
        dataset = stages.open_dataset(recipe)
        tower_alone = [] if tower == "decayed_means" else [f"model.user_tower={tower}"]
        bundle, pipeline = _train(override_recipe(recipe, ["fusion.mode=late", *tower_alone]), dataset.uri)
        fitted = fit_modes(recipe, dataset, bundle) if tower == "decayed_means" else {}
        served = _with_mode(recipe.fusion.mode, fitted, dataset, bundle, pipeline)
        systems: dict[str, System] = {"default": _served("default", served)}
        for mode in fitted:
            systems[mode] = _served(mode, _with_mode(mode, fitted, dataset, bundle, pipeline))
        systems |= _signals(bundle, bundle.signal_names if tower == "decayed_means" else LEARNT)
        rows = _measured(systems, dataset, splits)
        seconds = bundle.artifact.manifest.metrics["train_seconds"]
        for name, row in rows.items():
            mode = recipe.fusion.mode if name == "default" else name
            row["train_s"] = seconds + (fitted[mode].seconds if mode in fitted else 0.0)
        named = rows if tower == "decayed_means" else {
            f"{tower} {name.replace('default', 'late')}": row for name, row in rows.items()
        }
        return {"rows": named, "protocol": "P", **_origin(dataset, bundle.artifact)}

    return compute


def baselines_part(names: Iterable[BaselineName]) -> Callable[[Recipe, Sequence[Split]], dict[str, Any]]:
    """These baselines, fitted with the recipe's seed."""

    def compute(recipe: Recipe, splits: Sequence[Split]) -> dict[str, Any]:
        dataset = stages.open_dataset(recipe)
        rows = {}
        for name in names:
            text = TextSpace.of(stages.embed_stage(recipe)).vectors if name == "text" else None
            started = time.perf_counter()
            signal = fit_baseline(name, dataset, recipe, text_vectors=text)
            seconds = time.perf_counter() - started
            [row] = _measured({name: of_signal(signal, name, K)}, dataset, splits).values()
            rows[name] = row | {"train_s": seconds}
        return {"rows": rows, "protocol": "P", **_origin(dataset, None)}

    return compute


def cold_part(recipe: Recipe, splits: Sequence[Split]) -> dict[str, Any]:
    """One training on a Dataset whose split holds a fold of items out: cold pairs, and the warm ranking beside them.

    `cold`: among "fold" or "all" -> system -> figures over the pairs of the last split; systems are the pipeline with
    its cold scale and with 0, and each signal as it scores cold items.
    """
    dataset = Dataset.open(stages.ingest_stage(recipe).uri)
    bundle, pipeline = _train(recipe, dataset.uri)
    without = pipeline.with_policy(pipeline.policy.model_copy(update={"cold_scale": 0.0}))
    served: dict[str, System] = {"default": _served("default", pipeline), "scale_off": _served("scale_off", without)}
    task = ColdTask.of(dataset, splits[-1])
    cold: dict[str, Any] = {
        "chance": chance(task.n_candidates, [K]), "pairs": len(task.users), "items": len(task.fold),
        "fold": _cold_figures(_cold_scores(bundle, pipeline, without), "fold", task),
        "all": _cold_figures(_cold_scores(None, pipeline, without), "all", task),
    }
    return {"rows": _measured(served, dataset, splits), "cold": cold, "protocol": "C2",
            **_origin(dataset, bundle.artifact)}


def figures(ranks: Sequence[float]) -> dict[str, float]:
    """NDCG@10 and HR@10 of ranks."""
    array = np.asarray(ranks, np.float64)
    return {"ndcg@10": ndcg(array, K), "hr@10": hit_rate(array, K)}


def _train(recipe: Recipe, dataset_uri: str) -> tuple[Bundle, Pipeline]:
    """A Bundle, trained unless it was before, and its pipeline."""
    memo = Path(recipe.workspace) / "trained" / f"{_stamp(recipe, dataset_uri)}.txt"
    if not memo.exists():
        uri = stages.train_stage(recipe, dataset_uri).uri
        memo.parent.mkdir(parents=True, exist_ok=True)
        memo.write_text(uri, encoding="utf-8")
    bundle = Bundle.open(memo.read_text(encoding="utf-8"), verify=False)
    index = Index.load(stages.index_stage(recipe, bundle.uri).uri)
    return bundle, Pipeline(Dataset.open(dataset_uri, verify=False), bundle, index)


def _with_mode(
    mode: str, fitted: Mapping[Any, FittedMode], dataset: Dataset, bundle: Bundle, pipeline: Pipeline
) -> Pipeline:
    """The pipeline of the same Bundle under another fusion mode, as if it had been trained with that."""
    if mode == "late" or mode not in fitted:
        return pipeline
    changed = copy.copy(bundle)
    changed.fusion = fitted[mode].fusion
    return Pipeline(dataset, changed, Index.load(pipeline.index_uri, verify=False))


def _stamp(recipe: Recipe, *others: str) -> str:
    return hashlib.sha256(json.dumps([recipe.model_dump(mode="json"), *others]).encode()).hexdigest()[:12]


def _served(name: str, pipeline: Pipeline) -> Served:
    return Served(name, pipeline.recommend_rows, _NoSampling(), pipeline.list_length(K))


class _NoSampling:
    """Stands where sampled candidates would be scored; this benchmark draws none."""

    def __call__(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        raise AssertionError("sampled candidates in a full ranking. This is a bug.")


def _signals(bundle: Bundle, names: Iterable[str]) -> dict[str, System]:
    """One system per signal, so that each has its own cost."""
    return {
        f"signal {name}": RawScores(_score(bundle, name), _NoSampling(), K, prefix="signal ") for name in names
    }


def _score(bundle: Bundle, name: str) -> Callable[[Histories], dict[str, FloatArray]]:
    return lambda histories: {name: bundle.score_catalogue(name, histories, bundle.user_vectors(histories))}


def _cold_scores(bundle: Bundle | None, *pipelines: Pipeline) -> list[ScoreItems]:
    """Fused scores with and without the cold scale; with a Bundle also its signals, which know cold items only."""
    on, off = pipelines
    scores: list[ScoreItems] = [
        lambda histories, rows: {"default": on.score_rows(histories, rows)},
        lambda histories, rows: {"scale_off": off.score_rows(histories, rows)},
    ]
    if bundle is not None:
        scores.append(lambda histories, rows: bundle.cold.take(
            bundle.cold.score(histories, bundle.user_vectors(histories)), rows
        ))
    return scores


def _cold_figures(scores: Iterable[ScoreItems], among: Literal["fold", "all"], task: ColdTask) -> dict[str, Any]:
    """Figures over all pairs by each name that the scores have."""
    pieces: dict[str, list[Any]] = {}
    for score in scores:
        for start in range(0, len(task), BATCH_USERS):
            for name, ranked in ColdSystem(score, among).rank(task.piece(start, start + BATCH_USERS)):
                pieces.setdefault(name, []).append(ranked.ranks)
    return {name: cold_figures(np.concatenate(ranks), [K]) for name, ranks in pieces.items()}


def _measured(systems: Mapping[str, System], dataset: Dataset, splits: Sequence[Split]) -> dict[str, dict[str, Any]]:
    """Ranks of every split's targets by each system, and its cost of ranking a user."""
    tasks = {split: Task.of(dataset, split) for split in splits}
    rows: dict[str, dict[str, Any]] = {}
    for name, system in systems.items():
        started, users, ranks = time.perf_counter(), 0, {}
        for split, task in tasks.items():
            ranks[split] = [rank for piece in task.batches(BATCH_USERS) for _, found in system.rank(piece)
                            for rank in found.ranks.tolist()]
            users += len(task)
        rows[name] = {"ranks": ranks, "score_us": (time.perf_counter() - started) / users * 1e6}
    return rows


def _origin(dataset: Dataset, bundle: Artifact | None) -> dict[str, str]:
    origin = {"dataset": dataset.id}
    if bundle is not None:
        origin |= {"bundle": bundle.id}
    return origin


def _git_commit() -> str:
    """Of this file's repository, or "" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()
