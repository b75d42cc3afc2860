"""A Release of any size without training: events and texts drawn at random, vectors in clusters, a real pipeline.

Everything that serving computes with is there and of real shape: a text encoder with random weights, item vectors as a
mixture of clusters, the user tower, and the learned reranker with random weights. What it recommends means nothing.
Shapes: N items, T text vector size. It knows no endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.random import Generator
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast

from llmrec_ray.artifact import Artifact, Workspace
from llmrec_ray.bundle import Bundle, BundleParts, save_bundle
from llmrec_ray.config import Recipe, SignalName, validate_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.index import build_index
from llmrec_ray.model import FusionRecommender, catalogue_vectors, user_matrix
from llmrec_ray.model.onnx import load_encoder
from llmrec_ray.model.reranker import LearnedCorrection
from llmrec_ray.release import Release, publish
from llmrec_ray.signals import Calibration, CorrectedFusion, FusionPolicy, Popularity, TextCosine, WeightedFusion
from llmrec_ray.types import FloatArray

__all__ = ["DRILL", "SERVE", "WORDS", "Size", "publish_again", "publish_synthetic"]

WORDS = ("red", "green", "blue", "small", "large", "old", "new", "house", "boat", "story", "song", "garden", "winter",
         "summer", "city", "river", "mountain", "friend", "stranger", "night")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPREAD = 0.5
"""Deviation of an item's vector around the centre of its cluster, whose own deviation is 1."""


@dataclass(frozen=True)
class Size:
    """How much of everything; `candidates` are retrieved by vector alone and all of them are reranked."""

    items: int
    users: int
    events_per_user: int
    embedding_size: int
    clusters: int
    candidates: int
    encoder_layers: int
    text_size: int


SERVE = Size(
    items=100_000, users=20_000, events_per_user=20, embedding_size=128, clusters=1000, candidates=200,
    encoder_layers=6, text_size=384,
)
"""The fixed workload of `serve.py`: 100k x 128 exact retrieval, 200 candidates reranked, an encoder as MiniLM's."""
DRILL = Size(
    items=5000, users=2000, events_per_user=20, embedding_size=32, clusters=50, candidates=100, encoder_layers=2,
    text_size=32,
)
"""Light enough that a drill on two cores measures what breaks and not what is slow."""


def publish_synthetic(folder: Path, size: Size, *, seed: int = 0) -> Release:
    """Write the files of a Dataset, Bundle and Index below `folder`, publish them in `folder`/work."""
    generator = np.random.default_rng(seed)
    _write_files(folder, size, generator)
    recipe = _recipe(folder, size)
    workspace = Workspace(recipe.workspace)
    dataset = Dataset(ingest(recipe, folder, workspace, use_ray=False))
    bundle = Bundle(_write_bundle(recipe, dataset, workspace.root("bundle"), size, generator))
    index = build_index(bundle, recipe.index, workspace.root("index"))
    return publish(
        workspace, name=recipe.name, dataset_uri=dataset.uri, bundle_uri=bundle.uri, index_uri=index.uri,
        policy=bundle.policy,
    )


def publish_again(folder: Path, release: Release, *, popularity: float) -> Release:
    """Publish the same artifacts under another weight of popularity: another Release, which the pointer then names."""
    policy = release.policy.model_copy(update={"weights": {**release.policy.weights, "popularity": popularity}})
    return publish(
        Workspace(str(folder / "work")), name=release.name, dataset_uri=release.dataset.uri,
        bundle_uri=release.bundle.uri, index_uri=release.index.uri, policy=policy,
    )


def _write_files(folder: Path, size: Size, generator: Generator) -> None:
    """`log.parquet` and `items.parquet`; every item occurs, since the first events go through the catalogue in turn."""
    n = size.users * size.events_per_user
    assert n >= size.items, "too few events for every item to have one. This is a bug."
    drawn = (size.items * generator.random(n - size.items) ** 2).astype(np.int64)
    items = np.concatenate([np.arange(size.items), drawn])
    users = generator.permutation(np.repeat(np.arange(size.users), size.events_per_user))
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({
        "user_id": [f"u{user}" for user in users], "item_id": [f"i{item}" for item in items],
        "timestamp": 1_700_000_000 + np.arange(n),
    }).write_parquet(folder / "log.parquet")
    texts = [" ".join(words) for words in generator.choice(WORDS, (size.items, 6))]
    pl.DataFrame({
        "item_id": [f"i{item}" for item in range(size.items)], "title": texts,
        "category": generator.choice([f"c{number}" for number in range(20)], size.items),
        "year": generator.integers(1950, 2026, size.items),
    }).write_parquet(folder / "items.parquet")


