"""Figures -> inline SVG, as pages without scripts need it: lines, intervals, grouped bars, one stacked bar.

Colours, fonts and dashes come from the page's style sheet through the classes `series-0`, `series-1`, …; every
chart has a title and a description for those who do not see it. Knows nothing about evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Bar", "Interval", "grouped_bars", "interval_chart", "line_chart", "stacked_bar"]

WIDTH = 440.0
HEIGHT = 264.0
LEFT, RIGHT, TOP, BOTTOM = 60.0, 14.0, 24.0, 44.0
LETTER, MOST_LABELS = 6.4, 210.0
ROW = 22.0
BAR_WIDTH, BAR_HEIGHT = 200.0, 12.0
N_TICKS = 5


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart; strong rows stand out."""

    label: str
    value: float
    low: float
    high: float
    strong: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar of a group, with its interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


def line_chart(
    name: str,
    title: str,
    description: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    from_zero: bool = True,
    mark_best: bool = False,
) -> Markup:
    """Lines of points (x, y) by label, at least one point in all; `name` is unique on the page."""
    points = [point for line in lines.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    y_ticks = _ticks(0.0 if from_zero else min(ys), max(ys))
    x_ticks = _whole_ticks(min(xs), max(xs)) if from_zero else _ticks(min(xs), max(xs))
    x_at = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_at = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    drawn = Markup("").join(_line(place, label, line, x_at, y_at) for place, (label, line) in enumerate(lines.items()))
    if mark_best:
        drawn += _best_mark(max(points, key=lambda point: point[1]), x_at, y_at)
    ticks = Markup("").join(
        _text(x_at(x), HEIGHT - BOTTOM + 16, _number(x), "tick", "middle") for x in x_ticks if min(xs) <= x <= max(xs)
    )
    return _svg(name, title, description, HEIGHT, _grid(y_ticks, y_at, y_label) + ticks + _x_title(x_label) + drawn)


def grouped_bars(
    name: str, title: str, description: str, groups: Mapping[tuple[str, str], Sequence[Bar]], *, y_label: str
) -> Markup:
    """Groups of bars, every group with the same systems in order; a group's key is its label and a note below."""
    highest = max(max(bar.value, bar.high or 0.0) for bars in groups.values() for bar in bars)
    y_ticks = _ticks(0.0, highest)
    y_at = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    drawn = Markup("")
    for place, ((label, note), bars) in enumerate(groups.items()):
        start, middle = LEFT + place * step, LEFT + (place + 0.5) * step
        drawn += _text(middle, HEIGHT - BOTTOM + 16, label, "tick", "middle")
        drawn += _text(middle, HEIGHT - BOTTOM + 31, note, "note", "middle")
        width = min(step * 0.8 / len(bars), 26.0)
        first = start + (step - width * len(bars)) / 2
        for series, bar in enumerate(bars):
            drawn += _bar(first + series * width, width, bar, series, y_at, label)
    return _svg(name, title, description, HEIGHT, _grid(y_ticks, y_at, y_label) + drawn)


def interval_chart(name: str, title: str, description: str, rows: Sequence[Interval], *, x_label: str) -> Markup:
    """A point and its interval per row, on one axis."""
    height = TOP + ROW * len(rows) + BOTTOM
    ticks = _ticks(min(0.0, *(row.low for row in rows)), max(row.high for row in rows))
    left = min(max(len(row.label) for row in rows) * LETTER + 16, MOST_LABELS)
    x_at = _scale(ticks[0], ticks[-1], left, WIDTH - RIGHT)
    drawn = Markup("")
    for tick in ticks:
        x = x_at(tick)
        drawn += Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
            _round(x), _round(TOP - 8), _round(height - BOTTOM)
        )
        drawn += _text(x, height - BOTTOM + 16, _number(tick), "tick", "middle")
    for place, row in enumerate(rows):
        drawn += _interval(row, left - 8, TOP + (place + 0.5) * ROW, x_at)
    middle = (left + WIDTH - RIGHT) / 2
    return _svg(name, title, description, height, drawn + _text(middle, height - 8, x_label, "axis", "middle"))


