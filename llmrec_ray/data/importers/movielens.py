"""A folder of MovieLens -> the `data` section that reads it, whichever of its three forms it has.

100K: u.data, u.item, u.user. 1M and 10M: ratings.dat, movies.dat and, in 1M only, users.dat. 20M, 25M, 32M, latest:
ratings.csv and movies.csv. Each is as its README on grouplens.org describes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmrec_ray.data.importers.original import Found, folders_of, nothing_found, pattern_of

__all__ = ["GENRES", "find_movielens"]

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
RATING_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
YEAR = r"\(([0-9]{4})[-–0-9 ]*\)(?: *\(V\))?$"
TITLE = r"^(.*?) *(?:\([0-9]{4}[-–0-9 ]*\)(?: *\(V\))?)?$"
TEXT = "{title} ({year}). Genres: {genres}"
PROFILE = "{age} years old, {gender}, {occupation}"
AGES = {"1": "under 18", "18": "18 to 24", "25": "25 to 34", "35": "35 to 44", "45": "45 to 49", "50": "50 to 55",
        "56": "56 or more"}
OCCUPATIONS = (
    "", "academic or educator", "artist", "clerical or administrative worker", "college or graduate student",
    "customer service worker", "doctor or health care worker", "executive or manager", "farmer", "homemaker",
    "school student", "lawyer", "programmer", "retired", "sales or marketing worker", "scientist", "self-employed",
    "technician or engineer", "tradesman or craftsman", "unemployed", "writer",
)


def find_movielens(folder: Path) -> Found:
    """The MovieLens in a folder or in one right below it. Raises MissingInputError naming what is there instead."""
    forms: dict[str, Callable[[Path], Found]] = {"u.data": _bars, "ratings.dat": _dat, "ratings.csv": _csv}
    for place in folders_of(folder):
        for log, read in forms.items():
            if (place / log).is_file():
                return read(place)
    raise nothing_found("MovieLens", "u.data, ratings.dat or ratings.csv", folder)


def _bars(folder: Path) -> Found:
    item_header = ["item_id", "title", "release_date", "video_release_date", "url", *GENRES]
    films = {
        "format": "csv", "separator": "|", "quotes": False, "encoding": "latin-1", "header": item_header,
        "columns": {**_title("title"), "genres": {"flags": list(GENRES), "values": {"unknown": ""}}},
        "id": "item_id",
    }
    people = {
        "format": "csv", "separator": "|", "quotes": False,
        "header": ["user_id", "age", "gender", "occupation", "zip_code"], "id": "user_id",
    }
    log = {"format": "tsv", "header": RATING_COLUMNS, "columns": _log_columns("user_id", "item_id")}
    return _found(folder, "100k", "100K", ("u.data", log), ("u.item", films), ("u.user", people))


def _dat(folder: Path) -> Found:
    dat = {"format": "csv", "separator": "::", "quotes": False}
    log = {**dat, "header": RATING_COLUMNS, "columns": _log_columns("user_id", "item_id")}
    films = {
        **dat, "encoding": _encoding(folder / "movies.dat"), "header": ["item_id", "title", "genres"],
        "columns": {**_title("title"), "genres": _genres()}, "id": "item_id",
    }
    people = {
        **dat, "header": ["user_id", "gender", "age", "occupation", "zip_code"], "columns": _codes(), "id": "user_id",
    }
    form = "1m" if (folder / "users.dat").is_file() else "10m"
    return _found(folder, form, form.upper(), ("ratings.dat", log), ("movies.dat", films), ("users.dat", people))


def _csv(folder: Path) -> Found:
    log = {"format": "csv", "columns": _log_columns("userId", "movieId")}
    films = {"format": "csv", "columns": {**_title("title"), "genres": _genres()}, "id": "movieId"}
    return _found(folder, "csv", "20M, 25M, 32M or latest", ("ratings.csv", log), ("movies.csv", films))


Section = tuple[str, dict[str, Any]]


def _found(folder: Path, form: str, words: str, log: Section, films: Section, people: Section | None = None) -> Found:
    data: dict[str, Any] = {"interactions": _at(folder, *log) | {"timestamp_unit": "s"}}
    if (folder / films[0]).is_file():
        texts = {"title": "title", "template": TEXT, "attributes": ["year", "genres"]}
        data["items"] = _at(folder, *films) | texts
    if people and (folder / people[0]).is_file():
        data["users"] = _at(folder, *people) | {"template": PROFILE, "attributes": ["age", "gender", "occupation"]}
    return Found(_name(folder, form), f"MovieLens {words}", data)


def _at(folder: Path, name: str, section: dict[str, Any]) -> dict[str, Any]:
    return {"paths": [pattern_of(folder / name)], **section}


def _name(folder: Path, form: str) -> str:
    """From the folder's name where it is the archive's, such as ml-25m, since the newer ones look all alike."""
    named = re.fullmatch(r"ml-([a-z0-9-]+)", folder.absolute().name)
    return f"movielens-{named[1] if named else form}"


def _encoding(path: Path) -> str:
    """1M is in Latin-1, 10M in UTF-8; of a file that cannot be read ingest says so."""
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    except OSError:
        return "utf-8"
    return "utf-8"


def _log_columns(user: str, item: str) -> dict[str, str]:
    return {"user_id": user, "item_id": item, "timestamp": "timestamp", "value": "rating"}


def _title(column: str) -> dict[str, Any]:
    return {"title": {"column": column, "pattern": TITLE}, "year": {"column": column, "pattern": YEAR}}


def _genres() -> dict[str, Any]:
    return {"column": "genres", "separator": "|", "values": {"(no genres listed)": ""}}


def _codes() -> dict[str, Any]:
    occupations = {str(code): words for code, words in enumerate(OCCUPATIONS)}
    return {"age": {"column": "age", "values": AGES}, "occupation": {"column": "occupation", "values": occupations}}
