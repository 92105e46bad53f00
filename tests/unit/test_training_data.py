"""What is in a batch, and what is done about files that cannot be read."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.crop_sizes import training_sizes, work_by_epoch
from image_classifier.contract.errors import DataError, JobError
from image_classifier.training import crops, data
from image_classifier.training.bad_images import BadImages
from image_classifier.training.crops import random_view, resized
from image_classifier.training.data import Batch, ImageDataset, Loader, seed_of
from image_classifier.training.stop import Interrupted, StopFlag, end_workers
from image_classifier.vision.decode import decode_pixels
from image_classifier.vision.folders import Split
from image_classifier.vision.preprocess import Preprocessing, load

SIZE = 32
PREPROCESSING = Preprocessing.for_image_size(SIZE)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Ten pictures of noise, the third of which is no picture."""
    root = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    paths = tuple(root / f"{i}.png" for i in range(10))
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8)).save(path)
    paths[2].write_text("no picture")
    return Split("train", root, paths, tuple(i % 2 for i in range(10)))


def loader(split: Split, *, workers: int = 0, seed: int = 5, batch_size: int = 4) -> Loader:
    dataset = ImageDataset(split, PREPROCESSING, augment="standard", seed=seed)
    return Loader(dataset, batch_size, workers=workers, shuffle_seed=seed)


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.unreadable == b.unreadable
        for a, b in zip(left, right, strict=True)
    )


def test_batches_depend_on_seed_and_epoch_only(split: Split) -> None:
    one = loader(split)
    first = list(one.epoch(1))
    assert same(first, list(loader(split).epoch(1)))
    assert same(first, list(loader(split, workers=2).epoch(1)))
    assert not same(first, list(one.epoch(2)))
    assert not same(first, list(loader(split, seed=6).epoch(1)))


def test_every_readable_image_comes_once_with_its_label(split: Split) -> None:
    batches = list(loader(split).epoch(1))
    indices = torch.cat([batch.indices for batch in batches])
    assert sorted(indices.tolist()) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert torch.equal(torch.cat([batch.labels for batch in batches]), indices % 2)
    assert [reason for batch in batches for reason in batch.unreadable] == [2]
    assert all(batch.images.shape == (len(batch.labels), 3, SIZE, SIZE) for batch in batches)


def test_resumed_epoch_starts_at_its_step_without_opening_earlier_files(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(loader(split).epoch(3))
    opened: list[Path] = []
    monkeypatch.setattr(
        "image_classifier.training.data.decode_pixels",
        lambda path, **options: opened.append(path) or decode_pixels(path, **options),
    )
    assert same(list(loader(split).epoch(3, first_step=2)), whole[2:])
    assert len(opened) == 2


def test_batch_without_a_readable_image_is_empty(split: Split) -> None:
    bad = Split("train", split.root, split.paths[2:3], (0,))
    (batch,) = loader(bad).epoch(1)
    assert len(batch.images) == len(batch.labels) == 0
    assert list(batch.unreadable) == [0]


def test_images_are_as_served_without_augmentation(split: Split) -> None:
    loader = Loader(ImageDataset(split, PREPROCESSING), 100, workers=0)
    (batch,) = loader.epoch()
    assert batch.images.dtype == torch.uint8
    images, labels = loader.on_device(batch, torch.device("cpu"))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, batch.labels)
    for index, image in zip(batch.indices.tolist(), images, strict=True):
        assert np.array_equal(image.numpy(), load(split.paths[index], PREPROCESSING))


def test_views_flip_half_of_the_time_and_leave_the_global_generator_alone() -> None:
    ramp = torch.linspace(0, 255, 64).to(torch.uint8)[None, :, None].expand(64, 64, 3).contiguous()
    before = torch.get_rng_state()
    views = [random_view(ramp, SIZE, "light", i) for i in range(100)]
    assert torch.equal(before, torch.get_rng_state())
    flipped = sum(bool(view[0, 0, 0] > view[0, -1, 0]) for view in views)
    assert 30 < flipped < 70
    assert len({view.numpy().tobytes() for view in views}) > 40  # moving a crop up or down changes nothing here