def stacked_bar(parts: Mapping[str, float], order: Sequence[str], low: float, high: float) -> Markup:
    """Parts that add up, those above zero to the right of the zero line and those below to the left of it.

    order: all names, whose place chooses the colour. low, high: ends of the scale, of several bars alike. It is a
    picture of numbers that stand beside it, so it is hidden from screen readers.
    """
    x_at = _scale(min(low, 0.0), max(high, 1e-9), 0.0, BAR_WIDTH)
    above = below = 0.0
    drawn = Markup("")
    for name, part in sorted(parts.items(), key=lambda item: -abs(item[1])):
        start, end = (above, above + part) if part >= 0 else (below + part, below)
        above, below = (end, below) if part >= 0 else (above, start)
        width, said = x_at(end) - x_at(start), f"{name} {part:+.2f}"
        drawn += _rectangle(order.index(name), x_at(start), 0.0, width, BAR_HEIGHT, said)
    zero = _round(x_at(0.0))
    drawn += Markup('<line class="zero" x1="{0}" x2="{0}" y1="0" y2="{1}"/>').format(zero, _round(BAR_HEIGHT))
    picture = (
        '<svg class="shares" viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    )
    return Markup(picture).format(_round(BAR_WIDTH), _round(BAR_HEIGHT), drawn)


def _svg(name: str, title: str, description: str, height: float, body: Markup) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-desc">'
        '<title id="{name}-title">{title}</title><desc id="{name}-desc">{description}</desc>{body}</svg>'
    ).format(
        width=_round(WIDTH), height=_round(height), name=name, title=title, description=description, body=body
    )


def _grid(ticks: Sequence[float], y_at: Callable[[float], float], label: str) -> Markup:
    drawn = Markup("")
    for tick in ticks:
        drawn += Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(
            _round(LEFT), _round(WIDTH - RIGHT), _round(y_at(tick))
        )
        drawn += _text(LEFT - 6, y_at(tick) + 4, _number(tick), "tick", "end")
    middle = _round((TOP + HEIGHT - BOTTOM) / 2)
    turned = Markup('<text class="axis" text-anchor="middle" transform="translate(12 {}) rotate(-90)">{}</text>')
    return drawn + turned.format(middle, label)


def _x_title(label: str) -> Markup:
    return _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, label, "axis", "middle")


def _line(
    place: int, label: str, points: Sequence[tuple[float, float]], x_at: Callable[[float], float],
    y_at: Callable[[float], float],
) -> Markup:
    path = " ".join(f"{_round(x_at(x))},{_round(y_at(y))}" for x, y in points)
    return Markup('<polyline class="line series-{}" points="{}"><title>{}</title></polyline>').format(
        place, path, label
    )


def _best_mark(best: tuple[float, float], x_at: Callable[[float], float], y_at: Callable[[float], float]) -> Markup:
    x, y = best
    share = (x_at(x) - LEFT) / (WIDTH - RIGHT - LEFT)
    anchor = "start" if share < 0.2 else "end" if share > 0.8 else "middle"
    mark = Markup('<circle class="dot series-0" cx="{}" cy="{}" r="4.5"/>').format(_round(x_at(x)), _round(y_at(y)))
    return mark + _text(x_at(x), y_at(y) - 10, f"{y:.4f} at {_number(x)}", "label", anchor)


def _bar(
    x: float, width: float, bar: Bar, series: int, y_at: Callable[[float], float], label: str
) -> Markup:
    top = y_at(bar.value)
    drawn = _rectangle(series, x + 0.75, top, width - 1.5, y_at(0.0) - top, f"{label}: {bar.value:.4f}")
    if bar.low is None or bar.high is None:
        return drawn
    whisker = Markup('<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>')
    return drawn + whisker.format(_round(x + width / 2), _round(y_at(bar.low)), _round(y_at(bar.high)))


def _rectangle(series: int, x: float, y: float, width: float, height: float, said: str) -> Markup:
    return Markup('<rect class="bar series-{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
        series, _round(x), _round(y), _round(width), _round(height), said
    )


def _interval(row: Interval, label_end: float, y: float, x_at: Callable[[float], float]) -> Markup:
    series = 0 if row.strong else "other"
    drawn = _text(label_end, y + 4, row.label, "label strong" if row.strong else "label", "end")
    drawn += Markup('<line class="range series-{0}" x1="{1}" x2="{2}" y1="{3}" y2="{3}"/>').format(
        series, _round(x_at(row.low)), _round(x_at(row.high)), _round(y)
    )
    said = f"{row.label}: {row.value:.4f} ({row.low:.4f} to {row.high:.4f})"
    return drawn + Markup('<circle class="dot series-{}" cx="{}" cy="{}" r="4.5"><title>{}</title></circle>').format(
        series, _round(x_at(row.value)), _round(y), said
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        kind, _round(x), _round(y), anchor, escape(text)
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers a step of 1, 2 or 5 apart, from at most `low` to at least `high`."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / N_TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * N_TICKS >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, max(last, first + 1) + 1)]


def _whole_ticks(low: float, high: float) -> list[float]:
    return [low, *(tick for tick in _ticks(low, high) if tick > low and tick == round(tick))]


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def _round(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
