"""The main job over several seeds: quality of the served pipeline and seconds per stage, one table, one JSON line.

    python benchmarks/end_to_end.py [--quick] [section.key=value ...]

Ingest and embed run once; train, index and evaluate run per seed. Every run scores the test split, so every run
is appended to the workspace's test log; dated copies of the output belong into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

from llmrec_ray import stages
from llmrec_ray.config import Recipe, load_recipe

Result = TypeVar("Result")


def main() -> None:
    """Print the table, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="movielens-100k")
    parser.add_argument("--quick", action="store_true", help="one seed instead of five")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    seeds = range(1 if arguments.quick else 5)
    with tempfile.TemporaryDirectory(prefix="llmrec-bench-") as folder:
        recipe = load_recipe(arguments.recipe, overrides=[f"workspace={folder}", *arguments.overrides])
        with stages.ray_for(recipe):
            result = measure(recipe, list(seeds))
    print_table(result)
    print(json.dumps(result))


def measure(recipe: Recipe, seeds: list[int]) -> dict[str, Any]:
    """Run the stages; returns metrics per seed, their mean and deviation, and seconds per stage."""
    seconds: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], Result]) -> Result:
        start = time.monotonic()
        result = call()
        seconds.setdefault(name, []).append(time.monotonic() - start)
        return result

    timed("fetch", lambda: stages.fetch_stage(recipe))
    timed("ingest", lambda: stages.ingest_stage(recipe))
    timed("embed", lambda: stages.embed_stage(recipe))
    tables = []
    for seed in seeds:
        seeded = recipe.model_copy(update={"seed": seed})
        timed("train", lambda seeded=seeded: stages.train_stage(seeded))
        timed("index", lambda seeded=seeded: stages.index_stage(seeded))
        tables.append(timed("evaluate", lambda seeded=seeded: stages.evaluate_stage(seeded)).to_dict())
    return {
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "protocol": tables[0]["protocol"],
        "seeds": seeds,
        "model": {name: _spread([table["model"][name] for table in tables]) for name in ("ndcg@10", "hr@10")},
        "signals": {
            signal: _spread([table["signals"][signal]["ndcg@10"] for table in tables])
            for signal in tables[0]["signals"]
        },
        "baselines": {
            name: _spread([table["baselines"][name]["ndcg@10"] for table in tables])
            for name in tables[0]["baselines"]
        },
        "seconds": {name: round(statistics.mean(values), 2) for name, values in seconds.items()},
    }


def print_table(result: dict[str, Any]) -> None:
    """One row per model, then one per stage."""
    print(f"{result['protocol']}\n{result['hardware']}, seeds {result['seeds']}\n")
    print(f"{'NDCG@10':<28}{'mean':>8}{'sd':>8}")
    rows = {"served pipeline": result["model"]["ndcg@10"]}
    rows |= {f"signal {name}": spread for name, spread in result["signals"].items()}
    rows |= {f"baseline {name}": spread for name, spread in result["baselines"].items()}
    for name, spread in rows.items():
        print(f"{name:<28}{spread['mean']:>8.4f}{spread['sd']:>8.4f}")
    print(f"\n{'stage':<28}{'seconds':>8}")
    for name, value in result["seconds"].items():
        print(f"{name:<28}{value:>8.1f}")


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": deviation, "values": values}


if __name__ == "__main__":
    main()
