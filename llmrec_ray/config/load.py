"""A recipe's name or a YAML file plus dotted overrides -> one validated `Recipe`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from llmrec_ray.config.explain import explain
from llmrec_ray.config.recipe import Recipe
from llmrec_ray.config.search import search_problems
from llmrec_ray.config.section import has_credentials
from llmrec_ray.errors import ConfigError

__all__ = ["load_recipe", "overridden_workspace", "override_recipe", "recipe_names", "validate_recipe"]

OVERRIDE_WIDTH = 80


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("llmrec_ray") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(
    name: str | None = None, *, config: str | Path | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Load a packaged recipe (`name`) or a file (`config`) and apply overrides such as `train.epochs=3`.

    Raises ConfigError naming the key, the value and the remedy, and the override where one is to blame.
    """
    origin, text = _read(name, config)
    return _overridden(_parse_yaml(text, origin), overrides, origin)


def override_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with dotted overrides applied and everything validated again. Raises ConfigError."""
    return _overridden(recipe.model_dump(mode="json"), overrides, f"recipe {recipe.name}")


def overridden_workspace(overrides: Sequence[str]) -> str | None:
    """The workspace that overrides of a recipe name, as they write it; None when they name none. Raises ConfigError."""
    tree = _with({}, overrides)
    if "workspace" not in tree:
        return None
    field = Recipe.model_fields["workspace"]
    kind: Any = Annotated[(field.annotation, *field.metadata)]
    try:
        return str(TypeAdapter(kind).validate_python(tree["workspace"]))
    except ValidationError as error:
        [problem, *_] = error.errors()
        said = problem["ctx"]["error"] if problem["type"] == "value_error" else problem["msg"]
        raise ConfigError(f"The override of workspace is not valid: {said}.") from None


def validate_recipe(tree: dict[str, Any], origin: str) -> Recipe:
    """Validate a parsed recipe; `origin` names it in messages. Raises ConfigError."""
    found = _checked(tree)
    if isinstance(found, Recipe):
        return found
    raise ConfigError(_lines(f"{origin} is not a valid recipe:", found))


def _checked(tree: dict[str, Any]) -> Recipe | list[str]:
    """The recipe, or what is wrong with it, one line each."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        return explain(error, tree)
    if problems := search_problems(recipe):
        return problems
    return recipe.model_copy(update={"workspace": recipe.workspace.replace("{name}", recipe.name)})


def _overridden(tree: dict[str, Any], overrides: Sequence[str], origin: str) -> Recipe:
    """What is wrong is put down to overrides when the recipe is valid without them."""
    found = _checked(_with(tree, overrides))
    if isinstance(found, Recipe):
        return found
    if not overrides or isinstance(_checked(tree), list):
        raise ConfigError(_lines(f"{origin} is not a valid recipe:", found))
    blamed = _blamed(tree, overrides, found)
    noun, verb = ("override", "is") if len(blamed) == 1 else ("overrides", "are")
    shown = " ".join(_shown(override) for override in blamed)
    raise ConfigError(_lines(f"The {noun} {shown} {verb} not valid for {origin}:", found))


def _blamed(tree: dict[str, Any], overrides: Sequence[str], problems: Sequence[str]) -> list[str]:
    """Those without which a problem would not be there; all, when that cannot be told, as when two say the same."""
    blamed = []
    for place, override in enumerate(overrides):
        try:
            left = _checked(_with(tree, [*overrides[:place], *overrides[place + 1:]]))
        except ConfigError:  # another override needs it
            left = []
        if not {*problems} <= {*(left if isinstance(left, list) else ())}:
            blamed.append(override)
    return blamed or [*overrides]


def _shown(override: str) -> str:
    """In a message: not too long, and without credentials."""
    key = override.partition("=")[0]
    if has_credentials(override):
        return f"{key}=…"
    return override if len(override) <= OVERRIDE_WIDTH else f"{override[:OVERRIDE_WIDTH - 1]}…"


def _lines(head: str, problems: Sequence[str]) -> str:
    return "\n  ".join([head, *problems])


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


def _with(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the tree with overrides applied."""
    changed = copy.deepcopy(tree)
    for override in overrides:
        _apply(changed, override)
    return changed


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
