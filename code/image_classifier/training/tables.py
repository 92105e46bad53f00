"""The three tables of the test images: counts by class, confusions, and the answer to each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from image_classifier.contract.outputs import CONFUSION, PER_CLASS, TEST_PREDICTIONS
from image_classifier.contract.text import as_text
from image_classifier.debugging.scores import confusion_matrix, per_class
from image_classifier.training.evaluate import TOP_K, Evaluation
from image_classifier.vision.folders import Split


def write_test_results(folder: Path, test: Evaluation, split: Split, classes: Sequence[str]) -> None:
    """Writes the three tables. Raises PlatformError on a full disk."""
    confusion = confusion_matrix(test.labels, test.predicted, len(classes))
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


def what_guessing_gets(labels: Iterable[int]) -> dict[str, int]:
    """What an accuracy has to be compared with, see `outputs.read_result`: the number of images that were answered, of
    those the largest class's, and the five largest classes'."""
    counts = sorted(Counter(labels).values(), reverse=True)
    return {"images": sum(counts), "largest_class": sum(counts[:1]), "largest_five": sum(counts[:TOP_K])}


def readable_labels(split: Split, unreadable: Mapping[str, str]) -> list[int]:
    """The labels of the images of a split but for those that could not be read."""
    pairs = zip(split.paths, split.labels, strict=True)
    return [label for path, label in pairs if as_text(path) not in unreadable]


def guessing_metrics(answered: Mapping[str, Mapping[str, int]], epochs: int) -> dict[str, float]:
    """What the manifest has beside the metrics, so that a model far from its run can still be told from a guesser:
    `valid:images`, `valid:largest_class`, ..., and out of how many epochs the best was taken."""
    counts = {f"{split}:{name}": float(count) for split, of in answered.items() for name, count in of.items()}
    return {**counts, "epochs": float(epochs)}
