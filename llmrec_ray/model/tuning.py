"""Which of an encoder's weights train: frozen, the top layers, LoRA adapters or all; and back to a plain encoder.

Works on any backbone with one list of blocks; names of trained tensors depend only on the model and the recipe, so
that a checkpoint by name fits again. It knows no items and no losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmrec_ray.config import EncoderConfig
from llmrec_ray.errors import ConfigError
from llmrec_ray.model.encoder import TextEncoder

__all__ = ["compile_blocks", "count_parameters", "layer_depths", "load_tuned", "prepare_tuning"]


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

    LoRA is merged into the weights, so that what is saved loads anywhere.
    """
    encoder = TextEncoder.load(path, config)
    prepare_tuning(encoder)
    unexpected = encoder.backbone.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected, f"trained encoder tensors without a place: {unexpected}. This is a bug."
    _merge_lora(encoder.backbone)
    encoder.backbone.requires_grad_(False)
    return encoder


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """How many numbers train, and how many there are."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def compile_blocks(backbone: nn.Module) -> None:
    """Compile each transformer block by itself (`torch.compile`): one compilation serves all that are alike."""
    for block in blocks_of(backbone)[1].values():
        block.compile(dynamic=True)


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


def _unfreeze(backbone: nn.Module, config: EncoderConfig) -> None:
    blocks = list(blocks_of(backbone)[1].values())
    if config.tuning == "full":
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(not _is_pooler(name))
        return
    if config.top_layers > len(blocks):
        raise ConfigError(
            f"encoder.top_layers is {config.top_layers}, but the encoder has {len(blocks)} blocks: "
            f"set encoder.top_layers to at most {len(blocks)}."
        )
    for block in blocks[-config.top_layers :]:
        block.requires_grad_(True)
    for name in _names_above_blocks(backbone):
        backbone.get_parameter(name).requires_grad_(True)


def _names_above_blocks(backbone: nn.Module) -> set[str]:
    """The final norm: one-dimensional parameters registered after the blocks. A pooler's output is never read."""
    prefix, _ = blocks_of(backbone)
    names = list(dict(backbone.named_parameters()))
    last = max(place for place, name in enumerate(names) if name.startswith(f"{prefix}."))
    return {name for name in names[last + 1 :] if not _is_pooler(name) and backbone.get_parameter(name).ndim == 1}


def _is_pooler(name: str) -> bool:
    return name.split(".")[0] == "pooler"


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
    block.forward = partial(
        checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, determinism_check="none",
        early_stop=False,
    )
