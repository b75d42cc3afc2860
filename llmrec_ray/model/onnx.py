"""Texts -> raw vectors on a CPU by ONNX Runtime, in fp32 or int8; and which runtime reads a model folder.

An `OnnxEncoder` answers as the `TextEncoder` it was made from: the same tokens, the same pooled vectors, two to
five times as fast. It knows no training and no GPU.

Shapes: N texts, T width of a text vector.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from llmrec_ray.config import EncoderConfig
from llmrec_ray.errors import ConfigError, CorruptArtifactError, ModelSourceError
from llmrec_ray.model.encoder import TextEncoder
from llmrec_ray.model.export import FINGERPRINT, INT8_FILE, SETTINGS, export, open_session, settings_of
from llmrec_ray.model.tokens import TextTokens, token_budget_batches
from llmrec_ray.types import FloatArray

__all__ = ["INT8_FILE", "AnyEncoder", "OnnxEncoder", "load_encoder", "runs_on_cpu"]

logger = logging.getLogger(__name__)


class OnnxEncoder:
    """A tokenizer and an ONNX session whose output are text vectors.

    source: the encoder that `file` was exported from, or the folder that holds it; read by `save` alone.
    Batches of a call run side by side in as many threads as torch has, which is the share of the machine that Ray
    gives an actor or replica. Raises CorruptArtifactError when the file cannot be read.
    """

    def __init__(self, tokens: TextTokens, file: Path, config: EncoderConfig, source: TextEncoder | Path) -> None:
        self.tokens = tokens
        self.config = config
        self.file = file
        self._source = source
        self._session = _open(file)
        self._about: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, "encode") if self._threads > 1 else None

    @classmethod
    def of(cls, encoder: TextEncoder) -> OnnxEncoder:
        """The same encoder in ONNX, in `config.precision`. Raises ConfigError when it cannot be exported."""
        return cls(encoder.tokens, export(encoder), encoder.config, encoder)

    @property
    def vector_size(self) -> int:
        """T, the width of a text vector."""
        return int(self._session.get_outputs()[0].shape[1])

    def encode(
        self, texts: Sequence[str], on_progress: Callable[[int], object] | None = None, *, as_query: bool = False
    ) -> FloatArray:
        """Pooled vectors [N, T] float32, neither centred nor normalised; an empty text gives a zero row.

        `on_progress` is told how many texts were just done. `as_query` chooses the prompt. In fp32 the result of a
        text does not depend on its neighbours beyond float rounding; in int8 a batch shares the scale of its
        activations, so it does within the precision that the Bundle's manifest states.
        """
        vectors = np.zeros((len(texts), self.vector_size), np.float32)
        tokens, lengths = self.tokens.tokenize(texts, as_query=as_query)
        batches = list(token_budget_batches(lengths, self._budget(lengths)))
        results = self._map(lambda batch: self._run(tokens, lengths, batch), batches)
        for batch, pooled in zip(batches, results, strict=True):
            vectors[batch.numpy()] = pooled
            if on_progress is not None:
                on_progress(len(batch))
        return vectors

    def save(self, folder: Path) -> None:
        """Write what `TextEncoder.save` writes and, in int8, the ONNX file beside it, so that nothing is exported anew.

        The fp32 file is left out: it would double the size of a Bundle to save a second of the first start.
        """
        if isinstance(self._source, Path):
            TextEncoder.load(self._source, self.config).save(folder)
        else:
            self._source.save(folder)
        if self.config.precision == "int8":
            for part in self.file.parent.glob(f"{self.file.name}*"):
                shutil.copyfile(part, folder / part.name)

    def fingerprint(self) -> str:
        """Hash of all that decides a vector besides its final text; `TextEncoder`'s own in fp32."""
        return self._about[FINGERPRINT]

    def _budget(self, lengths: Tensor) -> int:
        """Padded tokens of a batch: small enough that every thread has work."""
        return min(self.config.max_batch_tokens, -(-int(lengths.sum()) // self._threads))

    def _map(self, call: Callable[[Tensor], FloatArray], batches: list[Tensor]) -> Iterable[FloatArray]:
        if self._pool is None or len(batches) < 2:
            return map(call, batches)
        return self._pool.map(call, batches)

    def _run(self, tokens: Tensor, lengths: Tensor, batch: Tensor) -> FloatArray:
        inputs = {"tokens": tokens[batch, : int(lengths[batch[0]])].numpy(), "lengths": lengths[batch].numpy()}
        vectors: FloatArray = self._session.run(None, inputs)[0]
        return vectors


AnyEncoder: TypeAlias = TextEncoder | OnnxEncoder


def load_encoder(path: Path, config: EncoderConfig, device: str = "cpu") -> AnyEncoder:
    """The encoder in a model folder, in the runtime that the config asks for.

    `auto` is ONNX Runtime on a CPU, or torch where the architecture cannot be exported, and torch on another
    `device`; int8 is ONNX Runtime on the CPU wherever it is. Raises ModelSourceError, ConfigError (settings this model
    or machine lacks, or `runtime: onnx` for what cannot be exported) and CorruptArtifactError.
    """
    if config.precision == "int8" and (path / INT8_FILE).is_file():
        kept = _open_kept(path, config)
        if kept is not None:
            return kept
    encoder = TextEncoder.load(path, config)
    if not _wants_onnx(config, device):
        return encoder if device == "cpu" else encoder.to(device)
    try:
        return OnnxEncoder(encoder.tokens, export(encoder), config, path)
    except ConfigError as error:
        if config.runtime == "onnx" or config.precision == "int8":
            raise
        logger.info("encoding by torch, which is slower on a CPU: %s", error)
        return encoder


def runs_on_cpu(config: EncoderConfig) -> bool:
    """Whether the config asks for ONNX Runtime, which is the CPU, on machines with a GPU too."""
    return config.precision == "int8" or config.runtime == "onnx"


def _wants_onnx(config: EncoderConfig, device: str) -> bool:
    return runs_on_cpu(config) or (config.runtime == "auto" and config.precision == "fp32" and device == "cpu")


def _open_kept(path: Path, config: EncoderConfig) -> OnnxEncoder | None:
    """The int8 file that a Bundle keeps beside the weights, unless it was made for other settings."""
    from transformers import AutoConfig, AutoTokenizer  # slow to import; scoring needs none of it

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model_config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelSourceError(
            f"{path} does not hold an encoder that can be loaded ({reason}): it needs config.json, a tokenizer and "
            "safetensors weights."
        ) from None
    kept = OnnxEncoder(TextTokens(tokenizer, config, model_config), path / INT8_FILE, config, path)
    return kept if kept._about.get(SETTINGS) == settings_of(config) else None


def _open(file: Path) -> Any:
    try:
        return open_session(file)
    except ConfigError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        reason = " ".join(str(error).split())[:200]
        raise CorruptArtifactError(
            f"{file} cannot be read ({reason}): restore it, or remove it to have it made again."
        ) from None
