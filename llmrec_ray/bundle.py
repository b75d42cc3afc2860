"""A Bundle: everything needed to score users and items, in one immutable folder without pickle.

    recipe.json  users.parquet  items.parquet  titles.parquet  policy.json
    model.safetensors    weights of the towers and the NCF head
    context.json         encoders of the user and item columns that the model reads, when it reads any
    arrays.safetensors   item vectors, text vectors and their centre, map of profiles, state of the fitted signals
    encoder/             weights, tokenizer and config of the text encoder, when items have texts; with
                         encoder.precision int8 also the ONNX file that computes so
    model_card.md        for people: what it is, from what, how it was chosen, what it is not for

Shapes: B users, N items, C candidates, d embedding size, T text vector size. Knows nothing about Ray or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from llmrec_ray.artifact import Artifact, create_artifact, open_artifact
from llmrec_ray.config import Recipe
from llmrec_ray.errors import ArtifactMismatchError, CorruptArtifactError, ModelSourceError
from llmrec_ray.model import FusionRecommender, ncf, user_matrix
from llmrec_ray.model.context import ContextFeatures, context_sizes
from llmrec_ray.model.onnx import AnyEncoder, load_encoder
from llmrec_ray.model.reranker import LearnedCorrection
from llmrec_ray.model_card import CardFacts, model_card
from llmrec_ray.signals import (
    TEXT_RECENCY,
    Calibration,
    ColdItems,
    Ease,
    Fusion,
    FusionPolicy,
    Popularity,
    ProfileMap,
    Signal,
    TextCosine,
    fuse,
    load_fusion,
)
from llmrec_ray.types import FloatArray, Histories, IntArray
from llmrec_ray.vocab import Vocabulary

__all__ = ["Bundle", "BundleParts", "Scorer", "read_signal_names", "save_bundle"]

Loaded = TypeVar("Loaded")

NCF_CHUNK_USERS = 32


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
        if parts.context is not None:
            (folder / "context.json").write_text(parts.context.to_json(), encoding="utf-8")
        if parts.encoder is not None:
            parts.encoder.save(folder / "encoder")
        card = model_card(parts.recipe, _card_facts(parts, parents, metrics))
        (folder / "model_card.md").write_text(card, encoding="utf-8")

    return create_artifact(
        root, "bundle", write, config=parts.recipe.model_dump(mode="json"), parents=parents, metrics=metrics
    )


def read_signal_names(artifact: Artifact) -> list[str]:
    """Names of the signals of a Bundle, from one small file: for processes that hold no vectors."""
    return sorted(_read(artifact.path / "policy.json", _fusion).calibration.means)


class Scorer:
    """Raw scores of every signal for histories and texts, from arrays in memory.

    item_vectors: [N, d + 1] float32, see `catalogue_vectors`. signals: the traditional ones, by name. cold_rows: items
    without a train event, whose vectors and item-item columns were carried over from known ones.
    """

    def __init__(
        self, model: FusionRecommender, item_vectors: FloatArray, signals: Mapping[str, Signal],
        cold_rows: IntArray | None = None,
    ) -> None:
        self.model = model.eval()
        self.item_vectors = item_vectors
        self.signals = dict(signals)
        ease, text = self.signals.get("item_item"), self.signals.get("text")
        self.cold = ColdItems(
            np.empty(0, np.int64) if cold_rows is None else cold_rows, ease.weights if isinstance(ease, Ease) else None,
            text.text_vectors if isinstance(text, TextCosine) else None, item_vectors,
        )

    @property
    def signal_names(self) -> list[str]:
        """Names of all signals that it can score."""
        return ["neural", "ncf", *self.signals]

    def user_vectors(self, histories: Histories, text: FloatArray | None = None) -> FloatArray:
        """[B, d + 1] float32, last column 1.0: the dot product with `item_vectors` is the neural score.

        text: [B, T] in text space; a zero row means the user gave no text.
        """
        return user_matrix(self.model, self.item_vectors, histories, text)

    def score_all(self, histories: Histories, text: FloatArray | None = None) -> dict[str, FloatArray]:
        """Raw scores of the whole catalogue: signal name -> [B, N] float32."""
        users = self.user_vectors(histories, text)
        return {name: self.score_catalogue(name, histories, users, text) for name in self.signal_names}

    def score_catalogue(
        self, name: str, histories: Histories, users: FloatArray, text: FloatArray | None = None
    ) -> FloatArray:
        """Raw scores [B, N] float32 of the whole catalogue by one signal, for user vectors [B, d + 1]."""
        if name == "neural":
            return np.asarray(users @ self.item_vectors.T, np.float32)
        return self._ncf_all(users) if name == "ncf" else self.score_signal(name, histories, text)

    def score_signal(self, name: str, histories: Histories, text: FloatArray | None = None) -> FloatArray:
        """Raw scores [B, N] float32 of the whole catalogue by one of `signals`."""
        signal = self.signals[name]
        scores = signal.score(histories)
        if text is not None and isinstance(signal, TextCosine):
            return _prefer_query(scores, signal.score_query(text), text)
        return scores

    def score_items(
        self,
        histories: Histories,
        item_rows: IntArray,
        users: FloatArray | None = None,
        text: FloatArray | None = None,
        names: Collection[str] | None = None,
    ) -> dict[str, FloatArray]:
        """Raw scores of the given candidates [B, C]: signal name -> [B, C] float32, NaN where item_rows is -1.

        names: the signals to score, all when None.
        """
        users = self.user_vectors(histories, text) if users is None else users
        wanted = [name for name in self.signal_names if names is None or name in names]
        return {name: self._score_items(name, histories, item_rows, users, text) for name in wanted}

    def _score_items(
        self, name: str, histories: Histories, item_rows: IntArray, users: FloatArray, text: FloatArray | None
    ) -> FloatArray:
        if name == "neural":
            neural = np.einsum("bd,bcd->bc", users, self.item_vectors[np.maximum(item_rows, 0)])
            return np.where(item_rows < 0, np.float32(np.nan), neural).astype(np.float32)
        if name == "ncf":
            return ncf(self.model, users, self.item_vectors, item_rows)
        signal = self.signals[name]
        scores = signal.score_items(histories, item_rows)
        if text is not None and isinstance(signal, TextCosine):
            return _prefer_query(scores, signal.score_query_items(text, item_rows), text)
        return scores

    def _ncf_all(self, users: FloatArray) -> FloatArray:
        rows = np.arange(len(self.item_vectors), dtype=np.int64)
        chunks = [users[start : start + NCF_CHUNK_USERS] for start in range(0, len(users), NCF_CHUNK_USERS)]
        scored = [ncf(self.model, chunk, self.item_vectors, np.tile(rows, (len(chunk), 1))) for chunk in chunks]
        return np.concatenate([*scored, np.empty((0, len(rows)), np.float32)])


class Bundle(Scorer):
    """A loaded Bundle, on the CPU and in evaluation mode.

    text_vectors: [N, T] float32 in text space, or None. text_center: [T] float32, or None; trained_center: the same for
    training that goes on from this Bundle.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        folder = artifact.path
        self.recipe = _read(folder / "recipe.json", _recipe)
        self.users = _read(folder / "users.parquet", Vocabulary.load)
        self.items = _read(folder / "items.parquet", Vocabulary.load)
        self.item_titles = _read(folder / "titles.parquet", _titles)
        kept = _read(folder / "policy.json", _fusion)
        self.calibration, self.cold_calibration, self.policy = kept.calibration, kept.cold_calibration, kept.policy
        arrays = _read(folder / "arrays.safetensors", load_arrays)
        self.text_vectors: FloatArray | None = arrays.get("text_vectors")
        self.text_center: FloatArray | None = arrays.get("text_center")
        self.trained_center: FloatArray | None = arrays.get("trained_center", self.text_center)
        profiles = _part(arrays, "profiles.")
        self.profiles = ProfileMap.from_arrays(profiles) if profiles else None
        columns = folder / "context.json"
        self.context = _read(columns, _context) if columns.exists() else None
        model = self._load_model(folder / "model.safetensors")
        super().__init__(
            model, arrays["item_vectors"], _load_signals(arrays, self.text_vectors), arrays.get("cold_rows")
        )
        self.fusion = None if kept.fusion is None else load_fusion(
            self.recipe.fusion.mode, kept.fusion, _part(arrays, "fusion."), self.calibration,
            lambda settings, state: LearnedCorrection.from_state(settings, state, self.item_vectors),
        )

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
        return self.text_center is not None

    def load_encoder(self, device: str = "cpu") -> AnyEncoder:
        """The text encoder, in the runtime and precision of the recipe.

        Raises CorruptArtifactError for files that cannot be read, ConfigError for a setting that this machine lacks.
        """
        assert self.has_encoder, "encoder of a Bundle without texts. This is a bug."
        try:
            return load_encoder(self.artifact.path / "encoder", self.recipe.encoder, device)
        except ModelSourceError as error:
            raise CorruptArtifactError(f"{error} Restore the Bundle or train again.") from None

    def _load_model(self, path: Path) -> FusionRecommender:
        text_size = None if self.text_vectors is None else self.text_vectors.shape[1]
        tensors = _read(path, load_tensors)
        model = FusionRecommender(
            self.recipe.model, self.recipe.fusion.item_vector, len(self.users), len(self.items), text_size,
            context_sizes(tensors),
        )
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ArtifactMismatchError(
                f"{path} does not fit the recipe it was saved with ({' '.join(str(error).split())[:200]}): "
                "train again with this version."
            ) from None
        return model


