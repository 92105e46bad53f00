"""What a training on a CPU frees stays with its process. Each step frees gigabytes of activations and asks for as many
again; glibc would hand them back to the system, which clears every page before it gives it once more."""

from __future__ import annotations

import ctypes
import os

# From glibc's malloc.h: how many allocations may have memory of their own from the system, and how much that is free at
# the end of the heap stays there.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
NEVER = -1  # of a trim threshold: a number of bytes could be 2 GB at most, less than a step frees


def keep_freed_memory() -> bool:
    """Sets it for this process and those that it forks. Returns whether it is set: not where another C library has no
    such setting, nor where the environment sets malloc up already."""
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, NEVER)])