def test_every_picture_has_another_view_in_every_epoch_and_with_every_seed() -> None:
    ends = (0, 1, 2**32 - 1)
    assert len({seed_of(seed, epoch, index) for seed in ends for epoch in ends for index in ends}) == 27


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (900, 2), (40, 300)])
def test_view_of_any_shape_is_a_square_of_its_pixels(size: tuple[int, int]) -> None:
    view = random_view(torch.full((*size, 3), 200, dtype=torch.uint8), SIZE, "standard", 0)
    assert view.shape == (SIZE, SIZE, 3)
    assert (view == 200).all()


def test_view_is_the_crop_as_pillow_resizes_it_within_one_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "random_box", lambda *_: (10, 20, 60, 70))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))
    photo = noise.resize((160, 120), Image.Resampling.BICUBIC)
    view = random_view(torch.from_numpy(np.array(photo)), SIZE, "standard", 0).numpy().astype(int)
    theirs = np.asarray(photo.crop((20, 10, 90, 70)).resize((SIZE, SIZE), Image.Resampling.BILINEAR), dtype=int)
    assert min(abs(view - theirs).max(), abs(view[:, ::-1] - theirs).max()) <= 1


def test_a_view_lies_in_memory_as_it_will_in_a_batch() -> None:
    """Turned around there, a picture's colours take as long to gather as its crop takes to resize."""
    photo = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    assert all(random_view(photo, SIZE, "standard", i).is_contiguous() for i in range(10))
    for part in (photo, photo[5:80, 7:90]):
        view = resized(part, SIZE)
        assert view.is_contiguous()
        planes = part.permute(2, 0, 1).contiguous()[None]
        theirs = torch.nn.functional.interpolate(planes, (SIZE, SIZE), mode="bilinear", antialias=True)
        assert torch.equal(view, theirs[0].permute(1, 2, 0))


@pytest.mark.parametrize("size", [(300, 400), (500, 100)])
def test_crops_are_drawn_as_torchvision_draws_them(size: tuple[int, int]) -> None:
    draw, image = random.Random(0).random, torch.empty((3, *size))
    ours = np.array([crops.random_box(*size, 0.35, draw) for _ in range(4000)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scale, ratio = [0.35, 1.0], list(crops.CROP_RATIO)
        theirs = np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(4000)])
    for box in ours:
        assert 0 <= box[0] <= size[0] - box[2]
        assert 0 <= box[1] <= size[1] - box[3]
    for some, others in ((ours, theirs), (np.log(ours[:, 2:]), np.log(theirs[:, 2:]))):
        error = np.hypot(some.std(axis=0), others.std(axis=0)) / np.sqrt(len(ours))
        assert (abs(some.mean(axis=0) - others.mean(axis=0)) <= 4 * error).all()
        assert np.allclose(some.std(axis=0), others.std(axis=0), rtol=0.1)


@pytest.mark.parametrize("size", [(10, 900), (900, 10)])
def test_of_a_very_long_picture_the_centre_is_taken_as_torchvision_takes_it(size: tuple[int, int]) -> None:
    box = crops.random_box(*size, 0.8, random.Random(0).random)
    assert box == RandomResizedCrop.get_params(torch.empty((3, *size)), [0.8, 1.0], list(crops.CROP_RATIO))


def test_bad_images_are_counted_once_and_end_the_job_beyond_the_limit(split: Split) -> None:
    bad = BadImages(limit=2)
    assert bad.add(split, {2: "2.png is not an image"}) == ["2.png is not an image"]
    assert bad.add(split, {2: "2.png is not an image"}) == []
    bad.add(split, {3: "3.png is damaged"})
    with pytest.raises(DataError, match=r"3 images cannot be read, .*4\.png is damaged"):
        bad.add(split, {4: "4.png is damaged"})
    assert len(bad.found) == 3


@pytest.fixture
def hanging(split: Split, tmp_path: Path) -> Split:
    """A picture in the last of five batches that cannot be read to its end: storage that does not answer."""
    os.mkfifo(tmp_path / "9.png")
    return dataclasses.replace(split, paths=(*split.paths[:9], tmp_path / "9.png"))


def unshuffled(split: Split, workers: int) -> Loader:
    return Loader(ImageDataset(split, PREPROCESSING), 2, workers=workers)