def _card_facts(parts: BundleParts, parents: Mapping[str, str], metrics: Mapping[str, Any]) -> CardFacts:
    users_of_items = np.rint(np.expm1(parts.popularity.log_counts.astype(np.float64)))
    return CardFacts(
        users=len(parts.users), items=len(parts.items), cold_items=int((users_of_items == 0).sum()),
        train_events=int(users_of_items.sum()), parameters=sum(p.numel() for p in parts.model.parameters()),
        has_encoder=parts.encoder is not None,
        has_content=parts.encoder is not None or bool(parts.recipe.data.items and parts.recipe.data.items.attributes),
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


def _read(path: Path, load: Callable[[Path], Loaded]) -> Loaded:
    """What `load` makes of a file, or CorruptArtifactError naming the file: hashes are not always verified."""
    try:
        return load(path)
    except (OSError, ValueError, KeyError, pl.exceptions.PolarsError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorruptArtifactError(f"{path} cannot be read ({reason}): restore it or train again.") from None


def _recipe(path: Path) -> Recipe:
    return Recipe.model_validate_json(path.read_bytes())


def _context(path: Path) -> ContextFeatures:
    return ContextFeatures.from_json(path.read_text(encoding="utf-8"))


def _titles(path: Path) -> list[str]:
    return pl.read_parquet(path)["title"].to_list()


class _KeptFusion(BaseModel):
    """policy.json; `fusion` holds the settings of a mode that is more than the policy's weights."""

    calibration: Calibration
    cold_calibration: Calibration
    policy: FusionPolicy
    fusion: dict[str, Any] | None = None


def _fusion(path: Path) -> _KeptFusion:
    return _KeptFusion.model_validate_json(path.read_bytes())


def _load_signals(arrays: Mapping[str, NDArray[Any]], text_vectors: FloatArray | None) -> dict[str, Signal]:
    signals: dict[str, Signal] = {"popularity": Popularity.from_arrays(_part(arrays, "popularity."))}
    if ease := _part(arrays, "item_item."):
        signals["item_item"] = Ease.from_arrays(ease)
    if text_vectors is not None:
        recency = float(arrays["text_recency"][0])
        signals["text"] = TextCosine(text_vectors, None if np.isnan(recency) else recency)
    return signals


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _prefer_query(history: FloatArray, query: FloatArray, text: FloatArray) -> FloatArray:
    """The text signal of a user who gave a text is its cosine with the items; the history speaks elsewhere."""
    return np.where(text.any(axis=1, keepdims=True), query, history).astype(np.float32)
