"""A Bundle and what may be changed of its policy -> the best of it on stored scores, and what was tried; in seconds.

Weights first, then the fusion mode, then how many candidates each source proposes and how many of them stay, then how
far items that nobody has met may rise. Everything is judged by the simulated pipeline on the validation split; nothing
is trained, and the test split is not read. It does not know how modes are fitted.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Choice, Domain, FusionMode, Recipe, as_override, needs_no_training, with_settings
from llmrec_ray.data import Dataset
from llmrec_ray.data.splits import item_fold
from llmrec_ray.errors import ArtifactMismatchError, ConfigError
from llmrec_ray.policy.components import Components, component_scores
from llmrec_ray.policy.found import PolicyFound
from llmrec_ray.policy.grids import grid
from llmrec_ray.policy.simulated import Contest, Figures, Simulation, Targets
from llmrec_ray.policy.trained import ValidatedFusion, choose_weights, policy_of
from llmrec_ray.signals import Fusion, FusionPolicy, WeightedFusion
from llmrec_ray.types import Histories, IntArray

__all__ = ["check_bundle", "choose_mode", "mode_values", "search_policy"]

logger = logging.getLogger(__name__)

MODE, MERGE, MOST, SCALE = "fusion.mode", "retrieval.merge", "retrieval.max_candidates", "fusion.cold_scale"
SOURCE = "retrieval.candidates."
COLD_COUNT = f"{SOURCE}cold"
FIELDS = {MERGE: "merge", MOST: "max_candidates", SCALE: "cold_scale"}
CHEAPEST_FIRST: tuple[FusionMode, ...] = ("feature", "late", "cascade", "gated", "learned")


def search_policy(
    recipe: Recipe,
    dataset: Dataset,
    bundle: Bundle,
    domains: Mapping[str, Domain],
    *,
    metric: str = "ndcg@10",
    tolerance: float = 0.002,
    modes: Mapping[FusionMode, Fusion] | None = None,
) -> PolicyFound:
    """Search the keys of `domains` around the recipe; the weights of late fusion are searched in any case.

    recipe: whose settings there were before: in a campaign the winner's, which differ from what its user wrote.
    metric: `ndcg@k`, `hr@k` or `mrr@k` of the served pipeline, for requests for k items. tolerance: the share of the
    best value that cheaper settings may cost: fewer candidates, and for items without a train event, which cost the
    others accuracy, a larger scale; it may be spent at each of these steps. modes: fitted fusions by name, the recipe's
    own among them; without them the Bundle's is kept.
    Raises ConfigError for a key that needs training.
    """
    start = time.perf_counter()
    if wrong := [key for key in domains if not needs_no_training(key)]:
        raise ConfigError(f"{', '.join(wrong)} cannot be searched without training: run a whole campaign.")
    search = _Search.of(recipe, dataset, bundle, domains, metric, tolerance)
    search.begin(modes)
    search.choose_mode(modes)
    search.choose_counts()
    search.choose_merge()
    search.choose_new_items()
    found = search.found(time.perf_counter() - start)
    logger.info("%s", found.text())
    return found


def mode_values(
    recipe: Recipe, dataset: Dataset, bundle: Bundle, modes: Mapping[FusionMode, Fusion], *, metric: str
) -> dict[FusionMode, float]:
    """What the served pipeline gives on validation with each of these fusions, late fusion by the weights that are best
    there; without modes that do not go with the recipe."""
    search = _Search.of(recipe, dataset, bundle, {MODE: Choice(choice=(*modes,))}, metric, tolerance=0.0)
    return {mode: contest.figures(contest.policy).value for mode, contest in search.contests(modes).items()}


def choose_mode(values: Mapping[FusionMode, float], recipe: Recipe, tolerance: float) -> FusionMode:
    """Of the modes within the tolerance of the best value the recipe's own, else the cheapest to serve."""
    floor, order = max(values.values()) * (1 - tolerance), (recipe.fusion.mode, *CHEAPEST_FIRST)
    return min((mode for mode, value in values.items() if value >= floor), key=order.index)


