"""The `tune` section: a campaign as data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from llmrec_ray.config.section import Fraction, Section

__all__ = ["Choice", "Domain", "IntRange", "LogUniform", "PbtConfig", "TuneConfig", "Uniform", "needs_no_training"]

NAME, METRIC = r"[A-Za-z0-9][A-Za-z0-9._-]*", r"(ndcg|hr|mrr)@[1-9][0-9]*"
PBT_DEFAULT_EPOCHS, PBT_QUANTILE = 2, 0.25
GRACE_EPOCHS, REDUCTION_FACTOR = 2, 2
POLICY_KEYS = frozenset({"fusion.mode", "fusion.cold_scale", "retrieval.merge", "retrieval.max_candidates"})
POLICY_PREFIX = "retrieval.candidates."

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class LogUniform(Section):
    """A positive number, every order of magnitude alike."""

    loguniform: tuple[Positive, Positive]
    """Smallest and largest value."""

    @model_validator(mode="after")
    def _check_order(self) -> LogUniform:
        _in_order(*self.loguniform)
        return self


class Uniform(Section):
    """A number, every value alike."""

    uniform: tuple[FiniteFloat, FiniteFloat]
    """Smallest and largest value."""

    @model_validator(mode="after")
    def _check_order(self) -> Uniform:
        _in_order(*self.uniform)
        return self


class IntRange(Section):
    """A whole number, every one alike."""

    int: tuple[int, int]
    """Smallest and largest value, both possible."""

    @model_validator(mode="after")
    def _check_order(self) -> IntRange:
        _in_order(*self.int)
        return self


class Choice(Section):
    """One of some values."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)]
    """The values, as the recipe would write them; where they have an order, in that order."""

    @model_validator(mode="after")
    def _check_distinct(self) -> Choice:
        for place, value in enumerate(self.choice):
            if value in self.choice[:place]:
                raise ValueError(f"{value!r} is there twice: name each value once")
        return self


def _in_order(low: float, high: float) -> None:
    if low >= high:
        raise ValueError(f"the range is {low:g} to {high:g}: give the smaller bound first, then a larger one")


KINDS: dict[str, tuple[type[Section], str]] = {
    "loguniform": (LogUniform, "two positive numbers, the smaller first"),
    "uniform": (Uniform, "two numbers, the smaller first"),
    "int": (IntRange, "two whole numbers, the smaller first"),
    "choice": (Choice, "a list of at least one value"),
}


def _read_domain(value: Any) -> Any:
    """One message for what is wrong with it, where a union of sections would give one for each of them."""
    if isinstance(value, Section):
        return value
    if not (isinstance(value, Mapping) and len(value) == 1 and KINDS.keys() & value.keys()):
        raise ValueError(
            f"{_written(value)} does not say where values may lie: give {{loguniform: [low, high]}}, "
            "{uniform: [low, high]}, {int: [low, high]} or {choice: [value, ...]}"
        )
    [(kind, bounds)] = value.items()
    section, wanted = KINDS[kind]
    try:
        return section.model_validate(value)
    except ValidationError as error:
        [problem, *_] = error.errors()
        if problem["type"] == "value_error":
            raise problem["ctx"]["error"] from None
        raise ValueError(f"{kind} takes {wanted}, not {_written(bounds)}") from None


