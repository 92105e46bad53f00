"""Facts about the images a job was given: how many of each class, how large, which could not be read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import ClassifierError
from image_classifier.contract.image_formats import PILLOW_NAMES
from image_classifier.contract.outputs import BAD_IMAGES, DATASET, FINDINGS
from image_classifier.contract.paths import MlPaths
from image_classifier.report.sources import Sources
from image_classifier.vision.findings import parse_levels
from image_classifier.vision.fingerprint import fingerprint
from image_classifier.vision.folders import ImageFolders, channels_of_job, scan

MAX_FILES = 20  # named of one finding
SIZES = ("sample", "median_width", "median_height", "shortest_side", "longest_side")  # what is said of them, in pixels
MAX_HEADERS = 200  # pictures whose size is looked at: the median of so many is good to a few percent


def describe_data(sources: Sources, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """`facts_of` the images as the job found them; of a job that left none, as its channels are now. None without
    either."""
    found = DATASET.read_object(sources.data)
    if _is_sound(found):
        return found
    folders = _scan(sources.paths, config) if sources.paths is not None else None
    return None if folders is None else facts_of(folders, fingerprint(folders))


def facts_of(folders: ImageFolders, fingerprint: str) -> dict[str, Any]:
    """Counts by split and class, picture sizes and the fingerprint.

    Args:
        fingerprint: of `vision/fingerprint.py`.
    """
    counts = {split.name: Counter(folders.classes[label] for label in split.labels) for split in folders.splits}
    return {
        "classes": list(folders.classes),
        "counts": {name: dict(count) for name, count in counts.items()},
        "valid_split_off": folders.valid_split_off,
        "fingerprint": fingerprint,
        "sizes": _sizes(folders.train.paths),
    }


def _is_sound(found: Mapping[str, Any]) -> bool:
    """Whether it is what `facts_of` gives."""
    classes, counts, sizes = found.get("classes"), found.get("counts"), found.get("sizes")
    if not isinstance(classes, list) or not isinstance(counts, dict) or not isinstance(found.get("fingerprint"), str):
        return False
    images = [count for split in counts.values() for count in (split.values() if isinstance(split, dict) else [None])]
    numbers = [sizes.get(name) for name in SIZES] if isinstance(sizes, dict) else [] if sizes is None else [None]
    return (
        all(isinstance(name, str) for name in classes)
        and all(type(number) is int for number in (*images, *numbers))
        and isinstance(found.get("valid_split_off"), bool)
    )


def unreadable(sources: Sources) -> dict[str, str]:
    """Path -> reason, of the images that were skipped; names only, the folders above are nobody's business."""
    found = sources.document(BAD_IMAGES, "whether images were skipped is not known")
    return {
        "/".join(Path(path).parts[-3:]): str(reason).replace(str(path), "the file") for path, reason in found.items()
    }


def findings(sources: Sources) -> list[dict[str, Any]]:
    """What else is to be said of the images: message, hint and the first of the files; empty when nothing was written,
    as by earlier versions."""
    found = parse_levels(FINDINGS.read_object(sources.data))
    return [{"message": each.message, "hint": each.hint, "files": list(each.files[:MAX_FILES])} for each in found]


def _scan(paths: MlPaths, config: Mapping[str, Any]) -> ImageFolders | None:
    fraction = float(config.get("valid_fraction", TrainConfig.valid_fraction))
    try:
        return scan(channels_of_job(paths), valid_fraction=fraction, seed=int(config.get("seed", TrainConfig.seed)))
    except (ClassifierError, OSError):
        return None


def _sizes(paths: Sequence[Path]) -> dict[str, Any] | None:
    """Width and height of the median picture, shortest and longest side, from the headers of an even sample."""
    sizes = []
    for path in paths[:: max(1, math.ceil(len(paths) / MAX_HEADERS))]:
        # any error of Pillow's many: what cannot be read is named elsewhere, and a job does not end for its size
        with suppress(Exception), Image.open(path, formats=PILLOW_NAMES) as image:
            sizes.append(image.size)
    if not sizes:
        return None
    sides = [side for size in sizes for side in size]
    medians = (round(median(width for width, _ in sizes)), round(median(height for _, height in sizes)))
    return dict(zip(SIZES, (len(sizes), *medians, min(sides), max(sides)), strict=True))
