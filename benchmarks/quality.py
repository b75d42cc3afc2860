"""Quality of every fusion mode, tower, signal and baseline, warm (protocol P) and cold (C2): a table, one JSON line.

    python benchmarks/quality.py [--quick] [--split validation] [--only PART ...] [--folder DIR] [section.key=value ...]

Seeds 0 to 4, mean and deviation; --quick takes one seed and one fold of cold items. Rows are chosen on validation, so
that the test split may be scored rarely: `--split validation` leaves it alone, and every part that scores it is
appended to the log. A run that was interrupted goes on where it stopped, and `--only model-0 cold-2` computes some
parts of a later run; give another --folder, or remove it, to measure changed code.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from quality_parts import SEEDED, UNSEEDED, Part, Parts, Split, baselines_part, cold_part, figures, model_part

from llmrec_ray import stages
from llmrec_ray.config import Recipe, load_recipe, override_recipe
from llmrec_ray.metrics import ndcg_gains, paired_difference

K = 10
LOG = Path(__file__).parent / "results" / "test-scorings.jsonl"
RIVALS = ("ease_recency", "sasrec")
REFERENCES = {
    "popularity": (0.084, 0.044), "text": (0.063, 0.035), "item_knn": (0.140, 0.071),
    "item_knn_recency": (0.174, 0.091), "ials": (0.143, 0.073), "ease": (0.143, 0.071), "ease_recency": (0.188, 0.101),
    "bpr": (0.118, 0.059), "markov": (0.175, 0.094), "sasrec": (0.194, 0.104),
}
"""HR@10 and NDCG@10 on test that public implementations reach under protocol P."""


@dataclass(frozen=True)
class Effort:
    """Seeds of everything warm, and folds of cold items (one seed each)."""

    seeds: Sequence[int]
    folds: Sequence[int]


QUICK = Effort(seeds=(0,), folds=(0,))
FULL = Effort(seeds=(0, 1, 2, 3, 4), folds=(0, 2, 3))


def main() -> None:
    """Print the table, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="movielens-100k")
    parser.add_argument("--quick", action="store_true", help="one seed and one fold")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"), help="keeps parts of interrupted runs")
    parser.add_argument("--log", type=Path, default=LOG, help="where scorings of the test split are appended")
    parser.add_argument("--only", nargs="+", metavar="PART", help="compute these parts and stop")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    effort = QUICK if arguments.quick else FULL
    splits: tuple[Split, ...] = ("validation",) if arguments.split == "validation" else ("validation", "test")
    overrides = [f"workspace={arguments.folder.resolve()}/work", *arguments.overrides]
    recipe = load_recipe(arguments.recipe, overrides=overrides)
    parts = Parts(arguments.folder / "parts", splits, arguments.log)
    with stages.ray_for(recipe):
        if arguments.only:
            compute_some(recipe, effort, parts, arguments.only)
            return
        result = measure(recipe, effort, parts)
    print_table(result)
    print(json.dumps(result))


def compute_some(recipe: Recipe, effort: Effort, parts: Parts, names: Sequence[str]) -> None:
    """Compute the named parts, for a later run to read."""
    _prepare(recipe)
    known = {part.name: part for part in [*_warm_parts(recipe, effort), *_cold_parts(recipe, effort)]}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no such part: {', '.join(unknown)}; there are {', '.join(known)}")
    for name in names:
        result = parts.result(known[name])
        for row, run in result["rows"].items():
            print(f"{name}: {row}: {figures(run['ranks'][parts.splits[-1]])}")


def measure(recipe: Recipe, effort: Effort, parts: Parts) -> dict[str, Any]:
    """Compute or read all parts, and sum them up as the keys of the JSON line."""
    _prepare(recipe)
    warm = [parts.result(part) for part in _warm_parts(recipe, effort)]
    cold = [parts.result(part) for part in _cold_parts(recipe, effort)]
    split = parts.splits[-1]
    rows: dict[str, list[dict[str, Any]]] = {}
    for part in warm:
        for name, row in part["rows"].items():
            rows.setdefault(name, []).append(row)
    table = {name: _spread(runs, split) for name, runs in rows.items()}
    baselines = {name: table.pop(name) for name in (*UNSEEDED, *SEEDED)}
    return {
        "hardware": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}", "split": split,
        "seeds": list(effort.seeds), "folds": list(effort.folds),
        "seconds": sum(part["seconds"] for part in [*warm, *cold]),
        "P": table, "baselines": baselines, "C2": _cold_summary(cold, split),
        "paired": {rival: _paired(rows["default"], rows[rival], split) for rival in RIVALS},
    }


