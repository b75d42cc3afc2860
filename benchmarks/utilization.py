"""Model FLOPs utilisation of full fine-tuning Qwen3-shaped encoders with random weights on one NVIDIA GPU.

The measured step is this package's own: its text source, its engine, bf16 autocast beside fp32 weights, fused AdamW,
compiled blocks. Model FLOPs are 6 N + 12 L H S per token (N weights without the embedding table, whose rows are only
looked up; L layers, H width of all query heads, S tokens of a text), as PaLM counts them (Chowdhery et al. 2022,
appendix B): recomputation for gradient checkpointing costs time and counts nothing.

Without a GPU nothing here runs but the arithmetic.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from llmrec_ray.config import Recipe, validate_recipe
from llmrec_ray.train.inputs import TrainingInputs, build_module
from llmrec_ray.train.sharding import make_engine
from llmrec_ray.train.workers import Workers
from llmrec_ray.types import Histories

__all__ = ["SHAPES", "Shape", "flops_per_token", "measure_mfu", "measure_shape", "peak_flops"]

PEAKS = (
    ("B200", 2250e12), ("H200", 989e12), ("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100", 989e12),
    ("A100", 312e12), ("L40S", 362e12), ("A10G", 70e12), ("L4", 121e12), ("RTX 4090", 165e12),
)
"""Dense bf16 FLOPs per second by part of the GPU's name, from NVIDIA's data sheets; the first match counts."""

WORDS = tuple(f"w{number}" for number in range(1000))
N_ITEMS, N_USERS, EVENTS, WINDOWS = 512, 64, 8, 2
WARM_UP, MEASURED = 5, 20


@dataclass(frozen=True)
class Shape:
    """An encoder's sizes, and the texts of one step: how many, and how many tokens each."""

    hidden_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary: int
    items: int
    tokens: int
    to_reach: float
    checkpointing: bool = False


SHAPES = {
    "0.6B": Shape(1024, 28, 16, 8, 128, 3072, 151_669, items=64, tokens=512, to_reach=0.45),
    "4B": Shape(2560, 36, 32, 8, 128, 9728, 151_665, items=32, tokens=512, to_reach=0.50, checkpointing=True),
}


def measure_mfu(folder: Path) -> dict[str, dict[str, float]] | None:
    """Utilisation by shape, None without a GPU whose peak is known."""
    if not torch.cuda.is_available():
        return None
    peak = peak_flops(torch.cuda.get_device_name())
    if peak is None:
        return None
    return {name: measure_shape(shape, folder / name, torch.device("cuda"), peak) for name, shape in SHAPES.items()}


def measure_shape(shape: Shape, folder: Path, device: torch.device, peak: float) -> dict[str, float]:
    """Median step: seconds, tokens per second, utilisation of `peak` FLOPs per second, and the memory it took."""
    recipe = _recipe(shape, _write_encoder(shape, folder), gpu=device.type == "cuda")
    inputs = _inputs(shape)
    windows = inputs.windows(recipe)
    module = build_module(recipe, inputs, windows).to(device).train()
    engine = make_engine(module, recipe, Workers(device=device), None)
    seconds, tokens = [], []
    for step in range(WARM_UP + MEASURED):
        [batch] = next(windows.epoch(step, seed=0, batch_size=recipe.train.batch_size, negatives=recipe.train.negatives,
                                     with_step_rows=True))
        _wait(device)
        started = time.perf_counter()
        engine.step([batch.to(device)], 1.0)
        _wait(device)
        seconds.append(time.perf_counter() - started)
        tokens.append(len(batch.rows) * shape.tokens)
    rates = [count / second for count, second in zip(tokens[WARM_UP:], seconds[WARM_UP:], strict=True)]
    rate = statistics.median(rates)
    flops = flops_per_token(module.text_source.tuned.backbone, shape)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return {"mfu": rate * flops / peak, "to_reach": shape.to_reach, "tokens_per_s": rate,
            "step_s": statistics.median(seconds[WARM_UP:]), "tokens_per_step": statistics.median(tokens[WARM_UP:]),
            "peak_memory_gib": memory}


def flops_per_token(backbone: nn.Module, shape: Shape) -> float:
    """Forward and backward, of the model alone."""
    looked_up = backbone.get_input_embeddings().weight.numel()
    weights = sum(parameter.numel() for parameter in backbone.parameters()) - looked_up
    return 6.0 * weights + 12.0 * shape.layers * shape.heads * shape.head_dim * shape.tokens


def peak_flops(gpu: str) -> float | None:
    """Dense bf16 FLOPs per second of a GPU by its name, None when the table lacks it."""
    return next((peak for part, peak in PEAKS if part in gpu), None)


def _write_encoder(shape: Shape, folder: Path) -> Path:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim, max_position_embeddings=max(2048, shape.tokens), use_cache=False,
    )
    Qwen3Model(config).to(torch.bfloat16).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return folder


def _recipe(shape: Shape, encoder: Path, *, gpu: bool) -> Recipe:
    table = {"paths": ["unused"], "id": "item", "template": "{text}"}
    return validate_recipe({
        "name": "mfu",
        "data": {"interactions": {"paths": ["unused"]}, "items": table},
        "encoder": {
            "model": str(encoder), "tuning": "full", "pooling": "last", "max_tokens": shape.tokens,
            "max_batch_tokens": shape.items * shape.tokens, "gradient_checkpointing": shape.checkpointing,
        },
        "model": {"history_length": EVENTS, "user_embedding": False},
        "train": {
            "num_workers": 1, "sharding": "none", "use_gpu": gpu, "batch_size": WINDOWS,
            "negatives": shape.items - WINDOWS * EVENTS,
            "precision": "bf16" if gpu else "fp32", "compile": gpu,
        },
    }, "the benchmark")


def _inputs(shape: Shape) -> TrainingInputs:
    """Random events over items whose texts all have the same number of tokens."""
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, shape.tokens)) for _ in range(N_ITEMS)]
    vectors = generator.normal(size=(N_ITEMS, shape.hidden_size)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pasts = [generator.choice(N_ITEMS, EVENTS, replace=False) for _ in range(N_USERS)]
    return TrainingInputs(
        Histories.from_lists(pasts, list(range(N_USERS))), np.zeros(N_USERS, np.int64), N_ITEMS, text_vectors=vectors,
        text_center=np.zeros(shape.hidden_size, np.float32), item_texts=texts,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
