"""Is this data set fit for training? Every image is decoded; what is found is reported, nothing is changed.

Errors, which training would fail on or which make its numbers wrong:
    unreadable      an image that cannot be decoded: truncated, damaged, empty, another format, too large
    leakage         the same bytes in two splits: the test would ask for what was learned by heart
    contradiction   the same bytes in two classes of one split: one label must be wrong
    lost            a class of which no image of a split can be decoded

Warnings, which a person should know:
    duplicate       the same bytes twice in one class of one split
    imbalance       the largest class of train has IMBALANCE_RATIO times the images of the smallest, or more
    few             a class of train with fewer than FEW_IMAGES images
    missing         a class without images in valid or test: its accuracy cannot be known
    lookalike       pictures that look the same and are not the same bytes (`vision/lookalikes.py`); in two splits, the
                    test asks for what was learned by heart
    small           images with a side shorter than SMALL_SIDE
    flat, faint     pictures of one colour, and pictures that use few of their 256 levels (`vision/contrast.py`)
    blank, dark, overexposed, pale, blurred, odd_size, odd_shape
                    pictures that a person would throw away, and a set that is like that as a whole would not; of the
                    latter there is a note (`vision/picture_quality.py`)
    twins           classes whose names differ by case, spaces, hyphens or Unicode form only
    ignored         whatever is passed over, by reason (`vision/passed_over.py`)

Notes, which are no reason to do anything:
    leftover        what systems and programs leave in folders: no class and no image

Folders that cannot be used at all (no train folder, one class, ...) are a DataError, as in training.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import ClassifierError, PlatformError, describe
from image_classifier.contract.files import open_plain
from image_classifier.contract.machine import usable_cores
from image_classifier.contract.text import as_text
from image_classifier.vision.contrast import contrast_findings, contrast_of
from image_classifier.vision.data_set import open_data
from image_classifier.vision.decode import check_file_size, decode
from image_classifier.vision.findings import LEFTOVER, DataFinding, listing
from image_classifier.vision.fingerprint import fingerprint
from image_classifier.vision.folders import ImageFolders
from image_classifier.vision.lookalikes import Looks, groups_of, looks_of
from image_classifier.vision.picture_quality import Quality, quality_findings, quality_of
from image_classifier.vision.twin_classes import twin_findings

IMBALANCE_RATIO = 5
IMBALANCE_HINT = "add images of the small classes, or train with --class-weights balanced or --sampler balanced"
FEW_IMAGES = 10
SMALL_SIDE = 32  # pixels; the smallest image_size there is

_IMAGES_A_WORKER = 1000  # fewer are decoded sooner than another process has started (about 1 s)
_MIN_IMAGES_A_CALL = 8

Progress = Callable[[int, int], None]
_Inspected = tuple[Looks, Quality | None, str, str]


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What `check_dataset` found.

    Args:
        root: the data set.
        classes: sorted class names.
        counts: split -> class -> number of images, unreadable ones included.
        valid_split_off: there is no valid folder, so valid is a share of train.
        split_made: neither folders nor the data set say which image is in which split, so that training splits them.
        smallest, largest: (width, height) of the images with the fewest and the most pixels; None without any.
        fingerprint: names the data (`vision.fingerprint`).
    """

    root: str
    classes: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    valid_split_off: bool
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    fingerprint: str
    errors: tuple[DataFinding, ...]
    warnings: tuple[DataFinding, ...]
    notes: tuple[DataFinding, ...] = ()
    split_made: bool = False

    @property
    def ok(self) -> bool:
        """No errors; there may be warnings."""
        return not self.errors

    @property
    def num_images(self) -> int:
        return sum(sum(of_class.values()) for of_class in self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, and `ok` and `num_images`."""
        return asdict(self) | {"ok": self.ok, "num_images": self.num_images}


@dataclass(frozen=True)
class _Image:
    """One inspected file; `quality` is None and `fault` says why when it cannot be decoded. `contrast` as of
    `contrast_of`."""

    split: str
    label: int
    name: str
    looks: Looks
    quality: Quality | None
    fault: str
    contrast: str

    @property
    def size(self) -> tuple[int, int] | None:
        return None if self.quality is None else self.quality.size


def check_dataset(
    root: Path,
    *,
    valid_fraction: float = TrainConfig.valid_fraction,
    test_fraction: float = TrainConfig.test_fraction,
    seed: int = TrainConfig.seed,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Decodes every image of the data set `root`.

    Args:
        root: a folder, or a list; see `vision/data_set.py`.
        valid_fraction, test_fraction, seed: as in training, for the split where no folders make one.
        workers: processes to decode in; None for one a core, or none at all for a small data set.
        progress: called with (images done, images in all) now and then.

    Raises:
        DataError: the folders cannot be used at all.
        PlatformError: a decoding process was killed, most likely for lack of memory.
    """
    data = open_data(root, valid_fraction=valid_fraction, test_fraction=test_fraction, seed=seed)
    folders = data.folders
    images = list(_inspect_all(data.root, folders, workers, progress))
    readable = [image for image in images if image.size is not None]
    sizes = sorted((image.size for image in images if image.size is not None), key=math.prod)
    counts = {
        split.name: {name: Counter(split.labels)[label] for label, name in enumerate(folders.classes)}
        for split in folders.splits
    }
    shown = {image.name: image.quality for image in readable if image.quality and not image.contrast}
    bad, usual = quality_findings(shown)
    return CheckReport(
        root=as_text(root),
        classes=folders.classes,
        counts=counts,
        valid_split_off=folders.valid_split_off,
        split_made=folders.plan is not None,
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
        fingerprint=fingerprint(folders),
        errors=(
            *_unreadable(images),
            *_lost(images, folders),
            *_same_bytes(readable, folders, errors=True),
        ),
        warnings=(
            *_same_bytes(readable, folders, errors=False),
            *_alike(readable, folders),
            *_uneven(counts),
            *_small(readable),
            *contrast_findings({image.name: image.contrast for image in readable}),
            *bad,
            *twin_findings(folders),
            *(finding for finding in data.findings if finding.kind != LEFTOVER),
        ),
        notes=(*usual, *(finding for finding in data.findings if finding.kind == LEFTOVER)),
    )


def _inspect_all(root: Path, folders: ImageFolders, workers: int | None, progress: Progress | None) -> Iterator[_Image]:
    todo = [
        (split.name, label, path)
        for split in folders.splits
        for path, label in zip(split.paths, split.labels, strict=True)
    ]
    paths = [path for _, _, path in todo]
    for done, ((split, label, path), result) in enumerate(zip(todo, _map_inspect(paths, workers), strict=True), 1):
        yield _Image(split, label, _shown(path, root), *result)
        if progress is not None:
            progress(done, len(todo))


def _map_inspect(paths: Sequence[Path], workers: int | None) -> Iterator[_Inspected]:
    if workers is None:
        workers = min(usable_cores(), len(paths) // _IMAGES_A_WORKER)
    if workers <= 1:
        yield from map(_inspect, paths)
        return
    context = multiprocessing.get_context("spawn")  # the caller may have threads, which a fork would break
    try:
        with ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts) as pool:
            yield from pool.map(_inspect, paths, chunksize=_MIN_IMAGES_A_CALL)
    except BrokenProcessPool as error:
        raise PlatformError("a process that decodes images was killed", "is there enough memory?") from error


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the parent ends the pool, without a traceback from each worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _inspect(path: Path) -> _Inspected:
    """(digest and looks, quality or None, why it cannot be decoded, its contrast)."""
    try:
        check_file_size(path)
        with open_plain(path) as file:
            data = file.read()
    except OSError as error:
        return Looks(""), None, error.strerror or describe(error), ""
    except ClassifierError as error:
        return Looks(""), None, error.message, ""
    digest = hashlib.sha256(data).hexdigest()
    try:
        picture = decode(data)
    except ClassifierError as error:
        return Looks(digest), None, error.message, ""
    return looks_of(picture, digest), quality_of(picture), "", contrast_of(picture)


def _unreadable(images: Iterable[_Image]) -> Iterator[DataFinding]:
    for image in images:
        if image.size is None:
            yield DataFinding(
                kind="unreadable",
                message=f"{image.name}: {image.fault}",
                hint="replace the file with an intact copy, or remove it",
                files=(image.name,),
            )


def _lost(images: Iterable[_Image], folders: ImageFolders) -> Iterator[DataFinding]:
    there: dict[str, set[int]] = defaultdict(set)
    read: dict[str, set[int]] = defaultdict(set)
    for image in images:
        there[image.split].add(image.label)
        if image.size is not None:
            read[image.split].add(image.label)
    for split, labels in there.items():
        lost = [folders.classes[label] for label in sorted(labels - read[split])]
        if lost:
            message = f"no image of {listing(lost)} in {split} can be read"
            hint = "repair the files, or remove the class in every split"
            yield DataFinding(kind="lost", message=message, hint=hint)


def _same_bytes(images: Iterable[_Image], folders: ImageFolders, *, errors: bool) -> Iterator[DataFinding]:
    """A finding for each group of identical files: those that are errors, or those that are warnings."""
    groups = defaultdict(list)
    for image in images:
        groups[image.looks.digest].append(image)
    for same in groups.values():
        if len(same) == 1:
            continue
        files = tuple(image.name for image in same)
        splits = list(dict.fromkeys(image.split for image in same))
        labels = sorted({image.label for image in same})
        if len(splits) > 1:
            kind, where = "leakage", f"in {' and '.join(splits)}"
        elif len(labels) > 1:
            kind, where = "contradiction", f"in the classes {' and '.join(folders.classes[label] for label in labels)}"
        else:
            kind, where = "duplicate", f"{len(same)} times in {splits[0]}"
        if errors == (kind != "duplicate"):
            yield DataFinding(
                kind=kind,
                message=f"the same image is {where}",
                hint="keep one of the files",
                files=files,
            )


def _alike(images: Sequence[_Image], folders: ImageFolders) -> Iterator[DataFinding]:
    """A finding for each group of pictures that look alike; of the same bytes one stands for all."""
    first_of = {image.looks.digest: image for image in reversed(images)}
    distinct = list(first_of.values())[::-1]
    groups = defaultdict(list)
    for image, first in zip(distinct, groups_of([image.looks for image in distinct]), strict=True):
        groups[first].append(image)
    for same in groups.values():
        if len(same) == 1:
            continue
        splits = list(dict.fromkeys(image.split for image in same))
        labels = sorted({image.label for image in same})
        hint = "keep one of the files, unless a look at them tells a difference"
        if len(splits) > 1:
            where = f"in {' and '.join(splits)}"
        elif len(labels) > 1:
            where = f"in the classes {' and '.join(folders.classes[label] for label in labels)}"
        else:
            where = f"{len(same)} times in {splits[0]}"
        files = tuple(image.name for image in same)
        yield DataFinding(kind="lookalike", message=f"pictures that look alike are {where}", hint=hint, files=files)


def _uneven(counts: Mapping[str, Mapping[str, int]]) -> Iterator[DataFinding]:
    train = counts["train"]
    small, large = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
    if train[large] >= IMBALANCE_RATIO * train[small]:
        message = f"train is unbalanced: {train[large]} images of {large}, {train[small]} of {small}"
        yield DataFinding(kind="imbalance", message=message, hint=IMBALANCE_HINT)
    few = [f"{name} ({count})" for name, count in train.items() if count < FEW_IMAGES]
    if few:
        message = f"train has fewer than {FEW_IMAGES} images of {listing(few)}"
        yield DataFinding(kind="few", message=message, hint="add images; 50 a class or more are usual")
    for split, of_class in counts.items():
        none = [name for name, count in of_class.items() if count == 0]
        if none:
            yield DataFinding(kind="missing", message=f"{split} has no images of {listing(none)}", hint="add some")


def _small(images: Iterable[_Image]) -> Iterator[DataFinding]:
    files = tuple(image.name for image in images if image.size is not None and min(image.size) < SMALL_SIDE)
    if files:
        message = f"images with a side shorter than {SMALL_SIDE} pixels: {len(files)}"
        yield DataFinding(kind="small", message=message, hint="use larger originals", files=files)


def _shown(path: Path, root: Path) -> str:
    """The path below `root` as text that can be printed, whatever bytes the name has."""
    return as_text(path.relative_to(root))
