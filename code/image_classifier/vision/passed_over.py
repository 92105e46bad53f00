"""What lies in image folders and is not taken for an image, and why: nothing is passed over in silence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath

from image_classifier.contract.image_formats import OTHER_SUFFIXES, SUFFIXES
from image_classifier.vision.findings import LEFTOVER, DataFinding

# What systems and programs leave in folders that people fill with photos, in lower case. None of them may be a name
# that somebody gives a class: RECYCLED and CVS, which programs of the nineties left, are not among them.
_LEFTOVERS = frozenset(
    {
        # network storage: Synology, QNAP, NetApp, ZFS
        *("@eadir", "@tmp", "@sharebin", "@recycle", "@recently-snapshot", "@__thumb", "#recycle", "#snapshot"),
        *("~snapshot", ".@__thumb", ".snapshot", ".snapshots", ".zfs"),
        # file systems
        *("lost+found", ".directory", ".thumbnails", ".nomedia"),
        # Windows
        *("$recycle.bin", "system volume information", "found.000"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "zbthumbnail.info"),
        # macOS
        *("__macosx", "network trash folder", "temporary items", "icon\r", ".ds_store", ".localized"),
        *(".appledouble", ".appledb", ".appledesktop", ".spotlight-v100", ".trashes", ".fseventsd", ".temporaryitems"),
        ".documentrevisions-v100",
        # notebooks, Python, version control
        *(".ipynb_checkpoints", "__pycache__", ".git", ".gitattributes", ".gitignore", ".gitkeep", ".gitmodules"),
        *(".keep", ".svn", ".hg", ".dvc", ".dvcignore", ".idea", ".vscode", ".cache"),
        # synchronisation, photo managers
        *(".stfolder", ".stversions", ".stignore", ".sync", ".syncignore", "_gsdata_", ".dropbox", ".dropbox.cache"),
        *(".dropbox.attr", ".owncloudsync.log", ".nextcloudsync.log", ".tmp.drivedownload", ".tmp.driveupload"),
        *("picasa.ini", ".picasa.ini"),
    }
)
_LEFTOVER = re.compile(r"\._.*|\.trash(-\d+)?|\.nfs[0-9a-f]+|\.fuse_hidden.*|\.~lock\..*#|~\$.*|\.syncthing\..*\.tmp")
_NO_SUFFIX = "without a suffix"
_FOLDER = "folder"


class Why(Enum):
    """Why something is no image. The value is the sentence, ended by how many of what, and what to do about it."""

    LOOSE = ("images passed over because they lie in no class folder", "put them into the folder of their class")
    BESIDE = ("files beside the class folders passed over", "a class is a folder with its images")
    BROKEN_CLASS = (
        "class folders that are links to nowhere",
        "restore what they lead to, or remove the links: these classes are missing",
    )
    FORMAT = ("files passed over", "convert them to JPEG or PNG")
    NAME = ("files passed over for their names", f"images are named {' '.join(sorted(SUFFIXES))}")
    HIDDEN = ("hidden files and folders passed over", "rename what should count: no dot in front")
    NOWHERE = ("links to nowhere passed over", "restore what they lead to, or remove them")
    CIRCLE = ("links passed over because they lead in a circle", "remove them")
    SPECIAL = ("pipes, sockets and devices passed over", "remove them")
    EMPTY_CLASS = ("class folders without images that train lacks", "remove them, or add their images in every split")
    EMPTY_FOLDER = ("folders without images passed over", "add images, or remove them")
    UNUSED = ("passed over beside the folders train, valid and test", "only these three are used")
    UNUSED_SPLIT = (
        "not used, because they are no folders",
        "restore the folder, or remove what lies in its place: without valid a share of train is kept aside for it",
    )
    LEFT = ("left there by systems and programs, passed over", "")


@dataclass(frozen=True)
class _Item:
    name: str
    counted_as: str


class PassedOver:
    """Takes down what is no image, and says it.

    Args:
        label: what stands before every name, such as the split's folder; empty for none.
    """

    def __init__(self, label: str = "") -> None:
        self._label = label
        self._found: dict[Why, list[_Item]] = {}

    def add(self, why: Why, name: str, *, is_folder: bool = False) -> None:
        """One more file or folder. `name` is relative to what was searched, as text."""
        last = PurePath(name).name
        kind = _FOLDER if is_folder else PurePath(last).suffix.lower() or _NO_SUFFIX
        counted_as = last if why is Why.LEFT else kind
        shown = f"{self._label}/{name}" if self._label else name
        self._found.setdefault(why, []).append(_Item(shown, counted_as))

    def add_file(self, name: str) -> None:
        """A file that is no image by its name."""
        self.add(Why.FORMAT if PurePath(name).suffix.lower() in OTHER_SUFFIXES else Why.NAME, name)

    def include(self, other: PassedOver) -> None:
        """Takes over what another one found."""
        for why, items in other._found.items():
            self._found.setdefault(why, []).extend(items)

    def findings(self) -> tuple[DataFinding, ...]:
        """A finding for each reason, with all of its files."""
        return tuple(self._findings())

    def _findings(self) -> Iterator[DataFinding]:
        for why in Why:
            items = self._found.get(why)
            if not items:
                continue
            sentence, hint = why.value
            if why in _COUNTED:
                message = f"{sentence}: {len(items)}"
            else:
                counts = Counter(item.counted_as for item in items)
                message = f"{sentence}: {', '.join(_count(number, what) for what, number in sorted(counts.items()))}"
            yield DataFinding(
                kind=LEFTOVER if why is Why.LEFT else "ignored",
                message=message,
                hint=hint,
                files=tuple(item.name for item in items),
            )


_COUNTED = frozenset(Why) - {Why.BESIDE, Why.FORMAT, Why.NAME, Why.HIDDEN, Why.UNUSED, Why.LEFT}


def is_leftover(name: str) -> bool:
    """Whether a file or folder of that name is left there by a system or a program, and no class and no image."""
    lower = name.lower()
    return lower in _LEFTOVERS or _LEFTOVER.fullmatch(lower) is not None


def _count(number: int, what: str) -> str:
    return f"{number} {what}s" if what == _FOLDER and number > 1 else f"{number} {what}"
