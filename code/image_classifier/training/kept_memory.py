"""What a training on a CPU frees stays with its process, in large pages. Each step frees gigabytes of activations and
asks for as many again; glibc would hand them back to the system, which clears every page before it gives it once more.
And a processor looks up where a page of 4 KB lies more often than it can remember; of 2 MB it can."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from image_classifier.contract.machine import memory

# From glibc's malloc.h: how many allocations may have memory of their own from the system, and how much that is free at
# the end of the heap stays there.
M_MMAP_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -4, -3, -1
DECODED_BYTES = 32 * 1024**2  # the most that glibc takes for M_MMAP_THRESHOLD: a picture of 11 megapixels
NEVER = -1  # of a trim threshold: a number of bytes could be 2 GB at most, less than a step frees
MADV_HUGEPAGE = 14  # from Linux' mman-common.h
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
STRICT = "2"  # memory counts as used once it is asked for, not once it is written


def keep_freed_memory() -> bool:
    """Sets it for this process and those that it forks. Returns whether it is set: not where another C library has no
    such setting, nor where the environment sets malloc up already."""
    library = _settable()
    if library is None:
        return False
    kept = all([library.mallopt(M_MMAP_MAX, 0), library.mallopt(M_TRIM_THRESHOLD, NEVER)])
    if kept:
        _use_large_pages(library)
    return kept


def keep_decoded_memory() -> bool:
    """Sets for this process, one that loads images, that what a picture took is there for the next one: some megabytes,
    which would otherwise come and go with every one of them. Returns whether it is set, as `keep_freed_memory`."""
    library = _settable()
    return library is not None and all(
        [library.mallopt(M_MMAP_THRESHOLD, DECODED_BYTES), library.mallopt(M_TRIM_THRESHOLD, 2 * DECODED_BYTES)]
    )


def _settable() -> ctypes.CDLL | None:
    """The C library, where its malloc can be set up and the environment has not done so."""
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") else None


def _use_large_pages(library: ctypes.CDLL) -> None:
    """Has the heap grow, to what is free in the machine, and asks for large pages there. They are the system's until
    they are written. Where it has none, or not that much, pages are as before."""
    if _is_strict():
        return
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size, page = memory()[1], os.sysconf("SC_PAGE_SIZE")
    start = library.malloc(size)
    if start is None:
        return
    first, end = -(-start // page) * page, (start + size) // page * page
    library.madvise(first, end - first, MADV_HUGEPAGE)
    library.free(start)  # to the end of the heap, where it stays


def _is_strict() -> bool:
    try:
        return OVERCOMMIT.read_text().strip() == STRICT
    except OSError:
        return True  # nobody knows
