"""A recipe's own input files and a person -> which files still hold the person. They are read, never changed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import polars as pl

from llmrec_ray.config import DataConfig, TableConfig
from llmrec_ray.data.parse import parse_piece
from llmrec_ray.data.pieces import cut_pieces
from llmrec_ray.data.sources import SourceFile, find_sources
from llmrec_ray.errors import DataError, MissingInputError
from llmrec_ray.types import Columns

__all__ = ["event_files", "rows_left"]

logger = logging.getLogger(__name__)
NOTHING: dict[str, Any] = {"interactions": (), "items": (), "users": (), "feedback": ()}


def rows_left(data: DataConfig, raw_folder: Path, user_id: str) -> dict[str, int]:
    """File of `data.interactions` or `data.users` -> how many rows are the person's; files without one are left out.

    A file that cannot be read is told of in the log and left out.
    """
    alone: list[dict[str, Any]] = [
        {table: (section.model_copy(update={"paths": (path,)}),)}
        for table, sections in (("interactions", data.interactions), ("users", data.users))
        for section in sections for path in section.paths
    ]
    sources = [source for section in alone for source in _sources(data, section, raw_folder)]
    return {source.uri: rows for source in sources if (rows := _count(source, user_id))}


def event_files(data: DataConfig, raw_folder: Path, events_folder: Path | None) -> list[SourceFile]:
    """The event logs of endpoints that `data.feedback` names, each once."""
    alone = ({"feedback": (path,)} for path in data.feedback)
    found = [source for section in alone for source in _sources(data, section, raw_folder, events_folder)]
    return [*{source.uri: source for source in found}.values()]


def _sources(
    data: DataConfig, sections: dict[str, Any], raw_folder: Path, events_folder: Path | None = None
) -> list[SourceFile]:
    """Files of one path alone, so that one that is missing does not hide the others."""
    try:
        return find_sources(data.model_copy(update=NOTHING | sections), raw_folder, events_folder)
    except MissingInputError as error:
        logger.warning("Input files cannot be looked at: %s", error)
        return []


def _count(source: SourceFile, user_id: str) -> int:
    column = source.config.id if isinstance(source.config, TableConfig) else Columns.USER_ID
    theirs = pl.col(column).cast(pl.String) == user_id
    try:
        blocks = (block for piece in cut_pieces([source]) for block in parse_piece(piece))
        return sum(block.good.select(theirs.sum()).item() for block in blocks)
    except DataError as error:
        logger.warning("%s was not looked at: %s", source.name, error)
        return 0
