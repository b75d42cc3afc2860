"""Nearest-neighbour search at a million items: exact and HNSW, recall, throughput, memory, build time, growth.

    python benchmarks/retrieve.py [--quick] [--threads N] [--ef-search EF ...]

Item vectors are a mixture of clusters of unequal sizes, as training makes them; queries are drawn from the same mixture
and are no items. The yardstick is FAISS's flat index asked one query at a time, on the
same threads. Every contender answers the same held-out queries, in turn, several times over; figures are medians.
Dated copies of the output belong into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from llmrec_ray.config import IndexConfig
from llmrec_ray.index.search import ExactSearch, HnswSearch

SIZES = (10_000, 100_000, 1_000_000)
QUICK_SIZES = (10_000, 100_000)
DIMENSIONS = 128
ITEMS_PER_CLUSTER = 500
SPREAD = 0.5
"""Deviation of an item's vector around the centre of its cluster, whose own deviation is 1."""
QUERIES = 640
BATCH = 64
K = 100
GOAL = 0.99
REPETITIONS = 3
BREADTHS = (100, 128, 160, 200, 220, 240, 300)

Vectors = NDArray[np.float32]
Search = Callable[[Vectors], NDArray[np.int64]]


def main() -> None:
    """Print the table, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 100,000 items instead of a million")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of every contender")
    parser.add_argument("--neighbors", type=int, default=32, help="index.hnsw_neighbors")
    parser.add_argument("--ef-construction", type=int, default=200, help="index.ef_construction")
    parser.add_argument("--ef-search", type=int, nargs="+", default=list(BREADTHS), help="those to try")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    sizes = QUICK_SIZES if arguments.quick else SIZES
    config = IndexConfig(
        kind="hnsw", hnsw_neighbors=arguments.neighbors, ef_construction=arguments.ef_construction,
        build_threads=arguments.threads,
    )
    rows = []
    for size in sizes:
        rows.append(measure(size, config, arguments.ef_search))
        print_table(rows[-1])
    print(json.dumps(summary(rows, config, arguments.threads)))


def measure(n_items: int, config: IndexConfig, breadths: Sequence[int]) -> dict[str, Any]:
    """Build at one size, then recall and speed of every contender."""
    items, queries = trained_like(n_items)
    start = time.perf_counter()
    graph = HnswSearch.build(items, config)
    build_s = time.perf_counter() - start
    graph_bytes = _saved_bytes(graph)
    truth, _ = ExactSearch(items).search(queries, K)
    flat = faiss.IndexFlatIP(DIMENSIONS)
    flat.add(items)
    searches: dict[str, Search] = {
        "FAISS flat": lambda users: flat.search(users, K)[1],
        "exact": lambda users: ExactSearch(items).search(users, K)[0],
    }
    tried = {breadth: _recall(_with_breadth(graph, breadth)(queries), truth) for breadth in breadths}
    chosen = min((breadth for breadth, recall in tried.items() if recall >= GOAL), default=max(breadths))
    searches["HNSW"] = _with_breadth(graph, chosen)
    return {
        "items": n_items, "build_s": round(build_s, 1), "graph_bytes": graph_bytes, "vector_bytes": items.nbytes,
        "recall_by_ef_search": {str(breadth): round(recall, 4) for breadth, recall in tried.items()},
        "ef_search": chosen, "recall": round(tried[chosen], 4), "ms_per_query": speeds(searches, queries),
    }


def trained_like(n_items: int, seed: int = 0) -> tuple[Vectors, Vectors]:
    """Item vectors [N, D] and held-out queries [Q, D]: a mixture of clusters whose sizes fall like 1 / sqrt(rank)."""
    generator, clusters = np.random.default_rng(seed), n_items // ITEMS_PER_CLUSTER
    centres = generator.standard_normal((clusters, DIMENSIONS), np.float32)
    sizes = 1.0 / np.sqrt(np.arange(1, clusters + 1))
    members = generator.choice(clusters, n_items + QUERIES, p=sizes / sizes.sum())
    vectors = centres[members]
    vectors += np.float32(SPREAD) * generator.standard_normal(vectors.shape, np.float32)
    vectors /= np.float32(np.sqrt(DIMENSIONS))
    return vectors[:n_items], vectors[n_items:]


def speeds(searches: dict[str, Search], queries: Vectors) -> dict[str, float]:
    """Milliseconds per query, one at a time and in batches: contenders in turn, medians over repetitions."""
    times: dict[str, list[float]] = {}
    for _ in range(REPETITIONS):
        for name, search in searches.items():
            times.setdefault(f"{name}, one", []).append(_ms_per_query(search, queries[:BATCH], 1))
            times.setdefault(f"{name}, batch of {BATCH}", []).append(_ms_per_query(search, queries, BATCH))
    return {name: round(statistics.median(measured), 4) for name, measured in times.items()}


def summary(rows: Sequence[dict[str, Any]], config: IndexConfig, threads: int) -> dict[str, Any]:
    """The JSON line; ratios are of the largest size, growth is that of one query from the smallest to it."""
    first, last = rows[0], rows[-1]
    yardstick = last["ms_per_query"]["FAISS flat, one"]
    growth = "1m" if last["items"] == SIZES[-1] else "100k"

    def grown(name: str) -> float:
        return round(last["ms_per_query"][name] / first["ms_per_query"][name], 2)

    return {
        "recall@100": last["recall"],
        "throughput_vs_exact": round(yardstick / last["ms_per_query"]["HNSW, one"], 1),
        "throughput_vs_exact_in_batches": round(yardstick / last["ms_per_query"][f"HNSW, batch of {BATCH}"], 1),
        f"cost_growth_10k_to_{growth}": grown("HNSW, one"),
        f"cost_growth_10k_to_{growth}_exact": grown("exact, one"),
        "hardware": f"{os.cpu_count()} cores, {_processor()}", "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        "libraries": {name: metadata.version(name) for name in ("faiss-cpu", "numpy")},
        "config": config.model_dump(include={"hnsw_neighbors", "ef_construction", "build_threads"}),
        "sizes": list(rows),
    }


def print_table(row: dict[str, Any]) -> None:
    """One size."""
    yardstick = row["ms_per_query"]["FAISS flat, one"]
    print(f"\n{row['items']:,} × {DIMENSIONS}: recall@{K} {row['recall']} at ef_search {row['ef_search']} "
          f"{row['recall_by_ef_search']}, built in {row['build_s']} s, graph {row['graph_bytes'] / 1e6:.0f} MB beside "
          f"{row['vector_bytes'] / 1e6:.0f} MB of vectors", flush=True)
    print(f"{'':28}{'ms/query':>10}{'queries/s':>12}{'ratio':>8}")
    for name, ms in row["ms_per_query"].items():
        print(f"{name:28}{ms:>10.3f}{1000 / ms:>12,.0f}{yardstick / ms:>8.1f}")


def _with_breadth(graph: HnswSearch, breadth: int) -> Search:
    searcher = graph.with_breadth(breadth)
    return lambda users: searcher.search(users, K)[0]


def _recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    return float(np.mean([len(np.intersect1d(one, other)) for one, other in zip(found, truth, strict=True)]) / K)


def _ms_per_query(search: Search, queries: Vectors, size: int) -> float:
    batches = [queries[start : start + size] for start in range(0, len(queries), size)]
    search(batches[0])
    start = time.perf_counter()
    for batch in batches:
        search(batch)
    return (time.perf_counter() - start) * 1000 / len(queries)


def _saved_bytes(graph: HnswSearch) -> int:
    with tempfile.TemporaryDirectory() as folder:
        graph.save(Path(folder) / "hnsw.faiss")
        return (Path(folder) / "hnsw.faiss").stat().st_size


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
