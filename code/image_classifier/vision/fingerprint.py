"""Which images a job was given, by what is in the files: a renamed file is the same image.

Every file is read once (about 1 GB/s a core): one after the other as long as they lie in memory, where threads would
only wait for each other; several at a time from storage that keeps one waiting. What was read is remembered for as long
as the file's size and times stay.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from image_classifier.contract.files import open_plain
from image_classifier.vision.decode import MAX_FILE_BYTES
from image_classifier.vision.folders import ImageFolders, Split

THREADS = 8  # for storage that keeps one waiting, and answers several at a time
WAITING = 2.0  # times its CPU time: a thread that takes so long to read files has waited for storage, not for a core
REMEMBERED = 2**17  # files
UNREADABLE = "-"  # the digest of a file that cannot be read
_CHUNK = 256  # files between two calls of `on_files`

Digests = Mapping[str, Sequence[str]]


def digests(folders: ImageFolders, on_files: Callable[[], None] = lambda: None) -> dict[str, list[str]]:
    """Split name -> sha256 (hex) of each of its files, or UNREADABLE, in the order of `Split.paths`.

    Args:
        on_files: called every few hundred files; what it raises ends the reading.
    """
    found: dict[str, list[str]] = {}
    waits = False
    with ThreadPoolExecutor(THREADS) as threads:
        for split in folders.splits:
            found[split.name] = []
            for start in range(0, len(split), _CHUNK):
                on_files()
                paths = split.paths[start : start + _CHUNK]
                if waits:
                    found[split.name] += threads.map(_digest, paths)
                else:
                    began, used = time.perf_counter(), time.thread_time()
                    found[split.name] += map(_digest, paths)
                    waits = time.perf_counter() - began > WAITING * (time.thread_time() - used)
    return found


def file_digests(paths: Sequence[Path]) -> list[str]:
    """sha256 (hex) of each file, or UNREADABLE, as `digests` has them; one that has not changed is not read again."""
    return [_digest(path) for path in paths]


def fingerprint(folders: ImageFolders, known: Digests | None = None) -> str:
    """sha256 (hex) over channel, class and content of every file. Names do not count, nor which images of a train
    channel without a valid one were kept aside.

    Args:
        known: the files' digests, if they are.
    """
    lines = []
    for split, content in zip(folders.splits, _by_split(folders, known or digests(folders)), strict=True):
        channel = _channel(folders, split)
        for label, digest in zip(split.labels, content, strict=True):
            lines.append(f"{channel}\0{folders.classes[label]}\0{digest}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def fingerprint_by_name(folders: ImageFolders) -> str:
    """What `fingerprint` was before it read the files: over split, class, name and size. Checkpoints from then hold it.

    A class whose name is not UTF-8 did not exist then.
    """
    lines = []
    for split in folders.splits:
        for path, label in zip(split.paths, split.labels, strict=True):
            size = path.stat().st_size if path.exists() else -1
            name = path.relative_to(split.root).as_posix()
            lines.append(os.fsencode(f"{split.name}\0{folders.classes[label]}\0{name}\0{size}\n"))
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()


def order_fingerprint(known: Digests) -> str:
    """sha256 (hex) over the files' contents in the order of the samples."""
    lines = (f"{split}\0{digest}\n" for split, content in known.items() for digest in content)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def in_order(folders: ImageFolders, known: Digests, wanted: Digests) -> ImageFolders:
    """The same images with every split's files in the order, and the split, that `wanted` gives their contents.

    A job that goes on after files were renamed sees its samples in the order in which it began. `folders` as they are
    when their contents are others.
    """
    waiting: dict[tuple[str, int, str], deque[Path]] = defaultdict(deque)
    for split, content in zip(folders.splits, _by_split(folders, known), strict=True):
        for path, label, digest in zip(split.paths, split.labels, content, strict=True):
            waiting[_channel(folders, split), label, digest].append(path)
    made = {}
    for split in folders.splits:
        content = wanted.get(split.name, ())
        if len(content) != len(split):
            return folders
        keys = [(_channel(folders, split), label, each) for label, each in zip(split.labels, content, strict=True)]
        try:
            made[split.name] = replace(split, paths=tuple(waiting[key].popleft() for key in keys))
        except IndexError:
            return folders
    return replace(folders, train=made["train"], valid=made["valid"], test=made.get("test"))


def _channel(folders: ImageFolders, split: Split) -> str:
    """The channel that the split's files come from."""
    return "train" if split.name == "valid" and folders.valid_split_off else split.name


def _by_split(folders: ImageFolders, known: Digests) -> Iterable[Sequence[str]]:
    return (known[split.name] for split in folders.splits)


def _digest(path: Path) -> str:
    try:
        found = path.stat()
        if found.st_size > MAX_FILE_BYTES:  # no image
            return UNREADABLE
        return _content(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    except OSError:
        return UNREADABLE


@lru_cache(maxsize=REMEMBERED)
def _content(path: Path, *_state: int) -> str:
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
