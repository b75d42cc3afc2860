"""What trains of an encoder: modes, names and counts, gradients, cached states, and back to a plain encoder."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from llmrec_ray.config import EncoderConfig
from llmrec_ray.embed import lower_states
from llmrec_ray.errors import ConfigError, ModelSourceError
from llmrec_ray.model.encoder import TextEncoder, load_tokens
from llmrec_ray.model.tuned import TextStates, TunedText
from llmrec_ray.model.tuning import (
    blocks_of,
    compile_blocks,
    count_parameters,
    layer_depths,
    load_tuned,
    prepare_tuning,
)
from llmrec_ray.signals import center, to_text_space
from tests.tiny_encoder import (
    DECODERS,
    write_tiny_albert,
    write_tiny_decoder,
    write_tiny_encoder,
    write_tiny_mpnet,
)

TEXTS = [
    "thing painted black", "a space adventure for children", "", "red", "story of a white thing 0 1 2 3", "green thing",
    "a story of the children of space, painted red and white and green", "0", "black 7",
]
FAMILIES = [*DECODERS, "bert", "mpnet"]
TUNED = ["top_layers", "lora", "full"]
TIGHT = 1e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One encoder of every family, by name."""
    folder = tmp_path_factory.mktemp("families")
    decoders = {family: write_tiny_decoder(folder / family, family) for family in DECODERS}
    return decoders | {"bert": write_tiny_encoder(folder / "bert"), "mpnet": write_tiny_mpnet(folder / "mpnet")}


def config_of(folder, **settings) -> EncoderConfig:
    return EncoderConfig(**{"model": str(folder), "max_batch_tokens": 48, "top_layers": 1} | settings)


def tuned_text(folder, states: TextStates | None = None, **settings) -> TunedText:
    config = config_of(folder, **settings)
    encoder = TextEncoder.load(folder, config, for_training=True)
    middle = center(encoder.encode(TEXTS))
    torch.manual_seed(0)
    prepare_tuning(encoder)
    return TunedText(encoder, TEXTS, middle, states).train()


def loss_of(vectors: Tensor) -> Tensor:
    """Some loss in which every vector counts differently."""
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
    return (vectors * weights).square().sum()


