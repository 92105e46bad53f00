"""The three tables of the test images: counts by class, confusions, and the answer to each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.outputs import CONFUSION, PER_CLASS, TEST_PREDICTIONS
from image_classifier.contract.text import as_text
from image_classifier.training.evaluate import Evaluation
from image_classifier.vision.folders import Split


def write_test_results(folder: Path, test: Evaluation, split: Split, classes: Sequence[str]) -> None:
    """Writes the three tables. Raises PlatformError on a full disk."""
    confusion = confusion_matrix(test, len(classes))
    PER_CLASS.write(folder, per_class(confusion, classes))
    rows = ([name, *counts] for name, counts in zip(classes, confusion.tolist(), strict=True))
    CONFUSION.write(folder, rows, further=classes)
    columns = (test.indices.tolist(), test.labels.tolist(), test.predicted.tolist(), test.probability.tolist())
    predictions = (
        (
            as_text(split.paths[index].relative_to(split.root)),
            classes[label],
            classes[predicted],
            f"{probability:.6f}",
        )
        for index, label, predicted, probability in zip(*columns, strict=True)
    )
    TEST_PREDICTIONS.write(folder, predictions)


def confusion_matrix(evaluation: Evaluation, num_classes: int) -> NDArray[np.int64]:
    """(classes, classes) int64: number of images of the row's class that were taken for the column's."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (evaluation.labels, evaluation.predicted), 1)
    return matrix


def per_class(confusion: NDArray[np.int64], classes: Sequence[str]) -> list[tuple[str, int, str, str, str]]:
    """Class, images, precision, recall, F1; 0 where a ratio has no denominator (scikit-learn's zero_division=0)."""
    hits, images, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(images, 1)
    f1 = 2 * hits / np.maximum(predicted + images, 1)
    return [
        (name, int(images[i]), f"{precision[i]:.4f}", f"{recall[i]:.4f}", f"{f1[i]:.4f}")
        for i, name in enumerate(classes)
    ]
