"""Texts -> what the first trained block of an encoder reads for them, by Ray Data actors or in this process.

Computed once per training run and held in memory: lower blocks then never run in a step. Shapes: N texts, H width of
a token's state.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from llmrec_ray.config import EncoderConfig
from llmrec_ray.embed.guard import Guarded, unguarded
from llmrec_ray.model.encoder import TextEncoder
from llmrec_ray.model.source import resolve_model
from llmrec_ray.model.states import TextStates, read_states
from llmrec_ray.model.tokens import token_budget_batches
from llmrec_ray.model.tuning import first_of_top_layers
from llmrec_ray.types import FloatArray

__all__ = ["lower_states"]

logger = logging.getLogger(__name__)

BLOCK_BYTES = 64_000_000
STATE_BYTES = 4


def lower_states(texts: Sequence[str], config: EncoderConfig, *, use_ray: bool = True) -> TextStates | None:
    """States of all texts, in their order; an empty text has none.

    None when there is nothing to save (`encoder.tuning` is not top_layers, or trains every block) or when they
    would need more than `encoder.cached_states_gb`. Raises ModelSourceError, and ConfigError for too many layers.
    """
    if config.tuning != "top_layers":
        return None
    reader = _Reader(config)
    lengths = reader.encoder.tokens.tokenize(texts)[1].numpy()
    size_gb = int(lengths.sum()) * reader.encoder.vector_size * STATE_BYTES / 1e9
    if reader.block == 0 or size_gb > config.cached_states_gb:
        logger.info("states below the trained layers are not kept: %d frozen blocks, %.3g GB (encoder.cached_states_gb "
                    "is %.3g)", reader.block, size_gb, config.cached_states_gb)
        return None
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values = np.empty((starts[-1], reader.encoder.vector_size), np.float32)
    read = _with_ray(texts, lengths, config, reader.encoder.vector_size) if use_ray else reader.read(texts)
    with tqdm(total=int((lengths > 0).sum()), desc="states", unit="text") as bar:
        for row, states in read:
            values[starts[row] : starts[row + 1]] = states
            bar.update()
    return TextStates(values, starts)


class _Reader:
    """An encoder and the number of its first trained block."""

    def __init__(self, config: EncoderConfig) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.encoder = TextEncoder.load(resolve_model(config.model), config, for_training=True).to(device)
        self.block = first_of_top_layers(self.encoder.backbone, config.top_layers)

    def _autocast(self) -> torch.autocast:
        """FlashAttention computes in bf16 only."""
        flash = self.encoder.config.attention == "flash_attention_2"
        return torch.autocast(self.encoder.device.type, torch.bfloat16, enabled=flash)

    def read(self, texts: Sequence[str]) -> Iterator[tuple[int, FloatArray]]:
        """Place of a text, and its states [tokens, H] float32, for every text that is not empty."""
        tokens, lengths = self.encoder.tokens.tokenize(texts)
        for batch in token_budget_batches(lengths, self.encoder.config.max_batch_tokens):
            parts = tokens[batch, : int(lengths[batch].max())], lengths[batch]
            with self._autocast():
                states = read_states(
                    self.encoder.backbone, self.block, *(part.to(self.encoder.device) for part in parts)
                )
            for place, own in zip(batch.tolist(), states.float().cpu(), strict=True):
                yield place, own[: int(lengths[place])].numpy()


def _with_ray(
    texts: Sequence[str], lengths: NDArray[np.int64], config: EncoderConfig, width: int
) -> Iterator[tuple[int, FloatArray]]:
    """Blocks of neighbours in length, and small: states are much larger than texts. A GPU per actor if any."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    filled = [int(row) for row in np.argsort(lengths, kind="stable") if lengths[row]]
    size = max(1, BLOCK_BYTES // (STATE_BYTES * width * int(lengths.max(initial=1))))
    size = min(size, -(-len(filled) // (4 * config.num_actors)))
    read = ray.data.from_items([{"row": row, "text": texts[row]} for row in filled]).map_batches(
        Guarded, fn_constructor_args=(_ReadBatch, config), batch_size=max(size, 1),
        compute=ray.data.ActorPoolStrategy(size=config.num_actors), num_cpus=1,
        num_gpus=1 if ray.cluster_resources().get("GPU", 0) else None,
    )
    for batch in unguarded(read.iter_batches(batch_size=None)):
        for row, states in zip(batch["row"], batch["states"], strict=True):
            yield int(row), np.frombuffer(states, np.float32).reshape(-1, width)


class _ReadBatch:
    """What an actor of Ray Data runs: loads the encoder once, then turns batches of texts into states as bytes."""

    def __init__(self, config: EncoderConfig) -> None:
        self._reader = _Reader(config)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        states = dict(self._reader.read(batch["text"].tolist()))
        return {"row": batch["row"], "states": [states[place].tobytes() for place in range(len(batch["row"]))]}
