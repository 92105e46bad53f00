"""The loop, with a network small enough to train in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.stopping import StopAfter
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.crop_sizes import training_sizes
from image_classifier.contract.errors import DataError, JobError, JobStopped
from image_classifier.contract.metrics import parse_metric_line
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.schema import Mode
from image_classifier.training.bad_images import BadImages
from image_classifier.training.checkpoint import Checkpoint, Checkpoints, Progress, identity
from image_classifier.training.data import ImageDataset, Loader
from image_classifier.training.loop import fit, is_best
from image_classifier.training.optim import make_optimizer
from image_classifier.training.setup import Setup
from image_classifier.training.state import Training
from image_classifier.training.stop import StopFlag
from image_classifier.vision.folders import Split
from image_classifier.vision.preprocess import Preprocessing

CONFIG = TrainConfig(weights="none", epochs=3, batch_size=4, lr=0.05, image_size=32, log_interval=1, workers=0)
GROWING = CONFIG.replace(image_size=96, train_scale=0.67, start_scale=0.33, epochs=4)


class Net(nn.Module):
    """A body with a batch norm, and a head called fc, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images).flatten(1))


def pictures(root: Path, count: int) -> Split:
    """Dark ones and bright ones, of two classes."""
    rng = np.random.default_rng(0)
    paths = tuple(root / f"{i}.png" for i in range(count))
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 100, (40, 40, 3), np.uint8) + np.uint8(100 * (i % 2))).save(path)
    return Split("train", root, paths, tuple(i % 2 for i in range(count)))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Nine pictures: the last batch of four holds one."""
    return pictures(tmp_path_factory.mktemp("images"), 9)


def training(
    split: Split, folder: Path, config: TrainConfig = CONFIG, *, on_epoch: Callable[[Progress], None] = lambda _: None
) -> Training:
    """A training as a job makes one, resumed when the folder holds a checkpoint."""
    torch.manual_seed(config.seed)
    model = Net()
    if config.fine_tune == "head":
        model.body.requires_grad_(False)
    optimizer = make_optimizer(model, config)
    checkpoints = Checkpoints(folder, identity(config, "data"))
    found = checkpoints.load()
    checkpoint = found or Checkpoint(Progress(), {}, {}, {})
    if checkpoint.model:
        model.load_state_dict(checkpoint.model)
        optimizer.load_state_dict(checkpoint.optimizer)
    preprocessing = Preprocessing.for_image_size(config.image_size)
    sizes = training_sizes(config)
    train = ImageDataset(split, preprocessing, augment=config.augment, seed=config.seed, sizes=sizes)
    return Training(
        config=config,
        model=model,
        optimizer=optimizer,
        setup=Setup(device=torch.device("cpu")),
        train=Loader(train, config.batch_size, workers=0, shuffle_seed=config.seed),
        valid=Loader(ImageDataset(split, preprocessing), config.batch_size, workers=0),
        bad=BadImages(config.max_bad_images, checkpoint.progress.unreadable),
        checkpoints=checkpoints,
        stop=StopFlag(),
        progress=checkpoint.progress,
        best=checkpoint.best,
        on_epoch=on_epoch,
    )


class Listener(Observer):
    """Takes down what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self, mode: Mode, epoch: int, step: int) -> None:
        self.told.append(f"begin {mode} {epoch} {step}")

    def mark(self, phase: str) -> None:
        self.told.append(phase)

    def before_forward(self, images: torch.Tensor) -> None:
        self.told.append("before_forward")

    def after_backward(self) -> None:
        self.told.append("after_backward")

    def after_update(self) -> None:
        self.told.append("after_update")

    def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.told.append("end_step")

    def skip_step(self) -> None:
        self.told.append("skip_step")

    def end_epoch(self) -> None:
        self.told.append("end_epoch")


def without_times(progress: Progress) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "second" not in k} for row in progress.history]


