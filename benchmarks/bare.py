"""What an engineer would write without this package: a plain PyTorch loop over several gloo processes.

It borrows the modules and the batches, so that only the loop, the engine and the machinery around them differ:
DistributedDataParallel around the module, AdamW, gradient clipping; every process encodes the items of its own batch.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llmrec_ray.config import Recipe
from llmrec_ray.train.inputs import TrainingInputs, build_module

__all__ = ["bare_epochs"]


def bare_epochs(recipe: Recipe, inputs: TrainingInputs, *, processes: int, epochs: int) -> list[float]:
    """Seconds per step, the mean of each epoch, as the first process saw them."""
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    job = (processes, _free_port(), recipe.model_dump_json(), inputs, epochs, results)
    torch.multiprocessing.spawn(_work, job, nprocs=processes)
    seconds: list[float] = results.get()
    return seconds


def _work(
    rank: int, processes: int, port: int, recipe_json: str, inputs: TrainingInputs, epochs: int, out: Any
) -> None:
    recipe = Recipe.model_validate_json(recipe_json)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes
    )
    windows = inputs.windows(recipe)
    module = build_module(recipe, inputs, windows).train()
    # Without this DDP would send tables that never change in every step.
    model = DistributedDataParallel(module, forward_sync_buffers=False)
    optimizer = _optimizer(module, recipe)
    seconds = []
    for epoch in range(epochs):
        started = time.perf_counter()
        for [batch] in windows.epoch(
            epoch, seed=recipe.seed, batch_size=recipe.train.batch_size, negatives=recipe.train.negatives,
            rank=rank, world_size=processes,
        ):
            loss = model(replace(batch, step_rows=batch.rows))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), recipe.train.gradient_clip)
            optimizer.step()
        seconds.append((time.perf_counter() - started) / windows.steps(recipe.train.batch_size))
    torch.distributed.barrier()
    if rank == 0:
        out.put(seconds)
    os._exit(0)  # tearing gloo and DDP down was seen to wait for itself forever


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    encoder, rest = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (encoder if name.startswith("text_source") else rest).append(parameter)
    groups = [{"params": rest, "lr": recipe.train.learning_rate}]
    if encoder:
        groups.append({"params": encoder, "lr": recipe.encoder.learning_rate})
    return torch.optim.AdamW(groups, weight_decay=recipe.train.weight_decay)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
