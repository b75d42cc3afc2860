"""A Dataset and its text vectors -> a Bundle: training, signals, calibration, fusion weights, and a check by reloading.

Everything is chosen on the validation split; the test split is not read here.
Shapes: B users, N items, T text vector size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmrec_ray.artifact import Artifact, Workspace, create_artifact, remove_artifact
from llmrec_ray.bundle import Bundle, BundleParts, Scorer, save_bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.embed import embed
from llmrec_ray.errors import CorruptArtifactError, DiskFullError
from llmrec_ray.metrics import ndcg
from llmrec_ray.model import FusionRecommender, catalogue_vectors
from llmrec_ray.model.context import context_sizes
from llmrec_ray.model.encoder import TextEncoder
from llmrec_ray.model.onnx import AnyEncoder
from llmrec_ray.model.source import resolve_model
from llmrec_ray.model.tuning import load_tuned
from llmrec_ray.policy import ValidatedFusion, fuse_on_validation, make_policy, validation_users
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.signals import (
    Calibration,
    Ease,
    Popularity,
    Signal,
    TextCosine,
    center,
    to_text_space,
)
from llmrec_ray.train.cold import ColdStart, fit_new_items
from llmrec_ray.train.fusing import fit_fusion
from llmrec_ray.train.inputs import TrainingInputs, build_recommender
from llmrec_ray.train.newcomers import profile_map
from llmrec_ray.train.quantized import quantize_text
from llmrec_ray.train.run import TrainedModel, run_training
from llmrec_ray.train.warm import center_of, with_encoder_of
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["TextSpace", "train_bundle"]

logger = logging.getLogger(__name__)

SELECTION_K = 10
CALIBRATION_USERS = 1_000
CHECKED_USERS = 8
CHECKED_TEXTS = 32
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.99, "int8": 0.95}
MOST_NDCG_CHANGE = 0.005


@dataclass(frozen=True)
class TextSpace:
    """The catalogue's texts as vectors: center [T] float32, vectors [N, T] float32 centred and of unit norm."""

    center: FloatArray
    vectors: FloatArray

    @classmethod
    def of(cls, raw: FloatArray, middle: FloatArray | None = None) -> TextSpace:
        """From raw encoder output [N, T], around its own centre or a given one; zero rows are items without text."""
        middle = center(raw) if middle is None else middle
        return cls(middle, to_text_space(raw, middle))


def train_bundle(
    recipe: Recipe,
    dataset: Dataset,
    raw_text: FloatArray | None,
    workspace: Workspace,
    *,
    start: Bundle | None = None,
    resume: bool = False,
    run_dir: str | None = None,
    show_progress: bool = True,
    neighbours: int = 1,
) -> Artifact:
    """Train on the Dataset's train split and keep the result as a Bundle.

    raw_text: [N, T] float32 output per item row of the encoder that training starts with, see `with_encoder_of`, or
    None when items have no texts. start: what `open_start` gave. run_dir: folder or URI of the training run, by default
    one of the workspace; with `resume` a run that is over there, such as a trial's, is made a Bundle as it is.
    neighbours: trainings, this one included, that share a machine's cores.
    Raises TrainingError, ClusterError, ConfigError, ArtifactNotFoundError or ArtifactMismatchError (nothing, or
    another run, to resume), DiskFullError, and CorruptArtifactError when the Bundle on disk does not score as the one
    in memory.
    """
    signals = _fit_signals(recipe, dataset)
    text = None if raw_text is None else TextSpace.of(raw_text, center_of(recipe, start))
    started = with_encoder_of(recipe, start)
    inputs = TrainingInputs.of(started, dataset, _vectors(text), _center(text), start=start)
    trained = run_training(
        started, inputs, run_dir or f"{workspace.root('run')}/train", data_id=dataset.id, resume=resume,
        show_progress=show_progress, neighbours=neighbours,
    )
    raw = None if raw_text is None or text is None else (raw_text, text.center)
    scorer, parts, metrics = _assemble(started, dataset, raw, signals, trained, workspace)
    parents = {"dataset": dataset.id} | ({} if start is None else {"bundle": start.id})
    artifact = _keep(workspace, replace(parts, recipe=recipe, context=inputs.context), parents, metrics)
    try:
        _check_reloaded(Bundle.open(artifact.uri), scorer, recipe, dataset, trained)
    except CorruptArtifactError:
        remove_artifact(artifact)
        raise
    workspace.set_latest("bundle", artifact.uri)
    return artifact


def _keep(workspace: Workspace, parts: BundleParts, parents: dict[str, str], metrics: dict[str, Any]) -> Artifact:
    try:
        return save_bundle(workspace.root("bundle"), parts, parents=parents, metrics=metrics)
    except DiskFullError as error:
        raise DiskFullError(f"{error} With --resume it takes the trained weights, which are kept.") from error


