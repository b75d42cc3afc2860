"""Shared by all tests: one local Ray per session, a tiny text encoder with random weights, small known data."""

from __future__ import annotations

import logging
import os

os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
from hypothesis import settings

from llmrec_ray.config import Recipe
from tests.boards import board_recipe, write_board
from tests.tiny_encoder import write_tiny_encoder

settings.register_profile("untimed", deadline=None)  # how long an example takes says nothing on a busy machine
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def package_logging_as_before():
    """The command line points the package's log at stderr, which in a test is closed afterwards."""
    log = logging.getLogger("llmrec_ray")
    before = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = before[0], before[1]
    log.setLevel(before[2])


@pytest.fixture(scope="session")
def ray_session():
    """The session's local Ray; 8 logical CPUs on whatever cores there are."""
    from llmrec_ray.cluster import connected

    with connected(num_cpus=8):
        yield


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """Folder of a two-layer BERT with random weights and a tokenizer trained on colour words."""
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny_encoder"))


@pytest.fixture(scope="session")
def board_folder(tmp_path_factory) -> Path:
    """Files of a checkerboard data set."""
    folder = tmp_path_factory.mktemp("board")
    write_board(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(board_folder, tiny_encoder) -> Recipe:
    """A recipe over the checkerboard and the tiny encoder."""
    return board_recipe(board_folder, encoder={"model": str(tiny_encoder)})


@pytest.fixture(scope="session")
def tiny_release(tiny_recipe, tmp_path_factory):
    """A published Release over the checkerboard: fitted signals, random towers, the tiny encoder."""
    from llmrec_ray.artifact import Workspace
    from tests.tiny_release import publish_tiny_release

    return publish_tiny_release(tiny_recipe, Workspace(str(tmp_path_factory.mktemp("tiny_release"))))
