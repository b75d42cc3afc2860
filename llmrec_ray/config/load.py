"""A recipe's name or a YAML file plus dotted overrides -> one validated `Recipe`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llmrec_ray.config.explain import explain
from llmrec_ray.config.recipe import Recipe
from llmrec_ray.config.search import search_problems
from llmrec_ray.errors import ConfigError

__all__ = ["load_recipe", "override_recipe", "recipe_names", "validate_recipe"]


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("llmrec_ray") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(
    name: str | None = None, *, config: str | Path | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Load a packaged recipe (`name`) or a file (`config`) and apply overrides such as `train.epochs=3`.

    Raises ConfigError naming the key, the value and the remedy.
    """
    origin, text = _read(name, config)
    tree = _parse_yaml(text, origin)
    for override in overrides:
        _apply(tree, override)
    return validate_recipe(tree, origin)


def override_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with dotted overrides applied and everything validated again. Raises ConfigError."""
    tree = recipe.model_dump(mode="json")
    for override in overrides:
        _apply(tree, override)
    return validate_recipe(tree, f"recipe {recipe.name}")


def validate_recipe(tree: dict[str, Any], origin: str) -> Recipe:
    """Validate a parsed recipe; `origin` names it in messages. Raises ConfigError."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_lines(origin, explain(error, tree))) from None
    if problems := search_problems(recipe):
        raise ConfigError(_lines(origin, problems))
    return recipe.model_copy(update={"workspace": recipe.workspace.replace("{name}", recipe.name)})


def _lines(origin: str, problems: Sequence[str]) -> str:
    return "\n  ".join([f"{origin} is not a valid recipe:", *problems])


def _read(name: str | None, config: str | Path | None) -> tuple[str, str]:
    if (name is None) == (config is None):
        raise ConfigError("Give either --recipe NAME or --config FILE.")
    if config is not None:
        path = Path(config)
        if not path.is_file():
            raise ConfigError(f"There is no config file {path}: check the path, or use --recipe with one of "
                              f"{', '.join(recipe_names())}.")
        return str(path), path.read_text(encoding="utf-8")
    if name not in recipe_names():
        raise ConfigError(f"There is no recipe {name!r}: choose one of {', '.join(recipe_names())}, "
                          "or name a file with --config.")
    return f"recipe {name}", (resources.files("llmrec_ray") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def _parse_yaml(text: str, origin: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin} must hold a mapping of sections, not {type(tree).__name__}.")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"The override {override!r} is not of the form section.key=value.")
    *parents, leaf = key.split(".")
    node = tree
    for part in parents:
        child = node.setdefault(part, {})
        if isinstance(child, list) and len(child) == 1:
            [child] = child
        if not isinstance(child, dict):
            raise ConfigError(f"The override {override!r} sets a key below {part!r}, which is a value, not a section.")
        node = child
    try:
        node[leaf] = yaml.safe_load(value)  # YAML 1.1 reads `1e-4` as text, which the schema takes for a number
    except yaml.YAMLError:
        raise ConfigError(f"The value of the override {override!r} is not valid YAML.") from None
