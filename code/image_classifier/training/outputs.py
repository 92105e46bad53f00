"""The files a job leaves in output/data, for people, for the launcher and for reports.

history.jsonl          one JSON object an epoch: metric name -> value
metrics.json           the result: outcome, best epoch, metrics, images, seconds
bad_images.json        path -> why it could not be read
per_class.csv          class, images, precision, recall, f1, of the test images
confusion.csv          a row for each true class, a column for each predicted one: number of test images
test_predictions.csv   path below the test folder, true and predicted class, probability of the latter
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.files import write_text
from image_classifier.training.evaluate import Evaluation
from image_classifier.vision.folders import Split


def write_history(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Writes history.jsonl. Raises PlatformError on a full disk, as every function here."""
    write_text(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))


def write_bad_images(folder: Path, unreadable: Mapping[str, str]) -> None:
    """Writes bad_images.json: path -> reason."""
    write_json(folder / "bad_images.json", dict(unreadable))


def write_json(path: Path, value: Any) -> None:
    """Writes any JSON value, readable by people; numbers must be finite."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_test_results(folder: Path, test: Evaluation, split: Split, classes: Sequence[str]) -> None:
    """Writes the three tables of the test images."""
    confusion = confusion_matrix(test, len(classes))
    write_csv(folder / "per_class.csv", ("class", "images", "precision", "recall", "f1"), per_class(confusion, classes))
    rows = ([name, *counts] for name, counts in zip(classes, confusion.tolist(), strict=True))
    write_csv(folder / "confusion.csv", ("true \\ predicted", *classes), rows)
    columns = (test.indices.tolist(), test.labels.tolist(), test.predicted.tolist(), test.probability.tolist())
    predictions = (
        (
            split.paths[index].relative_to(split.root).as_posix(),
            classes[label],
            classes[predicted],
            f"{probability:.6f}",
        )
        for index, label, predicted, probability in zip(*columns, strict=True)
    )
    write_csv(folder / "test_predictions.csv", ("path", "label", "predicted", "probability"), predictions)


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


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a comma-separated table with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
