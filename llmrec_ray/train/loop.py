"""The training loop of one process: step, epoch, validation, checkpoint, early stopping. It only sequences.

It reports through a function and resumes from a folder, so a test can run it without Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llmrec_ray.config import Recipe
from llmrec_ray.errors import TrainingError
from llmrec_ray.model import TrainingModule, Windows
from llmrec_ray.train.checkpoint import LoopState, load_checkpoint, save_checkpoint, trained_weights
from llmrec_ray.train.engine import Engine, learning_rate_scale
from llmrec_ray.train.inputs import TrainingInputs, build_module
from llmrec_ray.train.sharding import make_engine
from llmrec_ray.train.validation import validate
from llmrec_ray.train.workers import Workers

__all__ = ["Report", "train_epochs"]

Report = Callable[[dict[str, float], Callable[[Path], None] | None], None]
"""Takes an epoch's metrics and, on the first worker, a function that writes the checkpoint into a folder."""


def train_epochs(
    recipe: Recipe,
    inputs: TrainingInputs,
    workers: Workers,
    report: Report,
    resume_from: Path | None = None,
    told_to_stop: Callable[[], bool] = lambda: False,
) -> LoopState:
    """Train until early stopping or `train.epochs`; every worker of the group runs it with the same inputs.

    `told_to_stop` is asked after each epoch; when any worker hears yes, all end there.

    Replayable: an epoch's order, negatives and dropout follow from the seed and the epoch, so resuming from
    any epoch's checkpoint goes on as if nothing had happened. Raises TrainingError when a loss is not finite.
    """
    workers.share_cores()
    windows = inputs.windows(recipe)
    module = build_module(recipe, inputs, windows)
    moments, state = (None, LoopState()) if resume_from is None else load_checkpoint(resume_from, module)
    module.to(workers.device).train()
    engine = make_engine(module, recipe, workers, moments)
    while state.epoch < recipe.train.epochs and not state.stopping.should_stop(recipe.train.patience):
        started = time.perf_counter()
        losses = _train_epoch(recipe, windows, engine, workers, state)
        trained_s = time.perf_counter() - started
        loss = _mean_loss(losses, workers, state, recipe)
        measured = validate(module, inputs, workers, recipe.evaluate.batch_users)
        state = _advance(state, len(losses), measured | {
            "loss": loss, "train_s": trained_s, "epoch_s": time.perf_counter() - started,
        })
        report(state.epochs[-1], _checkpoint_writer(module, engine, workers, state))
        if float(workers.sum(torch.tensor([float(told_to_stop())]))):
            break
    return state


def _train_epoch(
    recipe: Recipe, windows: Windows, engine: Engine, workers: Workers, state: LoopState
) -> list[Tensor]:
    torch.manual_seed(hash((recipe.seed, state.epoch, workers.rank)) % 2**63)
    batches = windows.epoch(
        state.epoch, seed=recipe.seed, batch_size=recipe.train.batch_size, negatives=recipe.train.negatives,
        rank=workers.rank, world_size=workers.world_size,
    )
    total = recipe.train.epochs * windows.steps(recipe.train.batch_size)
    return [
        engine.step(batch.to(workers.device), learning_rate_scale(step, recipe.train.warmup_steps, total))
        for step, batch in enumerate(batches, start=state.step)
    ]


def _mean_loss(losses: list[Tensor], workers: Workers, state: LoopState, recipe: Recipe) -> float:
    """Mean over the epoch. Looked at once per epoch, since looking at each step would stall a GPU."""
    per_step = workers.sum(torch.stack(losses)) / workers.world_size
    if bool(torch.isfinite(per_step).all()):
        return float(per_step.mean())
    step = state.step + int((~torch.isfinite(per_step)).nonzero()[0]) + 1
    last_good = f"epoch {state.epoch}" if state.epoch else "none"
    raise TrainingError(
        f"The loss was not finite at step {step} (epoch {state.epoch + 1}); last good checkpoint: "
        f"{last_good}. Lower train.learning_rate (now {recipe.train.learning_rate:g}) or train.gradient_clip "
        f"(now {recipe.train.gradient_clip:g}), or use train.precision=fp32."
    )


def _advance(state: LoopState, steps: int, measured: dict[str, float]) -> LoopState:
    epoch, step = state.epoch + 1, state.step + steps
    stopping = state.stopping.seen(measured["ndcg@10"], epoch)
    metrics = {"epoch": epoch, "step": step, "best_epoch": stopping.best_epoch, **measured}
    return replace(state, epoch=epoch, step=step, stopping=stopping, epochs=[*state.epochs, metrics])


def _checkpoint_writer(
    module: TrainingModule, engine: Engine, workers: Workers, state: LoopState
) -> Callable[[Path], None] | None:
    moments = engine.moments(state.step)
    if not workers.is_first:
        return None
    return lambda folder: save_checkpoint(folder, trained_weights(module), moments, state)
