"""Errors for people on their way out of Ray Data's actors.

Such an error travels as a value: raised in an actor, Ray Data would retry it and wrap it in a stack of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from llmrec_ray import errors
from llmrec_ray.config import EncoderConfig

__all__ = ["Guarded", "unguarded"]

Batch: TypeAlias = dict[str, Any]
KIND, MESSAGE = "error", "message"


class Guarded:
    """What an actor runs: makes its work from the config with the first batch, and keeps it."""

    def __init__(self, make: Callable[[EncoderConfig], Callable[[Batch], Batch]], config: EncoderConfig) -> None:
        self._make, self._config = make, config
        self._work: Callable[[Batch], Batch] | None = None

    def __call__(self, batch: Batch) -> Batch:
        try:
            self._work = self._work or self._make(self._config)
            return self._work(batch)
        except errors.LlmrecError as error:
            return {KIND: np.array([type(error).__name__]), MESSAGE: np.array([str(error)])}


def unguarded(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; the first error among them is raised."""
    for batch in batches:
        if KIND in batch:
            raise getattr(errors, str(batch[KIND][0]))(str(batch[MESSAGE][0]))
        yield batch
