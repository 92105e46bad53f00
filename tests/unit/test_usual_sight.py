"""The drift watch's reference at the end of a training: what the model makes of the validation images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import jpeg
from tests.head_training import CONFIG
from tests.unit.test_head_jobs import job

from image_classifier.contract.config import TrainConfig
from image_classifier.vision.artifact import load_model
from image_classifier.vision.drift import STATISTICS, picture_statistics
from image_classifier.vision.model import build_model, load_safetensors
from image_classifier.vision.preprocess import load_pixels, normalise

SHORT = replace(CONFIG, epochs=1, feature_views=1, augment="none")


def make_data(root: Path, valid: int) -> Path:
    """Two classes; the validation images of one are darker, and one of them is no image."""
    for split, count in (("train", 4), ("valid", valid)):
        for label in range(2):
            folder = root / split / f"class-{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.jpg").write_bytes(jpeg(100 * label + number + 50 * (split == "valid")))
    (root / "valid" / "class-0" / "0.jpg").write_bytes(b"no image")
    return root


@pytest.mark.parametrize(
    "config",
    [SHORT, replace(SHORT, fine_tune="full", batch_size=4)],
    ids=["a head on features", "all of it"],
)
def test_the_reference_is_what_the_model_makes_of_the_validation_images(config: TrainConfig, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", valid=13)
    artifact = load_model(job(tmp_path / "job", data, config).model)
    model = build_model(2).eval()
    load_safetensors(model, artifact.weights_path)
    rows = []
    for path in sorted(data.glob("valid/*/*.jpg")):
        if path.read_bytes() == b"no image":
            continue
        pixels = load_pixels(path, artifact.preprocessing)
        with torch.inference_mode():
            batch = torch.from_numpy(normalise(pixels, artifact.preprocessing))[None]
            confidence, top1 = (model(batch)[0].double() / artifact.manifest.temperature).softmax(0).max(0)
        rows.append([float(top1), float(confidence), *picture_statistics(pixels[None])[0]])
    assert artifact.manifest.reference.keys() == set(STATISTICS)
    for name, column in zip(STATISTICS, np.array(rows).T, strict=True):
        known = artifact.manifest.reference[name]
        assert sum(known.counts) == 25
        assert np.abs(np.array(known.edges)).max() <= np.abs(column).max() * 1.01 + 1e-6
        moved = sum(abs(a - b) for a, b in zip(known.counts, counted(known.edges, column), strict=True)) / 2
        assert moved <= 2, name  # a value on an edge may fall to either side of it
    again = load_model(job(tmp_path / "job", data, config).model)  # goes on after its last epoch
    assert again.manifest.reference == artifact.manifest.reference


def counted(edges: tuple[float, ...], column: np.ndarray) -> list[int]:
    return np.bincount(np.searchsorted(edges, column, "right"), minlength=len(edges) + 1).tolist()
