"""Texts -> raw vectors by a Hugging Face encoder: the BERT family, and decoder LLMs.

Raw vectors are pooled token states, neither centred nor normalised, since caches must not depend on a
catalogue. This module knows no users, scores, training or Ray.

Shapes: N texts, P texts of one batch, L tokens, T width of a text vector.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from llmrec_ray.config import EncoderConfig, Pooling
from llmrec_ray.errors import ConfigError, ModelSourceError
from llmrec_ray.model.tokens import TextTokens, token_budget_batches
from llmrec_ray.types import FloatArray

__all__ = ["TextEncoder", "attention_mask", "inference_dtype", "load_tokens", "pool", "pooled_states"]

# What a Hugging Face config says that decides no vector.
BOOKKEEPING = {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"}


class TextEncoder:
    """A tokenizer and a transformer whose pooled token states are text vectors."""

    def __init__(self, tokenizer: Any, backbone: nn.Module, config: EncoderConfig) -> None:
        self.tokens = TextTokens(tokenizer, config, backbone.config)
        self.backbone = backbone.eval()
        self.config = config

    @classmethod
    def load(cls, path: Path, config: EncoderConfig, *, for_training: bool = False) -> TextEncoder:
        """Read a Hugging Face folder, from local files only, in `config.precision`; for training in float32.

        Of a model that also sees, only the language model is kept. Raises ModelSourceError for a folder that
        holds no encoder or another model's tokenizer, ConfigError for settings that this model or machine lacks.
        """
        _check_attention(config)
        dtype = torch.float32 if for_training else inference_dtype(config)
        tokenizer, backbone = _read(path, dtype, config.attention)
        _set_direction(backbone, config.bidirectional)
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
            longest, shortest = int(lengths[batch[0]]), int(lengths[batch[-1]])
            parts = tokens[batch, :longest].to(self.device), lengths[batch].to(self.device)
            with torch.inference_mode():
                pooled = pooled_states(self.backbone, *parts, self.config.pooling, padded=shortest < longest)
            vectors[batch.numpy()] = pooled.cpu().numpy()
            if on_progress is not None:
                on_progress(len(batch))
        return vectors

    def save(self, folder: Path) -> None:
        """Write safetensors weights, tokenizer and config, so that `load` gives the same vectors."""
        folder.mkdir(parents=True, exist_ok=True)
        _quieten()
        cast(Any, self.backbone).save_pretrained(folder)
        self.tokens.tokenizer.save_pretrained(folder)

    def fingerprint(self) -> str:
        """Hash of all that decides a vector besides its final text: weights, precision, tokenizer, settings."""
        digest = hashlib.sha256()
        settings = cast(Any, self.backbone.config).to_dict()
        settings = {name: value for name, value in settings.items() if name not in BOOKKEEPING}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.backbone.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        digest.update(f"{self.tokens.fingerprint()} pooling={self.config.pooling}".encode())
        return digest.hexdigest()[:16]


def inference_dtype(config: EncoderConfig) -> torch.dtype:
    """In which precision weights are kept to encode with."""
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def pooled_states(
    backbone: nn.Module, tokens: Tensor, lengths: Tensor, pooling: Pooling, *, padded: bool = True
) -> Tensor:
    """Token ids [P, L] padded on the right and lengths [P] -> [P, T] float32; differentiable.

    padded: False when all are equally long, which is faster.
    """
    real = torch.arange(tokens.shape[1], device=tokens.device)[None, :] < lengths[:, None]
    mask = attention_mask(backbone, real) if padded else None
    return pool(backbone(input_ids=tokens, attention_mask=mask).last_hidden_state, lengths, pooling)


def pool(states: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """Token states [P, L, T], padding on the right, and lengths [P] -> [P, T] float32.

    `weighted` is the position-weighted mean of Muennighoff (2022, SGPT), for decoders: later states have read more.
    """
    if pooling == "cls":
        return states[:, 0].float()
    if pooling == "last":
        return states[torch.arange(states.shape[0], device=states.device), lengths - 1].float()
    places = torch.arange(1, states.shape[1] + 1, device=states.device)[None, :]
    real = places <= lengths[:, None]
    weights = (real * places if pooling == "weighted" else real).float()
    shares = weights / weights.sum(1, keepdim=True)
    return (states.float() * shares[:, :, None]).sum(1)


def attention_mask(backbone: nn.Module, real: Tensor) -> Tensor | None:
    """What a backbone is told of real [P, L], True where a token is no padding.

    Causal attention needs nothing: padding is on the right, where no real token looks. Transformers makes the host
    wait to see what a mask of two dimensions says; one of four it takes as it is, where no layer has a window.
    """
    config = cast(Any, backbone.config)
    if getattr(config, "is_causal", False):
        return None
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windows = getattr(config, "sliding_window", None) or kinds != {"full_attention"}
    if config._attn_implementation != "sdpa" or windows:
        return real.long()
    return real[:, None, None, :].expand(-1, 1, real.shape[1], -1)


def load_tokens(path: Path, config: EncoderConfig) -> TextTokens:
    """The tokenizer of an encoder's folder, without its weights. Raises ModelSourceError."""
    from transformers import AutoConfig, AutoTokenizer  # slow to import; scoring needs none of it

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model_config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _no_encoder(path, reason) from None
    return TextTokens(tokenizer, config, model_config)


