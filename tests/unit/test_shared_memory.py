"""What loading processes need of /dev/shm, and what happens when it is not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from tests.small_shm import run_with_shared_memory

from image_classifier.contract.shared_memory import (
    LEAST_BYTES,
    SHARED_MEMORY,
    batch_bytes,
    container_bytes,
    fitting_workers,
    free_bytes,
    needed_bytes,
)

MB = 1024**2
LOAD = """
import sys
from pathlib import Path
from image_classifier.training.data import ImageDataset, Loader
from image_classifier.training.ending import explain
from image_classifier.training.stop import end_workers
from image_classifier.vision.folders import Split
from image_classifier.vision.preprocess import Preprocessing

paths = (Path(sys.argv[1]),) * 640
split = Split("train", paths[0].parent, paths, (0,) * len(paths))
loader = Loader(ImageDataset(split, Preprocessing.for_image_size(224)), 32, workers=int(sys.argv[2]))
try:
    print(sum(1 for batch in loader.epoch()), "batches")
except RuntimeError as error:
    print(explain(error).message, "|", explain(error).hint)
end_workers()
"""
SETTLE = """
import logging
import torch
from image_classifier.contract.config import TrainConfig
from image_classifier.training.setup import workers_with_room

logging.basicConfig(level=logging.INFO)
print("settled on", workers_with_room(TrainConfig(workers=8, batch_size=32, image_size=224), 8))
print("settled on", workers_with_room(TrainConfig(workers=8, batch_size=512, image_size=224), 8))
"""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (256, 256), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_the_need_counts_every_batch_that_is_under_way() -> None:
    one = batch_bytes(32, 224)
    assert 32 * 3 * 224**2 < one < 32 * 3 * 224**2 + 16384
    assert needed_bytes(32, 224, 8) == 18 * one
    assert needed_bytes(32, 224, 0) == 0


def test_as_many_processes_load_as_half_of_the_free_memory_has_room_for() -> None:
    free = 64 * MB
    fitting = fitting_workers(8, 32, 224, free)
    assert 0 < fitting < 8
    assert needed_bytes(32, 224, fitting) <= free / 2 < needed_bytes(32, 224, fitting + 1)
    assert fitting_workers(8, 512, 224, free) == 0
    assert fitting_workers(8, 512, 224, 100 * 1024**3) == 8


def test_a_container_gets_what_its_processes_need() -> None:
    assert container_bytes(16, 64, 2) == LEAST_BYTES
    assert container_bytes(512, 224, -1) > LEAST_BYTES  # a gigabyte was too little
    assert fitting_workers(8, 512, 224, container_bytes(512, 224, -1)) == 8
    assert fitting_workers(12, 512, 224, container_bytes(512, 224, 12)) == 12


def test_where_there_is_no_shared_memory_none_is_free(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "nowhere") == 0
    whole = os.statvfs(SHARED_MEMORY)
    assert free_bytes() <= whole.f_blocks * whole.f_frsize


def test_fewer_processes_load_where_docker_gives_64_mb_and_the_log_says_why() -> None:
    said = run_with_shared_memory(64, SETTLE)
    assert "settled on 2" in said
    assert "settled on 0" in said
    assert "workers=2 instead of 8: 8 need 87 MB of shared memory, half of the 67 MB free in /dev/shm is less" in said
    assert "--shm-size" in said


def test_shared_memory_that_is_full_ends_the_training_with_a_sentence(picture: Path) -> None:
    said = run_with_shared_memory(8, LOAD, str(picture), "4")
    assert "a data loading process died" in said
    assert "--shm-size" in said


def test_without_processes_no_shared_memory_is_needed(picture: Path) -> None:
    assert "20 batches" in run_with_shared_memory(1, LOAD, str(picture), "0")
