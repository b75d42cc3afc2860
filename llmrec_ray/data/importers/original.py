"""A folder of original files -> what an importer needs to see of them, and what it found.

Looks at names and first lines only, whatever the size of the files; knows no data set.
"""

from __future__ import annotations

import bz2
import gzip
import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from llmrec_ray.errors import DataError, MissingInputError

__all__ = ["Found", "files_below", "first_lines", "first_record", "folders_of", "nothing_found", "pattern_of"]

MAX_NAMES = 12


@dataclass(frozen=True)
class Found:
    """What a folder holds: a name for the recipe, the form of the files in words, and the recipe's `data` section."""

    name: str
    form: str
    data: dict[str, Any]


def folders_of(folder: Path) -> list[Path]:
    """The folder and those in it, sorted: archives unpack to either. Raises MissingInputError."""
    if not folder.is_dir():
        raise MissingInputError(f"There is no folder {folder}: name the one that holds the original files.")
    return [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]


def files_below(folder: Path) -> list[Path]:
    """All files in the folder and below it, sorted; hidden ones are left out. Raises MissingInputError."""
    folders_of(folder)
    return sorted(
        path for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def pattern_of(path: Path) -> str:
    """The path as a recipe names it, absolute, with what would make a glob of it written out."""
    return re.sub(r"[*[]", r"[\g<0>]", str(path.absolute()))


def first_lines(path: Path, count: int = 1) -> list[str]:
    """Up to `count` lines from the start of a text file, unpacked when its name ends in .gz or .bz2, without line ends.

    Raises DataError when it cannot be unpacked or is no text.
    """
    try:
        with _opened(path) as stream:
            lines = [line.decode("utf-8-sig").rstrip("\r\n") for line in islice(stream, count)]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch the original file again.") from None
    return lines


def first_record(path: Path) -> dict[str, Any]:
    """The object on the first line of a file of JSON lines. Raises DataError."""
    line = next(iter(first_lines(path)), "")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise DataError(f"{path} holds no JSON lines, its first line is {line[:80]!r}: fetch the original file again.")
    return record


def nothing_found(what: str, wanted: str, folder: Path) -> MissingInputError:
    """The error for a folder without the files of a data set; it names those that are there."""
    names = [str(path.relative_to(folder)) for path in files_below(folder)]
    archive = next((name for name in names if name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))), None)
    remedy = f"unpack {archive} first" if archive else "name the folder with the original files"
    return MissingInputError(f"{folder} holds no {what} ({wanted}), only {_listed(names)}: {remedy}.")


def _opened(path: Path) -> BinaryIO | gzip.GzipFile | bz2.BZ2File:
    if path.suffix == ".gz":
        return gzip.open(path)
    return bz2.open(path) if path.suffix == ".bz2" else path.open("rb")


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - MAX_NAMES} more" if len(every) > MAX_NAMES else ""
    return (", ".join(every[:MAX_NAMES]) or "nothing") + more