def print_table(result: Mapping[str, Any]) -> None:
    """One row per system with its cost, then cold items, then the intervals."""
    print(f"{result['split']} split, seeds {result['seeds']}, folds {result['folds']}; {result['hardware']}\n")
    print(f"{'P: warm':<34}{'NDCG@10':>9}{'sd':>8}{'HR@10':>8}{'sd':>8}{'valid.':>9}{'train s':>9}{'µs/user':>9}"
          "   published HR, NDCG")
    for name, row in [*result["P"].items(), *((f"baseline {n}", r) for n, r in result["baselines"].items())]:
        print(f"{name:<34}{_row(row)}{_reference(name.removeprefix('baseline '))}")
    print(f"\n{'C2: cold items':<34}{'HR@10':>9}{'NDCG@10':>9}")
    for name, row in result["C2"]["cold_only"].items():
        print(f"{'among the cold, ' + name:<34}{row['hr@10']:>9.4f}{row['ndcg@10']:>9.4f}")
    for name, row in result["C2"]["all"].items():
        print(f"{'among all, ' + name:<34}{row['hr@10']:>9.4f}{row['ndcg@10']:>9.4f}")
    print(f"{'warm NDCG@10, scale on and off':<34}{result['C2']['warm_ndcg@10']:>9.4f}"
          f"{result['C2']['warm_ndcg@10_scale_off']:>9.4f}\n")
    for rival, gain in result["paired"].items():
        print(f"default minus {rival}: {gain['ndcg@10_gain']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})")
    print(f"computed in {result['seconds']:.0f} s")


def _prepare(recipe: Recipe) -> None:
    """A Dataset in the workspace, whatever part comes first."""
    stages.fetch_stage(recipe)
    stages.ingest_stage(recipe)


def _warm_parts(recipe: Recipe, effort: Effort) -> Iterable[Part]:
    late = override_recipe(recipe, ["fusion.mode=late"])
    yield Part("baselines", late, baselines_part(UNSEEDED))
    for seed in effort.seeds:
        yield Part(f"model-{seed}", recipe.model_copy(update={"seed": seed}), model_part("decayed_means"))
        seeded = late.model_copy(update={"seed": seed})
        yield Part(f"transformer-{seed}", seeded, model_part("transformer"))
        yield Part(f"baselines-{seed}", seeded, baselines_part(SEEDED))


def _cold_parts(recipe: Recipe, effort: Effort) -> Iterable[Part]:
    """With late fusion: no mode touches cold items, which have weights of their own."""
    for fold in effort.folds:
        overrides = ["data.split=cold_items", f"data.cold_fold={fold}", "fusion.mode=late"]
        yield Part(f"cold-{fold}", override_recipe(recipe, overrides), cold_part)


def _spread(runs: Sequence[Mapping[str, Any]], split: Split) -> dict[str, float]:
    """Means and deviations over the seeds."""
    found = [figures(run["ranks"][split]) for run in runs]
    spread: dict[str, float] = {}
    for name in ("ndcg@10", "hr@10"):
        values = [each[name] for each in found]
        spread |= {name: statistics.mean(values), f"{name}_sd": statistics.stdev(values) if len(values) > 1 else 0.0}
    validation = [figures(run["ranks"]["validation"])["ndcg@10"] for run in runs]
    costs = {name: statistics.mean(run[name] for run in runs) for name in ("train_s", "score_us")}
    return {**spread, "validation_ndcg@10": statistics.mean(validation), **costs}


def _cold_summary(parts: Sequence[Mapping[str, Any]], split: Split) -> dict[str, Any]:
    """Means over the folds."""
    def mean(among: str) -> dict[str, dict[str, float]]:
        names = parts[0]["cold"][among]
        return {name: {key: statistics.mean(part["cold"][among][name][key] for part in parts)
                       for key in ("hr@10", "ndcg@10")} for name in names}

    fold, everywhere = mean("fold"), mean("all")
    fold["chance"] = {
        key: statistics.mean(part["cold"]["chance"][key] for part in parts) for key in ("hr@10", "ndcg@10")
    }
    warm = {name: statistics.mean(figures(part["rows"][name]["ranks"][split])["ndcg@10"] for part in parts)
            for name in ("default", "scale_off")}
    return {
        "cold_only_hr@10": fold["default"]["hr@10"], "cold_only_ndcg@10": fold["default"]["ndcg@10"],
        "warm_ndcg@10": warm["default"], "warm_ndcg@10_scale_off": warm["scale_off"],
        "cold_only": fold, "all": everywhere,
        "cold_only_hr@10_by_fold": [part["cold"]["fold"]["default"]["hr@10"] for part in parts],
    }


def _paired(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], split: Split
) -> dict[str, float]:
    """By how much the default's NDCG@10 is above a rival's, per user over the seeds, with its 95 % interval."""
    gains = [np.array([ndcg_gains(np.asarray(run["ranks"][split]), K) for run in runs]) for runs in (ours, theirs)]
    difference = paired_difference(*gains)
    return {"ndcg@10_gain": difference["mean"], "low": difference["low"], "high": difference["high"]}


def _row(row: Mapping[str, float]) -> str:
    return (f"{row['ndcg@10']:>9.4f}{row['ndcg@10_sd']:>8.4f}{row['hr@10']:>8.4f}{row['hr@10_sd']:>8.4f}"
            f"{row['validation_ndcg@10']:>9.4f}{row['train_s']:>9.1f}{row['score_us']:>9.0f}")


def _reference(name: str) -> str:
    return "   {:.3f}, {:.3f}".format(*REFERENCES[name]) if name in REFERENCES else ""


if __name__ == "__main__":
    main()
