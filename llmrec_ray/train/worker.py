"""The Ray Train side of one training process: its place in the group, and the checkpoint it goes on from."""

from __future__ import annotations

import contextlib
import logging
import warnings
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch

from llmrec_ray.config import Recipe
from llmrec_ray.train.checkpoint import load_state
from llmrec_ray.train.loop import train_epochs
from llmrec_ray.train.reports import Reports
from llmrec_ray.train.workers import Workers

__all__ = ["train_worker"]


def train_worker(config: dict[str, Any]) -> None:
    """Run the loop. An error that one worker raises ends all of them, see `failures`."""
    _hush()
    recipe = Recipe.model_validate_json(config["recipe"])
    inputs = ray.get(config["inputs"])
    own, start_from = ray.train.get_checkpoint(), config["start_from"]
    checkpoint = ray.train.Checkpoint(start_from) if own is None and start_from is not None else own
    with contextlib.ExitStack() as stack:
        folder = None if checkpoint is None else Path(stack.enter_context(checkpoint.as_directory()))
        workers = _workers(config["neighbours"])
        workers.share_cores()
        reports = Reports(config["run_dir"], workers, None if folder is None else load_state(folder).step)
        train_epochs(
            recipe, inputs, workers, reports, folder, config["verdict"], config["reporter"].say, reports.check_room,
            of_another_run=own is None,
        )


def _hush() -> None:
    """Silence a line per report, whose logger is named by its file and so escapes Ray Train's log level, and
    a deprecation that concerns DeepSpeed's authors."""
    reporter = Path(ray.train.__file__).parent / "v2" / "_internal" / "execution" / "context.py"
    logging.getLogger(str(reporter)).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*` is deprecated", category=FutureWarning)


def _workers(neighbours: int) -> Workers:
    context = ray.train.get_context()
    return Workers(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_world_size=context.get_local_world_size(),
        device=ray.train.torch.get_device(),
        neighbours=neighbours,
    )