def test_waiting_for_a_batch_notices_a_stop(hanging: Split) -> None:
    stop = StopFlag()
    batches = unshuffled(hanging, 1).epoch(stop=stop)
    for _ in range(4):
        next(batches)
    threading.Timer(0.2, lambda: setattr(stop, "reason", "SIGTERM")).start()
    with pytest.raises(Interrupted):
        next(batches)
    end_workers()


def test_waiting_for_a_batch_has_an_end(hanging: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "BATCH_TIMEOUT_S", 0.5)
    monkeypatch.setattr(data, "TURN_S", 0.1)
    loader = unshuffled(hanging, 2)
    with pytest.raises(JobError, match="no batch of images has come for"):
        list(loader.epoch())
    end_workers()


def test_waiting_for_a_batch_notices_a_process_that_was_killed(hanging: Split) -> None:
    batches = unshuffled(hanging, 1).epoch()
    next(batches)
    (worker,) = multiprocessing.active_children()
    threading.Timer(0.2, worker.kill).start()
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(batches)


def test_a_second_epoch_of_the_same_processes_is_watched_too(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "TURN_S", 0.1)
    loader, stop = unshuffled(split, 1), StopFlag()
    assert len(list(loader.epoch(0, stop=stop))) == 5
    (worker,) = multiprocessing.active_children()
    batches = loader.epoch(1, stop=stop)
    os.kill(worker.pid or 0, signal.SIGSTOP)
    stop.reason = "SIGTERM"
    with pytest.raises(Interrupted):
        list(batches)
    end_workers()


def test_loading_without_processes_notices_a_stop_between_two_pictures(split: Split) -> None:
    stop = StopFlag()
    batches = unshuffled(split, 0).epoch(stop=stop)
    next(batches)
    stop.reason = "SIGTERM"
    with pytest.raises(Interrupted):
        next(batches)


def test_a_class_of_which_no_image_can_be_read_is_an_error(tmp_path: Path) -> None:
    paths = tuple(tmp_path / name / f"{number}.jpg" for name in ("cat", "dog", "owl") for number in range(2))
    classes = Split("train", tmp_path, paths, (0, 0, 1, 1, 2, 2))
    bad = BadImages(limit=10)
    bad.require_classes(classes)
    bad.add(classes, {0: "damaged", 2: "damaged", 3: "damaged"})
    with pytest.raises(DataError, match="no image of dog in train can be read"):
        bad.require_classes(classes)


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, [224] * 10),
        ({"train_scale": 0.7}, [160] * 10),
        ({"start_scale": 0.57}, [128, 128, 160, 160, 192, 192, 224, 224, 224, 224]),
        ({"start_scale": 0.57, "train_scale": 0.7}, [128, 128, 128, 128, 160, 160, 160, 160, 160, 160]),
        ({"start_scale": 0.3, "image_size": 100, "epochs": 3}, [32, 64, 100]),
        ({"start_scale": 0.25, "image_size": 40}, [32] * 7 + [40] * 3),
        ({"start_scale": 0.25, "epochs": 1, "warmup_epochs": 0.0}, [224]),
        ({"start_scale": 0.25, "epochs": 2}, [64, 224]),
        ({"start_scale": 0.8, "image_size": 160, "epochs": 4}, [128, 128, 160, 160]),
    ],
)
def test_crops_grow_in_steps_and_end_at_their_full_size(changes: dict[str, int], sizes: list[int]) -> None:
    config = TrainConfig().replace(**changes)
    assert list(training_sizes(config)) == sizes
    assert work_by_epoch(config) == tuple((size / config.image_size) ** 2 for size in sizes)


def test_a_head_on_features_has_the_same_work_in_every_epoch() -> None:
    assert work_by_epoch(TrainConfig(fine_tune="head", start_scale=0.3)) == (1.0,) * 10


@pytest.mark.parametrize("augment", ["standard", "none"])
def test_samples_have_the_size_of_their_epoch(split: Split, augment: str) -> None:
    dataset = ImageDataset(split, Preprocessing.for_image_size(64), augment=augment, sizes=(32, 48))
    shapes = [dataset[epoch, 0].image.shape for epoch in (1, 2, 3)]
    assert shapes == [(32, 32, 3), (48, 48, 3), (48, 48, 3)]
    assert (dataset.unchanged() or dataset)[1, 0].image.shape == (32, 32, 3)
