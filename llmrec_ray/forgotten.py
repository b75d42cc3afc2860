"""Who was forgotten: salted hashes of user ids, kept so that nothing takes these people in again.

    <workspace>/forgotten.json        what `llmrec forget` has removed; the next ingest leaves these people out
    <events>/log/forgotten.json       the same for the endpoint's event log

The file holds no id. Its salt keeps equal hashes of two workspaces apart; whoever has the file and a list of ids can
still tell who is in it, so it is as private as the workspace. Knows neither artifacts nor events.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import polars as pl

from llmrec_ray.artifact import Workspace
from llmrec_ray.errors import CorruptArtifactError
from llmrec_ray.storage import read_json, write_json_atomic

__all__ = [
    "FORGOTTEN", "GONE", "NOBODY", "PREFIX", "Tombstones", "TombstonesFile", "forgotten_in", "forgotten_uri",
    "remember",
]

FORGOTTEN = "forgotten.json"
PREFIX = "forgotten:"
GONE = "forgotten"
"""Stands in a quarantine in place of what a row held."""
QUOTES, WORD = "\"' \r\n", re.compile(r"\w+")
SEPARATORS = (",", "\t", ";", "|", "::", ":", " ", "^", "~", "\x01")
DIGEST_BYTES, SALT_BYTES = 16, 16


@dataclass(frozen=True)
class Tombstones:
    """Salt -> digest of a forgotten user id -> whether all that was to be removed has been; all in hexadecimal."""

    people: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)

    @classmethod
    def read(cls, uri: str) -> Self:
        """Those of a file; none when there is no such file. Raises CorruptArtifactError."""
        try:
            content = read_json(uri)
        except FileNotFoundError:
            return cls()
        return cls(_checked(content, uri))

    def write(self, uri: str) -> None:
        """Replace the file at a URI atomically."""
        write_json_atomic(uri, {"people": {salt: dict(digests) for salt, digests in self.people.items()}})

    def __len__(self) -> int:
        return sum(len(digests) for digests in self.people.values())

    def __contains__(self, user_id: str) -> bool:
        return any(_digest(salt, user_id) in digests for salt, digests in self.people.items())

    def is_forgotten(self, ids: pl.Series) -> pl.Series:
        """For each user id (String) whether that person was forgotten; Boolean, False for null."""
        if not len(self):
            return pl.repeat(False, len(ids), dtype=pl.Boolean, eager=True).rename(ids.name)
        distinct = ids.unique().drop_nulls().to_list()
        forgotten = [id_ for salt, digests in self.people.items() for id_ in _found(salt, digests, distinct)]
        return ids.is_in(pl.Series(forgotten, dtype=pl.String).implode()).fill_null(False)

    def without_mentions(self, rows: pl.Series) -> pl.Series:
        """Rows of an input file as they stand there (String), those emptied that may be of a forgotten person: a field
        of the row, however it is separated, is their id.
        """
        if not len(self):
            return rows
        emptied = [raw if raw is None or not self._is_mentioned_in(raw) else GONE for raw in rows]
        return pl.Series(rows.name, emptied, dtype=pl.String)

    def name_of(self, user_id: str) -> str:
        """What stands in a vocabulary in place of a forgotten id."""
        salt = next((salt for salt, digests in self.people.items() if _digest(salt, user_id) in digests), None)
        assert salt is not None, "the name of somebody who was not forgotten. This is a bug."
        return PREFIX + _digest(salt, user_id)

    def with_user(self, user_id: str, *, done: bool) -> Tombstones:
        """These and one more, or with another mark."""
        salt = next(iter(self.people), None) or secrets.token_hex(SALT_BYTES)
        return self.merged(Tombstones({salt: {_digest(salt, user_id): done}}))

    def merged(self, other: Tombstones) -> Tombstones:
        """These and others; of a person who is in both, the mark of `other` counts."""
        salts = dict.fromkeys([*self.people, *other.people])
        return Tombstones({salt: {**self.people.get(salt, {}), **other.people.get(salt, {})} for salt in salts})

    def _is_mentioned_in(self, raw: str) -> bool:
        return any(field in self for field in _fields(raw))

    def unfinished_in(self, place: Tombstones) -> Tombstones:
        """Those, of these, that another place does not have yet or has not finished with."""
        found = {
            salt: {digest: False for digest in digests if not place.people.get(salt, {}).get(digest, False)}
            for salt, digests in self.people.items()
        }
        return Tombstones({salt: digests for salt, digests in found.items() if digests})

    def finished(self) -> Tombstones:
        """The same people, all of them removed."""
        return Tombstones({salt: dict.fromkeys(digests, True) for salt, digests in self.people.items()})


NOBODY = Tombstones()


class TombstonesFile:
    """A local file of tombstones that other processes write: looks again whenever the file was replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._tombstones = Tombstones()

    @property
    def version(self) -> object:
        """Differs after every time that the file was replaced, also by the same, as far as `now` has seen; None without
        a file."""
        return self._seen

    @property
    def last(self) -> Tombstones:
        """What the file said when it was last read."""
        return self._tombstones

    def now(self) -> Tombstones:
        """What the file says at this moment. Raises OSError and CorruptArtifactError."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            if self._seen is not None:
                self._seen, self._tombstones = None, Tombstones()
            return self._tombstones
        if (seen := (stat.st_ino, stat.st_mtime_ns)) != self._seen:
            self._tombstones = _read_local(self.path)
            self._seen = seen
        return self._tombstones


def forgotten_uri(workspace: Workspace) -> str:
    """Where a workspace keeps its tombstones."""
    return f"{workspace.uri}/{FORGOTTEN}"


def forgotten_in(workspace: Workspace) -> Tombstones:
    """Whom the artifacts of a workspace must not name. Raises CorruptArtifactError."""
    return Tombstones.read(forgotten_uri(workspace))


def remember(uri: str, user_id: str, *, done: bool) -> Tombstones:
    """Put a person on the list at a URI, or change their mark, and return the list.

    On an object store, which knows no locks, nobody else may do so at the same moment. Raises CorruptArtifactError and
    what the storage raises.
    """
    with _alone(uri):
        tombstones = Tombstones.read(uri).with_user(user_id, done=done)
        tombstones.write(uri)
    return tombstones


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    if not Workspace(uri).is_local:
        yield
        return
    path = Path(uri.removeprefix("file://"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fields(raw: str) -> set[str]:
    """What may be the fields of a row: values of a JSON object, or what stands between separators or within quotes."""
    fields = {part.strip(QUOTES) for separator in SEPARATORS for part in raw.split(separator)}
    fields |= set(WORD.findall(raw))
    if '"' in raw:
        for separator in SEPARATORS:
            with contextlib.suppress(csv.Error, TypeError):  # TypeError: one of several characters
                fields |= {field for row in csv.reader([raw], delimiter=separator) for field in row}
    with contextlib.suppress(ValueError):
        value = json.loads(raw)
        fields |= {str(each) for each in (value.values() if isinstance(value, dict) else ())}
    return fields


def _read_local(path: Path) -> Tombstones:
    try:
        return Tombstones(_checked(json.loads(path.read_bytes()), str(path)))
    except ValueError:
        raise _damaged(str(path)) from None


def _checked(content: Any, uri: str) -> dict[str, dict[str, bool]]:
    people = content.get("people") if isinstance(content, dict) else None
    if not isinstance(people, dict) or not all(isinstance(digests, dict) for digests in people.values()):
        raise _damaged(uri)
    return people


def _damaged(uri: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"{uri}, which says who was forgotten, is damaged: restore it from a copy, or these people come back."
    )


def _found(salt: str, digests: Mapping[str, bool], user_ids: list[str]) -> Iterator[str]:
    """Those of many ids whose digests are among these."""
    begun, wanted = _begun(salt), {bytes.fromhex(digest) for digest in digests}
    for user_id in user_ids:
        hashed = begun.copy()
        hashed.update(user_id.encode())
        if hashed.digest() in wanted:
            yield user_id


def _digest(salt: str, user_id: str) -> str:
    hashed = _begun(salt)
    hashed.update(user_id.encode())
    return hashed.hexdigest()


def _begun(salt: str) -> hashlib.blake2b:
    return hashlib.blake2b(key=bytes.fromhex(salt), digest_size=DIGEST_BYTES)
