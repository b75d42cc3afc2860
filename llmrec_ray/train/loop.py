"""The training loop of one process: step, checkpoint, validation, early stopping. It only sequences.

It reports through a function and resumes from a folder, so a test can run it without Ray.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmrec_ray.config import Recipe, TrainConfig
from llmrec_ray.errors import TrainingError
from llmrec_ray.model import SharedText, WindowBatch
from llmrec_ray.train.checkpoint import (
    Checkpoint,
    LoopState,
    checkpoint_size,
    load_into,
    load_state,
    save_shard,
    save_state,
)
from llmrec_ray.train.engine import WEIGHT, Engine, Piece, SavedState, Unstepped, even_part
from llmrec_ray.train.inputs import TrainingInputs, build_module
from llmrec_ray.train.mining import mine
from llmrec_ray.train.optimizer import learning_rate_scale
from llmrec_ray.train.prefetch import prefetched
from llmrec_ray.train.sharding import describe, make_engine
from llmrec_ray.train.validation import validate
from llmrec_ray.train.workers import Workers

__all__ = ["Report", "is_over", "train_epochs"]

Report = Callable[[dict[str, Any], Callable[[Path], None]], None]
"""Takes metrics and a function that writes this worker's part of the checkpoint into a folder."""

logger = logging.getLogger(__name__)

NOT_SCORED = -1.0
NAMED_ITEMS = 10


def train_epochs(
    recipe: Recipe,
    inputs: TrainingInputs,
    workers: Workers,
    report: Report,
    resume_from: Path | None = None,
    verdict: Callable[[int], bool] | None = None,
    say: Callable[[str], None] = logger.info,
    expect: Callable[[int], None] = lambda size_bytes: None,
    *,
    of_another_run: bool = False,
) -> LoopState:
    """Train until early stopping or `train.epochs`; every worker of the group runs it with the same inputs.

    `verdict` is asked by the first worker after each epoch but the last, with its number; when it says True, all end
    there. A report comes after each epoch, and after every `train.checkpoint_steps` steps of one. A run that starts
    from a Bundle scores and reports it as epoch 0, which is then kept until an epoch is better. `say` is told what
    trains, `expect` how large a checkpoint will be. of_another_run: `resume_from` is a checkpoint of a run with other
    settings, so what it measured is not this run's.

    Replayable: a step's order, negatives and dropout follow from the seed and the step, so resuming from any checkpoint
    goes on as if nothing had happened. Raises TrainingError when a loss is not finite, ArtifactMismatchError or
    CorruptArtifactError when `resume_from` cannot be used.
    """
    workers.take_device()
    run = _Run(recipe, inputs, workers, report, resume_from, of_another_run=of_another_run)
    if workers.is_first:
        say(run.description)
    expect(run.checkpoint_bytes)
    if inputs.initial is not None and resume_from is None:
        run.score_start()
    while not is_over(run.state, recipe.train):
        run.train_epoch()
        if not is_over(run.state, recipe.train) and _told_to_end(verdict, run.state.epoch, workers):
            break
    return run.state


def is_over(state: LoopState, train: TrainConfig) -> bool:
    """Whether a run that stands here has nothing left to do by its own rules."""
    return state.epoch >= train.epochs or state.stopping.should_stop(train.patience)


def _told_to_end(verdict: Callable[[int], bool] | None, epoch: int, workers: Workers) -> bool:
    if verdict is None:
        return False
    told = workers.is_first and verdict(epoch)
    return bool(workers.sum(torch.tensor([float(told)])))


