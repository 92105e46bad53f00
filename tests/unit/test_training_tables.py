"""The tables of a job and its golden samples."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from image_classifier.training.evaluate import Evaluation
from image_classifier.training.golden import MAX_BYTES, golden_samples
from image_classifier.training.tables import write_test_results
from image_classifier.vision.folders import Split
from image_classifier.vision.preprocess import Preprocessing, load

PREPROCESSING = Preprocessing.for_image_size(32)
CLASSES = ("cat, tabby", "dög", "eel")


def read_csv(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def test_tables_of_the_test_images(tmp_path: Path) -> None:
    paths = tuple(tmp_path / CLASSES[label] / f"{i}.jpg" for i, label in enumerate((0, 0, 0, 1)))
    test = Evaluation(
        loss=0.5,
        accuracy=0.75,
        top5_accuracy=1.0,
        indices=np.array([0, 1, 3]),  # the image at 2 could not be read
        labels=np.array([0, 0, 1]),
        predicted=np.array([0, 1, 1]),
        probability=np.array([0.9, 0.6, 0.7], np.float32),
    )
    write_test_results(tmp_path, test, Split("test", tmp_path, paths, (0, 0, 0, 1)), CLASSES)
    assert read_csv(tmp_path / "confusion.csv") == [
        ["true \\ predicted", *CLASSES], ["cat, tabby", "1", "1", "0"], ["dög", "0", "1", "0"], ["eel", "0", "0", "0"],
    ]  # fmt: skip
    assert read_csv(tmp_path / "per_class.csv") == [
        ["class", "images", "precision", "recall", "f1"],
        ["cat, tabby", "2", "1.0000", "0.5000", "0.6667"],
        ["dög", "1", "0.5000", "1.0000", "0.6667"],
        ["eel", "0", "0.0000", "0.0000", "0.0000"],
    ]
    assert read_csv(tmp_path / "test_predictions.csv")[2:] == [
        ["cat, tabby/1.jpg", "cat, tabby", "dög", "0.600000"],
        ["dög/3.jpg", "dög", "dög", "0.700000"],
    ]


class Net(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Two small pictures a class, one of them unreadable, and a large one."""
    rng = np.random.default_rng(0)
    paths = tuple(tmp_path / name for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"))
    for path, side in zip(paths, (40, 40, 300, 40), strict=True):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
    paths[0].write_bytes(b"")
    return Split("test", tmp_path, paths, (0, 0, 1, 1))


def test_golden_samples_take_classes_by_turns_and_expect_what_the_stored_bytes_give(split: Split) -> None:
    samples = golden_samples(Net(), split, PREPROCESSING, 3)
    assert [sample.name for sample in samples] == ["b/0.jpg", "a/1.png", "b/1.png"]  # a/0 is unreadable, b/0 was large
    assert split.paths[2].stat().st_size > MAX_BYTES > len(samples[0].image)
    assert samples[1].image == split.paths[1].read_bytes()
    for sample in samples:
        expected = torch.from_numpy(load(sample.image, PREPROCESSING)).mean((1, 2)).softmax(0)
        np.testing.assert_allclose(sample.probabilities, expected, atol=1e-6)
        assert abs(sum(sample.probabilities) - 1) < 1e-9


def test_golden_samples_are_as_many_as_there_are(split: Split) -> None:
    assert len(golden_samples(Net(), split, PREPROCESSING, 32)) == 3
