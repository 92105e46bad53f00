"""What trainings of the head alone are tried on: pictures, and hyperparameters of a short job."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import jpeg

from image_classifier.contract.config import TrainConfig
from image_classifier.vision.folders import Split, scan

SIZE = 32
CONFIG = TrainConfig(
    weights="none", fine_tune="head", image_size=SIZE, epochs=4, batch_size=5, lr=0.05, warmup_epochs=0.0,
    amp="off", log_interval=1, workers=0, debug=False, profile=False, trace_steps=0,
)  # fmt: skip


def make_pictures(root: Path) -> Path:
    """Three classes of pictures of many shapes, in three splits."""
    for split, count in (("train", 6), ("valid", 4), ("test", 2)):
        for label in range(3):
            folder = root / split / f"class-{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                seed = 100 * label + number + {"train": 0, "valid": 30, "test": 60}[split]
                (folder / f"{number}.jpg").write_bytes(jpeg(seed, width=60 + 7 * number, height=50 + 5 * label))
    return root


def split_of(data: Path, name: str = "train") -> Split:
    folders = scan({each.name: each for each in data.iterdir()}, valid_fraction=0.2, seed=0)
    return next(split for split in folders.splits if split.name == name)
