"""A trained encoder -> its int8 form for texts that come later, and what that changes, for the Bundle's manifest.

Training and the catalogue keep unquantised vectors. The change is measured as if the catalogue were int8 too, which is
the most that it can cost. It knows no disk and no Ray.
Shapes: B users, N items, T text vector size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec_ray.data import Dataset
from llmrec_ray.metrics import ndcg
from llmrec_ray.model import FusionRecommender, catalogue_vectors, user_matrix
from llmrec_ray.model.encoder import TextEncoder
from llmrec_ray.model.onnx import OnnxEncoder
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.signals import center, to_text_space
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["QuantizedText", "quantize_text"]

logger = logging.getLogger(__name__)

K = 10
LOW_PERCENTILE = 5


@dataclass(frozen=True)
class QuantizedText:
    """center: [T] float32, to be subtracted from its vectors; change: what the manifest says of the loss."""

    encoder: OnnxEncoder
    center: FloatArray
    change: dict[str, Any]


def quantize_text(
    encoder: TextEncoder,
    model: FusionRecommender,
    dataset: Dataset,
    users: IntArray,
    raw: FloatArray,
    middle: FloatArray,
) -> QuantizedText:
    """The encoder in int8, and how far its vectors and the neural ranking by them are from the unquantised ones.

    users: [B] whose validation items are ranked. raw: [N, T] unquantised encoder output per item. middle: [T]
    subtracted from it in training; what quantising shifts all vectors by is taken out with it.
    Raises ConfigError when the encoder cannot be exported.
    """
    quantized = OnnxEncoder.of(encoder)
    rough = quantized.encode(dataset.item_texts)
    shifted = middle + (center(rough) - center(raw))
    exact, vectors = to_text_space(raw, middle), to_text_space(rough, shifted)
    cosines = _cosines(raw, rough)
    mean, low = float(cosines.mean()), float(np.percentile(cosines, LOW_PERCENTILE))
    ranked = {"fp32": _neural_ndcg(model, dataset, users, exact), "int8": _neural_ndcg(model, dataset, users, vectors)}
    logger.info(
        "int8 encoder: cosine to fp32 %.4f, 5th percentile %.4f; neural validation NDCG@10 %.4f, by fp32 vectors %.4f",
        mean, low, ranked["int8"], ranked["fp32"],
    )
    change = {"cosine_mean": mean, "cosine_p5": low, "validation_ndcg@10": ranked}
    return QuantizedText(quantized, shifted, change)


def _cosines(raw: FloatArray, rough: FloatArray) -> FloatArray:
    """Of the items that have a text."""
    filled = np.any(raw != 0, axis=1)
    exact, other = raw[filled], rough[filled]
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((exact * other).sum(axis=1) / norms, np.float32)


def _neural_ndcg(model: FusionRecommender, dataset: Dataset, users: IntArray, vectors: FloatArray) -> float:
    seen, targets = dataset.histories("train").select(users), dataset.targets("validation")[users]
    catalogue = catalogue_vectors(model, vectors)
    scores = user_matrix(model, catalogue, seen) @ catalogue.T
    return ndcg(target_ranks(mask_seen(scores, seen), targets), K)
