"""Image folders: which files there are, what class each has, and which split it belongs to.

The layout is torchvision's ImageFolder, `train|valid|test/CLASS/**/*.jpg`; the folder's name is the class. A job whose
data was split for it gets all images in the channel `train`, and in the channel `split` which is which. Nothing here
opens an image. What is passed over is in the findings, with the reason.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from image_classifier.contract.errors import DataError
from image_classifier.contract.image_formats import SUFFIXES
from image_classifier.contract.paths import MlPaths
from image_classifier.contract.text import as_text, plain_name
from image_classifier.vision.findings import LEFTOVER, DataFinding, listing
from image_classifier.vision.image_list import SPLIT_CHANNEL, SPLIT_FOLDERS, SplitPlan, by_split, read_plan, split_named
from image_classifier.vision.passed_over import PassedOver, Why
from image_classifier.vision.walk import Entry, Kind, Walk, entries_of

LAYOUT_HINT = "the layout is CLASS/*.jpg, or train/CLASS/*.jpg and optionally valid/CLASS/*.jpg and test/CLASS/*.jpg"


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Args:
        name: train, valid or test.
        root: the folder that holds the class folders; the train folder for a valid split taken off it.
        paths: the files, sorted by class, then by path.
        labels: index into `ImageFolders.classes` for each of `paths`.
        classes: the names, where they are not those of the folders.
    """

    name: str
    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def class_of(self, index: int) -> str:
        """The name of an image's class, as text."""
        if self.classes:
            return self.classes[self.labels[index]]
        return as_text(self.paths[index].relative_to(self.root).parts[0])


@dataclass(frozen=True)
class ImageFolders:
    """A data set: class names sorted by code point, and its splits.

    Args:
        valid_split_off: valid was taken off train.
        findings: what lies in the folders and is no image of any class.
        plan: which image is in which split, where folders do not say it.
    """

    classes: tuple[str, ...]
    train: Split
    valid: Split
    test: Split | None
    valid_split_off: bool
    findings: tuple[DataFinding, ...] = ()
    plan: SplitPlan | None = None

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits there are, in the order train, valid, test."""
        return tuple(split for split in (self.train, self.valid, self.test) if split is not None)


def find_channels(root: Path) -> dict[str, Path]:
    """The folders of a data set by split: `train`, and `valid` and `test` where they exist.

    Other names of them count too (SPLIT_FOLDERS); upper and lower case are the same.

    Raises:
        DataError: no such folder, no train folder in it, or two folders for one split.
    """
    _require_folder(root, "data set")
    folders = [entry.path for entry in entries_of(root) if entry.kind is Kind.FOLDER and not entry.is_hidden]
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
        broken = [entry.path for entry in entries_of(root) if split_named(entry.name) == "train"]
        if broken:
            hint = f"{broken[0]} is no folder: restore it, or remove it and make one; {LAYOUT_HINT}"
        raise DataError(f"there is no train folder in {root}", hint)
    return channels


def channels_of_job(paths: MlPaths) -> dict[str, Path]:
    """The folders of images that a job was given, by split, and the one with the list of a split if there is one.

    A channel may have any of SPLIT_FOLDERS' names: SageMaker's clients say `training` where nothing else is said. One
    channel alone may hold the folders of all splits.

    Raises:
        DataError: two channels for one split, none for train among others, or channels in Pipe mode.
    """
    channels: dict[str, Path] = {}
    for split, names in SPLIT_FOLDERS.items():
        found = [paths.channel(name) for name in names if paths.channel(name).is_dir()]
        if len(found) > 1:
            raise DataError(f"there are two {split} channels: {found[0].name} and {found[1].name}", "send one of them")
        if found:
            channels[split] = found[0]
    if "train" not in channels and (others := sorted(paths.data.glob("*"))):
        if any(path.is_fifo() for path in others):
            raise DataError("the channels come in Pipe mode, which is not read", "send them in File or FastFile mode")
        named = listing([as_text(path.name) for path in others])
        raise DataError(f"there is no train channel beside {named}", LAYOUT_HINT)
    if paths.channel(SPLIT_CHANNEL).is_dir():
        return channels | {SPLIT_CHANNEL: paths.channel(SPLIT_CHANNEL)}
    if set(channels) == {"train"} and _holds_splits(channels["train"]):
        return find_channels(channels["train"])
    return channels


def channel_of(paths: MlPaths, split: str) -> Path | None:
    """The folder of one split of a job; None where there is none, or no longer."""
    try:
        return channels_of_job(paths).get(split)
    except (DataError, OSError):
        return None


def _holds_splits(folder: Path) -> bool:
    """Whether it is a whole data set: nothing but folders of splits, one of them for train."""
    folders = {entry.name for entry in entries_of(folder) if entry.kind is Kind.FOLDER and not entry.is_hidden}
    return all(split_named(name) for name in folders) and "train" in {split_named(name) for name in folders}


def beside_channels(root: Path) -> tuple[DataFinding, ...]:
    """What lies in a data set beside the folders of `find_channels`, and so is used for nothing."""
    over = PassedOver()
    for entry in entries_of(root):
        if split_named(entry.name):
            if entry.kind is not Kind.FOLDER:
                over.add(Why.UNUSED_SPLIT, entry.name)
        elif not entry.take_down_hidden(over):
            over.add(Why.UNUSED, entry.name, is_folder=entry.kind is Kind.FOLDER)
    return over.findings()


def scan(channels: Mapping[str, Path], *, valid_fraction: float, seed: int) -> ImageFolders:
    """Lists the images below the channels. The result depends on names only, never on the file system's order.

    Hidden files, what systems leave behind, and files that are not images by their suffix are passed over, and said in
    the findings. Without a `valid` channel the share
    `valid_fraction` of each class of train (rounded, at least one image of a class that has two) becomes valid, chosen
    by a hash of seed and name: adding images later does not reshuffle the others.

    Args:
        channels: split name -> folder; `train` is required, `valid` and `test` are optional. With `split`, the images
            are those that its list names below `train`, and nothing is split off.
        valid_fraction: share of train to split off, 0..1.
        seed: chooses which images are split off.

    Raises:
        DataError: a folder is missing or has no images in class folders, train has fewer than two classes or an empty
            one, or valid or test has a class that train lacks.
    """
    if "train" not in channels:
        raise DataError("there is no train channel", LAYOUT_HINT)
    if SPLIT_CHANNEL in channels:
        return planned(read_plan(channels[SPLIT_CHANNEL], channels["train"]))
    over = {name: PassedOver(as_text(channels[name].name)) for name in SPLIT_FOLDERS if name in channels}
    try:
        images = {name: class_images(channels[name], name, found) for name, found in over.items()}
        classes = _check_classes(channels["train"], images)
    except DataError as error:
        raise with_reasons(error, _together(over.values())) from None
    for name, found in over.items():
        for unknown in sorted(set(images[name]) - set(classes)):  # without images, or it would be an error
            found.add(Why.EMPTY_CLASS, unknown, is_folder=True)
    split_off = "valid" not in images
    if split_off:
        images["train"], images["valid"] = _split_off(images["train"], channels["train"], valid_fraction, seed)
    roots = {"valid": channels["train"], **channels}
    splits = {name: _split(name, roots[name], classes, found) for name, found in images.items()}
    test = splits.get("test")
    return ImageFolders(classes, splits["train"], splits["valid"], test, split_off, _together(over.values()).findings())


def planned(plan: SplitPlan) -> ImageFolders:
    """The images of a data set that was split by a plan. Raises DataError as `scan`."""
    images = by_split(plan.images, plan.root)
    if "train" not in images:
        raise DataError("no image is in the split train", LAYOUT_HINT)
    classes = _check_classes(plan.root, images)
    if "valid" not in images:
        message = f"no class in {plan.root} has two images that differ, so none can be split off for validation"
        raise DataError(message, "add images")
    train, valid, test = (
        replace(_split(name, plan.root, classes, images.get(name, {})), classes=classes) for name in SPLIT_FOLDERS
    )
    return ImageFolders(classes, train, valid, test if len(test) else None, False, plan.findings, plan)


def _together(over: Iterable[PassedOver]) -> PassedOver:
    found = PassedOver()
    for each in over:
        found.include(each)
    return found


def with_reasons(error: DataError, over: PassedOver) -> DataError:
    """The error of images that are missing, with what may be why: of photos in other formats it is these."""
    reasons = [finding for finding in over.findings() if finding.kind != LEFTOVER]
    other = [finding.hint for finding in reasons if finding.hint == Why.FORMAT.value[1]]
    hint = other[0] if other and error.hint == LAYOUT_HINT else error.hint
    return DataError(error.message, "; ".join([hint, *(finding.line for finding in reasons)]))


def name_in(split: Split, path: Path) -> str:
    """One of the split's files as a finding names it: below the channel that it comes from."""
    return as_text(Path(split.root.name) / path.relative_to(split.root))


