"""What a campaign was started with, as it stands in its folder -> the recipe that goes on with it, and the command.

    <workspace>/tune/<name>/campaign.json    recipe, and id of the Dataset; its URI too where that is elsewhere

Does not know Ray.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import Recipe, as_override, has_credentials, validate_recipe
from llmrec_ray.data import Dataset
from llmrec_ray.errors import (
    ArtifactError,
    ArtifactMismatchError,
    ArtifactNotFoundError,
    ConfigError,
    CorruptArtifactError,
)
from llmrec_ray.storage import file_names, folder_names, read_json, write_json_atomic
from llmrec_ray.tune.written import setting_text

__all__ = ["Begun", "begun_campaign", "campaign_root", "check_begun", "keep_begun", "resume_command"]

MAY_DIFFER = (
    "workspace", "num_cpus", "serve", "tune.name", "tune.trials", "tune.time_budget_s", "tune.max_concurrent",
    "tune.finalists", "tune.finalist_seeds", "tune.fresh_seeds", "tune.score_test", "tune.policy_tolerance",
    "train.num_workers", "train.min_workers", "train.use_gpu", "train.max_failures", "train.sharding",
    "train.offload", "train.accumulation_steps", "encoder.num_actors", "encoder.max_batch_tokens",
    "evaluate.batch_users",
)
"""Settings that may be others when a campaign is resumed: how long it goes on, on how many machines, in what pieces."""
BEGUN = "campaign.json"
BY_DEFAULT = str(Recipe.model_fields["workspace"].default)
NAMED, WIDTH, LEAD = 5, 48, 12


@dataclass(frozen=True)
class Begun:
    """A campaign that is there: its recipe, with the workspace that it lies in, and the URI of its Dataset."""

    recipe: Recipe
    dataset_uri: str


class _State(BaseModel):
    """The file."""

    model_config = ConfigDict(frozen=True)
    recipe: dict[str, Any]
    dataset: str
    dataset_uri: str | None = None
    """None in the campaign's workspace, which may be moved."""


def campaign_root(workspace: Workspace, name: str) -> str:
    """Where a campaign lies while it runs."""
    return f"{workspace.uri}/tune/{name}"


def keep_begun(workspace: Workspace, name: str, recipe: Recipe, dataset: Dataset) -> None:
    """Write down what a campaign is run with, but for credentials of its Dataset."""
    uri = Workspace(dataset.uri).uri
    is_left_out = uri == _dataset_uri(workspace, dataset.id) or has_credentials(uri)
    state = _State(recipe=recipe.model_dump(mode="json"), dataset=dataset.id, dataset_uri=None if is_left_out else uri)
    write_json_atomic(f"{campaign_root(workspace, name)}/{BEGUN}", state.model_dump(), sort_keys=False)


def begun_campaign(name: str, workspace: str | None = None) -> Begun:
    """What a campaign was started with.

    workspace: folder or URI; without one every folder is looked into in which a recipe has its workspace by default.
    Raises ArtifactNotFoundError for a campaign that is not there, ConfigError for one that is in several workspaces,
    CorruptArtifactError or ArtifactError for one that cannot be read.
    """
    pattern = workspace or BY_DEFAULT
    there = [each for each in _workspaces(pattern) if _has(each, name)]
    if not there:
        raise _missing(name, pattern)
    if len(there) > 1:
        listed = " or ".join(shlex.quote(as_override("workspace", each)) for each in there)
        raise ConfigError(f"There are {len(there)} campaigns {name}: say which one by {listed}.")
    [found] = there
    state = _read(Workspace(found), name)
    try:
        recipe = validate_recipe(state.recipe, "it")
    except ConfigError as error:
        problem = "; ".join(map(str.strip, str(error).splitlines()[1:]))
        raise CorruptArtifactError(
            f"{campaign_root(Workspace(found), name)}/{BEGUN} holds a recipe that cannot be used ({problem}): name the "
            "campaign's recipe by --recipe or --config, or start another campaign."
        ) from None
    if Workspace(recipe.workspace).uri != Workspace(found).uri:
        recipe = recipe.model_copy(update={"workspace": found})
    return Begun(recipe, state.dataset_uri or _dataset_uri(Workspace(found), state.dataset))


def resume_command(name: str, recipe: Recipe, workspace: Workspace) -> str:
    """What goes on with a campaign when it is typed; with the workspace where that would not be found."""
    words = ["llmrec", "tune", "--resume", name]
    others = [each for each in _workspaces(BY_DEFAULT) if _has(each, name) and Workspace(each).uri != workspace.uri]
    if others or Workspace(BY_DEFAULT.replace("{name}", recipe.name)).uri != workspace.uri:
        words.append(as_override("workspace", workspace.uri))
    return shlex.join(words)


