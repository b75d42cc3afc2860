"""Packages whose public names are imported when they are asked for."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from llmrec_ray import train


@pytest.fixture(params=["llmrec_ray.train", "llmrec_ray.tune"])
def package(request) -> ModuleType:
    return importlib.import_module(request.param)


def test_every_public_name_can_be_asked_for(package):
    assert all(callable(getattr(package, name)) for name in package.__all__)


def test_another_name_is_an_error_as_in_every_module(package):
    with pytest.raises(AttributeError, match=r"^nobody$"):
        package.nobody  # noqa: B018


def test_every_name_that_is_found_is_public():
    assert sorted(train.MODULES) == train.__all__
