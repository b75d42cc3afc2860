"""ZeRO stages 1 to 3 through DeepSpeed: optimizer state, gradients and weights live in shards, one per worker.

The training state is handed out and taken back by parameter name instead of through DeepSpeed's own checkpoints, which
refuse another number of workers. That reads a few attributes DeepSpeed calls private: pinned, and tested by
comparing several steps after a resume. This is the only module that imports deepspeed.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from llmrec_ray.model import TrainingModule, WindowBatch
from llmrec_ray.train.engine import MOMENTS, WEIGHT, Piece, SavedState, even_part
from llmrec_ray.train.optimizer import set_learning_rates, trained_parameters
from llmrec_ray.train.workers import Workers

__all__ = ["ZeroEngine"]


class ZeroEngine:
    """A DeepSpeed engine around a module and a torch AdamW; `config` is DeepSpeed's own, see `sharding`."""

    def __init__(
        self, module: TrainingModule, optimizer: torch.optim.AdamW, config: dict[str, Any], workers: Workers,
        saved: SavedState | None,
    ) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # Training uses none of DeepSpeed's compiled operators (torch's AdamW, torch.distributed); declaring
        # them absent spares a fresh machine a minute of compiling and the need for a compiler.
        vars(deepspeed.ops)["__compatible_ops__"] = defaultdict(bool)
        self._parameters = trained_parameters(module)
        self._workers = workers
        self._shards_weights = config["zero_optimization"]["stage"] == 3
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        self._optimizer = self._engine.optimizer
        if saved is not None:
            self._create_states(saved.steps)
            for name, parameter in self._parameters.items():
                self._restore(name, parameter, saved)

    def step(self, batches: Sequence[WindowBatch], scale: float) -> Tensor:
        """Forward and backward for each micro-batch; DeepSpeed reduces, clips and updates after the last."""
        set_learning_rates(self._optimizer.param_groups, scale)
        losses = []
        for batch in batches:
            loss: Tensor = self._engine(batch)
            self._engine.backward(loss, scale_wrt_gas=False)
            self._engine.step()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def pieces(self) -> Iterator[Piece]:
        """The shards that this worker owns, cut by parameter."""
        if self._shards_weights:
            yield from self._pieces_of_stage_3()
            return
        self._link_states()
        rank, world = self._workers.rank, self._workers.world_size
        for name, parameter in self._parameters.items():
            shape = tuple(parameter.shape)
            yield even_part(WEIGHT, name, parameter, rank, world)
            if (mapping := parameter._hp_mapping) is not None:  # type: ignore[attr-defined]
                for moment in MOMENTS:
                    values = mapping.get_optim_state_fragment(moment)
                    yield Piece(moment, name, mapping.lp_fragment_address.start, values, shape)

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        """Stage 3 gathers the weights for the length of the block."""
        if not self._shards_weights:
            return contextlib.nullcontext()
        gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(list(module.parameters()))
        return gathered

    def _pieces_of_stage_3(self) -> Iterator[Piece]:
        for name, parameter in self._parameters.items():
            start, size = self._place(parameter)
            if size <= 0:
                continue
            parts = {WEIGHT: safe_get_local_fp32_param(parameter)} | {
                moment: safe_get_local_optimizer_state(parameter, moment) for moment in MOMENTS
            }
            for kind, values in parts.items():
                yield Piece(kind, name, start, values[:size], tuple(parameter.ds_shape))  # type: ignore[attr-defined]

    def _place(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Start of this worker's partition, and its size without the padding at the end; not above 0 for none."""
        partition = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        start = self._workers.rank * partition
        return start, min(partition, parameter.ds_numel - start)  # type: ignore[attr-defined]

    def _create_states(self, steps: int) -> None:
        """AdamW's states, one per flat partition each with a `step` of its own, which the first step would make."""
        partitions = (
            self._optimizer.fp32_partitioned_groups_flat if self._shards_weights
            else self._optimizer.single_partition_of_fp32_groups
        )
        for partition in partitions:
            self._optimizer.optimizer.state[partition] = {
                "step": torch.tensor(float(steps), device=partition.device),  # fused AdamW reads it there
                **{moment: torch.zeros_like(partition) for moment in MOMENTS},
            }
        if not self._shards_weights:
            self._link_states()

    def _restore(self, name: str, parameter: nn.Parameter, saved: SavedState) -> None:
        if self._shards_weights:
            start, size = self._place(parameter)
            for moment in MOMENTS:
                padded = torch.zeros(parameter.ds_tensor.ds_numel)  # type: ignore[attr-defined]
                if size > 0:
                    padded[:size] = saved.read(moment, name, start, size)
                safe_set_local_optimizer_state(parameter, padded, moment)
        elif (mapping := parameter._hp_mapping) is not None:  # type: ignore[attr-defined]
            address = mapping.lp_fragment_address
            for moment in MOMENTS:
                values = saved.read(moment, name, address.start, address.numel)
                mapping.get_optim_state_fragment(moment).copy_(values)

    def _link_states(self) -> None:
        """Tie every parameter to its slice of the flat state; DeepSpeed ties only the first group."""
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()