def _fusing(recipe: Recipe, grids: Mapping[str, list[Any]]) -> Recipe:
    """A recipe that ranks by the neural signal alone has no weights to search, but the other modes of the search do."""
    if recipe.fusion.mode != "feature" or not {*grids.get(MODE, [])} - {"feature"}:
        return recipe
    return recipe.model_copy(update={"fusion": recipe.fusion.model_copy(update={"mode": "late"})})


def check_bundle(recipe: Recipe, dataset: Dataset, bundle: Bundle) -> None:
    """Raises ArtifactMismatchError for a Bundle that was trained on another Dataset, and ConfigError for a recipe with
    another fusion mode, which the Bundle was not trained with."""
    if (trained_on := bundle.artifact.manifest.parents["dataset"]) != dataset.id:
        raise ArtifactMismatchError(
            f"The bundle {bundle.uri} was trained on dataset {trained_on}, but {dataset.uri} is dataset {dataset.id}: "
            "name the dataset it was trained on with --dataset, or another bundle with --bundle."
        )
    if recipe.fusion.mode != (mode := bundle.recipe.fusion.mode):
        raise ConfigError(
            f"The recipe says fusion.mode {recipe.fusion.mode}, but the bundle {bundle.uri} was trained with {mode}, "
            f"which a policy cannot change: set fusion.mode to {mode}, or run a whole campaign."
        )


@dataclass(frozen=True)
class _Tried:
    """Values of searched keys and what they gave: for known items, and, where that was judged, for unseen ones."""

    setting: dict[str, Any]
    value: float
    candidates: float
    cold_value: float | None = None

    @property
    def cost(self) -> tuple[float, float]:
        """The cheapest first, the better of equals."""
        return self.candidates, -self.value

    def row(self) -> dict[str, Any]:
        """As a table shows it."""
        cold = {} if self.cold_value is None else {"cold_value": self.cold_value}
        return {**self.setting, **cold, "value": self.value, "candidates": self.candidates}


