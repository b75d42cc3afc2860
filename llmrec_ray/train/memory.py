"""Too little memory: how it shows, what to say of it, and the same training in smaller pieces."""

from __future__ import annotations

import errno

import ray.exceptions

from llmrec_ray.config import Recipe, with_settings
from llmrec_ray.errors import OutOfMemoryError

__all__ = ["explain_memory", "smaller", "was_out_of_memory"]

SIGNS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc",
    "bad allocation", "alloc_failed",
)
"""In what torch, its CPU allocator, CUDA and C++ say, lower case."""
MONITOR = "low on memory"
"""In what Ray says of a worker that its memory monitor has killed."""


def was_out_of_memory(error: Exception) -> bool:
    """Whether a worker failed because it, or its machine, had too little memory."""
    error = getattr(error, "health_check_failure", error)
    said = str(error).lower()
    if isinstance(error, ray.exceptions.RayError):  # of a worker that died otherwise, Ray also guesses at memory
        return isinstance(error, ray.exceptions.OutOfMemoryError) or MONITOR in said
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in said for sign in SIGNS))


def explain_memory(rank: int, error: Exception, recipe: Recipe, run_dir: str) -> OutOfMemoryError:
    """The error for people, with settings that need less."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    less = ", ".join(f"{key}={value}" for key, value in _smaller_pieces(recipe).items())
    remedy = f"set {less}, which gives the same in smaller pieces" if less else "lower train.batch_size"
    return OutOfMemoryError(
        f"Training worker {rank} ran out of memory ({said}): {remedy}, or use machines with more memory. What was done "
        f"is kept in {run_dir}: go on with --resume."
    )


def smaller(recipe: Recipe) -> Recipe | None:
    """The same gradients and the same ranking from about half the memory: more micro-batches, fewer tokens in one pass
    of an encoder that trains, fewer users scored at once. None when nothing can shrink."""
    changes = _smaller_pieces(recipe)
    return with_settings(recipe, changes) if changes else None


def _smaller_pieces(recipe: Recipe) -> dict[str, int]:
    train, encoder, changes = recipe.train, recipe.encoder, {}
    if train.batch_size >= 2 * train.accumulation_steps * train.num_workers:
        changes["train.accumulation_steps"] = 2 * train.accumulation_steps
    if encoder.tuning != "frozen" and encoder.max_batch_tokens > encoder.max_tokens:
        changes["encoder.max_batch_tokens"] = max(encoder.max_batch_tokens // 2, encoder.max_tokens)
    if recipe.evaluate.batch_users > 1:
        changes["evaluate.batch_users"] = recipe.evaluate.batch_users // 2
    return changes
