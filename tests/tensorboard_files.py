"""TensorBoard's event files, read back: records of TFRecord's framing, checksums checked, holding Event messages."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

__all__ = ["events_of", "hyperparameters_of", "scalars_of"]

MASK_DELTA = 0xA282EAD8


def events_of(run: Path) -> list[Event]:
    """All events of a run's folder and the folders below, by file and then as they were written."""
    files = sorted(run.rglob("events.out.tfevents.*"))
    return [Event.FromString(record) for file in files for record in _records(file.read_bytes())]


def scalars_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value), in order of step."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events_of(run):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return {tag: sorted(points) for tag, points in found.items()}


def hyperparameters_of(run: Path) -> list[str]:
    """Tags of what TensorBoard's tab for hyperparameters reads."""
    return [
        value.tag for event in events_of(run) for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]


def _records(payload: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(payload):
        head = payload[at : at + 8]
        (size,) = struct.unpack("<Q", head)
        record = payload[at + 12 : at + 12 + size]
        assert struct.unpack("<I", payload[at + 8 : at + 12]) == (_masked(head),)
        assert struct.unpack("<I", payload[at + 12 + size : at + 16 + size]) == (_masked(record),)
        yield record
        at += 16 + size


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & 0xFFFFFFFF
