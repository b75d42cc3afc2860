"""The kind of a public data set and its folder -> a recipe file that reads the original files where they are.

Nothing is copied or converted, so the folder has to stay; the recipe is one to read and change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from llmrec_ray.config import validate_recipe
from llmrec_ray.data.importers.amazon import find_amazon
from llmrec_ray.data.importers.movielens import find_movielens
from llmrec_ray.data.importers.original import Found
from llmrec_ray.data.importers.recbole import find_recbole
from llmrec_ray.errors import ConfigError
from llmrec_ray.storage import saving

__all__ = ["KINDS", "Imported", "import_recipe"]

KINDS: Mapping[str, Callable[[Path], Found]] = {
    "amazon-reviews-2023": find_amazon, "movielens": find_movielens, "recbole": find_recbole,
}
LINE_LENGTH = 120


@dataclass(frozen=True)
class Imported:
    """A recipe that was written: its file and name, what the folder holds in words, and the files that each table of
    the `data` section reads."""

    recipe: str
    name: str
    form: str
    files: dict[str, list[str]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def import_recipe(kind: str, folder: Path, *, out: Path | None = None, name: str | None = None) -> Imported:
    """Look at the original files in `folder` and write the recipe that ingests them to `out`, by default NAME.yaml.

    Raises MissingInputError and DataError when the folder holds no such files, ConfigError for an unknown kind or when
    another file stands where the recipe would be written.
    """
    if kind not in KINDS:
        raise ConfigError(f"There is no importer {kind!r}: choose one of {', '.join(KINDS)}.")
    found = KINDS[kind](folder)
    tree: dict[str, Any] = {"name": name or found.name, "data": found.data}
    if "items" not in found.data:
        tree["fusion"] = {"item_vector": "id"}  # there are no texts
    recipe = validate_recipe(tree, f"the recipe for {folder}")
    path = out or Path(f"{recipe.name}.yaml")
    where = " ".join(str(folder.absolute()).splitlines())
    _write(path, f"# {found.form}, read where it is: {where}\n{_yaml(tree)}")
    return Imported(str(path), recipe.name, found.form, _files(found.data))


def _yaml(tree: dict[str, Any]) -> str:
    text: str = yaml.dump(tree, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=LINE_LENGTH,
                          default_flow_style=None)
    return text


class _Plain(yaml.SafeDumper):
    """Without names for what occurs twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write(path: Path, text: str) -> None:
    payload = text.encode()
    try:
        if path.exists() and path.read_bytes() != payload:
            raise ConfigError(f"{path} is there already: name another file with --out, or delete it.")
        with saving(path.name, path.parent):
            path.write_bytes(payload)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}): name another file with --out.") from None


def _files(data: Mapping[str, Any]) -> dict[str, list[str]]:
    sections = {table: value if isinstance(value, list) else [value] for table, value in data.items()}
    return {table: [path for section in listed for path in section["paths"]] for table, listed in sections.items()}
