"""Encoders of every family: causal and bidirectional attention, pooling, prompts, precision, and what is refused."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma3Config, Gemma3Model, Gemma3TextConfig, T5Config, T5Model

from llmrec_ray.config import EncoderConfig
from llmrec_ray.errors import ConfigError, ModelSourceError
from llmrec_ray.model.encoder import TextEncoder, pooled_states
from llmrec_ray.model.tokens import TextTokens
from tests.tiny_encoder import DECODERS, SLIDING_WINDOW, write_tiny_decoder, write_tiny_encoder

TEXTS = ["thing painted black", "a space adventure for children", "", "red", "story of a white thing 0 1 2 3"]
CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One encoder of every family, by name."""
    folder = tmp_path_factory.mktemp("families")
    decoders = {family: write_tiny_decoder(folder / family, family) for family in DECODERS}
    return decoders | {"bert": write_tiny_encoder(folder / "bert")}


def load(folder, **settings) -> TextEncoder:
    return TextEncoder.load(folder, EncoderConfig(model=str(folder), max_batch_tokens=64, **settings))


def states_of(encoder: TextEncoder, tokens: Tensor, lengths: Tensor) -> Tensor:
    mask = torch.arange(tokens.shape[1])[None, :] < lengths[:, None]
    with torch.inference_mode():
        return encoder.backbone(input_ids=tokens, attention_mask=mask.long()).last_hidden_state


def reads_ahead(encoder: TextEncoder, *, padding: int) -> bool:
    """Whether a change of the last of 3 tokens reaches the first two, alone or beside a longer text."""
    tokens = torch.randint(5, 40, (2, 3 + padding), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([3, 3 + padding])
    changed = tokens.clone()
    changed[0, 2] += 1
    before, after = states_of(encoder, tokens, lengths)[0], states_of(encoder, changed, lengths)[0]
    assert not torch.allclose(before[2], after[2], atol=1e-4), "the changed token's own state must change"
    return not torch.allclose(before[:2], after[:2], atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_later_token_changes_earlier_states_only_when_attention_is_bidirectional(folders, family, attention):
    causal = load(folders[family], attention=attention)
    both = load(folders[family], attention=attention, bidirectional=True)
    for padding in (0, 4):
        assert not reads_ahead(causal, padding=padding)
        assert reads_ahead(both, padding=padding)


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma3"])
def test_a_sliding_window_limits_bidirectional_attention_on_both_sides(folders, family):
    encoder = load(folders[family], bidirectional=True)
    tokens = torch.randint(5, 40, (1, 24), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 12] += 1
    difference = (states_of(encoder, tokens, torch.tensor([24])) - states_of(encoder, changed, torch.tensor([24])))[0]
    touched = (difference.abs().amax(1) > 1e-6).nonzero().flatten().tolist()
    reach = 2 * SLIDING_WINDOW if family == "mistral" else 12  # the others have a layer without a window
    assert touched == list(range(12 - reach, min(12 + reach + 1, 24)))


@pytest.mark.parametrize("family", DECODERS)
def test_the_attention_mode_survives_saving_and_is_part_of_the_fingerprint(folders, family, tmp_path):
    both = load(folders[family], bidirectional=True)
    assert both.fingerprint() != load(folders[family]).fingerprint()
    both.save(tmp_path / "copy")
    for again in (load(tmp_path / "copy", bidirectional=True), load(tmp_path / "copy")):
        np.testing.assert_array_equal(again.encode(TEXTS), both.encode(TEXTS))
        assert again.fingerprint() == both.fingerprint()
        assert reads_ahead(again, padding=0) and reads_ahead(again, padding=2)


@pytest.mark.parametrize("family", [*DECODERS, "bert"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "weighted"])
def test_a_padded_batch_gives_what_single_texts_give(folders, family, pooling):
    encoder = load(folders[family], pooling=pooling)
    together = encoder.encode(TEXTS)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode([text]) for text in TEXTS]), **CLOSE)
    assert not together[2].any() and together.any(axis=1).sum() == 4


def test_pooling_follows_its_formula(folders):
    encoder = load(folders["llama"])
    tokens, lengths = encoder.tokens.tokenize(TEXTS[:2])
    states = states_of(encoder, tokens, lengths)[0, : lengths[0]]
    place = torch.arange(1.0, len(states) + 1)[:, None]
    expected = {
        "mean": states.mean(0), "cls": states[0], "last": states[-1], "weighted": (place * states).sum(0) / place.sum(),
    }
    for pooling, vector in expected.items():
        pooled = pooled_states(encoder.backbone, tokens, lengths, pooling).detach()
        torch.testing.assert_close(pooled[0], vector, rtol=0, atol=1e-6)


