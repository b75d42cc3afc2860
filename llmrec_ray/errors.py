"""Every error a user can reach, grouped by what a caller would catch.

    LlmrecError
    ├── ConfigError                 a recipe or an override is wrong: unknown key, bad value, broken rule
    ├── DataError                   input logs or texts cannot be used
    │   ├── MissingInputError       a named input file, column or data set is not there
    │   ├── BadRowsError            more rows were quarantined than the recipe allows
    │   └── EmptyResultError        nothing is left after filtering
    ├── ArtifactError               something this program wrote cannot be used
    │   ├── ArtifactNotFoundError   the stage that makes it has not run, or the URI is wrong
    │   ├── CorruptArtifactError    a file is missing or its hash differs from the manifest
    │   ├── ArtifactMismatchError   two artifacts do not belong together
    │   ├── ChangeConflictError     somebody else has changed the items since they were looked at
    │   └── DiskFullError           there is no room to keep what was made; nothing of it stays
    ├── ModelSourceError            encoder weights or a tokenizer cannot be had
    ├── LeakageError                what is measured was known to what is measured; the figures would mean nothing
    ├── TrainingError               training stopped; the message names step and last good checkpoint
    │   └── OutOfMemoryError        a worker had too little memory; the message names what needs less
    ├── EventLogError               feedback cannot be written down; nothing of it was acknowledged
    ├── EventViewError              the newest events cannot be read now; they are safe in the log
    ├── ClusterError                Ray cannot be started or joined, or is too small for the recipe
    └── RequestError                one request is wrong; `field` names the offending part

People get one of these, saying what happened, the values seen and what to do. Programmers get an assert.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

__all__ = [
    "ArtifactError",
    "ArtifactMismatchError",
    "ArtifactNotFoundError",
    "BadRowsError",
    "ChangeConflictError",
    "ClusterError",
    "ConfigError",
    "CorruptArtifactError",
    "DataError",
    "DiskFullError",
    "EmptyResultError",
    "EventLogError",
    "EventViewError",
    "LeakageError",
    "LlmrecError",
    "MissingInputError",
    "ModelSourceError",
    "OutOfMemoryError",
    "RequestError",
    "TrainingError",
]


class LlmrecError(Exception):
    """Base of every error that is meant for a person to read."""


class ConfigError(LlmrecError):
    """A recipe or an override is wrong."""


class DataError(LlmrecError):
    """Input logs or texts cannot be used."""


class MissingInputError(DataError):
    """A named input file, column or data set is not there."""


class BadRowsError(DataError):
    """More rows were quarantined than the recipe allows."""


class EmptyResultError(DataError):
    """Nothing is left after filtering."""


class ArtifactError(LlmrecError):
    """Something this program wrote cannot be used."""


class ArtifactNotFoundError(ArtifactError):
    """The stage that makes the artifact has not run, or the URI is wrong."""


class CorruptArtifactError(ArtifactError):
    """A file is missing or its hash differs from the manifest."""


class ArtifactMismatchError(ArtifactError):
    """Two artifacts do not belong together."""


class ChangeConflictError(ArtifactError):
    """Somebody else has changed the items since they were looked at."""


class DiskFullError(ArtifactError):
    """There is no room to keep what was made; nothing of it stays."""


class ModelSourceError(LlmrecError):
    """Encoder weights or a tokenizer cannot be had."""


class LeakageError(LlmrecError):
    """Held-out events were known to what they are to measure."""


class TrainingError(LlmrecError):
    """Training stopped before it produced a model."""


class OutOfMemoryError(TrainingError):
    """A training worker had too little memory."""


class EventLogError(LlmrecError):
    """Feedback cannot be written down; nothing of it was acknowledged."""


class EventViewError(LlmrecError):
    """The newest events cannot be read now; they are safe in the log.

    `newest` holds what this machine alone knows of the users that were asked for: item ids, oldest first.
    """

    def __init__(self, message: str, newest: dict[str, list[str]]) -> None:
        super().__init__(message)
        self.newest = newest


class ClusterError(LlmrecError):
    """Ray cannot be started or joined, or is too small for the recipe."""


class RequestError(LlmrecError):
    """One recommendation request is wrong; `field` names the offending part."""

    def __init__(self, message: str, *, field: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.field = field
        self.code = code

    def __reduce__(self) -> tuple[Callable[[str], RequestError], tuple[str]]:
        """So that it can go from one process to another."""
        return functools.partial(RequestError, field=self.field, code=self.code), (str(self),)
