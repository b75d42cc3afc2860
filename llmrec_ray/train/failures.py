"""What Ray Train does when a worker fails, and what a person is told.

An error meant for people follows from the recipe, the data or the disk, and a worker that had too little memory will
have too little again: a restart would only meet them again. So the group ends with the first one, in whatever worker it
is raised, while the others wait for that worker.
"""

from __future__ import annotations

from typing import Any

import ray.train
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy  # noqa: PLC2701

from llmrec_ray.config import Recipe
from llmrec_ray.errors import DiskFullError, LlmrecError, TrainingError
from llmrec_ray.storage import free_space, is_disk_full
from llmrec_ray.train.memory import explain_memory, was_out_of_memory

__all__ = ["RestartUnlessExplained", "explain"]


class RestartUnlessExplained(DefaultFailurePolicy):  # type: ignore[misc]
    """Ray Train's own policy, but no restart after an error meant for people, nor for want of memory.

    Ray Train 2.60 has no setting for this; it hands the policy to its controller when `fit` is called.
    """

    def _is_retryable_error(self, training_failed_error: Any) -> bool:
        failures = _failures(training_failed_error)
        if any(isinstance(failure, LlmrecError) or was_out_of_memory(failure) for failure in failures.values()):
            return False
        return bool(super()._is_retryable_error(training_failed_error))


def explain(error: ray.train.TrainingFailedError, run_dir: str, recipe: Recipe) -> LlmrecError:
    """The error for people behind a failed run: a worker's own, or one that says which worker failed and how."""
    failures = _failures(error)
    for rank, failure in failures.items():
        if isinstance(failure, LlmrecError):
            return failure
        if was_out_of_memory(failure):
            return explain_memory(rank, failure, recipe, run_dir)
    said = "; ".join(f"worker {rank}: {_in_a_line(failure)}" for rank, failure in failures.items())
    cause = getattr(error, "controller_failure", error)
    if is_disk_full(cause):
        return DiskFullError(
            f"The record of checkpoints could not be written, since the disk of {run_dir} is full "
            f"({free_space(run_dir)} are free): make room there, or set workspace to a larger disk, and train anew."
        )
    return TrainingError(
        f"Training failed after {recipe.train.max_failures} restarts (train.max_failures): "
        f"{said or _in_a_line(cause)}. What was done is kept in {run_dir}: go on with --resume."
    )


def _failures(error: Exception) -> dict[int, Exception]:
    """Of each worker that failed, by rank."""
    return dict(sorted((getattr(error, "worker_failures", None) or {}).items()))


def _in_a_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
