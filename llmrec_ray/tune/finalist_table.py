"""Finals -> what the page of a campaign shows of them."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec_ray.tune.outcome import Finals

__all__ = ["FinalistRow", "FinalistTable", "finalist_table"]


@dataclass(frozen=True)
class FinalistRow:
    """A finalist in one fusion mode. by_seed: in the order of the seeds."""

    trial: int
    mode: str
    by_seed: list[float | None]
    mean: float | None
    is_winner: bool


@dataclass(frozen=True)
class FinalistTable:
    """rows: one for each finalist and fusion mode, the winner first, then by the mean, then without one. failures: what
    there is no figure of, and why."""

    rows: list[FinalistRow]
    failures: list[tuple[str, str]]

    @property
    def compares_modes(self) -> bool:
        return len({row.mode for row in self.rows}) > 1


def finalist_table(finals: Finals) -> FinalistTable:
    """Of all finalists, whether one of them could win or not."""
    rows = [
        FinalistRow(each.trial, mode, [each.modes[mode].get(seed) for seed in finals.seeds], each.means.get(mode),
                    (each.trial, mode) == (finals.trial, finals.mode))
        for each in finals.finalists for mode in each.modes
    ]
    seeds = [
        (f"trial {each.trial}, seed {seed}", why)
        for each in finals.finalists for seed, why in each.failed.items()
    ]
    modes = [
        (f"trial {each.trial} with fusion.mode {mode}", why)
        for each in finals.finalists for mode, why in each.left_out.items()
    ]
    rows.sort(key=lambda row: (not row.is_winner, row.mean is None, -(row.mean or 0.0)))
    return FinalistTable(rows, seeds + modes)