def _written(value: Any) -> str:
    """In one line, as a recipe would write it."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def _check_name(name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise ValueError(
            f"{name!r} cannot name a folder: use letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


def _check_metric(metric: str) -> str:
    if not re.fullmatch(METRIC, metric):
        raise ValueError(f"{metric!r} is no metric: give ndcg@k, hr@k or mrr@k, such as ndcg@10")
    return metric


Domain: TypeAlias = Annotated[LogUniform | Uniform | IntRange | Choice, BeforeValidator(_read_domain)]


def _flat(search: Any) -> Any:
    """`{train: {learning_rate: {...}}}`, as overrides write it, as `{"train.learning_rate": {...}}`."""
    if not isinstance(search, Mapping):
        return search
    flat: dict[str, Any] = {}
    for key, value in search.items():
        inner = value if isinstance(value, Mapping) else {}
        if inner and not KINDS.keys() & inner.keys():
            flat |= {f"{key}.{rest}": domain for rest, domain in _flat(inner).items()}
        else:
            flat[key] = value
    return flat


class PbtConfig(Section):
    """Population-based training (Jaderberg et al. 2017)."""

    every_epochs: PositiveInt = PBT_DEFAULT_EPOCHS
    """After so many epochs each, trials are compared with those that got as far."""
    quantile: Annotated[Fraction, Field(gt=0.0, le=0.5)] = PBT_QUANTILE
    """The worst share takes weights and settings from the best share, and changes the settings a little."""


class TuneConfig(Section):
    """A campaign: what is searched, by what rule, for how long, and how the winner is checked."""

    name: Annotated[str, AfterValidator(_check_name)] | None = None
    """The campaign's folder below `tune` in the workspace, and what `--resume` takes; empty names it by its start."""
    search: Annotated[dict[str, Domain], BeforeValidator(_flat)] = {}
    """Keys of the recipe, dotted, and where their values may lie; empty takes what a practitioner would search first.
    Keys that need no retraining, such as fusion.mode or retrieval.candidates.text, are searched on stored scores."""
    trials: PositiveInt = 16
    """Configurations to train; the first is the recipe as it is."""
    time_budget_s: PositiveFloat | None = None
    """Start no trial after so many seconds of search, resumed ones added; empty is only bounded by `trials`."""
    metric: Annotated[str, AfterValidator(_check_metric)] = "ndcg@10"
    """What is maximised, on the validation split by the protocol that data.split says."""
    objective: Literal["fused", "neural"] = "fused"
    """Whose ranking: the neural signal's alone, or fused with the other signals by the best of some weightings."""
    algorithm: Literal["random", "tpe"] = "tpe"
    """Who proposes configurations: chance, spread evenly, or, once that has begun, Optuna's tree-structured Parzen
    estimator (Bergstra et al. 2011)."""
    scheduler: Literal["none", "asha", "pbt"] = "asha"
    """`asha` ends trials that fall behind (Li et al. 2018); `pbt` lets them take over weights and settings of better
    ones, changed a little; `none` trains all to the end."""
    epochs: PositiveInt | None = None
    """Most epochs of a trial; empty takes train.epochs, so that the winner is what a training would give."""
    grace_epochs: PositiveInt = GRACE_EPOCHS
    """Epochs before asha may end a trial."""
    reduction_factor: Annotated[int, Field(ge=2)] = REDUCTION_FACTOR
    """At each rung of asha one trial in so many goes on; rungs lie as many times further apart."""
    pbt: PbtConfig | None = None
    """For `scheduler: pbt`; empty takes the defaults."""
    max_concurrent: PositiveInt | None = None
    """Trials at once, each with train.num_workers workers; empty takes as many as the cluster has room for."""
    finalists: PositiveInt = 3
    """Of so many of the best trials the one wins that is best on average over `finalist_seeds`."""
    finalist_seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """The best trials are trained again with each of these, as they would be served, with every fusion mode that is
    searched; empty lets the best trial of the search win, luck included."""
    policy_tolerance: Fraction = 0.002
    """Settings that need no retraining may cost so much of the best value for being cheaper, such as fewer
    candidates; at each step: mode, numbers of candidates, merging, new items."""
    fresh_seeds: tuple[Annotated[int, Field(ge=0)], ...] = (101, 102, 103)
    """Winner and recipe are trained again with these seeds, which the search has not seen; empty skips that."""
    score_test: bool = True
    """Score the test split once, with the winner trained on the first fresh seed, to show the gap."""

    @model_validator(mode="after")
    def _check_effects(self) -> TuneConfig:
        if self.pbt is not None and self.scheduler != "pbt":
            raise ValueError(
                f"pbt has no effect with scheduler {self.scheduler}: set tune.scheduler to pbt, or leave it out"
            )
        for name, default in (("grace_epochs", GRACE_EPOCHS), ("reduction_factor", REDUCTION_FACTOR)):
            if getattr(self, name) != default and self.scheduler != "asha":
                raise ValueError(
                    f"{name} is about asha, but scheduler is {self.scheduler}: set tune.scheduler to asha, or leave "
                    "it out"
                )
        for name in ("finalist_seeds", "fresh_seeds"):
            seeds = getattr(self, name)
            if len({*seeds}) < len(seeds):
                raise ValueError(f"{name} names a seed twice: give different ones")
        if self.finalist_seeds and self.objective == "neural":
            raise ValueError(
                "finalist_seeds compares trials as they would be served, but objective is neural: set tune.objective "
                "to fused, or leave it out"
            )
        if both := sorted({*self.finalist_seeds} & {*self.fresh_seeds}):
            raise ValueError(
                f"fresh_seeds and finalist_seeds both name {', '.join(map(str, both))}, so the winner would be tried "
                "on what it was chosen by: name different ones"
            )
        return self

    @property
    def pbt_rules(self) -> PbtConfig:
        """`pbt` with its defaults."""
        return self.pbt or PbtConfig()


def needs_no_training(key: str) -> bool:
    """Whether a dotted key of the recipe is searched on stored scores of a trained model, in seconds."""
    return key in POLICY_KEYS or key.startswith(POLICY_PREFIX)
