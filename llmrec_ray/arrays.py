"""A safetensors file -> its arrays, mapped instead of read.

Pages are read when they are touched and shared by all processes of a machine that map the same file, so ten replicas
hold big arrays once. The file must not change while it is mapped; files of an artifact never do.
Format: https://huggingface.co/docs/safetensors. Knows nothing about what the arrays mean.
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.errors import CorruptArtifactError

__all__ = ["extended", "map_arrays"]

MAP_FIXED = 0x10  # Linux, macOS and the BSDs agree; Python has no name for it
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


def extended(array: NDArray[Any], more: NDArray[Any]) -> NDArray[Any]:
    """Read-only array [N + M, …] of a mapped one [N, …] and more rows [M, …] after it, as one piece of memory.

    The pages of the mapped array are mapped once more and stay shared: only the new rows cost memory and time. An array
    that is not mapped from a file, or whose file is gone, is copied.
    """
    place = _place_in_file(array)
    size_bytes = array.nbytes + len(more) * array[:1].nbytes
    if place is None or not array.nbytes:
        return np.concatenate([array, more.astype(array.dtype)])
    file, offset = place
    try:
        buffer, skew = _map_with_room(file, offset, array.nbytes, size_bytes)
    except OSError:
        return np.concatenate([array, more.astype(array.dtype)])
    whole = np.ndarray((len(array) + len(more), *array.shape[1:]), array.dtype, buffer=buffer, offset=skew)
    whole[len(array):] = more
    whole.flags.writeable = False
    return whole


def _place_in_file(array: NDArray[Any]) -> tuple[str, int] | None:
    """The file that a contiguous array is mapped from, and at which byte it starts there."""
    base: Any = array
    while isinstance(base, np.ndarray) and not isinstance(base.base, mmap.mmap):
        base = base.base
    if not isinstance(base, np.memmap) or not array.flags.c_contiguous or base.offset:
        return None
    start: int = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return str(base.filename), start


def _map_with_room(file: str, offset: int, file_bytes: int, size_bytes: int) -> tuple[Any, int]:
    """Memory whose bytes from the returned place on are `file_bytes` of a file from `offset` on, and then zeros or
    whatever follows in the file, all private to this process once it is written to."""
    skew = offset % mmap.PAGESIZE
    total = skew + size_bytes
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = _mmap(None, total, access, mmap.MAP_PRIVATE | mmap.MAP_ANON, -1, 0)
    buffer = (ctypes.c_ubyte * total).from_address(address)
    freed = weakref.finalize(buffer, _LIBC.munmap, address, total)
    freed.atexit = False  # threads may still read it then, and the kernel takes it back anyway
    handle = os.open(file, os.O_RDONLY)
    try:
        _mmap(address, skew + file_bytes, access, mmap.MAP_PRIVATE | MAP_FIXED, handle, offset - skew)
    finally:
        os.close(handle)
    return buffer, skew


def _mmap(*arguments: int | None) -> int:
    address: int = _LIBC.mmap(*arguments)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return address


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


_LIBC = _libc()
