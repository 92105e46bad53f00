"""Decoded pictures are kept once, for all processes, as far as there is memory; and nobody sees a difference."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_classifier.training import cache
from image_classifier.training.cache import PixelCache
from image_classifier.training.data import Batch, ImageDataset, Loader
from image_classifier.training.stop import end_workers
from image_classifier.vision.folders import Split
from image_classifier.vision.preprocess import Preprocessing

PREPROCESSING = Preprocessing.for_image_size(32)
NUM_IMAGES = 12
SIDES = [(50 + 3 * i, 40 + 5 * i) for i in range(NUM_IMAGES)]  # (height, width)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    rng = np.random.default_rng(0)
    paths = tuple(tmp_path / f"{i}.png" for i in range(NUM_IMAGES))
    for path, side in zip(paths, SIDES, strict=True):
        Image.fromarray(rng.integers(0, 256, (*side, 3), np.uint8)).save(path)
    return Split("train", tmp_path, paths, tuple(i % 2 for i in range(NUM_IMAGES)))


def epochs(split: Split, augment: str, kept: PixelCache | None, workers: int, *, then: list[Path]) -> list[Batch]:
    """Two epochs; the files in `then` are gone before the second."""
    dataset = ImageDataset(split, PREPROCESSING, augment=augment, seed=3, cache=kept)
    loader = Loader(dataset, 5, workers=workers, shuffle_seed=3)
    first = list(loader.epoch(1))
    for path in then:
        path.unlink()
    return first + list(loader.epoch(2))


@pytest.mark.parametrize("augment", ["standard", "none"])
@pytest.mark.parametrize("workers", [0, 2])
def test_second_epoch_needs_no_file_and_is_bit_for_bit_the_same(split: Split, augment: str, workers: int) -> None:
    plain = epochs(split, augment, None, 0, then=[])
    kept = PixelCache(NUM_IMAGES, 10_000_000, processes=workers > 0)
    cached = epochs(split, augment, kept, workers, then=list(split.paths))
    assert len(kept) == NUM_IMAGES
    for one, other in zip(plain, cached, strict=True):
        assert not other.unreadable
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)


def test_an_epoch_that_begins_early_has_pictures_before_it_is_asked_for(split: Split) -> None:
    plain = Loader(ImageDataset(split, PREPROCESSING, augment="light"), 5, workers=0, shuffle_seed=3)
    kept = PixelCache(NUM_IMAGES, 10_000_000)
    loader = Loader(ImageDataset(split, PREPROCESSING, augment="light", cache=kept), 5, workers=1, shuffle_seed=3)
    try:
        loader.begin_early(1)
        deadline = time.monotonic() + 60
        while len(kept) < 5 and time.monotonic() < deadline:  # a batch, by the loading process that nobody has asked
            time.sleep(0.01)
        assert len(kept) >= 5
        assert_same_batches(loader.epoch(1), plain.epoch(1))
        loader.begin_early(2)
        assert_same_batches(loader.epoch(3), plain.epoch(3))  # another one than was begun
        loader.begin_early(4)
        assert_same_batches(loader.epoch(4, first_step=1), plain.epoch(4, first_step=1))
    finally:
        end_workers()


def test_loading_processes_end_with_their_loader_without_a_garbage_collection(split: Split) -> None:
    before = set(multiprocessing.active_children())
    loader = Loader(ImageDataset(split, PREPROCESSING), 5, workers=2)
    gc.disable()  # it takes the queues first, whose processes then hear of no end
    try:
        assert len(list(loader.epoch(1))) == 3
        assert len(set(multiprocessing.active_children()) - before) == 2
        del loader
        assert not set(multiprocessing.active_children()) - before
    finally:
        gc.enable()
        end_workers()


def test_there_are_no_more_loading_processes_than_batches(split: Split) -> None:
    before = len(multiprocessing.active_children())
    loader = Loader(ImageDataset(split, PREPROCESSING), 5, workers=8)
    try:
        list(loader.epoch(1))
        assert len(multiprocessing.active_children()) - before == 3
    finally:
        end_workers()


def assert_same_batches(ours: Iterator[Batch], theirs: Iterator[Batch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)


def test_pictures_beyond_the_capacity_are_decoded_again(split: Split) -> None:
    capacity = sum(3 * height * width for height, width in SIDES) // 2
    kept = PixelCache(NUM_IMAGES, capacity)
    plain, cached = (epochs(split, "standard", each, 0, then=[]) for each in (None, kept))
    assert 0 < len(kept) < NUM_IMAGES
    assert all(torch.equal(one.images, other.images) for one, other in zip(plain, cached, strict=True))


def test_how_much_is_kept_is_said_once_for_each_change(split: Split) -> None:
    sizes = [3 * height * width for height, width in SIDES]
    for capacity in (sum(sizes), sum(sizes) // 2):
        kept = PixelCache(NUM_IMAGES, capacity, processes=False)
        loader = Loader(ImageDataset(split, PREPROCESSING, augment="standard", cache=kept), 5, workers=0)
        assert loader.cache_news() == ""
        list(loader.epoch(1))
        assert kept.num_bytes <= capacity
        news = loader.cache_news()
        share = "all" if capacity == sum(sizes) else f"{len(kept)} of"
        assert news.startswith(f"{share} {NUM_IMAGES} train images are kept decoded, ")
        assert news.endswith("decoded in every epoch") == (capacity < sum(sizes))
        list(loader.epoch(2))
        assert loader.cache_news() == ""


@pytest.mark.parametrize(
    ("size", "kept_as"), [((2000, 1500), (84, 63)), ((100, 300), (63, 189)), ((80, 70), (80, 70)), ((40, 30), (40, 30))]
)
def test_a_picture_is_kept_no_larger_than_its_smallest_crop_needs(
    tmp_path: Path, size: tuple[int, int], kept_as: tuple[int, int]
) -> None:
    """At 32 pixels a crop of a third of the area must have 62.5 pixels a side, of a square picture."""
    path = tmp_path / "a.png"
    Image.effect_noise(size, 50).convert("RGB").save(path)
    kept = PixelCache(1, 10_000_000)
    dataset = ImageDataset(Split("train", tmp_path, (path,), (0,)), PREPROCESSING, augment="standard", cache=kept)
    dataset[1, 0]
    found = kept.get(0)
    assert found is not None
    assert found.shape == (kept_as[1], kept_as[0], 3)


def test_what_is_kept_without_loading_processes_lies_in_large_pages_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    class Memory(mmap.mmap):
        def madvise(self, option: int, *place: int) -> None:
            asked.append(option)
            raise OSError("this system has no large pages")

    monkeypatch.setattr(cache.mmap, "mmap", Memory)
    picture = np.full((10, 40, 3), 7, np.uint8)
    for processes in (True, False):
        kept = PixelCache(1, 1_000_000, processes=processes)
        assert asked == ([] if processes else [mmap.MADV_HUGEPAGE])
        kept.put(0, picture)
        assert np.array_equal(kept.get(0), picture)  # type: ignore[arg-type]


def test_nothing_more_is_kept_once_the_memory_runs_low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LOOK_EVERY", 1000)
    kept = PixelCache(10, 1_000_000)
    picture = np.full((10, 40, 3), 7, np.uint8)
    kept.put(0, picture)
    monkeypatch.setattr(cache, "memory", lambda: (1000, 249))
    kept.put(1, picture)
    monkeypatch.setattr(cache, "memory", lambda: (1000, 900))
    kept.put(2, picture)
    assert len(kept) == 1
    assert np.array_equal(kept.get(0), picture)  # type: ignore[arg-type]
    assert kept.get(1) is None
