"""Texts -> raw text vectors, by Ray Data actors or in this process, cached by content.

Vectors are cached in the workspace, per encoder fingerprint, under the hash of the final text; only texts
that no earlier run encoded are encoded. They are neither centred nor normalised, so that the cache serves any
catalogue. Shapes: N texts, T width of a text vector.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pyarrow import fs as pafs
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from llmrec_ray.artifact import Workspace, create_artifact, open_artifact
from llmrec_ray.config import EncoderConfig
from llmrec_ray.embed.guard import Guarded, unguarded
from llmrec_ray.model.encoder import TextEncoder
from llmrec_ray.model.export import fingerprint_of
from llmrec_ray.model.onnx import AnyEncoder, load_encoder, runs_on_cpu
from llmrec_ray.model.source import resolve_model
from llmrec_ray.types import FloatArray

__all__ = ["embed"]

logger = logging.getLogger(__name__)

BLOCK_TEXTS = 2048
KEYS, VECTORS = "keys.parquet", "vectors.safetensors"


def embed(
    texts: Sequence[str], config: EncoderConfig, workspace: Workspace, *, use_ray: bool = True
) -> FloatArray:
    """Raw vectors [N, T] float32, one per text; an empty text has a zero row.

    With `use_ray`, `config.num_actors` actors of Ray Data encode (each loads the model from this machine's
    cache or from its source); without, this process does. Raises ModelSourceError, and ConfigError for a runtime or
    a setting that this model or machine lacks.
    """
    encoder = TextEncoder.load(resolve_model(config.model), config)
    root = f"{workspace.root('vectors')}/{fingerprint_of(encoder)}"
    keys = [_key(text) if text else None for text in encoder.tokens.prompted(texts)]
    known = _cached(root)
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key and key not in known}
    if missing:
        cached = len({key for key in keys if key}) - len(missing)
        logger.info("encoding %d different texts, %d more are cached", len(missing), cached)
        new = list(missing.values())
        vectors = _with_ray(new, config) if use_ray else _here(new, load_encoder(resolve_model(config.model), config))
        _store(root, list(missing), vectors, config)
        known |= dict(zip(missing, vectors, strict=True))
    rows = [known[key] if key is not None else np.zeros(encoder.vector_size, np.float32) for key in keys]
    return np.stack(rows) if rows else np.zeros((0, encoder.vector_size), np.float32)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _here(texts: list[str], encoder: AnyEncoder) -> FloatArray:
    with tqdm(total=len(texts), desc="embed", unit="text") as bar:
        return encoder.encode(texts, on_progress=lambda done: bar.update(done))


def _with_ray(texts: list[str], config: EncoderConfig) -> FloatArray:
    """Spread over actors; blocks of neighbours in length keep padding low inside each actor's batches.

    On a cluster with GPUs every actor takes one, unless ONNX Runtime computes.
    """
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    order = np.argsort([len(text) for text in texts], kind="stable")
    table = [{"row": int(row), "text": texts[row]} for row in order]
    size = min(BLOCK_TEXTS, -(-len(texts) // (4 * config.num_actors)))
    encoded = ray.data.from_items(table).map_batches(
        Guarded, fn_constructor_args=(_EncodeBatch, config), batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=config.num_actors), num_cpus=1,
        num_gpus=1 if ray.cluster_resources().get("GPU", 0) and not runs_on_cpu(config) else None,
    )
    vectors: list[FloatArray] = [np.empty(0, np.float32)] * len(texts)
    with tqdm(total=len(texts), desc="embed", unit="text") as bar:
        for batch in unguarded(encoded.iter_batches(batch_size=None)):
            for row, vector in zip(batch["row"], batch["vector"], strict=True):
                vectors[int(row)] = vector
            bar.update(len(batch["row"]))
    return np.stack(vectors)


class _EncodeBatch:
    """What an actor of Ray Data runs: loads the encoder once, then turns batches of texts into vectors."""

    def __init__(self, config: EncoderConfig) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._encoder = load_encoder(resolve_model(config.model), config, device)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"row": batch["row"], "vector": self._encoder.encode(batch["text"].tolist())}


def _part(path: Path) -> dict[str, FloatArray]:
    """Key -> vector of one immutable part of the cache."""
    keys = pl.read_parquet(path / KEYS)["key"]
    return dict(zip(keys, load_file(path / VECTORS)["vectors"], strict=True))


def _cached(root: str) -> dict[str, FloatArray]:
    filesystem, base = pafs.FileSystem.from_uri(root)
    parts = filesystem.get_file_info(pafs.FileSelector(base, allow_not_found=True))
    names = sorted(part.base_name for part in parts if part.base_name.startswith("vectors-"))
    known: dict[str, FloatArray] = {}
    for name in names:
        known |= _part(open_artifact(f"{root}/{name}", "vectors").path)
    return known


def _store(root: str, keys: list[str], vectors: FloatArray, config: EncoderConfig) -> None:
    def write(folder: Path) -> None:
        pl.DataFrame({"key": keys}).write_parquet(folder / KEYS)
        save_file({"vectors": np.ascontiguousarray(vectors)}, folder / VECTORS)

    create_artifact(root, "vectors", write, config=config.model_dump(mode="json"))
