"""The files of a Bundle, one by one -> what each holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel
from safetensors import SafetensorError

from llmrec_ray.config import Recipe
from llmrec_ray.errors import CorruptArtifactError
from llmrec_ray.model.context import ContextFeatures
from llmrec_ray.signals import Calibration, Ease, FusionPolicy, NewItems, Popularity, Signal, TextCosine
from llmrec_ray.types import Columns, FloatArray

__all__ = [
    "KNOWN_ITEMS",
    "KeptFusion",
    "kept_fusion",
    "load_new_items",
    "load_signals",
    "part",
    "read_context",
    "read_file",
    "read_recipe",
    "read_titles",
]

Loaded = TypeVar("Loaded")

KNOWN_ITEMS = "known_items.parquet"


def read_file(path: Path, load: Callable[[Path], Loaded]) -> Loaded:
    """What `load` makes of a file, or CorruptArtifactError naming the file: hashes are not always verified."""
    try:
        return load(path)
    except (OSError, ValueError, KeyError, pl.exceptions.PolarsError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorruptArtifactError(f"{path} cannot be read ({reason}): restore it or train again.") from None


def read_recipe(path: Path) -> Recipe:
    """Without `tune`, which says nothing about a Bundle and was written otherwise by earlier versions."""
    tree = json.loads(path.read_bytes())
    return Recipe.model_validate({key: value for key, value in tree.items() if key != "tune"})


def read_context(path: Path) -> ContextFeatures:
    return ContextFeatures.from_json(path.read_text(encoding="utf-8"))


def read_titles(path: Path) -> list[str]:
    return pl.read_parquet(path)["title"].to_list()


class KeptFusion(BaseModel):
    """policy.json; `fusion` holds the settings of a mode that is more than the policy's weights."""

    calibration: Calibration
    cold_calibration: Calibration
    policy: FusionPolicy
    fusion: dict[str, Any] | None = None


def kept_fusion(path: Path) -> KeptFusion:
    return KeptFusion.model_validate_json(path.read_bytes())


def load_signals(arrays: Mapping[str, NDArray[Any]], text_vectors: FloatArray | None) -> dict[str, Signal]:
    signals: dict[str, Signal] = {"popularity": Popularity.from_arrays(part(arrays, "popularity."))}
    if ease := part(arrays, "item_item."):
        signals["item_item"] = Ease.from_arrays(ease)
    if text_vectors is not None:
        recency = float(arrays["text_recency"][0])
        signals["text"] = TextCosine(text_vectors, None if np.isnan(recency) else recency)
    return signals


def part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def load_new_items(
    path: Path, arrays: Mapping[str, NDArray[Any]], text_vectors: FloatArray | None
) -> NewItems | None:
    """How content carries over to items that come later; None for a Bundle that carries nothing over."""
    if not path.exists() or text_vectors is None:
        return None
    table = read_file(path, pl.read_parquet)
    columns = {name: table[name].to_list() for name in table.columns if name != Columns.ITEM_ROW}
    known = table[Columns.ITEM_ROW].to_numpy().astype(np.int64)
    return NewItems(known, text_vectors, columns, arrays["coefficients"], arrays.get("inverse"))
