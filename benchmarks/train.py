"""How fast training is, and what training the text encoder is worth: one table, then one JSON line.

    python benchmarks/train.py [--quick] [--only PART ...] [section.key=value ...]

Overrides change the frozen default recipe.

Every ratio is measured in one run, in turns where it can be, with the same modules, batches, processes and threads;
figures are medians. Dated copies of the output belong into benchmarks/results/.

    frozen   the default recipe through Ray Train against a bare loop, its speed, and its seconds to 99 % of its best
    recbole  RecBole's stock SASRec loop, the yardstick for examples per second
    ddp      two processes that train two layers of all-MiniLM-L6-v2: Ray Train and ZeRO-2 against bare DDP
    planted  what tuning the encoder gains on texts whose meaning its frozen vectors do not show (see planted.py)
    mfu      full fine-tuning of Qwen3-shaped encoders on an NVIDIA GPU; null without one
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl
from bare import bare_epochs
from planted import LARGE, MODES, SMALL, PlantedSize, planted_recipe, write_planted
from recbole_sasrec import recbole_examples_per_s
from utilization import measure_mfu

from llmrec_ray import stages
from llmrec_ray.config import Recipe, load_recipe
from llmrec_ray.metrics import ndcg_gains, paired_difference
from llmrec_ray.train import TextSpace, TrainingInputs, run_training
from llmrec_ray.types import Columns

PARTS = ("frozen", "recbole", "ddp", "planted", "mfu")
NEAR_BEST = 0.99
ROWS = (
    ("step, Ray Train + ZeRO-2 / bare DDP, top_layers", "ddp_ratio", ".3f", "at most 1.10"),
    ("the same / bare DDP that runs all layers", "ddp_ratio_without_states", ".3f", ""),
    ("step, frozen default recipe / bare loop", "frozen_ratio", ".3f", "at most 1.10"),
    ("targets per second, frozen default recipe", "examples_per_s", ",.0f", ""),
    ("seconds to 99 % of the best validation NDCG", "seconds_to_99pct", ".1f", "at most 30"),
    ("RecBole's stock SASRec, examples per second", "recbole_sasrec_examples_per_s", ",.0f", ""),
    ("ours / RecBole's SASRec, per example", "vs_recbole_sasrec", ".1f", "at least 25"),
)


@dataclass(frozen=True)
class Effort:
    """How much to measure: turns of ours and the bare loop, epochs of a turn, RecBole's batches, the planted size."""

    seeds: Sequence[int]
    bare_epochs: int
    turns: int
    turn_epochs: int
    recbole_batches: int
    planted: PlantedSize


QUICK = Effort(seeds=(0,), bare_epochs=3, turns=2, turn_epochs=3, recbole_batches=2, planted=SMALL)
FULL = Effort(seeds=(0, 1, 2), bare_epochs=4, turns=5, turn_epochs=4, recbole_batches=6, planted=LARGE)


def main() -> None:
    """Print the table, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and a smaller planted data set")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    effort = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory(prefix="llmrec-bench-") as folder:
        result = measure(effort, arguments.only, Path(folder), arguments.overrides)
    print_table(result)
    print(json.dumps(result))


def measure(effort: Effort, parts: Sequence[str], folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The chosen parts, as the keys of the JSON line; the others are null."""
    result: dict[str, Any] = {"hardware": _hardware(), "versions": _versions(), "ddp_ratio": None, "frozen_ratio": None,
                              "examples_per_s": None, "seconds_to_99pct": None, "vs_recbole_sasrec": None,
                              "planted_gain": None, "mfu": None}
    recipe = load_recipe("movielens-100k", overrides=[f"workspace={folder}/movielens", *overrides])
    with stages.ray_for(recipe):
        if "frozen" in parts:
            result |= measure_frozen(recipe, effort)
        if "ddp" in parts:
            result |= measure_ddp(effort, folder / "ddp")
        if "planted" in parts:
            result["planted_gain"] = measure_planted(effort, folder / "planted")
    if "recbole" in parts:
        result["recbole_sasrec_examples_per_s"] = theirs = recbole_examples_per_s(effort.recbole_batches)
        result["vs_recbole_sasrec"] = result["examples_per_s"] and result["examples_per_s"] / theirs
    if "mfu" in parts:
        result["mfu"] = measure_mfu(folder)
    return result


def measure_frozen(recipe: Recipe, effort: Effort) -> dict[str, Any]:
    """The default recipe for every seed, between turns of the bare loop."""
    stages.fetch_stage(recipe)
    stages.ingest_stage(recipe)
    inputs = _inputs(recipe)
    steps = inputs.windows(recipe).steps(recipe.train.batch_size)
    bare, ours, to_99, best = [], [], [], []
    for seed in effort.seeds:
        seeded = recipe.model_copy(update={"seed": seed})
        bare += _bare(seeded, inputs, effort.bare_epochs)
        epochs = _train(seeded, inputs)
        ours += _step_seconds(epochs, steps)
        to_99.append(_seconds_to_best(epochs))
        best.append(max(epoch["ndcg@10"] for epoch in epochs))
    bare += _bare(recipe, inputs, effort.bare_epochs)
    step_s, bare_s = statistics.median(ours), statistics.median(bare)
    return {
        "frozen_ratio": step_s / bare_s, "frozen_step_s": step_s, "frozen_bare_step_s": bare_s,
        "examples_per_s": len(inputs.histories.item_rows) / steps / step_s,
        "seconds_to_99pct": statistics.median(to_99), "best_validation_ndcg@10": statistics.median(best),
    }


