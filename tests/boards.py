"""Data whose right answer is known: users and items have a colour, and users like exactly the items of their colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from llmrec_ray.config import Recipe, validate_recipe

COLOURS = ("black", "white")


def write_board(folder: Path, *, n_users: int = 40, n_items: int = 40, seed: int = 0) -> None:
    """`log.csv` (who, what, when) and `things.csv` (what, name, colour); ids are shuffled, times increase."""
    generator = np.random.default_rng(seed)
    rows = []
    for user in range(n_users):
        liked = np.arange(user % 2, n_items, 2)
        for step, item in enumerate(generator.permutation(liked)):
            rows.append({"who": f"u{user:03}", "what": f"i{item:03}", "when": 1_000_000 + 60 * step})
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).sample(fraction=1.0, shuffle=True, seed=seed).write_csv(folder / "log.csv")
    pl.DataFrame(
        [{"what": f"i{i:03}", "name": f"thing {i}", "colour": COLOURS[i % 2]} for i in range(n_items)]
    ).write_csv(folder / "things.csv")


def board_recipe(folder: Path, **sections: dict) -> Recipe:
    """A recipe over the files of `write_board`, small enough to train in seconds; sections are merged over it."""
    tree: dict = {
        "name": "board",
        "workspace": str(folder / "work"),
        "num_cpus": 4,
        "data": {
            "interactions": {
                "paths": [str(folder / "log.csv")],
                "format": "csv",
                "columns": {"user_id": "who", "item_id": "what", "timestamp": "when"},
            },
            "items": {
                "paths": [str(folder / "things.csv")],
                "format": "csv",
                "id": "what",
                "title": "name",
                "template": "{name}, painted {colour}",
                "attributes": ["colour"],
            },
        },
        "encoder": {"max_tokens": 16},
        "model": {"embedding_size": 16, "history_length": 10, "ncf_hidden": [16]},
        "train": {
            "epochs": 8, "patience": 8, "batch_size": 16, "negatives": 32, "warmup_steps": 4, "learning_rate": 0.01,
        },
        "retrieval": {"candidates": {"neural": 20, "item_item": 20, "popularity": 10}},
        "evaluate": {"baselines": ["popularity", "ease_recency"]},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return validate_recipe(tree, "the board recipe")
