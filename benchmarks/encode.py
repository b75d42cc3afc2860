"""Encoding speed beside sentence-transformers: the 1,682 MovieLens texts, and queries as a replica gets them.

    python benchmarks/encode.py [--quick]

Everything runs in one process on the same number of threads: first sentence-transformers at several batch sizes,
then all contenders in turn, several times over; the figures are medians of that, and ratios are of one run.
Needs llmrec_ray[bench]. Dated copies of the output belong into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from llmrec_ray import stages
from llmrec_ray.config import EncoderConfig, Recipe, load_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.model import resolve_model
from llmrec_ray.model.onnx import AnyEncoder, load_encoder
from llmrec_ray.recommend import Encoder
from llmrec_ray.signals import center
from llmrec_ray.types import FloatArray

BATCH_SIZES = (32, 64, 128, 256)
VARIANTS = {
    "torch fp32": {"runtime": "torch"},
    "onnx fp32": {"runtime": "onnx"},
    "onnx int8": {"runtime": "onnx", "precision": "int8"},
}
BASELINE = "sentence-transformers"
QUERIES = 200
QUERY_BATCH = 32
QUERY_WORDS = 4
LIBRARIES = ("sentence-transformers", "torch", "transformers", "onnxruntime", "onnx")

Job = Callable[[], object]


def main() -> None:
    """Print the tables, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="movielens-100k")
    parser.add_argument("--quick", action="store_true", help="3 repetitions instead of 9")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of every contender")
    arguments = parser.parse_args()
    if importlib.util.find_spec("sentence_transformers") is None:
        sys.exit("sentence-transformers is not installed: run pip install 'llmrec_ray[bench]' first.")
    torch.set_num_threads(arguments.threads)
    recipe = load_recipe(arguments.recipe)
    result = measure(recipe, 3 if arguments.quick else 9)
    print_tables(result)
    print(json.dumps(result))


def measure(recipe: Recipe, repetitions: int) -> dict[str, Any]:
    """Texts per second of every contender, the precision of int8, and milliseconds of a replica's calls."""
    texts = catalogue_texts(recipe)
    path = resolve_model(recipe.encoder.model)
    encoders, load_seconds = load_all(path, recipe.encoder)
    speeds, batch_sizes = catalogue_speeds(path, encoders, texts, repetitions)
    return {
        "hardware": f"{os.cpu_count()} cores, {processor()}", "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "texts": len(texts), "repetitions": repetitions, "batch_sizes": batch_sizes, "texts_per_s": speeds,
        "fp32_vs_sentence_transformers": speeds["onnx fp32"]["median"] / speeds[BASELINE]["median"],
        "int8_vs_sentence_transformers": speeds["onnx int8"]["median"] / speeds[BASELINE]["median"],
        **int8_cosines(encoders, texts), "load_seconds": load_seconds,
        "replica": replica_speeds(encoders, texts, repetitions),
    }


def catalogue_texts(recipe: Recipe) -> list[str]:
    """The items' texts that are not empty."""
    with tempfile.TemporaryDirectory(prefix="llmrec-bench-") as folder:
        recipe = recipe.model_copy(update={"workspace": folder})
        raw = stages.fetch_stage(recipe)
        dataset = Dataset(ingest(recipe, raw, stages.Workspace(folder), use_ray=False))
        return [text for text in dataset.item_texts if text]


def load_all(path: Path, config: EncoderConfig) -> tuple[dict[str, AnyEncoder], dict[str, dict[str, float]]]:
    """The contenders, and seconds of the first load (with the export) and of a later one."""
    encoders, seconds = {}, {}
    kept = os.environ.get("LLMREC_CACHE")
    with tempfile.TemporaryDirectory(prefix="llmrec-bench-") as folder:
        os.environ["LLMREC_CACHE"] = folder
        for name, settings in VARIANTS.items():
            chosen = EncoderConfig.model_validate(config.model_dump() | settings)
            first = timed(lambda chosen=chosen: load_encoder(path, chosen))
            encoders[name] = load_encoder(path, chosen)
            seconds[name] = {"first": first, "later": timed(lambda chosen=chosen: load_encoder(path, chosen))}
    os.environ.pop("LLMREC_CACHE") if kept is None else os.environ.update(LLMREC_CACHE=kept)
    return encoders, seconds


