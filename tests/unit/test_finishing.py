"""The end of a training: its test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import draw_norms
from tests.head_training import CONFIG, SIZE, make_pictures

from image_classifier.debugging.observer import Observer
from image_classifier.training.bad_images import BadImages
from image_classifier.training.checkpoint import Checkpoints, Progress
from image_classifier.training.data import ImageDataset, Loader
from image_classifier.training.finishing import run_test
from image_classifier.training.head_only import served_extraction
from image_classifier.training.optim import make_optimizer
from image_classifier.training.setup import Setup
from image_classifier.training.state import Training
from image_classifier.training.stop import StopFlag
from image_classifier.vision.fingerprint import digests
from image_classifier.vision.folders import scan
from image_classifier.vision.model import build_model
from image_classifier.vision.preprocess import Preprocessing


def test_the_test_of_a_whole_network_is_the_same_on_features(tmp_path: Path) -> None:
    config = CONFIG.replace(fine_tune="full", batch_size=4)
    data = make_pictures(tmp_path / "data")
    folders = scan({each.name: each for each in data.iterdir()}, valid_fraction=0.2, seed=0)
    assert folders.test is not None
    folders.test.paths[1].write_bytes(b"no picture")
    torch.manual_seed(3)
    network = build_model(3)
    draw_norms(network)
    preprocessing = Preprocessing.for_image_size(SIZE)
    job = Training(
        config=config,
        model=network,
        optimizer=make_optimizer(network, config),
        setup=Setup(device=torch.device("cpu")),
        train=Loader(ImageDataset(folders.train, preprocessing), 4, workers=0),
        valid=Loader(ImageDataset(folders.valid, preprocessing), 4, workers=0),
        bad=BadImages(2),
        checkpoints=Checkpoints(tmp_path / "checkpoints", {}, contents=digests(folders)),
        stop=StopFlag(),
        progress=Progress(best_epoch=1),
        best={},
        on_epoch=lambda _: None,
    )
    found = served_extraction(job, Observer())
    assert found is not None
    on_features = run_test(job, Observer(), folders.test, found, 0.7)
    on_pictures = run_test(job, Observer(), folders.test, None, 0.7)
    assert found.computed == len(folders.test) - 1
    assert np.array_equal(on_features.indices, on_pictures.indices)
    assert np.array_equal(on_features.predicted, on_pictures.predicted)
    assert np.allclose(on_features.probability, on_pictures.probability, atol=1e-4)
    assert on_features.loss == pytest.approx(on_pictures.loss, rel=1e-4)
