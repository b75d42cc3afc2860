"""The text source of an encoder that trains: each item of a step once, some items with gradients, all in text space."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec_ray.config import EncoderConfig
from llmrec_ray.model import SharedText, TextEncoder, TunedText, make_windows
from llmrec_ray.model.tuning import prepare_tuning
from llmrec_ray.signals import center, to_text_space
from tests.train_boards import board_texts, deterministic_recipe, inputs_of_board, train_here

SETTINGS = {"seed": 3, "batch_size": 4, "negatives": 8, "with_step_rows": True}


@pytest.fixture
def encoder(tiny_encoder) -> TextEncoder:
    config = EncoderConfig(model=str(tiny_encoder), tuning="full", max_tokens=16, max_batch_tokens=128)
    loaded = TextEncoder.load(tiny_encoder, config, for_training=True)
    prepare_tuning(loaded)
    return loaded


@pytest.fixture
def vectors(encoder) -> np.ndarray:
    raw = encoder.encode(board_texts())
    return to_text_space(raw, center(raw))


def shared(encoder, vectors, share: float = 1.0) -> SharedText:
    raw = encoder.encode(board_texts())
    return SharedText(TunedText(encoder, board_texts(), center(raw)), vectors, gradient_share=share)


def batches() -> list:
    windows = make_windows(inputs_of_board().histories, 10)
    return [batch for [batch] in windows.epoch(0, **SETTINGS)]


def test_a_batch_gets_the_vectors_of_its_items_in_its_order(encoder, vectors):
    source = shared(encoder, vectors)
    for batch in batches()[:3]:
        np.testing.assert_allclose(source(batch).detach().numpy(), vectors[batch.rows], atol=1e-5)
    np.testing.assert_allclose(source.catalogue(40), vectors, atol=1e-5)
    assert not source.catalogue(40)[7].any(), "item 7 has no text"


def test_each_item_of_a_step_is_encoded_once(encoder, vectors):
    source, seen = shared(encoder, vectors), []
    encode = source.tuned.forward
    source.tuned.forward = lambda rows, passes: seen.append(rows) or encode(rows, passes)
    batch = batches()[0]
    source(batch)
    assert len(seen) == 1 and torch.equal(seen[0].sort().values, batch.step_rows)


def test_a_share_of_the_items_is_encoded_and_the_others_keep_their_last_vectors(encoder, vectors):
    stale = np.zeros_like(vectors)
    source = shared(encoder, stale, share=0.3)
    fresh_shares = []
    for batch in batches():
        found = source(batch)
        fresh = found.detach().abs().sum(dim=1) > 0
        np.testing.assert_allclose(found[fresh].detach().numpy(), vectors[batch.rows][fresh], atol=1e-5)
        fresh_shares.append(float(fresh.float().mean()))
        assert torch.equal(source(batch), found), "the same items for the same step"
    assert 0.2 < np.mean(fresh_shares) < 0.4
    found.sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in encoder.backbone.parameters())


def test_the_kept_vectors_are_those_of_the_last_look_at_the_catalogue(encoder, vectors):
    source = shared(encoder, np.zeros_like(vectors), share=1e-9)
    batch = batches()[0]
    assert (source(batch).detach().abs().sum(dim=1) > 0).sum() <= 1, "one item at least is encoded"
    source.catalogue(40)
    np.testing.assert_allclose(source(batch).detach().numpy(), vectors[batch.rows], atol=1e-5)
    assert "table" in source.state_dict() and "table" not in shared(encoder, vectors).state_dict()


def test_a_run_with_kept_vectors_resumes_as_if_nothing_had_happened(tiny_encoder, tmp_path):
    encoder = EncoderConfig(model=str(tiny_encoder), tuning="full", learning_rate=1e-3, gradient_share=0.3)
    recipe = deterministic_recipe(sharding="none", num_workers=1, checkpoint_steps=1, epochs=2)
    recipe = recipe.model_copy(update={"encoder": encoder})
    whole = train_here(recipe, tmp_path)
    assert train_here(recipe, resume_from=tmp_path / "7") == whole[7:]
