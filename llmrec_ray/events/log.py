"""Events -> fsynced lines of append-only files, which `ingest` reads like any other log. This is the truth.

    <folder>/<day>-<writer>.jsonl       one event a line; no two writers ever share a file

A file of a day that is over (UTC) never changes again. It may be moved away, once nothing asks for its event ids any
more, to a folder that `data.feedback` names too: a Dataset is always made from the whole log. Only `forget` replaces a
file, by one of the same length with spaces where lines of a forgotten person were, so that positions in it stay true.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from llmrec_ray.errors import CorruptArtifactError, EventLogError
from llmrec_ray.events.event import Event
from llmrec_ray.events.locks import file_lock
from llmrec_ray.forgotten import FORGOTTEN, Tombstones, TombstonesFile
from llmrec_ray.storage import sync_to_disk

__all__ = ["EventLog", "Span"]

LOCK, DOOR = "appending.lock", "door.lock"


@dataclass(frozen=True)
class Span:
    """Where some events stand: a file, and the bytes from `start` to `end`."""

    file: Path
    start: int
    end: int


class EventLog:
    """Append-only JSON Lines files, one per day and writer. One thread at a time may append."""

    def __init__(self, folder: Path, writer: str | None = None) -> None:
        self.folder = folder
        with _explained(folder):
            made = [new for new in (folder, *folder.parents) if not new.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for new in made:  # else a crash of the machine could take the folder, and the events in it
                sync_to_disk(new.parent)
        self.writer = writer or uuid.uuid4().hex
        self._last: Path | None = None
        self._tombstones = TombstonesFile(folder / FORGOTTEN)
        self._version: object = None

    @property
    def forgotten(self) -> Tombstones:
        """Whose events are not kept, as it is at this moment. Raises EventLogError when that cannot be told."""
        try:
            return self._tombstones.now()
        except (OSError, CorruptArtifactError) as error:
            raise EventLogError(f"Nothing can be read from or written to the event log: {error}") from error

    def is_forgotten(self, user_id: str) -> bool:
        """Whether a person was forgotten, as it was when that could last be told."""
        with contextlib.suppress(OSError, CorruptArtifactError):
            self._tombstones.now()
        return user_id in self._tombstones.last

    @contextlib.contextmanager
    def appending(self) -> Iterator[Tombstones]:
        """While the block lasts nobody new is forgotten; those who were must not be appended. Any number of processes
        may be inside at once. Raises EventLogError.
        """
        with _locked(self.folder, shared=True):
            forgotten = self.forgotten
            if self._tombstones.version != self._version:  # the files so far are being replaced
                self.writer, self._version = uuid.uuid4().hex, self._tombstones.version
            yield forgotten

    def remember(self, tombstones: Tombstones) -> list[Path]:
        """From now on nothing of these people is appended by any process.

        Returns the files that are there now; nobody appends to them any more. Waits until everybody has left
        `appending`. Raises EventLogError.
        """
        with _locked(self.folder, shared=False):
            self.forgotten.merged(tombstones).write(str(self._tombstones.path))
            return self.files()

    def append(self, events: Sequence[Event]) -> Span:
        """Write the events, fsync file and folder, and say where they are.

        Raises EventLogError when the disk refuses; nothing of the events stays then.
        """
        file = self._file()
        lines = b"".join(event.model_dump_json().encode() + b"\n" for event in events)
        with _explained(self.folder):
            start = self._append(file, lines)
            self._last = file
        return Span(file, start, start + len(lines))

    def files(self) -> list[Path]:
        """Every writer's files, in order of day."""
        return sorted(self.folder.glob("*.jsonl"))

    def read(self, file: Path, start_bytes: int = 0) -> Iterator[tuple[Event | None, int]]:
        """Each event of a file from a byte position on, and the position after it; None for a line of somebody who was
        forgotten.

        A last line without its newline was never acknowledged and is left out. Raises CorruptArtifactError
        naming the file and the byte position of a damaged line.
        """
        forgotten = self.forgotten
        with file.open("rb") as handle:
            handle.seek(start_bytes)
            while (line := handle.readline()).endswith(b"\n"):
                end = handle.tell()
                event = _parse(line, file, end - len(line)) if line.strip() else None
                yield (None if event is None or event.user_id in forgotten else event), end

    def _file(self) -> Path:
        file = self.folder / f"{time.strftime('%Y%m%d', time.gmtime())}-{self.writer}.jsonl"
        if file == self._last and not file.exists():  # moved away: no second file may have its name
            self.writer = uuid.uuid4().hex
            return self._file()
        return file

    def _append(self, file: Path, lines: bytes) -> int:
        with file.open("ab", buffering=0) as handle:  # a buffer would be written again when the file is closed
            start = handle.tell()
            try:
                while lines:
                    lines = lines[handle.write(lines):]
                os.fsync(handle.fileno())
                if not start:
                    sync_to_disk(self.folder)
            except OSError:
                # What a disk keeps after a failed fsync is unknown: nothing may follow it in this file.
                self.writer = uuid.uuid4().hex
                os.truncate(file, start)
                raise
        return start


@contextlib.contextmanager
def _locked(folder: Path, *, shared: bool) -> Iterator[None]:
    """Inside together with others who share, or alone; who wants to be alone keeps others from coming in meanwhile."""
    with contextlib.ExitStack() as inside:
        with _explained(folder), contextlib.ExitStack() as entering:
            entering.enter_context(file_lock(folder / DOOR))
            inside.enter_context(file_lock(folder / LOCK, shared=shared))
        yield


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EventLogError(
            f"The event log {folder} cannot be written ({error.strerror or error}), so the events were not taken: "
            "free space or make the folder writable, then send them again."
        ) from error


def _parse(line: bytes, file: Path, position: int) -> Event:
    try:
        return Event.model_validate_json(line)
    except ValidationError:
        raise CorruptArtifactError(
            f"The event log {file} is damaged at byte {position}: restore the file, or take the line out."
        ) from None
