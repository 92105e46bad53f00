"""Decoded pictures that the trials of a search share, in memory of the process that they are forked from.

What the first trial decoded, the others find, as long as the file holds what it held and is decoded in the same way.
The memory is bounded as that of one job's `PixelCache`, and gone with the process. A trial may be killed at any moment:
a picture counts when it is whole, and the lock of a process that is gone is no lock.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import describe
from image_classifier.contract.machine import memory
from image_classifier.training.cache import LARGEST_SHARE, LOOK_EVERY, PixelCache, enough_free
from image_classifier.vision.fingerprint import UNREADABLE, file_digests
from image_classifier.vision.folders import Split

log = logging.getLogger(__name__)
MOST_IMAGES = 2**20  # in a split; others are kept by each trial for itself
MOST_WAYS = 2  # of decoding: those used last, where a search varies them
SPLITS = ("train", "valid")
_END, _HEIGHT, _WIDTH, _DIGEST = 0, 1, 2, slice(3, 5)  # of a row; _END is 0 while there is no picture
_COLUMNS = 5

Way = tuple[int, str]  # image_size and augment: what makes of a file what is kept


class PictureMemory:
    """Memory for a split's pictures, taken page by page. Make it before the processes that share it are forked."""

    def __init__(self, capacity_bytes: int, most_images: int = MOST_IMAGES) -> None:
        """Raises OSError when the system does not grant so many bytes."""
        self.capacity = capacity_bytes
        self.pixels = mmap.mmap(-1, capacity_bytes)
        # A row for each picture, (end, height, width, digest); in the last one the end of all
        rows = mmap.mmap(-1, 8 * _COLUMNS * (most_images + 1))
        self.rows: NDArray[np.int64] = np.frombuffer(rows, np.int64).reshape(most_images + 1, _COLUMNS)
        self._file = os.memfd_create("pictures")  # holds nothing but the lock
        weakref.finalize(self, os.close, self._file)

    @contextmanager
    def locked(self, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
        """Among processes; the system takes the lock from one that is killed."""
        fcntl.lockf(self._file, kind)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def view(self, end: int, height: int, width: int) -> NDArray[np.uint8]:
        """The picture that ends there."""
        size = 3 * height * width
        return np.frombuffer(self.pixels, np.uint8, count=size, offset=end - size).reshape(height, width, 3)


class SharedCache(PixelCache):
    """A split's pictures in shared memory, as `PixelCache`.

    Args:
        shared: the memory.
        split: whose files are decoded.
        digests: sha256 (hex) of each file, as `fingerprint.digests` has them.
    """

    def __init__(self, shared: PictureMemory, split: Split, digests: Sequence[str]) -> None:
        self._shared, self._split, self._digests = shared, split, digests
        halves = [each[:32] if each != UNREADABLE else "0" * 32 for each in digests]
        self._wanted = np.frombuffer(bytes.fromhex("".join(halves)), np.int64).reshape(len(digests), 2)

    def get(self, index: int) -> NDArray[np.uint8] | None:
        """As of `PixelCache`; also what another trial decoded from a file of the same content."""
        with self._shared.locked(fcntl.LOCK_SH):
            row = self._shared.rows[index]
            if not row[_END] or not np.array_equal(row[_DIGEST], self._wanted[index]):
                return None
            end, height, width = row[: _WIDTH + 1].tolist()
        return self._shared.view(end, height, width)

    def put(self, index: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """As of `PixelCache`. Several processes may put the same index: the first one's picture stays."""
        if file_digests([self._split.paths[index]])[0] != self._digests[index] or not self._wanted[index].any():
            return None  # it has changed since
        height, width, _ = pixels.shape
        end = self._reserve(index, pixels.size)
        if end is None:
            return None
        kept = self._shared.view(end, height, width)
        kept[:] = pixels
        with self._shared.locked():
            row = self._shared.rows[index]
            if not row[_END]:
                row[_DIGEST] = self._wanted[index]
                row[_HEIGHT], row[_WIDTH] = height, width
                row[_END] = end  # last: a process that is killed before leaves no picture
        return kept

    def __len__(self) -> int:
        return int(self._mine().sum())

    @property
    def num_bytes(self) -> int:
        rows = self._shared.rows[: len(self._wanted)]
        return int((3 * rows[:, _HEIGHT] * rows[:, _WIDTH])[self._mine()].sum())

    def _mine(self) -> NDArray[np.bool_]:
        """(images,): which are kept as this trial has them."""
        rows = self._shared.rows[: len(self._wanted)]
        mine: NDArray[np.bool_] = (rows[:, _END] != 0) & (rows[:, _DIGEST] == self._wanted).all(axis=1)
        return mine

    def _reserve(self, index: int, num_bytes: int) -> int | None:
        """Where a picture of that size is to end; None when it is there, or there is no room."""
        shared = self._shared
        with shared.locked():
            start = int(shared.rows[-1, _END])
            end = start + num_bytes
            if shared.rows[index, _END] or end > shared.capacity:
                return None
            is_full = start // LOOK_EVERY != end // LOOK_EVERY and not enough_free()
            shared.rows[-1, _END] = shared.capacity if is_full else end  # full from now on
        return None if is_full else end


_ways: dict[Way, dict[str, PictureMemory]] = {}  # of this process or the one that it was forked from


def share_pictures(config: TrainConfig) -> None:
    """Sets memory aside for the trainings of such a configuration that are forked from this process from now on."""
    way = config.image_size, config.augment
    found = _ways.pop(way, None)
    if found is None:
        while len(_ways) >= MOST_WAYS:
            del _ways[next(iter(_ways))]  # trainings that use it have it still
        try:
            found = {name: PictureMemory(int(LARGEST_SHARE * memory()[0])) for name in SPLITS}
        except OSError as error:
            log.warning("trials do not share decoded images: %s", describe(error))
            return
    _ways[way] = found


def shared_cache(config: TrainConfig, split: Split, digests: Mapping[str, Sequence[str]]) -> SharedCache | None:
    """The pictures of a split as other trials left them; None where none are shared."""
    shared = _ways.get((config.image_size, config.augment), {}).get(split.name)
    known = digests.get(split.name, ())
    if shared is None or len(known) != len(split) or len(split) > MOST_IMAGES:
        return None
    return SharedCache(shared, split, known)
