"""A training process among its peers: rank, device, and sums over all of them.

The one place that talks to `torch.distributed` directly; with one process nothing is sent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Workers"]


@dataclass(frozen=True)
class Workers:
    """This process's place in the group."""

    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

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

    def share_cores(self) -> None:
        """Give each process on this machine its part of the cores, so that threads do not fight."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        torch.set_num_threads(max(1, cores // self.local_world_size))
