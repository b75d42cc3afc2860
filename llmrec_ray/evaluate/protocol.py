"""From a Dataset to what is to be ranked: whose target, with which history, among which items, under which protocol.

P  (leave_one_out): a user's last event is the test item, the one before it the validation item, the rest is train.
C2 (cold_items): the same for the events of the items that are not held out; `cold` ranks the held-out ones.
G  (global_time): a user's first event after one moment is the test item.

Every event is a positive. Models learn from train only. The target is ranked among all items that occur anywhere,
without the user's history and, in C2, without the user's held-out items; its rank is 1 + number scored higher + half
the ties. Sampled candidates replace "all items" by a few drawn at random: cheap, and not comparable with the full
ranking, whose order of systems they may turn round (Krichene and Rendle 2020).

Shapes: U = targets, N = items, S = sampled negatives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from llmrec_ray.data import Dataset
from llmrec_ray.types import Histories, IntArray

__all__ = ["Protocol", "Task", "group_by_user", "held_out_items"]

CODES = {"leave_one_out": "P", "cold_items": "C2", "global_time": "G"}
HASH_LENGTH = 12
MANY = 4  # so many times more items than wanted or met: drawing again costs less than listing them all


@dataclass(frozen=True)
class Protocol:
    """How targets were held out, and what they are ranked among.

    settings: `Dataset.split_settings`. negatives: how many candidates are drawn per user with `seed`; None = all items.
    """

    settings: dict[str, Any]
    negatives: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """P, C2 or G, followed by -SAMPLED when candidates are drawn."""
        return CODES[self.settings["split"]] + ("" if self.negatives is None else "-SAMPLED")

    def __str__(self) -> str:
        held_out = {
            "P": "last event of each user held out for test, ranked among {among} without the user's earlier ones; fit "
                 "on train, history includes the validation item",
            "C2": "items of folds {cold_fold} and 1 of 10 held out with all their events; of each user's other events "
                  "the last held out for test, ranked among {among} without the user's earlier and held-out ones; fit "
                  "on train, history includes the validation item",
            "G": "newest {test:g} of all events held out for test, each user's first of them ranked among {among} "
                 "without the user's earlier ones; fit on train, the {validation:g} before are validation and part of "
                 "the history",
        }[CODES[self.settings["split"]]]
        validation, test = self.settings.get("time_shares", (0, 0))
        cold_fold = self.settings.get("cold_fold")
        text = held_out.format(among=self._among, cold_fold=cold_fold, validation=validation, test=test)
        return f"{self.name}: {text}"

    @property
    def _among(self) -> str:
        if self.negatives is None:
            return "all items"
        return (
            f"{self.negatives} SAMPLED items that the user never met (seed {self.seed}; not comparable with full "
            "ranking)"
        )

    def hash(self, dataset: Dataset) -> str:
        """12 hexadecimal digits over these settings, the test targets by outside ids, and the candidate catalogue."""
        digest = hashlib.sha256(json.dumps([self.settings, self.negatives, self._drawn_with]).encode())
        for pairs in (_target_pairs(dataset), dataset.cold_pairs("test")):
            users, items = dataset.users.ids(pairs[0]), dataset.items.ids(pairs[1])
            digest.update(json.dumps(sorted(zip(users, items, strict=True))).encode())
        digest.update(json.dumps(sorted(dataset.items)).encode())
        return digest.hexdigest()[:HASH_LENGTH]

    @property
    def _drawn_with(self) -> int | None:
        return None if self.negatives is None else self.seed


@dataclass(frozen=True)
class Task:
    """What is to be ranked, for U users who have a target.

    histories: what is known of them. targets: [U] item rows. held_out: items per user that are neither history nor
    candidates, or None. negatives: [U, S] the only other candidates, -1 where a user has fewer; None = all items.
    """

    histories: Histories
    targets: IntArray
    n_items: int
    held_out: Histories | None = None
    negatives: IntArray | None = None

    @classmethod
    def of(
        cls, dataset: Dataset, split: Literal["validation", "test"] = "test", *, negatives: int | None = None,
        seed: int = 0,
    ) -> Self:
        """One split of a Dataset, with `negatives` drawn per user, or all items as candidates when None."""
        targets, held_out = dataset.targets(split), held_out_items(dataset)
        users, n_items = np.flatnonzero(targets >= 0), len(dataset.items)
        drawn = None if negatives is None else _draw(dataset.histories("test").select(users), n_items, negatives, seed)
        return cls(
            dataset.histories("train" if split == "validation" else "validation").select(users), targets[users],
            n_items, held_out.select(users) if len(held_out.item_rows) else None, drawn,
        )

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def n_candidates(self) -> IntArray:
        """Items that a user's target is ranked among, itself included, [U] int64."""
        if self.negatives is not None:
            return np.asarray(1 + (self.negatives >= 0).sum(axis=1), np.int64)
        barred = [self.histories] if self.held_out is None else [self.histories, self.held_out]
        keys = np.unique(np.concatenate([_cells(each, self.n_items) for each in barred]))
        return np.asarray(self.n_items - np.bincount(keys // self.n_items, minlength=len(self)), np.int64)

    def piece(self, start: int, stop: int) -> Task:
        """The same task for the users at these places."""
        part = slice(start, stop)
        return Task(
            self.histories.select(part), self.targets[part], self.n_items,
            None if self.held_out is None else self.held_out.select(part),
            None if self.negatives is None else self.negatives[part],
        )

    def batches(self, size: int) -> Iterator[Task]:
        """The same task in pieces of at most `size` users."""
        return (self.piece(start, start + size) for start in range(0, len(self), size))


def held_out_items(dataset: Dataset) -> Histories:
    """The items of held-out folds that each user met; nobody has any under another split than `cold_items`."""
    pairs = [dataset.cold_pairs(split) for split in ("validation", "test")]
    owners, items = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    return group_by_user(owners, items, len(dataset.users))


def group_by_user(owners: IntArray, items: IntArray, n_users: int) -> Histories:
    """Items [P] by their owners' user rows [P], for all users."""
    counts = np.bincount(owners, minlength=n_users)
    return Histories(
        np.arange(n_users, dtype=np.int64), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        items[np.argsort(owners, kind="stable")],
    )


def _target_pairs(dataset: Dataset) -> tuple[IntArray, IntArray]:
    targets = dataset.targets("test")
    users = np.flatnonzero(targets >= 0)
    return users, targets[users]


def _cells(histories: Histories, n_items: int) -> IntArray:
    """One number per (place of the user, item)."""
    return np.repeat(np.arange(len(histories)), histories.lengths) * n_items + histories.item_rows


def _draw(met: Histories, n_items: int, n: int, seed: int) -> IntArray:
    """[U, n] distinct items outside what each user ever met, the same for a user whoever else is drawn for."""
    drawn = np.full((len(met), n), -1, np.int64)
    for place, items in enumerate(met):
        generator = np.random.default_rng([seed, int(met.user_rows[place])])
        chosen = _unmet(generator, items, n_items, n)
        drawn[place, : len(chosen)] = chosen
    return drawn


def _unmet(generator: np.random.Generator, met: IntArray, n_items: int, n: int) -> IntArray:
    """Up to n distinct items that are not in `met`, all alike likely."""
    if n_items < MANY * (n + len(met)):
        unmet = np.setdiff1d(np.arange(n_items), met)
        return generator.choice(unmet, min(n, len(unmet)), replace=False)
    known, chosen = set(met.tolist()), dict[int, None]()
    while len(chosen) < n:
        chosen |= dict.fromkeys(row for row in generator.integers(n_items, size=n).tolist() if row not in known)
    return np.array(list(chosen)[:n], np.int64)
