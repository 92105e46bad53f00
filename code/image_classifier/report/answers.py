"""Facts about what the network answered to the test images: per class, confusions, the worst mistakes, thumbnails."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from image_classifier.contract.errors import RequestError
from image_classifier.contract.outputs import CONFUSION, PER_CLASS, TEST_PREDICTIONS, Table
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.scores import balanced_accuracy, confusion_matrix, macro_f1
from image_classifier.report.sources import Sources
from image_classifier.vision.confidence import calibration_error, confidence_bins, exact_interval
from image_classifier.vision.decode import decode
from image_classifier.vision.folders import channel_of
from image_classifier.vision.temperature import parse_calibration

SCORES = ("balanced_accuracy", "macro_f1", "calibration_error")  # metrics' quantities
MAX_MATRIX_CLASSES = 40  # more rows cannot be read; the CSV file has them all
MAX_CLASS_ROWS = 300
MAX_PAIRS = 5
IMAGES_A_PAIR = 3
MAX_MISTAKES = 12
THUMBNAIL_SIDE = 132  # pixels: 88 in the page, sharp on a dense screen
THUMBNAIL_QUALITY = 72


def per_class(sources: Sources) -> list[dict[str, Any]]:
    """Rows of per_class.csv with the 95 % interval of the recall, worst recall first."""
    rows = []
    columns = (str, int, float, float, float)
    for name, images, precision, recall, f1 in _body(sources, PER_CLASS, "no test images were answered", columns):
        low, high = exact_interval(recall * images, images)
        numbers = {"precision": precision, "recall": recall, "f1": f1, "low": low, "high": high}
        rows.append({"class": name, "images": images, **numbers})
    return sorted(rows, key=lambda row: (row["recall"], row["f1"]))


def what_was_answered(sources: Sources, run: RunData, result: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """For valid and test: `images` that were answered, of those `largest_class` and `largest_five`; as the trainer
    wrote it, or, of an earlier version's job, counted in its tables and classes.jsonl."""
    found = {name: dict(counts) for name, counts in (result.get("answered") or {}).items()}
    counted = {"test": [int(row[1]) for row in PER_CLASS.read(sources.data) if row[1].isdecimal()]}
    for each in run.classes:
        if each.mode == "eval":
            counted["valid"] = list(each.labels)
    for split, counts in counted.items():
        if split not in found and sum(counts) > 0:
            largest = sorted(counts, reverse=True)
            found[split] = {"images": sum(counts), "largest_class": largest[0], "largest_five": sum(largest[:5])}
    return found


