"""A Bundle is proven before it counts: its encoder gives its catalogue's vectors, and it ranks as was measured."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llmrec_ray.bundle import Bundle
from llmrec_ray.data import Dataset
from llmrec_ray.errors import CorruptArtifactError
from llmrec_ray.metrics import ndcg
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.train.finish import _check_encoder, _check_ranking


@pytest.fixture
def bundle(tiny_release) -> Bundle:
    return Bundle.open(tiny_release.bundle.uri)


@pytest.fixture
def dataset(tiny_release) -> Dataset:
    return Dataset.open(tiny_release.dataset.uri)


def test_a_bundle_whose_encoder_gives_other_vectors_than_its_catalogue_is_refused(bundle, dataset):
    _check_encoder(bundle, dataset)
    bundle.text_vectors = bundle.text_vectors[::-1].copy()
    with pytest.raises(CorruptArtifactError) as caught:
        _check_encoder(bundle, dataset)
    message = str(caught.value)
    assert message.startswith(f"The encoder of the Bundle {bundle.uri} gives other vectors than those of its catalogue")
    assert message.endswith("over 32 texts): what was trained was not put together rightly; train again.")


def test_a_bundle_that_ranks_otherwise_than_the_workers_measured_is_refused(bundle, dataset, tiny_recipe):
    seen, targets = dataset.histories("train"), dataset.targets("validation")
    scores = mask_seen(bundle.user_vectors(seen) @ bundle.item_vectors.T, seen)
    found = ndcg(target_ranks(scores, targets), 10)
    _check_ranking(bundle, tiny_recipe, dataset, SimpleNamespace(best={"ndcg@10": found + 0.001}))
    with pytest.raises(CorruptArtifactError) as caught:
        _check_ranking(bundle, tiny_recipe, dataset, SimpleNamespace(best={"ndcg@10": found + 0.5}))
    assert str(caught.value) == (
        f"The Bundle {bundle.uri} ranks with validation NDCG@10 {found:.4f}, but the workers measured "
        f"{found + 0.5:.4f} for the same weights: what was trained was not put together rightly; train again."
    )
