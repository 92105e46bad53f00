"""Pictures in their views, read before they are needed: by threads, or for a GPU by processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from image_classifier.contract.errors import RequestError
from image_classifier.contract.shared_memory import AHEAD, SHARE, batch_bytes, fitting_workers, free_bytes
from image_classifier.training.data import start_worker
from image_classifier.training.stop import share_temporary_folder
from image_classifier.training.views import read_views
from image_classifier.vision.preprocess import Preprocessing

READ_TOGETHER = 8  # pictures that a thread or a process reads at once, at least: few, so that all read for one batch
SENT_TOGETHER = 32  # at most: what a process hands over costs the one that computes a millisecond, however small it is
LEAST_PARTS = 4  # for each process: it takes longer to start than to read them


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture to read: its index in the split, and the views that are missing."""

    index: int
    path: Path
    views: tuple[str, ...]


class Read(NamedTuple):
    """What came of some pictures.

    Args:
        names: (index, view, digest of the file) of each view.
        pixels: (S, S, 3) uint8 of each.
        unreadable: index -> why.
    """

    names: list[tuple[int, str, str]]
    pixels: list[NDArray[np.uint8]]
    unreadable: dict[int, str]


def read(preprocessing: Preprocessing, pictures: Sequence[Picture]) -> Read:
    """Reads some pictures, here and now."""
    found = Read([], [], {})
    for each in pictures:
        try:
            content, views = read_views(each.path, preprocessing, each.views)
        except RequestError as error:
            found.unreadable[each.index] = error.message
            continue
        found.names.extend((each.index, view, content) for view in views)
        found.pixels.extend(views.values())
    return found


def read_ahead(
    pictures: Sequence[Picture], preprocessing: Preprocessing, *, batch: int, processes: int, threads: int
) -> Iterator[Read]:
    """All of them in order, a few at a time, while the ones before are computed.

    By processes, where there is room for what they hand over: each thread that decodes takes Python from the one that
    computes, again and again.

    Args:
        batch: views that are held at once.
        processes: at most; fewer than two, or pictures too few for two, leave it to threads.
        threads: so many otherwise.

    Raises:
        RuntimeError: a process died or failed, as torch says it.
    """
    processes = min(processes, len(pictures) // (READ_TOGETHER * LEAST_PARTS))
    if processes >= 2:
        together = max(READ_TOGETHER, min(SENT_TOGETHER, len(pictures) // (processes * LEAST_PARTS)))
        views, size = together * max(len(each.views) for each in pictures), preprocessing.image_size
        room = free_bytes() - int(batch_bytes(batch + views, size) / SHARE)
        if (fitting := fitting_workers(processes, views, size, room)) >= 2:
            yield from _by_processes(in_parts(pictures, together), preprocessing, fitting)
            return
    yield from by_threads(threads, partial(read, preprocessing), in_parts(pictures, READ_TOGETHER))


def in_parts(pictures: Sequence[Picture], together: int) -> list[Sequence[Picture]]:
    """So many at a time."""
    return [pictures[at : at + together] for at in range(0, len(pictures), together)]


def by_threads(threads: int, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """What so many threads make of the items, in their order; no more than two for each are begun and not yet taken.
    torch computes with one thread in each of them, and afterwards with as many as before in new ones."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1))
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


class _Parts(Dataset[Any]):
    """For loading processes: some pictures at each index."""

    def __init__(self, parts: Sequence[Sequence[Picture]], preprocessing: Preprocessing) -> None:
        self._parts, self._preprocessing = parts, preprocessing

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> Any:
        """A `Read` whose pixels are one tensor in shared memory; moved there here, where errors are heard of."""
        found = read(self._preprocessing, self._parts[number])
        if not found.pixels:
            return found
        whole = torch.stack([torch.from_numpy(each) for each in found.pixels]).share_memory_()  # type: ignore[no-untyped-call]
        return found.names, whole, found.unreadable


def _by_processes(parts: Sequence[Sequence[Picture]], preprocessing: Preprocessing, processes: int) -> Iterator[Read]:
    share_temporary_folder()
    loader: DataLoader[Any] = DataLoader(
        _Parts(parts, preprocessing),
        batch_size=None,
        num_workers=processes,
        collate_fn=_as_it_is,
        worker_init_fn=start_worker,
        multiprocessing_context="fork",  # as every loading process: what is imported need not be imported again
        prefetch_factor=AHEAD,
        generator=torch.Generator(),  # without one it draws from what the training draws from
    )
    for names, pixels, unreadable in loader:
        yield Read(names, list(pixels.numpy()) if isinstance(pixels, torch.Tensor) else pixels, unreadable)


def _as_it_is(found: Any) -> Any:
    return found
