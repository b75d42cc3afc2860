"""Figures -> inline SVG, as pages without scripts need it: lines, intervals, grouped bars, one stacked bar.

Colours, fonts and dashes come from the page's style sheet through the classes `series-0`, `series-1`, …; every
chart has a title and a description for those who do not see it. Does not know what the figures are about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from llmrec_ray.pages.svg import Scale, number, picture, rounded, scale, text, ticks

__all__ = ["Bar", "Interval", "grouped_bars", "interval_chart", "line_chart", "stacked_bar"]

WIDTH = 440.0
HEIGHT = 264.0
LEFT, RIGHT, TOP, BOTTOM = 60.0, 14.0, 24.0, 44.0
LETTER, MOST_LABELS = 6.4, 210.0
ROW = 22.0
BAR_WIDTH, BAR_HEIGHT = 200.0, 12.0


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
    y_ticks = ticks(0.0 if from_zero else min(ys), max(ys))
    x_ticks = _whole_ticks(min(xs), max(xs)) if from_zero else ticks(min(xs), max(xs))
    x_at = scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_at = scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    drawn = Markup("").join(_line(place, label, line, x_at, y_at) for place, (label, line) in enumerate(lines.items()))
    if mark_best:
        drawn += _best_mark(max(points, key=lambda point: point[1]), x_at, y_at)
    below = Markup("").join(
        text(x_at(x), HEIGHT - BOTTOM + 16, number(x), "tick", "middle") for x in x_ticks if min(xs) <= x <= max(xs)
    )
    axes = _grid(y_ticks, y_at, y_label) + below + _x_title(x_label)
    return picture(name, title, description, WIDTH, HEIGHT, axes + drawn)


def grouped_bars(
    name: str, title: str, description: str, groups: Mapping[tuple[str, str], Sequence[Bar]], *, y_label: str
) -> Markup:
    """Groups of bars, every group with the same systems in order; a group's key is its label and a note below."""
    highest = max(max(bar.value, bar.high or 0.0) for bars in groups.values() for bar in bars)
    y_ticks = ticks(0.0, highest)
    y_at = scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    drawn = Markup("")
    for place, ((label, note), bars) in enumerate(groups.items()):
        start, middle = LEFT + place * step, LEFT + (place + 0.5) * step
        drawn += text(middle, HEIGHT - BOTTOM + 16, label, "tick", "middle")
        drawn += text(middle, HEIGHT - BOTTOM + 31, note, "note", "middle")
        width = min(step * 0.8 / len(bars), 26.0)
        first = start + (step - width * len(bars)) / 2
        for series, bar in enumerate(bars):
            drawn += _bar(first + series * width, width, bar, series, y_at, label)
    return picture(name, title, description, WIDTH, HEIGHT, _grid(y_ticks, y_at, y_label) + drawn)


def interval_chart(name: str, title: str, description: str, rows: Sequence[Interval], *, x_label: str) -> Markup:
    """A point and its interval per row, on one axis."""
    height = TOP + ROW * len(rows) + BOTTOM
    x_ticks = ticks(min(0.0, *(row.low for row in rows)), max(row.high for row in rows))
    left = min(max(len(row.label) for row in rows) * LETTER + 16, MOST_LABELS)
    x_at = scale(x_ticks[0], x_ticks[-1], left, WIDTH - RIGHT)
    drawn = Markup("")
    for tick in x_ticks:
        x = x_at(tick)
        drawn += Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
            rounded(x), rounded(TOP - 8), rounded(height - BOTTOM)
        )
        drawn += text(x, height - BOTTOM + 16, number(tick), "tick", "middle")
    for place, row in enumerate(rows):
        drawn += _interval(row, left - 8, TOP + (place + 0.5) * ROW, x_at)
    middle = (left + WIDTH - RIGHT) / 2
    drawn += text(middle, height - 8, x_label, "axis", "middle")
    return picture(name, title, description, WIDTH, height, drawn)


