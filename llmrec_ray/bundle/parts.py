"""What training hands over -> a Bundle on disk.

Shapes: N items, C cold items, d embedding size, T text vector size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors

from llmrec_ray.artifact import Artifact, create_artifact
from llmrec_ray.bundle.files import KNOWN_ITEMS
from llmrec_ray.config import Recipe
from llmrec_ray.model import FusionRecommender
from llmrec_ray.model.context import ContextFeatures
from llmrec_ray.model.onnx import AnyEncoder
from llmrec_ray.model_card import CardFacts, model_card
from llmrec_ray.signals import TEXT_RECENCY, Calibration, Ease, Fusion, FusionPolicy, NewItems, Popularity, ProfileMap
from llmrec_ray.types import Columns, FloatArray, IntArray
from llmrec_ray.vocab import Vocabulary

__all__ = ["BundleParts", "save_bundle"]


@dataclass(frozen=True)
class BundleParts:
    """What training hands over to be kept.

    item_vectors: [N, d + 1] float32, see `catalogue_vectors`.
    text_vectors: [N, T] float32 in text space (centred, unit norm, zero rows for items without text) or None.
    text_center: [T] float32, subtracted from raw encoder output, or None.
    trained_center: [T] float32, the same for the encoder that trained, before it was quantised.
    text_recency: of the text signal.
    fusion: of a mode that is more than the policy's weights, or None.
    profiles: from what people say about themselves to user vectors, or None.
    context: encoders of the columns that the model reads, or None.
    new_items: how content carries over to items that come later, or None.
    cold_rows: [C] int64 items without a train event; cold_calibration: of their signals.
    """

    recipe: Recipe
    users: Vocabulary
    items: Vocabulary
    item_titles: list[str]
    model: FusionRecommender
    encoder: AnyEncoder | None
    text_vectors: FloatArray | None
    text_center: FloatArray | None
    trained_center: FloatArray | None
    item_vectors: FloatArray
    ease: Ease | None
    popularity: Popularity
    calibration: Calibration
    policy: FusionPolicy
    text_recency: float | None = TEXT_RECENCY
    fusion: Fusion | None = None
    profiles: ProfileMap | None = None
    context: ContextFeatures | None = None
    cold_rows: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    new_items: NewItems | None = None
    cold_calibration: Calibration = field(default_factory=lambda: Calibration(means={}, stds={}))


def save_bundle(
    root: str, parts: BundleParts, *, parents: Mapping[str, str], metrics: Mapping[str, Any]
) -> Artifact:
    """Write the parts as a new Bundle under `root`."""

    def write(folder: Path) -> None:
        (folder / "recipe.json").write_text(parts.recipe.model_dump_json(indent=2), encoding="utf-8")
        parts.users.save(folder / "users.parquet")
        parts.items.save(folder / "items.parquet")
        pl.DataFrame({"title": pl.Series(parts.item_titles, dtype=pl.String)}).write_parquet(folder / "titles.parquet")
        fusion = {
            "calibration": parts.calibration.model_dump(), "cold_calibration": parts.cold_calibration.model_dump(),
            "policy": parts.policy.model_dump(), "fusion": None if parts.fusion is None else parts.fusion.settings(),
        }
        (folder / "policy.json").write_text(json.dumps(fusion, indent=2, sort_keys=True), encoding="utf-8")
        save_tensors({name: t.contiguous() for name, t in parts.model.state_dict().items()},
                     folder / "model.safetensors")
        save_arrays(_arrays(parts), folder / "arrays.safetensors")
        if parts.new_items is not None:
            known = pl.DataFrame({Columns.ITEM_ROW: parts.new_items.known, **parts.new_items.attributes}, strict=False)
            known.write_parquet(folder / KNOWN_ITEMS)
        if parts.context is not None:
            (folder / "context.json").write_text(parts.context.to_json(), encoding="utf-8")
        if parts.encoder is not None:
            parts.encoder.save(folder / "encoder")
        card = model_card(parts.recipe, _card_facts(parts, parents, metrics))
        (folder / "model_card.md").write_text(card, encoding="utf-8")

    return create_artifact(
        root, "bundle", write, config=parts.recipe.model_dump(mode="json"), parents=parents, metrics=metrics
    )


def _card_facts(parts: BundleParts, parents: Mapping[str, str], metrics: Mapping[str, Any]) -> CardFacts:
    users_of_items = np.rint(np.expm1(parts.popularity.log_counts.astype(np.float64)))
    return CardFacts(
        users=len(parts.users), items=len(parts.items), cold_items=int((users_of_items == 0).sum()),
        train_events=int(users_of_items.sum()), parameters=sum(p.numel() for p in parts.model.parameters()),
        has_encoder=parts.encoder is not None,
        has_content=parts.encoder is not None or any(table.attributes for table in parts.recipe.data.items),
        weights={str(name): weight for name, weight in parts.policy.weights.items()},
        cold_scale=parts.policy.cold_scale, parents=parents, metrics=metrics,
    )


def _arrays(parts: BundleParts) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "item_vectors": parts.item_vectors,
        "cold_rows": parts.cold_rows,
        **{f"popularity.{name}": array for name, array in parts.popularity.arrays().items()},
    }
    if parts.fusion is not None:
        arrays |= {f"fusion.{name}": array for name, array in parts.fusion.state().items()}
    if parts.profiles is not None:
        arrays |= {f"profiles.{name}": array for name, array in parts.profiles.arrays().items()}
    if parts.new_items is not None:
        arrays |= {f"new_items.{name}": array for name, array in parts.new_items.arrays().items()}
    if parts.ease is not None:
        arrays |= {f"item_item.{name}": array for name, array in parts.ease.arrays().items()}
    if parts.text_vectors is not None and parts.text_center is not None:
        recency = np.nan if parts.text_recency is None else parts.text_recency
        arrays |= {
            "text_vectors": parts.text_vectors, "text_center": parts.text_center,
            "text_recency": np.array([recency], np.float32),
        }
        if parts.trained_center is not None and not np.array_equal(parts.trained_center, parts.text_center):
            arrays["trained_center"] = parts.trained_center
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
