"""Shapes, texts and scales of inline SVG, as pages without scripts need them.

Colours, fonts and dashes come from the page's style sheet through classes. All text is escaped. Does not know charts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup, escape

__all__ = ["Scale", "number", "picture", "rounded", "scale", "text", "ticks"]

Scale = Callable[[float], float]
N_TICKS = 5
MOST_DIGITS = 4


def picture(name: str, title: str, description: str, width: float, height: float, body: Markup) -> Markup:
    """A chart with a title and a description for those who do not see it; `name` is unique on the page."""
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-desc">'
        '<title id="{name}-title">{title}</title><desc id="{name}-desc">{description}</desc>{body}</svg>'
    ).format(
        width=rounded(width), height=rounded(height), name=name, title=title, description=description, body=body
    )


def text(x: float, y: float, said: str, kind: str, anchor: str) -> Markup:
    """Text of a class; anchor is `start`, `middle` or `end`."""
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        kind, rounded(x), rounded(y), anchor, escape(said)
    )


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """From values to places; a range without width lies at its start."""
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers a step of 1, 2 or 5 apart, from at most `low` to at least `high`."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / N_TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * N_TICKS >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """Without needless zeros: 0.05, 12, 1,500."""
    return f"{value:.{MOST_DIGITS}f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def rounded(value: float) -> str:
    """A place in a picture, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")
