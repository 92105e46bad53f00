"""For a GPU others read the pictures of a head, by threads or by processes, and one thread computes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.head_training import make_pictures, split_of
from tests.unit.test_training_features import PREPROCESSING, extraction

from image_classifier.training import features as features_module
from image_classifier.training import reading
from image_classifier.training.reading import Picture
from image_classifier.training.setup import Setup
from image_classifier.vision.model import build_model
from image_classifier.vision.network import FEATURES
from image_classifier.vision.preprocess import Preprocessing, load_pixels


class WrittenDown:
    """A body on a GPU that is none: the features of a picture are its own numbers."""

    batch, is_fast = 4, True
    batches: ClassVar[list[int]] = []
    under_way: ClassVar[list[int]] = []

    def __init__(self, *_: object) -> None:
        WrittenDown.batches, WrittenDown.under_way = [], []
        self.read = 0

    def begin(
        self, pixels: Sequence[NDArray[np.uint8]]
    ) -> Callable[[], tuple[NDArray[np.float32], NDArray[np.float32]]]:
        self.batches.append(len(pixels))
        self.under_way.append(len(self.batches) - self.read)
        found = np.stack([each.reshape(-1)[:FEATURES].astype(np.float32) for each in pixels])

        def finished() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            self.read += 1
            return found, found[:, :6]

        return finished


@pytest.mark.parametrize("readers", [0, 2])
def test_for_a_gpu_others_read_a_few_pictures_each_and_whole_batches_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    monkeypatch.setattr(features_module, "FrozenBody", WrittenDown)
    monkeypatch.setattr(reading, "READ_TOGETHER", 3)
    monkeypatch.setattr(reading, "LEAST_PARTS", 1)
    seen: list[int] = []
    by_processes = reading._by_processes

    def processes(*arguments: Any) -> Iterator[Any]:
        seen.append(arguments[-1])
        return by_processes(*arguments)

    monkeypatch.setattr(reading, "_by_processes", processes)
    monkeypatch.setitem(features_module.ROUND, "cuda", 11)  # pictures: two rounds
    split = split_of(make_pictures(tmp_path / "data"))
    split.paths[4].write_bytes(b"no picture")
    on_gpu = Setup(device=torch.device("cuda"), cores=3)
    made = extraction(build_model(3, drawn=False), None, setup=on_gpu, limit=1, readers=readers)
    wanted = np.ones((len(split), 2), np.bool_)
    state = torch.get_rng_state()
    found = made.split(split, [""] * len(split), ("centre", "mirror"), wanted)
    assert torch.equal(torch.get_rng_state(), state)  # what is drawn afterwards does not depend on what was kept
    assert seen == [readers] * (2 if readers else 0)
    assert not multiprocessing.active_children()
    assert WrittenDown.under_way[0] == 1
    assert max(WrittenDown.under_way) > 1  # a batch is read from the GPU when it has the next
    assert list(found.unreadable) == [4]
    assert found.places[4].tolist() == [-1, -1]
    assert WrittenDown.batches == [4] * 5 + [4] * 3 + [2]  # of 10 pictures in two views, then of 7
    for index in set(range(len(split))) - {4}:
        centre = load_pixels(split.paths[index], PREPROCESSING)
        for view, pixels in enumerate((centre, centre[:, ::-1])):
            assert np.array_equal(
                found.rows[found.places[index, view], :FEATURES], pixels.reshape(-1)[:FEATURES].astype(np.float32)
            )


@pytest.mark.parametrize(
    ("processes", "pictures", "free", "readers"),
    [
        (8, 320, 2**30, (8, 10)),
        (8, 48, 2**30, (0, 8)),  # too few to be worth two processes
        (8, 64, 2**30, (2, 8)),
        (1, 320, 2**30, (0, 8)),
        (8, 320, 64 * 2**20, (0, 8)),  # as Docker gives a container: what is held at once fills it
        (8, 320, 150 * 2**20, (5, 10)),
        (8, 5000, 2**30, (8, 32)),
    ],
)
def test_processes_read_where_there_is_enough_to_do_and_room_for_it(
    monkeypatch: pytest.MonkeyPatch, processes: int, pictures: int, free: int, readers: tuple[int, int]
) -> None:
    """How many, and how many pictures each reads at once."""
    seen = []
    monkeypatch.setattr(reading, "free_bytes", lambda: free)
    monkeypatch.setattr(reading, "_by_processes", lambda parts, _, count: seen.append((count, len(parts[0]))) or [])
    monkeypatch.setattr(reading, "by_threads", lambda _, __, parts: seen.append((0, len(parts[0]))) or [])
    each = [Picture(index=index, path=Path("x"), views=("centre", "mirror")) for index in range(pictures)]
    preprocessing = Preprocessing.for_image_size(224)
    list(reading.read_ahead(each, preprocessing, batch=256, processes=processes, threads=2))
    assert seen == [readers]
