"""A campaign's search against the recipe around it: which keys may be searched, and which values they take.

Values are tried by validating the recipe with them, so that no rule is written twice.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from llmrec_ray.config.explain import explain, near_keys
from llmrec_ray.config.recipe import Recipe
from llmrec_ray.config.section import Section
from llmrec_ray.config.tune import GRACE_EPOCHS, Choice, Domain, IntRange, LogUniform, needs_no_training
from llmrec_ray.errors import ConfigError

__all__ = ["as_override", "check_campaign", "domain_of", "search_problems", "with_settings"]

HOW = "it says how training is computed, not what is learned"
ANSWERS = "it is about answering requests, which trials do not"
WEIGHTS = "weights of signals are always searched, on stored scores, where fusion.weights is left out"
REFUSED: dict[str, str] = {
    "name": "it is only a name",
    "workspace": "it only says where results are kept",
    "num_cpus": HOW,
    "seed": "seeds are luck: tune.fresh_seeds says with which the winner is trained again",
    "data": "trials on different data cannot be compared: start a campaign for each",
    "evaluate": "it says how trials are measured",
    "index": "trials rank all items exactly",
    "serve": ANSWERS,
    "tune": "it describes the campaign itself",
    "train.epochs": "all trials may train as long: set tune.epochs",
    "train.patience": "tune.scheduler says when trials end",
    "fusion.signals": "trials are compared by what its signals give together: name all that may help",
    "fusion.weights": WEIGHTS,
    "fusion.newcomer_events": WEIGHTS,
    "fusion.cold_weights": "of what is about new items only fusion.cold_scale is searched",
    "fusion.cascade": "fusion.mode may be searched, with fusion.cascade as the recipe has it",
    "retrieval.candidates": "the numbers of each source are: name one, such as retrieval.candidates.neural",
    "encoder.query_prompt": ANSWERS,
} | {f"encoder.{name}": HOW for name in (
    "max_batch_tokens", "runtime", "attention", "gradient_checkpointing", "cached_states_gb", "num_actors",
)} | {f"train.{name}": HOW for name in (
    "num_workers", "min_workers", "use_gpu", "sharding", "offload", "accumulation_steps", "checkpoint_steps",
    "max_failures", "precision", "compile",
)}
NEEDS_TUNING = {
    "encoder.learning_rate": {"top_layers", "lora", "full"}, "encoder.top_layers": {"top_layers"},
    "encoder.lora_rank": {"lora"}, "encoder.lora_alpha": {"lora"},
}
MUTABLE = (
    "train.learning_rate", "train.weight_decay", "train.gradient_clip", "train.loss", "train.focal_gamma",
    "train.negatives", "train.popularity_power", "train.augment.crop", "train.augment.mask",
    "train.augment.substitute", "model.dropout", "model.id_dropout", "encoder.learning_rate", "encoder.layer_decay",
    "encoder.gradient_share",
)
"""What population-based training may change: no shape of weights, no number of steps."""
COMBINATIONS = 500


def search_problems(recipe: Recipe) -> list[str]:
    """What is wrong with `tune.search` in this recipe, one line for each key; nothing where nothing is searched."""
    return [
        f"tune.search.{key}: {problem}"
        for key, domain in recipe.tune.search.items() if (problem := _problem(recipe, key, domain))
    ]


def check_campaign(recipe: Recipe) -> None:
    """Raise ConfigError for what only a campaign minds: seeds, epochs, rungs."""
    tune, epochs = recipe.tune, recipe.tune.epochs or recipe.train.epochs
    every = tune.pbt_rules.every_epochs
    for name, whom, it in (("finalist_seeds", "finalists", "them"), ("fresh_seeds", "the winner", "it")):
        if recipe.seed in getattr(tune, name):
            raise ConfigError(
                f"tune.{name} names {recipe.seed}, which is the seed of the search, so {whom} would be tried again on "
                f"what chose {it}: name other seeds."
            )
    if tune.grace_epochs != GRACE_EPOCHS and tune.grace_epochs >= epochs:
        raise ConfigError(
            f"tune.grace_epochs is {tune.grace_epochs}, but a trial has {epochs} epochs, so asha would end none: set "
            "tune.grace_epochs lower, or tune.scheduler to none."
        )
    if tune.scheduler == "pbt" and every >= epochs:
        raise ConfigError(
            f"tune.pbt.every_epochs is {every}, but a trial has {epochs} epochs, so none would take over from another: "
            "set tune.pbt.every_epochs lower, or tune.scheduler to none."
        )
    if tune.scheduler == "pbt" and tune.trials < 2:
        raise ConfigError(
            "tune.trials is 1, but population-based training compares trials: raise tune.trials, or set "
            "tune.scheduler to none."
        )


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with these values at these dotted keys. Raises ConfigError when they do not go together."""
    tree = _tree(recipe, settings)
    try:
        changed = Recipe.model_validate(tree)
    except ValidationError as error:
        given = " ".join(as_override(key, value) for key, value in settings.items())
        lines = "\n  ".join(explain(error, tree))
        raise ConfigError(f"recipe {recipe.name} with {given} is not a valid recipe:\n  {lines}") from None
    return changed.model_copy(update={"tune": recipe.tune})


