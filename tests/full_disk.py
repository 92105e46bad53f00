"""A disk that is full, as far as one process, or a family of them, can tell."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def no_file_larger_than(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to let a file grow further: a write fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill_disk_of(processes: Iterable[psutil.Process], num_bytes: int) -> None:
    """From now on no file of these running processes, and of those that they start, grows beyond so many bytes."""
    for process in processes:
        with suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (num_bytes, hard))
