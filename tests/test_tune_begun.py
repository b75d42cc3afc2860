"""What a campaign was started with: found again, compared, and the command that goes on with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmrec_ray import stages
from llmrec_ray.artifact import Workspace
from llmrec_ray.cli.main import run
from llmrec_ray.config import Recipe, override_recipe
from llmrec_ray.errors import (
    ArtifactError,
    ArtifactMismatchError,
    ArtifactNotFoundError,
    ConfigError,
    CorruptArtifactError,
)
from llmrec_ray.storage import folder_names, read_json, write_json_atomic
from llmrec_ray.tune import begun
from llmrec_ray.tune.begun import begun_campaign, check_begun, keep_begun, resume_command
from tests.outcomes import searched_recipe

ID = "0123456789abcdef"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The folder that commands are typed in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dataset_of(workspace: str | Path, id_: str = ID) -> Any:
    return SimpleNamespace(id=id_, uri=f"{Workspace(str(workspace)).root('dataset')}/dataset-{id_}")


def begin(name: str, *overrides: str) -> Recipe:
    """A campaign that was stopped right after it began."""
    recipe = searched_recipe(*overrides)
    keep_begun(Workspace(recipe.workspace), name, recipe, dataset_of(recipe.workspace))
    return recipe


@pytest.mark.parametrize("workspace", [None, "runs/movielens-100k", "runs/{name}"])
def test_a_campaign_is_found_where_recipes_have_their_workspace_by_default(here, workspace):
    recipe = begin("spring", "train.epochs=14")
    found = begun_campaign("spring", workspace)
    assert found.recipe == recipe
    assert found.dataset_uri == f"{here}/runs/movielens-100k/datasets/dataset-{ID}"
    assert resume_command("spring", recipe, Workspace(recipe.workspace)) == "llmrec tune --resume spring"


@pytest.mark.parametrize("workspace", ["work", "a b/{name}"])
def test_the_command_names_another_workspace(here, workspace):
    recipe = begin("spring", f"workspace={workspace}")
    found = begun_campaign("spring", workspace)
    assert found.recipe == recipe
    command = resume_command("spring", recipe, Workspace(recipe.workspace))
    assert shlex.split(command) == ["llmrec", "tune", "--resume", "spring", f"workspace={here}/{recipe.workspace}"]


@pytest.mark.parametrize("uri", ["elsewhere/dataset-1", "s3://bucket/datasets/dataset-1"])
def test_a_dataset_that_lies_elsewhere_is_found_there(here, uri):
    recipe = searched_recipe()
    keep_begun(Workspace(recipe.workspace), "spring", recipe, SimpleNamespace(id=ID, uri=uri))
    assert begun_campaign("spring").dataset_uri == Workspace(uri).uri
    (here / "runs").rename(here / "archive")
    assert begun_campaign("spring", "archive/{name}").dataset_uri == Workspace(uri).uri


def test_credentials_of_a_dataset_are_not_written_down(here):
    recipe = searched_recipe()
    dataset: Any = SimpleNamespace(id=ID, uri="s3://KEY:SECRET@bucket/datasets/dataset-1")
    keep_begun(Workspace(recipe.workspace), "spring", recipe, dataset)
    assert "SECRET" not in (here / "runs" / "movielens-100k" / "tune" / "spring" / "campaign.json").read_text()


def test_a_recipe_is_kept_with_its_keys_in_their_order(here):
    order = "tune.search={train.weight_decay: {uniform: [0, 1]}, model.dropout: {uniform: [0, 0.5]}}"
    begin("spring", order)
    assert [*begun_campaign("spring").recipe.tune.search] == ["train.weight_decay", "model.dropout"]


def test_a_campaign_that_was_moved_goes_on_where_it_is_now(here):
    begin("spring")
    (here / "runs").rename(here / "archive")
    found = begun_campaign("spring", "archive/movielens-100k")
    assert found.recipe.workspace == "archive/movielens-100k"
    assert found.dataset_uri == dataset_of(here / "archive" / "movielens-100k").uri


def test_of_campaigns_of_one_name_the_workspace_is_asked_for_and_said(here):
    begin("spring", "workspace=runs/a b")
    recipe = begin("spring")
    with pytest.raises(ConfigError) as caught:
        begun_campaign("spring")
    assert str(caught.value) == (
        "There are 2 campaigns spring: say which one by 'workspace=runs/a b' or workspace=runs/movielens-100k."
    )
    command = resume_command("spring", recipe, Workspace(recipe.workspace))
    assert command == f"llmrec tune --resume spring workspace={here}/runs/movielens-100k"


def test_a_campaign_that_is_not_there_is_refused_with_those_that_are(here):
    def said(workspace: str | None = None) -> str:
        with pytest.raises(ArtifactNotFoundError) as caught:
            begun_campaign("other", workspace)
        return str(caught.value)

    remedy = "say where it is by workspace=…, or run `llmrec tune` without --resume."
    nowhere = f"There is no campaign other in {here}/runs/*/tune to resume"
    assert said() == f"{nowhere}, and no other: {remedy}"
    begin("spring")
    (here / "runs" / "movielens-100k" / "tune" / "no-campaign").mkdir()
    assert said() == f"{nowhere}, only spring: name one of them, {remedy}"
    begin("autumn")
    assert said() == f"{nowhere}, only autumn and spring: name one of them, {remedy}"
    for name in "abcde":
        begin(name)
    assert said("runs/movielens-100k") == (
        f"There is no campaign other in {here}/runs/movielens-100k/tune to resume, only a, autumn, b, c, d and 2 more: "
        f"name one of them, {remedy}"
    )


def test_a_campaign_that_is_damaged_or_of_an_unknown_recipe_is_refused(here):
    begin("spring")
    file = here / "runs" / "movielens-100k" / "tune" / "spring" / "campaign.json"
    state = json.loads(file.read_text())

    def said(text: str) -> str:
        file.write_text(text)
        with pytest.raises(CorruptArtifactError) as caught:
            begun_campaign("spring")
        return str(caught.value)

    assert said("{").startswith(f"{file} is not valid JSON (")
    assert said("{}") == (
        f"{file} does not say what the campaign spring was started with (recipe: Field required): restore it, or start "
        "another campaign."
    )
    state["recipe"]["train"]["epochs"] = 0
    assert said(json.dumps(state)) == (
        f"{file} holds a recipe that cannot be used (train.epochs: Input should be greater than 0 (got 0)): name the "
        "campaign's recipe by --recipe or --config, or start another campaign."
    )
    state["recipe"]["train"]["patience"] = 0
    assert "(got 0); train.patience: Input should be" in said(json.dumps(state))


@pytest.mark.parametrize(("change", "said"), [
    (lambda train: train.pop("precision"), "train.precision (null, now fp32)"),
    (lambda train: train.update(gone=3), "train.gone (3, now null)"),
])
def test_of_a_campaign_of_a_version_with_other_keys_no_command_is_told(here, change, said):
    recipe = begin("spring")
    file = here / "runs" / "movielens-100k" / "tune" / "spring" / "campaign.json"
    state = json.loads(file.read_text())
    change(state["recipe"]["train"])
    file.write_text(json.dumps(state))
    with pytest.raises(ArtifactMismatchError) as caught:
        check_begun(Workspace(recipe.workspace), "spring", recipe, dataset_of(recipe.workspace), resume=True)
    assert str(caught.value) == (
        f"The campaign spring cannot be resumed, since {said} changed: use the recipe and data it was started with, or "
        "start another campaign."
    )


def test_folders_that_a_user_may_not_look_into_stop_nobody(here, monkeypatch):
    def locked(listed: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
        def names(uri: str) -> list[str]:
            if "/another" in uri:
                raise PermissionError("Permission denied")
            return listed(uri)
        return names

    recipe = begin("spring")
    begin("spring", "workspace=runs/another")
    for name in ("file_names", "folder_names"):
        monkeypatch.setattr(begun, name, locked(getattr(begun, name)))
    assert begun_campaign("spring").recipe == recipe
    assert resume_command("spring", recipe, Workspace(recipe.workspace)) == "llmrec tune --resume spring"
    with pytest.raises(ArtifactNotFoundError, match="only spring: name one of them"):
        begun_campaign("other")


def test_a_campaign_that_cannot_be_read_is_named(here, monkeypatch):
    def forbidden(uri: str) -> None:
        raise PermissionError("Permission denied")

    begin("spring")
    monkeypatch.setattr(begun, "read_json", forbidden)
    with pytest.raises(ArtifactError) as caught:
        begun_campaign("spring")
    file = here / "runs" / "movielens-100k" / "tune" / "spring" / "campaign.json"
    assert str(caught.value) == f"{file} cannot be read (Permission denied): let this user read it."


def test_what_changed_is_told_with_both_values():
    paths = "data.interactions.paths=[/data/behaviour/of/people/in/a/very/long/name/part-{}.csv]".format
    recipe = begin("spring", "train.learning_rate=0.00312301", paths(1))
    now = override_recipe(
        recipe, ["train.learning_rate=0.00312302", paths(2), "train.epochs=99", "train.num_workers=4"]
    )
    with pytest.raises(ArtifactMismatchError) as caught:
        check_begun(Workspace(recipe.workspace), "spring", now, dataset_of(recipe.workspace, "f" * 16), resume=True)
    assert str(caught.value) == (
        "The campaign spring cannot be resumed, since data.interactions.paths (…g/name/part-1.csv], now "
        f"…g/name/part-2.csv]), train.epochs ({recipe.train.epochs}, now 99), train.learning_rate (0.00312301, now "
        f"0.00312302) and the Dataset ({ID}, now {'f' * 16}) changed: use the recipe and data it was started with, as "
        "`llmrec tune --resume spring` does, or start another campaign."
    )


def test_of_many_and_long_changes_a_part_is_told():
    recipe = begin("spring")
    now = override_recipe(recipe, [
        "tune.search={model.dropout: {uniform: [0, 0.5]}}", "seed=7", "model.dropout=0.31", "train.epochs=99",
        "train.patience=9", "train.batch_size=77", "name=" + "x" * 60, f"workspace={recipe.workspace}",
    ])
    with pytest.raises(ArtifactMismatchError) as caught:
        check_begun(Workspace(recipe.workspace), "spring", now, dataset_of(recipe.workspace), resume=True)
    said = str(caught.value)
    assert f"name (movielens-100k, now {'x' * 47}…)" in said
    assert " and 6 more changed: use the recipe" in said


@dataclass
class Stage:
    """What the command line calls instead of running a campaign."""

    recipe: Recipe | None = None
    dataset: str | None = None
    resume: str | None = None

    def __call__(self, recipe: Recipe, dataset: str | None, *, resume: str | None) -> Any:
        self.recipe, self.dataset, self.resume = recipe, dataset, resume
        return SimpleNamespace(id=ID, uri="uri", manifest=SimpleNamespace(metrics={}))


@pytest.fixture
def stage(monkeypatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(stages, "tune_stage", stage)
    return stage


def test_a_campaign_goes_on_with_the_recipe_and_data_that_it_has(here, stage):
    recipe = begin("spring", "workspace=work", "tune.trials=4")
    command = resume_command("spring", recipe, Workspace("work"))
    assert run([*shlex.split(command)[1:]]) == 0
    assert stage.recipe is not None and stage.recipe == recipe.model_copy(update={"workspace": stage.recipe.workspace})
    assert Workspace(stage.recipe.workspace).uri == f"{here}/work"
    assert (stage.dataset, stage.resume) == (f"{here}/work/datasets/dataset-{ID}", "spring")


def test_overrides_and_a_dataset_change_what_a_campaign_goes_on_with(stage):
    begin("spring", "tune.trials=4")
    assert run(["tune", "--resume", "spring", "--dataset", "there", "tune.trials=6", "train.epochs=3"]) == 0
    assert stage.recipe is not None
    assert (stage.recipe.tune.trials, stage.recipe.train.epochs, stage.dataset) == (6, 3, "there")


def test_a_campaign_goes_on_with_a_recipe_that_is_named(stage):
    begin("spring", "tune.trials=4")
    assert run(["tune", "--recipe", "movielens-100k", "--resume", "spring"]) == 0
    assert stage.recipe is not None
    assert (stage.recipe.tune.trials, stage.dataset, stage.resume) == (16, None, "spring")


@pytest.mark.parametrize(("arguments", "status", "said"), [
    ([], 2, "There is no recipe to tune: name one with --recipe or --config, or a campaign to go on with by --resume."),
    (["--policy-only"], 2,
     "There is no recipe to tune: name one with --recipe or --config."),
    (["--resume", "spring", "train.epochs=-1"], 2,
     "The override train.epochs=-1 is not valid for recipe movielens-100k:\n  train.epochs: Input should be greater "
     "than 0 (got -1)"),
    (["--resume", "spring", "workspace=3"], 2,
     "The override of workspace is not valid: Input should be a valid string."),
])
def test_what_cannot_go_on_is_refused_on_the_command_line(capsys, stage, arguments, status, said):
    begin("spring")
    assert run(["tune", *arguments]) == status
    assert capsys.readouterr().err == f"llmrec tune: {said}\n"


def test_folders_are_listed_without_files(here):
    write_json_atomic(f"{here}/a/b/x.json", {"z": 1, "y": 2}, sort_keys=False)
    write_json_atomic(f"{here}/a/x.json", {"z": 1, "y": 2})
    assert folder_names(f"{here}/a") == ["b"] and folder_names(f"{here}/none") == []
    assert [*read_json(f"{here}/a/b/x.json")] == ["z", "y"] and [*read_json(f"{here}/a/x.json")] == ["y", "z"]
