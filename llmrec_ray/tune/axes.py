"""A setting's domain and the values that were tried -> an axis: where each value lies, and the marks beside it.

Places run from 0 to 1: numbers evenly or by orders of magnitude, choices in bands of equal width. Knows no pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec_ray.config import Choice, Domain, IntRange, LogUniform
from llmrec_ray.pages.svg import ticks
from llmrec_ray.tune.written import setting_text

__all__ = ["Axis", "ValueScale", "axis_of", "value_scale"]

FEWEST_POWERS = 3
CROWDED = 0.09
OUTLYING = 3.0
"""Values so many interquartile ranges below the lower quartile are drawn at the lower end."""


@dataclass(frozen=True)
class Axis:
    """places: one per value, None where there is none. ticks: place and label, in order of place.

    is_log: distances are ratios.
    """

    name: str
    places: list[float | None]
    ticks: list[tuple[float, str]]
    is_choice: bool = False
    is_log: bool = False


@dataclass(frozen=True)
class ValueScale:
    """From values to places. marks: value and label. is_cut: some values are lower, and lie at the lower end."""

    low: float
    high: float
    marks: list[tuple[float, str]]
    is_cut: bool

    def place(self, value: float) -> float:
        """From 0 to 1."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def axis(self, name: str, values: Sequence[float | None]) -> Axis:
        """An axis like those of settings."""
        places = [None if value is None else self.place(value) for value in values]
        return Axis(name, places, [(self.place(mark), label) for mark, label in self.marks])


def axis_of(name: str, domain: Domain | None, values: Sequence[Any]) -> Axis:
    """The axis of one setting, over its domain and over values outside of it, such as the recipe's own."""
    if isinstance(domain, LogUniform):
        return _log_axis(name, [*domain.loguniform, *values], values)
    if domain is None or isinstance(domain, Choice):
        return _choice_axis(name, () if domain is None else domain.choice, values)
    low, high = domain.int if isinstance(domain, IntRange) else domain.uniform
    numbers = [low, high, *(value for value in values if value is not None)]
    return _even_axis(name, min(numbers), max(numbers), values, whole=isinstance(domain, IntRange))


def value_scale(values: Sequence[float | None]) -> ValueScale:
    """The scale of what is maximised; values far below the rest do not press this together."""
    known = [value for value in values if value is not None]
    if not known:
        return ValueScale(0.0, 1.0, [], is_cut=False)
    lowest, (first, third) = min(known), np.quantile(known, (0.25, 0.75)).tolist()
    cut = first - OUTLYING * (third - first)
    is_cut = lowest < cut < first
    marks = ticks(cut if is_cut else lowest, max(known))
    return ValueScale(marks[0], marks[-1], [(mark, f"{mark:.4g}") for mark in marks], is_cut)


def _log_axis(name: str, span: Sequence[Any], values: Sequence[Any]) -> Axis:
    positive = [value for value in span if value is not None and value > 0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    width = high - low or 1.0
    powers = [*range(math.ceil(low), math.floor(high) + 1)]
    factors = (1,) if len(powers) >= FEWEST_POWERS else (1, 2, 5)
    marks = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]

    def place(value: float) -> float:
        return (math.log10(value) - low) / width if value > 0 else 0.0

    places = [None if value is None else place(value) for value in values]
    return Axis(name, places, _with_ends(marks, min(positive), max(positive), place), is_log=True)


def _even_axis(name: str, low: float, high: float, values: Sequence[Any], whole: bool = False) -> Axis:
    width = high - low or 1.0
    marks = [tick for tick in ticks(low, high) if not whole or tick == round(tick)]

    def place(value: float) -> float:
        return max(0.0, (value - low) / width)

    places = [None if value is None else place(value) for value in values]
    return Axis(name, places, _with_ends(marks, low, high, place))


def _with_ends(
    marks: Sequence[float], low: float, high: float, place: Callable[[float], float]
) -> list[tuple[float, str]]:
    """The ends of the axis, and the marks between that leave room for their labels."""
    between = [mark for mark in marks if CROWDED < place(mark) < 1.0 - CROWDED]
    return [(place(mark), f"{mark:.4g}") for mark in dict.fromkeys([low, *between, high])]


def _choice_axis(name: str, choices: Sequence[Any], values: Sequence[Any]) -> Axis:
    """Values that are the same lie beside each other in their band, so that each can be followed."""
    labels = list(dict.fromkeys(setting_text(value) for value in (*choices, *values)))
    said = [setting_text(value) for value in values]
    places: list[float | None] = []
    for position, label in enumerate(said):
        n_same, earlier = said.count(label), said[:position].count(label)
        within = 0.5 if n_same == 1 else 0.25 + 0.5 * earlier / (n_same - 1)
        places.append((labels.index(label) + within) / len(labels))
    return Axis(name, places, [((n + 0.5) / len(labels), label) for n, label in enumerate(labels)], is_choice=True)