def test_a_prompt_stands_around_items_another_around_queries_and_none_around_nothing(folders):
    plain = load(folders["qwen3"])
    prompted = load(folders["qwen3"], item_prompt="thing: {text}.", query_prompt="story {text}")
    np.testing.assert_array_equal(prompted.encode(["red", ""]), plain.encode(["thing: red.", ""]))
    np.testing.assert_array_equal(prompted.encode(["red", ""], as_query=True), plain.encode(["story red", ""]))
    assert prompted.tokens.prompted(["{text}", ""]) == ["thing: {text}.", ""]
    assert prompted.fingerprint() == plain.fingerprint()


def test_attention_by_eager_and_by_sdpa_agree_and_share_a_fingerprint(folders):
    for family in DECODERS:
        sdpa, eager = load(folders[family]), load(folders[family], attention="eager")
        np.testing.assert_allclose(sdpa.encode(TEXTS), eager.encode(TEXTS), **CLOSE)
        assert sdpa.fingerprint() == eager.fingerprint()


def test_bf16_weights_give_nearly_the_same_vectors_under_another_fingerprint(folders, tmp_path):
    full, half = load(folders["qwen3"]), load(folders["qwen3"], precision="bf16")
    assert {parameter.dtype for parameter in half.backbone.parameters()} == {torch.bfloat16}
    assert half.encode(TEXTS).dtype == np.float32
    np.testing.assert_allclose(half.encode(TEXTS), full.encode(TEXTS), rtol=0, atol=0.1)
    assert half.fingerprint() != full.fingerprint()
    half.save(tmp_path / "half")
    again = load(tmp_path / "half", precision="bf16")
    np.testing.assert_array_equal(again.encode(TEXTS), half.encode(TEXTS))
    assert again.fingerprint() == half.fingerprint()


def test_for_training_weights_are_float32_whatever_the_precision_of_inference(folders):
    config = EncoderConfig(model=str(folders["bert"]), precision="bf16")
    encoder = TextEncoder.load(folders["bert"], config, for_training=True)
    assert {parameter.dtype for parameter in encoder.backbone.parameters()} == {torch.float32}


def test_texts_are_cut_to_what_the_model_has_positions_for(folders):
    encoder = load(folders["llama"], max_tokens=1000)
    assert encoder.tokens.max_tokens == 64
    tokens, lengths = encoder.tokens.tokenize(["thing " * 500])
    assert tokens.shape == (1, 64) and int(lengths[0]) == 64
    assert np.isfinite(encoder.encode(["thing " * 500])).all()


def test_the_fingerprint_does_not_depend_on_what_was_encoded_before(folders):
    encoder = load(folders["qwen3"])
    before = encoder.fingerprint()
    encoder.encode(TEXTS)
    assert encoder.fingerprint() == before


def test_the_fingerprint_covers_settings_of_the_model_that_are_not_weights(folders, tmp_path):
    shutil.copytree(folders["llama"], tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-3}))
    assert load(tmp_path / "other").fingerprint() != load(folders["llama"]).fingerprint()


def test_a_pooler_whose_weights_are_not_there_is_no_matter(folders, tmp_path):
    encoder = load(folders["bert"])
    assert encoder.backbone.pooler is None
    encoder.save(tmp_path / "saved")
    assert not [name for name in load_file(tmp_path / "saved" / "model.safetensors") if name.startswith("pooler")]
    assert load(tmp_path / "saved").fingerprint() == encoder.fingerprint()


def test_bidirectional_attention_is_refused_where_it_changes_nothing(folders):
    with pytest.raises(ConfigError) as caught:
        load(folders["bert"], bidirectional=True)
    assert str(caught.value) == (
        "encoder.bidirectional is true, but BertModel has no causal attention to switch off: leave it out."
    )


def test_flash_attention_without_a_gpu_or_its_package_is_refused(folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as no_gpu:
        load(folders["bert"], attention="flash_attention_2", precision="bf16")
    assert str(no_gpu.value) == (
        "encoder.attention is flash_attention_2, but this process has no NVIDIA GPU: set encoder.attention to sdpa."
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError) as no_package:
        load(folders["bert"], attention="flash_attention_2", precision="bf16")
    assert str(no_package.value) == (
        "encoder.attention is flash_attention_2, but the package flash-attn is not installed: install it, or set "
        "encoder.attention to sdpa."
    )


def test_a_folder_without_a_tokenizer_is_refused(folders, tmp_path):
    for family in ("bert", "llama"):
        folder = tmp_path / family
        shutil.copytree(folders[family], folder, ignore=shutil.ignore_patterns("tokenizer*"))
        with pytest.raises(ModelSourceError, match=r"does not hold an encoder that can be loaded \(.*it needs config"):
            load(folder)
    with pytest.raises(ModelSourceError, match=r"\(none of vocab\.txt, tokenizer\.json is there\): it needs config"):
        load(tmp_path / "bert")


def test_a_tokenizer_without_a_fast_implementation_is_refused(folders, tmp_path):
    shutil.copytree(folders["bert"], tmp_path / "slow", ignore=shutil.ignore_patterns("tokenizer.json"))
    (tmp_path / "slow" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    with pytest.raises(ModelSourceError, match=r"\(ByT5Tokenizer has no fast implementation\)"):
        load(tmp_path / "slow")


def test_pooling_stays_in_float32_under_autocast(folders):
    encoder = load(folders["llama"], precision="fp32")
    tokens, lengths = encoder.tokens.tokenize(TEXTS[:2])
    states = torch.randn(2, tokens.shape[1], 32, generator=torch.Generator().manual_seed(0))
    encoder.backbone.forward = lambda **_: SimpleNamespace(last_hidden_state=states)
    for pooling in ("mean", "weighted", "last", "cls"):
        with torch.autocast("cpu", torch.bfloat16):
            under = pooled_states(encoder.backbone, tokens, lengths, pooling)
        torch.testing.assert_close(under, pooled_states(encoder.backbone, tokens, lengths, pooling), rtol=0, atol=0)


def test_a_tokenizer_of_another_model_is_refused_with_the_figures(folders, tmp_path):
    shutil.copytree(folders["bert"], tmp_path / "mixed")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["llama"] / name, tmp_path / "mixed" / name)
    with pytest.raises(ModelSourceError) as caught:
        load(tmp_path / "mixed")
    n_tokens = load(folders["llama"]).tokens.tokenizer.vocab_size
    n_embeddings = load(folders["bert"]).backbone.config.vocab_size
    assert str(caught.value) == (
        f"The tokenizer gives token ids up to {n_tokens - 1}, but the model has {n_embeddings} token embeddings, so "
        "they do not belong together: put the model's own tokenizer files into its folder."
    )


def test_an_added_token_without_an_embedding_is_refused_when_a_text_has_it(folders):
    encoder = load(folders["llama"])
    encoder.tokens.tokenizer.add_tokens(["<item>"])
    tokens = TextTokens(encoder.tokens.tokenizer, encoder.config, encoder.backbone.config)
    assert tokens.tokenize(["thing"])[1].tolist() == [1]
    with pytest.raises(ModelSourceError, match="The tokenizer gives token ids up to"):
        tokens.tokenize(["thing", "<item>"])


def test_weights_that_do_not_fill_the_model_are_refused(folders, tmp_path):
    shutil.copytree(folders["llama"], tmp_path / "partial")
    path = tmp_path / "partial" / "model.safetensors"
    tensors = load_file(path)
    dropped = sorted(name for name in tensors if "layers.1." in name)
    save_file({name: tensor for name, tensor in tensors.items() if name not in dropped}, path, {"format": "pt"})
    with pytest.raises(ModelSourceError) as caught:
        load(tmp_path / "partial")
    assert f"({len(dropped)} of its tensors are not in the weights, first {dropped[0]})" in str(caught.value)
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelSourceError, match="does not hold an encoder that can be loaded"):
        load(tmp_path / "partial")


def test_an_encoder_with_a_decoder_is_refused(folders, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["bert"] / name, tmp_path / name)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    T5Model(T5Config(vocab_size=100, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ModelSourceError, match=r"\(T5Model is an encoder with a decoder, which is not supported\)"):
        load(tmp_path)


def test_of_a_model_that_also_sees_only_the_language_model_is_kept(folders, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["gemma3"] / name, tmp_path / name)
    text = load(folders["gemma3"], bidirectional=True)
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    config = Gemma3Config(text_config=Gemma3TextConfig.from_pretrained(folders["gemma3"]), vision_config=vision)
    whole = Gemma3Model(config)
    whole.language_model.load_state_dict(text.backbone.state_dict())
    whole.save_pretrained(tmp_path)
    kept = load(tmp_path, bidirectional=True)
    assert type(kept.backbone) is type(text.backbone)
    np.testing.assert_array_equal(kept.encode(TEXTS), text.encode(TEXTS))
    assert reads_ahead(kept, padding=2)
