"""Two processes that validate together: the numbers of one process that has all images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import nn

from image_classifier.contract.errors import DataError
from image_classifier.debugging.recorder import Recorder
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import JobFacts
from image_classifier.training.bad_images import BadImages
from image_classifier.training.data import ImageDataset, Loader
from image_classifier.training.distributed import Group
from image_classifier.training.evaluate import Evaluation, evaluate
from image_classifier.training.setup import Setup
from image_classifier.training.stop import Interrupted, StopFlag
from image_classifier.vision.folders import Split
from image_classifier.vision.preprocess import Preprocessing

SIZE = 2
IMAGES = 11  # the last batch of four holds three: two for one process, one for the other
BATCH = 4
BROKEN = 5  # in the share of the second process
CPU = Setup(device=torch.device("cpu"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=8),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = tuple(root / f"{i}.png" for i in range(IMAGES))
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 80 * (i % 3) + 80, (40, 40, 3), np.uint8)).save(path)
    paths[BROKEN].write_bytes(b"no picture")
    return Split("valid", root, paths, tuple(i % 3 for i in range(IMAGES)))


def validation(
    split: Split, group: Group, *, limit: int = 1, stop: StopFlag | None = None
) -> tuple[Evaluation, object]:
    """The evaluation, and what else a process knows of it afterwards."""
    model = network()
    if not group.is_main:  # as after a step of training, in which each process saw images of its own
        model[1].running_mean += 1.0
    recorder = Recorder(
        RunData(JobFacts(config={})), (), model, CPU.device, num_classes=3, debug_interval=0, activation_interval=0
    )
    dataset = ImageDataset(split, Preprocessing.for_image_size(32))
    loader = Loader(dataset, BATCH, workers=0, rank=group.rank, size=group.size)
    bad = BadImages(limit)
    recorder.begin("eval", 1, 0)
    evaluation = evaluate(model, loader, recorder, bad, stop or StopFlag(), setup=CPU, group=group)
    assert recorder.run is not None
    return evaluation, (recorder.run.classes, bad.found, model[1].running_mean.tolist())


def work(rank: int, folder: Path, split: Split, what: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE)
    group = Group(rank=rank, size=SIZE, control=dist.new_group(backend="gloo"))
    stop = StopFlag()
    if what == "stop" and rank == 1:
        stop.reason = "SIGTERM"
    result: object
    try:
        result = validation(split, group, limit=0 if what == "limit" else 1, stop=stop)
    except (DataError, Interrupted) as error:
        result = repr(error)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


def two(folder: Path, split: Split, what: str = "") -> list[object]:
    mp.start_processes(work, (folder, split, what), nprocs=SIZE, start_method="fork")
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(SIZE)]  # our own


def test_two_processes_find_what_one_finds(split: Split, tmp_path: Path) -> None:
    alone, (classes, found, running_mean) = validation(split, Group())  # type: ignore[misc]
    assert list(found) == [str(split.paths[BROKEN])]
    assert len(alone.indices) == IMAGES - 1
    for evaluation, known in two(tmp_path, split):  # type: ignore[misc]
        assert evaluation.metrics("validation") == pytest.approx(alone.metrics("validation"), rel=1e-6)
        np.testing.assert_array_equal(evaluation.indices, alone.indices)
        np.testing.assert_array_equal(evaluation.predicted, alone.predicted)
        np.testing.assert_allclose(evaluation.probability, alone.probability, rtol=1e-5)
        assert known[1:] == (found, running_mean)
        assert [(each.labels, each.hits) for each in known[0]] == [(each.labels, each.hits) for each in classes]


@pytest.mark.parametrize(("what", "error"), [("limit", "DataError"), ("stop", "Interrupted")])
def test_what_ends_the_validation_in_one_process_ends_it_in_all(
    split: Split, tmp_path: Path, what: str, error: str
) -> None:
    results = two(tmp_path, split, what)
    assert results[0] == results[1]
    assert str(results[0]).startswith(error)
