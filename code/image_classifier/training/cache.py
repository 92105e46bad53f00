"""Decoded pictures in memory that all data loading processes share: what one of them decoded, every later epoch finds.
Where no processes load, it is memory of large pages: to be given small ones takes longer than to copy a picture there.

Nothing is thrown out for something newer. Each epoch goes through all images in a new order, so that a newer picture
is worth no more than an older one, and what does not fit is decoded again as without a cache.
"""

from __future__ import annotations

import logging
import mmap
import multiprocessing
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.errors import describe
from image_classifier.contract.machine import memory

log = logging.getLogger(__name__)

LARGEST_SHARE = 0.5  # of the memory may hold pictures
FREE_SHARE = 0.25  # of the memory is left to everything else, other jobs' pictures included
LOOK_EVERY = 32 * 1024**2  # bytes put in between two looks at what is free
_MISSING = -1


def make_cache(num_images: int, *, processes: bool) -> PixelCache | None:
    """A cache of LARGEST_SHARE of the memory at most; None, with a line in the log, when the system grants none.

    Args:
        processes: whether others than this one are to load pictures.
    """
    try:
        return PixelCache(num_images, int(LARGEST_SHARE * memory()[0]), processes=processes)
    except OSError as error:
        log.warning("decoded images are not kept: %s", describe(error))
        return None


class PixelCache:
    """(H, W, 3) uint8 arrays by index. Make it before the processes that share it are forked.

    The memory is taken as pictures come in, belongs to no file, and is gone with the last process.

    Args:
        processes: whether it is shared with processes that are forked. Without, none of them may put a picture there.
    """

    def __init__(self, num_images: int, capacity_bytes: int, *, processes: bool = True) -> None:
        """Raises OSError when the system does not grant so many bytes."""
        self._capacity = capacity_bytes
        self._pixels = picture_memory(capacity_bytes, shared=processes)
        # (start, height, width) of each picture, and in the last row the end of all
        self._index = np.frombuffer(mmap.mmap(-1, 3 * 8 * (num_images + 1)), np.int64).reshape(num_images + 1, 3)
        self._index[:-1, 0] = _MISSING
        self._lock = multiprocessing.get_context("fork").Lock()

    def get(self, index: int) -> NDArray[np.uint8] | None:
        """The picture, in the cache's own memory: not to be written to. None when it is not kept."""
        start, height, width = self._index[index].tolist()
        if start == _MISSING:
            return None
        return self._view(start, height, width)

    def put(self, index: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """Keeps a picture if there is room: returns it as `get` does, else None. Only one process at a time may put the
        same index."""
        height, width, _ = pixels.shape
        with self._lock:
            start = int(self._index[-1, 0])
            end = start + pixels.size
            if end > self._capacity:
                return None
            if start // LOOK_EVERY != end // LOOK_EVERY and not enough_free():
                end = self._capacity  # full from now on
            self._index[-1, 0] = end
        if end != start + pixels.size:
            return None
        kept = self._view(start, height, width)
        kept[:] = pixels
        self._index[index] = start, height, width
        return kept

    def __len__(self) -> int:
        """The number of pictures kept."""
        return int((self._index[:-1, 0] != _MISSING).sum())

    @property
    def num_bytes(self) -> int:
        """Of the pictures kept."""
        kept = self._index[:-1]
        return int((3 * kept[:, 1] * kept[:, 2])[kept[:, 0] != _MISSING].sum())

    def _view(self, start: int, height: int, width: int) -> NDArray[np.uint8]:
        flat = np.frombuffer(self._pixels, np.uint8, count=3 * height * width, offset=start)
        return flat.reshape(height, width, 3)


def picture_memory(num_bytes: int, *, shared: bool) -> mmap.mmap:
    """Memory of no file, zero until it is written; in large pages, where the system has some and it is not shared.

    Args:
        shared: with the processes that are forked from this one.

    Raises:
        OSError: the system does not grant so many bytes.
    """
    pixels = mmap.mmap(-1, num_bytes, flags=mmap.MAP_ANONYMOUS | (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE))
    if not shared:
        with suppress(OSError):  # a system without large pages
            pixels.madvise(mmap.MADV_HUGEPAGE)
    return pixels


def enough_free() -> bool:
    """Whether FREE_SHARE of the memory is free."""
    total, free = memory()
    return free >= FREE_SHARE * total
