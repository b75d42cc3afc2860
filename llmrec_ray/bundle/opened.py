"""A Bundle on disk -> what scores, its big arrays shared by all processes of a machine that opened it.

Shapes: B users, N items, C candidates, d embedding size, T text vector size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file as load_tensors

from llmrec_ray.arrays import extended, map_arrays
from llmrec_ray.artifact import Artifact, open_artifact
from llmrec_ray.bundle.files import (
    KNOWN_ITEMS,
    kept_fusion,
    load_new_items,
    load_signals,
    part,
    read_context,
    read_file,
    read_recipe,
    read_titles,
)
from llmrec_ray.bundle.grown import AddedRows, grown_fusion, grown_signals
from llmrec_ray.bundle.scorer import Scorer, cold_items
from llmrec_ray.changes import Changes
from llmrec_ray.config import Recipe
from llmrec_ray.errors import ArtifactMismatchError, CorruptArtifactError, ModelSourceError
from llmrec_ray.model import FusionRecommender
from llmrec_ray.model.context import context_sizes
from llmrec_ray.model.onnx import AnyEncoder, load_encoder
from llmrec_ray.model.reranker import LearnedCorrection
from llmrec_ray.signals import FusionPolicy, ProfileMap, fuse, load_fusion
from llmrec_ray.types import FloatArray, Histories, IntArray
from llmrec_ray.vocab import Vocabulary

__all__ = ["Bundle", "BundleTexts", "read_signal_names"]

NOBODY = np.empty(0, np.int64)


def read_signal_names(artifact: Artifact) -> list[str]:
    """Names of the signals of a Bundle, from one small file: for processes that hold no vectors."""
    return sorted(read_file(artifact.path / "policy.json", kept_fusion).calibration.means)


class Bundle(Scorer):
    """A loaded Bundle, on the CPU and in evaluation mode.

    text_vectors: [N, T] float32 in text space, or None. text_center: [T] float32, or None; trained_center: the same for
    training that goes on from this Bundle.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        folder = artifact.path
        self.recipe = read_file(folder / "recipe.json", read_recipe)
        self.users = read_file(folder / "users.parquet", Vocabulary.load)
        self.items = read_file(folder / "items.parquet", Vocabulary.load)
        self.item_titles = read_file(folder / "titles.parquet", read_titles)
        kept = read_file(folder / "policy.json", kept_fusion)
        self.calibration, self.cold_calibration, self.policy = kept.calibration, kept.cold_calibration, kept.policy
        arrays = map_arrays(folder / "arrays.safetensors")
        self.texts = BundleTexts(artifact, self.recipe, arrays)
        self.text_vectors: FloatArray | None = arrays.get("text_vectors")
        self.text_center, self.profiles = self.texts.center, self.texts.profiles
        self.trained_center: FloatArray | None = arrays.get("trained_center", self.text_center)
        columns = folder / "context.json"
        self.context = read_file(columns, read_context) if columns.exists() else None
        model = self._load_model(folder / "model.safetensors")
        super().__init__(
            model, arrays["item_vectors"], load_signals(arrays, self.text_vectors), arrays.get("cold_rows")
        )
        self.fusion = None if kept.fusion is None else load_fusion(
            self.recipe.fusion.mode, kept.fusion, part(arrays, "fusion."), self.calibration,
            lambda settings, state: LearnedCorrection.from_state(settings, state, self.item_vectors),
        )
        self.new_items = load_new_items(folder / KNOWN_ITEMS, part(arrays, "new_items."), self.text_vectors)
        self._trained, self._added = self, AddedRows.none(self)

    @classmethod
    def open(cls, uri: str, *, verify: bool = True) -> Bundle:
        """Load from a URI. Raises ArtifactNotFoundError, ArtifactMismatchError, CorruptArtifactError."""
        return cls(open_artifact(uri, "bundle", verify=verify))

    @property
    def id(self) -> str:
        """Content hash of the Bundle."""
        return self.artifact.id

    @property
    def uri(self) -> str:
        """Where the Bundle is kept."""
        return self.artifact.uri

    def fuse_cold(
        self, histories: Histories, users: FloatArray, item_rows: IntArray, policy: FusionPolicy
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Scores [B, C] of the cold items among item_rows for user vectors [B, d + 1], and each signal's share; 0 for
        others. The scores are those of `blend_cold`."""
        raw = self.cold.take(self.cold.score(histories, users), item_rows)
        return self._fuse_cold(raw, policy)

    def blend_cold(self, histories: Histories, users: FloatArray, policy: FusionPolicy) -> FloatArray:
        """Scores of all cold items [B, C] by the policy's cold_weights, calibrated on known items taken for cold, times
        its cold_scale: 0 is the middle of the catalogue."""
        return self._fuse_cold(self.cold.score(histories, users), policy)[0]

    def _fuse_cold(
        self, raw: Mapping[str, FloatArray], policy: FusionPolicy
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        weights: dict[str, float] = {
            name: policy.cold_scale * weight for name, weight in policy.cold_weights.items() if name in raw
        }
        if not any(weights.values()):
            return np.zeros(next(iter(raw.values())).shape, np.float32), {}
        return fuse(raw, self.cold_calibration, weights)

    @property
    def has_encoder(self) -> bool:
        """Whether texts can be encoded: items had texts when the Bundle was trained."""
        return self.texts.has_encoder

    def load_encoder(self, device: str = "cpu") -> AnyEncoder:
        """See `BundleTexts.load_encoder`."""
        return self.texts.load_encoder(device)

    def changed(self, changes: Changes) -> Bundle:
        """The Bundle with the items of `changes` after its own, which must begin with those that are here already.

        All big arrays are shared; costs grow with the added items. Removed items stay: rows never shift, and hiding
        them is not the Bundle's affair. Raises ArtifactMismatchError when items cannot be added to this Bundle.
        """
        fresh = changes.added[len(self._added) :]
        if not fresh:
            return self
        trained, rows = self._trained, self._added.and_then(AddedRows.of(self._trained, fresh))
        assert trained.text_vectors is not None, "added items without text vectors. This is a bug."
        grown = copy.copy(trained)
        grown._added = rows
        grown.items = trained.items.followed_by(rows.ids)
        grown.item_titles = [*trained.item_titles, *rows.titles]
        grown.text_vectors = extended(trained.text_vectors, rows.texts)
        grown.item_vectors = extended(trained.item_vectors, rows.vectors)
        grown.signals = grown_signals(trained, rows, grown.text_vectors)
        grown.fusion = grown_fusion(trained, len(rows), grown.item_vectors)
        added = np.arange(len(trained.items), len(grown.items)) if trained.new_items is not None else NOBODY
        grown.cold = cold_items(np.concatenate([trained.cold.rows, added]), grown.signals, grown.item_vectors)
        return grown

    def _load_model(self, path: Path) -> FusionRecommender:
        text_size = None if self.text_vectors is None else self.text_vectors.shape[1]
        tensors = read_file(path, load_tensors)
        model = FusionRecommender(
            self.recipe.model, self.recipe.fusion.item_vector, len(self.users), len(self.items), text_size,
            context_sizes(tensors),
        )
        try:
            model.load_state_dict(tensors, assign=True)  # the tensors are mapped from their file; a copy would not be
        except RuntimeError as error:
            raise ArtifactMismatchError(
                f"{path} does not fit the recipe it was saved with ({' '.join(str(error).split())[:200]}): "
                "train again with this version."
            ) from None
        return model


class BundleTexts:
    """The texts' side of a Bundle: its encoder, and what an encoder's output is read with.

    center: [T] float32 of raw text vectors, or None. profiles: from what people say about themselves to user vectors,
    or None. user_size: width of user vectors, d + 1.
    """

    def __init__(self, artifact: Artifact, recipe: Recipe, arrays: Mapping[str, NDArray[Any]]) -> None:
        """arrays: those of the Bundle, mapped."""
        self._artifact, self._recipe = artifact, recipe
        self.center: FloatArray | None = arrays.get("text_center")
        profiles = part(arrays, "profiles.")
        self.profiles = ProfileMap.from_arrays(profiles) if profiles else None
        self.user_size = int(arrays["item_vectors"].shape[1])

    @classmethod
    def load(cls, artifact: Artifact) -> BundleTexts:
        """Without reading anything else of the Bundle. Raises CorruptArtifactError."""
        recipe = read_file(artifact.path / "recipe.json", read_recipe)
        return cls(artifact, recipe, map_arrays(artifact.path / "arrays.safetensors"))

    @property
    def has_encoder(self) -> bool:
        """Whether there is an encoder: items had texts when the Bundle was trained."""
        return self.center is not None

    def load_encoder(self, device: str = "cpu") -> AnyEncoder:
        """The text encoder, in the runtime and precision of the recipe.

        Raises CorruptArtifactError for files that cannot be read, ConfigError for a setting that this machine lacks.
        """
        assert self.has_encoder, "encoder of a Bundle without texts. This is a bug."
        try:
            return load_encoder(self._artifact.path / "encoder", self._recipe.encoder, device)
        except ModelSourceError as error:
            raise CorruptArtifactError(f"{error} Restore the Bundle or train again.") from None