def _check_attention(config: EncoderConfig) -> None:
    if config.attention != "flash_attention_2":
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            "encoder.attention is flash_attention_2, but this process has no NVIDIA GPU: set encoder.attention to sdpa."
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise ConfigError(
            "encoder.attention is flash_attention_2, but the package flash-attn is not installed: install it, or set "
            "encoder.attention to sdpa."
        )


def _read(path: Path, dtype: torch.dtype, attention: str) -> tuple[Any, Any]:
    """Tokenizer and backbone, complete: transformers fills what is missing with random weights or an empty vocabulary.
    """
    from transformers import AutoModel, AutoTokenizer  # slow to import; scoring needs none of it

    _quieten()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        backbone, report = AutoModel.from_pretrained(
            path, local_files_only=True, dtype=dtype, use_safetensors=True, output_loading_info=True,
            attn_implementation=None if attention == "sdpa" else attention,  # None is sdpa where a model has it
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _no_encoder(path, reason) from None
    if not tokenizer.is_fast:
        raise _no_encoder(path, f"{type(tokenizer).__name__} has no fast implementation")
    if not any((path / name).is_file() for name in tokenizer.vocab_files_names.values()):
        raise _no_encoder(path, f"none of {', '.join(tokenizer.vocab_files_names.values())} is there")
    if backbone.config.is_encoder_decoder:
        raise _no_encoder(path, f"{type(backbone).__name__} is an encoder with a decoder, which is not supported")
    if "add_pooling_layer" in inspect.signature(type(backbone)).parameters:
        backbone.pooler = None  # never read, and often not among the weights
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise _no_encoder(path, f"{len(missing)} of its tensors are not in the weights, first {missing[0]}")
    backbone = backbone if backbone.config.get_text_config() is backbone.config else backbone.get_decoder()
    backbone.config.use_cache = False
    return tokenizer, backbone


def _no_encoder(path: Path, reason: str) -> ModelSourceError:
    return ModelSourceError(
        f"{path} does not hold an encoder that can be loaded ({reason}): it needs config.json, a tokenizer and "
        "safetensors weights."
    )


def _set_direction(backbone: nn.Module, bidirectional: bool) -> None:
    """Masks follow the config, which is saved with the model; attention without a mask follows the module."""
    causal = [module for module in backbone.modules() if getattr(module, "is_causal", False)]
    if bidirectional and not causal:
        raise ConfigError(
            f"encoder.bidirectional is true, but {type(backbone).__name__} has no causal attention to switch off: "
            "leave it out."
        )
    config = cast(Any, backbone.config)
    config.is_causal = bool(causal) and not bidirectional and getattr(config, "is_causal", True)
    for module in causal:
        cast(Any, module).is_causal = config.is_causal


def _quieten() -> None:
    # accelerate, which PEFT brings, imports DeepSpeed, which says on stdout that it guesses the device unless told
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # it reports tensors that are missing, which `_read` refuses