def _recipe(folder: Path, size: Size) -> Recipe:
    return validate_recipe({
        "name": "synthetic", "workspace": str(folder / "work"),
        "data": {
            "interactions": {"paths": [str(folder / "log.parquet")]},
            "items": {
                "paths": [str(folder / "items.parquet")], "id": "item_id", "title": "title", "template": "{title}",
                "attributes": ["category", "year"],
            },
            "min_user_interactions": 3,
        },
        "model": {"embedding_size": size.embedding_size},
        "fusion": {"mode": "learned", "signals": ["neural", "ncf", "text", "popularity"]},
        "retrieval": {"candidates": {"neural": size.candidates}},
    }, "the synthetic recipe")


def _write_bundle(recipe: Recipe, dataset: Dataset, root: str, size: Size, generator: Generator) -> Artifact:
    encoder = load_encoder(_write_encoder(Path(recipe.workspace).parent / "encoder", size), recipe.encoder)
    text_vectors = _unit(generator.standard_normal((size.items, size.text_size), np.float32))
    model = _model(recipe, size, len(dataset.users), generator)
    vectors = catalogue_vectors(model, text_vectors)
    popularity = Popularity().fit(dataset.histories("train"), size.items)
    calibration = _calibration(dataset, model, vectors, text_vectors, popularity)
    weights: dict[SignalName, float] = {"neural": 0.4, "ncf": 0.3, "text": 0.2, "popularity": 0.1}
    policy = FusionPolicy(weights=weights, candidates=recipe.retrieval.candidates)
    base = WeightedFusion(calibration, {str(name): weight for name, weight in weights.items()})
    parts = BundleParts(
        recipe=recipe, users=dataset.users, items=dataset.items, item_titles=dataset.item_titles, model=model,
        encoder=encoder, text_vectors=text_vectors, text_center=np.zeros(size.text_size, np.float32),
        trained_center=None, item_vectors=vectors, ease=None, popularity=popularity, calibration=calibration,
        policy=policy, fusion=CorrectedFusion(base, _correction(vectors, popularity, generator)),
    )
    return save_bundle(root, parts, parents={"dataset": dataset.id}, metrics={})


def _unit(vectors: FloatArray) -> FloatArray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _model(recipe: Recipe, size: Size, n_users: int, generator: Generator) -> FusionRecommender:
    torch.manual_seed(0)
    model = FusionRecommender(recipe.model, recipe.fusion.item_vector, n_users, size.items, size.text_size)
    centers = generator.standard_normal((size.clusters, size.embedding_size), np.float32)
    noise = generator.standard_normal((size.items, size.embedding_size), np.float32)
    ids = centers[generator.integers(0, size.clusters, size.items)] + SPREAD * noise
    assert model.items.ids is not None, "the item tower has no id embedding. This is a bug."
    with torch.no_grad():
        model.items.ids.weight.copy_(torch.from_numpy(ids / np.sqrt(size.embedding_size)))
    return model


def _calibration(
    dataset: Dataset, model: FusionRecommender, vectors: FloatArray, text_vectors: FloatArray, popularity: Popularity
) -> Calibration:
    some = dataset.histories("train").select(np.arange(32))
    neural = user_matrix(model, vectors, some) @ vectors.T
    scores = {
        "neural": neural, "ncf": neural, "text": TextCosine(text_vectors).score(some),
        "popularity": popularity.score(some),
    }
    return Calibration.fit(scores)


def _correction(vectors: FloatArray, popularity: Popularity, generator: Generator) -> LearnedCorrection:
    """The network of `learned` fusion as it is trained, with small random weights where it would start from zeros."""
    counts = popularity.log_counts[:, None]
    features = np.asarray(np.hstack([counts, generator.standard_normal(counts.shape)]), np.float32)
    names = ("neural", "text", "popularity")
    correction = LearnedCorrection.untrained(names, vectors, features, (3.0, 1.0), hidden=64)
    with torch.no_grad():
        for last in (correction.network.product, correction.network.direct, correction.network.join):
            last.weight.normal_(std=0.05)
    return correction


def _write_encoder(folder: Path, size: Size) -> Path:
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=size.text_size, num_hidden_layers=size.encoder_layers,
        intermediate_size=4 * size.text_size, num_attention_heads=max(2, size.text_size // 32),
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(WORDS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(SPECIAL)))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )
