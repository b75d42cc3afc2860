"""ONNX encoders: they answer as torch does, int8 stays close, and what cannot be exported falls back or is refused."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import llmrec_ray.model.export
from llmrec_ray.artifact import Workspace
from llmrec_ray.config import EncoderConfig
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.embed import embed
from llmrec_ray.errors import ConfigError, CorruptArtifactError
from llmrec_ray.model import FusionRecommender
from llmrec_ray.model.encoder import TextEncoder
from llmrec_ray.model.export import export
from llmrec_ray.model.onnx import OnnxEncoder, load_encoder
from llmrec_ray.signals import center, to_text_space
from llmrec_ray.train.quantized import quantize_text
from tests.tiny_encoder import DECODERS, write_tiny_decoder
from tests.train_boards import board_texts

TEXTS = [*board_texts(), "a space adventure for children " * 3]
CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnx"


@pytest.fixture
def config(tiny_encoder) -> EncoderConfig:
    return EncoderConfig(model=str(tiny_encoder), max_tokens=32, max_batch_tokens=64)


def with_settings(config: EncoderConfig, **settings: object) -> EncoderConfig:
    return EncoderConfig.model_validate(config.model_dump() | settings)


def test_auto_is_onnx_on_a_cpu_and_gives_torchs_vectors_and_fingerprint(config, tiny_encoder):
    torch_encoder = load_encoder(tiny_encoder, with_settings(config, runtime="torch"))
    encoder = load_encoder(tiny_encoder, config)
    assert isinstance(torch_encoder, TextEncoder) and isinstance(encoder, OnnxEncoder)
    assert encoder.vector_size == torch_encoder.vector_size and encoder.fingerprint() == torch_encoder.fingerprint()
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, torch_encoder.encode(TEXTS), **CLOSE)
    assert not vectors[TEXTS.index("")].any()
    assert encoder.encode([]).shape == encoder.encode([""])[:0].shape == (0, encoder.vector_size)


@pytest.mark.parametrize("pooling", ["cls", "last", "weighted"])
def test_every_pooling_is_built_in(config, tiny_encoder, pooling):
    config = with_settings(config, pooling=pooling)
    expected = TextEncoder.load(tiny_encoder, config).encode(TEXTS)
    np.testing.assert_allclose(load_encoder(tiny_encoder, config).encode(TEXTS), expected, **CLOSE)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("family", list(DECODERS))
def test_decoders_are_exported_with_the_direction_they_read_in(config, tmp_path, family, bidirectional):
    folder = write_tiny_decoder(tmp_path / family, family)
    config = with_settings(config, pooling="last", bidirectional=bidirectional, runtime="onnx")
    expected = TextEncoder.load(folder, config)
    np.testing.assert_allclose(load_encoder(folder, config).encode(TEXTS), expected.encode(TEXTS), **CLOSE)
    assert expected.backbone.config._attn_implementation == "sdpa"


def test_threads_share_the_batches_and_progress_counts_every_text(config, tiny_encoder, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    encoder = load_encoder(tiny_encoder, config)
    done: list[int] = []
    vectors = encoder.encode(TEXTS, done.append)
    assert sum(done) == sum(bool(text) for text in TEXTS)
    np.testing.assert_allclose(vectors, TextEncoder.load(tiny_encoder, config).encode(TEXTS), **CLOSE)


def test_a_query_is_encoded_with_the_query_prompt(config, tiny_encoder):
    encoder = load_encoder(tiny_encoder, with_settings(config, query_prompt="story of {text}"))
    np.testing.assert_allclose(
        encoder.encode(["space"], as_query=True), encoder.encode(["story of space"]), **CLOSE
    )


def test_an_encoder_is_exported_once_however_many_start_together(config, tiny_encoder, cache, monkeypatch):
    traced: list[object] = []
    trace = llmrec_ray.model.export._trace
    monkeypatch.setattr(llmrec_ray.model.export, "_trace", lambda *given: traced.append(given) or trace(*given))
    encoder = TextEncoder.load(tiny_encoder, config)
    starts = [threading.Thread(target=export, args=(encoder,)) for _ in range(4)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(traced) == 1
    assert [path.name for path in cache.rglob("*.onnx")] == ["model.onnx"]
    assert not list(cache.glob(".staging-*"))


def test_int8_is_close_and_has_its_own_fingerprint(config, tiny_encoder):
    exact, rough = (load_encoder(tiny_encoder, with_settings(config, precision=name)) for name in ("fp32", "int8"))
    one, other = exact.encode(TEXTS), rough.encode(TEXTS)
    filled = one.any(axis=1)
    cosines = (one * other).sum(1)[filled] / np.linalg.norm(one[filled], axis=1) / np.linalg.norm(other[filled], axis=1)
    assert 0.99 < np.percentile(cosines, 5) < 1.0
    assert rough.fingerprint() == f"{exact.fingerprint()}-int8-1"


def test_int8_quantises_all_products_but_the_narrow_ones_of_the_lower_half(config, tiny_encoder):
    import onnx

    file = export(TextEncoder.load(tiny_encoder, with_settings(config, precision="int8")))
    model = onnx.load(str(file))
    weights = {weight.name: weight for weight in model.graph.initializer}
    kept = [tuple(weights[node.input[1]].dims) for node in model.graph.node
            if node.op_type == "MatMul" and node.input[1] in weights]
    assert kept == [(64, 32)]  # the first of two blocks; queries, keys, values, outputs and the wide ones are int8
    assert sum(node.op_type == "MatMulInteger" for node in model.graph.node) == 2 * 6 - 1


def test_a_large_encoder_keeps_its_int8_weights_beside_the_file(config, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(llmrec_ray.model.export, "LARGE_BYTES", 0)
    config = with_settings(config, precision="int8")
    encoder = OnnxEncoder.of(TextEncoder.load(tiny_encoder, config))
    encoder.save(tmp_path / "kept")
    assert len(list((tmp_path / "kept").glob("model.int8.onnx*"))) == 2
    np.testing.assert_array_equal(load_encoder(tmp_path / "kept", config).encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_was_saved_loads_with_the_same_vectors_and_fingerprint(config, tiny_encoder, tmp_path, cache, precision):
    config = with_settings(config, precision=precision)
    encoder = load_encoder(tiny_encoder, config)
    encoder.save(tmp_path / "copy")
    before = set(cache.iterdir())
    copy = load_encoder(tmp_path / "copy", config)
    np.testing.assert_array_equal(copy.encode(TEXTS), encoder.encode(TEXTS))
    assert copy.fingerprint() == encoder.fingerprint() and set(cache.iterdir()) == before
    kept = [path.name for path in (tmp_path / "copy").glob("*.onnx")]
    assert kept == ([] if precision == "fp32" else ["model.int8.onnx"])


def test_a_kept_int8_file_of_other_settings_is_not_used(config, tiny_encoder, tmp_path):
    config = with_settings(config, precision="int8")
    load_encoder(tiny_encoder, config).save(tmp_path / "copy")
    cls = load_encoder(tmp_path / "copy", with_settings(config, pooling="cls"))
    expected = load_encoder(tiny_encoder, with_settings(config, pooling="cls"))
    np.testing.assert_array_equal(cls.encode(TEXTS), expected.encode(TEXTS))


def test_what_cannot_be_exported_is_encoded_by_torch_with_a_line_that_says_so(
    config, tiny_encoder, monkeypatch, caplog
):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Unsupported: aten::strange\nand a long story")

    monkeypatch.setattr("torch.onnx.export", fail)
    reason = "BertModel cannot be exported to ONNX (Unsupported: aten::strange): set encoder.runtime to torch"
    with caplog.at_level(logging.INFO, "llmrec_ray"):
        assert isinstance(load_encoder(tiny_encoder, config), TextEncoder)
    assert caplog.messages == [f"encoding by torch, which is slower on a CPU: {reason}."]
    with pytest.raises(ConfigError) as onnx:
        load_encoder(tiny_encoder, with_settings(config, runtime="onnx"))
    assert str(onnx.value) == f"{reason}."
    with pytest.raises(ConfigError) as int8:
        load_encoder(tiny_encoder, with_settings(config, precision="int8"))
    assert str(int8.value) == f"{reason} and encoder.precision to fp32."


def test_a_trace_that_gives_other_vectors_is_not_used(config, tiny_encoder, monkeypatch):
    monkeypatch.setattr(llmrec_ray.model.export, "PROBE_RTOL", 1e-9)
    with pytest.raises(ConfigError, match=r"BertModel cannot be exported to ONNX \(its vectors differ from torch's by"):
        load_encoder(tiny_encoder, with_settings(config, runtime="onnx"))


def test_without_the_packages_auto_is_torch_and_onnx_says_what_to_install(config, tiny_encoder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert isinstance(load_encoder(tiny_encoder, config), TextEncoder)
    with pytest.raises(ConfigError) as caught:
        load_encoder(tiny_encoder, with_settings(config, runtime="onnx"))
    assert str(caught.value) == (
        "Encoding by ONNX Runtime needs onnx and onnxruntime, which is not installed: install llmrec_ray[model], or "
        "set encoder.runtime to torch and encoder.precision to fp32."
    )


@pytest.mark.parametrize(("runtime", "precision", "better"), [("torch", "int8", "onnx"), ("onnx", "bf16", "torch")])
def test_a_runtime_that_lacks_a_precision_is_refused(runtime, precision, better):
    with pytest.raises(ValueError, match="does not compute") as caught:
        EncoderConfig(runtime=runtime, precision=precision)
    assert (
        f"runtime {runtime} does not compute in {precision}: set encoder.runtime to {better} or auto, or "
        "encoder.precision to fp32"
    ) in str(caught.value)


def test_torch_takes_the_device_and_int8_stays_on_the_cpu(config, tiny_encoder, monkeypatch):
    moved: list[str] = []
    monkeypatch.setattr(TextEncoder, "to", lambda self, device: moved.append(device) or self)
    assert isinstance(load_encoder(tiny_encoder, config, "cuda"), TextEncoder)
    assert isinstance(load_encoder(tiny_encoder, with_settings(config, precision="int8"), "cuda"), OnnxEncoder)
    assert moved == ["cuda"]


def test_a_damaged_file_in_the_cache_is_named(config, tiny_encoder, cache):
    load_encoder(tiny_encoder, config)
    (file,) = cache.rglob("*.onnx")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CorruptArtifactError) as caught:
        load_encoder(tiny_encoder, config)
    assert str(caught.value).startswith(f"{file} cannot be read (")
    assert str(caught.value).endswith("): restore it, or remove it to have it made again.")


def test_embed_keeps_int8_vectors_apart(config, tmp_path):
    workspace = Workspace(str(tmp_path / "workspace"))
    exact = embed(TEXTS[:5], config, workspace, use_ray=False)
    rough = embed(TEXTS[:5], with_settings(config, precision="int8"), workspace, use_ray=False)
    again = embed(TEXTS[:5], config, workspace, use_ray=False)
    np.testing.assert_array_equal(again, exact)
    assert np.abs(exact - rough).max() > 1e-4


def test_quantising_a_trained_encoder_measures_what_it_changes(config, tiny_recipe, tmp_path):
    dataset = Dataset(ingest(tiny_recipe, Path(), Workspace(str(tmp_path)), use_ray=False))
    encoder = TextEncoder.load(Path(config.model), with_settings(config, precision="int8"))
    raw = encoder.encode(dataset.item_texts)
    torch.manual_seed(0)
    model = FusionRecommender(
        tiny_recipe.model, "text", len(dataset.users), len(dataset.items), encoder.vector_size
    ).eval()
    quantized = quantize_text(encoder, model, dataset, np.arange(20), raw, center(raw))
    rough = to_text_space(quantized.encoder.encode(dataset.item_texts), quantized.center)
    assert (rough * to_text_space(raw, center(raw))).sum(axis=1).min() > 0.99
    change = quantized.change
    assert 0.99 < change["cosine_p5"] <= change["cosine_mean"] < 1.0001
    assert change["validation_ndcg@10"].keys() == {"fp32", "int8"}
    assert abs(change["validation_ndcg@10"]["fp32"] - change["validation_ndcg@10"]["int8"]) < 0.1
