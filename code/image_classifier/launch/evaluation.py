"""A model's answers held against labels: the images go the way that every request goes, and what comes back is judged.

The numbers are those of a training's test (`training/evaluate.py`), of the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.errors import DataError, PlatformError
from image_classifier.contract.outputs import CONFUSION, PER_CLASS, TEST_PREDICTIONS
from image_classifier.contract.text import as_text
from image_classifier.debugging.scores import balanced_accuracy, confusion_matrix, macro_f1, per_class
from image_classifier.launch.client import Answer
from image_classifier.vision.confidence import ConfidenceBin, calibration_error, confidence_bins, exact_interval
from image_classifier.vision.data_set import Labelled
from image_classifier.vision.findings import listing

ALL_LABELS = 1000  # the most that an answer may be asked for
TOP_K = 5
LEAST_PROBABILITY = 1e-12  # of a label, so that its logarithm is finite


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a model's answers to labelled images are worth.

    Args:
        model: its fingerprint.
        classes: sorted labels that the model knows.
        confusion: (classes, classes) int64, rows are the labels.
        metrics: name -> value, named as a training's are, without the split.
        interval: of the accuracy, 95 %.
        rows: file below the root, label, answer and its probability, of each image that was answered.
        failed: file -> why there is no answer.
    """

    model: str
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    metrics: dict[str, float]
    interval: tuple[float, float]
    bins: tuple[ConfidenceBin, ...]
    rows: tuple[tuple[str, str, str, float], ...]
    failed: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Everything but the single answers, as JSON values."""
        return {
            "model": self.model,
            "images": len(self.rows),
            "metrics": self.metrics,
            "accuracy_interval": self.interval,
            "classes": list(self.classes),
            "per_class": [dict(zip(PER_CLASS.columns, row, strict=True)) for row in self.per_class()],
            "confusion": self.confusion.tolist(),
            "calibration": [asdict(each) for each in self.bins],
            "failed": self.failed,
        }

    def per_class(self) -> list[tuple[str, int, str, str, str]]:
        """A row for each class, see `outputs.PER_CLASS`."""
        return per_class(self.confusion, self.classes)

    def confused(self) -> list[tuple[str, str, int]]:
        """Label, answer and how often, of the wrong answers, the most frequent first."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        pairs = [
            (self.classes[row], self.classes[column], int(wrong[row, column])) for row, column in np.argwhere(wrong)
        ]
        return sorted(pairs, key=lambda pair: -pair[2])

    def write(self, folder: Path) -> None:
        """Writes the tables that a training writes of its test images. Raises PlatformError."""
        PER_CLASS.write(folder, self.per_class())
        rows = ([name, *counts] for name, counts in zip(self.classes, self.confusion.tolist(), strict=True))
        CONFUSION.write(folder, rows, further=self.classes)
        TEST_PREDICTIONS.write(folder, ((*row[:3], f"{row[3]:.6f}") for row in self.rows))


def judge(images: Labelled, answers: Iterable[Answer]) -> Judged:
    """Compares answers, of all labels each and in the order of the images, with the labels.

    Raises:
        DataError: the model does not know one of the labels.
        PlatformError: there is no answer at all, or the answers come from several models.
    """
    known: list[tuple[Path, str, Answer]] = []
    failed: dict[str, str] = {}
    for path, label, answer in zip(images.files, images.labels, answers, strict=True):
        if answer.error:
            failed[as_text(path.relative_to(images.root))] = answer.error
            continue
        if not known:
            _require_known(images, answer)
        elif answer.model != known[0][2].model:
            raise PlatformError("the endpoint changed its model in the middle", "ask again")
        known.append((path, label, answer))
    if not known:
        raise PlatformError("no image was answered", next(iter(failed.values()), ""))
    return _judged(images.root, known, failed)


def _require_known(images: Labelled, answer: Answer) -> None:
    labels = {name for name, _ in answer.predictions}
    if unknown := sorted(set(images.labels) - labels):
        hint = f"it knows {listing(sorted(labels))}"
        raise DataError(f"the model does not know {listing(unknown)}", hint)


def _judged(root: Path, known: Sequence[tuple[Path, str, Answer]], failed: dict[str, str]) -> Judged:
    classes = tuple(sorted(name for name, _ in known[0][2].predictions))
    index = {name: number for number, name in enumerate(classes)}
    labels = np.array([index[label] for _, label, _ in known], np.int64)
    predicted = np.array([index[answer.predictions[0][0]] for _, _, answer in known], np.int64)
    probability = np.array([answer.predictions[0][1] for _, _, answer in known], np.float64)
    losses = [-math.log(max(dict(answer.predictions)[label], LEAST_PROBABILITY)) for _, label, answer in known]
    in_top = [label in {name for name, _ in answer.predictions[:TOP_K]} for _, label, answer in known]
    confusion = confusion_matrix(labels, predicted, len(classes))
    bins = confidence_bins(probability, predicted == labels)
    hits = int((predicted == labels).sum())
    return Judged(
        model=known[0][2].model,
        classes=classes,
        confusion=confusion,
        metrics={
            "loss": float(np.mean(losses)),
            "accuracy": hits / len(known),
            "top5_accuracy": float(np.mean(in_top)),
            "balanced_accuracy": balanced_accuracy(confusion),
            "macro_f1": macro_f1(confusion),
            "calibration_error": calibration_error(bins),
        },
        interval=exact_interval(hits, len(known)),
        bins=tuple(bins),
        rows=tuple((as_text(path.relative_to(root)), label, *answer.predictions[0]) for path, label, answer in known),
        failed=failed,
    )
