"""How much of /dev/shm the data loading processes of a job need, and how many of them what is free is enough for.

Batches travel from a loading process to the training through files in /dev/shm. Docker gives a container 64 MB of it.
"""

from __future__ import annotations

import os
from pathlib import Path

from image_classifier.contract.machine import memory

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where Linux keeps POSIX shared memory
MAX_WORKERS = 32  # data loading processes when their number is left to us
AHEAD = 2  # batches that each process makes ahead: torch's prefetch_factor
IN_HAND = 2  # batches that the training holds: one in use, one being copied to the device
SHARE = 0.5  # of what is free is for one job: others that share the machine start at the same moment
LEAST_BYTES = 1024**3  # for a container of ours; nothing is taken before it is used
_PAGE = 4096
_BYTES_A_LABEL = 2 * 8  # int64: the label and the index


def batch_bytes(batch_size: int, image_size: int) -> int:
    """Bytes of shared memory of one batch: the uint8 pictures, labels and indices, each in a file of whole pages."""
    pictures = batch_size * 3 * image_size**2
    return pictures + batch_size * _BYTES_A_LABEL + 3 * _PAGE


def needed_bytes(batch_size: int, image_size: int, workers: int) -> int:
    """Bytes of shared memory that so many loading processes fill at most; zero for none, who load in the training.

    Also of several training processes on one host, which share every batch.
    """
    return (AHEAD * workers + IN_HAND) * batch_bytes(batch_size, image_size) if workers else 0


def free_bytes(place: Path = SHARED_MEMORY) -> int:
    """Bytes free in shared memory, no more than the machine has memory for; 0 where there is none to write to."""
    try:
        found = os.statvfs(place)
    except OSError:
        return 0
    if not os.access(place, os.W_OK):
        return 0
    return min(found.f_bavail * found.f_frsize, memory()[1])


def fitting_workers(wanted: int, batch_size: int, image_size: int, free: int) -> int:
    """The largest number of loading processes up to `wanted` whose need is at most SHARE of the bytes that are free."""
    return next(
        (count for count in range(wanted, 0, -1) if needed_bytes(batch_size, image_size, count) <= SHARE * free), 0
    )


def container_bytes(batch_size: int, image_size: int, workers: int) -> int:
    """Bytes of shared memory to give to a container, so that it can load with `workers` processes (negative: auto)."""
    count = workers if workers >= 0 else MAX_WORKERS
    return max(LEAST_BYTES, int(needed_bytes(batch_size, image_size, count) / SHARE))
