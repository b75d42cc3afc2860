"""The optimizer's parameter groups and the learning rate at every step.

AdamW (Loshchilov & Hutter 2019); layer-wise rates as in ULMFiT (Howard & Ruder 2018). It knows no sharding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from llmrec_ray.config import Recipe, TrainConfig
from llmrec_ray.model import SharedText, TrainingModule
from llmrec_ray.model.tuning import layer_depths

__all__ = ["learning_rate_scale", "make_optimizer", "set_learning_rates", "trained_parameters"]

EPSILON = 1e-8
"""What AdamW adds to the root of the second moment: gradients far below it move nothing."""


def make_optimizer(module: TrainingModule, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW in groups of one learning rate and one weight decay each.

    The encoder has its own rate, times `layer_decay` for every block below the top; biases and norms are not decayed.
    """
    depths = _encoder_depths(module)
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in trained_parameters(module).items():
        rate = recipe.train.learning_rate
        if name in depths:
            rate = recipe.encoder.learning_rate * recipe.encoder.layer_decay ** depths[name]
        groups[rate, recipe.train.weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        eps=EPSILON,
        fused=True,
    )


def learning_rate_scale(step: int, config: TrainConfig, total_steps: int) -> float:
    """Linear warm-up times the schedule from 1 to 0 over `total_steps`; a pure function, so nothing is saved."""
    done = min(1.0, step / total_steps)
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "constant":
        return warm
    return warm * (1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done)))


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that take gradients, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def set_learning_rates(groups: Iterable[dict[str, Any]], scale: float) -> None:
    """Set each group's rate to its configured one times `scale`."""
    for group in groups:
        group["lr"] = group["peak_lr"] * scale


def _encoder_depths(module: TrainingModule) -> dict[str, int]:
    """How many blocks above each of the encoder's parameters, by the training module's names."""
    if not isinstance(module.text_source, SharedText):
        return {}
    depths = layer_depths(module.text_source.tuned.backbone)
    return {f"text_source.tuned.backbone.{name}": depth for name, depth in depths.items()}
