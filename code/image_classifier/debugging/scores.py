"""What answers are worth besides their accuracy: balanced accuracy and macro-F1.

One function each for the numbers that the training logs and the report shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """(classes, classes) int64: number of images of the row's class that were taken for the column's."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def balanced_accuracy(confusion: NDArray[np.int64]) -> float:
    """The mean recall of the classes that have images (scikit-learn's balanced_accuracy_score); 0 without an image.

    Guessing, whichever way, has 1 / number of these classes.
    """
    images = confusion.sum(1)
    there = images > 0
    return float((np.diag(confusion)[there] / images[there]).mean()) if there.any() else 0.0


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """The mean F1 of the classes that have images or were named (scikit-learn's f1_score, average="macro")."""
    both = confusion.sum(0) + confusion.sum(1)
    there = both > 0
    return float((2 * np.diag(confusion)[there] / both[there]).mean()) if there.any() else 0.0


def per_class(confusion: NDArray[np.int64], classes: Sequence[str]) -> list[tuple[str, int, str, str, str]]:
    """Class, images, precision, recall, F1; 0 where a ratio has no denominator (scikit-learn's zero_division=0)."""
    hits, images, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(images, 1)
    f1 = 2 * hits / np.maximum(predicted + images, 1)
    return [
        (name, int(images[i]), f"{precision[i]:.4f}", f"{recall[i]:.4f}", f"{f1[i]:.4f}")
        for i, name in enumerate(classes)
    ]
