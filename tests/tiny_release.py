"""A published Release over the checkerboard with real artifacts: fitted signals, and towers with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from llmrec_ray.artifact import Artifact, Workspace
from llmrec_ray.bundle import Bundle, BundleParts, save_bundle
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.index import build_index
from llmrec_ray.model import FusionRecommender, catalogue_vectors, user_matrix
from llmrec_ray.model.onnx import load_encoder
from llmrec_ray.release import Release, publish
from llmrec_ray.signals import (
    TEXT_RECENCY,
    Calibration,
    Ease,
    FusionPolicy,
    Popularity,
    ProfileMap,
    TextCosine,
    center,
    to_text_space,
)
from llmrec_ray.train import TrainingInputs
from llmrec_ray.train.cold import ColdStart, fit_new_items


def write_tiny_bundle(
    recipe: Recipe, dataset: Dataset, root: str, *, seed: int = 0, profiles: list[str] | None = None
) -> Artifact:
    """A Bundle whose text encoder is real, whose signals are fitted, and whose towers are not trained.

    profiles: what each user says about themselves.
    """
    encoder = load_encoder(Path(recipe.encoder.model), recipe.encoder)
    raw = encoder.encode(dataset.item_texts)
    text_center = center(raw)
    text_vectors = to_text_space(raw, text_center)
    inputs = TrainingInputs.of(recipe, dataset, text_vectors, text_center)
    torch.manual_seed(seed)
    model = FusionRecommender(
        recipe.model, recipe.fusion.item_vector, len(dataset.users), len(dataset.items), text_vectors.shape[1],
        inputs.context_sizes,
    )
    model.set_features(inputs.user_features, inputs.item_features)
    train = dataset.histories("train")
    ease = Ease(l2=10.0).fit(train, len(dataset.items))
    popularity = Popularity().fit(train, len(dataset.items))
    learned = catalogue_vectors(model, text_vectors)
    cold = ColdStart.of(dataset, text_vectors)
    cold_calibration = cold.calibrate(user_matrix(model, learned, train), train, learned, ease, text_vectors)
    new_items = fit_new_items(recipe, dataset, text_vectors, learned, item_item=True)
    catalogue, ease = cold.fill(learned, ease)
    neural = user_matrix(model, catalogue, train) @ catalogue.T
    scores = {
        "neural": neural, "ncf": neural, "item_item": ease.score(train), "popularity": popularity.score(train),
        "text": TextCosine(text_vectors).score(train),
    }
    parts = BundleParts(
        recipe=recipe, users=dataset.users, items=dataset.items, item_titles=dataset.item_titles, model=model,
        context=inputs.context,
        item_vectors=catalogue, encoder=encoder, text_vectors=text_vectors, text_center=text_center,
        trained_center=text_center, ease=ease, popularity=popularity, calibration=Calibration.fit(scores),
        policy=FusionPolicy(
            weights={"neural": 0.1, "ncf": 0.1, "item_item": 0.6, "text": 0.1, "popularity": 0.1},
            candidates=recipe.retrieval.candidates, cold_weights=recipe.fusion.cold_weights,
            cold_scale=recipe.fusion.cold_scale,
        ),
        cold_rows=cold.rows, new_items=new_items, cold_calibration=cold_calibration, text_recency=TEXT_RECENCY,
        profiles=None if profiles is None else ProfileMap.fit(
            encoder.encode(profiles, as_query=True), user_matrix(model, catalogue, train)[:, :-1], ridge=0.1
        ),
    )
    return save_bundle(root, parts, parents={"dataset": dataset.id}, metrics={})


def publish_tiny_release(recipe: Recipe, workspace: Workspace) -> Release:
    """Ingest the board, write a Bundle and an Index, and publish them."""
    dataset = Dataset(ingest(recipe, Path(), workspace, use_ray=False))
    bundle = Bundle(write_tiny_bundle(recipe, dataset, workspace.root("bundle")))
    index = build_index(bundle, recipe.index, workspace.root("index"))
    return publish(
        workspace, name=recipe.name, dataset_uri=dataset.uri, bundle_uri=bundle.uri, index_uri=index.uri,
        policy=bundle.policy,
    )