def _fit_signals(recipe: Recipe, dataset: Dataset) -> dict[str, Signal]:
    """Popularity always, EASE when the recipe asks for it; before training, so that a refusal costs nothing."""
    train, n_items = dataset.histories("train"), len(dataset.items)
    signals: dict[str, Signal] = {"popularity": Popularity().fit(train, n_items)}
    if "item_item" in recipe.fusion.signals or "item_item" in recipe.retrieval.candidates:
        signals["item_item"] = Ease(recipe.item_item.l2, recipe.item_item.recency).fit(train, n_items)
    return signals


def _assemble(
    recipe: Recipe, dataset: Dataset, raw: tuple[FloatArray, FloatArray] | None, signals: dict[str, Signal],
    trained: TrainedModel, workspace: Workspace,
) -> tuple[Scorer, BundleParts, dict[str, Any]]:
    """`raw`: the catalogue's raw text vectors and the centre that training subtracted."""
    text_size = None if raw is None else raw[0].shape[1]
    sizes = context_sizes(trained.model_state)
    model = build_recommender(recipe, len(dataset.users), len(dataset.items), text_size, sizes)
    model.load_state_dict(trained.model_state)
    text: TextSpace | None = None
    encoder: AnyEncoder | None = None
    change: dict[str, Any] = {}
    if raw is not None:
        text, encoder, change = _texts(recipe, dataset, *raw, trained, model, workspace)
        signals = signals | {"text": TextCosine(text.vectors)}
    vectors = _vectors(text)
    ease, popularity = signals.get("item_item"), signals["popularity"]
    assert isinstance(ease, Ease | None) and isinstance(popularity, Popularity)
    cold = ColdStart.none(dataset) if recipe.fusion.mode == "feature" else ColdStart.of(dataset, vectors)
    learned = catalogue_vectors(model, vectors)
    item_vectors, item_item = cold.fill(learned, ease)
    filled = signals if item_item is None else signals | {"item_item": item_item}
    scorer = Scorer(model, item_vectors, filled, cold.rows)
    fusion = fuse_on_validation(recipe, dataset, scorer)
    parts = BundleParts(
        recipe=recipe, users=dataset.users, items=dataset.items, item_titles=dataset.item_titles, model=model,
        encoder=encoder, text_vectors=vectors, text_center=_center(text),
        trained_center=None if raw is None else raw[1], item_vectors=item_vectors, ease=item_item,
        popularity=popularity, calibration=fusion.calibration, cold_rows=cold.rows,
        new_items=fit_new_items(recipe, dataset, vectors, learned, item_item=ease is not None),
        cold_calibration=_calibrate_cold(recipe, dataset, scorer, cold, (learned, ease, vectors)),
        policy=make_policy(recipe, scorer, fusion),
        profiles=None if raw is None else profile_map(dataset, scorer, _encoder(recipe, trained)),
    )
    if recipe.fusion.mode not in {"late", "feature"}:
        parts = replace(parts, fusion=fit_fusion(recipe, dataset, scorer, parts.calibration, parts.policy))
    return scorer, parts, _metrics(trained, fusion) | change


def _calibrate_cold(
    recipe: Recipe, dataset: Dataset, scorer: Scorer, cold: ColdStart,
    known: tuple[FloatArray, Ease | None, FloatArray | None],
) -> Calibration:
    """`known`: item vectors and item-item signal before cold items were filled in, and text vectors."""
    seen = dataset.histories("train").select(validation_users(recipe, dataset)[:CALIBRATION_USERS])
    return cold.calibrate(scorer.user_vectors(seen), seen, *known)


def _vectors(text: TextSpace | None) -> FloatArray | None:
    return None if text is None else text.vectors


def _center(text: TextSpace | None) -> FloatArray | None:
    return None if text is None else text.center


def _texts(
    recipe: Recipe, dataset: Dataset, raw: FloatArray, middle: FloatArray, trained: TrainedModel,
    model: FusionRecommender, workspace: Workspace,
) -> tuple[TextSpace, AnyEncoder, dict[str, Any]]:
    """The catalogue by the trained encoder, the encoder that is served with its centre, and what int8 changed.

    The catalogue keeps the vectors that training read: they are there already, and int8 ones would only be worse.
    """
    encoder = _encoder(recipe, trained)
    raw = _embed_by(encoder, recipe, dataset, workspace) if trained.encoder_state else raw
    text = TextSpace(middle, to_text_space(raw, middle))
    if recipe.encoder.precision != "int8":
        return text, encoder, {}
    kept = quantize_text(encoder, model, dataset, validation_users(recipe, dataset), raw, middle)
    return TextSpace(kept.center, text.vectors), kept.encoder, {"int8_encoder": kept.change}