def gradients(module: TunedText, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in module.backbone.named_parameters() if value.requires_grad}


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """No element differs by more than `tolerance` times the largest of its tensor (those of key biases are 0)."""
    assert found.keys() == expected.keys() and any(gradient.any() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= tolerance * gradient.abs().max().clamp_min(1e-4), name


def trained(module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def randomize(module) -> dict[str, Tensor]:
    """Move every trained tensor; LoRA's start is the identity, which tests nothing."""
    generator = torch.Generator().manual_seed(3)
    for name in trained(module):
        tensor = module.get_parameter(name)
        tensor.data += 0.05 * torch.randn(tensor.shape, generator=generator)
    return {name: module.get_parameter(name).detach().clone() for name in trained(module)}


@pytest.mark.parametrize("tuning", TUNED)
@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_gradients_of_micro_batches_of_distinct_items_equal_those_of_naive_pairs(folders, family, tuning):
    pairs = torch.tensor([0, 4, 4, 1, 2, 6, 0, 0, 5, 3, 7, 8, 1, 6])
    weights = torch.randn(len(pairs), 32, generator=torch.Generator().manual_seed(2))
    module = tuned_text(folders[family], tuning=tuning)
    alone = torch.cat([module(pair[None]) for pair in pairs])
    naive = gradients(module, (alone * weights).square().sum())
    rows, places = torch.unique(pairs, return_inverse=True)
    assert 1 < module.count_micro_batches(rows) < len(rows) < len(pairs)
    shared = gradients(module, (module(rows)[places] * weights).square().sum())
    assert_alike(shared, naive, TIGHT)


@pytest.mark.parametrize("tuning", TUNED)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_source_gives_frozen_vectors_and_every_trained_tensor_gets_a_gradient(folders, family, tuning):
    module = tuned_text(folders[family], tuning=tuning)
    rows = torch.tensor([8, 2, 0, 6, 4])
    raw = TextEncoder.load(folders[family], config_of(folders[family])).encode(TEXTS)
    np.testing.assert_allclose(
        module(rows).detach().numpy(), to_text_space(raw, center(raw))[rows.numpy()], rtol=0, atol=2e-5
    )
    randomize(module.backbone)
    found = gradients(module, loss_of(module(rows)))
    assert found and all(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_top_layers_train_the_last_blocks_and_the_final_norm(folders, family):
    module = tuned_text(folders[family], tuning="top_layers")
    prefix, blocks = blocks_of(module.backbone)
    outside = [name for name in trained(module.backbone) if not name.startswith(f"{prefix}.1.")]
    assert outside == ([] if family in {"bert", "mpnet"} else ["norm.weight"])
    assert count_parameters(module.backbone)[0] == sum(
        parameter.numel() for name, parameter in module.backbone.named_parameters()
        if name in outside or name.startswith(f"{prefix}.1.")
    )
    assert list(blocks) == [f"{prefix}.0", f"{prefix}.1"]


@pytest.mark.parametrize("family", FAMILIES)
def test_depths_count_down_from_the_top_block_to_the_embeddings(folders, family):
    backbone = tuned_text(folders[family], tuning="full").backbone
    depths, (prefix, _) = layer_depths(backbone), blocks_of(backbone)
    assert depths.keys() == dict(backbone.named_parameters()).keys()
    for name, depth in depths.items():
        expected = {f"{prefix}.0": 1, f"{prefix}.1": 0}.get(name[: len(prefix) + 2], 0 if name == "norm.weight" else 2)
        assert depth == expected, name
    lora = tuned_text(folders[family], tuning="lora").backbone
    assert {layer_depths(lora)[name] for name in trained(lora)} == {0, 1}


def test_lora_adapts_every_linear_layer_of_the_blocks_or_those_that_are_named(folders):
    every = tuned_text(folders["qwen3"], tuning="lora").backbone
    assert {name.split(".lora_")[0] for name in trained(every)} == {
        f"layers.{block}.{name}" for block in (0, 1) for name in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
            "mlp.up_proj", "mlp.down_proj",
        )
    }
    some = tuned_text(folders["qwen3"], tuning="lora", lora_targets=("q_proj", "mlp.up_proj"), lora_rank=2).backbone
    assert {name.split(".lora_")[0].split(".", 2)[2] for name in trained(some)} == {"self_attn.q_proj", "mlp.up_proj"}
    assert some.get_parameter("layers.0.self_attn.q_proj.lora_A.default.weight").shape == (2, 32)


def test_lora_targets_that_do_not_exist_are_refused_with_those_that_do(folders):
    with pytest.raises(ConfigError) as caught:
        tuned_text(folders["llama"], tuning="lora", lora_targets=("q_proj", "query"))
    assert str(caught.value) == (
        "encoder.lora_targets names query, but the linear layers in the encoder's blocks are mlp.down_proj, "
        "mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj: name some "
        "of these, or leave it out for all."
    )


@pytest.mark.parametrize("tuning", TUNED)
@pytest.mark.parametrize("family", FAMILIES)
def test_trained_tensors_by_name_give_a_plain_encoder_with_the_same_vectors(folders, family, tuning, tmp_path):
    module = tuned_text(folders[family], tuning=tuning)
    state = randomize(module.backbone)
    plain = load_tuned(folders[family], config_of(folders[family], tuning=tuning), state)
    with torch.inference_mode():
        expected = module(torch.arange(len(TEXTS))).numpy()
    np.testing.assert_allclose(to_text_space(plain.encode(TEXTS), module.center.numpy()), expected, rtol=0, atol=2e-5)
    source = TextEncoder.load(folders[family], plain.config)
    assert plain.backbone.state_dict().keys() == source.backbone.state_dict().keys()
    assert not trained(plain.backbone)
    plain.save(tmp_path)
    copy = TextEncoder.load(tmp_path, plain.config)
    np.testing.assert_array_equal(copy.encode(TEXTS), plain.encode(TEXTS))
    assert copy.fingerprint() == plain.fingerprint()


def test_a_tuned_encoder_is_given_back_in_the_precision_of_inference(folders, tmp_path):
    module = tuned_text(folders["qwen3"], tuning="lora", bidirectional=True)
    config = config_of(folders["qwen3"], tuning="lora", bidirectional=True, precision="bf16")
    plain = load_tuned(folders["qwen3"], config, randomize(module.backbone))
    assert {parameter.dtype for parameter in plain.backbone.parameters()} == {torch.bfloat16}
    plain.save(tmp_path)
    np.testing.assert_array_equal(TextEncoder.load(tmp_path, config).encode(TEXTS), plain.encode(TEXTS))


@pytest.mark.parametrize("tuning", TUNED)
@pytest.mark.parametrize("family", ["bert", "gemma3"])
def test_gradient_checkpointing_changes_no_gradient_and_runs_blocks_twice(folders, family, tuning):
    rows = torch.tensor([0, 6, 4, 2])
    plain = tuned_text(folders[family], tuning=tuning)
    expected = gradients(plain, loss_of(plain(rows)))
    module = tuned_text(folders[family], tuning=tuning, gradient_checkpointing=True)
    calls: list[int] = []
    top = list(blocks_of(module.backbone)[1].values())[-1]
    next(child for child in top.modules() if isinstance(child, torch.nn.Linear)).register_forward_hook(
        lambda *_: calls.append(1)
    )
    found = gradients(module, loss_of(module(rows)))
    assert len(calls) == 2 * module.count_micro_batches(rows)
    assert_alike(found, expected, 0.0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own look
@pytest.mark.parametrize("settings", [
    {"tuning": "lora"}, {"tuning": "full", "gradient_checkpointing": True}, {"tuning": "top_layers"},
], ids=["lora", "recomputed", "cached states"])
def test_compiled_blocks_are_compiled_and_those_below_kept_states_do_not_run(folders, settings, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # capture only: no compiler
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    states = lower_states(TEXTS, config_of(folders["qwen3"], **settings), use_ray=False)
    encoder = TextEncoder.load(folders["qwen3"], config_of(folders["qwen3"], **settings), for_training=True)
    lowest = next(iter(blocks_of(encoder.backbone)[1].values())).self_attn
    calls: list[int] = []
    lowest.register_forward_pre_hook(lambda *_: calls.append(1))
    compile_blocks(encoder.backbone)
    prepare_tuning(encoder)
    module = TunedText(encoder, TEXTS, np.zeros(encoder.vector_size, np.float32), states).train()
    assert all(gradient.any() for name, gradient in gradients(module, loss_of(module(torch.tensor([0, 4])))).items()
               if "lora_A" not in name)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert bool(calls) == (states is None)


@pytest.mark.parametrize("family", ["bert", "mpnet", "qwen3", "gemma3"])
def test_cached_states_give_the_same_vectors_and_gradients_without_the_lower_blocks(folders, family):
    settings = {"tuning": "top_layers", "bidirectional": family == "gemma3"}
    states = lower_states(TEXTS, config_of(folders[family], **settings), use_ray=False)
    assert states is not None and len(states.starts) == len(TEXTS) + 1
    states.values.flags.writeable = False
    rows = torch.tensor([0, 6, 2, 4, 7])
    whole, given = tuned_text(folders[family], **settings), tuned_text(folders[family], states, **settings)
    with torch.inference_mode():
        torch.testing.assert_close(given(rows, 9), whole(rows, 9), rtol=0, atol=1e-6)
    assert_alike(gradients(given, loss_of(given(rows))), gradients(whole, loss_of(whole(rows))), TIGHT)
    prefix, _ = blocks_of(whole.backbone)
    dropped = sum(value.numel() for name, value in whole.backbone.named_parameters() if name.startswith(f"{prefix}.0."))
    assert count_parameters(whole)[1] - count_parameters(given)[1] == dropped > 0
    assert trained(given) == trained(whole)


def test_states_by_actors_are_those_of_this_process(folders, ray_session):
    config = config_of(folders["qwen3"], tuning="top_layers", num_actors=2)
    here, actors = lower_states(TEXTS, config, use_ray=False), lower_states(TEXTS, config)
    assert here is not None and actors is not None
    np.testing.assert_array_equal(actors.starts, here.starts)
    np.testing.assert_allclose(actors.values, here.values, rtol=0, atol=1e-5)


def test_states_are_not_kept_when_nothing_is_saved_or_memory_is_short(folders, caplog):
    folder = folders["bert"]
    for settings in ({"tuning": "full"}, {"tuning": "lora"}, {}, {"tuning": "top_layers", "top_layers": 2}):
        assert lower_states(TEXTS, config_of(folder, **settings), use_ray=False) is None
    with caplog.at_level("INFO", "llmrec_ray"):
        short = config_of(folder, tuning="top_layers", cached_states_gb=1e-6)
        assert lower_states(TEXTS, short, use_ray=False) is None
    assert "not kept: 1 frozen blocks" in caplog.text and "(encoder.cached_states_gb is 1e-06)" in caplog.text


def test_more_top_layers_than_there_are_are_refused_before_any_state_is_read(folders):
    with pytest.raises(ConfigError, match=r"^encoder\.top_layers is 9, but the encoder has 2 blocks: set enco"):
        lower_states(TEXTS, config_of(folders["llama"], tuning="top_layers", top_layers=9), use_ray=False)


@pytest.mark.parametrize("with_states", [False, True])
def test_spare_passes_change_nothing_and_make_the_number_that_was_asked_for(folders, with_states):
    settings = {"tuning": "top_layers"}
    states = lower_states(TEXTS, config_of(folders["qwen3"], **settings), use_ray=False) if with_states else None
    module = tuned_text(folders["qwen3"], states, **settings)
    passes: list[int] = []
    module.backbone.register_forward_hook(lambda *_: passes.append(1))
    rows = torch.tensor([0, 6, 4, 2])
    expected = gradients(module, loss_of(module(rows)))
    needed = len(passes)
    assert needed == module.count_micro_batches(rows) > 1
    found = gradients(module, loss_of(module(rows, needed + 3)))
    assert len(passes) == 2 * needed + 3
    assert_alike(found, expected, 0.0)
    nothing = module(torch.tensor([2]), 2)
    assert not nothing.any() and len(passes) == 2 * needed + 5
    assert not any(gradient.any() for gradient in gradients(module, nothing.sum()).values())
    assert module(torch.tensor([], dtype=torch.int64)).shape == (0, 32)


def test_the_backbone_never_drops_out_while_the_rest_trains(folders):
    module = tuned_text(folders["bert"], tuning="full")
    assert module.training and not module.backbone.training
    rows = torch.arange(len(TEXTS))
    torch.testing.assert_close(module(rows), module(rows), rtol=0, atol=0)


def test_a_model_without_a_list_of_blocks_can_only_stay_frozen(tmp_path):
    write_tiny_albert(tmp_path)
    assert TextEncoder.load(tmp_path, config_of(tmp_path)).encode(TEXTS).any()
    with pytest.raises(ConfigError) as caught:
        tuned_text(tmp_path, tuning="top_layers")
    assert str(caught.value) == (
        "No list of 3 transformer blocks was found in AlbertModel: set encoder.tuning to frozen, or use an encoder of "
        "another family."
    )


def test_texts_that_are_tokenized_once_give_the_same_vectors_from_shared_memory(folders):
    config = config_of(folders["bert"], tuning="full")
    tokens = load_tokens(folders["bert"], config).tokenized(TEXTS)
    tokens.tokens.setflags(write=False)
    encoder = TextEncoder.load(folders["bert"], config, for_training=True)
    shared = TunedText(encoder, tokens, np.zeros(encoder.vector_size, np.float32))
    assert shared.tokens.data_ptr() == tokens.tokens.ctypes.data, "not copied"
    own = TunedText(encoder, TEXTS, np.zeros(encoder.vector_size, np.float32))
    rows = torch.arange(len(TEXTS))
    assert torch.equal(shared(rows), own(rows))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelSourceError) as caught:
        load_tokens(tmp_path, config_of(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path} does not hold an encoder that can be loaded (")
    assert str(caught.value).endswith("): it needs config.json, a tokenizer and safetensors weights.")
