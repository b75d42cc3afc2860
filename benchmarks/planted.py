"""A data set whose right answer is a relation in the texts: who did it, not to whom it was done.

Every item is one sentence about two people, half of them active and half passive ("The nurse warned the pilot",
"The pilot was warned by the nurse"). A user likes exactly the items with one *doer*. Both people occur in either
place and both voices, so neither the words of a text nor their order tells the doer, only the grammar: mean-pooled
vectors of an untuned encoder name both people and hardly say which of them acted, and training can put it there.

A user's history holds every warm item of the liked doer; the validation and the test item occur in nobody's train
events. The usual leave-one-out split so ranks items nobody has seen, by their texts alone.

Written as raw files for the ordinary path from ingest to the endpoint. It knows no encoder and no metric.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_ray.config import Recipe, validate_recipe

__all__ = ["LARGE", "MODES", "SMALL", "Planted", "PlantedSize", "planted_recipe", "sentence", "write_planted"]

PEOPLE = (
    "nurse", "pilot", "baker", "judge", "farmer", "sailor", "teacher", "painter", "doctor", "lawyer", "singer", "miner",
    "butcher", "soldier", "driver", "waiter", "gardener", "plumber", "dancer", "banker", "priest", "hunter", "writer",
    "cleaner",
)
VERBS = ("thanked", "warned", "hired", "praised", "blamed", "visited", "helped", "cheated", "saved", "invited")
PLACES = ("on Monday", "last night", "in spring", "at noon", "in Rome", "by the sea", "after lunch", "on the train")
VOICES = ("active", "passive")

MODES: dict[str, dict[str, dict[str, Any]]] = {
    "frozen": {"train": {"epochs": 14, "learning_rate": 4e-3}},
    "top_layers": {"encoder": {"learning_rate": 3e-4}, "train": {"epochs": 10, "learning_rate": 4e-3}},
    "lora": {"encoder": {"learning_rate": 2e-3}, "train": {"epochs": 10, "learning_rate": 4e-3}},
    "full": {"encoder": {"learning_rate": 1e-4}, "train": {"epochs": 10, "learning_rate": 4e-3}},
}
"""Rates and epochs of each `encoder.tuning` for all-MiniLM-L6-v2, chosen on the validation split."""


@dataclass(frozen=True)
class PlantedSize:
    """Doers, and for each of them warm items, items for validation, as many for test, and users."""

    people: int
    warm: int
    held_out: int
    fans: int
    verbs: int = len(VERBS)
    places: int = len(PLACES)

    @property
    def items(self) -> int:
        """How many items there are."""
        return self.people * (self.warm + 2 * self.held_out)


SMALL = PlantedSize(people=12, warm=12, held_out=3, fans=3)
"""Seconds of training for a real small encoder."""
LARGE = PlantedSize(people=24, warm=16, held_out=3, fans=3)
"""Minutes on two cores for all-MiniLM-L6-v2."""


@dataclass(frozen=True)
class Planted:
    """Where the files are, and the answer: the doer of every item, the doer every user likes, by outside ids."""

    folder: Path
    doers: dict[str, str]
    likes: dict[str, str]


def write_planted(folder: Path, size: PlantedSize, *, seed: int = 0) -> Planted:
    """`log.csv` (who, what, when) and `items.csv` (what, sentence); the same seed gives the same files."""
    generator = np.random.default_rng(seed)
    items: list[dict[str, str]] = []
    events: list[dict[str, Any]] = []
    doers, likes = {}, {}
    ids_of = np.array_split([f"i{item:04}" for item in generator.permutation(size.items)], size.people)
    for number, (doer, ids) in enumerate(zip(PEOPLE, ids_of, strict=False)):
        texts = _sentences_of(doer, size, generator)
        items += [{"what": item, "sentence": text} for item, text in zip(ids, texts, strict=True)]
        doers |= dict.fromkeys(ids, doer)
        for fan in range(size.fans):
            user = f"u{number:02}{fan:02}"
            likes[user] = doer
            events += _history(user, fan, ids, size, generator)
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(events).sample(fraction=1.0, shuffle=True, seed=seed).write_csv(folder / "log.csv")
    pl.DataFrame(items).sample(fraction=1.0, shuffle=True, seed=seed).write_csv(folder / "items.csv")
    return Planted(folder, doers, likes)


def planted_recipe(folder: Path, mode: str, **sections: dict[str, Any]) -> Recipe:
    """A recipe over the files of `write_planted` that ranks by the learned model alone.

    `mode` is `encoder.tuning`, with its rates from `MODES`; sections are merged over all that.
    """
    tree: dict[str, Any] = {
        "name": "planted",
        "workspace": str(folder / "work"),
        "num_cpus": 4,
        "data": {
            "interactions": {
                "paths": [str(folder / "log.csv")], "format": "csv",
                "columns": {"user_id": "who", "item_id": "what", "timestamp": "when"},
            },
            "items": {
                "paths": [str(folder / "items.csv")], "format": "csv", "id": "what", "title": "sentence",
                "template": "{sentence}",
            },
        },
        "encoder": {"max_tokens": 24, "tuning": mode},
        # Items nobody has seen have no id vector that could help, and users like all items of one kind alike.
        "model": {"embedding_size": 32, "history_length": 8, "user_embedding": False, "ncf_hidden": [16]},
        "fusion": {"item_vector": "text", "mode": "feature"},
        "train": {"batch_size": 8, "negatives": 64, "warmup_steps": 10},
        "retrieval": {"candidates": {"neural": 100}},
        "evaluate": {"baselines": ["popularity"]},
    }
    for name in (*MODES[mode], *sections):
        tree[name] = {**tree.get(name, {}), **MODES[mode].get(name, {}), **sections.get(name, {})}
    return validate_recipe(tree, "the planted recipe")


def sentence(doer: str, verb: str, other: str, place: str, voice: str) -> str:
    """One item's text: `doer` did it to `other`."""
    if voice == "active":
        return f"The {doer} {verb} the {other} {place}."
    return f"The {other} was {verb} by the {doer} {place}."


def _sentences_of(doer: str, size: PlantedSize, generator: np.random.Generator) -> list[str]:
    """Distinct sentences: the warm ones, then those for validation, then those for test; voices alternate."""
    others = [person for person in PEOPLE[: size.people] if person != doer]
    parts = list(itertools.product(VERBS[: size.verbs], others, PLACES[: size.places]))
    wanted = size.warm + 2 * size.held_out
    chosen = generator.choice(len(parts), wanted, replace=False)
    return [
        sentence(doer, *parts[part], voice=VOICES[place % len(VOICES)]) for place, part in enumerate(chosen)
    ]


def _history(
    user: str, fan: int, ids: NDArray[np.str_], size: PlantedSize, generator: np.random.Generator
) -> list[dict[str, Any]]:
    """Every warm item in random order, then this fan's validation item, then the test item."""
    warm = [ids[place] for place in generator.permutation(size.warm)]
    held_out = size.warm + fan % size.held_out
    past = [*warm, ids[held_out], ids[held_out + size.held_out]]
    return [{"who": user, "what": item, "when": 1_000_000 + 60 * step} for step, item in enumerate(past)]
