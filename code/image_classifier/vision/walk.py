"""Through folders and links to the images in them, once around at most, whatever the links lead to."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from image_classifier.contract.errors import DataError, describe
from image_classifier.contract.image_formats import SUFFIXES
from image_classifier.contract.text import as_text
from image_classifier.vision.passed_over import PassedOver, Why, is_leftover

# Folders that link to each other can be gone through in more orders than there is time for. Nobody gives images more
# weight by so many links.
MAX_VISITS = 64


class Kind(Enum):
    """What an entry of a folder is, links followed."""

    FILE = auto()
    FOLDER = auto()
    NOWHERE = auto()  # a link
    CIRCLE = auto()  # a link to itself
    SPECIAL = auto()  # a pipe, a socket, a device: to open it may wait for ever
    CLOSED = auto()  # a link through a folder that we may not look into


_KINDS = {  # of a link that cannot be followed, by what the system says of it
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG), Kind.NOWHERE),
    errno.ELOOP: Kind.CIRCLE,
    **dict.fromkeys((errno.EACCES, errno.EPERM), Kind.CLOSED),
}


@dataclass(frozen=True)
class Entry:
    """An entry of a folder; `name` is its name as text."""

    path: Path
    name: str
    kind: Kind
    is_link: bool

    @property
    def is_hidden(self) -> bool:
        return self.name.startswith(".") or is_leftover(self.name)

    @property
    def has_image_name(self) -> bool:
        return self.path.suffix.lower() in SUFFIXES

    def require_open(self) -> None:
        """Raises DataError when nobody can tell us whether it is a folder of images."""
        if self.kind is Kind.CLOSED:
            raise DataError(f"cannot look at {self.path}: {os.strerror(errno.EACCES)}")

    def take_down_hidden(self, over: PassedOver, shown: Callable[[Path], str] | None = None) -> bool:
        """Whether it is hidden, or left there by a system; then that is taken down.

        Args:
            shown: gives its path the name for that; its own without.
        """
        if not self.is_hidden:
            return False
        why = Why.LEFT if is_leftover(self.name) else Why.HIDDEN
        over.add(why, self.name if shown is None else shown(self.path), is_folder=self.kind is Kind.FOLDER)
        return True


def entries_of(folder: Path) -> list[Entry]:
    """The entries of a folder, sorted by name. Raises DataError when it cannot be listed."""
    try:
        with os.scandir(folder) as scanned:
            return sorted((_entry(folder, each) for each in scanned), key=lambda entry: entry.path.name)
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror or describe(error)}") from error


def _entry(folder: Path, found: os.DirEntry[str]) -> Entry:
    path = folder / found.name
    return Entry(path, as_text(found.name), _kind(found), found.is_symlink())


def _kind(found: os.DirEntry[str]) -> Kind:
    try:
        if found.is_file(follow_symlinks=False):  # without a call to the system, like the next one
            return Kind.FILE
        if found.is_dir(follow_symlinks=False):
            return Kind.FOLDER
        mode = found.stat().st_mode
    except OSError as error:
        if error.errno not in _KINDS:
            raise
        return _KINDS[error.errno]
    if stat.S_ISDIR(mode):
        return Kind.FOLDER
    return Kind.FILE if stat.S_ISREG(mode) else Kind.SPECIAL


def _real(entry: Entry, above: str) -> str:
    """The path without links of an entry of the folder that really lies at `above`."""
    return os.path.realpath(entry.path) if entry.is_link else f"{above.rstrip('/')}/{entry.path.name}"


_WHY = {Kind.NOWHERE: Why.NOWHERE, Kind.CIRCLE: Why.CIRCLE, Kind.SPECIAL: Why.SPECIAL}


class Walk:
    """The images below folders. Where a folder really lies is asked of the system only behind a link: for every folder
    on the way to each it takes a call.

    Args:
        root: what the names of what is passed over are relative to.
        over: takes it down.
    """

    def __init__(self, root: Path, over: PassedOver) -> None:
        self._root = root
        self._over = over
        self._real_root = os.path.realpath(root)
        self._visits: Counter[str] = Counter()

    def images(self, below: Entry | None = None) -> Iterator[Path]:
        """The images anywhere below the root, or below a folder in it, in no order.

        A dangling link counts as an image, so that reading it names it.

        Raises:
            DataError: a folder cannot be listed.
        """
        self._visits.clear()
        above = frozenset(map(str, Path(self._real_root).parents))
        if below is None:
            yield from self._images(self._root, self._real_root, above, through_link=False)
        else:
            real = _real(below, self._real_root)
            yield from self._images(below.path, real, above | {self._real_root}, through_link=False)

    def _images(self, folder: Path, real: str, parents: frozenset[str], *, through_link: bool) -> Iterator[Path]:
        """The same.

        Args:
            real: path of `folder`, without a link.
            parents: the real paths of the folders above.
            through_link: the way here goes through one.
        """
        self._visits[real] += through_link
        if real in parents or (through_link and self._visits[real] > MAX_VISITS):
            self._over.add(Why.CIRCLE, self._shown(folder))
            return
        for entry in entries_of(folder):
            if entry.take_down_hidden(self._over, self._shown):
                continue
            if entry.kind is Kind.FOLDER:
                further = through_link or entry.is_link
                yield from self._images(entry.path, _real(entry, real), parents | {real}, through_link=further)
            elif entry.has_image_name and entry.kind is not Kind.SPECIAL:
                yield entry.path
            else:
                self._pass_over(entry)

    def _pass_over(self, entry: Entry) -> None:
        entry.require_open()
        if entry.kind in _WHY:
            self._over.add(_WHY[entry.kind], self._shown(entry.path))
        else:
            self._over.add_file(self._shown(entry.path))

    def _shown(self, path: Path) -> str:
        return as_text(path.relative_to(self._root))
