"""Items added to and removed from a Release while it is served: a log of immutable objects, and what it adds up to.

    <folder>/00000001.json   one set of changes, with its own hash and that of the set before it

A set that is cut short, changed or missing is noticed. Rows never shift: an added item takes the next row after those
of the Release and keeps it, removed or not, so that what a replica computed for it stays true. Knows no vectors but
those that an encoder gave for the items' texts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, TypeAdapter, ValidationError

from llmrec_ray.errors import ArtifactNotFoundError, ChangeConflictError, CorruptArtifactError
from llmrec_ray.storage import file_names, read_json, write_json_atomic, write_new_json
from llmrec_ray.types import FloatArray

__all__ = ["AddedItem", "AttributeValue", "ChangeLog", "Changes", "ItemChange", "NewItem", "RemovedItem"]

NAME = re.compile(r"\d{8}\.json")
READERS = 16
MAX_TEXT_CHARS, MAX_TITLE_CHARS, MAX_ATTRIBUTES = 20_000, 1_000, 100
REMEDY = "restore the folder from a copy, or publish a Release that has these changes in its Dataset"

Id = Annotated[str, Field(min_length=1, max_length=256)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
AttributeValue: TypeAlias = str | int | Finite


class NewItem(BaseModel):
    """An item as somebody describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    item_id: Id
    """Its id in the outside world; the catalogue must not have it."""
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
    """What is said about it, as the encoder reads it; this alone decides whom it is recommended to."""
    title: Annotated[str, Field(max_length=MAX_TITLE_CHARS)] | None = None
    """A short name; the id when absent."""
    attributes: Annotated[dict[str, AttributeValue], Field(max_length=MAX_ATTRIBUTES)] = {}
    """Values of the catalogue's attributes, for filters; those left out are unknown."""


def _decoded(value: object) -> object:
    return np.frombuffer(base64.b64decode(value, validate=True), "<f4") if isinstance(value, str) else value


def _encoded(vector: FloatArray) -> str:
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()


class AddedItem(NewItem):
    """A new item with what an encoder made of its text."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    kind: Literal["add"] = "add"
    vector: Annotated[np.ndarray, BeforeValidator(_decoded), PlainSerializer(_encoded)]
    """[T] float32, raw output of the Release's encoder; base64 of its little-endian bytes in JSON."""

    @classmethod
    def of(cls, item: NewItem, vector: FloatArray) -> AddedItem:
        """The item with its raw text vector [T]."""
        return cls(**item.model_dump(), vector=np.asarray(vector, np.float32))


class RemovedItem(BaseModel):
    """An item that nobody is to be shown any more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["remove"] = "remove"
    item_id: Id


ItemChange: TypeAlias = AddedItem | RemovedItem
_CHANGES: TypeAdapter[list[ItemChange]] = TypeAdapter(list[Annotated[ItemChange, Field(discriminator="kind")]])


@dataclass(frozen=True, eq=False)
class Changes:
    """What the first `version` sets of changes add up to.

    added: every item ever added, in order; number i has the row N + i in a Release of N items. withdrawn: numbers of
    those that were removed again. removed: ids of the Release's own items that were removed. digest: of the last set.
    """

    version: int = 0
    added: tuple[AddedItem, ...] = ()
    withdrawn: frozenset[int] = frozenset()
    removed: frozenset[str] = frozenset()
    digest: str = ""
    _live: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def readded(self) -> frozenset[str]:
        """Ids of the Release's own items that were removed and are there again, under new rows."""
        return self.removed & self._live.keys()

    @property
    def live(self) -> list[AddedItem]:
        """The added items that are still there, in order."""
        return [self.added[place] for place in sorted(self._live.values())]

    @property
    def gone(self) -> frozenset[str]:
        """Ids, of the Release or added, that were removed and are not there again."""
        return (self.removed | {self.added[place].item_id for place in self.withdrawn}) - self._live.keys()

    @classmethod
    def none(cls) -> Changes:
        """Those of a Release as it was published."""
        return cls()

    def after(self, changes: Sequence[ItemChange], digest: str = "") -> Changes:
        """These, and one more set."""
        added, withdrawn, removed, live = list(self.added), set(self.withdrawn), set(self.removed), dict(self._live)
        for change in changes:
            if isinstance(change, AddedItem):
                live[change.item_id] = len(added)
                added.append(change)
            elif change.item_id in live:
                withdrawn.add(live.pop(change.item_id))
            else:
                removed.add(change.item_id)
        return Changes(self.version + 1, tuple(added), frozenset(withdrawn), frozenset(removed), digest, live)


