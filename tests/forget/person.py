"""Somebody who is to be forgotten, in a checkerboard with other people."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import Recipe
from llmrec_ray.events import Event
from llmrec_ray.forget import Forgotten, forget
from llmrec_ray.recommend import Pipeline, Request
from llmrec_ray.release import current_uri, load_release
from tests.boards import write_board

WHO = "person-4711@example.org"


def write_log(folder: Path, **names: str) -> None:
    """A checkerboard some of whose users are called otherwise, with a bad row of each."""
    write_board(folder)
    log = pl.read_csv(folder / "log.csv").with_columns(pl.col("who").replace(names))
    bad = pl.DataFrame([{"who": user, "what": "i001", "when": ""} for user in (*names.values(), "u001")])
    pl.concat([log.cast(pl.String), bad]).write_csv(folder / "log.csv")


def run(recipe: Recipe, workspace: Workspace, user_id: str = WHO) -> Forgotten:
    return forget(recipe, user_id, workspace, Path(workspace.uri) / "raw")


def answers(workspace: Workspace, users: list[str]) -> list[tuple]:
    pipeline = Pipeline.of_release(load_release(current_uri(workspace)))
    found = pipeline.recommend([Request(user_id=user, k=20, explain=True) for user in users])
    return [[(item.item_id, item.score, item.shares) for item in answer.items] for answer in found]


def event(event_id: str, user_id: str, item_id: str = "i001") -> Event:
    return Event(event_id=event_id, user_id=user_id, item_id=item_id, timestamp=float(item_id[1:]))
