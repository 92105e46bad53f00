"""The two files that smdebug keeps of a step, written as its own writer would, at less cost.

smdebug starts a thread and two queues for each step, and builds each tensor's message in Python; a training's threads
wait for the interpreter meanwhile. Here the bytes are put together at once. The format is that of smdebug 1.0.34, its
last release; what is written is read by `create_trial`.

    events/STEP/STEP_worker_0.tfevents    a record a tensor: length, its checksum, an Event of TensorFlow's, a constant
    index/STEP // 1000/STEP_worker_0.json  where in that file which tensor lies

STEP counts over all modes from 0, in twelve digits.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

WORKER = "worker_0"  # smdebug's name of the process that writes
STEPS_A_FOLDER = 1000  # of index files
FLOAT = 1  # DT_FLOAT of TensorFlow's messages
CASTAGNOLI = 0x82F63B78  # the polynomial of CRC-32C, reversed (RFC 3720)
MASK = 0xA282EAD8  # kMaskDelta of TensorFlow's crc32c.h
UNCHECKED = b"0x12345678"  # smdebug writes this text's checksum behind every record, and never looks at it


class StepFiles:
    """The files of one step: `add` its tensors, then `close`.

    Args:
        folder: smdebug's out_dir.
        step: over all modes, from 0.
        mode: a ModeKeys of smdebug's.
        mode_step: the step in its mode, from 0.
    """

    def __init__(self, folder: Path, step: int, mode: Any, mode_step: int) -> None:
        self._folder, self._step = folder, step
        self._mode, self._mode_step = mode, mode_step
        self._records = bytearray()
        self._tensors: list[dict[str, str | int]] = []

    def add(self, name: str, values: Sequence[float]) -> None:
        """Adds a tensor: a row of float32."""
        event = encode_event(
            name,
            values,
            step=self._step,
            mode=self._mode.value,
            mode_step=self._mode_step,
            wall_time=time.time(),
        )
        record = _frame(event)
        self._tensors.append({"tensorname": name, "start_idx": len(self._records), "length": len(record)})
        self._records += record

    def close(self) -> None:
        """Writes both files, the index last: a reader knows a step by it. Raises OSError."""
        name = f"{self._step:012d}"
        place = f"events/{name}/{name}_{WORKER}.tfevents"
        meta = {"mode": self._mode.name, "mode_step": self._mode_step, "event_file_name": place}
        index = {"meta": meta, "tensor_payload": self._tensors, "shape_payload": []}
        _write_whole(self._folder / place, bytes(self._records))
        _write_whole(
            self._folder / f"index/{self._step // STEPS_A_FOLDER:09d}/{name}_{WORKER}.json", json.dumps(index).encode()
        )


def encode_event(
    name: str, values: Sequence[float], *, step: int, mode: int, mode_step: int, wall_time: float
) -> bytes:
    """An Event of TensorFlow's event.proto with one tensor, in the fields and the order in which smdebug fills it.

    Args:
        step, mode, mode_step: as of StepFiles; `mode` is the number of smdebug's.
        wall_time: Unix seconds.
    """
    content = np.array(values, np.float32).tobytes()
    begins, shape = _tensor_head(name, len(values))
    tensor = shape + _field(4, content)  # TensorProto.tensor_content
    value = begins + _field(8, tensor) + _field(9, _metadata(mode, mode_step))  # Summary.Value.tensor, .metadata
    time_and_step = b"\x09" + struct.pack("<d", wall_time)  # Event.wall_time
    if step:  # zero is left out of a message
        time_and_step += b"\x10" + _varint(step)
    return time_and_step + _field(5, _field(1, value))  # Event.summary, Summary.value


@lru_cache(maxsize=4096)  # a ResNet50's statistics have 600 names
def _tensor_head(name: str, size: int) -> tuple[bytes, bytes]:
    """Summary.Value.tag; TensorProto.dtype and .tensor_shape."""
    tag = name.encode()
    dimension = b"\x08" + _varint(size) + _field(2, f"{name}_{size}".encode())
    return _field(1, tag), b"\x08" + _varint(FLOAT) + _field(2, _field(2, dimension))


def _metadata(mode: int, mode_step: int) -> bytes:
    """SummaryMetadata with the two things that smdebug's reader looks for."""
    parts = {b"mode_step": mode_step, b"mode": mode}
    return b"".join(_field(1, _field(1, name) + _field(2, str(number).encode())) for name, number in parts.items())


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """A whole number of a protocol buffer: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _frame(event: bytes) -> bytes:
    """A record of a TFRecord file."""
    return _frame_head(len(event)) + event + _checksum(UNCHECKED)


@lru_cache(maxsize=1024)
def _frame_head(length: int) -> bytes:
    packed = struct.pack("<Q", length)
    return packed + _checksum(packed)


@lru_cache(maxsize=1024)
def _checksum(content: bytes) -> bytes:
    """CRC-32C, rotated and shifted as TensorFlow does it, so that records may hold checksums of records."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (CASTAGNOLI if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return struct.pack("<I", rotated + MASK & 0xFFFFFFFF)


def _write_whole(path: Path, content: bytes) -> None:
    """A name that a reader knows is that of a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")  # smdebug's own name for it
    temporary.write_bytes(content)
    temporary.replace(path)
