"""Texts -> raw text vectors, by Ray Data actors or in this process, cached by content.

Vectors are cached in the workspace, per encoder fingerprint, under the hash of the final text; only texts
that no earlier run encoded are encoded. Beside each stands how many tokens the text has. Vectors are neither centred
nor normalised, so that the cache serves any catalogue. Shapes: N texts, T width of a text vector.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from llmrec_ray.embed.report import TokenReport
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
    texts: Sequence[str], config: EncoderConfig, workspace: Workspace, *, ids: Sequence[str] | None = None,
    use_ray: bool = True,
) -> FloatArray:
    """Raw vectors [N, T] float32, one per text; an empty text has a zero row.

    With `ids`, one per text, a line of the log and the manifest of what is stored say how many texts are cut. With
    `use_ray`, `config.num_actors` actors of Ray Data encode (each loads the model from this machine's cache or from its
    source); without, this process does. Raises ModelSourceError, and ConfigError for a runtime or a setting that this
    model or machine lacks.
    """
    encoder = TextEncoder.load(resolve_model(config.model), config)
    root = f"{workspace.root('vectors')}/{fingerprint_of(encoder)}"
    keys = [_key(text) if text else None for text in encoder.tokens.prompted(texts)]
    cache = _cached(root)
    by_key = {key: text for key, text in zip(keys, texts, strict=True) if key}
    _count(by_key, cache, encoder)
    report = None if ids is None else _report(keys, ids, cache, encoder)
    missing = {key: text for key, text in by_key.items() if key not in cache.vectors}
    if missing:
        logger.info("encoding %d different texts, %d more are cached", len(missing), len(by_key) - len(missing))
        new = list(missing.values())
        vectors = _with_ray(new, config) if use_ray else _here(new, load_encoder(resolve_model(config.model), config))
        cache.vectors.update(zip(missing, vectors, strict=True))
        _store(root, list(missing), cache, config, report)
    rows = [np.zeros(encoder.vector_size, np.float32) if key is None else cache.vectors[key] for key in keys]
    return np.stack(rows) if rows else np.zeros((0, encoder.vector_size), np.float32)


@dataclass(frozen=True)
class _Cache:
    """By a text's key, its raw vector [T], and how many tokens it has where that was counted."""

    vectors: dict[str, FloatArray] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _count(by_key: Mapping[str, str], cache: _Cache, encoder: TextEncoder) -> None:
    """Add the tokens of texts that nobody has counted."""
    new = {key: text for key, text in by_key.items() if key not in cache.tokens}
    cache.tokens.update(zip(new, encoder.tokens.count(list(new.values())).tolist(), strict=True))


def _report(keys: Sequence[str | None], ids: Sequence[str], cache: _Cache, encoder: TextEncoder) -> TokenReport:
    counts = np.array([0 if key is None else cache.tokens[key] for key in keys], np.int64)
    report = TokenReport.of(counts, ids, encoder.tokens.max_tokens)
    logger.info("%s", report)
    return report


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


def _cached(root: str) -> _Cache:
    """All parts of the cache; older ones do not say how many tokens a text has."""
    filesystem, base = pafs.FileSystem.from_uri(root)
    parts = filesystem.get_file_info(pafs.FileSelector(base, allow_not_found=True))
    cache = _Cache()
    for name in sorted(part.base_name for part in parts if part.base_name.startswith("vectors-")):
        path = open_artifact(f"{root}/{name}", "vectors").path
        kept = pl.read_parquet(path / KEYS)
        cache.vectors.update(zip(kept["key"], load_file(path / VECTORS)["vectors"], strict=True))
        if "tokens" in kept.columns:
            cache.tokens.update(kept.select("key", "tokens").iter_rows())
    return cache


def _store(root: str, keys: list[str], cache: _Cache, config: EncoderConfig, report: TokenReport | None) -> None:
    def write(folder: Path) -> None:
        tokens = pl.Series("tokens", [cache.tokens[key] for key in keys], dtype=pl.Int32)
        pl.DataFrame([pl.Series("key", keys), tokens]).write_parquet(folder / KEYS)
        save_file({"vectors": np.stack([cache.vectors[key] for key in keys])}, folder / VECTORS)

    metrics = {} if report is None else {"tokens": report.to_dict()}
    create_artifact(root, "vectors", write, config=config.model_dump(mode="json"), metrics=metrics)
