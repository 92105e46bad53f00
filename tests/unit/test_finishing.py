"""The end of a training: its test, and a stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import draw_norms
from tests.head_training import CONFIG, SIZE, make_pictures

from image_classifier.contract.errors import JobStopped
from image_classifier.debugging.observer import Observer
from image_classifier.training.bad_images import BadImages
from image_classifier.training.checkpoint import Checkpoint, Checkpoints, Progress
from image_classifier.training.data import ImageDataset, Loader
from image_classifier.training.finishing import run_formats, run_test
from image_classifier.training.head_only import served_extraction
from image_classifier.training.optim import make_optimizer
from image_classifier.training.setup import Setup
from image_classifier.training.state import Training
from image_classifier.training.stop import StopFlag
from image_classifier.training.usual import usual_sight
from image_classifier.vision.fingerprint import digests
from image_classifier.vision.folders import ImageFolders, scan
from image_classifier.vision.model import build_model
from image_classifier.vision.preprocess import Preprocessing


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> ImageFolders:
    """One of whose test images cannot be read."""
    data = make_pictures(tmp_path_factory.mktemp("pictures") / "data")
    found = scan({each.name: each for each in data.iterdir()}, valid_fraction=0.2, seed=0)
    assert found.test is not None
    found.test.paths[1].write_bytes(b"no picture")
    return found


@pytest.fixture
def job(tmp_path: Path, folders: ImageFolders) -> Training:
    """A training of the whole network whose last epoch is over."""
    config = CONFIG.replace(fine_tune="full", batch_size=4)
    torch.manual_seed(3)
    network = build_model(3)
    draw_norms(network)
    preprocessing = Preprocessing.for_image_size(SIZE)
    return Training(
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


def test_the_test_of_a_whole_network_is_the_same_on_features(job: Training, folders: ImageFolders) -> None:
    assert folders.test is not None
    found = served_extraction(job, Observer())
    assert found is not None
    on_features = run_test(job, Observer(), folders.test, found, 0.7)
    on_pictures = run_test(job, Observer(), folders.test, None, 0.7)
    assert found.computed == len(folders.test) - 1
    assert np.array_equal(on_features.indices, on_pictures.indices)
    assert np.array_equal(on_features.predicted, on_pictures.predicted)
    assert np.allclose(on_features.probability, on_pictures.probability, atol=1e-4)
    assert on_features.loss == pytest.approx(on_pictures.loss, rel=1e-4)


def answer_test(job: Training, folders: ImageFolders) -> None:
    assert folders.test is not None
    run_test(job, Observer(), folders.test, None, 1.0)


def look_at_validation(job: Training, folders: ImageFolders) -> None:
    usual_sight(job, folders.valid, Observer())


def measure_formats(job: Training, folders: ImageFolders) -> None:
    run_formats(job, Observer(), folders, None, 1.0)


@pytest.mark.parametrize("part", [answer_test, look_at_validation, measure_formats])
def test_a_stop_after_the_last_epoch_says_that_the_training_is_saved_once_it_is(
    job: Training,
    folders: ImageFolders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: Callable[[Training, ImageFolders], None],
) -> None:
    may_write, write = threading.Event(), Checkpoints._write

    def write_when_allowed(self: Checkpoints, checkpoint: Checkpoint) -> None:
        assert may_write.wait(60)
        write(self, checkpoint)

    monkeypatch.setattr(Checkpoints, "_write", write_when_allowed)
    job.progress.finished = True
    job.checkpoints.finish(job.progress, {"w": torch.ones(1)})
    job.stop.reason = "SIGTERM"
    threading.Timer(0.2, may_write.set).start()
    with pytest.raises(JobStopped, match=r"SIGTERM while .*; the training has finished and is saved"):
        part(job, folders)
    found = Checkpoints(tmp_path / "checkpoints", {}).load()
    assert found is not None
    assert found.progress.finished