def image_files(folder: Path, over: PassedOver | None = None) -> list[Path]:
    """The images anywhere below `folder`, sorted by path; links are followed, hidden files and folders are not.

    A dangling link counts as an image, so that reading it names it. Raises DataError when a folder cannot be listed.

    Args:
        over: takes down what is no image.
    """
    found = Walk(folder, PassedOver() if over is None else over).images()
    return sorted(found, key=str)  # all begin with the folder's


def loose_images(folder: Path) -> list[Path]:
    """The images in `folder` itself, sorted, and none of those below. Raises DataError when it cannot be listed."""
    return [entry.path for entry in entries_of(folder) if _is_loose(entry)]


def _is_loose(entry: Entry) -> bool:
    return entry.has_image_name and entry.kind is not Kind.FOLDER and not entry.is_hidden


def class_images(root: Path, name: str, over: PassedOver) -> dict[str, list[Path]]:
    """Class name -> sorted images; a class without images has an empty list. A name that is not UTF-8 has escapes."""
    _require_folder(root, name)
    images: dict[str, list[Path]] = {}
    walk = Walk(root, over)
    for entry in entries_of(root):
        if entry.take_down_hidden(over):
            continue
        if entry.kind is Kind.FOLDER:
            # macOS writes é as two code points, Linux as one: the same class in train and test must stay the same class
            of_class = images.setdefault(unicodedata.normalize("NFC", entry.name), [])
            of_class += sorted(walk.images(entry), key=str)  # all begin with the root's
        elif _is_loose(entry):
            over.add(Why.LOOSE, entry.name)
        elif entry.kind in (Kind.NOWHERE, Kind.CIRCLE):
            over.add(Why.BROKEN_CLASS, entry.name)
        else:
            entry.require_open()
            over.add(Why.SPECIAL if entry.kind is Kind.SPECIAL else Why.BESIDE, entry.name)
    if not any(images.values()):
        if loose := loose_images(root):
            message = f"the {name} folder {root} has {len(loose)} images of its own but none in class folders"
            hint = "put the images of each class into a folder named for the class"
            if name == "test":
                hint += ", or move the folder away: `predict` answers to images without labels"
            raise DataError(message, hint)
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
            known = {plain_name(name): name for name in classes}
            meant = [f"{known[plain_name(name)]!r} for {name!r}" for name in unknown if plain_name(name) in known]
            hint = f"the names must be the same{f': {listing(meant)}?' if meant else ''}"
            raise DataError(f"{split} has classes that train lacks: {listing(unknown)}", hint)
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
