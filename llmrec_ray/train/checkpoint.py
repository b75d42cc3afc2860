"""Training state <-> a folder: weights and AdamW moments by parameter name, and where the loop stood.

    weights.safetensors     what training changes (and saved buffers), by the training module's names
    moments.safetensors     "<moment>/<parameter>"
    state.json              epochs and steps done, early stopping, metrics of every epoch

Only trained tensors are kept: a frozen encoder is loaded from its source again. It fits any number of workers
and any sharding. No pickle.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmrec_ray.train.engine import MOMENTS, Moments
from llmrec_ray.train.stopping import EarlyStopping

__all__ = ["LoopState", "load_checkpoint", "load_state", "load_weights", "save_checkpoint", "trained_weights"]

WEIGHTS, MOMENTS_FILE, STATE = "weights.safetensors", "moments.safetensors", "state.json"


@dataclass(frozen=True)
class LoopState:
    """Where the loop stands: finished epochs and steps, and what they measured."""

    epoch: int = 0
    step: int = 0
    stopping: EarlyStopping = field(default_factory=EarlyStopping)
    epochs: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(folder: Path, weights: dict[str, Tensor], moments: Moments, state: LoopState) -> None:
    """Write the three files."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    flat = {f"{kind}/{name}": value for kind in MOMENTS for name, value in moments.values[kind].items()}
    save_file({name: tensor.contiguous() for name, tensor in flat.items()}, folder / MOMENTS_FILE)
    (folder / STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")


def load_checkpoint(folder: Path, module: nn.Module) -> tuple[Moments, LoopState]:
    """Put the weights into the module; return the rest. Call it before the module is sharded."""
    state = load_state(folder)
    weights = load_weights(folder)
    missing = trained_weights(module).keys() ^ weights.keys()
    assert not missing, f"a checkpoint of another model, {sorted(missing)} differ. This is a bug."
    module.load_state_dict(weights, strict=False)
    flat = load_file(folder / MOMENTS_FILE)
    values: dict[str, dict[str, Tensor]] = {kind: {} for kind in MOMENTS}
    for key, value in flat.items():
        kind, name = key.split("/", 1)
        values[kind][name] = value
    return Moments(state.step, values), state


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Trained weights by the training module's names."""
    return dict(load_file(folder / WEIGHTS))


def load_state(folder: Path) -> LoopState:
    """Where the loop stood."""
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return LoopState(**(state | {"stopping": EarlyStopping(**state["stopping"])}))


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without frozen parameters, on the CPU."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items() if name not in frozen}
