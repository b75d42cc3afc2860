"""What the first trained block of an encoder reads: captured once per text, and given back in every step.

Blocks below then neither run nor take memory. It knows no items and no Ray.
Shapes: N texts, P texts of one batch, L tokens, H width of a token's state.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmrec_ray.model.encoder import attention_mask
from llmrec_ray.model.tuning import blocks_of, count_parameters
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["GivenStates", "TextStates", "read_states"]


@dataclass(frozen=True)
class TextStates:
    """States of every token of every text, one text after the other.

    values: [total_tokens, H] float32. starts: [N + 1] int64, text n is values[starts[n]:starts[n + 1]].
    """

    values: FloatArray
    starts: IntArray


def read_states(backbone: nn.Module, block: int, tokens: Tensor, lengths: Tensor) -> Tensor:
    """[P, L, H] what block number `block` reads, for token ids [P, L] padded on the right; no block above runs."""
    real = torch.arange(tokens.shape[1], device=tokens.device)[None, :] < lengths[:, None]
    hook = list(blocks_of(backbone)[1].values())[block].register_forward_pre_hook(_stop, with_kwargs=True)
    try:
        with torch.inference_mode():
            backbone(input_ids=tokens, attention_mask=attention_mask(backbone, real))
    except _Reached as reached:
        return reached.states
    finally:
        hook.remove()
    raise AssertionError(f"block {block} of {type(backbone).__name__} did not run. This is a bug.")


class GivenStates:
    """Takes the place of the blocks below the first that trains, whose memory is freed."""

    def __init__(self, backbone: nn.Module, states: TextStates, lengths: Tensor) -> None:
        with warnings.catch_warnings():  # shared memory is read-only, and nothing writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._values = torch.from_numpy(states.values)
            self._starts = torch.from_numpy(states.starts)
        assert torch.equal(self._starts.diff(), lengths), "states of other texts or another tokenizer. This is a bug."
        self._next: Tensor | None = None
        first = _drop_lower_blocks(backbone)
        first.register_forward_pre_hook(self._replace_input, with_kwargs=True)

    def of(self, rows: Tensor, width: int) -> Tensor:
        """[P, L, H] for text rows [P] on the host, `width` = L; whatever there is where a text has ended."""
        places = self._starts[rows][:, None] + torch.arange(width)[None, :]
        return self._values[places.clamp_max(len(self._values) - 1)]

    def give(self, states: Tensor) -> None:
        """The next pass through the backbone reads these."""
        self._next = states

    def _replace_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        assert self._next is not None, "a pass without states. This is a bug."
        states, self._next = self._next, None
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})


class _Reached(Exception):
    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(args[0] if args else kwargs["hidden_states"])


class _Skipped(nn.Module):
    """Stands where a block was; keeps the plain attributes that a model asks its blocks for.

    Families differ in whether a block returns a tensor or a tuple; a tuple serves both, for nothing reads it.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        own = {*self.__dict__, "forward"}  # a compiled block has its forward among its attributes
        self.__dict__ |= {name: value for name, value in vars(block).items() if name not in own}

    def forward(self, *_: Any, **__: Any) -> tuple[None]:
        return (None,)


def _drop_lower_blocks(backbone: nn.Module) -> nn.Module:
    """The first block that trains, with nothing left below it."""
    for name, block in blocks_of(backbone)[1].items():
        if count_parameters(block)[0]:
            return block
        backbone.set_submodule(name, _Skipped(block))
    raise AssertionError("states for an encoder that does not train. This is a bug.")
