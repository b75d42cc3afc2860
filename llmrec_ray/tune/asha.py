"""Values of trials at a rung -> who goes on: asynchronous successive halving by promotion (Li et al. 2018).

Rungs lie `reduction_factor` times further apart each. At every rung the best one in `reduction_factor` goes on, as soon
as enough trials got there to say so: nobody waits for a rung to fill. Pure rules over numbers; who trains, when and
where, it does not know.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from llmrec_ray.config import TuneConfig

__all__ = ["milestones", "place_of", "promotable", "reason"]

FRACTIONS = {2: "half", 3: "third", 4: "quarter"}


def milestones(config: TuneConfig, epochs: int) -> list[int]:
    """Epochs at which a trial of `epochs` epochs waits to be promoted, and its last one; `grace_epochs` and every
    `reduction_factor` times as many."""
    rungs, rung = [], config.grace_epochs
    while rung < epochs:
        rungs.append(rung)
        rung *= config.reduction_factor
    return [*rungs, epochs]


def promotable(
    values: Mapping[int, float],
    promoted: Collection[int],
    config: TuneConfig,
    *,
    complete: bool,
    failed: Collection[int] = (),
) -> list[int]:
    """Numbers of trials that may go on from one rung now, best first.

    values: best value up to the rung of every trial that reached it, by number; of equal ones the earlier trial is the
    better. promoted: those that went on already; `failed` ones count as rivals, but leave their place to the next.
    complete: nobody will join this rung any more, so that one goes on even of too few.
    """
    places = len(values) // config.reduction_factor
    if complete:
        places = max(places, min(1, len(values)))
    best = [number for number in _ranking(values) if number not in failed][:places]
    return [number for number in best if number not in promoted]


def reason(number: int, values: Mapping[int, float], config: TuneConfig, rung: int) -> str:
    """Why a trial that reached the rung was not taken further, in words."""
    if number not in values:
        return f"epoch {rung}: it has no finite value"
    ranking = _ranking(values)
    place, places = ranking.index(number) + 1, max(1, len(ranking) // config.reduction_factor)
    own, last = values[number], values[ranking[places - 1]]
    trials = "1 trial" if len(ranking) == 1 else f"{len(ranking)} trials"
    reached = f"epoch {rung}: {own:.4f} is {_ordinal(place)} of {trials}"
    if place <= places:
        return f"{reached}, and the campaign ended before it went on"
    share = FRACTIONS.get(config.reduction_factor, f"1 in {config.reduction_factor}")
    tie = ", ties going to the earlier trial" if own == last else ""
    return f"{reached}; the best {share} have {last:.4f} or more{tie}"


def place_of(number: int, values: Mapping[int, float]) -> int | None:
    """Place of a trial among all that reached a rung, from 1; None without a finite value."""
    return _ranking(values).index(number) + 1 if number in values else None


def _ranking(values: Mapping[int, float]) -> list[int]:
    return sorted(values, key=lambda number: (-values[number], number))


def _ordinal(place: int) -> str:
    ending = "th" if 10 <= place % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"