class _Run:
    """The parts of one run and where it stands."""

    def __init__(
        self, recipe: Recipe, inputs: TrainingInputs, workers: Workers, report: Report, resume_from: Path | None,
        *, of_another_run: bool = False,
    ) -> None:
        self.recipe, self.inputs, self.workers, self.report = recipe, inputs, workers, report
        self.state = LoopState()
        self.windows = inputs.windows(recipe)
        self.module = build_module(recipe, inputs, self.windows, workers.peers())
        saved: SavedState | None = None if inputs.initial is None else Unstepped(self.module)
        if resume_from is not None:
            saved, self.state = Checkpoint(resume_from), load_state(resume_from)
            load_into(self.module, saved)
            if of_another_run:
                self.state = self._taken_over(self.state)
        self.module.to(workers.device).train()
        self.checkpoint_bytes = checkpoint_size(self.module)
        self.description = describe(self.module, recipe, workers, self.state.step)
        self.engine: Engine = make_engine(self.module, recipe, workers, saved)
        self._checked = False

    def _taken_over(self, state: LoopState) -> LoopState:
        """As far as another run had come, with nothing measured yet; a step is as far into the schedule as there."""
        steps = self.windows.steps(self.recipe.train.batch_size)
        return LoopState(epoch=state.epoch, step=state.epoch * steps)

    def score_start(self) -> None:
        """Epoch 0: what training starts from."""
        self._finish_epoch(0, self._validate())
        self.report(self.state.epochs[-1], self._write)

    def train_epoch(self) -> None:
        """The rest of the epoch that has begun, validation, and the report."""
        started = time.perf_counter()
        self._train_steps()
        losses, trained_s = self.state.losses, time.perf_counter() - started
        measured = self._validate()
        self._finish_epoch(self.state.epoch + 1, measured | {
            "loss": sum(losses) / len(losses), "train_s": trained_s, "epoch_s": time.perf_counter() - started,
        })
        self.report(self.state.epochs[-1], self._write)

    def _validate(self) -> dict[str, Any]:
        recipe = self.recipe
        return validate(
            self.module, self.engine, self.inputs, self.workers, recipe.evaluate.batch_users, recipe.train.precision
        )

    def _train_steps(self) -> None:
        """Up to the end of the epoch, with a checkpoint every so often. Losses are looked at as rarely as possible,
        since looking makes the host wait for a GPU: after the first step, before a checkpoint, at the end."""
        train = self.recipe.train
        first, last = len(self.state.losses), self.windows.steps(train.batch_size)
        if first == 0 and self.module.hard_UK is not None:  # within an epoch they are those of the checkpoint
            mine(self.module, self.engine, self.inputs, self.workers, self.recipe, self.state.epoch)
        losses: list[Tensor] = []
        for step, batches in enumerate(self._batches(first), start=first + 1):
            losses.append(self._step(batches, self.state.step + len(losses)))
            due = train.checkpoint_steps is not None and step % train.checkpoint_steps == 0 and step < last
            if due or step == last or not self._checked:
                self._look_at(losses)
                if due or step == last:
                    self._check_weights()
                losses, self._checked = [], True
            if due:
                self.report(self._progress(), self._write)

    def _batches(self, first_step: int) -> Iterator[list[WindowBatch]]:
        train, workers = self.recipe.train, self.workers
        pool = self.module.hard_UK
        batches = self.windows.epoch(
            self.state.epoch, seed=self.recipe.seed, batch_size=train.batch_size, negatives=train.negatives,
            rank=workers.rank, world_size=workers.world_size, micro_batches=train.accumulation_steps,
            first_step=first_step, with_step_rows=isinstance(self.module.text_source, SharedText),
            hard=None if pool is None else (pool.cpu().numpy(), train.mined.per_window),
        )
        moved = ([batch.to(workers.device) for batch in step] for step in batches)
        return prefetched(moved) if workers.device.type == "cuda" else moved

    def _step(self, batches: list[WindowBatch], step: int) -> Tensor:
        train = self.recipe.train
        torch.manual_seed(hash((self.recipe.seed, step, self.workers.rank)) % 2**63)
        total = train.epochs * self.windows.steps(train.batch_size)
        return self.engine.step(batches, learning_rate_scale(step, train, total))

    def _look_at(self, losses: list[Tensor]) -> None:
        """Take the mean over workers of some steps' losses into the state. Raises TrainingError."""
        values = self.workers.sum(torch.stack(losses)) / self.workers.world_size
        if not bool(torch.isfinite(values).all()):
            raise self._not_finite(int((~torch.isfinite(values)).nonzero()[0]))
        self.state = replace(
            self.state, step=self.state.step + len(losses), losses=[*self.state.losses, *values.tolist()]
        )

    def _not_finite(self, place: int, what: str = "loss was") -> TrainingError:
        """Of the step `place` after those whose losses are known."""
        state, train, encoder = self.state, self.recipe.train, self.recipe.encoder
        done = len(state.losses) + place
        [batch] = next(self.windows.epoch(
            state.epoch, seed=self.recipe.seed, batch_size=train.batch_size, negatives=train.negatives, first_step=done
        ))
        rows = batch.rows[torch.unique(batch.targets)]
        items = ", ".join(self.inputs.item_id(int(row)) for row in rows[:NAMED_ITEMS])
        kept = state.step - len(state.losses) + (done - done % train.checkpoint_steps if train.checkpoint_steps else 0)
        remedies = [f"train.learning_rate (now {train.learning_rate:g})"]
        if encoder.tuning != "frozen":
            remedies.append(f"encoder.learning_rate (now {encoder.learning_rate:g})")
        remedies.append(f"train.gradient_clip (now {train.gradient_clip:g})")
        precision = ", or use train.precision=fp32" if train.precision == "bf16" else ""
        return TrainingError(
            f"The {what} not finite at step {state.step + place + 1} (epoch {state.epoch + 1}), in a batch with the "
            f"items {items}{' and others' if len(rows) > NAMED_ITEMS else ''}; last good checkpoint: "
            f"{f'step {kept}' if kept or self.inputs.initial is not None else 'none'}. Lower "
            f"{' or '.join(remedies)}{precision}."
        )

    def _finish_epoch(self, epoch: int, measured: dict[str, Any]) -> None:
        stopping = self.state.stopping.seen(measured[self.inputs.selection], epoch)
        metrics = {"epoch": epoch, "step": self.state.step, "best_epoch": stopping.best_epoch, **measured}
        self.state = replace(
            self.state, epoch=epoch, losses=[], stopping=stopping, epochs=[*self.state.epochs, metrics]
        )

    def _progress(self) -> dict[str, Any]:
        """Metrics of a checkpoint within an epoch: no score, so that it is kept only while it is the newest."""
        return {"step": self.state.step, "loss": self.state.losses[-1], self.inputs.selection: NOT_SCORED}

    def _check_weights(self) -> None:
        """Raise TrainingError before weights that are not finite become a checkpoint: a loss shows it a step later."""
        bad = [
            piece.name for piece in self.engine.pieces()
            if piece.kind == WEIGHT and not bool(torch.isfinite(piece.values).all())
        ]
        if float(self.workers.sum(torch.tensor([float(len(bad))]))):
            raise self._not_finite(-1, "weights were")

    def _write(self, folder: Path) -> None:
        save_shard(folder, self._pieces(), self.workers.rank, self.workers.world_size)
        if self.workers.is_first:
            save_state(folder, self.state)

    def _pieces(self) -> Iterator[Piece]:
        yield from self.engine.pieces()
        parameters = {name for name, _ in self.module.named_parameters()}
        for name, buffer in self.module.state_dict().items():
            if name not in parameters:
                yield even_part(WEIGHT, name, buffer, self.workers.rank, self.workers.world_size)