class ChangeLog:
    """The sets of changes of one Release, at a URI that every process can read; one process writes."""

    def __init__(self, root_uri: str) -> None:
        self.uri = root_uri.rstrip("/")

    @classmethod
    def of(cls, release_uri: str, release_id: str) -> ChangeLog:
        """The log that lies beside a Release, or beside the pointer to it."""
        return cls(f"{release_uri.rpartition('/')[0]}/{release_id}.changes")

    def version(self) -> int:
        """The newest version, 0 when nothing was ever changed. Raises CorruptArtifactError when a set is missing."""
        names = [name for name in file_names(self.uri) if NAME.fullmatch(name)]
        for number, name in enumerate(names, start=1):
            if name != _name(number):
                raise CorruptArtifactError(f"The changes in {self.uri} lack {_name(number)}: {REMEDY}.")
        return len(names)

    def append(self, changes: Sequence[ItemChange], *, after: int) -> int:
        """Keep one more set, durably, and return its version, which is `after` + 1.

        Raises ChangeConflictError when somebody else has done so since version `after`, DiskFullError, and
        CorruptArtifactError when the set before is damaged.
        """
        assert changes, "an empty set of changes. This is a bug."
        before = self._load(after)[1] if after else ""
        content = _CHANGES.dump_python(list(changes), mode="json")
        entry = {"version": after + 1, "previous": before, "changes": content}
        try:
            write_new_json(self._uri(after + 1), entry | {"sha256": _hash(entry)})
        except FileExistsError:
            raise ChangeConflictError(
                f"Somebody else has made change {after + 1} in {self.uri} since version {after} was read: look at the "
                "items again, then repeat the change."
            ) from None
        return after + 1

    def read(self, version: int | None = None, *, since: Changes | None = None) -> Changes:
        """What all sets up to a version (the newest when None) add up to; `since` saves reading those before it.

        Raises ArtifactNotFoundError for a version that is not there, CorruptArtifactError naming the damaged set.
        """
        known = since or Changes.none()
        newest = self.version() if version is None else version
        assert newest >= known.version, f"version {newest} is before {known.version}. This is a bug."
        with ThreadPoolExecutor(READERS) as readers:
            loaded = list(readers.map(self._load, range(known.version + 1, newest + 1)))
        for changes, digest, previous in loaded:
            if previous != known.digest:
                raise CorruptArtifactError(
                    f"{self._uri(known.version + 1)} does not follow the set of changes before it: {REMEDY}."
                )
            known = known.after(changes, digest)
        return known

    def copy_to(self, other: ChangeLog) -> None:
        """Let another log begin with these sets, as they are."""
        for version in range(1, self.version() + 1):
            write_json_atomic(other._uri(version), read_json(self._uri(version)))

    def _uri(self, version: int) -> str:
        return f"{self.uri}/{_name(version)}"

    def _load(self, version: int) -> tuple[list[ItemChange], str, str]:
        """The changes of one set, its hash and that of the set before."""
        uri = self._uri(version)
        try:
            entry = read_json(uri)
        except FileNotFoundError:
            raise ArtifactNotFoundError(
                f"There is no version {version} of the items in {self.uri}: ask for an earlier one."
            ) from None
        digest = entry.pop("sha256", None)
        if digest != _hash(entry) or entry.get("version") != version:
            raise CorruptArtifactError(f"{uri} is not what was written: {REMEDY}.")
        try:
            return _CHANGES.validate_python(entry["changes"]), digest, entry["previous"]
        except ValidationError as error:
            detail = error.errors()[0]["msg"]
            raise CorruptArtifactError(
                f"{uri} holds changes that this version cannot read ({detail}): update the program."
            ) from None


def _name(version: int) -> str:
    return f"{version:08}.json"


def _hash(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
