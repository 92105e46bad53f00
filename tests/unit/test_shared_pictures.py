"""What one trial decoded the next one finds, and never anything else, whoever is killed in between."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from image_classifier.contract.config import TrainConfig
from image_classifier.training import cache, shared_pictures
from image_classifier.training.data import Batch, ImageDataset, Loader
from image_classifier.training.shared_pictures import PictureMemory, SharedCache, share_pictures, shared_cache
from image_classifier.training.stop import end_workers
from image_classifier.vision.contrast import FLAT
from image_classifier.vision.fingerprint import UNREADABLE, file_digests
from image_classifier.vision.folders import Split
from image_classifier.vision.preprocess import Preprocessing

PREPROCESSING = Preprocessing.for_image_size(32)
NUM_IMAGES = 7
BLACK, BROKEN = 3, 5
PICTURE = np.full((10, 40, 3), 7, np.uint8)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    rng = np.random.default_rng(0)
    paths = tuple(tmp_path / f"{i}.png" for i in range(NUM_IMAGES))
    for number, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (50 + number, 40, 3), np.uint8)).save(path)
    Image.new("RGB", (40, 40)).save(paths[BLACK])
    paths[BROKEN].write_bytes(b"no image")
    return Split("train", tmp_path, paths, tuple(i % 2 for i in range(NUM_IMAGES)))


@pytest.fixture
def memory() -> PictureMemory:
    return PictureMemory(1_000_000, most_images=10)


def trial(memory: PictureMemory | None, split: Split, workers: int = 0) -> list[Batch]:
    """The first epoch of a training that may use the memory."""
    kept = SharedCache(memory, split, file_digests(split.paths)) if memory else None
    dataset = ImageDataset(split, PREPROCESSING, augment="light", seed=3, cache=kept)
    return list(Loader(dataset, 3, workers=workers, shuffle_seed=3).epoch(1))


def in_a_fork(what: Callable[[], object]) -> int | None:
    """The exit code of a process that does it."""
    process = multiprocessing.get_context("fork").Process(target=what)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_trial_decodes_nothing_and_sees_and_says_the_same(
    memory: PictureMemory, split: Split, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trial(None, split)
    try:
        trial(memory, split, workers)
    finally:
        end_workers()
    assert len(SharedCache(memory, split, file_digests(split.paths))) == NUM_IMAGES - 1

    def opened(path: Path, **_: object) -> NDArray[np.uint8]:
        assert path in (split.paths[BLACK], split.paths[BROKEN]), "a picture was decoded again"
        return np.array(Image.open(path))

    monkeypatch.setattr("image_classifier.training.data.decode_pixels", opened)
    monkeypatch.setattr("image_classifier.training.data.load_pixels", opened)
    with pytest.raises(Image.UnidentifiedImageError):  # what cannot be read is met by every trial
        trial(memory, split)
    monkeypatch.undo()
    for one, other in zip(plain, trial(memory, split), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.indices, other.indices)
        assert one.unreadable == other.unreadable
        assert one.contrast == other.contrast
    assert {index: kind for batch in plain for index, kind in batch.contrast.items()} == {BLACK: FLAT}


def test_a_file_that_holds_something_else_is_not_met_with_its_old_picture(memory: PictureMemory, split: Split) -> None:
    trial(memory, split)
    before = file_digests(split.paths)
    Image.new("RGB", (60, 60), "red").save(split.paths[0])
    changed = SharedCache(memory, split, file_digests(split.paths))
    assert changed.get(0) is None
    assert changed.put(0, PICTURE) is None
    assert len(changed) == NUM_IMAGES - 2
    assert changed.get(1) is not None
    old = SharedCache(memory, split, before).get(0)
    assert old is not None
    assert old.shape == (50, 40, 3)
    plain = trial(None, split)
    assert all(torch.equal(one.images, other.images) for one, other in zip(plain, trial(memory, split), strict=True))


def test_a_file_that_changed_after_it_was_looked_at_and_one_that_nobody_could_read_are_not_kept(
    memory: PictureMemory, split: Split
) -> None:
    digests = file_digests(split.paths)
    Image.new("RGB", (60, 60), "red").save(split.paths[0])
    kept = SharedCache(memory, split, [*digests[:6], UNREADABLE])
    split.paths[6].unlink()
    assert kept.put(0, PICTURE) is None
    assert kept.put(6, PICTURE) is None
    assert len(kept) == 0


def test_a_trial_that_is_killed_while_it_keeps_a_picture_leaves_neither_a_lock_nor_half_of_it(
    memory: PictureMemory, split: Split
) -> None:
    digests = file_digests(split.paths)

    def die_with_the_lock() -> None:
        with memory.locked():
            memory.rows[0, 1:3] = 10, 40
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_fork(die_with_the_lock) == -signal.SIGKILL
    kept = SharedCache(memory, split, digests)
    assert kept.get(0) is None
    found = kept.put(0, PICTURE)
    assert found is not None
    assert np.array_equal(found, PICTURE)


def test_trials_that_keep_the_same_pictures_at_once_do_not_disturb_each_other(
    memory: PictureMemory, split: Split
) -> None:
    digests = file_digests(split.paths)

    def keep(value: int) -> None:
        kept = SharedCache(memory, split, digests)
        for index in [*range(NUM_IMAGES)] * 20:
            if kept.get(index) is None:
                time.sleep(0.001)  # both are here before one has kept it
                kept.put(index, np.full((10 + index, 40, 3), value, np.uint8))

    both = [multiprocessing.get_context("fork").Process(target=keep, args=(value,)) for value in (1, 2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    for index in range(NUM_IMAGES):
        found = SharedCache(memory, split, digests).get(index)
        assert found is not None
        assert found.shape == (10 + index, 40, 3)
        assert len(np.unique(found)) == 1


def test_nothing_more_is_kept_once_the_memory_is_full_or_runs_low(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = file_digests(split.paths)
    kept = SharedCache(PictureMemory(2 * PICTURE.size + 1, most_images=10), split, digests)
    assert [kept.put(index, PICTURE) is not None for index in range(3)] == [True, True, False]
    assert kept.num_bytes == 2 * PICTURE.size
    monkeypatch.setattr(shared_pictures, "LOOK_EVERY", 1000)
    monkeypatch.setattr(cache, "memory", lambda: (1000, 249))
    low = SharedCache(PictureMemory(1_000_000, most_images=10), split, digests)
    assert low.put(0, PICTURE) is None
    monkeypatch.undo()
    assert low.put(1, PICTURE) is None


def test_memory_is_set_aside_for_the_ways_of_decoding_used_last(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_pictures, "_ways", {})
    digests = {"train": file_digests(split.paths)}
    sizes = [TrainConfig(image_size=size) for size in (32, 64, 96)]
    assert shared_cache(sizes[0], split, digests) is None
    for config in (*sizes[:2], sizes[0], sizes[2]):
        share_pictures(config)
    assert [shared_cache(config, split, digests) is not None for config in sizes] == [True, False, True]
    assert shared_cache(sizes[0].replace(augment="none"), split, digests) is None
    assert shared_cache(sizes[0], split, {}) is None