def catalogue_speeds(
    path: Path, encoders: dict[str, AnyEncoder], texts: list[str], repetitions: int
) -> tuple[dict[str, dict[str, float]], dict[int, float]]:
    """Texts per second by contender, and those of sentence-transformers by batch size."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu")

    def baseline(batch_size: int) -> Job:
        return lambda: model.encode(texts, batch_size=batch_size, show_progress_bar=False)

    tried = interleaved({str(size): baseline(size) for size in BATCH_SIZES}, max(1, repetitions // 3))
    batch_sizes = {int(size): len(texts) / statistics.median(seconds) for size, seconds in tried.items()}
    best = max(batch_sizes, key=lambda size: batch_sizes[size])
    jobs: dict[str, Job] = {f"{BASELINE}": baseline(best)}
    jobs |= {name: lambda encoder=encoder: encoder.encode(texts) for name, encoder in encoders.items()}
    measured = interleaved(jobs, repetitions)
    speeds = {name: spread([len(texts) / second for second in seconds]) for name, seconds in measured.items()}
    return speeds, batch_sizes


def int8_cosines(encoders: dict[str, AnyEncoder], texts: list[str]) -> dict[str, float]:
    """Of int8 with fp32 vectors, as the encoder gives them."""
    exact, rough = encoders["onnx fp32"].encode(texts), encoders["onnx int8"].encode(texts)
    cosines = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    return {"int8_cosine_mean": float(cosines.mean()), "int8_cosine_p5": float(np.percentile(cosines, 5))}


def replica_speeds(
    encoders: dict[str, AnyEncoder], texts: list[str], repetitions: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of `recommend.Encoder.encode`, the Encoder replica's class: one query, and a batch of queries."""
    queries = [" ".join(text.split()[:QUERY_WORDS]) for text in texts[:QUERIES]]
    middle = center(encoders["torch fp32"].encode(texts))
    replicas = {name: Encoder(held_texts(encoder, middle)) for name, encoder in encoders.items()}

    def calls(replica: Encoder, size: int) -> Job:
        batches = [[[query] for query in queries[start : start + size]] for start in range(0, len(queries), size)]
        return lambda: [replica.encode(batch, [""] * len(batch)) for batch in batches]

    table = {}
    for size in (1, QUERY_BATCH):
        measured = interleaved({name: calls(replica, size) for name, replica in replicas.items()}, repetitions)
        n_calls = -(-len(queries) // size)
        table[f"{size} queries" if size > 1 else "1 query"] = {
            name: spread([1000 * second / n_calls for second in seconds]) for name, seconds in measured.items()
        }
    return table


def held_texts(encoder: AnyEncoder, middle: FloatArray) -> Any:
    """What `recommend.Encoder` reads of a Bundle without people's descriptions."""
    return SimpleNamespace(center=middle, profiles=None, user_size=1, load_encoder=lambda device: encoder)


def interleaved(jobs: dict[str, Job], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each job, all jobs in turn, after one round that does not count."""
    for job in jobs.values():
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repetitions):
        for name, job in jobs.items():
            seconds[name].append(timed(job))
    return seconds


def timed(job: Job) -> float:
    """Seconds that a job took."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def processor() -> str:
    """The CPU's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def print_tables(result: dict[str, Any]) -> None:
    """Catalogue, replica, and what it cost to start."""
    print(f"{result['texts']} texts, {result['hardware']}, {result['threads']} threads, load {result['load_average']}, "
          f"{result['repetitions']} repetitions; " + ", ".join(f"{k} {v}" for k, v in result["libraries"].items()))
    sizes = ", ".join(f"{size}: {speed:.0f}" for size, speed in result["batch_sizes"].items())
    print(f"{BASELINE} by batch size, texts/s: {sizes}\n")
    base = result["texts_per_s"][BASELINE]["median"]
    print(f"{'catalogue, texts/s':<28}{'median':>9}{'low':>9}{'high':>9}{'ratio':>9}")
    for name, row in result["texts_per_s"].items():
        print(f"{name:<28}{row['median']:>9.0f}{row['low']:>9.0f}{row['high']:>9.0f}{row['median'] / base:>9.2f}")
    print(f"\nint8, cosine to fp32: mean {result['int8_cosine_mean']:.4f}, "
          f"5th percentile {result['int8_cosine_p5']:.4f}")
    for title, rows in result["replica"].items():
        print(f"\n{'replica, ' + title + ', ms':<28}{'median':>9}{'low':>9}{'high':>9}")
        for name, row in rows.items():
            print(f"{name:<28}{row['median']:>9.2f}{row['low']:>9.2f}{row['high']:>9.2f}")
    print(f"\n{'seconds to load':<28}{'first':>9}{'later':>9}")
    for name, row in result["load_seconds"].items():
        print(f"{name:<28}{row['first']:>9.2f}{row['later']:>9.2f}")


if __name__ == "__main__":
    main()