def stacked_bar(parts: Mapping[str, float], order: Sequence[str], low: float, high: float) -> Markup:
    """Parts that add up, those above zero to the right of the zero line and those below to the left of it.

    order: all names, whose place chooses the colour. low, high: ends of the scale, of several bars alike. It is a
    picture of numbers that stand beside it, so it is hidden from screen readers.
    """
    x_at = scale(min(low, 0.0), max(high, 1e-9), 0.0, BAR_WIDTH)
    above = below = 0.0
    drawn = Markup("")
    for name, part in sorted(parts.items(), key=lambda item: -abs(item[1])):
        start, end = (above, above + part) if part >= 0 else (below + part, below)
        above, below = (end, below) if part >= 0 else (above, start)
        width, said = x_at(end) - x_at(start), f"{name} {part:+.2f}"
        drawn += _rectangle(order.index(name), x_at(start), 0.0, width, BAR_HEIGHT, said)
    zero = rounded(x_at(0.0))
    drawn += Markup('<line class="zero" x1="{0}" x2="{0}" y1="0" y2="{1}"/>').format(zero, rounded(BAR_HEIGHT))
    bars = '<svg class="shares" viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    return Markup(bars).format(rounded(BAR_WIDTH), rounded(BAR_HEIGHT), drawn)



def _grid(ticks: Sequence[float], y_at: Scale, label: str) -> Markup:
    drawn = Markup("")
    for tick in ticks:
        drawn += Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(
            rounded(LEFT), rounded(WIDTH - RIGHT), rounded(y_at(tick))
        )
        drawn += text(LEFT - 6, y_at(tick) + 4, number(tick), "tick", "end")
    middle = rounded((TOP + HEIGHT - BOTTOM) / 2)
    turned = Markup('<text class="axis" text-anchor="middle" transform="translate(12 {}) rotate(-90)">{}</text>')
    return drawn + turned.format(middle, label)


def _x_title(label: str) -> Markup:
    return text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, label, "axis", "middle")


def _line(
    place: int, label: str, points: Sequence[tuple[float, float]], x_at: Scale,
    y_at: Scale,
) -> Markup:
    path = " ".join(f"{rounded(x_at(x))},{rounded(y_at(y))}" for x, y in points)
    return Markup('<polyline class="line series-{}" points="{}"><title>{}</title></polyline>').format(
        place, path, label
    )


def _best_mark(best: tuple[float, float], x_at: Scale, y_at: Scale) -> Markup:
    x, y = best
    share = (x_at(x) - LEFT) / (WIDTH - RIGHT - LEFT)
    anchor = "start" if share < 0.2 else "end" if share > 0.8 else "middle"
    mark = Markup('<circle class="dot series-0" cx="{}" cy="{}" r="4.5"/>').format(rounded(x_at(x)), rounded(y_at(y)))
    return mark + text(x_at(x), y_at(y) - 10, f"{y:.4f} at {number(x)}", "label", anchor)


def _bar(
    x: float, width: float, bar: Bar, series: int, y_at: Scale, label: str
) -> Markup:
    top = y_at(bar.value)
    drawn = _rectangle(series, x + 0.75, top, width - 1.5, y_at(0.0) - top, f"{label}: {bar.value:.4f}")
    if bar.low is None or bar.high is None:
        return drawn
    whisker = Markup('<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>')
    return drawn + whisker.format(rounded(x + width / 2), rounded(y_at(bar.low)), rounded(y_at(bar.high)))


def _rectangle(series: int, x: float, y: float, width: float, height: float, said: str) -> Markup:
    return Markup('<rect class="bar series-{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
        series, rounded(x), rounded(y), rounded(width), rounded(height), said
    )


def _interval(row: Interval, label_end: float, y: float, x_at: Scale) -> Markup:
    series = 0 if row.strong else "other"
    drawn = text(label_end, y + 4, row.label, "label strong" if row.strong else "label", "end")
    drawn += Markup('<line class="range series-{0}" x1="{1}" x2="{2}" y1="{3}" y2="{3}"/>').format(
        series, rounded(x_at(row.low)), rounded(x_at(row.high)), rounded(y)
    )
    said = f"{row.label}: {row.value:.4f} ({row.low:.4f} to {row.high:.4f})"
    return drawn + Markup('<circle class="dot series-{}" cx="{}" cy="{}" r="4.5"><title>{}</title></circle>').format(
        series, rounded(x_at(row.value)), rounded(y), said
    )





def _whole_ticks(low: float, high: float) -> list[float]:
    return [low, *(tick for tick in ticks(low, high) if tick > low and tick == round(tick))]