@dataclass
class _Search:
    """setting: what was chosen so far, by dotted key. policy: with that. contest: of its weights, mode and scale."""

    recipe: Recipe
    bundle: Bundle
    grids: dict[str, list[Any]]
    left_out: dict[str, str]
    tolerance: float
    weights: ValidatedFusion
    simulation: Simulation
    known: Targets
    unseen: Targets
    contest: Contest
    policy: FusionPolicy
    setting: dict[str, Any] = field(default_factory=dict)
    tried: list[_Tried] = field(default_factory=list)

    @classmethod
    def of(
        cls, recipe: Recipe, dataset: Dataset, bundle: Bundle, domains: Mapping[str, Domain], metric: str,
        tolerance: float,
    ) -> Self:
        """Scores everything once."""
        left_out = _unusable(dataset, bundle, domains)
        grids = {key: grid(domain) for key, domain in domains.items() if key not in left_out}
        components = component_scores(recipe, dataset, bundle, _needed(recipe, bundle))
        weights = choose_weights(_fusing(recipe, grids), dataset, bundle, components, bundle.calibration)
        own = policy_of(recipe, bundle)
        most = {str(name): n for name, n in own.candidates.items()}
        for key in grids:
            if key.startswith(SOURCE):
                name = key.removeprefix(SOURCE)
                most[name] = max(most.get(name, 0), *grids[key])
        simulation = Simulation.of(bundle, components, own, most, int(metric.partition("@")[2]), _test_fold(dataset))
        known, unseen = _targets(dataset, components, simulation)
        contest = Contest(simulation, own, None, known, metric)
        return cls(recipe, bundle, grids, left_out, tolerance, weights, simulation, known, unseen, contest, own)

    def begin(self, modes: Mapping[FusionMode, Fusion] | None) -> None:
        """The first row tried is the recipe's own, in its mode even where the Bundle is that of a trial, which has late
        fusion; the second has the weights that were found where these are others."""
        own, weights, mode = self.policy, self.weights, self.recipe.fusion.mode
        if mode != "late" and mode in (modes or {}):
            self.contest = self._with_mode(mode, modes or {})
            self.policy = self.contest.policy
        self._try({})
        fuses_late = self.contest.fusion is None and self.bundle.fusion is None
        if fuses_late and (weights.weights, weights.newcomer_weights) != (own.weights, own.newcomer_weights):
            self._take_weights(own)

    def choose_mode(self, modes: Mapping[FusionMode, Fusion] | None) -> None:
        """Among those that were fitted; of those within the tolerance the recipe's own, else the cheapest to serve."""
        contests = self.contests(modes)
        if not contests:
            return
        tried = {mode: self._note({MODE: mode}, contest.figures(contest.policy)) for mode, contest in contests.items()}
        chosen = choose_mode({mode: each.value for mode, each in tried.items()}, self.recipe, self.tolerance)
        self.contest = contests[chosen]
        self.policy = self.contest.policy
        self._take(tried[chosen])

    def contests(self, modes: Mapping[FusionMode, Fusion] | None) -> dict[FusionMode, Contest]:
        """Of the modes that were fitted and go with the recipe."""
        return {mode: self._with_mode(mode, modes or {}) for mode in self._possible_modes(modes)}

    def choose_counts(self) -> None:
        """The fewest candidates within the tolerance of the best: one source's count is changed at a time, first for
        the value, then for as few as possible."""
        keys = [key for key in self.grids if key.startswith(SOURCE) and key != COLD_COUNT]
        if not keys:
            return
        tried: dict[str, _Tried] = {}
        self._visit([{key: self._own(key) or self.grids[key][0] for key in keys},
                     {key: self.grids[key][-1] for key in keys}], tried)
        best = max(tried.values(), key=_better)
        while (step := max(self._neighbours(best, keys, tried), key=_better, default=best)).value > best.value:
            best = step
        least = min(self._within([*tried.values()]), key=lambda each: each.cost)
        while True:
            self._neighbours(least, keys, tried)
            step = min(self._within([*tried.values()]), key=lambda each: each.cost)
            if step is least:
                break
            least = step
        self._take(least)

    def choose_merge(self) -> None:
        """Of how many candidates the best stay, and by what order; the fewest within the tolerance of the best. As long
        as all of them stay, one way of merging is as good as another."""
        if not {MERGE, MOST} & self.grids.keys():
            return
        own = self.recipe.retrieval
        whole = self._try({})
        tried = [whole]
        for merge in self.grids.get(MERGE, [own.merge]):
            for most in self.grids.get(MOST, [own.max_candidates]):
                if merge != "all" and most is not None and most < whole.candidates:
                    tried.append(self._try({MERGE: merge, MOST: most}))
        if len(tried) == 1:
            self.left_out[MERGE if MERGE in self.grids else MOST] = (
                "no value of both retrieval.merge and retrieval.max_candidates leaves anything out: let merge be "
                "reciprocal_rank or weights, and max_candidates smaller"
            )
        self._take(min(self._within(tried), key=lambda each: each.cost))

    def choose_new_items(self) -> None:
        """How many items without a train event are proposed, and how far they may rise: best for the unseen items of
        the validation split, as long as the others lose no more than the tolerance."""
        keys = {COLD_COUNT, SCALE} & self.grids.keys()
        if self.setting.get(MODE, self.recipe.fusion.mode) == "feature":
            self.left_out |= dict.fromkeys(keys, "fusion.mode feature carries nothing over to unseen items")
        elif keys:
            tried = [each for scale in self.grids.get(SCALE, [self.policy.cold_scale]) for each in self._scaled(scale)]
            affordable = self._within(tried)
            best = max(each.cold_value or 0.0 for each in affordable)
            enough = [each for each in affordable if (each.cold_value or 0.0) >= best * (1 - self.tolerance)]
            self._take(min(enough, key=lambda each: each.cost))

    def found(self, seconds: float) -> PolicyFound:
        """What was chosen, without settings that are the recipe's own."""
        changed = {key: value for key, value in self.setting.items() if value != self._own(key)}
        return PolicyFound(
            overrides=[as_override(key, value) for key, value in changed.items()],
            value=self._figures(self.policy).value, base=self.tried[0].value,
            table=[tried.row() for tried in self.tried], curve=self.weights.curve,
            weights={str(name): weight for name, weight in self.weights.weights.items()}, seconds=seconds,
            policy=self.policy, metric=self.contest.metric, left_out=self.left_out,
        )

    def _possible_modes(self, modes: Mapping[FusionMode, Fusion] | None) -> Iterator[FusionMode]:
        if MODE in self.grids and modes is None:
            self.left_out[MODE] = "a Bundle keeps the fusion that it was trained with, and no other was fitted"
            return
        for mode in self.grids.get(MODE, []):
            if mode not in (modes or {}):
                self.left_out[f"{MODE}={mode}"] = "it was not fitted for this Bundle"
                continue
            try:
                with_settings(self.recipe, {MODE: mode})
            except ConfigError as error:
                self.left_out[f"{MODE}={mode}"] = " ".join(str(error).split())
            else:
                yield mode

    def _with_mode(self, mode: FusionMode, modes: Mapping[FusionMode, Fusion]) -> Contest:
        """Late fusion by the weights that were found, even where the Bundle has others."""
        update: dict[str, Any] = {"weights": {"neural": 1.0}, "newcomer_weights": {}} if mode == "feature" else {
            "weights": self.weights.weights, "newcomer_weights": self.weights.newcomer_weights,
        }
        policy = FusionPolicy.model_validate(self.policy.model_dump() | update)
        weights = {str(name): weight for name, weight in policy.weights.items()}
        fusion = WeightedFusion(self.bundle.calibration, weights) if mode in {"late", "feature"} else modes[mode]
        return Contest(self.simulation, policy, fusion, self.known, self.contest.metric)

    def _take_weights(self, own: FusionPolicy) -> None:
        update = {"weights": self.weights.weights, "newcomer_weights": self.weights.newcomer_weights}
        self.policy = FusionPolicy.model_validate(own.model_dump() | update)
        self.contest = Contest(self.simulation, self.policy, None, self.known, self.contest.metric)
        self._try({})

    def _visit(self, settings: Sequence[dict[str, Any]], tried: dict[str, _Tried]) -> list[_Tried]:
        """Try what was not tried before."""
        for setting in settings:
            if json.dumps(setting) not in tried:
                tried[json.dumps(setting)] = self._try(setting)
        return [tried[json.dumps(setting)] for setting in settings]

    def _neighbours(self, of: _Tried, keys: Sequence[str], tried: dict[str, _Tried]) -> list[_Tried]:
        """Those that differ in one source's count."""
        at = {key: of.setting[key] for key in keys}
        return self._visit([{**at, key: n} for key in keys for n in self.grids[key] if n != at[key]], tried)

    def _scaled(self, scale: float) -> Iterator[_Tried]:
        """Every count of unseen items with this scale, which fused scores depend on."""
        policy = self.policy.model_copy(update={"cold_scale": scale})
        contest = self.contest
        known = Contest(self.simulation, policy, contest.fusion, self.known, contest.metric)
        unseen = Contest(self.simulation, policy, contest.fusion, self.unseen, contest.metric)
        for count in self.grids.get(COLD_COUNT, [None]):
            setting = {SCALE: scale} | ({} if count is None else {COLD_COUNT: count})
            asked = self._policy_of({**self.setting, **setting})
            yield self._note(setting, known.figures(asked), unseen.figures(asked).value)

    def _try(self, setting: dict[str, Any]) -> _Tried:
        return self._note(setting, self._figures(self._policy_of({**self.setting, **setting})))

    def _note(self, setting: dict[str, Any], figures: Figures, cold_value: float | None = None) -> _Tried:
        tried = _Tried({**self.setting, **setting}, figures.value, figures.candidates, cold_value)
        self.tried.append(tried)
        return tried

    def _take(self, tried: _Tried) -> None:
        self.setting = tried.setting
        self.policy = self._policy_of(self.setting)

    def _figures(self, policy: FusionPolicy) -> Figures:
        contest = self.contest
        if policy.cold_scale != contest.policy.cold_scale:
            contest = Contest(self.simulation, policy, contest.fusion, self.known, contest.metric)
        return contest.figures(policy)

    def _within(self, tried: Sequence[_Tried]) -> list[_Tried]:
        """Those that cost no more than the tolerance."""
        floor = max(each.value for each in tried) * (1 - self.tolerance)
        return [each for each in tried if each.value >= floor]

    def _policy_of(self, setting: Mapping[str, Any]) -> FusionPolicy:
        kept = self.policy.model_dump()
        counts = {key.removeprefix(SOURCE): n for key, n in setting.items() if key.startswith(SOURCE)}
        fields = {name: setting[key] for key, name in FIELDS.items() if key in setting}
        return FusionPolicy.model_validate(kept | {"candidates": kept["candidates"] | counts} | fields)

    def _own(self, key: str) -> Any:
        """The recipe's own value."""
        retrieval, fusion = self.recipe.retrieval, self.recipe.fusion
        own: dict[str, Any] = {
            MODE: fusion.mode, SCALE: fusion.cold_scale, MERGE: retrieval.merge, MOST: retrieval.max_candidates
        }
        own.update({f"{SOURCE}{name}": n for name, n in retrieval.candidates.items()})
        return own.get(key)


