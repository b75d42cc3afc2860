"""A safetensors file -> its arrays, mapped instead of read.

Pages are read when they are touched and shared by all processes of a machine that map the same file, so ten replicas
hold big arrays once. The file must not change while it is mapped; files of an artifact never do.
Format: https://huggingface.co/docs/safetensors. Knows nothing about what the arrays mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.errors import CorruptArtifactError

__all__ = ["map_arrays"]

SIZE_BYTES = 8  # the header's length, little-endian, at the start of the file
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}


def map_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read-only arrays of a safetensors file by name, in the shapes and dtypes of the file.

    Raises CorruptArtifactError for a file that is missing, cut short, or not safetensors.
    """
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")
        start, header = _header(content)
        return {name: _array(content[start:], entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorruptArtifactError(f"{path} cannot be read ({reason}): restore it or make it again.") from None


def _header(content: NDArray[np.uint8]) -> tuple[int, dict[str, Any]]:
    """Where the arrays start, and what the header says about each of them."""
    if len(content) < SIZE_BYTES:
        raise ValueError(f"it has {len(content)} bytes")
    start = SIZE_BYTES + int.from_bytes(content[:SIZE_BYTES].tobytes(), "little")
    if start > len(content):
        raise ValueError(f"its header needs {start} bytes, it has {len(content)}")
    header = json.loads(content[SIZE_BYTES:start].tobytes())
    header.pop("__metadata__", None)
    return start, header


def _array(content: NDArray[np.uint8], entry: Mapping[str, Any]) -> NDArray[Any]:
    begin, end = entry["data_offsets"]
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    if not 0 <= begin <= end <= len(content) or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"bytes {begin} to {end} of {len(content)} cannot be {entry['dtype']} {list(shape)}")
    return np.ndarray(shape, dtype, buffer=content, offset=begin)
