"""Texts -> token ids by a Hugging Face tokenizer: prompts, limits, and batches of similar length.

The one place where a text becomes what an encoder reads, whatever runs the encoder. It knows no weights.
Shapes: N texts, L tokens of the longest, P texts of one batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrec_ray.config import EncoderConfig
from llmrec_ray.errors import ModelSourceError
from llmrec_ray.types import IntArray

__all__ = ["TextTokens", "TokenizedTexts", "token_budget_batches"]

PLACE = "{text}"
COUNTED_TEXTS = 4096


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of texts as arrays, which processes of a machine can share.

    tokens: [N, L] int32, padded on the right. lengths: [N] int64, 0 for an empty text.
    """

    tokens: NDArray[np.int32]
    lengths: IntArray


class TextTokens:
    """A tokenizer with the recipe's prompts and token limit, checked against the model that reads its ids.

    model_config: the Hugging Face config of that model. Raises ModelSourceError when the tokenizer has more
    tokens than the model has embeddings.
    """

    def __init__(self, tokenizer: Any, config: EncoderConfig, model_config: Any) -> None:
        text_config = model_config.get_text_config()
        self.tokenizer = tokenizer
        self.config = config
        self._n_embeddings = int(text_config.vocab_size)
        positions = getattr(text_config, "max_position_embeddings", None) or config.max_tokens
        self.max_tokens = min(config.max_tokens, int(positions), int(tokenizer.model_max_length))
        self._check_ids(int(tokenizer.vocab_size) - 1)

    def prompted(self, texts: Sequence[str], *, as_query: bool = False) -> list[str]:
        """The final texts, `item_prompt` or `query_prompt` around each; an empty text stays empty."""
        prompt = self.config.query_prompt if as_query else self.config.item_prompt
        return [prompt.replace(PLACE, text) if text else "" for text in texts]

    def tokenize(self, texts: Sequence[str], *, as_query: bool = False) -> tuple[Tensor, Tensor]:
        """Token ids [N, L] int64, padded on the right, and lengths [N] int64; cut to `max_tokens`.

        An empty text has length 0. Raises ModelSourceError for an id that the model has no embedding for.
        """
        filled = [row for row, text in enumerate(texts) if text]
        final = self.prompted([texts[row] for row in filled], as_query=as_query)
        ids = self._ids(final) if final else []
        lengths = torch.zeros(len(texts), dtype=torch.int64)
        lengths[filled] = torch.tensor([len(row) for row in ids], dtype=torch.int64)
        flat = np.fromiter((token for row in ids for token in row), np.int64, int(lengths.sum()))
        self._check_ids(int(flat.max(initial=0)))
        longest = int(lengths.max()) if len(texts) else 0
        tokens = torch.full((len(texts), longest), int(self.tokenizer.pad_token_id or 0))
        tokens[torch.arange(longest)[None, :] < lengths[:, None]] = torch.from_numpy(flat)
        return tokens, lengths

    def tokenized(self, texts: Sequence[str]) -> TokenizedTexts:
        """Items' texts, to be shared."""
        tokens, lengths = self.tokenize(texts)
        return TokenizedTexts(tokens.int().numpy(), lengths.numpy())

    def count(self, texts: Sequence[str]) -> IntArray:
        """Tokens of items' texts with `item_prompt`, [N] int64, before they are cut; 0 for an empty one."""
        counts = np.zeros(len(texts), np.int64)
        settings = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        for start in range(0, len(texts), COUNTED_TEXTS):
            final = self.prompted(texts[start : start + COUNTED_TEXTS])
            ids = self.tokenizer(final, truncation=False, **settings)["input_ids"]
            counts[start : start + len(final)] = [len(row) if text else 0 for row, text in zip(ids, final, strict=True)]
        return counts

    def fingerprint(self) -> str:
        """Hash of all that decides the ids of a final text: the tokenizer and the token limit."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        settings = {name: part for name, part in backend.items() if name not in {"truncation", "padding"}}
        parts = json.dumps([settings, self.max_tokens], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()

    def _ids(self, final: list[str]) -> list[list[int]]:
        settings = {"truncation": True, "max_length": self.max_tokens, "return_attention_mask": False}
        ids: list[list[int]] = self.tokenizer(final, return_token_type_ids=False, **settings)["input_ids"]
        return ids

    def _check_ids(self, largest: int) -> None:
        if largest >= self._n_embeddings:
            raise ModelSourceError(
                f"The tokenizer gives token ids up to {largest}, but the model has {self._n_embeddings} token "
                "embeddings, so they do not belong together: put the model's own tokenizer files into its folder."
            )


def token_budget_batches(lengths: Tensor, max_batch_tokens: int) -> Iterator[Tensor]:
    """Positions [P] in batches whose padded size stays within the budget, longest texts first.

    A single text longer than the budget is a batch of its own; empty texts are in none.
    """
    order = torch.argsort(lengths, descending=True, stable=True)[: int((lengths > 0).sum())]
    start = 0
    while start < len(order):
        size = max(1, max_batch_tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size
