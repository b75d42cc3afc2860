"""Texts -> raw vectors by a Hugging Face encoder: the BERT family, and decoder LLMs.

Raw vectors are pooled token states, neither centred nor normalised, since caches must not depend on a
catalogue. This module knows no users, scores, training or Ray.

Shapes: N texts, P texts of one batch, L tokens, T width of a text vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from llmrec_ray.config import EncoderConfig, Pooling
from llmrec_ray.errors import ModelSourceError
from llmrec_ray.model.tokens import TextTokens, token_budget_batches
from llmrec_ray.types import FloatArray

__all__ = ["TextEncoder", "pooled_states"]


class TextEncoder:
    """A tokenizer and a transformer whose pooled token states are text vectors."""

    def __init__(self, tokenizer: Any, backbone: nn.Module, config: EncoderConfig) -> None:
        self.tokens = TextTokens(tokenizer, config, backbone.config)
        self.backbone = backbone.eval()
        self.config = config

    @classmethod
    def load(cls, path: Path, config: EncoderConfig) -> TextEncoder:
        """Read a Hugging Face folder in float32, from local files only. Raises ModelSourceError."""
        from transformers import AutoModel, AutoTokenizer  # slow to import; scoring needs none of it

        _hide_progress_bars()
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            backbone = AutoModel.from_pretrained(
                path, local_files_only=True, dtype=torch.float32, use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelSourceError(
                f"{path} does not hold an encoder that can be loaded ({reason}): it needs config.json, "
                "a tokenizer and safetensors weights."
            ) from None
        return cls(tokenizer, backbone, config)

    @property
    def vector_size(self) -> int:
        """T, the width of a text vector."""
        return int(cast(Any, self.backbone.config).get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    def to(self, device: torch.device | str) -> TextEncoder:
        """Move the weights; returns self."""
        self.backbone.to(device)
        return self

    def encode(
        self, texts: Sequence[str], on_progress: Callable[[int], object] | None = None, *, as_query: bool = False
    ) -> FloatArray:
        """Pooled vectors [N, T] float32, neither centred nor normalised; an empty text gives a zero row.

        `on_progress` is told how many texts were just done. `as_query` chooses the prompt. The result of a text
        does not depend on its neighbours beyond float rounding.
        """
        vectors = np.zeros((len(texts), self.vector_size), np.float32)
        tokens, lengths = self.tokens.tokenize(texts, as_query=as_query)
        for batch in token_budget_batches(lengths, self.config.max_batch_tokens):
            longest = int(lengths[batch].max())
            with torch.inference_mode():
                pooled = self.pool(tokens[batch, :longest].to(self.device), lengths[batch].to(self.device))
            vectors[batch.numpy()] = pooled.cpu().numpy()
            if on_progress is not None:
                on_progress(len(batch))
        return vectors

    def pool(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Vectors [P, T] float32 of padded tokens [P, L]; differentiable."""
        return pooled_states(self.backbone, tokens, lengths, self.config.pooling)

    def save(self, folder: Path) -> None:
        """Write safetensors weights, tokenizer and config, so that `load` gives the same vectors."""
        folder.mkdir(parents=True, exist_ok=True)
        _hide_progress_bars()
        cast(Any, self.backbone).save_pretrained(folder)
        self.tokens.tokenizer.save_pretrained(folder)

    def fingerprint(self) -> str:
        """Hash of all that decides a vector besides its final text: weights, precision, tokenizer, settings."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.backbone.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        digest.update(f"{self.tokens.fingerprint()} pooling={self.config.pooling}".encode())
        return digest.hexdigest()[:16]


def pooled_states(backbone: nn.Module, tokens: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """Token ids [P, L] padded on the right and lengths [P] -> [P, T] float32.

    `weighted` is the position-weighted mean of Muennighoff (2022, SGPT), for decoders: later states have read more.
    """
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)[None, :]
    mask = places <= lengths[:, None]
    states: Tensor = backbone(input_ids=tokens, attention_mask=mask.long(), use_cache=False).last_hidden_state
    if pooling == "cls":
        return states[:, 0].float()
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), lengths - 1].float()
    weights = (mask * places if pooling == "weighted" else mask).float()
    return torch.einsum("plt,pl->pt", states.float(), weights / weights.sum(1, keepdim=True))


def _hide_progress_bars() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
