"""What workers saw and answered, for the server program to look at: rings in shared memory, one a worker.

A worker copies 3 kB beside its answer and waits for nobody. The program reads every now and then, and does the sums.
What it is too late for is lost to it.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from image_classifier.vision.drift import GRID, picture_statistics, sample

SLOTS = 128  # between two looks, a quarter of a second apart; 400 kB a worker
_COUNT = struct.Struct("Q")
_HEAD_BYTES = 64  # the number of sightings so far, alone in a line of the processor's cache
_SLOT = np.dtype([("top1", "<i4"), ("confidence", "<f4"), ("sample", "u1", (GRID, GRID, 3))])
_BYTES = _HEAD_BYTES + SLOTS * _SLOT.itemsize


class SightingWriter:
    """A worker's own ring, made at `path`."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_BYTES))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _BYTES)
        self._slots = np.frombuffer(self._memory, _SLOT, SLOTS, _HEAD_BYTES)
        self._count = 0

    def write(self, pixels: NDArray[np.uint8], probabilities: NDArray[np.float64]) -> None:
        """One picture, (H, W, 3), and its answer, (num_classes,)."""
        slot = self._slots[self._count % SLOTS]
        top1 = int(probabilities.argmax())
        slot["top1"], slot["confidence"], slot["sample"] = top1, probabilities[top1], sample(pixels)
        self._count += 1
        _COUNT.pack_into(self._memory, 0, self._count)  # after the slot: whoever sees the number finds it filled


class SightingReader:
    """The other side. Raises OSError when there is no ring at `path`, ValueError when it is not whole yet."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), _BYTES, access=mmap.ACCESS_READ)
        self._slots = np.frombuffer(self._memory, _SLOT, SLOTS, _HEAD_BYTES)
        self._read = 0

    @property
    def _written(self) -> int:
        (count,) = _COUNT.unpack_from(self._memory)
        return int(count)

    def skip(self) -> None:
        """Leaves unread what was written until now."""
        self._read = self._written

    def read(self) -> NDArray[np.float64]:
        """(n, 8), in the order of `drift.STATISTICS`, of what was written since the last call and is still there."""
        until = self._written
        numbers = np.arange(max(self._read, until - SLOTS), until)
        slots = self._slots[numbers % SLOTS]  # a copy
        kept = slots[numbers > self._written - SLOTS]  # the others were, or are being, written over meanwhile
        self._read = until
        answers = np.stack([kept["top1"], kept["confidence"]], axis=1).astype(np.float64)
        return np.concatenate([answers, picture_statistics(kept["sample"])], axis=1)
