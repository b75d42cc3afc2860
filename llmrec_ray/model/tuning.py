"""Which of an encoder's weights train: frozen, the top layers, LoRA adapters or all; and back to a plain encoder.

Works on any backbone with one list of blocks; names of trained tensors depend only on the model and the recipe, so
that a checkpoint by name fits again. It knows no items and no losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmrec_ray.config import EncoderConfig
from llmrec_ray.errors import ConfigError
from llmrec_ray.model.encoder import TextEncoder, inference_dtype

__all__ = [
    "blocks_of",
    "compile_blocks",
    "count_parameters",
    "first_of_top_layers",
    "layer_depths",
    "load_tuned",
    "prepare_tuning",
]


def prepare_tuning(encoder: TextEncoder) -> None:
    """Freeze and unfreeze weights, add LoRA adapters and gradient checkpointing, as `encoder.config` says.

    Call it once per loaded encoder. Raises ConfigError for more layers than there are, or unknown LoRA targets.
    """
    backbone, config = encoder.backbone, encoder.config
    backbone.requires_grad_(False)
    if config.tuning == "frozen":
        return
    if config.tuning == "lora":
        _add_lora(backbone, config)
    else:
        _unfreeze(backbone, config)
    if config.gradient_checkpointing:
        for block in blocks_of(backbone)[1].values():
            if count_parameters(block)[0]:
                _recompute_in_backward(block)


def layer_depths(backbone: nn.Module) -> dict[str, int]:
    """Parameter name -> 0 for the top block and what follows it, 1 for the next, n_blocks for the embeddings."""
    prefix, blocks = blocks_of(backbone)
    above = _names_above_blocks(backbone)

    def depth(name: str) -> int:
        if name.startswith(f"{prefix}."):
            return len(blocks) - 1 - int(name.removeprefix(f"{prefix}.").split(".")[0])
        return 0 if name in above else len(blocks)

    return {name: depth(name) for name, _ in backbone.named_parameters()}


def load_tuned(path: Path, config: EncoderConfig, state: Mapping[str, Tensor]) -> TextEncoder:
    """The encoder at `path` with trained tensors `state` (by the tuned backbone's names) in it, as a plain encoder.

    LoRA is merged into the weights, so that what is saved loads anywhere, in `config.precision` as it will be loaded.
    """
    encoder = TextEncoder.load(path, config, for_training=True)
    backbone = encoder.backbone
    prepare_tuning(encoder)
    different = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad} ^ state.keys()
    assert not different, f"trained encoder tensors of another model, {sorted(different)} differ. This is a bug."
    backbone.load_state_dict(state, strict=False)
    _merge_lora(backbone)
    for parameter in backbone.requires_grad_(False).parameters():
        parameter.data = parameter.data.to(inference_dtype(config))  # not the buffers: rotary frequencies stay exact
    return TextEncoder(encoder.tokens.tokenizer, backbone, config)


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """How many numbers train, and how many there are."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def compile_blocks(backbone: nn.Module) -> None:
    """Compile each transformer block by itself (`torch.compile`): one compilation serves all that are alike.

    Call it before `prepare_tuning`: torch compiles nothing around a recomputation, and does not say so.
    """
    for block in blocks_of(backbone)[1].values():
        cast(Any, block).forward = torch.compile(block.forward, dynamic=True)


def blocks_of(backbone: nn.Module) -> tuple[str, dict[str, nn.Module]]:
    """The name of the list of transformer blocks, and the blocks by name, lowest first. Raises ConfigError."""
    count = int(cast(Any, backbone.config).get_text_config().num_hidden_layers)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, {f"{name}.{index}": block for index, block in enumerate(module)}
    raise ConfigError(
        f"No list of {count} transformer blocks was found in {type(backbone).__name__}: set encoder.tuning to frozen, "
        "or use an encoder of another family."
    )


def first_of_top_layers(backbone: nn.Module, top_layers: int) -> int:
    """The number of the lowest of the last `top_layers` blocks, from 0. Raises ConfigError when there are fewer."""
    count = len(blocks_of(backbone)[1])
    if top_layers > count:
        raise ConfigError(
            f"encoder.top_layers is {top_layers}, but the encoder has {count} blocks: "
            f"set encoder.top_layers to at most {count}."
        )
    return count - top_layers


def _unfreeze(backbone: nn.Module, config: EncoderConfig) -> None:
    if config.tuning == "full":
        backbone.requires_grad_(True)
        return
    for block in list(blocks_of(backbone)[1].values())[first_of_top_layers(backbone, config.top_layers) :]:
        block.requires_grad_(True)
    for name in _names_above_blocks(backbone):
        backbone.get_parameter(name).requires_grad_(True)


def _names_above_blocks(backbone: nn.Module) -> set[str]:
    """The final norm: one-dimensional parameters registered after the blocks (MPNet has a bias table there)."""
    prefix, _ = blocks_of(backbone)
    names = list(dict(backbone.named_parameters()))
    last = max(place for place, name in enumerate(names) if name.startswith(f"{prefix}."))
    return {name for name in names[last + 1 :] if backbone.get_parameter(name).ndim == 1}


def _add_lora(backbone: nn.Module, config: EncoderConfig) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and only this mode needs it

    targets = _lora_targets(backbone, config.lora_targets)
    adapters = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=targets)
    inject_adapter_in_model(adapters, backbone)


def _lora_targets(backbone: nn.Module, suffixes: tuple[str, ...] | None) -> list[str]:
    """Full names of the linear layers inside the blocks, all or those that end in one of the suffixes."""
    linear = {
        f"{block_name}.{name}": name
        for block_name, block in blocks_of(backbone)[1].items()
        for name, module in block.named_modules() if isinstance(module, nn.Linear)
    }
    if suffixes is None:
        return list(linear)
    unknown = [suffix for suffix in suffixes if not any(_ends(name, suffix) for name in linear)]
    if unknown or not suffixes:
        raise ConfigError(
            f"encoder.lora_targets names {', '.join(unknown) or 'nothing'}, but the linear layers in the encoder's "
            f"blocks are {', '.join(sorted(set(linear.values())))}: name some of these, or leave it out for all."
        )
    return [name for name in linear if any(_ends(name, suffix) for suffix in suffixes)]


def _ends(name: str, suffix: str) -> bool:
    return f".{name}".endswith(f".{suffix}")


def _merge_lora(backbone: nn.Module) -> None:
    adapted = {name: module for name, module in backbone.named_modules() if hasattr(module, "get_base_layer")}
    for name, module in adapted.items():
        module.merge(safe_merge=True)
        backbone.set_submodule(name, module.get_base_layer())
    if adapted:
        del backbone.peft_config


def _recompute_in_backward(block: nn.Module) -> None:
    """Keep only a block's inputs for the backward pass.

    Transformers does this only in training mode, which would also bring dropout. Under ZeRO-3 the weights are
    gathered anew while recomputing, so shapes may not be compared and the forward must run to its end.
    """
    forward = block.forward

    def anchored(*args: Any, **kwargs: Any) -> Any:
        states = forward(*args, **kwargs)
        anchor = cast(Any, _Anchor).apply
        return (anchor(states[0]), *states[1:]) if isinstance(states, tuple) else anchor(states)

    block.forward = partial(
        checkpoint, anchored, use_reentrant=False, preserve_rng_state=False, determinism_check="none", early_stop=False
    )


class _Anchor(torch.autograd.Function):
    """The identity, whose backward pass begins with the recomputation.

    Without it the last linear layer would begin it, for which ZeRO-3 has by then gathered the weights; recomputing
    ends with giving them up.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor) -> Tensor:
        ctx.save_for_backward(states)
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        assert ctx.saved_tensors, "nothing was recomputed. This is a bug."
        return gradient
