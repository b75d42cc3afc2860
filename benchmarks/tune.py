"""What a campaign finds from a poor start, and what it costs: one table, then one JSON line.

    python benchmarks/tune.py [--quick] [--folder DIR] [--only PART ...] [section.key=value ...]

The packaged MovieLens-100K recipe is spoiled by POOR; 16 trials search SPACE around it, the first being the poor recipe
as it is. Everything is judged on the validation split; the test split is not read. Trials train with one process, two
at once, and so does the default recipe that the winner is held against. Overrides change all of these recipes.

    full    sixteen trials by chance, every one to its last epoch
    asha    the same trials, of which the best half goes on at each rung: epochs spent, and how near its best comes
    tpe     a campaign as the defaults have it: asha, and Optuna's estimator proposes from the eleventh trial on
    seeds   tpe's winner and the packaged recipe, trained anew on seeds that no search has seen, by the served pipeline
    policy  the weights of five signals, searched on stored scores

Overhead is a trial's wall time without its epochs, with another trial beside it: that of one start at full fidelity, of
one for each rung with asha. That a campaign survives being killed is a drill: tests/test_tune_drills.py. A run that was
interrupted goes on where it stopped, in the same --folder; give another, or remove it, to measure changed code. Dated
copies of the output belong into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from metered import metered
from quality_parts import Part, Parts

from llmrec_ray import stages
from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe, SignalName, load_recipe, override_recipe
from llmrec_ray.policy import component_scores, search_weights
from llmrec_ray.tune.confirm import confirm
from llmrec_ray.tune.records import Records, TrialRecord

PACKAGED = "movielens-100k"
METRIC, FUSED = "ndcg@10", "fused_ndcg@10"
POOR = ("train.learning_rate=2e-4", "train.loss=bce", "model.dropout=0.7", "fusion.mode=feature")
SPACE: dict[str, Any] = {
    "train.learning_rate": {"loguniform": [2e-4, 2e-2]},
    "train.loss": {"choice": ["sampled_softmax", "full_softmax", "bpr", "bce"]},
    "model.dropout": {"uniform": [0.0, 0.7]},
    "fusion.mode": {"choice": ["late", "feature", "gated", "learned"]},
}
SIGNALS: tuple[SignalName, ...] = ("neural", "ncf", "item_item", "text", "popularity")
ALIKE = ("train.num_workers=1", "tune.max_concurrent=2")
ROUNDING = 1e-6
PARTS = ("full", "asha", "tpe", "seeds", "policy")
SCHEDULERS = {"full": "none", "asha": "asha", "tpe": "asha"}
ROWS = (
    ("winner − default, mean over fresh seeds", "best_vs_default_fresh_seeds", "+.4f", "at least 0"),
    ("  winner", "winner_fresh_seeds", ".4f", ""),
    ("  packaged recipe", "default_fresh_seeds", ".4f", ""),
    ("epochs of asha / of full fidelity", "asha_epoch_share", ".3f", "at most .40"),
    ("  best value, asha", "asha_value", ".4f", "that of full fidelity"),
    ("  best value, full fidelity", "full_value", ".4f", ""),
    ("  best value, tpe", "tpe_value", ".4f", ""),
    ("  value of the poor start", "poor_value", ".4f", ""),
    ("search of five signals' weights, seconds", "late_fusion_search_s", ".2f", "at most 5"),
    ("overhead of a trial, mean seconds", "overhead_per_trial_s", ".1f", "at most 15"),
    ("  with asha", "asha_overhead_per_trial_s", ".1f", ""),
    ("  of a leg of asha", "asha_overhead_per_leg_s", ".1f", ""),
    ("campaign, full fidelity, seconds", "full_s", ".0f", ""),
    ("campaign, asha, seconds", "asha_s", ".0f", ""),
    ("most memory of a campaign, GB", "peak_gb", ".1f", ""),
)


@dataclass(frozen=True)
class Effort:
    """Trials of a campaign, epochs of a trial (None: the recipe's), fresh seeds, repetitions of the weight search."""

    trials: int
    epochs: int | None
    seeds: tuple[int, ...]
    repetitions: int


QUICK = Effort(trials=4, epochs=6, seeds=(101,), repetitions=1)
FULL = Effort(trials=16, epochs=None, seeds=(101, 102, 103), repetitions=5)


def main() -> None:
    """Print the table, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four short trials and one seed")
    parser.add_argument("--folder", type=Path, default=Path("runs/tune"), help="keeps parts of interrupted runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    effort = QUICK if arguments.quick else FULL
    folder = arguments.folder.resolve() / ("quick" if arguments.quick else "full")
    result = measure(Bench(folder, effort, tuple(arguments.overrides)), arguments.only)
    print_table(result)
    print(json.dumps(result))


@dataclass(frozen=True)
class Bench:
    """Where everything lies, and how much of it there is."""

    folder: Path
    effort: Effort
    overrides: tuple[str, ...]

    def recipe(self, *more: str) -> Recipe:
        """The packaged recipe, as everything here trains it."""
        epochs = () if self.effort.epochs is None else (f"train.epochs={self.effort.epochs}",)
        workspace = f"workspace={self.folder}/work"
        return load_recipe(PACKAGED, overrides=[workspace, *ALIKE, *epochs, *self.overrides, *more])

    def part(self, name: str, recipe: Recipe, compute: Any) -> dict[str, Any]:
        """Computed, or read when it is there for the same recipe."""
        started = time.monotonic()
        result = Parts(self.folder / "parts", ("validation",), None).result(Part(name, recipe, compute))
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        return result


def measure(bench: Bench, parts: Sequence[str]) -> dict[str, Any]:
    """The chosen parts, as the keys of the JSON line; the others are null."""
    result: dict[str, Any] = {
        "hardware": _hardware(), "versions": _versions(), "trials": bench.effort.trials,
        "seeds": list(bench.effort.seeds), "best_vs_default_fresh_seeds": None, "asha_epoch_share": None,
        "late_fusion_search_s": None, "overhead_per_trial_s": None,
    }
    _prepare(bench.recipe())
    full = measure_campaign(bench, "full") if "full" in parts else None
    asha = measure_campaign(bench, "asha") if "asha" in parts else None
    tpe = measure_campaign(bench, "tpe") if {"tpe", "seeds"} & {*parts} else None
    result |= {} if full is None else _costs(full)
    result |= {} if asha is None else {f"asha_{name}": value for name, value in _costs(asha).items()}
    if full is not None and asha is not None:
        result |= _compared(full, asha)
    if tpe is not None:
        result |= {"tpe_value": _best(tpe), "tpe_epochs": _epochs(tpe), "tpe_s": tpe["wall_s"],
                   "winner": tpe["metrics"]["overrides"]}
    if "seeds" in parts and tpe is not None:
        result |= measure_seeds(bench, Path(tpe["uri"]))
    if "policy" in parts:
        result |= measure_policy(bench)
    return result


def measure_campaign(bench: Bench, name: str) -> dict[str, Any]:
    """One campaign by the command line, or the rest of one: its records, what it was called and what it took."""
    recipe = override_recipe(bench.recipe(*POOR), [
        f"tune.name={name}", f"tune.scheduler={SCHEDULERS[name]}",
        f"tune.algorithm={'tpe' if name == 'tpe' else 'random'}", f"tune.trials={bench.effort.trials}",
        "tune.fresh_seeds=[]", "tune.score_test=false", f"tune.search={json.dumps(SPACE)}",
    ])

    def compute(recipe: Recipe, _: Sequence[str]) -> dict[str, Any]:
        config, root = bench.folder / f"{name}.yaml", Path(recipe.workspace) / "tune" / name
        config.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        resume = ["--resume", name] if (root / "campaign.json").exists() else []
        run = metered([sys.executable, "-m", "llmrec_ray", "tune", "--config", str(config), "--json", *resume])
        said = json.loads(run.stdout.splitlines()[-1])
        records = [record.model_dump(mode="json") for record in Records(str(root)).load()]
        return {"uri": said["uri"], "metrics": said["metrics"], "records": records, "wall_s": run.wall_s,
                "cpu_s": run.cpu_s, "peak_bytes": run.peak_bytes, "resumed": bool(resume)}

    return bench.part(name, recipe, compute)


def measure_seeds(bench: Bench, campaign: Path) -> dict[str, Any]:
    """The winner that a campaign wrote down and the packaged recipe, on fresh seeds: served, on validation."""
    packaged = bench.recipe()
    best = load_recipe(config=str(campaign / "best.yaml"), overrides=[f"workspace={packaged.workspace}"])

    def compute(_: Recipe, __: Sequence[str]) -> dict[str, Any]:
        root = f"{bench.folder}/work/against-default"
        with stages.ray_for(packaged):
            found = confirm(
                packaged, best, stages.open_dataset(packaged), Workspace(packaged.workspace), root,
                seeds=bench.effort.seeds, metric=METRIC, score_test=False, concurrent=2,
            )
        return {"winner": [*found.winner.values()], "default": [*found.default.values()], "failed": found.failed}

    found = bench.part("seeds", best, compute)
    winner, default = (statistics.mean(found[name]) for name in ("winner", "default"))
    return {
        "best_vs_default_fresh_seeds": winner - default, "winner_fresh_seeds": winner, "default_fresh_seeds": default,
        "winner_by_seed": found["winner"], "default_by_seed": found["default"], "failed_seeds": found["failed"],
    }


def measure_policy(bench: Bench) -> dict[str, Any]:
    """A Bundle with five signals, and the median time of the search over their stored validation scores."""
    named = [f"fusion.signals=[{', '.join(SIGNALS)}]", "fusion.mode=late"]

    def compute(recipe: Recipe, _: Sequence[str]) -> dict[str, Any]:
        with stages.ray_for(recipe):
            bundle = Bundle.open(stages.train_stage(recipe).uri)
        started = time.perf_counter()
        stored = component_scores(recipe, stages.open_dataset(recipe), bundle)
        result: dict[str, Any] = {"component_scores_s": time.perf_counter() - started, "search_s": []}
        for _ in range(bench.effort.repetitions):
            started = time.perf_counter()
            found = search_weights(stored.known(SIGNALS), stored.targets, stored.seen, stored.calibration)
            result["search_s"].append(time.perf_counter() - started)
        return result | {"weights": found.weights, "ndcg@10": found.ndcg, "weightings": len(found.table)}

    found = bench.part("policy", bench.recipe(*named), compute)
    return {"late_fusion_search_s": statistics.median(found["search_s"]), "late_fusion": found}


def print_table(result: dict[str, Any]) -> None:
    """One row per figure, with its target."""
    print(f"{result['hardware']}\n{result['versions']}\n")
    print(f"{result['trials']} trials, fresh seeds {result['seeds']}\n")
    print(f"{'figure':<44}{'measured':>10}   to reach")
    for name, key, form, target in ROWS:
        if (value := result.get(key)) is not None:
            print(f"{name:<44}{format(value, form):>10}   {target}")
    print()


def _prepare(recipe: Recipe) -> None:
    """A Dataset in the workspace, and its text vectors in the cache, so that no campaign pays for them alone."""
    if not (Path(recipe.workspace) / "latest" / "dataset.json").exists():
        stages.fetch_stage(recipe)
        stages.ingest_stage(recipe)
    stages.embed_stage(recipe)


def _costs(campaign: dict[str, Any]) -> dict[str, Any]:
    """Overheads over the trials of a campaign. A leg is one start of a trial's workers."""
    records = [TrialRecord.model_validate(record) for record in campaign["records"]]
    overheads, legs = [record.seconds - record.training_s for record in records], _legs(campaign)
    return {
        "overhead_per_trial_s": statistics.mean(overheads), "overhead_per_trial_max_s": max(overheads),
        "overhead_per_leg_s": sum(overheads) / legs, "legs": legs, "peak_gb": campaign["peak_bytes"] / 1e9,
        "failed_trials": [record.reason for record in records if record.status == "failed"],
    }


def _compared(full: dict[str, Any], asha: dict[str, Any]) -> dict[str, Any]:
    """All epochs that asha's campaign trained as a share of those at full fidelity, null if its best value is lower."""
    value, target, share = _best(asha), _best(full), _epochs(asha) / _epochs(full)
    return {
        "asha_epoch_share": share if value >= target * (1 - ROUNDING) else None, "asha_epochs": _epochs(asha),
        "full_epochs": _epochs(full), "asha_epochs_over_full": share, "asha_value": value, "full_value": target,
        "poor_value": _best({"records": full["records"][:1]}), "same_settings": _settings(full) == _settings(asha),
        "full_s": full["wall_s"], "asha_s": asha["wall_s"],
    }


def _best(campaign: dict[str, Any]) -> float:
    return max(float(epoch[FUSED]) for record in campaign["records"] for epoch in record["epochs"])


def _epochs(campaign: dict[str, Any]) -> int:
    return sum(len(record["epochs"]) for record in campaign["records"])


def _settings(campaign: dict[str, Any]) -> list[dict[str, Any]]:
    return [record["settings"] for record in campaign["records"]]


def _legs(campaign: dict[str, Any]) -> int:
    """Each trial's first leg ends at the first rung, the following ones where others stayed behind."""
    rungs = sorted({record["until"] for record in campaign["records"]})
    return sum(1 + rungs.index(record["until"]) for record in campaign["records"])


def _hardware() -> str:
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")]
    name = models[0] if models else platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores of {name}, load {os.getloadavg()[0]:.1f} at the start"


def _versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "ray", "optuna", "polars"))


if __name__ == "__main__":
    main()
