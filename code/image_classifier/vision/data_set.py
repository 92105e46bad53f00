"""What a user calls a data set, in the shapes in which they come: folders for the splits, a folder a class, a list.

    DATA/train|valid|test/CLASS/*.jpg   taken as it is (`vision/folders.py`)
    DATA/CLASS/*.jpg                    split by `vision/splitting.py`
    LIST.csv                            its images, in the splits that it names, or split in the same way

A path that leads one folder too deep or not deep enough is refused with the one that was meant.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from image_classifier.contract.errors import DataError
from image_classifier.contract.image_formats import SUFFIXES
from image_classifier.contract.text import as_text
from image_classifier.vision.findings import DataFinding, listing
from image_classifier.vision.folders import (
    LAYOUT_HINT,
    ImageFolders,
    beside_channels,
    class_images,
    find_channels,
    loose_images,
    planned,
    scan,
    with_reasons,
)
from image_classifier.vision.image_list import (
    LIST_HINT,
    LIST_SUFFIXES,
    SPLIT_CHANNEL,
    ListedImage,
    SplitPlan,
    read_list,
    split_named,
)
from image_classifier.vision.lookalikes import groups_of, look_at_all
from image_classifier.vision.passed_over import PassedOver, Why
from image_classifier.vision.splitting import split_images
from image_classifier.vision.walk import Kind, Walk, entries_of

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
MAX_LEVELS = 3  # that a path may be off

Progress = Callable[[int, int], None]


def _unheard(done: int, total: int) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class OpenedData:
    """A data set that can be used.

    Args:
        root: the folder that all its images lie in.
        beside: what lies there beside the folders of the splits.
    """

    root: Path
    folders: ImageFolders
    beside: tuple[DataFinding, ...] = ()

    @property
    def findings(self) -> tuple[DataFinding, ...]:
        """What was passed over."""
        return (*self.beside, *self.folders.findings)


def open_data(
    data: Path,
    *,
    valid_fraction: float,
    test_fraction: float,
    seed: int,
    kept: Path | None = None,
    progress: Progress = _unheard,
) -> OpenedData:
    """Finds the images of a data set, their classes and their splits.

    Args:
        data: a folder in one of the layouts above, or a list.
        valid_fraction, test_fraction: shares of the images to split off where nothing says which they are; the latter
            of folders without a train folder, and of lists.
        seed: chooses which.
        kept: the folder in which an earlier start of the same job kept its split; it may be missing.
        progress: called with (images done, images in all) while they are compared.

    Raises:
        DataError: it cannot be used.
    """
    if kept is not None and kept.is_dir():
        return OpenedData(data, scan({"train": data, SPLIT_CHANNEL: kept}, valid_fraction=valid_fraction, seed=seed))
    if not data.exists():
        near = near_to(data)
        raise DataError(f"the data set {data} does not exist", f"did you mean {near}?" if near else LAYOUT_HINT)
    over = PassedOver()
    if not data.is_dir():
        root, images = _listed(data, over)
    elif _has_split_folders(data):
        folders = scan(find_channels(data), valid_fraction=valid_fraction, seed=seed)
        return OpenedData(data, folders, beside_channels(data))
    else:
        root, images = data, _flat(data, over)
    alike = groups_of(look_at_all([root / image.path for image in images], progress))
    together = sum(first != index for index, first in enumerate(alike))
    split = split_images(images, alike, valid_fraction=valid_fraction, test_fraction=test_fraction, seed=seed)
    return OpenedData(root, planned(SplitPlan(root, split, over.findings(), together)))


@dataclass(frozen=True)
class Labelled:
    """Images with the labels that somebody gave them.

    Args:
        what: of them, in words: `test`, `valid`, `train`, or `all`.
        root: the folder that they lie in.
        files, labels: as many of each, sorted by path.
        findings: what was passed over.
    """

    what: str
    root: Path
    files: tuple[Path, ...]
    labels: tuple[str, ...]
    findings: tuple[DataFinding, ...] = ()


def labelled_images(data: Path) -> Labelled:
    """The images to compare a model's answers with: a data set's test images, without any its valid ones, else all.

    Args:
        data: a data set as of `open_data`, or one split's folder of class folders.

    Raises:
        DataError: it cannot be used, or has no images.
    """
    if not data.exists():
        near = near_to(data)
        raise DataError(f"there is no data {data}", f"did you mean {near}?" if near else LAYOUT_HINT)
    over = PassedOver()
    what, root = "all", data
    if not data.is_dir():
        root, listed = _listed(data, over)
        what = next(
            (split for split in ("test", "valid", "train") if any(each.split == split for each in listed)), what
        )
        pairs = [(each.path, each.label) for each in listed if each.split in {what, ""}]
    else:
        if _has_split_folders(data):
            channels = find_channels(data)
            what = next(split for split in ("test", "valid", "train") if split in channels)
            root = channels[what]
        try:
            found = class_images(root, what if root != data else "data", over)
        except DataError as error:
            raise with_reasons(error, over) from None
        pairs = [(path.relative_to(root), label) for label, paths in found.items() for path in paths]
    pairs.sort(key=lambda pair: pair[0].as_posix())
    files, labels = tuple(root / path for path, _ in pairs), tuple(label for _, label in pairs)
    return Labelled(what, root, files, labels, over.findings())


def _listed(file: Path, over: PassedOver) -> tuple[Path, tuple[ListedImage, ...]]:
    """The root and the images of a list. Raises DataError."""
    suffix = file.suffix.lower()
    if suffix in ARCHIVES:
        raise DataError(f"{file} is an archive", "unpack it, and name the folder that comes out")
    if suffix not in LIST_SUFFIXES:
        raise DataError(f"{file} is a file, not a data set folder", f"name a folder, or a CSV file: {LIST_HINT}")
    root, listed = read_list(file)
    images = []
    for image in listed:
        if image.path.suffix.lower() in SUFFIXES:
            images.append(image)
        else:
            over.add_file(as_text(image.path))
    missing = [as_text(root / image.path) for image in images if not os.path.lexists(root / image.path)]
    if not images or len(missing) == len(images):
        if images:
            raise DataError(f"no file that {file} lists exists: {listing(missing, 2)}", "paths start from its folder")
        reasons = "; ".join(finding.line for finding in over.findings())
        raise DataError(f"{file} lists no images ({' '.join(sorted(SUFFIXES))})", reasons)
    return root, tuple(images)


def _flat(root: Path, over: PassedOver) -> tuple[ListedImage, ...]:
    """The images of a folder of class folders. Raises DataError, with the path that was meant if it is another."""
    _require_class_folders(root)
    found = class_images(root, "data", over)
    images = []
    for label, paths in found.items():
        if not paths:
            over.add(Why.EMPTY_FOLDER, label, is_folder=True)
        images += [ListedImage(path.relative_to(root), label) for path in paths]
    return tuple(sorted(images, key=lambda image: image.path.as_posix()))


def _require_class_folders(root: Path) -> None:
    """Raises DataError when the folders in `root` are no classes."""
    folders = _folders(root)
    full = [folder for folder in folders if _has_images(folder)]
    if not full:
        if loose := loose_images(root):
            above = _data_set_above(root)
            hint = f"did you mean {above}?" if above else "put the images of each class into a folder named for it"
            raise DataError(f"{root} has {len(loose)} images of its own and no class folders", hint)
        if any(split_named(entry.name) for entry in entries_of(root)):
            find_channels(root)  # raises: there is nothing to train on
        over = PassedOver()
        list(Walk(root, over).images())
        message = f"there are no images ({' '.join(sorted(SUFFIXES))}) in {root}"
        raise with_reasons(DataError(message, LAYOUT_HINT), over)
    if split_named(_absolute(root).name) and (above := _data_set_above(root)):
        raise DataError(f"{root} is one split of a data set", f"did you mean {above}?")
    below = [folder for folder in full if _is_data_set(folder)]
    if len(full) == 1 and not loose_images(full[0]):
        below = [_narrow(full[0])]
    if below:
        meant = " or ".join(map(str, below[:MAX_LEVELS]))
        raise DataError(f"{root} holds no class folders, but a data set one level below", f"did you mean {meant}?")
    inner = [{each.name for each in _folders(_narrow(folder))} for folder in full]
    if len(full) > 1 and not any(loose_images(folder) for folder in full) and (shared := set.intersection(*inner)):
        names = " and ".join(folder.name for folder in full[:MAX_LEVELS])
        raise DataError(
            f"{names} in {root} hold the same folders ({listing(sorted(shared), 3)}): are they classes, or splits?",
            "call splits train, valid and test; if they are classes, put their images into them without folders",
        )


def _has_split_folders(root: Path) -> bool:
    """Whether it is laid out by splits, usable or not, and not by classes that are called like splits."""
    entries = [entry for entry in entries_of(root) if split_named(entry.name)]
    if any(entry.kind is not Kind.FOLDER for entry in entries if split_named(entry.name) == "train"):
        return True
    folders = [entry.path for entry in entries if entry.kind is Kind.FOLDER]
    if any(folder.name.lower() == "train" for folder in folders):
        return True
    return any(any(map(_has_images, _folders(folder))) for folder in folders)


def _is_data_set(folder: Path) -> bool:
    """Whether a folder has a train folder with class folders in it."""
    with suppress(DataError):
        return any(map(_has_images, _folders(find_channels(folder)["train"])))
    return False


def _narrow(folder: Path) -> Path:
    """Down to where more than one folder has images, or images lie."""
    for _ in range(MAX_LEVELS):
        full = [each for each in _folders(folder) if _has_images(each)]
        if len(full) != 1 or loose_images(folder) or loose_images(full[0]):
            break
        folder = full[0]
    return folder


def _data_set_above(root: Path) -> Path | None:
    """The data set that a class folder, or a split's, belongs to; None when it cannot be told."""
    place = _absolute(root)
    with suppress(DataError, OSError):
        siblings = [each for each in _folders(place.parent) if each != place and _has_images(each)]
        if split_named(place.name):
            is_one = sum(bool(split_named(each.name)) for each in siblings) > 0
        else:
            is_one = len(siblings) > 0
            if is_one and split_named(place.parent.name):
                return _shown(place.parent.parent, root)
        return _shown(place.parent, root) if is_one else None
    return None


def near_to(data: Path) -> Path | None:
    """A data set that somebody may have meant by a path that does not exist."""
    for level in range(1, MAX_LEVELS + 1):
        above = Path(*[os.pardir] * level, data)
        if not data.is_absolute() and above.exists():
            return above
    if data.name and len(data.parts) > 1 and Path(data.name).is_dir():
        return Path(data.name)
    with suppress(OSError):
        names = [each.name for each in data.parent.iterdir() if not each.name.startswith(".")]
        if near := difflib.get_close_matches(data.name, names, n=1):
            return data.parent / near[0]
    return None


def _folders(root: Path) -> Sequence[Path]:
    return [entry.path for entry in entries_of(root) if entry.kind is Kind.FOLDER and not entry.is_hidden]


def _has_images(folder: Path) -> bool:
    return next(_images(folder), None) is not None


def _images(folder: Path) -> Iterator[Path]:
    return Walk(folder, PassedOver()).images()


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _shown(place: Path, typed: Path) -> Path:
    """As somebody who typed another path would type it."""
    return place if typed.is_absolute() else Path(os.path.relpath(place))