def _better(tried: _Tried) -> tuple[float, float]:
    return tried.value, -tried.candidates


def _unusable(dataset: Dataset, bundle: Bundle, domains: Mapping[str, Domain]) -> dict[str, str]:
    """Keys that cannot be searched on this Bundle, with the reason."""
    reasons = {}
    for key in domains:
        name = key.removeprefix(SOURCE)
        if key in {COLD_COUNT, SCALE}:
            if not len(dataset.cold_pairs("validation")[0]):
                reasons[key] = "the validation split has no unseen items to judge it by, as data.split cold_items has"
            elif not bundle.policy.cold_weights:
                reasons[key] = "the Bundle carries nothing over to unseen items"
        elif key.startswith(SOURCE) and name not in bundle.signal_names:
            reasons[key] = f"the Bundle has no signal {name}"
    return reasons


def _needed(recipe: Recipe, bundle: Bundle) -> set[str]:
    """Signals to be scored; the network of `ncf` takes longer than all others together, and is seldom asked."""
    weighed = {*recipe.fusion.signals, *(recipe.fusion.weights or {}), *bundle.policy.weights}
    return {"ncf"} & weighed | {*bundle.signal_names} - {"ncf"}


def _test_fold(dataset: Dataset) -> IntArray:
    """Items that are held out for test: nobody is shown them while something is chosen."""
    if dataset.split != "cold_items":
        return np.empty(0, np.int64)
    fold = dataset.split_settings["cold_fold"]
    return np.flatnonzero([item_fold(item_id) == fold for item_id in dataset.items])


def _targets(dataset: Dataset, components: Components, simulation: Simulation) -> tuple[Targets, Targets]:
    """Validation items of the simulation's users, and their events of unseen items. Held-out items of a user are no
    candidates for each other."""
    users = components.users[simulation.users]
    owners, rows = dataset.cold_pairs("validation")
    taking_part = np.isin(owners, users)
    places, rows = np.searchsorted(users, owners[taking_part]), rows[taking_part]
    lengths = np.bincount(places, minlength=len(users))
    barred = Histories(users, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), rows)
    known = Targets(np.arange(len(users)), components.targets[simulation.users], barred)
    return known, Targets(places.astype(np.int64), rows, barred)
