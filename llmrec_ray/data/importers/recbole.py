"""A folder of RecBole's atomic files -> the `data` section that reads them.

`NAME.inter`, `NAME.item` and `NAME.user` are tables with tabs between the fields, whose header names a type with every
column (`item_id:token`), as recbole.io/docs/user_guide/data/atomic_files.html describes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec_ray.data.importers.original import Found, first_lines, folders_of, nothing_found, pattern_of
from llmrec_ray.errors import DataError

__all__ = ["find_recbole"]

SAMPLE_LINES = 1_000
USER_NAMES = ("user_id", "uid", "userid", "visitor_id", "session_id")
ITEM_NAMES = ("item_id", "iid", "itemid", "product_id", "business_id")
TIME_NAMES = ("timestamp", "time", "date", "datetime")
VALUE_NAMES = ("rating", "stars", "score", "weight")
TITLE_WORDS = ("title", "name")
NO_TEXT = ("zip", "url", "image", "asin", "_id")
LONG_TEXT = ("description", "review", "text", "summary")
YEAR = "([0-9]{4})"
TYPES = ("token", "token_seq", "float", "float_seq")
UNITS = (("s", 1e11), ("ms", 1e14), ("us", 1e17))


def find_recbole(folder: Path) -> Found:
    """The data set in a folder or in one right below it.

    Raises MissingInputError naming what is there instead, DataError when the files hold several data sets, or no
    columns of users, items and times.
    """
    for place in folders_of(folder):
        if logs := sorted(place.glob("*.inter")):
            return _read(place, logs)
    raise nothing_found("atomic files of RecBole", "NAME.inter", folder)


@dataclass(frozen=True)
class _Column:
    name: str
    type: str

    @property
    def written(self) -> str:
        return f"{self.name}:{self.type}"


def _read(folder: Path, logs: list[Path]) -> Found:
    names = sorted({path.name.partition(".")[0] for path in logs})
    if len(names) > 1:
        raise DataError(f"{folder} holds several data sets ({', '.join(names)}): put each into a folder of its own.")
    paths = {f"{kind}s": folder / f"{names[0]}.{kind}" for kind in ("item", "user")}
    tables = {table: _columns(path) if path.is_file() else [] for table, path in paths.items()}
    columns = _columns(logs[0])
    ids = {
        "users": _role(logs[0], columns, "users", USER_NAMES, tables["users"]),
        "items": _role(logs[0], columns, "items", ITEM_NAMES, tables["items"]),
    }
    time = _role(logs[0], columns, "times", TIME_NAMES, [])
    data: dict[str, Any] = {"interactions": _log(logs, columns, ids["users"], ids["items"], time)}
    for table, id_ in reversed(ids.items()):
        if section := _table(paths[table], tables[table], id_, titled=table == "items"):
            data[table] = section
    return Found(names[0], "Atomic files of RecBole", data)


def _columns(path: Path) -> list[_Column]:
    header = next(iter(first_lines(path)), "")
    columns = [_Column(*field.rpartition(":")[::2]) for field in header.split("\t")]
    if not all(column.name and column.type in TYPES for column in columns):
        raise DataError(
            f"The header of {path} is {header[:200]!r}, but one of an atomic file names every column with its type "
            f"({', '.join(TYPES)}), such as item_id:token, with tabs between: correct it."
        )
    return columns


def _role(
    path: Path, columns: list[_Column], role: str, names: tuple[str, ...], table: list[_Column]
) -> _Column:
    """The column by one of the usual names, else the one that is also the first of the table."""
    first = [column for column in columns if table and column.name == table[0].name]
    for column in [*_named(columns, names), *first]:
        return column
    known = ", ".join(column.written for column in columns)
    raise DataError(
        f"{path} names no column of {role} that is known ({', '.join(names)}), only {known}: describe the files in a "
        "recipe of your own."
    )


def _named(columns: list[_Column], names: tuple[str, ...]) -> list[_Column]:
    known = {column.name.lower(): column for column in columns}
    return [known[name] for name in names if name in known]


def _log(logs: list[Path], columns: list[_Column], user: _Column, item: _Column, time: _Column) -> dict[str, Any]:
    roles = {"user_id": user, "item_id": item, "timestamp": time}
    for value in _named(columns, VALUE_NAMES)[:1]:
        roles["value"] = value
    return {
        "paths": [pattern_of(path) for path in logs], "format": "tsv", "quotes": False,
        "columns": {role: column.written for role, column in roles.items()},
        "timestamp_unit": _unit(logs[0], columns.index(time)),
    }


def _unit(path: Path, place: int) -> str:
    """From the size of the first moments, since the header says nothing of it; text is ISO 8601."""
    fields = [line.split("\t") for line in first_lines(path, SAMPLE_LINES)[1:]]
    moments = [moment for row in fields if len(row) > place and (moment := _number(row[place])) is not None]
    if not moments and fields:
        return "iso8601"
    newest = max(moments, default=0.0)
    return next((unit for unit, limit in UNITS if newest < limit), "ns")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _table(path: Path, columns: list[_Column], id_: _Column, *, titled: bool) -> dict[str, Any] | None:
    """None for a table that says nothing but ids."""
    told = [column for column in columns if column.name != id_.name and _tells(column)]
    if id_.name not in {column.name for column in columns} or not told:
        return None
    title = next((column for word in TITLE_WORDS for column in told if word in column.name), None) if titled else None
    kept = [column.name for column in told if column is not title and not _is_long(column)]
    names = {column.name: _made_from(column) for column in [id_, *told]}
    return {
        "paths": [pattern_of(path)], "format": "tsv", "quotes": False, "columns": names, "id": id_.name,
        **({"title": title.name} if title else {}), "template": _template(told, title), "attributes": kept,
    }


def _made_from(column: _Column) -> str | dict[str, str]:
    """A column of years is one of numbers, even where some rows hold something else, as in RecBole's own example."""
    return {"column": column.written, "pattern": YEAR} if "year" in column.name else column.written


def _tells(column: _Column) -> bool:
    """Whether it says something in words or numbers, under a name that a template can hold."""
    return column.type != "float_seq" and not any(word in column.name for word in (*NO_TEXT, *"{}:!"))


def _is_long(column: _Column) -> bool:
    return any(word in column.name for word in LONG_TEXT)


def _template(told: list[_Column], title: _Column | None) -> str:
    """The title, then every other column of words with its name, then numbers."""
    others = sorted((column for column in told if column is not title), key=lambda column: column.type == "float")
    parts = [f"{{{title.name}}}"] if title else []
    parts += [f"{column.name.replace('_', ' ').capitalize()}: {{{column.name}}}" for column in others]
    return ". ".join(parts)
