"""How long texts are in tokens -> what is lost where the encoder cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from llmrec_ray.types import IntArray

__all__ = ["TokenReport"]

EXAMPLES = 5


@dataclass(frozen=True)
class TokenReport:
    """texts: how many are not empty. max_tokens: where they are cut. cut: how many are longer than that.

    median_tokens, p95_tokens, longest_tokens: of a text with its prompt, before it is cut. examples: ids of the first
    few that are cut.
    """

    texts: int
    max_tokens: int
    cut: int
    median_tokens: int
    p95_tokens: int
    longest_tokens: int
    examples: tuple[str, ...]

    @classmethod
    def of(cls, counts: IntArray, ids: Sequence[str], max_tokens: int) -> Self:
        """From the tokens of each text, [N] int64, 0 for an empty one, and ids, [N]."""
        there = counts[counts > 0] if counts.any() else np.zeros(1, np.int64)
        median, p95, longest = np.percentile(there, [50, 95, 100], method="inverted_cdf").tolist()
        cut = np.flatnonzero(counts > max_tokens)
        examples = tuple(ids[row] for row in cut[:EXAMPLES])
        return cls(int((counts > 0).sum()), max_tokens, len(cut), median, p95, longest, examples)

    def __str__(self) -> str:
        lengths = f"median {self.median_tokens}, 95 % up to {self.p95_tokens}, longest {self.longest_tokens}"
        if not self.cut:
            return f"none of {self.texts} texts is longer than the {self.max_tokens} tokens that are read ({lengths})"
        return (
            f"{self.cut} of {self.texts} texts are cut at {self.max_tokens} tokens ({lengths}), such as those of "
            f"{', '.join(self.examples)}: raise encoder.max_tokens, or shorten data.items.template"
        )

    def to_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self) | {"examples": list(self.examples)}