def measure_ddp(effort: Effort, folder: Path) -> dict[str, Any]:
    """Turns of ours and of bare DDP over the planted texts, two layers of the real encoder training.

    Bare DDP is given the states below the trained layers too; what it does without them is a figure of its own.
    """
    write_planted(folder, LARGE)
    recipe = planted_recipe(folder, "top_layers", train={"epochs": effort.turn_epochs})
    stages.ingest_stage(recipe)
    inputs = _inputs(recipe)
    steps = inputs.windows(recipe).steps(recipe.train.batch_size)
    ours, bare, stateless = [], [], []
    for _ in range(effort.turns):
        bare += _bare(recipe, inputs, effort.turn_epochs)
        ours += _step_seconds(_train(recipe, inputs), steps)
        stateless += _bare(recipe, replace(inputs, text_states=None), effort.turn_epochs)
    step_s, bare_s, stateless_s = (statistics.median(seconds) for seconds in (ours, bare, stateless))
    return {"ddp_ratio": step_s / bare_s, "ddp_ratio_without_states": step_s / stateless_s, "ddp_step_s": step_s,
            "ddp_bare_step_s": bare_s, "ddp_bare_step_without_states_s": stateless_s}


def measure_planted(effort: Effort, folder: Path) -> dict[str, Any]:
    """Paired difference of NDCG@10 of the served lists, tuned minus frozen, on test items nobody has seen.

    `text` is the same for the cosine of text vectors alone, which unlike the learned model knows no popularity.
    """
    write_planted(folder, effort.planted)
    stages.ingest_stage(planted_recipe(folder, "frozen"))
    frozen = _served_gains(planted_recipe(folder, "frozen"))
    gains: dict[str, Any] = {"users": len(frozen), "frozen_ndcg@10": frozen["gain"].mean(),
                             "frozen_text_ndcg@10": frozen["text"].mean()}
    for mode in MODES:
        if mode != "frozen":
            tuned = _served_gains(planted_recipe(folder, mode))
            pairs = tuned.join(frozen, on=Columns.USER_ID, suffix="_frozen", validate="1:1")
            gains[mode] = {"ndcg@10": tuned["gain"].mean(), **_difference(pairs, "gain")}
            gains[mode]["text"] = {"ndcg@10": tuned["text"].mean(), **_difference(pairs, "text")}
    return gains


def print_table(result: dict[str, Any]) -> None:
    """One row per figure, with its target."""
    print(f"{result['hardware']}\n{result['versions']}\n")
    print(f"{'figure':<44}{'measured':>22}   to reach")
    for name, key, form, target in ROWS:
        if (value := result.get(key)) is not None:
            print(f"{name:<44}{value:>22{form}}   {target}")
    for mode, gain in (result["planted_gain"] or {}).items():
        if isinstance(gain, dict):
            interval = f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
            print(f"{f'planted NDCG@10, {mode} minus frozen':<44}{interval:>22}   above 0")
    for shape, figures in (result["mfu"] or {}).items():
        print(f"{f'model FLOPs utilisation, {shape}':<44}{figures['mfu']:>22.1%}   {figures['to_reach']:.0%}")


def _inputs(recipe: Recipe) -> TrainingInputs:
    """What `train` gives its workers for this recipe."""
    dataset = stages.open_dataset(recipe)
    text = TextSpace.of(stages.embed_stage(recipe))
    return TrainingInputs.of(recipe, dataset, text.vectors, text.center)


def _train(recipe: Recipe, inputs: TrainingInputs) -> list[dict[str, float]]:
    """Metrics of every epoch of a run with two processes through Ray Train and DeepSpeed."""
    return run_training(recipe, inputs, f"{recipe.workspace}/run").epochs


def _step_seconds(epochs: list[dict[str, float]], steps: int) -> list[float]:
    """Mean of each epoch but the first, in which processes warm up."""
    return [epoch["train_s"] / steps for epoch in epochs[1:]]


def _bare(recipe: Recipe, inputs: TrainingInputs, epochs: int) -> list[float]:
    return bare_epochs(recipe, inputs, processes=recipe.train.num_workers, epochs=epochs)[1:]


def _seconds_to_best(epochs: list[dict[str, float]]) -> float:
    """Training and validation until the score first is 99 % of the run's best."""
    enough = NEAR_BEST * max(epoch["ndcg@10"] for epoch in epochs)
    reached = next(place for place, epoch in enumerate(epochs) if epoch["ndcg@10"] >= enough)
    return sum(epoch["epoch_s"] for epoch in epochs[: reached + 1])


def _served_gains(recipe: Recipe) -> pl.DataFrame:
    """Each user's NDCG@10 on the test split, by the pipeline that would be served and by the text signal alone."""
    stages.train_stage(recipe)
    stages.index_stage(recipe)
    ranks = pl.read_parquet(f"{stages.evaluate_stage(recipe).uri}/ranks.parquet")
    return ranks.select(
        Columns.USER_ID, *(pl.Series(name, ndcg_gains(ranks[ranking].to_numpy(), 10))
                           for name, ranking in (("gain", "model"), ("text", "signal:text")))
    )


def _difference(pairs: pl.DataFrame, name: str) -> dict[str, float]:
    return paired_difference(pairs[name].to_numpy(), pairs[f"{name}_frozen"].to_numpy())


def _hardware() -> str:
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")]
    name = models[0] if models else platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores of {name}, load {os.getloadavg()[0]:.1f} at the start"


def _versions() -> str:
    names = ("torch", "ray", "deepspeed", "transformers", "peft")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


if __name__ == "__main__":
    main()
