"""What is in a batch, and what is done about files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_classifier.contract.errors import DataError
from image_classifier.training.data import BadImages, Batch, ImageDataset, Loader, num_workers, random_view
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
        "image_classifier.training.data.random_view",
        lambda path, *args: opened.append(path) or random_view(path, *args),
    )
    assert same(list(loader(split).epoch(3, first_step=2)), whole[2:])
    assert len(opened) == 2


def test_batch_without_a_readable_image_is_empty(split: Split) -> None:
    bad = Split("train", split.root, split.paths[2:3], (0,))
    (batch,) = loader(bad).epoch(1)
    assert len(batch.images) == len(batch.labels) == 0
    assert list(batch.unreadable) == [0]


def test_images_are_as_served_without_augmentation(split: Split) -> None:
    (batch,) = Loader(ImageDataset(split, PREPROCESSING), 100, workers=0).epoch()
    for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
        assert np.array_equal(image.numpy(), load(split.paths[index], PREPROCESSING))


def test_views_flip_half_of_the_time_and_leave_the_global_generator_alone(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    before = torch.get_rng_state()
    views = [random_view(tmp_path / "ramp.png", PREPROCESSING, "light", (0, 0, i)) for i in range(100)]
    assert torch.equal(before, torch.get_rng_state())
    flipped = sum(bool(view[0, 0, 0] > view[0, 0, -1]) for view in views)
    assert 30 < flipped < 70
    assert len({view.tobytes() for view in views}) > 40  # moving a crop up or down changes nothing in this picture


def test_bad_images_are_counted_once_and_end_the_job_beyond_the_limit(split: Split) -> None:
    bad = BadImages(limit=2)
    assert bad.add(split, {2: "2.png is not an image"}) == ["2.png is not an image"]
    assert bad.add(split, {2: "2.png is not an image"}) == []
    bad.add(split, {3: "3.png is damaged"})
    with pytest.raises(DataError, match=r"3 images cannot be read, .*4\.png is damaged"):
        bad.add(split, {4: "4.png is damaged"})
    assert len(bad.found) == 3


def test_workers_are_as_asked_or_fit_the_machine() -> None:
    assert num_workers(3, torch.device("cpu")) == 3
    assert 0 <= num_workers(-1, torch.device("cpu")) <= num_workers(-1, torch.device("cuda")) <= 8
    assert num_workers(-1, torch.device("cuda")) >= 1
