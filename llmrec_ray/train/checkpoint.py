"""Training state <-> a folder: every worker's shard, by parameter name, and where the loop stood.

    shard-00001-of-00002.safetensors    "<kind>/<parameter>": a run of the flattened weight or AdamW moment, with its
                                        start and the whole shape in the header
    state.json                          epochs and steps done, losses since, early stopping, metrics of every epoch

Every worker writes what it owns and nothing is gathered. A reader at any number of workers takes the runs it needs,
so the folder fits any sharding. Only trained tensors (and saved buffers) are kept: a frozen encoder is loaded from its
source again. No pickle.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llmrec_ray.errors import ArtifactMismatchError, CorruptArtifactError
from llmrec_ray.train.engine import MOMENTS, WEIGHT, Piece
from llmrec_ray.train.optimizer import trained_parameters
from llmrec_ray.train.stopping import EarlyStopping

__all__ = [
    "Checkpoint",
    "LoopState",
    "checkpoint_size",
    "load_into",
    "load_state",
    "load_weights",
    "save_shard",
    "save_state",
]

STATE = "state.json"
HEADER = "pieces"
NAMED = 5


@dataclass(frozen=True)
class LoopState:
    """Where the loop stands: finished epochs, finished steps, and what they measured.

    step: optimizer steps since the start. losses: those of the steps of the epoch that has begun, oldest first.
    """

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    stopping: EarlyStopping = field(default_factory=EarlyStopping)
    epochs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Run:
    file: str
    start: int
    size: int


class Checkpoint:
    """What `save_shard` and `save_state` wrote, readable in any parts.

    Raises CorruptArtifactError when a shard cannot be read or a part of a tensor is in none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps = load_state(folder).step
        self.shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        self._runs: dict[tuple[str, str], list[_Run]] = defaultdict(list)
        for path in sorted(folder.glob("shard-*.safetensors")):
            self._index(path)
        self._check_complete()

    @property
    def weights(self) -> dict[str, Tensor]:
        """All trained weights and saved buffers, whole, by the training module's names."""
        return {
            name: self.read(kind, name).view(shape)
            for (kind, name), shape in self.shapes.items() if kind == WEIGHT
        }

    def read(self, kind: str, name: str, start: int = 0, size: int | None = None) -> Tensor:
        """`size` values [size] of a flattened tensor from `start` on; all of them when None."""
        end = prod(self.shapes[kind, name]) if size is None else start + size
        parts = []
        for run in self._runs[kind, name]:
            first, last = max(start, run.start), min(end, run.start + run.size)
            if first < last:
                with safe_open(self.folder / run.file, "pt") as shard:
                    parts.append(shard.get_slice(f"{kind}/{name}")[first - run.start : last - run.start])
        return torch.cat(parts) if parts else torch.zeros(0)

    def _index(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as shard:
                pieces = json.loads(shard.metadata()[HEADER])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CorruptArtifactError(
                f"The checkpoint file {path} cannot be read ({error}): restore it, or train anew without --resume."
            ) from None
        for key, (start, size, shape) in pieces.items():
            kind, name = key.split("/", 1)
            self.shapes[kind, name] = tuple(shape)
            self._runs[kind, name].append(_Run(path.name, start, size))

    def _check_complete(self) -> None:
        for (kind, name), runs in self._runs.items():
            runs.sort(key=lambda run: run.start)
            end = 0
            for run in runs:
                end = run.start + run.size if run.start == end else -1
            if end != prod(self.shapes[kind, name]):
                raise CorruptArtifactError(
                    f"The checkpoint in {self.folder} lacks a part of {kind} {name}: a worker's shard is missing. "
                    "Restore it, or train anew without --resume."
                )


def checkpoint_size(module: nn.Module) -> int:
    """Bytes of a checkpoint over all workers, about; of a module that is not sharded yet."""
    trained = sum(parameter.nbytes for parameter in trained_parameters(module).values())
    return sum(tensor.nbytes for tensor in _saved_tensors(module).values()) + len(MOMENTS) * trained


def save_shard(folder: Path, pieces: Iterable[Piece], rank: int, world_size: int) -> None:
    """Write one worker's part."""
    tensors, header = {}, {}
    for piece in pieces:
        key = f"{piece.kind}/{piece.name}"
        tensors[key] = piece.values.detach().cpu().contiguous().clone()
        header[key] = (piece.start, piece.values.numel(), piece.shape)
    path = folder / f"shard-{rank + 1:05d}-of-{world_size:05d}.safetensors"
    save_file(tensors, path, metadata={HEADER: json.dumps(header)})


def save_state(folder: Path, state: LoopState) -> None:
    """Write where the loop stands; one worker does."""
    (folder / STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")


def load_into(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the trained weights into a module that is not sharded yet.

    Raises ArtifactMismatchError when the checkpoint is of another architecture.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in _saved_tensors(module).items()}
    found = {name: shape for (kind, name), shape in checkpoint.shapes.items() if kind == WEIGHT}
    if differences := _differences(expected, found):
        raise ArtifactMismatchError(
            f"The checkpoint in {checkpoint.folder} is of another architecture ({differences}): resume with the recipe "
            "it was trained with, or train anew without --resume."
        )
    module.load_state_dict(checkpoint.weights, strict=False)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Trained weights by the training module's names, consolidated from the shards."""
    return Checkpoint(folder).weights


def load_state(folder: Path) -> LoopState:
    """Where the loop stood. Raises CorruptArtifactError."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(
            f"{folder / STATE} cannot be read ({error}): restore it, or train anew without --resume."
        ) from None
    return LoopState(**(state | {"stopping": EarlyStopping(**state["stopping"])}))


def _saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    parameters = {name for name, _ in module.named_parameters()}
    buffers = {name: tensor for name, tensor in module.state_dict().items() if name not in parameters}
    return {**buffers, **trained_parameters(module)}


def _differences(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str:
    reshaped = [
        f"{name} is {_shape(found[name])} instead of {_shape(expected[name])}"
        for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]
    ]
    told = [
        ("missing: ", sorted(expected.keys() - found.keys())),
        ("unexpected: ", sorted(found.keys() - expected.keys())),
        ("", reshaped),
    ]
    return "; ".join(f"{label}{_some(names)}" for label, names in told if names)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
