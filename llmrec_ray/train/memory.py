"""The same training in smaller pieces, for workers that had too little memory."""

from __future__ import annotations

from llmrec_ray.config import Recipe, override_recipe

__all__ = ["smaller"]


def smaller(recipe: Recipe) -> Recipe | None:
    """The same gradients and the same ranking from about half the memory: more micro-batches, fewer tokens in one pass
    of an encoder that trains, fewer users scored at once. None when nothing can shrink."""
    changes = _smaller_pieces(recipe)
    return override_recipe(recipe, [f"{key}={value}" for key, value in changes.items()]) if changes else None


def _smaller_pieces(recipe: Recipe) -> dict[str, int]:
    train, encoder, changes = recipe.train, recipe.encoder, {}
    if train.batch_size >= 2 * train.accumulation_steps * train.num_workers:
        changes["train.accumulation_steps"] = 2 * train.accumulation_steps
    if encoder.tuning != "frozen" and encoder.max_batch_tokens > encoder.max_tokens:
        changes["encoder.max_batch_tokens"] = max(encoder.max_batch_tokens // 2, encoder.max_tokens)
    if recipe.evaluate.batch_users > 1:
        changes["evaluate.batch_users"] = recipe.evaluate.batch_users // 2
    return changes
