"""Trials, axes and shares -> inline SVG: parallel coordinates, learning curves, slices, shares, and pairs of figures.

What a trial is decides how it looks, through classes of the page's style sheet: `winner`, `recipe`, `failed`, and
`level-0` (worst fifth) to `level-4` (best fifth) for all others. Does not know campaigns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from llmrec_ray.pages.svg import Scale, number, picture, rounded, scale, text, ticks
from llmrec_ray.tune.axes import Axis, ValueScale

__all__ = ["Pair", "Trace", "learning_curves", "pair_chart", "parallel_coordinates", "share_bars", "slice_chart"]

WIDTH = 440.0
LEFT, TOP, BOTTOM = 60.0, 24.0, 44.0
ACROSS, ACROSS_HEIGHT = 900.0, 340.0
ACROSS_LEFT, ACROSS_RIGHT, ACROSS_TOP, ACROSS_BOTTOM = 24.0, 118.0, 52.0, 20.0
SLICE_WIDTH, SLICE_HEIGHT = 300.0, 210.0
LETTER, LABEL_LETTER, NOTE_LETTER = 6.7, 7.3, 5.6
APART, GAP = 15.0, 8.0
ROW, BAR, MOST_LABELS = 26.0, 14.0, 200.0
LABELS = 52.0
"""Room for the marks of the last axis, before the names of lines."""


@dataclass(frozen=True)
class Trace:
    """One trial in a chart. look: its class. points: (epoch, value), oldest first. ending: its status."""

    label: str
    look: str
    value: float | None
    points: Sequence[tuple[float, float]]
    ending: str


@dataclass(frozen=True)
class Pair:
    """Two figures side by side: of the winner and of the recipe."""

    label: str
    winner: float | None
    recipe: float | None
    strong: bool = False


@dataclass(frozen=True)
class _Name:
    """The end of a line, and how far beside it its name may stand; None puts it above."""

    look: str
    x: float
    y: float
    beside: float | None


def parallel_coordinates(
    name: str, title: str, description: str, axes: Sequence[Axis], traces: Sequence[Trace]
) -> Markup:
    """A line per trial across two axes or more, whose places are in the order of `traces`; the last is maximised."""
    x_at = scale(0, len(axes) - 1, ACROSS_LEFT, ACROSS - ACROSS_RIGHT)
    y_at = scale(0.0, 1.0, ACROSS_HEIGHT - ACROSS_BOTTOM, ACROSS_TOP)
    room = x_at(1) - x_at(0) - 14.0
    drawn, names = Markup(""), []
    for position in _order(traces):
        places = [axis.places[position] for axis in axes]
        at = [(x_at(n), y_at(place)) for n, place in enumerate(places) if place is not None]
        drawn += _path(traces[position], at)
        names.append(_Name(traces[position].look, *at[-1], LABELS if len(at) == len(axes) else None))
    drawn += _named(names)
    for n, axis in enumerate(axes):
        drawn += _upright(axis, x_at(n), y_at, room if n < len(axes) - 1 else ACROSS_RIGHT - 10.0)
    return picture(name, title, description, ACROSS, ACROSS_HEIGHT, drawn)


def learning_curves(
    name: str, title: str, description: str, up: ValueScale, traces: Sequence[Trace], *, y_label: str
) -> Markup:
    """What is maximised, epoch by epoch; how a trial ended is a mark at its end."""
    epochs = [epoch for trace in traces for epoch, _ in trace.points]
    first, last, bottom, right = min(epochs), max(epochs), ACROSS_HEIGHT - BOTTOM, ACROSS - ACROSS_RIGHT
    x_at, y_at = scale(first, last, LEFT + 10, right), scale(0.0, 1.0, bottom, TOP)
    drawn = _levels(up, y_at, LEFT, right, y_label)
    marks = [first, *(tick for tick in ticks(first, last) if first < tick <= last and tick == round(tick))]
    for mark in marks:
        drawn += text(x_at(mark), bottom + 18, number(mark), "tick", "middle")
    drawn += text((LEFT + right) / 2, ACROSS_HEIGHT - 8, "epoch", "axis", "middle")
    names = []
    for position in _order(traces):
        trace = traces[position]
        at = [(x_at(epoch), y_at(up.place(value))) for epoch, value in trace.points]
        if at:
            drawn += _path(trace, at) + _end(trace, at[-1])
            names.append(_Name(trace.look, *at[-1], 9.0 if at[-1][0] > right - 1 else None))
    return picture(name, title, description, ACROSS, ACROSS_HEIGHT, drawn + _named(names))


def slice_chart(
    name: str, title: str, description: str, across: Axis, up: ValueScale, traces: Sequence[Trace], *, y_label: str
) -> Markup:
    """A point per trial: one setting against what is maximised."""
    left, right, bottom = 52.0, SLICE_WIDTH - 14.0, SLICE_HEIGHT - 40.0
    x_at, y_at = scale(0.0, 1.0, left + 6, right), scale(0.0, 1.0, bottom, 14.0)
    drawn = _levels(up, y_at, left, right, y_label)
    room = (right - left) / len(across.ticks) - GAP if across.is_choice else right - left
    for at, said in across.ticks if across.is_choice else _apart(across.ticks, x_at):
        drawn += text(x_at(at), bottom + 16, _fitting(said, room), "tick", "middle")
    name_of_axis = _fitting(across.name, right - left, LABEL_LETTER)
    drawn += text((left + right) / 2, SLICE_HEIGHT - 6, name_of_axis, "axis", "middle")
    for position in _order(traces):
        place, trace = across.places[position], traces[position]
        if place is not None and trace.value is not None:
            drawn += _point(trace, x_at(place), y_at(up.place(trace.value)))
    return picture(name, title, description, SLICE_WIDTH, SLICE_HEIGHT, drawn)


def share_bars(name: str, title: str, description: str, shares: Mapping[str, float]) -> Markup:
    """A bar per name, from 0 to the whole."""
    height = 8.0 + ROW * len(shares) + 24.0
    left = min(max(len(label) for label in shares) * LABEL_LETTER + 12.0, MOST_LABELS)
    x_at = scale(0.0, 1.0, left, WIDTH - 48.0)
    drawn = Markup("")
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawn += _rule(x_at(tick), 4.0, height - 22.0)
        drawn += text(x_at(tick), height - 6, f"{tick:.0%}", "tick", "middle")
    for place, (label, share) in enumerate(shares.items()):
        y = 8.0 + place * ROW
        drawn += text(left - 8, y + BAR / 2 + 6, _fitting(label, left - 8, LABEL_LETTER), "label", "end")
        drawn += Markup('<rect class="share" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
            rounded(left), rounded(y + 2), rounded(max(x_at(share) - left, 1.0)), rounded(BAR), f"{label}: {share:.1%}"
        )
        drawn += text(x_at(share) + 6, y + BAR / 2 + 6, f"{share:.0%}", "label halo", "start")
    return picture(name, title, description, WIDTH, height, drawn)


def pair_chart(name: str, title: str, description: str, pairs: Sequence[Pair], label: str) -> Markup:
    """A row per pair: the recipe's figure, the winner's, and the way from one to the other."""
    known = [value for pair in pairs for value in (pair.winner, pair.recipe) if value is not None]
    marks = ticks(min(known), max(known))
    height = 8.0 + ROW * len(pairs) + 44.0
    left = min(max(len(pair.label) for pair in pairs) * LABEL_LETTER + 16.0, MOST_LABELS)
    x_at = scale(marks[0], marks[-1], left, WIDTH - 20.0)
    drawn = Markup("")
    for mark in marks:
        drawn += _rule(x_at(mark), 4.0, height - 40.0)
        drawn += text(x_at(mark), height - 24, number(mark), "tick", "middle")
    for place, pair in enumerate(pairs):
        y = 8.0 + (place + 0.5) * ROW
        said = _fitting(pair.label, left - 10, LABEL_LETTER)
        drawn += text(left - 10, y + 4, said, "label strong" if pair.strong else "label", "end")
        drawn += _way(pair, x_at, y)
    drawn += text((left + WIDTH - 20.0) / 2, height - 6, label, "axis", "middle")
    return picture(name, title, description, WIDTH, height, drawn)


def _order(traces: Sequence[Trace]) -> list[int]:
    """Positions as they are drawn: what matters lies above the rest."""
    looks = ["failed", *(f"level-{level}" for level in range(5)), "recipe", "winner"]
    return sorted(range(len(traces)), key=lambda position: looks.index(traces[position].look))


def _path(trace: Trace, at: Sequence[tuple[float, float]]) -> Markup:
    points = " ".join(f"{rounded(x)},{rounded(y)}" for x, y in (at if len(at) > 1 else [*at, *at]))  # one is a dot
    return Markup('<polyline class="trial {}" points="{}"><title>{}</title></polyline>').format(
        trace.look, points, trace.label
    )


def _named(names: Sequence[_Name]) -> Markup:
    """Names of the two lines that stand out, moved apart where they would meet."""
    shown = sorted((name for name in names if name.look in {"winner", "recipe"}), key=lambda name: name.y)
    drawn, above = Markup(""), -math.inf
    for name in shown:
        kind = f"label halo {name.look}"
        if name.beside is None:
            drawn += text(name.x, name.y - 9, name.look, kind, "middle")
            continue
        y = max(name.y, above + APART)
        drawn += text(name.x + name.beside, y + 4, name.look, kind, "start")
        above = y
    return drawn


def _end(trace: Trace, at: tuple[float, float]) -> Markup:
    x, y = at
    if trace.ending == "failed":
        cross = '<path class="end {0}" d="M{1} {3}L{2} {4}M{1} {4}L{2} {3}"/>'
        return Markup(cross).format(trace.look, *(rounded(v) for v in (x - 4, x + 4, y - 4, y + 4)))
    if trace.ending == "finished":
        return Markup("")
    return Markup('<path class="end {0}" d="M{1} {2}V{3}"/>').format(
        trace.look, rounded(x), rounded(y - 5), rounded(y + 5)
    )


def _point(trace: Trace, x: float, y: float) -> Markup:
    size = 5.5 if trace.look in {"winner", "recipe"} else 4.0
    ended = "whole" if trace.ending == "finished" else "part"
    return Markup('<circle class="point {} {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
        trace.look, ended, rounded(x), rounded(y), rounded(size), trace.label
    )


def _upright(axis: Axis, x: float, y_at: Scale, room: float) -> Markup:
    """One axis of parallel coordinates: its line, its marks, and its name in two lines above."""
    section, _, leaf = axis.name.rpartition(".")
    drawn = Markup('<line class="upright" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
        rounded(x), rounded(y_at(1.0)), rounded(y_at(0.0))
    )
    head = text(x - 4, ACROSS_TOP - 32, _fitting(section and f"{section}.", room, NOTE_LETTER), "note", "start")
    head += text(x - 4, ACROSS_TOP - 17, _fitting(leaf, room, LABEL_LETTER), "label strong", "start")
    for place, said in axis.ticks:
        drawn += Markup('<line class="upright" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(
            rounded(x - 3), rounded(x + 3), rounded(y_at(place))
        )
        drawn += text(x + 7, y_at(place) + 4, _fitting(said, room), "tick halo", "start")
    return drawn + head


def _levels(up: ValueScale, y_at: Scale, left: float, right: float, label: str) -> Markup:
    drawn = Markup("")
    for mark, said in up.marks:
        y = y_at(up.place(mark))
        drawn += Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(
            rounded(left), rounded(right), rounded(y)
        )
        drawn += text(left - 6, y + 4, said, "tick", "end")
    turned = Markup('<text class="axis" text-anchor="middle" transform="translate(12 {}) rotate(-90)">{}</text>')
    return drawn + turned.format(rounded((y_at(0.0) + y_at(1.0)) / 2), label)


def _rule(x: float, top: float, bottom: float) -> Markup:
    return Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
        rounded(x), rounded(top), rounded(bottom)
    )


def _way(pair: Pair, x_at: Scale, y: float) -> Markup:
    drawn = Markup("")
    if pair.winner is not None and pair.recipe is not None:
        drawn += Markup('<line class="way" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(
            rounded(x_at(pair.recipe)), rounded(x_at(pair.winner)), rounded(y)
        )
    for look, value in (("recipe", pair.recipe), ("winner", pair.winner)):
        if value is not None:
            said = f"{pair.label}, {look}: {value:.4f}"
            drawn += Markup('<circle class="point {}" cx="{}" cy="{}" r="5.5"><title>{}</title></circle>').format(
                f"{look} whole", rounded(x_at(value)), rounded(y), said
            )
    return drawn


def _apart(marks: Sequence[tuple[float, str]], x_at: Scale) -> list[tuple[float, str]]:
    """The ends, and the marks between them whose labels do not meet."""
    kept = [marks[0]]
    last = marks[-1]
    for mark in marks[1:]:
        room = (len(kept[-1][1]) + len(mark[1])) / 2 * LETTER + GAP
        to_last = (len(last[1]) + len(mark[1])) / 2 * LETTER + GAP
        if mark is last or (x_at(mark[0]) - x_at(kept[-1][0]) >= room and x_at(last[0]) - x_at(mark[0]) >= to_last):
            kept.append(mark)
    return kept


def _fitting(said: str, room: float, letter: float = LETTER) -> str:
    """Without its middle, when it is too long; all of it stands in the tables."""
    most = max(int(room / letter), 3)
    if len(said) <= most:
        return said
    tail = (most - 1) * 2 // 5
    return f"{said[: most - 1 - tail]}…{said[len(said) - tail :]}"
