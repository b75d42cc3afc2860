"""Training that needs more memory than there is ends with what needs less."""

from __future__ import annotations

import errno
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray.cloudpickle
import ray.exceptions
import ray.train
import torch
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from llmrec_ray.config import with_settings
from llmrec_ray.errors import OutOfMemoryError
from llmrec_ray.model import Windows
from llmrec_ray.train import TrainingInputs, run_training, smaller
from llmrec_ray.train.memory import explain_memory, was_out_of_memory
from tests.boards import board_recipe
from tests.train_boards import deterministic_recipe, inputs_of_board, train_here

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import tests
LIMIT_BYTES = 100_000_000


@dataclass(frozen=True)
class TooLargeInOneWorker(TrainingInputs):
    """Inputs of which rank 1 makes windows that it has no memory for."""

    starts: str = ""

    def windows(self, recipe) -> Windows:
        if ray.train.get_context().get_world_rank() == 1:
            with Path(self.starts).open("a", encoding="utf-8") as log:
                log.write("started\n")
            has_now = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (has_now + LIMIT_BYTES, resource.RLIM_INFINITY))
            torch.ones(10 * LIMIT_BYTES, dtype=torch.uint8)
        return super().windows(recipe)


def test_a_worker_without_enough_memory_ends_training_at_once_with_what_needs_less(tmp_path, ray_session):
    starts = tmp_path / "starts"
    inputs = TooLargeInOneWorker(**vars(inputs_of_board()), starts=str(starts))
    with pytest.raises(OutOfMemoryError) as caught:
        run_training(deterministic_recipe(max_failures=3), inputs, str(tmp_path / "run"))
    message = str(caught.value)
    assert message.startswith("Training worker 1 ran out of memory (RuntimeError: [enforce fail at alloc_cpu.cpp")
    assert "you tried to allocate 1000000000 bytes" in message
    assert message.endswith(
        "): set train.accumulation_steps=2, evaluate.batch_users=128, which gives the same in smaller pieces, or use "
        f"machines with more memory. What was done is kept in {tmp_path}/run: go on with --resume."
    )
    assert starts.read_text() == "started\n", "a restart would only meet it again"


@pytest.mark.parametrize(("error", "expected"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    (RuntimeError("std::bad_alloc"), True),
    (MemoryError(), True),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
    (OSError(errno.ENOSPC, "No space left on device"), False),
    (ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."), True),
    (WorkerHealthCheckFailedError("A worker health check failed.", ray.exceptions.OutOfMemoryError("killed")), True),
    (WorkerHealthCheckFailedError("A worker health check failed.", ray.exceptions.RayActorError(
        "Some common causes include: (1) the process was killed by the OOM killer due to high memory usage")), False),
    (ValueError("the prompt asks for more than can be, out of memory"), False),
], ids=str)
def test_too_little_memory_is_told_from_other_failures(error, expected):
    assert was_out_of_memory(error) is expected


def test_smaller_pieces_give_the_same_losses():
    recipe = deterministic_recipe(sharding="none", num_workers=1, accumulation_steps=2)
    less = smaller(recipe)
    assert (less.train.accumulation_steps, less.evaluate.batch_users) == (4, 128)
    assert train_here(less) == pytest.approx(train_here(recipe), rel=2e-5)


def test_a_trial_shrinks_though_what_is_searched_goes_only_with_another_loss():
    search = {"train.loss": {"choice": ["bce"]}, "train.focal_gamma": {"uniform": [1.0, 3.0]}}
    recipe = board_recipe(Path("/nowhere"), train={"loss": "focal"}, tune={"search": search})
    less = smaller(with_settings(recipe, {"train.loss": "bce"}))
    assert less is not None and (less.train.loss, less.train.accumulation_steps) == ("bce", 2)


def test_pieces_shrink_until_nothing_can():
    recipe, seen = board_recipe(Path("/nowhere"), encoder={"tuning": "lora", "max_batch_tokens": 40}), []
    while recipe is not None:
        seen.append((recipe.train.accumulation_steps, recipe.encoder.max_batch_tokens, recipe.evaluate.batch_users))
        last, recipe = recipe, smaller(recipe)
    assert seen == [
        (1, 40, 256), (2, 20, 128), (4, 16, 64), (8, 16, 32), (8, 16, 16), (8, 16, 8), (8, 16, 4), (8, 16, 2),
        (8, 16, 1),
    ]
    assert str(explain_memory(0, MemoryError(), last, "/run")) == (
        "Training worker 0 ran out of memory (MemoryError): lower train.batch_size, or use machines with more memory. "
        "What was done is kept in /run: go on with --resume."
    )