def test_training_learns_and_reports_each_epoch(split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    job = training(split, tmp_path, CONFIG.replace(epochs=15))
    fit(job, Observer())
    lines = [parsed for parsed in map(parse_metric_line, caplog.messages) if parsed]
    assert [epoch for epoch, _ in lines] == list(range(1, 16))
    assert lines[-1][1]["validation:loss"] < lines[0][1]["validation:loss"]
    assert job.progress.history[-1]["validation:accuracy"] == 1.0
    assert "epoch=1/15 step=1/3 loss=" in caplog.text


@pytest.mark.parametrize("steps", range(1, 13))  # an epoch records 2 losses of training and 3 of validation
def test_stopped_anywhere_and_resumed_equals_uninterrupted(split: Split, tmp_path: Path, steps: int) -> None:
    whole, part = training(split, tmp_path / "whole"), training(split, tmp_path / "part")
    fit(whole, Observer())
    with pytest.raises(JobStopped, match=r"stopped by SIGTERM in epoch . of 3, step . of 3; the state is saved"):
        fit(part, StopAfter(part.stop, steps))
    rest = training(split, tmp_path / "part")
    fit(rest, Observer())
    assert without_times(rest.progress) == without_times(whole.progress)
    assert all(torch.equal(rest.best[name], value) for name, value in whole.best.items())
    assert all(torch.equal(rest.model.state_dict()[k], v) for k, v in whole.model.state_dict().items())


@pytest.mark.parametrize("steps", [2, 6, 8, 12])
def test_crops_that_grow_go_on_growing_in_a_resumed_training(split: Split, tmp_path: Path, steps: int) -> None:
    whole, part = training(split, tmp_path / "whole", GROWING), training(split, tmp_path / "part", GROWING)
    fit(whole, Observer())
    with pytest.raises(JobStopped):
        fit(part, StopAfter(part.stop, steps))
    rest = training(split, tmp_path / "part", GROWING)
    fit(rest, Observer())
    assert without_times(rest.progress) == without_times(whole.progress)
    assert all(torch.equal(rest.model.state_dict()[k], v) for k, v in whole.model.state_dict().items())


def test_crops_grow_to_their_last_size_and_validation_has_the_size_that_is_served(
    split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    job = training(split, tmp_path, GROWING)
    seen: dict[bool, list[int]] = {True: [], False: []}
    job.model.register_forward_pre_hook(lambda module, inputs: seen[module.training].append(inputs[0].shape[-1]))
    fit(job, Observer())
    assert seen[True] == [32] * 4 + [64] * 4  # two steps an epoch: the third has one image
    assert set(seen[False]) == {96}
    news = [message for message in caplog.messages if "crops" in message]
    assert [line.split("crops ")[1] for line in news] == [
        "are 32 pixels wide from epoch 1 on", "are 64 pixels wide from epoch 3 on"
    ]  # fmt: skip


def test_a_frozen_part_of_a_network_that_trains_keeps_weights_and_statistics(split: Split, tmp_path: Path) -> None:
    job = training(split, tmp_path)
    job.model.body.requires_grad_(False)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    fit(job, Observer())
    changed = {name for name, value in job.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_observer_is_told_in_the_order_it_documents(split: Split, tmp_path: Path) -> None:
    hook = Listener()
    fit(training(split, tmp_path, CONFIG.replace(epochs=1)), hook)
    step = ["data_wait_s", "h2d_s", "before_forward", "forward_s", "backward_s", "after_backward", "optimizer_s",
            "after_update", "end_step"]  # fmt: skip
    evaluated = ["data_wait_s", "h2d_s", "forward_s", "end_step"]
    assert hook.told == [
        "begin train 1 0", *step, *step, "data_wait_s", "skip_step", "end_epoch",
        "begin eval 1 0", *evaluated * 3, "end_epoch",
    ]  # fmt: skip


def test_phase_that_an_exception_leaves_has_not_ended() -> None:
    hook = Listener()
    with pytest.raises(ZeroDivisionError), hook.phase("forward"):
        raise ZeroDivisionError
    assert hook.told == []


def test_diverged_training_ends_with_a_sentence(split: Split, tmp_path: Path) -> None:
    job = training(split, tmp_path)
    nn.init.constant_(job.model.fc.weight, float("nan"))
    with pytest.raises(JobError, match=r"training loss became nan in epoch 1, by step 1") as caught:
        fit(job, Observer())
    assert "lower lr" in caught.value.hint


def test_patience_ends_a_training_that_does_not_improve(split: Split, tmp_path: Path) -> None:
    job = training(split, tmp_path, CONFIG.replace(epochs=50, patience=2, lr=1e-8, fine_tune="head"))
    nn.init.zeros_(job.model.fc.weight)  # with lr too small to move a float32 away from where it is
    nn.init.constant_(job.model.fc.bias, 100.0)
    fit(job, Observer())
    assert len(job.progress.history) == 3
    assert job.progress.finished


def test_best_epoch_has_the_highest_accuracy_and_of_equals_the_lowest_loss() -> None:
    rows = [(0.5, 1.0), (0.7, 0.9), (0.7, 0.8), (0.6, 0.1), (0.7, 0.8)]
    history = [{"validation:accuracy": accuracy, "validation:loss": loss} for accuracy, loss in rows]
    assert [is_best(Progress(history=history[: n + 1])) for n in range(5)] == [True, True, True, False, False]


def test_frozen_body_keeps_weights_and_statistics(split: Split, tmp_path: Path) -> None:
    job = training(split, tmp_path, CONFIG.replace(fine_tune="head", batch_size=1))
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    fit(job, Observer())
    changed = {name for name, value in job.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_batch_of_one_image_is_left_out_of_a_full_training(split: Split, tmp_path: Path) -> None:
    job = training(split, tmp_path, CONFIG.replace(epochs=1))
    seen: list[int] = []
    job.model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])) if module.training else None)
    fit(job, Observer())
    assert seen == [4, 4]


def test_batch_size_may_exceed_the_data(split: Split, tmp_path: Path) -> None:
    job = training(split, tmp_path, CONFIG.replace(epochs=1, batch_size=64))
    fit(job, Observer())
    assert job.train.num_steps == 1


def test_split_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    split = Split("train", tmp_path, (tmp_path / "a.jpg",) * 3, (0, 1, 0))
    with pytest.raises(DataError, match="no image of the train split can be read"):
        fit(training(split, tmp_path / "checkpoints"), Observer())


def test_a_class_without_a_readable_image_ends_the_training_after_its_first_epoch(split: Split, tmp_path: Path) -> None:
    paths = [tmp_path / class_name / path.name for class_name in ("cat", "dog") for path in split.paths[:4]]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(split.paths[0].read_bytes() if path.parent.name == "cat" else b"")
    half = Split("train", tmp_path, tuple(paths), (0,) * 4 + (1,) * 4)
    job = training(half, tmp_path / "checkpoints")
    with pytest.raises(DataError, match="no image of dog in train can be read"):
        fit(job, Observer())
    assert job.progress.epoch == 1
