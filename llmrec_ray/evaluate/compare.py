"""Two evaluations of the same protocol -> who is better, by how much, and whether that is more than chance.

Only stored ranks are read: nothing is scored again. This module does not know how the ranks were made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from llmrec_ray.artifact import Artifact, open_artifact
from llmrec_ray.errors import ArtifactMismatchError, ConfigError, CorruptArtifactError
from llmrec_ray.evaluate.report import Evaluation
from llmrec_ray.metrics import ndcg_gains, paired_bootstrap, reciprocal_gains
from llmrec_ray.types import Columns

__all__ = ["Compared", "Comparison", "Side", "compare"]

Gains: TypeAlias = NDArray[np.float64]
Verdict: TypeAlias = Literal["A is better", "B is better", "no difference shown"]
KEYS = (Columns.USER_ID, Columns.ITEM_ID)
NOT_SYSTEMS = {*KEYS, "history_length", "item_count"}
COLD = "cold:"
FEW_USERS = 20
GAINS: Mapping[str, Callable[[Gains, int], Gains]] = {
    "ndcg": ndcg_gains,
    "hr": lambda ranks, k: (ranks <= k).astype(np.float64),
    "mrr": reciprocal_gains,
}


class Side(BaseModel):
    """One of the two: which system of which evaluations, one per seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    evaluations: list[str]
    system: str
    recipe: str
    seeds: list[int]


class Compared(BaseModel):
    """One metric: both means, A - B over the same users with its 95 % interval, and what that says."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    a: float
    b: float
    difference: float
    low: float
    high: float
    verdict: Verdict


class Comparison(BaseModel):
    """A and B beside each other. metrics: `ndcg@10`, … -> Compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    protocol: str
    protocol_hash: str
    users: int
    targets: int
    a: Side
    b: Side
    main: str
    metrics: dict[str, Compared]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return self.model_dump(mode="json")

    def table(self) -> str:
        """Who is compared, one row per metric, and the result in words."""
        return "\n".join([
            f"Protocol {self.protocol} [{self.protocol_hash}].",
            _described("A", self.a),
            _described("B", self.b),
            "",
            f"{'':<10}{'A':>9}{'B':>9}{'A − B':>10}   {'95 % interval':<20}  {self.users} users",
            *(_row(name, compared) for name, compared in self.metrics.items()),
            "",
            self.sentence(),
        ])

    def sentence(self) -> str:
        """The result for the main metric, in words."""
        main = self.metrics[self.main]
        said = f"{main.verdict[0].upper()}{main.verdict[1:]} in {self.main}: A − B is {main.difference:+.4f} " \
               f"(95 % interval {main.low:+.4f} to {main.high:+.4f}, paired bootstrap over {self.users} users)."
        few = f" So few users (under {FEW_USERS}) can show no difference." if self.users < FEW_USERS else ""
        return said + few


def compare(a: Sequence[str], b: Sequence[str], systems: tuple[str, str] = ("model", "model")) -> Comparison:
    """Compare a system of the evaluations at URIs `a` with one of those at `b`, several URIs being several seeds.

    Systems are named as in `ranks.parquet`; `cold:` before a name takes the ranks of held-out items, of
    `cold_ranks.parquet`. Gains are averaged over the seeds of a side per target, then users are drawn with
    replacement, each with all of his or her targets. Raises ConfigError when a system is not there or a side is
    compared with itself, ArtifactMismatchError when protocols differ, and what opening an artifact raises.
    """
    ours, theirs = [[_Opened.at(uri) for uri in uris] for uris in (a, b)]
    _check_sides(ours, theirs, systems)
    _check_protocols([*ours, *theirs])
    ks = _common_ks([*ours, *theirs])
    targets = ours[0].targets(systems[0])
    ranks = [
        np.stack([opened.ranks(targets, system) for opened in side])
        for side, system in zip((ours, theirs), systems, strict=True)
    ]
    first = ours[0].evaluation
    users = _codes(targets)
    return Comparison(
        protocol=first.protocol, protocol_hash=first.protocol_hash, users=len(np.unique(users)), targets=len(targets),
        a=_side(ours, systems[0]), b=_side(theirs, systems[1]),
        main=f"ndcg@{first.main_k if first.main_k in ks else ks[-1]}",
        metrics={
            f"{name}@{k}": _compared(gain(ranks[0], k), gain(ranks[1], k), users)
            for k in ks for name, gain in GAINS.items()
        },
    )


