"""A training process among its peers: rank, device, sums over all of them, and an exchange with gradients.

The one place that talks to `torch.distributed` directly; with one process nothing is sent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmrec_ray.model import Peers

__all__ = ["Workers", "share_cores"]


@dataclass(frozen=True)
class Workers:
    """This process's place in the group."""

    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    neighbours: int = 1
    """Groups like this one, itself included, that share a machine's cores."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over all processes, on the CPU; every process must call it."""
        if self.world_size == 1:
            return values.cpu()
        total = values.detach().clone().to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def peers(self) -> Peers:
        """For sharing the encoding of texts."""
        return Peers() if self.world_size == 1 else Peers(self.rank, self.world_size, _gather)

    def take_device(self) -> None:
        """Make its GPU this process's current one. DeepSpeed takes the one that LOCAL_RANK numbers, which need not be
        the one that Ray gave."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            os.environ["LOCAL_RANK"] = str(self.device.index)

    def share_cores(self) -> None:
        """Give each process on this machine its part of the cores, so that threads do not fight."""
        share_cores(self.local_world_size * self.neighbours)


def share_cores(processes: int) -> None:
    """Let this process compute with its part of the machine's cores: two that take all are many times slower."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    torch.set_num_threads(max(1, cores // processes))


def _gather(vectors: Tensor) -> Tensor:
    gathered: Tensor = _Gather.apply(vectors)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """[m, T] -> [world_size * m, T]; backward sums every worker's gradient of what this one gave."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        everybodys = vectors.new_empty(dist.get_world_size() * len(vectors), *vectors.shape[1:])
        dist.all_gather_single(everybodys, vectors.contiguous())
        return everybodys

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        if dist.get_backend() == "nccl":
            mine = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
            dist.reduce_scatter_single(mine, gradient)
            return mine
        dist.all_reduce(gradient)  # gloo has no reduce-scatter
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