def as_override(key: str, value: Any) -> str:
    """The dotted override that sets a key to a value."""
    return f"{key}={_written(value)}"


def domain_of(key: str, domain: Domain) -> Domain:
    """The domain with its choices as a recipe holds them: `1e-4` of YAML as a number, not as text."""
    if not isinstance(domain, Choice):
        return domain
    field = TypeAdapter(_field(key))
    return Choice(choice=tuple(
        field.dump_python(field.validate_python(value), mode="json") for value in domain.choice
    ))


def _problem(recipe: Recipe, key: str, domain: Domain) -> str | None:
    try:
        field = _field(key)
    except KeyError:
        return f"unknown key{near_keys(key.split('.'))}"
    return (
        _refused(recipe, key, field) or _wrong_value(field, domain) or _without_effect(recipe, key)
        or _impossible(recipe, key, domain)
    )


def _field(key: str) -> Any:
    """The type of a dotted key's values. Raises KeyError for one that no recipe has."""
    *parents, last = key.split(".")
    section: Any = Recipe
    for part in parents:
        kind = section.model_fields[part].annotation
        entries = next((one for one in (kind, *get_args(kind)) if get_origin(one) is dict), None)
        if entries is not None and part == parents[-1] and last in get_args(get_args(entries)[0]):
            return get_args(entries)[1]
        section = next((one for one in (kind, *get_args(kind)) if _is_section(one)), None)
        if section is None:
            raise KeyError(key)
    field = section.model_fields[last]
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _refused(recipe: Recipe, key: str, field: Any) -> str | None:
    """Why no campaign, or not this one, searches the key."""
    if needs_no_training(key):
        return None
    if reason := next((REFUSED[name] for name in REFUSED if f"{key}.".startswith(f"{name}.")), None):
        return f"this key is not searched, since {reason}"
    if _is_section(field):
        return "this key is a section: name a key of it"
    if recipe.tune.scheduler == "pbt" and key not in MUTABLE:
        return (
            "population-based training changes settings in the middle of training, where this one cannot change: set "
            f"tune.scheduler to asha, or search only {', '.join(MUTABLE)}"
        )
    return None


def _wrong_value(field: Any, domain: Domain) -> str | None:
    """Of the values alone, before the rules between keys."""
    for value in _samples(domain):
        try:
            TypeAdapter(field).validate_python(value)
        except ValidationError as error:
            [problem, *_] = error.errors()
            hint = "; {int: [low, high]} gives whole numbers" if problem["type"] == "int_from_float" else ""
            return f"{_written(value)} is not possible: {problem['msg']}{hint}"
    return None


def _without_effect(recipe: Recipe, key: str) -> str | None:
    tuning, needed = recipe.tune.search.get("encoder.tuning"), NEEDS_TUNING.get(key)
    possible = {recipe.encoder.tuning, *(tuning.choice if isinstance(tuning, Choice) else ())}
    if needed is None or needed & possible:
        return None
    return (
        f"it has no effect while encoder.tuning is {recipe.encoder.tuning}: set encoder.tuning to "
        f"{' or '.join(sorted(needed))}, or leave it out"
    )


def _impossible(recipe: Recipe, key: str, domain: Domain) -> str | None:
    """What the recipe's rules say to a value, unless it goes with choices of other keys."""
    for value in _samples(domain):
        said = _rule(recipe, {key: value})
        if said and all(_rule(recipe, beside | {key: value}) for beside in _choices_beside(recipe, key)):
            return f"{_written(value)} is not possible: {said}"
    return None


def _samples(domain: Domain) -> tuple[Any, ...]:
    """Every choice, or the ends of a range and, unless it holds whole numbers only, one that is none."""
    if isinstance(domain, Choice):
        return domain.choice
    if isinstance(domain, IntRange):
        return domain.int
    low, high = domain.loguniform if isinstance(domain, LogUniform) else domain.uniform
    return low, low + (high - low) / math.pi, high


def _choices_beside(recipe: Recipe, key: str) -> Iterator[dict[str, Any]]:
    """Choices of one other key, then of two: rules are between few keys."""
    others = {
        other: domain.choice for other, domain in recipe.tune.search.items()
        if other != key and isinstance(domain, Choice) and _is_key(other)
    }
    beside = (
        dict(zip(names, values, strict=True))
        for size in (1, 2) for names in itertools.combinations(others, size)
        for values in itertools.product(*(others[name] for name in names))
    )
    return itertools.islice(beside, COMBINATIONS)


def _is_key(key: str) -> bool:
    try:
        _field(key)
    except KeyError:
        return False
    return True


def _rule(recipe: Recipe, settings: Mapping[str, Any]) -> str | None:
    tree = _tree(recipe, settings)
    try:
        Recipe.model_validate(tree)
    except ValidationError as error:
        return explain(error, tree)[0]
    return None


def _tree(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with settings, not validated, and without its campaign."""
    tree = recipe.model_dump(mode="json", exclude={"tune"})
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = tree
        for part in parents:
            node = node[part]
        node[last] = value
    return tree


def _written(value: Any) -> str:
    """In one line, as YAML has it."""
    return yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize).removesuffix("...\n").strip()