@dataclass(frozen=True)
class _Opened:
    artifact: Artifact
    evaluation: Evaluation

    @classmethod
    def at(cls, uri: str) -> _Opened:
        artifact = open_artifact(uri, "evaluation")
        try:
            payload = (artifact.path / "evaluation.json").read_bytes()
            return cls(artifact, Evaluation.model_validate_json(payload).model_copy(update={"uri": uri}))
        except (OSError, ValidationError):
            raise CorruptArtifactError(
                f"evaluation.json in {uri} cannot be read by this version: evaluate again."
            ) from None

    @property
    def uri(self) -> str:
        return self.evaluation.uri

    @property
    def ks(self) -> set[int]:
        return {int(name.partition("@")[2]) for name in self.evaluation.model if name.startswith("ndcg@")}

    @cached_property
    def tables(self) -> dict[str, pl.DataFrame]:
        """By the prefix of their systems' names; rows in the order of their keys."""
        files = {"": "ranks.parquet", COLD: "cold_ranks.parquet"}
        paths = {prefix: self.artifact.path / name for prefix, name in files.items()}
        return {prefix: pl.read_parquet(path).sort(KEYS) for prefix, path in paths.items() if path.is_file()}

    @property
    def systems(self) -> list[str]:
        return [
            prefix + name for prefix, table in self.tables.items() for name in table.columns if name not in NOT_SYSTEMS
        ]

    def targets(self, system: str) -> pl.DataFrame:
        return self.tables[_prefix(system)].select(KEYS)

    def ranks(self, targets: pl.DataFrame, system: str) -> Gains:
        prefix = _prefix(system)
        if not self.targets(system).equals(targets):
            raise CorruptArtifactError(
                f"The ranks of {system} in {self.uri} are of other targets than its protocol hash "
                f"{self.evaluation.protocol_hash} stands for: evaluate again."
            )
        return self.tables[prefix][system.removeprefix(prefix)].to_numpy().astype(np.float64)


def _check_sides(ours: list[_Opened], theirs: list[_Opened], systems: tuple[str, str]) -> None:
    for side, system in zip((ours, theirs), systems, strict=True):
        for opened in side:
            if system not in opened.systems:
                raise ConfigError(
                    f"There is no system {system!r} in {opened.uri}; it has {', '.join(opened.systems)}: name one of "
                    "these with --systems."
                )
    if _prefix(systems[0]) != _prefix(systems[1]):
        raise ConfigError(
            f"{systems[0]!r} and {systems[1]!r} rank different targets, known items and held-out ones: compare two "
            f"systems with {COLD} before their names, or two without."
        )
    if systems[0] == systems[1] and [o.artifact.id for o in ours] == [o.artifact.id for o in theirs]:
        raise ConfigError(
            f"A and B are both {systems[0]!r} of {ours[0].uri}: give two evaluations, or two systems of one with "
            "--systems, such as --systems model baseline:ease_recency."
        )


def _prefix(system: str) -> str:
    return COLD if system.startswith(COLD) else ""


def _check_protocols(every: list[_Opened]) -> None:
    for opened in every:
        if not opened.evaluation.protocol_hash:
            raise ArtifactMismatchError(
                f"{opened.uri} says no protocol hash, since an older version made it, so nobody can tell what it may "
                "be compared with: evaluate its bundle again."
            )
    first = every[0].evaluation
    for other in (opened.evaluation for opened in every[1:]):
        if other.protocol_hash != first.protocol_hash:
            raise ArtifactMismatchError(
                f"{first.uri} and {other.uri} measured different things, so their figures cannot be compared. The "
                f"first: {_measured(first)} The second: {_measured(other)} Evaluate both by one protocol on one "
                "dataset."
            )


def _measured(evaluation: Evaluation) -> str:
    return (
        f"{evaluation.protocol} [{evaluation.protocol_hash}], {evaluation.split} split of dataset "
        f"{evaluation.dataset}, {evaluation.users} users, {evaluation.items} items."
    )


def _common_ks(every: list[_Opened]) -> list[int]:
    common = sorted(set.intersection(*(opened.ks for opened in every)))
    if not common:
        measured = "; ".join(f"{opened.uri} at {', '.join(map(str, sorted(opened.ks)))}" for opened in every)
        raise ConfigError(f"The evaluations share no cut-off k: {measured}. Evaluate both with a common evaluate.ks.")
    return common


def _codes(targets: pl.DataFrame) -> NDArray[np.int64]:
    """A number per target of whose it is."""
    return targets[Columns.USER_ID].rank("dense").to_numpy().astype(np.int64)


def _side(opened: list[_Opened], system: str) -> Side:
    return Side(
        evaluations=[each.artifact.id for each in opened], system=system, recipe=opened[0].evaluation.recipe,
        seeds=[each.evaluation.seed for each in opened],
    )


def _compared(ours: Gains, theirs: Gains, users: NDArray[np.int64]) -> Compared:
    """Gains [seeds, targets] of both."""
    found = paired_bootstrap(ours, theirs, users)
    return Compared(
        a=float(ours.mean()), b=float(theirs.mean()), difference=found.mean, low=found.low, high=found.high,
        verdict=_verdict(found.low, found.high, len(np.unique(users))),
    )


def _verdict(low: float, high: float, users: int) -> Verdict:
    if users < FEW_USERS or low <= 0 <= high:
        return "no difference shown"
    return "A is better" if low > 0 else "B is better"


def _described(name: str, side: Side) -> str:
    seeds = f"seed{'s' if len(side.seeds) > 1 else ''} {', '.join(map(str, side.seeds))}"
    return f"{name}: {side.system} of evaluation {', '.join(side.evaluations)} ({side.recipe}, {seeds})"


def _row(name: str, compared: Compared) -> str:
    interval = f"{compared.low:+.4f} to {compared.high:+.4f}"
    return (
        f"{name:<10}{compared.a:>9.4f}{compared.b:>9.4f}{compared.difference:>+10.4f}   {interval:<20}  "
        f"{compared.verdict}"
    )
