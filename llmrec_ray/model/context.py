"""Columns of users and items and the time of a request -> numbers that join the user's and the item's vector.

Encoders are fitted on users and items of the train split. A column of numbers is standardised, with a flag where it is
missing. Any other column is read as words (so "Action Comedy" is two), one place for each of the most frequent and one
for all others. It knows no towers but its own linear layers, which start at zero: without evidence context is silent.

Shapes: U users, N items, B users of a batch, F features of a kind, D embedding size.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmrec_ray.config import ContextConfig
from llmrec_ray.errors import DataError
from llmrec_ray.types import FloatArray

__all__ = ["ContextFeatures", "ContextLayer", "context_sizes", "time_features", "time_size"]

MOST_WORDS = 64
"""Words of a column with a place of their own."""
LEAST_DEVIATION = 1e-6
DAY_S, FIRST_WEEKDAY = 86_400, 3
"""Unix time began on a Thursday."""


@dataclass(frozen=True)
class _Numbers:
    """A column of numbers: standardised, and a flag where there is none."""

    name: str
    mean: float
    deviation: float
    size = 2

    def encode(self, column: pl.Series) -> FloatArray:
        values = column.cast(pl.Float64, strict=False).to_numpy()
        known = np.isfinite(values)
        scaled = np.where(known, (values - self.mean) / self.deviation, 0.0)
        return np.stack([scaled, ~known], axis=1).astype(np.float32)


@dataclass(frozen=True)
class _Words:
    """A column of words: a place for each that is known, one for all others, none for an empty cell."""

    name: str
    words: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.words) + 1

    def encode(self, column: pl.Series) -> FloatArray:
        places = {word: place for place, word in enumerate(self.words)}
        encoded = np.zeros((len(column), self.size), np.float32)
        for row, words in enumerate(_words(column)):
            for word in words:
                encoded[row, places.get(word, len(self.words))] = 1.0
        return encoded


@dataclass(frozen=True)
class ContextFeatures:
    """The fitted encoders of a recipe's user and item columns."""

    users: tuple[_Numbers | _Words, ...]
    items: tuple[_Numbers | _Words, ...]

    @classmethod
    def fit(
        cls, config: ContextConfig, users: pl.DataFrame, items: pl.DataFrame, known_users: NDArray[np.bool_],
        known_items: NDArray[np.bool_],
    ) -> ContextFeatures:
        """Learn means, deviations and words from the rows that are known, [U] and [N]: those of the train split.

        Raises DataError for a column that is not among the attributes.
        """
        return cls(
            _fit(users, config.user_columns, known_users, "model.context.user_columns", "data.users.attributes"),
            _fit(items, config.item_columns, known_items, "model.context.item_columns", "data.items.attributes"),
        )

    def encode_users(self, attributes: pl.DataFrame) -> FloatArray:
        """[U, F] float32."""
        return _encode(self.users, attributes)

    def encode_items(self, attributes: pl.DataFrame) -> FloatArray:
        """[N, F] float32."""
        return _encode(self.items, attributes)

    def to_json(self) -> str:
        """What `from_json` reads."""
        return json.dumps({"users": [asdict(e) for e in self.users], "items": [asdict(e) for e in self.items]})

    @classmethod
    def from_json(cls, text: str) -> ContextFeatures:
        """The encoders that `to_json` wrote."""
        state = json.loads(text)
        return cls(*(tuple(_encoder(fields) for fields in state[kind]) for kind in ("users", "items")))


class ContextLayer(nn.Module):
    """Features [B, F] -> what is added to vectors, [B, D]; zero until it has learnt something."""

    def __init__(self, n_features: int, size: int) -> None:
        super().__init__()
        self.project = nn.Linear(n_features, size, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, features_BF: Tensor) -> Tensor:
        """[B, D]."""
        added: Tensor = self.project(features_BF)
        return added


def time_size(parts: Sequence[str]) -> int:
    """How many features `time_features` gives."""
    return 2 * ("hour" in parts) + 7 * ("weekday" in parts)


def time_features(times: Tensor, parts: Sequence[str]) -> Tensor:
    """Unix seconds [B] int64, -1 = unknown -> [B, F] float32 in UTC: sine and cosine of the time of day for `hour`, a
    place per day of the week, Monday first, for `weekday`; all zero where the time is unknown."""
    features = [torch.zeros(len(times), 0, device=times.device)]
    if "hour" in parts:
        angle = (times % DAY_S).float() * (2.0 * torch.pi / DAY_S)
        features.append(torch.stack([torch.sin(angle), torch.cos(angle)], dim=1))
    if "weekday" in parts:
        day = (times // DAY_S + FIRST_WEEKDAY) % 7
        features.append((day[:, None] == torch.arange(7, device=times.device)).float())
    return torch.cat(features, dim=1) * (times >= 0)[:, None]


def context_sizes(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Widths of the user and the item features of a `FusionRecommender`, from its weights; 0 where it has none."""
    tables = (state.get("user_features"), state.get("item_features"))
    users, items = (0 if table is None else int(table.shape[1]) for table in tables)
    return users, items


def _fit(
    attributes: pl.DataFrame, columns: Sequence[str], known: NDArray[np.bool_], field: str, source: str
) -> tuple[_Numbers | _Words, ...]:
    if missing := [name for name in columns if name not in attributes.columns]:
        raise DataError(
            f"{field} names {', '.join(missing)}, but the Dataset keeps "
            f"{', '.join(attributes.columns) or 'no columns'}: add it to {source} and ingest again."
        )
    return tuple(_fit_column(attributes[name].filter(pl.Series(known))) for name in columns)


def _fit_column(column: pl.Series) -> _Numbers | _Words:
    there = column.drop_nulls()
    scalar = not there.dtype.is_nested() and there.dtype != pl.Boolean
    numbers = there.cast(pl.Float64, strict=False) if scalar else None
    if numbers is not None and len(there) and numbers.is_finite().fill_null(False).all():
        values = numbers.to_numpy()
        return _Numbers(column.name, float(values.mean()), max(float(values.std()), LEAST_DEVIATION))
    counts = Counter(word for words in _words(column) for word in words)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:MOST_WORDS]
    return _Words(column.name, tuple(sorted(frequent)))


def _words(column: pl.Series) -> list[set[str]]:
    if column.dtype.is_nested():
        return [{str(word) for word in cell} if cell is not None else set() for cell in column.to_list()]
    return [set(str(cell).split()) if cell is not None else set() for cell in column.to_list()]


def _encode(encoders: Sequence[_Numbers | _Words], attributes: pl.DataFrame) -> FloatArray:
    parts = [encoder.encode(attributes[encoder.name]) for encoder in encoders]
    return np.concatenate([np.zeros((len(attributes), 0), np.float32), *parts], axis=1)


def _encoder(fields: Mapping[str, Any]) -> _Numbers | _Words:
    return _Words(fields["name"], tuple(fields["words"])) if "words" in fields else _Numbers(**fields)
