"""One optimizer step behind one interface, whatever shards it: plain torch and DDP here, ZeRO in `zero`.

An engine takes the micro-batches of a step, returns the loss, and hands out its part of the training state as pieces
of named tensors, so that a checkpoint fits any number of workers and any sharding. It knows no epochs and no Ray.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmrec_ray.config import Recipe
from llmrec_ray.model import TrainingModule, WindowBatch
from llmrec_ray.train.optimizer import set_learning_rates, trained_parameters
from llmrec_ray.train.workers import Workers

__all__ = ["MOMENTS", "WEIGHT", "Engine", "Piece", "SavedState", "TorchEngine", "Unstepped", "even_part"]

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """A run of consecutive values of one named tensor, as one worker holds it.

    kind: `weight` or one of AdamW's moments. start: place of the first value in the flattened tensor.
    values: [n] on any device. shape: that of the whole tensor.
    """

    kind: str
    name: str
    start: int
    values: Tensor
    shape: tuple[int, ...]


class SavedState(Protocol):
    """What an engine asks of a checkpoint to resume from."""

    @property
    def steps(self) -> int:
        """Optimizer steps that were done."""

    def read(self, kind: str, name: str, start: int = 0, size: int | None = None) -> Tensor:
        """`size` values [size] of a flattened tensor from `start` on; all of them when None."""


class Unstepped:
    """AdamW's state before the first step, for a run that reports a checkpoint before it has trained."""

    steps = 0

    def __init__(self, module: nn.Module) -> None:
        self._sizes = {name: parameter.numel() for name, parameter in trained_parameters(module).items()}

    def read(self, kind: str, name: str, start: int = 0, size: int | None = None) -> Tensor:
        """Moments are zero."""
        assert kind in MOMENTS, f"{kind} of a run without steps. This is a bug."
        return torch.zeros(self._sizes[name] if size is None else size)


class Engine(Protocol):
    """What the loop asks of any sharding."""

    def step(self, batches: Sequence[WindowBatch], scale: float) -> Tensor:
        """One optimizer step over all micro-batches at `scale` times the configured rates; the detached loss, []."""

    def pieces(self) -> Iterator[Piece]:
        """This worker's part of the trained weights and of AdamW's moments; all workers together hold all, once."""

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        """Within it every worker may read all weights of `module`; all workers must enter it."""


class TorchEngine:
    """One process, or DistributedDataParallel over several."""

    def __init__(
        self, module: TrainingModule, optimizer: torch.optim.AdamW, recipe: Recipe, workers: Workers,
        saved: SavedState | None,
    ) -> None:
        self._parameters = trained_parameters(module)
        self._module = module
        self._optimizer = optimizer
        self._clip = recipe.train.gradient_clip
        self._autocast = recipe.train.precision == "bf16"
        self._workers = workers
        self._forward: nn.Module = module if workers.world_size == 1 else DistributedDataParallel(
            module, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        if saved is not None:
            self._restore(saved)

    def step(self, batches: Sequence[WindowBatch], scale: float) -> Tensor:
        """Forward and backward for each micro-batch, then clip and update."""
        set_learning_rates(self._optimizer.param_groups, scale)
        self._optimizer.zero_grad(set_to_none=True)
        losses = [self._backward(batch, last=batch is batches[-1]) for batch in batches]
        nn.utils.clip_grad_norm_(self._parameters.values(), self._clip)
        self._optimizer.step()
        return torch.stack(losses).sum()

    def pieces(self) -> Iterator[Piece]:
        """Everything is on every worker; each hands out an equal part."""
        rank, world = self._workers.rank, self._workers.world_size
        for name, parameter in self._parameters.items():
            state = self._optimizer.state.get(parameter, {})
            tensors = {WEIGHT: parameter} | {
                moment: state.get(moment, torch.zeros_like(parameter)) for moment in MOMENTS
            }
            for kind, tensor in tensors.items():
                yield even_part(kind, name, tensor, rank, world)

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        """Nothing is sharded."""
        return contextlib.nullcontext()

    def _backward(self, batch: WindowBatch, *, last: bool) -> Tensor:
        alone = last or not isinstance(self._forward, DistributedDataParallel)
        with contextlib.nullcontext() if alone else self._forward.no_sync():  # type: ignore[operator]
            with torch.autocast(self._workers.device.type, torch.bfloat16, enabled=self._autocast):
                loss: Tensor = self._forward(batch)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _restore(self, saved: SavedState) -> None:
        for name, parameter in self._parameters.items():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(saved.steps), device=parameter.device),  # fused AdamW reads it there
                **{kind: saved.read(kind, name).view_as(parameter).to(parameter.device) for kind in MOMENTS},
            }


def even_part(kind: str, name: str, tensor: Tensor, rank: int, world_size: int) -> Piece:
    """Worker `rank`'s equal part of a tensor that all workers hold."""
    flat = tensor.detach().reshape(-1)
    first, last = flat.numel() * rank // world_size, flat.numel() * (rank + 1) // world_size
    return Piece(kind, name, first, flat[first:last], tuple(tensor.shape))
