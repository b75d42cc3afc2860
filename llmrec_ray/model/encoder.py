"""Texts -> vectors by a Hugging Face encoder: frozen (`TextEncoder`) or trained at the top (`TunedText`).

Raw vectors are pooled token states, neither centred nor normalised, since caches must not depend on a
catalogue; `TunedText` answers in text space (centred, unit norm). This module knows no users, scores or Ray.

Shapes: N texts, M rows asked for, P distinct rows in one micro-batch, L tokens, T width of a text vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from llmrec_ray.config import EncoderConfig
from llmrec_ray.errors import ConfigError, ModelSourceError
from llmrec_ray.types import FloatArray

__all__ = ["TextEncoder", "TunedText", "token_budget_batches"]

NORM_FLOOR = 1e-12


class TextEncoder:
    """A tokenizer and a transformer whose pooled token states are text vectors."""

    def __init__(self, tokenizer: Any, backbone: nn.Module, config: EncoderConfig) -> None:
        self.tokenizer = tokenizer
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
        return int(cast(Any, self.backbone.config).hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    def to(self, device: torch.device | str) -> TextEncoder:
        """Move the weights; returns self."""
        self.backbone.to(device)
        return self

    def encode(self, texts: Sequence[str], on_progress: Callable[[int], object] | None = None) -> FloatArray:
        """Pooled vectors [N, T] float32, neither centred nor normalised; an empty text gives a zero row.

        `on_progress` is told how many texts were just done. The result of a text does not depend on its
        neighbours beyond float rounding.
        """
        vectors = np.zeros((len(texts), self.vector_size), np.float32)
        filled = [row for row, text in enumerate(texts) if text]
        tokens, lengths = self.tokenize([texts[row] for row in filled])
        for batch in token_budget_batches(lengths, self.config.max_batch_tokens):
            longest = int(lengths[batch].max())
            with torch.inference_mode():
                pooled = self.pool(tokens[batch, :longest].to(self.device), lengths[batch].to(self.device))
            vectors[np.asarray(filled)[batch.numpy()]] = pooled.float().cpu().numpy()
            if on_progress is not None:
                on_progress(len(batch))
        return vectors

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Padded token ids [N, L] int64 and lengths [N] int64; cut to `max_tokens`."""
        if not texts:
            return torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        ids = self.tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        lengths = torch.tensor([len(row) for row in ids])
        tokens = torch.full((len(ids), int(lengths.max())), int(self.tokenizer.pad_token_id or 0))
        for row, values in enumerate(ids):
            tokens[row, : len(values)] = torch.tensor(values)
        return tokens, lengths

    def pool(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Vectors [P, T] of padded tokens [P, L]; differentiable."""
        return pooled_states(self.backbone, tokens, lengths, self.config.pooling)

    def save(self, folder: Path) -> None:
        """Write safetensors weights, tokenizer and config, so that `load` gives the same vectors."""
        folder.mkdir(parents=True, exist_ok=True)
        _hide_progress_bars()
        cast(Any, self.backbone).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def fingerprint(self) -> str:
        """Hash of all that decides a vector besides its text: weights, precision, tokenizer, settings."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.backbone.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        digest.update(self.tokenizer.backend_tokenizer.to_str().encode())
        digest.update(f"pooling={self.config.pooling} max_tokens={self._max_tokens} bidirectional".encode())
        return digest.hexdigest()[:16]

    @property
    def _max_tokens(self) -> int:
        positions = getattr(self.backbone.config, "max_position_embeddings", self.config.max_tokens)
        return min(self.config.max_tokens, int(positions))


class TunedText(nn.Module):
    """Item rows -> text vectors in text space, with gradients into the top layers of the encoder.

    Each distinct item of a call is encoded once, in token-budget micro-batches, without dropout. Lower layers
    are frozen, so autograd records nothing below the first trained block.

    texts: one per item row, "" for none. center: [T] float32, subtracted from raw vectors.
    """

    center: Tensor
    tokens: Tensor
    lengths: Tensor

    def __init__(self, encoder: TextEncoder, texts: Sequence[str], center: FloatArray) -> None:
        super().__init__()
        self.backbone = encoder.backbone
        self.pooling: Literal["mean", "cls"] = encoder.config.pooling
        self.max_batch_tokens = encoder.config.max_batch_tokens
        train_top_layers(encoder.backbone, encoder.config.top_layers)
        tokens, lengths = encoder.tokenize(texts)
        has_text = torch.tensor([bool(text) for text in texts])
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("lengths", torch.where(has_text, lengths, 0), persistent=False)
        self.register_buffer("center", torch.from_numpy(center.copy()), persistent=False)

    def forward(self, item_rows: Tensor) -> Tensor:
        """[M] int64 -> [M, T] centred, unit norm; zero rows for items without text."""
        distinct, positions = torch.unique(item_rows, return_inverse=True)
        filled = self.lengths[distinct] > 0
        vectors = self.center.new_zeros(len(distinct), len(self.center))
        if filled.any():
            vectors = vectors.index_copy(0, filled.nonzero().squeeze(1), self._encode(distinct[filled]))
        return vectors[positions]

    def train(self, mode: bool = True) -> TunedText:
        """Training mode without the encoder's dropout: the few trained layers see what serving will see."""
        super().train(mode)
        self.backbone.eval()
        return self

    def _encode(self, rows: Tensor) -> Tensor:
        lengths = self.lengths[rows]
        batches = list(token_budget_batches(lengths.cpu(), self.max_batch_tokens))
        pooled = [
            pooled_states(self.backbone, self.tokens[rows[batch], : int(lengths[batch].max())],
                          lengths[batch], self.pooling)
            for batch in batches
        ]
        order = torch.cat(batches).to(rows.device)
        raw = torch.cat(pooled).float()
        centred = torch.zeros_like(raw).index_copy(0, order, raw) - self.center
        unit: Tensor = centred / centred.norm(dim=1, keepdim=True).clamp_min(NORM_FLOOR)
        return unit


def token_budget_batches(lengths: Tensor, max_batch_tokens: int) -> Iterator[Tensor]:
    """Positions [P] in batches whose padded size stays within the budget, longest texts first.

    A single text longer than the budget is a batch of its own.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    start = 0
    while start < len(order):
        size = max(1, max_batch_tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def train_top_layers(backbone: nn.Module, top_layers: int) -> None:
    """Freeze all but the last `top_layers` transformer blocks. Raises ConfigError when there are fewer."""
    blocks = _blocks(backbone)
    if top_layers > len(blocks):
        raise ConfigError(
            f"encoder.top_layers is {top_layers}, but the encoder has {len(blocks)} blocks: "
            f"set encoder.top_layers to at most {len(blocks)}."
        )
    backbone.requires_grad_(False)
    for block in blocks[-top_layers:]:
        block.requires_grad_(True)


def pooled_states(
    backbone: nn.Module, tokens: Tensor, lengths: Tensor, pooling: Literal["mean", "cls"]
) -> Tensor:
    """Token ids [P, L] and lengths [P] -> [P, T]."""
    mask = torch.arange(tokens.shape[1], device=tokens.device)[None, :] < lengths[:, None]
    states: Tensor = backbone(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    if pooling == "cls":
        return states[:, 0]
    weights = mask.to(states.dtype)[:, :, None]
    return (states * weights).sum(1) / weights.sum(1)


def _hide_progress_bars() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    count = int(cast(Any, backbone.config).num_hidden_layers)
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ConfigError(
        f"No list of {count} transformer blocks was found in {type(backbone).__name__}: "
        "set encoder.tuning to frozen, or use an encoder of the BERT family."
    )
