"""The Ray Train side of one training process: its place in the group, its checkpoint, its reports."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch

from llmrec_ray.config import Recipe
from llmrec_ray.train.loop import train_epochs
from llmrec_ray.train.workers import Workers

__all__ = ["train_worker"]


def train_worker(config: dict[str, Any]) -> None:
    """Run the loop. An error that one worker raises ends all of them, see `failures`."""
    _hush()
    recipe = Recipe.model_validate_json(config["recipe"])
    inputs = ray.get(config["inputs"])
    with contextlib.ExitStack() as stack:
        checkpoint = ray.train.get_checkpoint()
        folder = None if checkpoint is None else Path(stack.enter_context(checkpoint.as_directory()))
        train_epochs(
            recipe, inputs, _workers(), _report, folder, Path(config["stop_file"]).exists, config["reporter"].say
        )


def _hush() -> None:
    """Silence a line per report, whose logger is named by its file and so escapes Ray Train's log level, and
    a deprecation that concerns DeepSpeed's authors."""
    reporter = Path(ray.train.__file__).parent / "v2" / "_internal" / "execution" / "context.py"
    logging.getLogger(str(reporter)).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*` is deprecated", category=FutureWarning)


def _workers() -> Workers:
    context = ray.train.get_context()
    return Workers(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_world_size=context.get_local_world_size(),
        device=ray.train.torch.get_device(),
    )


def _report(metrics: dict[str, float], write: Callable[[Path], None]) -> None:
    """Every worker hands over its part of the checkpoint; Ray Train puts them into one folder."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
