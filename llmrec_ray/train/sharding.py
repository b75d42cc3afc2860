"""`train.sharding` -> the engine that does it, and DeepSpeed's configuration, derived and never written by people."""

from __future__ import annotations

import json
import os
from typing import Any

from llmrec_ray.config import Recipe
from llmrec_ray.model import TrainingModule
from llmrec_ray.model.tuning import count_parameters
from llmrec_ray.train.engine import Engine, SavedState, TorchEngine
from llmrec_ray.train.optimizer import make_optimizer, trained_parameters
from llmrec_ray.train.workers import Workers

__all__ = ["deepspeed_config", "describe", "make_engine"]

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
BUCKET_NUMBERS = 2**26
WHOLE_BELOW_NUMBERS = 10_000


def make_engine(module: TrainingModule, recipe: Recipe, workers: Workers, saved: SavedState | None) -> Engine:
    """The engine of `train.sharding` around a module that has its weights already; `saved` to resume."""
    optimizer = make_optimizer(module, recipe)
    if recipe.sharding not in STAGES:
        return TorchEngine(module, optimizer, recipe, workers, saved)
    os.environ["DS_ACCELERATOR"] = workers.device.type  # DeepSpeed guesses, and warns on a CPU
    from llmrec_ray.train.zero import ZeroEngine

    return ZeroEngine(module, optimizer, _config_for(module, recipe, workers), workers, saved)


def describe(module: TrainingModule, recipe: Recipe, workers: Workers, first_step: int = 0) -> str:
    """One line on what trains, where, and DeepSpeed's configuration; before the module is sharded."""
    trained, everything = count_parameters(module)
    line = (
        f"training {trained:,} of {everything:,} parameters (encoder: {recipe.encoder.tuning}) on {workers.world_size} "
        f"{'process' if workers.world_size == 1 else 'processes'}, {workers.device.type}, {recipe.train.precision}, "
        f"sharding {recipe.sharding}" + (f", from step {first_step}" if first_step else "")
    )
    if recipe.sharding not in STAGES:
        return line
    return f"{line}; DeepSpeed is told {json.dumps(_config_for(module, recipe, workers))}"


def _config_for(module: TrainingModule, recipe: Recipe, workers: Workers) -> dict[str, Any]:
    largest = max(parameter.numel() for parameter in trained_parameters(module).values())
    return deepspeed_config(recipe, workers.world_size, workers.device.type, largest)


def deepspeed_config(recipe: Recipe, world_size: int, device: str, largest_parameter: int) -> dict[str, Any]:
    """What DeepSpeed is told; `largest_parameter` in numbers, since a bucket must hold a whole one."""
    train, sharding = recipe.train, recipe.sharding
    bucket = max(largest_parameter, BUCKET_NUMBERS)
    pinned = {"device": "cpu", "pin_memory": device == "cuda"}
    zero: dict[str, Any] = {
        "stage": STAGES[sharding],
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": device == "cuda",
        "contiguous_gradients": True,
    }
    if sharding == "zero3":
        zero["stage3_param_persistence_threshold"] = WHOLE_BELOW_NUMBERS
    if train.offload != "none":
        zero["offload_optimizer"] = pinned
    if train.offload == "all":
        zero["offload_param"] = pinned
    micro_batch = -(-train.batch_size // (world_size * train.accumulation_steps))
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": train.accumulation_steps,
        "gradient_clipping": train.gradient_clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": train.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": None,
    }
