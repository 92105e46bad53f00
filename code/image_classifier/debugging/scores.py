"""What answers are worth besides their accuracy: balanced accuracy, macro-F1, and whether confidence can be believed.

One function each for the numbers that the training logs and the report shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15  # of Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2


@dataclass(frozen=True, kw_only=True)
class ConfidenceBin:
    """The answers whose probability lies in (low, high]; the first bin has 0 too.

    Args:
        images: how many.
        confidence: their mean probability.
        accuracy: the share of them that is right.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


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


def confidence_bins(
    probability: NDArray[np.floating], right: NDArray[np.bool_], num_bins: int = CALIBRATION_BINS
) -> list[ConfidenceBin]:
    """The answers by the probability of the class they name, in bins of equal width; bins without answers are left out.

    Args:
        probability: (n,) of the named class, 0..1.
        right: (n,) whether it is the true one.
    """
    confidence = np.nan_to_num(np.asarray(probability, np.float64))  # of a network that diverged
    place = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    return [
        ConfidenceBin(
            low=index / num_bins,
            high=(index + 1) / num_bins,
            images=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(right[inside].mean()),
        )
        for index in range(num_bins)
        if (inside := place == index).any()
    ]


def calibration_error(bins: Sequence[ConfidenceBin]) -> float:
    """The expected calibration error (Naeini et al. 2015; Guo et al. 2017, equation 3): the mean of
    |accuracy - confidence| over the bins, weighted by their images. 0..1; 0 without an answer.

    Of few images even a perfectly calibrated network has one above 0: within a bin of n images an accuracy moves by
    chance by about 0.4 / sqrt(n).
    """
    total = sum(each.images for each in bins)
    return sum(each.images * abs(each.accuracy - each.confidence) for each in bins) / max(total, 1)