def scores(sources: Sources, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Macro-F1, balanced accuracy and calibration of the split that the outcome's accuracy is of.

    The numbers are the trainer's; of an earlier version's job they are made of its tables. `bins` are of the test
    images: the trainer keeps no answers to validation images. None where nothing of it is known.
    """
    metrics = result.get("metrics") or {}
    split = "test" if "test:accuracy" in metrics else "validation"
    found: dict[str, Any] = {name: metrics.get(f"{split}:{name}") for name in SCORES}
    rows = [row for row in TEST_PREDICTIONS.read(sources.data) if _is_share(row[3])] if split == "test" else []
    right = np.array([label == predicted for _, label, predicted, *_ in rows], np.bool_)
    bins = confidence_bins(np.array([float(row[3]) for row in rows]), right) if rows else []
    if rows and None in found.values():
        classes = {name: index for index, name in enumerate(sorted({name for row in rows for name in row[1:3]}))}
        labels, predicted = (np.array([classes[row[column]] for row in rows], np.int64) for column in (1, 2))
        table = confusion_matrix(labels, predicted, len(classes))
        made = (balanced_accuracy(table), macro_f1(table), calibration_error(bins))
        found |= {name: value for name, value in zip(SCORES, made, strict=True) if found[name] is None}
    if all(value is None for value in found.values()):
        return None
    calibration = dict(parse_calibration(result.get("calibration")))
    plain = {name.partition(":")[2]: value for name, value in (result.get("uncalibrated") or {}).items()}
    return {
        "split": split,
        **found,
        "loss": metrics.get(f"{split}:loss"),
        "bins": [dataclasses.asdict(each) for each in bins],
        "calibration": calibration,
        "abstain": result.get("abstain") or {},
        "uncalibrated": plain if split == "test" else {},
    }


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def confusion(sources: Sources) -> dict[str, Any] | None:
    """The confusion matrix, cut to the classes with the most errors when there are many, and the top confused pairs."""
    header, rows = sources.table(CONFUSION, "no confusion matrix without test images")
    if len(rows) < 2:
        return None
    classes = header[1:]
    try:
        counts = [[int(value) for value in row[1:]] for row in rows]
    except ValueError:
        counts = []
    if any(len(row) != len(classes) for row in counts) or len(counts) != len(classes):
        sources.note(CONFUSION.name, "damaged")
        return None
    pairs: list[dict[str, Any]] = [
        {"true": classes[i], "predicted": classes[j], "images": images, "of": sum(row)}
        for i, row in enumerate(counts)
        for j, images in enumerate(row)
        if i != j and images
    ]
    pairs.sort(key=lambda pair: (-pair["images"], -pair["images"] / pair["of"], pair["true"], pair["predicted"]))
    shown = _most_confused(counts)
    return {
        "num_classes": len(classes),
        "classes": [classes[i] for i in shown],
        "counts": [[counts[i][j] for j in shown] for i in shown],
        "errors": sum(pair["images"] for pair in pairs),
        "pairs": pairs[:MAX_PAIRS],
    }


def _most_confused(counts: Sequence[Sequence[int]]) -> list[int]:
    """Indices of the classes to show, in their order: all, or those with the most errors made and attracted."""
    size = len(counts)
    if size <= MAX_MATRIX_CLASSES:
        return list(range(size))
    errors = [sum(counts[i]) + sum(row[i] for row in counts) - 2 * counts[i][i] for i in range(size)]
    return sorted(sorted(range(size), key=lambda i: -errors[i])[:MAX_MATRIX_CLASSES])


def mistakes(sources: Sources, pairs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The wrong answers that were given with the most confidence. Also gives each of `pairs` its example images."""
    columns = (str, str, str, float)
    rows = _body(sources, TEST_PREDICTIONS, "no single answers without test images", columns)
    wrong: list[dict[str, Any]] = [
        {"path": path, "true": label, "predicted": predicted, "probability": probability}
        for path, label, predicted, probability in rows
        if label != predicted
    ]
    wrong.sort(key=lambda row: (-row["probability"], row["path"]))
    for pair in pairs:
        same = (row for row in wrong if (row["true"], row["predicted"]) == (pair["true"], pair["predicted"]))
        pair["examples"] = [row["path"] for _, row in zip(range(IMAGES_A_PAIR), same, strict=False)]
    return wrong[:MAX_MISTAKES]


def thumbnails(sources: Sources, wanted: Iterable[str], earlier: Mapping[str, str]) -> dict[str, str]:
    """Path below the test folder -> a small JPEG as a data URI; from an earlier report where the image is gone."""
    root = None if sources.paths is None else channel_of(sources.paths, "test")
    found = {}
    for path in dict.fromkeys(wanted):
        uri = thumbnail(root / path) if root is not None and is_below(path) else None
        if uri is None:
            uri = earlier.get(path)
        if uri is not None:
            found[path] = uri
    return found


def is_below(path: str) -> bool:
    """Whether the path stays below the folder it is appended to."""
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def thumbnail(path: Path) -> str | None:
    """A picture as a small JPEG in a data URI; None when it cannot be read."""
    try:
        image = decode(path, min_side=THUMBNAIL_SIDE)
    except RequestError:
        return None
    image.thumbnail((2 * THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _body(sources: Sources, table: Table, what: str, columns: Sequence[type]) -> list[list[Any]]:
    """The rows below the header whose columns are all there and of their types: a full disk's last line may not be."""
    rows = []
    for row in sources.table(table, what)[1]:
        with suppress(ValueError):
            rows.append([kind(value) for kind, value in zip(columns, row[: len(columns)], strict=True)])
    return rows
