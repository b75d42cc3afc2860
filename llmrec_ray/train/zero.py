"""ZeRO stages 1 and 2 through DeepSpeed: optimizer state (and gradients) live in shards, one per worker.

Moments are gathered and restored by parameter name instead of through DeepSpeed's own checkpoints, which
refuse another number of workers. That reads a few attributes DeepSpeed calls private: pinned, and tested by
comparing several steps after a resume. This is the only module that imports deepspeed.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state
from torch import Tensor

from llmrec_ray.config import Recipe
from llmrec_ray.model import TrainingModule, WindowBatch
from llmrec_ray.train.engine import MOMENTS, Moments, set_learning_rates, trained_parameters
from llmrec_ray.train.workers import Workers

__all__ = ["ZeroEngine"]

STAGES = {"zero1": 1, "zero2": 2}
MAX_BUCKET_NUMBERS = 2**26


class ZeroEngine:
    """A DeepSpeed engine around a module and a torch AdamW."""

    def __init__(
        self, module: TrainingModule, optimizer: torch.optim.AdamW, recipe: Recipe, workers: Workers,
        moments: Moments | None,
    ) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # Training uses none of DeepSpeed's compiled operators (torch's AdamW, torch.distributed); declaring
        # them absent spares a fresh machine a minute of compiling and the need for a compiler.
        vars(deepspeed.ops)["__compatible_ops__"] = defaultdict(bool)
        self._parameters = trained_parameters(module)
        config = _config(recipe, workers, max(parameter.numel() for parameter in self._parameters.values()))
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        if moments is not None:
            self._restore(moments)

    def step(self, batch: WindowBatch, scale: float) -> Tensor:
        """Forward, backward with reduction into shards, clip, update, gather."""
        set_learning_rates(self._engine.optimizer.param_groups, scale)
        loss: Tensor = self._engine(batch)
        self._engine.backward(loss)
        self._engine.step()
        return loss.detach()

    def moments(self, steps: int) -> Moments:
        """Gathered from the shards of all workers."""
        self._link_states()
        return Moments(steps, {
            moment: {
                name: safe_get_full_optimizer_state(parameter, moment).cpu()
                for name, parameter in self._parameters.items()
            }
            for moment in MOMENTS
        })

    def _restore(self, moments: Moments) -> None:
        sharded = self._engine.optimizer
        for partition in sharded.single_partition_of_fp32_groups:
            sharded.optimizer.state[partition] = {
                "step": torch.tensor(float(moments.steps)),
                **{moment: torch.zeros_like(partition) for moment in MOMENTS},
            }
        self._link_states()
        for moment in MOMENTS:
            for name, parameter in self._parameters.items():
                value = moments.values[moment][name].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, moment)

    def _link_states(self) -> None:
        """Tie every parameter to its slice of the flat state; DeepSpeed ties only the first group."""
        sharded = self._engine.optimizer
        sharded._hp_optimizer_states_linked = False
        sharded._lazy_init_hp_params_optimizer_state()


def _config(recipe: Recipe, workers: Workers, largest_parameter: int) -> dict[str, Any]:
    bucket = max(largest_parameter, MAX_BUCKET_NUMBERS)
    return {
        "train_micro_batch_size_per_gpu": recipe.train.batch_size // workers.world_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.train.gradient_clip,
        "zero_optimization": {
            "stage": STAGES[recipe.train.sharding],
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": workers.device.type == "cuda",
            "contiguous_gradients": True,
        },
        "torch_autocast": {"enabled": recipe.train.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": None,
    }
