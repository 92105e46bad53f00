"""Which files show the same picture: the same bytes, or one saved again, scaled, made brighter.

Two pictures are alike when their difference hashes differ in few of 64 bits and their small grey copies go together:
the hash finds the pairs fast, the copies tell the false ones apart. A picture whose edges were cut off may not be
found: benchmarks/results/lookalikes.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from image_classifier.contract.errors import ClassifierError
from image_classifier.contract.files import open_plain
from image_classifier.contract.machine import usable_cores
from image_classifier.vision.decode import check_file_size, decode

MAX_BITS = 12  # of 64 that may differ
MIN_CORRELATION = 0.93  # of the small copies
MIN_DEVIATION = 4.0  # of 255 levels: a picture that shows less is like every other
DRAFT_SIDE = 64  # pixels: what a JPEG is decoded at
SMALL_SIDE = 32  # pixels of the small copy
_ROWS = 512  # of hashes compared with all at a time
_CHUNK = 64  # files between two calls of `progress`


@dataclass(frozen=True)
class Looks:
    """What of a file tells whether another one shows the same.

    Args:
        digest: sha256 (hex) of its bytes; empty when it cannot be read.
        bits: its difference hash, 64 bits.
        small: (SMALL_SIDE, SMALL_SIDE) uint8, grey; empty when the picture cannot be decoded or shows next to nothing.
    """

    digest: str
    bits: int = 0
    small: bytes = b""


def looks_of(picture: Image.Image, digest: str) -> Looks:
    """The looks of an RGB picture of which `digest` is the file's."""
    grey = np.asarray(picture.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BOX).convert("L"))
    if grey.std() < MIN_DEVIATION:
        return Looks(digest)
    tiny = np.asarray(picture.resize((9, 8), Image.Resampling.BOX).convert("L"))
    bits = np.packbits(tiny[:, 1:] > tiny[:, :-1]).tobytes()
    return Looks(digest, int.from_bytes(bits, "little"), grey.tobytes())


def look_at(path: Path) -> Looks:
    """The looks of a file; of one that cannot be read they are like no other's."""
    try:
        check_file_size(path)
        with open_plain(path) as file:
            data = file.read()
    except (OSError, ValueError, ClassifierError):  # ValueError: a name that no file can have
        return Looks("")
    digest = hashlib.sha256(data).hexdigest()
    try:
        return looks_of(decode(data, min_side=DRAFT_SIDE), digest)
    except ClassifierError:
        return Looks(digest)


def look_at_all(paths: Sequence[Path], progress: Callable[[int, int], None] = lambda done, total: None) -> list[Looks]:
    """The looks of files, in their order. `progress` is called with (files done, files in all) now and then."""
    found: list[Looks] = []
    with ThreadPoolExecutor(usable_cores()) as threads:  # decoders let other threads run
        for start in range(0, len(paths), _CHUNK):
            found += threads.map(look_at, paths[start : start + _CHUNK])
            progress(len(found), len(paths))
    return found


def groups_of(looks: Sequence[Looks]) -> list[int]:
    """For each the index of the first one that shows the same, also by way of others: its own when there is none."""
    first = list(range(len(looks)))

    def root(index: int) -> int:
        while first[index] != index:
            first[index] = index = first[first[index]]
        return index

    for one, other in (*_same_bytes(looks), *alike_pairs(looks)):
        low, high = sorted((root(one), root(other)))
        first[high] = low
    return [root(index) for index in range(len(looks))]


def alike_pairs(looks: Sequence[Looks]) -> list[tuple[int, int]]:
    """Indices of each two that look alike, those of the same bytes included, the lower one first, sorted."""
    seen = [index for index, each in enumerate(looks) if each.small]
    if len(seen) < 2:
        return []
    bits = np.array([looks[index].bits for index in seen], np.uint64)
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(seen), _ROWS):
        near = np.bitwise_count(bits[start : start + _ROWS, None] ^ bits[None, start:]) <= MAX_BITS
        for row, column in zip(*np.nonzero(np.triu(near, 1)), strict=True):
            one, other = seen[start + int(row)], seen[start + int(column)]
            if _correlation(looks[one].small, looks[other].small) >= MIN_CORRELATION:
                pairs.append((one, other))
    return pairs


def _same_bytes(looks: Sequence[Looks]) -> Iterable[tuple[int, int]]:
    known: dict[str, int] = {}
    for index, each in enumerate(looks):
        if each.digest:
            yield known.setdefault(each.digest, index), index


def _correlation(one: bytes, other: bytes) -> float:
    first, second = _centred(one), _centred(other)
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


def _centred(small: bytes) -> NDArray[np.float64]:
    levels: NDArray[np.float64] = np.frombuffer(small, np.uint8).astype(np.float64)
    levels -= levels.mean()
    return levels