def check_begun(workspace: Workspace, name: str, recipe: Recipe, dataset: Dataset, *, resume: bool) -> None:
    """Look whether the campaign is the one that was begun, or new.

    Raises ConfigError when it is not new, but `resume` is not set; when it is: ArtifactNotFoundError,
    CorruptArtifactError or ArtifactError for one that cannot be read, ArtifactMismatchError for another one.
    """
    folder, command = f"{workspace.uri}/tune", resume_command(name, recipe, workspace)
    if not resume:
        if not _has(workspace.uri, name):
            return
        raise ConfigError(
            f"There is a campaign {name} in {folder} already: go on with it by `{command}`, or choose another "
            "tune.name."
        )
    before = _read(workspace, name)
    changed = _differences(before.recipe, recipe)
    if before.dataset != dataset.id:
        changed.append(f"the Dataset ({before.dataset}, now {dataset.id})")
    if changed:
        how = f", as `{command}` does" if _is_read_as_kept(before.recipe) else ""
        raise ArtifactMismatchError(
            f"The campaign {name} cannot be resumed, since {_listed(changed)} changed: use the recipe and data it was "
            f"started with{how}, or start another campaign."
        )


def _read(workspace: Workspace, name: str) -> _State:
    uri = f"{campaign_root(workspace, name)}/{BEGUN}"
    try:
        return _State.model_validate(read_json(uri))
    except FileNotFoundError:
        raise _missing(name, workspace.uri) from None
    except OSError as error:
        raise ArtifactError(f"{uri} cannot be read ({error}): let this user read it.") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise CorruptArtifactError(
            f"{uri} does not say what the campaign {name} was started with ({where}: {problem['msg']}): restore it, or "
            "start another campaign."
        ) from None


def _differences(before: dict[str, Any], recipe: Recipe) -> list[str]:
    """Keys that may not differ, with both values. Those that one of the two lacks differ too, even from a default:
    trials of that campaign have checkpoints of runs that are compared as strictly, and would fail one by one."""
    changes = _changes(before, recipe.model_dump(mode="json"))
    return sorted(f"{key} ({_both(old, new)})" for key, old, new in changes if not key.startswith(MAY_DIFFER))


def _is_read_as_kept(tree: dict[str, Any]) -> bool:
    """Not the recipe of a version that had other keys, which no command goes on with."""
    try:
        return not _differences(tree, validate_recipe(tree, "it"))
    except ConfigError:
        return False


def _workspaces(pattern: str) -> list[str]:
    """What a workspace stands for, in which {name} may be any recipe's: itself, or the folders that there are."""
    before, named, after = pattern.partition("{name}")
    if not named:
        return [pattern]
    parent, slash, start = before.rpartition("/")
    end = after.partition("/")[0]
    shape = re.compile(f"{re.escape(start)}(.+){re.escape(end)}")
    found = [shape.fullmatch(folder) for folder in _folders(parent or slash or ".")]
    return [pattern.replace("{name}", match[1]) for match in found if match]


def _has(workspace: str, name: str) -> bool:
    """Whether a campaign is there, and where this user may look; a folder of another may stand beside."""
    with contextlib.suppress(PermissionError):
        return BEGUN in file_names(campaign_root(Workspace(workspace), name))
    return False


def _folders(uri: str) -> list[str]:
    """Names of folders; none where this user may not look."""
    with contextlib.suppress(PermissionError):
        return folder_names(uri)
    return []


def _dataset_uri(workspace: Workspace, id_: str) -> str:
    return f"{workspace.root('dataset')}/dataset-{id_}"


def _missing(name: str, pattern: str) -> ArtifactNotFoundError:
    names = sorted({
        other for each in _workspaces(pattern)
        for other in _folders(f"{Workspace(each).uri}/tune") if _has(each, other)
    })
    folder = f"{Workspace(pattern.replace('{name}', '*')).uri}/tune"
    remedy = "say where it is by workspace=…, or run `llmrec tune` without --resume."
    if not names:
        return ArtifactNotFoundError(f"There is no campaign {name} in {folder} to resume, and no other: {remedy}")
    return ArtifactNotFoundError(
        f"There is no campaign {name} in {folder} to resume, only {_listed(names)}: name one of them, {remedy}"
    )


def _listed(entries: Sequence[str]) -> str:
    """`a, b and c`, at most NAMED of them."""
    shown = [*entries] if len(entries) <= NAMED else [*entries[:NAMED], f"{len(entries) - NAMED} more"]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def _changes(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys that differ, with both values; sections of lists that are equally long by their place."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before.keys() | now.keys():
            yield from _changes(before.get(name), now.get(name), f"{path}.{name}".strip("."))
    elif _are_sections(before) and _are_sections(now) and len(before) == len(now):
        for place, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _changes(old, new, f"{path}.{place}" if len(now) > 1 else path)
    elif before != now:
        yield path, before, now


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _both(before: Any, now: Any) -> str:
    """`14, now 4`; of what is long only the part from where the two differ."""
    texts = [repr(value) if isinstance(value, float) else setting_text(value) for value in (before, now)]
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    if max(map(len, texts)) > WIDTH and (start := alike - LEAD) > 0:
        texts = [f"…{text[start:]}" for text in texts]
    old, new = (text if len(text) <= WIDTH else f"{text[:WIDTH - 1]}…" for text in texts)
    return f"{old}, now {new}"
