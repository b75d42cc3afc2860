"""A workspace with a Release over logs that name a person."""

from __future__ import annotations

import gzip

import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import Recipe
from llmrec_ray.events import EventStore
from llmrec_ray.release import Release
from tests.boards import board_recipe
from tests.forget.person import WHO, event, write_log
from tests.tiny_release import publish_tiny_release


@pytest.fixture
def recipe(tmp_path, tiny_encoder) -> Recipe:
    write_log(tmp_path, u006=WHO)
    recipe = board_recipe(tmp_path, encoder={"model": str(tiny_encoder)}, model={"user_embedding": True})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_bad_ratio": 0.1})})


@pytest.fixture
def workspace(recipe) -> Workspace:
    return Workspace(recipe.workspace)


@pytest.fixture
def release(recipe, workspace) -> Release:
    return publish_tiny_release(recipe, workspace)


@pytest.fixture
def fed(recipe, workspace, tmp_path) -> Recipe:
    """The recipe with feedback: the endpoint's own events, and an archive that is packed."""
    archive = tmp_path / "archive"
    archive.mkdir()
    lines = [event(f"x{n}", user, "i003").model_dump_json() + "\n" for n, user in enumerate([WHO, "u001", "u002", WHO])]
    with gzip.open(archive / "20200101-old.jsonl.gz", "wt") as packed:
        packed.writelines(lines)
    with EventStore.open(workspace.local_folder("events")) as store:
        store.record([event("a", WHO), event("b", "u001", "i002")])
    data = recipe.data.model_copy(update={"feedback": ("{events}", str(archive)), "repeats": "last"})
    return recipe.model_copy(update={"data": data})