def _embed_by(encoder: TextEncoder, recipe: Recipe, dataset: Dataset, workspace: Workspace) -> FloatArray:
    """The catalogue by a tuned encoder, which actors on any machine find in the workspace while it lasts."""
    config = recipe.encoder.model_dump(mode="json")
    artifact = create_artifact(workspace.root("encoder"), "encoder", encoder.save, config=config)
    precision = "fp32" if recipe.encoder.precision == "int8" else recipe.encoder.precision
    model = str(artifact.path) if workspace.is_local else artifact.uri
    try:
        return embed(
            dataset.item_texts, recipe.encoder.model_copy(update={"model": model, "precision": precision}), workspace
        )
    finally:
        remove_artifact(artifact)


def _encoder(recipe: Recipe, trained: TrainedModel) -> TextEncoder:
    path = resolve_model(recipe.encoder.model)
    if trained.encoder_state:
        return load_tuned(path, recipe.encoder, trained.encoder_state)
    return TextEncoder.load(path, recipe.encoder)


def _metrics(trained: TrainedModel, fusion: ValidatedFusion) -> dict[str, Any]:
    return {
        "epochs": trained.epochs, "best_epoch": trained.best_epoch, "train_seconds": round(trained.seconds, 2),
        "validation_ndcg@10": {"neural": trained.best["ndcg@10"], "fused": fusion.ndcg},
        "fusion_curve": fusion.curve,
    }


def _check_reloaded(
    bundle: Bundle, scorer: Scorer, recipe: Recipe, dataset: Dataset, trained: TrainedModel
) -> None:
    """Compare what was written and opened again, every hash verified, with what was trained: scores with those in
    memory, the encoder with the catalogue's vectors, and the ranking with the one that the workers measured."""
    _check_scores(bundle, scorer, dataset)
    _check_encoder(bundle, dataset)
    _check_ranking(bundle, recipe, dataset, trained)


def _check_scores(bundle: Bundle, scorer: Scorer, dataset: Dataset) -> None:
    histories = dataset.histories("train").select(slice(0, CHECKED_USERS))
    in_memory = scorer.score_all(histories)
    for name, scores in bundle.score_all(histories).items():
        if not np.array_equal(scores, in_memory[name], equal_nan=True):
            raise CorruptArtifactError(
                f"The Bundle {bundle.uri} scores {name} differently from the model that was trained: the disk or "
                "the library versions cannot be trusted; train again."
            )


def _check_encoder(bundle: Bundle, dataset: Dataset) -> None:
    rows = [row for row, text in enumerate(dataset.item_texts) if text][:CHECKED_TEXTS]
    if bundle.text_vectors is None or bundle.text_center is None or not rows:
        return
    raw = bundle.load_encoder().encode([dataset.item_texts[row] for row in rows])
    cosine = (to_text_space(raw, bundle.text_center) * bundle.text_vectors[rows]).sum(axis=1).mean()
    if cosine < LEAST_COSINE[bundle.recipe.encoder.precision]:
        raise CorruptArtifactError(
            f"The encoder of the Bundle {bundle.uri} gives other vectors than those of its catalogue (mean cosine "
            f"{cosine:.4f} over {len(rows)} texts): what was trained was not put together rightly; train again."
        )


def _check_ranking(bundle: Bundle, recipe: Recipe, dataset: Dataset, trained: TrainedModel) -> None:
    users, targets = validation_users(recipe, dataset), dataset.targets("validation")
    if len(users) < (targets >= 0).sum():
        return
    seen = dataset.histories("train").select(users)
    item_vectors = bundle.item_vectors.copy()
    item_vectors[bundle.cold.rows] = catalogue_vectors(bundle.model, bundle.text_vectors)[bundle.cold.rows]
    ranks = [
        target_ranks(mask_seen(bundle.user_vectors(part) @ item_vectors.T, part), own)
        for part, own in _in_batches(seen, targets[users], recipe.evaluate.batch_users)
    ]
    found, measured = ndcg(np.concatenate(ranks), SELECTION_K), trained.best["ndcg@10"]
    if abs(found - measured) > MOST_NDCG_CHANGE:
        raise CorruptArtifactError(
            f"The Bundle {bundle.uri} ranks with validation NDCG@10 {found:.4f}, but the workers measured "
            f"{measured:.4f} for the same weights: what was trained was not put together rightly; train again."
        )


def _in_batches(seen: Histories, targets: IntArray, size: int) -> Iterator[tuple[Histories, IntArray]]:
    for start in range(0, len(seen), size):
        yield seen.select(slice(start, start + size)), targets[start : start + size]
