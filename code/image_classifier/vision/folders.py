"""Image folders: which files there are, what class each has, and which split it belongs to.

The layout is torchvision's ImageFolder, `train|valid|test/CLASS/**/*.jpg`; the folder's name is the class. Nothing
here opens an image.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from image_classifier.contract.errors import DataError, describe
from image_classifier.contract.image_formats import SUFFIXES
from image_classifier.contract.text import as_text

SPLIT_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "validation", "val"),
    "test": ("test",),
}
LAYOUT_HINT = "the layout is train/CLASS/*.jpg, and optionally valid/CLASS/*.jpg and test/CLASS/*.jpg"
_NOT_CLASSES = frozenset({"__MACOSX"})  # what unpacking a zip made on macOS leaves behind


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Args:
        name: train, valid or test.
        root: the folder that holds the class folders; the train folder for a valid split taken off it.
        paths: the files, sorted by class, then by path.
        labels: index into `ImageFolders.classes` for each of `paths`.
    """

    name: str
    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class ImageFolders:
    """A data set: class names sorted by code point, and its splits. `valid_split_off`: valid was taken off train."""

    classes: tuple[str, ...]
    train: Split
    valid: Split
    test: Split | None
    valid_split_off: bool

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits there are, in the order train, valid, test."""
        return tuple(split for split in (self.train, self.valid, self.test) if split is not None)


def find_channels(root: Path) -> dict[str, Path]:
    """The folders of a data set by split: `train`, and `valid` and `test` where they exist.

    `val` and `validation` count as valid; upper and lower case are the same.

    Raises:
        DataError: no such folder, no train folder in it, or two folders for one split.
    """
    _require_folder(root, "data set")
    folders = sorted(entry for entry in _entries(root) if entry.is_dir())
    channels = {}
    for split, names in SPLIT_FOLDERS.items():
        found = [folder for folder in folders if folder.name.lower() in names]
        if len(found) > 1:
            raise DataError(f"{root} has two {split} folders: {found[0].name} and {found[1].name}", "keep one of them")
        if found:
            channels[split] = found[0]
    if "train" not in channels:
        loose = [folder for folder in folders if loose_images(folder)]
        hint = f"if {loose[0].name} is a class, move the class folders into {root / 'train'}" if loose else LAYOUT_HINT
        raise DataError(f"there is no train folder in {root}", hint)
    return channels


def scan(channels: Mapping[str, Path], *, valid_fraction: float, seed: int) -> ImageFolders:
    """Lists the images below the channels. The result depends on names only, never on the file system's order.

    Hidden files and files that are not images by their suffix are passed over. Without a `valid` channel the share
    `valid_fraction` of each class of train (rounded, at least one image of a class that has two) becomes valid, chosen
    by a hash of seed and name: adding images later does not reshuffle the others.

    Args:
        channels: split name -> folder; `train` is required, `valid` and `test` are optional.
        valid_fraction: share of train to split off, 0..1.
        seed: chooses which images are split off.

    Raises:
        DataError: a folder is missing or has no images in class folders, train has fewer than two classes or an empty
            one, or valid or test has a class that train lacks.
    """
    if "train" not in channels:
        raise DataError("there is no train channel", LAYOUT_HINT)
    images = {name: _class_images(channels[name], name) for name in SPLIT_FOLDERS if name in channels}
    classes = _check_classes(channels["train"], images)
    split_off = "valid" not in images
    if split_off:
        images["train"], images["valid"] = _split_off(images["train"], channels["train"], valid_fraction, seed)
    roots = {"valid": channels["train"], **channels}
    splits = {name: _split(name, roots[name], classes, found) for name, found in images.items()}
    return ImageFolders(classes, splits["train"], splits["valid"], splits.get("test"), split_off)


def image_files(folder: Path) -> list[Path]:
    """The images anywhere below `folder`, sorted by path; links are followed, hidden files and folders are not.

    A dangling link counts as an image, so that reading it names it. Raises DataError when a folder cannot be listed.
    """
    return sorted(_walk(folder, frozenset()), key=lambda path: path.relative_to(folder).as_posix())


def loose_images(folder: Path) -> list[Path]:
    """The images in `folder` itself, sorted, and none of those below. Raises DataError when it cannot be listed."""
    return sorted(path for path in _entries(folder) if path.suffix.lower() in SUFFIXES and not path.is_dir())


def _walk(folder: Path, parents: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in parents:  # a link back to a folder above
        return
    for path in _entries(folder):
        if path.is_dir():
            yield from _walk(path, parents | {real})
        elif path.suffix.lower() in SUFFIXES and (path.is_file() or not path.exists()):  # no pipes, no devices
            yield path


def _entries(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror or describe(error)}") from error


def _class_images(root: Path, name: str) -> dict[str, list[Path]]:
    """Class name -> sorted images; a class without images has an empty list. A name that is not UTF-8 has escapes."""
    _require_folder(root, name)
    entries = _entries(root)
    images: dict[str, list[Path]] = {}
    for folder in sorted(entry for entry in entries if entry.is_dir() and entry.name not in _NOT_CLASSES):
        # macOS writes é as two code points, Linux as one: the same class in train and test must stay the same class
        images.setdefault(unicodedata.normalize("NFC", as_text(folder.name)), []).extend(image_files(folder))
    if not any(images.values()):
        if loose := loose_images(root):
            message = f"the {name} folder {root} has {len(loose)} images of its own but none in class folders"
            raise DataError(message, "put the images of each class into a folder named for the class")
        suffixes = " ".join(sorted(SUFFIXES))
        raise DataError(f"there are no images ({suffixes}) in the {name} folder {root}", LAYOUT_HINT)
    return images


def _check_classes(train_root: Path, images: Mapping[str, Mapping[str, Sequence[Path]]]) -> tuple[str, ...]:
    classes = tuple(sorted(images["train"]))
    split_names = {name for names in SPLIT_FOLDERS.values() for name in names}
    if split_names.issuperset(name.lower() for name in classes):
        message = f"the train folder {train_root} holds {' and '.join(classes)}: it looks like a whole data set"
        raise DataError(message, "give its train, valid and test folders as separate channels")
    if len(classes) == 1:
        raise DataError(f"train has only one class, {classes[0]}", "a classifier needs at least two class folders")
    empty = [name for name in classes if not images["train"][name]]
    if empty:
        raise DataError(f"train has no images of {listing(empty)}", "add images, or remove the folder in every split")
    for split, found in images.items():
        unknown = sorted(name for name, paths in found.items() if paths and name not in classes)
        if unknown:
            raise DataError(f"{split} has classes that train lacks: {listing(unknown)}", "the names must be the same")
    return classes


def _split_off(
    train: Mapping[str, Sequence[Path]], root: Path, fraction: float, seed: int
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    def rank(path: Path) -> bytes:
        return hashlib.sha256(os.fsencode(f"{seed}/{path.relative_to(root).as_posix()}")).digest()

    keep: dict[str, list[Path]] = {}
    take: dict[str, list[Path]] = {}
    for name, paths in train.items():
        count = min(max(round(len(paths) * fraction), 1), len(paths) - 1)
        taken = set(sorted(paths, key=rank)[:count])
        keep[name] = [path for path in paths if path not in taken]
        take[name] = [path for path in paths if path in taken]
    if not any(take.values()):
        raise DataError(
            f"no class in {root} has two images, so none can be split off for validation",
            "add images, or a valid folder",
        )
    return keep, take


def _split(name: str, root: Path, classes: Sequence[str], images: Mapping[str, Sequence[Path]]) -> Split:
    pairs = [(path, label) for label, class_name in enumerate(classes) for path in images.get(class_name, ())]
    return Split(name, root, tuple(path for path, _ in pairs), tuple(label for _, label in pairs))


def _require_folder(path: Path, what: str) -> None:
    if not path.exists():
        raise DataError(f"the {what} folder {path} does not exist", LAYOUT_HINT)
    if not path.is_dir():
        raise DataError(f"{path} is a file, not a {what} folder", LAYOUT_HINT)


def listing(names: Sequence[str], limit: int = 5) -> str:
    """The first names with commas between, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
