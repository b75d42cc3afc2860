"""One optimizer step behind one interface, whatever shards it: plain torch and DDP here, ZeRO in `zero`.

An engine takes a batch, returns the loss, and can hand out and take back AdamW's moments by parameter name,
so that a checkpoint fits any number of workers and any sharding. It knows no epochs and no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmrec_ray.config import Recipe
from llmrec_ray.model import TrainingModule, WindowBatch
from llmrec_ray.train.workers import Workers

__all__ = [
    "MOMENTS",
    "Engine",
    "Moments",
    "TorchEngine",
    "learning_rate_scale",
    "make_optimizer",
    "set_learning_rates",
    "trained_parameters",
]

MOMENTS = ("exp_avg", "exp_avg_sq")
ENCODER_PREFIX = "text_source."


@dataclass(frozen=True)
class Moments:
    """AdamW's state: steps taken, and per moment a tensor for each trained parameter's name."""

    steps: int
    values: Mapping[str, Mapping[str, Tensor]]


class Engine(Protocol):
    """What the loop asks of any sharding."""

    def step(self, batch: WindowBatch, scale: float) -> Tensor:
        """One optimizer step at `scale` times the configured learning rates; the detached loss, []."""

    def moments(self, steps: int) -> Moments:
        """AdamW's moments, complete on every worker, on the CPU; every worker must call it."""


def make_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW in up to four groups: encoder or not, decayed or not (biases, norms, all vectors are not)."""
    groups = [
        _group(module, encoder=encoder, decayed=decayed, recipe=recipe)
        for encoder in (False, True)
        for decayed in (True, False)
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]])


def learning_rate_scale(step: int, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up, and a linear fall to zero at `total_steps`; needs no state to resume."""
    return min(1.0, (step + 1) / (warmup_steps + 1)) * max(0.0, 1.0 - step / total_steps)


class TorchEngine:
    """One process, or DistributedDataParallel over several."""

    def __init__(
        self, module: TrainingModule, optimizer: torch.optim.AdamW, recipe: Recipe, workers: Workers,
        moments: Moments | None,
    ) -> None:
        self._parameters = trained_parameters(module)
        self._optimizer = optimizer
        self._clip = recipe.train.gradient_clip
        self._autocast = recipe.train.precision == "bf16"
        self._device = workers.device
        self._forward: nn.Module = module if workers.world_size == 1 else DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=recipe.encoder.tuning == "top_layers"
        )
        if moments is not None:
            self._restore(moments)

    def step(self, batch: WindowBatch, scale: float) -> Tensor:
        """Forward, backward, clip, update."""
        set_learning_rates(self._optimizer.param_groups, scale)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            loss: Tensor = self._forward(batch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters.values(), self._clip)
        self._optimizer.step()
        return loss.detach()

    def moments(self, steps: int) -> Moments:
        """Replicated on every worker, so nothing is sent."""
        return Moments(steps, {
            moment: {name: self._moment(parameter, moment) for name, parameter in self._parameters.items()}
            for moment in MOMENTS
        })

    def _moment(self, parameter: Tensor, moment: str) -> Tensor:
        value = self._optimizer.state.get(parameter, {}).get(moment)
        return torch.zeros_like(parameter, device="cpu") if value is None else value.detach().cpu().clone()

    def _restore(self, moments: Moments) -> None:
        for name, parameter in self._parameters.items():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(moments.steps)),
                **{kind: moments.values[kind][name].to(parameter.device, copy=True) for kind in MOMENTS},
            }


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that take gradients, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def set_learning_rates(groups: Iterable[dict[str, Any]], scale: float) -> None:
    """Set each group's rate to its configured one times `scale`."""
    for group in groups:
        group["lr"] = group["peak_lr"] * scale


def _group(module: nn.Module, *, encoder: bool, decayed: bool, recipe: Recipe) -> dict[str, Any]:
    rate = recipe.encoder.learning_rate if encoder else recipe.train.learning_rate
    chosen = [
        parameter for name, parameter in trained_parameters(module).items()
        if name.startswith(ENCODER_PREFIX) == encoder and (parameter.ndim > 1) == decayed
    ]
    return {"params": chosen, "lr": rate, "peak_lr": rate,
            "weight_decay": recipe.train.weight_decay if decayed else 0.0}
